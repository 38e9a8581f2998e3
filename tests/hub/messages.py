"""Requests as the log keeps them, and responses as faults change them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Slice:
    """A part of a file, sent from disk."""

    path: Path
    start: int
    length: int


@dataclass
class Response:
    """An answer, and how it is delivered; a fault changes either."""

    status: int = 200
    body: bytes | Slice = b""
    headers: dict[str, str] = field(default_factory=dict)
    announce: int | None = None  # the Content-Length to state, when not the body's own
    cut: int | None = None  # bytes of body after which the connection is reset; -1: no headers
    stall: int | None = None  # bytes of body after which nothing more comes; -1: no headers
    rate: float | None = None  # bytes a second

    @classmethod
    def json(
        cls, payload: Any, status: int = 200, headers: dict[str, str] | None = None
    ) -> Response:
        headers = {"Content-Type": "application/json", **(headers or {})}
        return cls(status, json.dumps(payload).encode(), headers)

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
    host: str  # "hub", "storage" or "uploads"
    token: str | None = None
    user: str | None = None
    body: bytes | Path = b""
    route: str = ""
    file: str = ""
    status: int = 0
    sent: int = 0
    received: int = 0

    @property
    def json(self) -> dict:
        assert isinstance(self.body, bytes)
        return json.loads(self.body)


Answer = Callable[[], Response]
Fault = Callable[[Answer], Response]
