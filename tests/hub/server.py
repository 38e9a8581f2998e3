"""The hub itself: its hosts, a log of requests, a queue of faults."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from tests.hub.connection import Server
from tests.hub.messages import Fault, Request
from tests.hub.store import Blob, Model, Store

# The hub's three hosts, by the names that a client sees. To a client, `localhost` is another host
# than `127.0.0.1`.
LOOPBACK = {"hub": "127.0.0.1", "storage": "localhost", "uploads": "localhost"}


@dataclass
class Rules:
    """What the real hub is not always seen to do; `tests/README.md` names the sources.

    A test sets a switch in its own body: `hub.rules.envelope = True`.
    """

    direct: bool = False  # all bytes, up and down, go through the hub itself
    partial: bool = True  # a range is answered 206; else 200 with Content-Range
    envelope: bool = False  # the lists answer errors with HTTP 200 and `"Success": false`
    no_digest: str = ""  # files that are listed without a digest: "", "empty" or "small"
    lag: int = 0  # requests for the file list that do not show a commit yet
    lag_seconds: float = 0  # and for how long they don't, however many there are
    commits: int | None = None  # commits that are accepted before the limit is reached
    refused: str = (
        r"/.*|\./.*|(.*/)?\.\.(/.*)?"  # paths that no commit may have, as a regular expression
    )
    refuse_unchanged: bool = False  # a commit may not hold files that the branch has already


@dataclass
class Queued:
    route: str
    fault: Fault
    file: str | None
    always: bool = False
    met: bool = False


@dataclass
class Lag:
    """What the file list still shows after a commit: how many times, and until when."""

    files: dict[str, Blob] | None
    times: int
    until: float


class Hub:
    """The stand-in hub: `with Hub(store) as hub:` serves on loopback until the block ends.

    `latency` is seconds before each answer; `rate` is bytes a second for a connection;
    `connections` is the number of file transfers at once beyond which the hub answers 429. `tls`
    makes it speak HTTPS, under the `names` that it is given, at whatever ports; a host that has
    no name there is the hub itself. What else it can do is in `rules`.
    """

    def __init__(
        self,
        store: Store,
        *,
        latency: float = 0,
        rate: float | None = None,
        connections: int = 0,
        tls: ssl.SSLContext | None = None,
        names: Mapping[str, str] = LOOPBACK,
    ) -> None:
        self.store = store
        self.latency = latency
        self.rate = rate
        self.connections = connections
        self.tls = tls
        self.names = names
        self.rules = Rules()
        self.signed: dict[str, tuple[str, Blob]] = {}  # the file at each signed address
        self.expired: set[str] = set()
        self.lags: dict[tuple[str, str], Lag] = {}
        self.log: list[Request] = []
        self.problems: list[str] = []
        self.faults: list[Queued] = []
        self.busy = 0  # file transfers
        self.open: set[socket.socket] = set()
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.servers = {host: self.listen(host) for host in names}

    @property
    def url(self) -> str:
        return self.address("hub")

    def address(self, host: str) -> str:
        """Return where a client finds `host`."""
        host = host if host in self.names else "hub"
        if self.tls:
            return f"https://{self.names[host]}"
        return f"http://{self.names[host]}:{self.servers[host].server_address[1]}"

    def listen(self, host: str, port: int = 0) -> Server:
        server = Server(self, host, port)
        if self.tls:  # the handshake is for a connection's own thread, at its first read
            server.socket = self.tls.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    def stop(self) -> None:
        """Listen no more, on any host."""
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
        self.servers = {host: self.listen(host, port) for host, port in ports.items()}

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *exc: object) -> None:
        self.closing.set()
        self.stop()

    def expire(self) -> None:
        """Make every signed address that was given out expire."""
        self.expired |= set(self.signed)

    def commit(self, model: Model, branch: str, changes: dict[str, Blob], message: str) -> None:
        """Make a commit, which the file list may not show at once."""
        until = time.monotonic() + self.rules.lag_seconds
        self.lags[model.id, branch] = Lag(model.files(branch), self.rules.lag, until)
        self.store.commit(model, branch, changes, message)

    def listed(self, model: Model, revision: str) -> dict[str, Blob] | None:
        """Return what the file list shows of a revision: its files, or those before a commit."""
        with self.lock:
            lag = self.lags.get((model.id, revision))
            if lag is None or (lag.times <= 0 and lag.until <= time.monotonic()):
                return model.files(revision)
            lag.times -= 1
            return lag.files

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

    def sent(self, route: str = "file") -> int:
        return sum(request.sent for request in self.requests(route))

    def received(self, route: str = "blob") -> int:
        return sum(request.received for request in self.requests(route))

    def check(self) -> None:
        """Raise when a route was unknown, an answer raised an exception, or a fault was not met."""
        unmet = [f"{q.route} {q.file or ''}: never met" for q in self.faults if not q.met]
        assert not self.problems + unmet, "\n".join(self.problems + unmet)
