"""What several test files share: a model, both scripts run on it, a look at the result."""

from __future__ import annotations

import contextlib
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import Fault, Store
from tests.hub.faults import edit
from tests.support.client import PARTS, ROOT, Client, Result, tree

MODEL, DRAFT = "alice/model", "alice/draft"
BIG = "model-00002-of-00002.safetensors"
FILES = {
    "config.json": b'{"model_type": "qwen3"}',
    "tokenizer_config.json": b"{}",
    "model-00001-of-00002.safetensors": random.Random(1).randbytes(256_000),
    BIG: random.Random(2).randbytes(2_560_000),
    "nested/vocab.txt": b"a\nb\n",
}
SMALL = {"config.json": b"{}"}
SIZE = len(FILES[BIG])
TOTAL = sum(map(len, FILES.values()))
Env = dict[str, str]
SUCCESS = ["Model download successful!", "Resolved model_dir: {}"]
TRIED_AGAIN = "trying again"  # what the download says of another try
SLOW_DISK = "import os, time; os.fsync = lambda file: time.sleep(4)"  # for `client.at_start`

in_both_ways = pytest.mark.parametrize("env", [{}, PARTS], ids=["in one stream", "in parts"])
posix = pytest.mark.skipif(sys.platform == "win32", reason="what only POSIX has")
# Root may read and write everything; before a command, these words give that up.
NO_OVERRIDE: list[str] = []
if sys.platform == "linux" and os.geteuid() == 0:
    NO_OVERRIDE = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


def download(client: Client, *options: object, **env: str | None) -> Result:
    """Run `download_model.py` on MODEL; the files come to `snapshot(client.work)`."""
    return client.run("download_model.py", *options, **{"MODEL_ID": MODEL, **env})


def upload(client: Client, *options: object, **env: str | None) -> Result:
    """Run `upload_model.py` on the folder `client.work / "folder"`, to MODEL."""
    defaults = {"REPO_ID": MODEL, "MODEL_DIR": "folder"}
    return client.run("upload_model.py", *options, **{**defaults, **env})


def snapshot(cache: Path, model: str = MODEL, revision: str = "master") -> Path:
    """Where the files of a model come to, below a cache folder."""
    return cache / "models" / model.replace("/", "--") / "snapshots" / revision


def uploaded(store: Store, model: str = MODEL) -> dict[str, bytes]:
    """The files that the hub holds and their bytes, without those whose blob it has lost."""
    files = store.models[model].revisions.get("master", {})
    return {n: b.path.read_bytes() for n, b in files.items() if b.sha256 in store.blobs}


def assert_downloaded(client: Client, result: Result, files: dict[str, bytes] = FILES) -> None:
    assert result.code == 0, result
    assert tree(snapshot(client.work)) == files


def assert_uploaded(
    store: Store, result: Result, files: dict[str, bytes] = FILES, model: str = MODEL
) -> None:
    assert result.code == 0, result
    assert uploaded(store, model) == files


def assert_failed(result: Result, *words: str, code: int = 1) -> None:
    """An honest failure: its code, one line that says so, its words, and no traceback."""
    shown = result.out + result.err
    assert result.code == code, result
    assert len(re.findall("^(?:.*download FAILED|ERROR: )", shown, re.MULTILINE)) == 1, result
    assert [word for word in words if word not in shown] == [], result
    assert "Traceback" not in shown, result
    assert code != 1 or not re.search("successful|finished", result.out), result


def warnings(result: Result) -> list[str]:
    return [line for line in result.err.splitlines() if line.startswith("WARNING: ")]


def lists_big(**fields: object) -> Fault:
    """The list says something else about the big file."""
    return edit(lambda files: [file.update(fields) for file in files if file["Path"] == BIG])


def in_terminal(script: str) -> list[str]:
    """The command that runs a script in a terminal; a line of its output is one redraw."""
    pytest.importorskip("pty")  # Windows has none
    spawn = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    sized = ["sh", "-c", 'stty rows 24 cols 100 && exec "$@"', "sh"]
    return [sys.executable, "-c", spawn, *sized, sys.executable, str(ROOT / script)]


def on_terminal(client: Client, script: str, **env: str) -> Result:
    """Run a script in a terminal; `out` is all that it was sent."""
    return client.run(*in_terminal(script), **env)


def percents(result: Result) -> list[int]:
    """How far the bar was, each time that it was drawn."""
    return [int(percent) for percent in re.findall(r"(\d+)%\|", result.out)]


@contextlib.contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own at `folder`, with room for `size`, such as "4m"."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux can mount a disk")
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
