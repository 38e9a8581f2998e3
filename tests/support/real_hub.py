"""The hub at its real names, as every user meets it: no `MODELSCOPE_ENDPOINT`, both sites, TLS.

A proxy on loopback takes the place of the internet: it connects each of these names to a stand-in
and refuses every other one.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer

import trustme

from tests.hub import Hub, Store
from tests.support.client import Client

# No record names a storage host of the international site: it sends everything by itself.
CN = {
    "hub": "modelscope.cn",
    "storage": "cdn-lfs-cn-1.modelscope.cn",
    "uploads": "lfs.modelscope.cn",
}
AI = {"hub": "www.modelscope.ai"}
NAMES = [*CN.values(), *AI.values()]


class Proxy(ThreadingTCPServer):
    """A proxy that knows the names of some hubs, and keeps what it was asked for in `asked`."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, *hubs: Hub) -> None:
        super().__init__(("127.0.0.1", 0), Tunnel)
        self.asked: set[str] = set()
        self.ports = {
            name: hub.servers[host].server_address[1]
            for hub in hubs
            for host, name in hub.names.items()
        }

    def __enter__(self) -> Proxy:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self.server_close()


class Tunnel(BaseHTTPRequestHandler):
    server: Proxy
    timeout = 60

    def log_message(self, *args: object) -> None:
        """The proxy's log is `asked`."""

    def connect(self) -> None:
        name = self.path.removesuffix(":443")
        self.server.asked.add(name)
        if name not in self.server.ports:
            self.send_error(403)
            return
        with socket.create_connection(("127.0.0.1", self.server.ports[name])) as hub:
            self.send_response_only(200)
            self.end_headers()
            back = threading.Thread(target=forward, args=(hub, self.connection), daemon=True)
            back.start()
            forward(self.connection, hub)
            back.join()

    do_CONNECT = connect


def forward(source: socket.socket, target: socket.socket) -> None:
    """Copy all that comes, and the end of it."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@dataclass
class RealHub:
    """Both sites, and a client that is told of neither but trusts their certificates."""

    cn: Hub
    ai: Hub
    client: Client
    proxy: Proxy

    def token_hosts(self) -> set[str]:
        """The hosts that a token was sent to, by their names."""
        log = [*self.cn.log, *self.ai.log]
        return {r.headers["Host"] for r in log if r.token or "Cookie" in r.headers}


@contextlib.contextmanager
def real_hub(folder: Path) -> Iterator[RealHub]:
    """Serve two hubs at the two sites until the block ends, and then check them."""
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    authority.issue_cert(*NAMES).configure_cert(tls)
    with (
        Hub(Store(folder / "cn"), tls=tls, names=CN) as cn,
        Hub(Store(folder / "ai"), tls=tls, names=AI) as ai,
        Proxy(cn, ai) as proxy,
    ):
        client = Client(folder, cn)
        del client.env["MODELSCOPE_ENDPOINT"]
        client.env["HTTPS_PROXY"] = f"http://127.0.0.1:{proxy.server_address[1]}"
        client.env["REQUESTS_CA_BUNDLE"] = str(folder / "ca.pem")
        yield RealHub(cn, ai, client, proxy)
        client.close()
    for hub in (cn, ai):
        hub.check()
    assert proxy.asked <= set(NAMES), f"asked for: {proxy.asked}"
