"""What the real hub is not always seen to do: one switch for each, to be set in a test's own body.

`hub.rules.envelope = True`. The defaults are what the records agree on; `tests/README.md` has the
sources.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Rules:
    direct: bool = False  # all bytes, up and down, go through the hub itself
    lifetime: int | None = None  # requests for which a signed address is good; None: no limit
    partial: bool = True  # a range is answered 206; else 200 with Content-Range
    envelope: bool = False  # the lists answer errors with HTTP 200 and `"Success": false`
    no_digest: str = ""  # files that are listed without a digest: "", "empty" or "small"
    lag: int = 0  # requests for the file list that do not show a commit yet
    lag_seconds: float = 0  # and for how long they don't, however many there are
    commits: int | None = None  # commits that are taken before the limit is reached
    refused: str = r"\./.*"  # paths that no commit may have, as a regular expression
    refuse_unchanged: bool = False  # a commit may not hold files that the branch has already
