"""The hub itself: its hosts, a log of requests, a queue of faults; and what goes over a socket."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import ssl
import struct
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub import routes
from tests.hub.faults import Answer, Fault, Response
from tests.hub.store import Blob, Store

# The hub's three hosts. To a client, `localhost` is another host than `127.0.0.1`.
LOOPBACK = {"hub": "127.0.0.1", "storage": "localhost", "uploads": "localhost"}


@dataclass
class Rules:
    """What a hub may do one way or the other; `tests/README.md` names the sources."""

    direct: bool = False  # all bytes, up and down, go through the hub itself
    partial: bool = True  # a range is answered 206; else 200 with Content-Range
    envelope: bool = False  # the lists answer errors with HTTP 200 and `"Success": false`
    no_digest: str = ""  # files that are listed without a digest: "", "empty" or "small"
    refuse_unchanged: bool = False  # a commit may not hold files that the branch has already


@dataclass
class Request:
    """A request as the routes see it, and the line that the log keeps of it."""

    method: str
    path: str
    query: dict[str, str]
    headers: Any
    host: str  # "hub", "storage" or "uploads"
    token: str | None = None
    user: str | None = None
    body: bytes | Path = b""
    route: str = ""
    file: str = ""
    status: int = 0
    sent: int = 0
    received: int = 0
    time: float = field(default_factory=time.monotonic)

    @property
    def json(self) -> dict:
        assert isinstance(self.body, bytes)
        return json.loads(self.body)


@dataclass
class Queued:
    route: str
    fault: Fault
    file: str | None
    always: bool = False
    met: bool = False


@dataclass(eq=False, repr=False)
class Hub:
    """The stand-in hub: `with Hub(store) as hub:` serves on loopback until the block ends."""

    store: Store
    _: KW_ONLY
    latency: float = 0  # seconds before each answer
    rate: float | None = None  # bytes a second for each connection
    tls: ssl.SSLContext | None = None  # for HTTPS; its addresses have no port then
    names: Mapping[str, str] = field(default_factory=LOOPBACK.copy)  # no name: the hub itself
    rules: Rules = field(default_factory=Rules)
    log: list[Request] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    faults: list[Queued] = field(default_factory=list)
    signed: dict[str, tuple[str, Blob]] = field(default_factory=dict)  # a file by its signature
    expired: set[str] = field(default_factory=set)
    open: set[socket.socket] = field(default_factory=set)
    stopped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.servers = {host: self.listen(host) for host in self.names}

    @property
    def url(self) -> str:
        return self.address("hub")

    def address(self, host: str) -> str:
        """Where a client finds `host`."""
        host = host if host in self.names else "hub"
        if self.tls:
            return f"https://{self.names[host]}"
        return f"http://{self.names[host]}:{self.servers[host].server_address[1]}"

    def listen(self, host: str, port: int = 0) -> Server:
        server = Server(self, host, port)
        if self.tls:  # as a server; the handshake is left to each connection's own thread
            server.socket = self.tls.wrap_socket(server.socket, True, False)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    def stop(self) -> None:
        """Answer no new request, on any host, nor on a connection that is kept alive."""
        self.stopped = True
        for server in self.servers.values():
            server.shutdown()
            server.server_close()

    def restart(self) -> None:
        """Break every connection and serve again at the same addresses."""
        ports = {host: server.server_address[1] for host, server in self.servers.items()}
        self.stop()
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.stopped = False
        self.servers = {host: self.listen(host, port) for host, port in ports.items()}

    def __enter__(self) -> Hub:
        return self

    def close(self, *exc: object) -> None:
        self.closing.set()
        self.stop()

    __exit__ = close

    def expire(self) -> None:
        """Make every signed address that was given out expire."""
        self.expired |= set(self.signed)

    def queue(self, route: str, *faults: Fault, file: str | None = None, times: int = 1) -> None:
        """Let the next requests of `route` (for `file`) meet `faults`, one each, in this order."""
        with self.lock:
            self.faults += [Queued(route, fault, file) for fault in faults * times]

    def always(self, route: str, fault: Fault, file: str | None = None) -> None:
        """Let every request of `route` (for `file`) meet `fault`, once the queue is empty."""
        with self.lock:
            self.faults.append(Queued(route, fault, file, always=True))

    def next_fault(self, request: Request) -> Fault | None:
        with self.lock:
            for queued in self.faults:
                if queued.route == request.route and queued.file in (None, request.file):
                    queued.met = True
                    if not queued.always:
                        self.faults.remove(queued)
                    return queued.fault
        return None

    def requests(self, route: str, file: str | None = None) -> list[Request]:
        return [r for r in self.log if r.route == route and file in (None, r.file)]

    def pauses(self, route: str, file: str | None = None) -> list[float]:
        """The seconds from each of these requests to the next."""
        times = [request.time for request in self.requests(route, file)]
        return [after - before for before, after in itertools.pairwise(times)]

    def sent(self, route: str = "file") -> int:
        return sum(request.sent for request in self.requests(route))

    def received(self, route: str = "blob") -> int:
        return sum(request.received for request in self.requests(route))

    def check(self, passed: bool = True) -> None:
        """Raise when a route was unknown, or an answer raised an exception.

        A fault that was not met counts only where the test `passed`, or it would hide why not."""
        unmet = [
            f"{q.route} {q.file or ''}: never met" for q in self.faults if not q.met and passed
        ]
        assert not self.problems + unmet, "\n".join(self.problems + unmet)


class Server(ThreadingTCPServer):
    """One host of the hub, on loopback."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, hub: Hub, host: str, port: int = 0) -> None:
        self.hub = hub
        self.host = host
        super().__init__(("127.0.0.1", port), Connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep what broke the hub; a client that went away didn't."""
        if not isinstance(sys.exc_info()[1], OSError):
            self.hub.problems.append(traceback.format_exc())


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
        if hub.stopped:
            self.close_connection = True
            return
        route = routes.find(hub, request)
        with hub.lock:
            hub.log.append(request)
        response = self.answer(request, route)
        request.status = response.status
        self.deliver(request, response)

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
            chunk = self.rfile.read1(min(1 << 18, length - request.received))
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
        self.read_body(request)
        return fault(route) if fault else route()

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
        length = len(response.body) if response.announce is None else response.announce
        self.send_response_only(response.status)
        for name, value in {"Content-Length": str(length), **response.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if length != len(response.body):
            self.close_connection = True

    def send_body(self, request: Request, response: Response) -> None:
        rate = response.rate or self.hub.rate
        body = memoryview(response.body)
        end = min(x for x in (response.cut, response.stall, len(body)) if x is not None)
        step = max(1, int(rate / 20)) if rate else max(1, end)
        while request.sent < end:
            chunk = body[request.sent : min(request.sent + step, end)]
            request.sent += len(chunk)  # first, as a client that has the last one may be gone
            self.connection.sendall(chunk)
            self.pace(len(chunk), rate)

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
        """Send nothing more, but hold the connection until the hub closes."""
        self.close_connection = True
        self.hub.closing.wait()
