"""What the hub answers, and how an answer goes wrong on purpose.

A fault takes the right answer and returns another one. Queue faults in a test's own body:
`hub.queue("file", truncate(1000), file="model.safetensors")`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass
class Response:
    """An answer, and how it is delivered."""

    status: int = 200
    body: bytes | memoryview = b""
    headers: dict[str, str] = field(default_factory=dict)
    announce: int | None = None  # the Content-Length to state, when not the body's own
    cut: int | None = None  # bytes of body after which the connection is reset; -1: no headers
    stall: int | None = None  # bytes of body after which nothing more comes; -1: no headers
    rate: float | None = None  # bytes a second

    @classmethod
    def json(cls, payload: Any, status: int = 200) -> Response:
        return cls(status, json.dumps(payload).encode(), {"Content-Type": "application/json"})


Answer = Callable[[], Response]
Fault = Callable[[Answer], Response]


def called(name: str, fault: Fault) -> Fault:
    """The same fault, with a name that a test's id can show."""
    fault.__name__ = name  # type: ignore[attr-defined]
    return fault


def passes(answer: Answer) -> Response:
    """Nothing goes wrong this time."""
    return answer()


def refuse(answer: Answer) -> Response:
    """The connection is reset before any answer."""
    return Response(0, cut=-1)


def status(code: int, message: str = "", **headers: str) -> Fault:
    """An error status, as JSON; `Retry_After="1"` becomes a header."""
    payload = {"Code": code, "Success": False, "Message": message or f"status {code}"}
    response = Response.json(payload, code)
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return called(str(code), lambda answer: response)


def truncate(after: int) -> Fault:
    """The connection is reset after some bytes of the body."""
    return called("truncate", lambda answer: replace(answer(), cut=after))


def short(missing: int) -> Fault:
    """The body ends early, and the connection is closed as if all were well."""
    return changed(lambda body: body[:-missing], announced=False)


def half(answer: Answer) -> Response:
    """Half of the body comes, then the connection is closed as if all were well."""
    return changed(lambda body: body[: len(body) // 2], announced=False)(answer)


def long(extra: int, *, announced: bool) -> Fault:
    """The body is longer than the file, and also longer than it says itself unless `announced`."""
    return changed(lambda body: body + bytes(extra), announced=announced)


def changed(change: Callable[[bytes], bytes], *, announced: bool = True) -> Fault:
    """Another body, and the right Content-Length for it only if `announced`."""

    def fault(answer: Answer) -> Response:
        response = answer()
        body = change(bytes(response.body))
        return replace(response, body=body, announce=len(body if announced else response.body))

    return fault


def first(action: Callable[[], object], then: Fault = passes) -> Fault:
    """Something else happens before the answer."""

    def fault(answer: Answer) -> Response:
        action()
        return then(answer)

    return fault


class Crowd:
    """Each answer takes a moment; `most` is how many were asked for at once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.lock = threading.Lock()

    def __call__(self, answer: Answer) -> Response:
        self.enter(1)
        time.sleep(0.2)
        self.enter(-1)
        return answer()

    def enter(self, step: int) -> None:
        with self.lock:
            self.now += step
            self.most = max(self.most, self.now)


def stall(after: int | None = None) -> Fault:
    """Nothing more comes after some bytes of the body; by default the request isn't acted on."""
    if after is None:
        return called("stall", lambda answer: Response(0, stall=-1))
    return called("stall midway", lambda answer: replace(answer(), stall=after))


def slow(rate: float) -> Fault:
    """The body comes at `rate` bytes a second."""
    return called("slow", lambda answer: replace(answer(), rate=rate))


def corrupt(answer: Answer) -> Response:
    """The right number of bytes, the first of them wrong."""
    return changed(lambda body: bytes([body[0] ^ 1]) + body[1:])(answer)


def answers(body: Any) -> Fault:
    """Another answer than the right one, with status 200: JSON, or bytes as they are."""
    is_page = isinstance(body, bytes)
    response = (
        Response(200, body, {"Content-Type": "text/html"}) if is_page else Response.json(body)
    )
    return called("other answer", lambda answer: response)


def edit(change: Callable[[list[dict[str, Any]]], object]) -> Fault:
    """The file list after `change`, which alters it in place."""

    def fault(answer: Answer) -> Response:
        payload = json.loads(bytes(answer().body))
        change(payload["Data"]["Files"])
        return Response.json(payload)

    return called("edited list", fault)


def named(name: str) -> Fault:
    """The file list with one more entry, a small file called `name`."""
    entry = {"Name": name, "Path": name, "Type": "blob", "Size": 4, "Sha256": "0" * 64}
    return edit(lambda files: files.append(entry))
