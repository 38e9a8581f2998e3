"""The hub's sockets: one thread a connection, a log of requests, a queue of faults."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.rules import Rules
from tests.hub.store import Blob, Model, Store

CHUNK = 1 << 18
LOOPBACK = ("127.0.0.1", 0)

# The hub's three hosts: the name that a client sees, and where each listens. `localhost` is another
# host than `127.0.0.1` to a client.
HOSTS = {
    "hub": ("127.0.0.1", LOOPBACK),
    "storage": ("localhost", LOOPBACK),
    "uploads": ("localhost", LOOPBACK),
}


@dataclass
class Slice:
    """A part of a file, sent from disk."""

    path: Path
    start: int
    length: int


@dataclass
class Response:
    """An answer, and how it is delivered; a fault changes the one or the other."""

    status: int = 200
    body: bytes | Slice = b""
    headers: dict[str, str] = field(default_factory=dict)
    announce: int | None = None  # the Content-Length to state, when not the body's own
    cut: int | None = None  # bytes of body after which the connection is reset
    stall: int | None = None  # bytes of body after which nothing comes any more; -1: no headers
    rate: float | None = None  # bytes a second
    refuse: bool = False  # reset the connection instead of an answer

    @classmethod
    def json(cls, payload: Any, status: int = 200, **headers: str) -> Response:
        body = json.dumps(payload).encode()
        return cls(status, body, {"Content-Type": "application/json", **headers})

    def __len__(self) -> int:
        return self.body.length if isinstance(self.body, Slice) else len(self.body)

    @property
    def content(self) -> bytes:
        """The body as bytes, for a fault that changes them."""
        if isinstance(self.body, bytes):
            return self.body
        with self.body.path.open("rb") as file:
            file.seek(self.body.start)
            return file.read(self.body.length)


@dataclass
class Request:
    """A request as the routes see it, and the line that the log keeps of it."""

    method: str
    path: str
    query: dict[str, str]
    headers: Any
    user: str | None = None
    token: str | None = None
    host: str = "hub"
    body: bytes | Path = b""
    route: str = ""
    file: str = ""
    status: int = 0
    sent: int = 0
    received: int = 0

    @property
    def json(self) -> dict:
        return json.loads(self.body)


Answer = Callable[[], Response]
Fault = Callable[[Answer], Response]


@dataclass
class Queued:
    route: str
    fault: Fault
    file: str | None
    always: bool = False
    met: bool = False


@dataclass
class Signed:
    """A file behind a signed address, and for how many requests the address is still good."""

    file: str
    blob: Blob
    left: int | None


@dataclass
class Lag:
    """What the file list goes on showing after a commit: how many times, and until when."""

    files: dict[str, Blob]
    left: int
    until: float


class Hub:
    """The stand-in hub: `with Hub(store) as hub:` serves on loopback until the block ends.

    `latency` is seconds before each answer; `rate` is bytes a second for a connection;
    `connections` is the number of file transfers at once beyond which the hub answers 429;
    with `tls` it speaks HTTPS; a host that `hosts` leaves out is the hub itself. What else it can
    do is in `rules`.
    """

    def __init__(
        self,
        store: Store,
        *,
        latency: float = 0,
        rate: float | None = None,
        connections: int = 0,
        tls: ssl.SSLContext | None = None,
        hosts: dict[str, tuple[str, tuple[str, int]]] = HOSTS,
    ) -> None:
        self.store = store
        self.rules = Rules()
        self.signed: dict[str, Signed] = {}
        self.lags: dict[tuple[str, str], Lag] = {}
        self.latency = latency
        self.rate = rate
        self.connections = connections
        self.busy = 0
        self.log: list[Request] = []
        self.problems: list[str] = []
        self.faults: list[Queued] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.open: set[socket.socket] = set()
        self.tls = tls
        self.hosts = hosts
        self.servers = {host: self.listen(host, address) for host, (_, address) in hosts.items()}

    @property
    def url(self) -> str:
        return self.address("hub")

    def address(self, host: str, request: Request | None = None) -> str:
        """Return where a client finds `host`; the hub under the name that `request` has for it."""
        scheme, default = ("https", 443) if self.tls else ("http", 80)
        host = host if host in self.hosts else "hub"
        if host == "hub" and request:
            return f"{scheme}://{request.headers['Host']}"
        port = self.servers[host].server_port
        return f"{scheme}://{self.hosts[host][0]}" + (f":{port}" if port != default else "")

    def listen(self, host: str, address: tuple[str, int]) -> ThreadingHTTPServer:
        server = _Server(address, _handler(self, host))
        if self.tls:  # the handshake is for a connection's own thread, at its first read
            server.socket = self.tls.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        return server

    def __enter__(self) -> Hub:
        self.serve()
        return self

    def serve(self) -> None:
        for server in self.servers.values():
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Listen no more, on any host."""
        stopping = [threading.Thread(target=server.shutdown) for server in self.servers.values()]
        for thread in stopping:
            thread.start()
        for thread, server in zip(stopping, self.servers.values(), strict=True):
            thread.join()
            server.server_close()

    def restart(self) -> None:
        """Break every connection, and be there again at the same addresses."""
        addresses = {host: server.server_address for host, server in self.servers.items()}
        self.stop()
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.servers = {host: self.listen(host, at) for host, at in addresses.items()}
        self.serve()

    def __exit__(self, *exc: object) -> None:
        self.closing.set()
        self.stop()

    def expire(self) -> None:
        """Let every signed address that was given out be good for nothing."""
        with self.lock:
            for signed in self.signed.values():
                signed.left = 0

    def commit(
        self, model: Model, revision: str, changes: dict[str, Blob | None], message: str
    ) -> None:
        """Make a commit, which the file list may not show at once."""
        with self.lock:
            shown = self.lagging(model, revision)
            files = shown.files if shown else model.revisions[revision]
            until = time.monotonic() + self.rules.lag_seconds
            self.lags[model.id, revision] = Lag(files, self.rules.lag, until)
        self.store.commit(model, revision, changes, message)

    def lagging(self, model: Model, revision: str) -> Lag | None:
        lag = self.lags.get((model.id, revision))
        return lag if lag and (lag.left or time.monotonic() < lag.until) else None

    def shown(self, model: Model, revision: str) -> dict[str, Blob] | None:
        """Return what the file list shows of a revision: its files, or those before a commit."""
        with self.lock:
            lag = self.lagging(model, revision)
            if lag is None:
                return model.files(revision)
            lag.left = max(0, lag.left - 1)
            return lag.files

    def queue(self, route: str, *faults: Fault, file: str | None = None, times: int = 1) -> None:
        """Let the next requests of `route` (for `file`) meet `faults`, one each, in this order."""
        with self.lock:
            self.faults += [Queued(route, fault, file) for fault in faults * times]

    def always(self, route: str, fault: Fault, file: str | None = None) -> None:
        """Let every request of `route` (for `file`) meet `fault`, once the queue is through."""
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

    def sent(self, route: str = "file") -> int:
        return sum(request.sent for request in self.requests(route))

    def received(self, route: str = "blob") -> int:
        return sum(request.received for request in self.requests(route))

    def check(self) -> None:
        """Raise when a request was of no known route, broke the hub, or a fault was never met."""
        unmet = [f"{q.route} {q.file or ''}: never met" for q in self.faults if not q.met]
        assert not self.problems + unmet, "\n".join(self.problems + unmet)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no problem of the hub's."""


def _handler(hub: Hub, host: str) -> type[BaseHTTPRequestHandler]:
    from tests.hub import routes

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            hub.open.add(self.connection)

        def finish(self) -> None:
            hub.open.discard(self.connection)
            super().finish()

        def log_message(self, *args: object) -> None:
            """The hub's own log is `hub.log`."""

        def handle_request(self) -> None:
            request = self.read_head()
            route = routes.find(hub, request)
            transfer = request.route == "file" and request.method == "GET"
            with hub.lock:
                hub.log.append(request)
                hub.busy += transfer
            try:
                response = self.answer(request, route)
                request.status = 0 if response.refuse else response.status
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
            user = hub.store.users.get(token or "")
            who = {"user": user, "token": token, "host": host}
            return Request(self.command, unquote(url.path), query, self.headers, **who)

        def read_body(self, request: Request) -> None:
            """Take the body in: to a file when it is a blob, else into memory."""
            if request.route != "blob":
                request.body = b"".join(self.chunks(request))
                return
            request.body = hub.store.new_file()
            with request.body.open("wb") as file:
                for chunk in self.chunks(request):
                    file.write(chunk)
                    self.pace(len(chunk), hub.rate)

        def chunks(self, request: Request) -> Iterator[bytes]:
            """The body as it comes, counted; an older SDK sends it in chunks of its own."""
            if self.headers.get("Transfer-Encoding") != "chunked":
                yield from self.exactly(int(self.headers.get("Content-Length") or 0), request)
                return
            while size := int(self.rfile.readline(), 16):
                yield from self.exactly(size, request)
                self.rfile.readline()
            self.rfile.readline()

        def exactly(self, length: int, request: Request) -> Iterator[bytes]:
            while length:
                chunk = self.rfile.read1(min(CHUNK, length))
                if not chunk:
                    raise ConnectionError("the client went away")
                length -= len(chunk)
                request.received += len(chunk)
                yield chunk

        def answer(self, request: Request, route: Answer | None) -> Response:
            if route is None:
                hub.problems.append(f"unknown route: {request.method} {self.path}")
                return Response(404)
            fault = hub.next_fault(request)
            if hub.latency:
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
            if response.refuse:
                self.reset()
                return
            if response.stall == -1:
                self.hang()
                return
            length = len(response) if response.announce is None else response.announce
            self.send_response_only(response.status)
            for name, value in {"Content-Length": str(length), **response.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if request.method != "HEAD":
                self.send_body(request, response)
            if length != len(response):
                self.close_connection = True

        def send_body(self, request: Request, response: Response) -> None:
            rate = response.rate or hub.rate
            end = min(x for x in (response.cut, response.stall, len(response)) if x is not None)
            step = max(1, int(rate / 20)) if rate else max(1, end)
            while (before := request.sent) < end:
                self.send(request, response.body, min(step, end - before))
                if request.sent == before:
                    raise ConnectionError("the file is shorter than it was")
                self.pace(request.sent - before, rate)
            if response.cut is not None:
                self.reset()
            elif response.stall is not None:
                self.hang()

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
            """Hold a connection to `rate`, in bytes a second, whatever the sleeps overshoot."""
            if rate is None:
                return
            now = time.monotonic()
            self.due = max(getattr(self, "due", now), now - 0.1) + moved / rate
            hub.closing.wait(max(0.0, self.due - now))

        def reset(self) -> None:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True

        def hang(self) -> None:
            """Say nothing more until the client gives up or the hub closes."""
            self.close_connection = True
            self.connection.settimeout(0.05)
            while not hub.closing.is_set():
                try:
                    if not self.connection.recv(1):
                        return
                except TimeoutError:
                    continue

    return Handler
