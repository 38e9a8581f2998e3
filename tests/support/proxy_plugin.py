"""What the proxy of the tests does besides: it is a process, and its `--plugins` names this."""

from __future__ import annotations

import os
from pathlib import Path

from proxy.http.parser import HttpParser
from proxy.http.proxy import HttpProxyBasePlugin


class Notes(HttpProxyBasePlugin):
    """Finds every host on loopback, and notes what it was asked for and how much came back."""

    def resolve_dns(self, host: str, port: int) -> tuple[str, None]:
        return "127.0.0.1", None

    def handle_client_request(self, request: HttpParser) -> HttpParser:
        self.note(f"{request.method.decode()} {request.host.decode()}")
        return request

    def handle_upstream_chunk(self, chunk: memoryview) -> memoryview:
        self.note(f"came {len(chunk)}")
        return chunk

    def note(self, line: str) -> None:
        with Path(os.environ["PROXY_NOTES"]).open("a") as notes:
            notes.write(f"{line}\n")
