"""The hub at its real names, as every user meets it: no `MODELSCOPE_ENDPOINT`, both sites, TLS.

A proxy on loopback takes the place of the internet: it connects each of these names to a stand-in
and refuses all others.
"""

import contextlib
import socket
import ssl
import threading
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer

import trustme

from tests.hub import Hub, Store
from tests.support.client import Client

STORAGE, UPLOADS = "cdn-lfs-cn-1.modelscope.cn", "lfs.modelscope.cn"
CN = {"hub": "modelscope.cn", "storage": STORAGE, "uploads": UPLOADS}
AI = {"hub": "www.modelscope.ai"}  # no record names other hosts: this one sends everything itself


class RealHub(ThreadingTCPServer):
    """The proxy, both sites, and a client that is told of neither but trusts their certificates."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Tunnel)
        authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        authority.issue_cert(*CN.values(), *AI.values()).configure_cert(tls)
        self.cn = Hub(Store(folder / "cn"), tls=tls, names=CN)
        self.ai = Hub(Store(folder / "ai"), tls=tls, names=AI)
        servers = [(h.names[host], s) for h in (self.cn, self.ai) for host, s in h.servers.items()]
        self.addresses = {name: server.server_address for name, server in servers}
        self.asked: set[str] = set()  # names
        self.client = Client(folder, self.cn)
        del self.client.env["MODELSCOPE_ENDPOINT"]
        self.client.env["HTTPS_PROXY"] = f"http://127.0.0.1:{self.server_address[1]}"
        self.client.env["REQUESTS_CA_BUNDLE"] = str(folder / "ca.pem")
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def token_hosts(self) -> set[str]:
        """The names of the hosts that a token was sent to."""
        requests = [r for r in self.cn.log + self.ai.log if r.token or "Cookie" in r.headers]
        return {request.headers["Host"] for request in requests}

    def close(self, passed: bool = True) -> None:
        """Stop everything, and fail when something was asked for that is not there."""
        self.client.close()
        self.shutdown()
        self.server_close()
        for hub in (self.cn, self.ai):
            hub.close()
            hub.check(passed)
        assert self.asked <= self.addresses.keys(), f"asked for {self.asked}"


class Tunnel(StreamRequestHandler):
    """A connection through the proxy, asked for by CONNECT."""

    server: RealHub

    def handle(self) -> None:
        name = self.rfile.readline().split()[1].decode().removesuffix(":443")
        while self.rfile.readline().strip():
            pass
        self.server.asked.add(name)
        if name not in self.server.addresses:
            self.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            return
        with socket.create_connection(self.server.addresses[name]) as hub:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            threading.Thread(target=forward, args=(hub, self.connection), daemon=True).start()
            forward(self.connection, hub)


def forward(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
