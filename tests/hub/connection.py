"""One connection of a client: requests are read, logged, answered and delivered."""

from __future__ import annotations

import socket
import struct
import time
import traceback
from collections.abc import Iterator
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub import routes
from tests.hub.messages import Answer, Request, Response, Slice

if TYPE_CHECKING:
    from tests.hub.server import Hub

CHUNK = 1 << 18


class Server(ThreadingTCPServer):
    """One host of the hub, on loopback."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, hub: Hub, host: str, port: int = 0) -> None:
        self.hub = hub
        self.host = host
        super().__init__(("127.0.0.1", port), Connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no problem of the hub's."""


class Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server
    due = 0.0  # when the bytes that were moved should have been moved, at the rate

    def setup(self) -> None:
        super().setup()
        self.hub = self.server.hub
        self.hub.open.add(self.connection)

    def finish(self) -> None:
        self.hub.open.discard(self.connection)
        super().finish()

    def log_message(self, *args: object) -> None:
        """The hub's own log is `hub.log`."""

    def handle_request(self) -> None:
        hub, request = self.hub, self.read_head()
        route = routes.find(hub, request)
        transfer = request.route == "file" and request.method == "GET"
        with hub.lock:
            hub.log.append(request)
            hub.busy += transfer
        try:
            response = self.answer(request, route)
            request.status = response.status
            self.deliver(request, response)
        except OSError:
            self.close_connection = True
        finally:
            with hub.lock:
                hub.busy -= transfer

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def read_head(self) -> Request:
        url = urlsplit(self.path)
        query = {k: v[-1] for k, v in parse_qs(url.query, keep_blank_values=True).items()}
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        cookie = SimpleCookie(self.headers.get("Cookie", "")).get("m_session_id")
        token = bearer or (cookie.value if cookie else None)
        user = self.hub.store.users.get(token or "")
        path, host = unquote(url.path), self.server.host
        return Request(self.command, path, query, self.headers, host, token, user)

    def read_body(self, request: Request) -> None:
        """Read the body: to a file when it is a blob, else into memory."""
        if request.route != "blob":
            request.body = b"".join(self.chunks(request))
            return
        request.body = self.hub.store.new_file()
        with request.body.open("wb") as file:
            for chunk in self.chunks(request):
                file.write(chunk)
                self.pace(len(chunk), self.hub.rate)

    def chunks(self, request: Request) -> Iterator[bytes]:
        """The body as it comes, counted."""
        length = int(self.headers.get("Content-Length") or 0)
        while request.received < length:
            chunk = self.rfile.read1(min(CHUNK, length - request.received))
            if not chunk:
                raise ConnectionError("the client went away")
            request.received += len(chunk)
            yield chunk

    def answer(self, request: Request, route: Answer | None) -> Response:
        hub = self.hub
        if route is None:
            hub.problems.append(f"unknown route: {request.method} {self.path}")
            self.close_connection = True
            return Response(404)
        fault = hub.next_fault(request)
        time.sleep(hub.latency)
        if request.route == "file" and 0 < hub.connections < hub.busy:
            return Response(429, headers={"Retry-After": "1"})
        try:
            self.read_body(request)
            return fault(route) if fault else route()
        except OSError:
            raise
        except Exception:
            hub.problems.append(traceback.format_exc())
            return Response(500)

    def deliver(self, request: Request, response: Response) -> None:
        if -1 not in (response.cut, response.stall):
            self.send_head(response)
            if request.method != "HEAD":
                self.send_body(request, response)
        if response.cut is not None:
            self.reset()
        elif response.stall is not None:
            self.hang()

    def send_head(self, response: Response) -> None:
        length = len(response) if response.announce is None else response.announce
        self.send_response_only(response.status)
        for name, value in {"Content-Length": str(length), **response.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if length != len(response):
            self.close_connection = True

    def send_body(self, request: Request, response: Response) -> None:
        rate = response.rate or self.hub.rate
        end = min(x for x in (response.cut, response.stall, len(response)) if x is not None)
        step = max(1, int(rate / 20)) if rate else max(1, end)
        while (before := request.sent) < end:
            self.send(request, response.body, min(step, end - before))
            if request.sent == before:
                raise ConnectionError("the file is shorter than it was")
            self.pace(request.sent - before, rate)

    def send(self, request: Request, body: bytes | Slice, count: int) -> None:
        """Send the next part of the body, from disk without a copy, and count what went."""
        if isinstance(body, bytes):
            self.wfile.write(body[request.sent : request.sent + count])
            request.sent += count
            return
        with body.path.open("rb") as file:
            try:
                self.connection.sendfile(file, body.start + request.sent, count)
            finally:  # also when the client goes away
                request.sent = max(request.sent, file.tell() - body.start)

    def pace(self, moved: int, rate: float | None) -> None:
        """Hold the connection to `rate`, in bytes a second, even where sleeps overshoot."""
        if rate is None:
            return
        now = time.monotonic()
        self.due = max(self.due, now - 0.1) + moved / rate
        self.hub.closing.wait(max(0.0, self.due - now))

    def reset(self) -> None:
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True

    def hang(self) -> None:
        """Send nothing more until the client gives up or the hub closes."""
        self.close_connection = True
        self.connection.settimeout(0.05)
        while not self.hub.closing.is_set():
            try:
                if not self.connection.recv(1):
                    return
            except TimeoutError:
                continue
