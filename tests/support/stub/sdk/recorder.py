"""What the stub of `modelscope` does: note each call, and succeed or fail as it was told.

STUB_CALLS  the file that each call is written to, as a line of JSON
STUB_FAILS  a call with this name, or with an argument of this value, raises RuntimeError
STUB_CAUSE  the text of that error
STUB_FOLDER what `snapshot_download` returns instead of `<cache_dir>/<model>`
STUB_BROKEN the error that importing the stub raises
"""

from __future__ import annotations

import builtins
import json
import os
from typing import Any

env = os.environ.get

if error := env("STUB_BROKEN"):
    raise getattr(builtins, error)("libhub.so is missing")


def record(name: str, *args: Any, **kwargs: Any) -> None:
    with open(os.environ["STUB_CALLS"], "a", encoding="utf-8") as calls:
        print(json.dumps([name, args, kwargs], default=os.fspath), file=calls)
    if env("STUB_FAILS") in (name, *args, *kwargs.values()):
        raise RuntimeError(env("STUB_CAUSE", "the hub said no"))


def snapshot_download(*args: Any, **kwargs: Any) -> str:
    record("snapshot_download", *args, **kwargs)
    folder = env("STUB_FOLDER") or os.path.join(kwargs["cache_dir"], args[0])
    os.makedirs(folder, exist_ok=True)
    return folder


class HubApi:
    def login(self, *args: Any, **kwargs: Any) -> None:
        record("login", *args, **kwargs)

    def upload_folder(self, *args: Any, **kwargs: Any) -> None:
        record("upload_folder", *args, **kwargs)
