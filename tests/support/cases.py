"""What several test files share: a model, both scripts run on it, a look at the result."""

import contextlib
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.hub import Fault, Store
from tests.hub.faults import edit
from tests.support.client import DOWNLOAD, PARTS, UPLOAD, Client, Result, tree

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
NAMES = {"MODEL_ID": MODEL, "REPO_ID": MODEL, "MODEL_DIR": "folder"}  # what both scripts work on
Env = dict[str, str]
Words = Sequence[str]
SOON = {  # an upload fails, where it would wait for the list, or the SDK would go on trying
    "MODELSCOPE_REPO_TREE_LIST_TIMEOUT_SECONDS": "1",
    "MODELSCOPE_UPLOAD_COMMIT_MAX_ATTEMPTS": "1",
}
SUCCESS = ["Model download successful!", "Resolved model_dir: {}"]
TRIED_AGAIN = "trying again"  # what the download says of another try
SLOW_DISK = "os.fsync, time.perf_counter = lambda file: time.sleep(4), time.monotonic"  # at_start

in_both_ways = pytest.mark.parametrize("env", [{}, PARTS], ids=["in one stream", "in parts"])
posix = pytest.mark.skipif(sys.platform == "win32", reason="what only POSIX has")
# What stands before a command: root may read and write everything, and these words give that up;
NO_OVERRIDE: list[str] = []
if sys.platform == "linux" and os.geteuid() == 0:
    NO_OVERRIDE = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
# SIGINT is ignored, as by `nohup … &` in a script;
IGNORE_SIGINT = ["sh", "-c", 'trap "" INT && exec "$@"', "sh"]
# the output is all that a terminal was sent, a line of it is one redraw.
IN_TERMINAL = [sys.executable, "-c", "import os, pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"]
IN_TERMINAL += ["sh", "-c", 'stty rows 24 cols 100 && exec "$@"', "sh"]


def download(client: Client, *options: object, before: Words = (), **env: str | None) -> Result:
    """Run `download_model.py` on MODEL; the files come to `snapshot(client.work)`."""
    return client.run(*before, *DOWNLOAD, *options, **NAMES | env)


def upload(client: Client, *options: object, before: Words = (), **env: str | None) -> Result:
    """Run `upload_model.py` on the folder `client.work / "folder"`, to MODEL."""
    return client.run(*before, *UPLOAD, *options, **NAMES | env)


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
    assert (result.code, result.lines[-1:]) == (0, ["Upload finished."]), result
    assert uploaded(store, model) == files


def assert_done(
    client: Client, store: Store, script: Words, result: Result, files: dict[str, bytes] = FILES
) -> None:
    """All has come to where the script was to bring it."""
    if script == UPLOAD:
        assert_uploaded(store, result, files)
    else:
        assert_downloaded(client, result, files)


def assert_failed(result: Result, *words: str, code: int = 1) -> None:
    """An honest failure: its code, one line that says so, its words, and no traceback."""
    shown = result.out + result.err
    assert result.code == code, result
    assert len(re.findall("^(?:.*download FAILED|ERROR: )", shown, re.MULTILINE)) == 1, result
    assert [word for word in words if word not in shown] == [], result
    assert "Traceback" not in shown, result
    assert code != 1 or not re.search("successful|finished", result.out), result


def lists_big(**fields: object) -> Fault:
    """The list says something else about the big file."""
    return edit(lambda files: [file.update(fields) for file in files if file["Path"] == BIG])


@contextlib.contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own at `folder`, with room for `size`, such as "4m"."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux can mount a disk")
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
