"""Odd machines: disks, rights, locales, streams, signals."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

import pytest

from tests.hub import Hub, Store
from tests.hub.faults import first, status
from tests.support.cases import (
    BIG,
    FILES,
    MODEL,
    NO_OVERRIDE,
    SUCCESS,
    TOTAL,
    TRIED_AGAIN,
    Env,
    assert_failed,
    disk,
    on_terminal,
    posix,
    snapshot,
    uploaded,
)
from tests.support.client import (
    IGNORE_SIGINT,
    PARTS,
    ROOT,
    Client,
    Process,
    Result,
    lay,
    tree,
)

INTERRUPTED = "Interrupted. Run the same command again to resume."
HOMES = {"MODELSCOPE_HOME": "home", "MODELSCOPE_CACHE": "home/cache"}
# Starts a command with both of its streams in one pipe.
ONE_PIPE = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:], stderr=sys.stdout))"


class Job:
    """A script with work to do: MODEL to download, or a folder to upload as MODEL."""

    def __init__(self, name: str, client: Client, store: Store) -> None:
        self.client, self.store, self.is_upload = client, store, name == "upload"
        store.add(MODEL, {} if self.is_upload else FILES)
        client.env |= {"MODEL_ID": MODEL, "REPO_ID": MODEL, "MODEL_DIR": "folder"}
        self.command = [sys.executable, str(ROOT / f"{name}_model.py")]

    def run(self, *options: object, before: list[str] | None = None, **env: str | None) -> Result:
        return self.client.run(*(before or []), *self.command, *options, **env)

    def start(self, *before: str, **env: str) -> Process:
        return self.client.start(*before, *self.command, **env)

    def check(self, result: Result) -> None:
        """Assert that all has come to where it was to go."""
        assert result.code == 0, result
        place = uploaded(self.store) if self.is_upload else tree(snapshot(self.client.work))
        assert place == FILES


@pytest.fixture(params=["download", "upload"])
def job(
    request: pytest.FixtureRequest, client: Client, store: Store, token: str, folder: Path
) -> Job:
    return Job(request.param, client, store)


only_download = pytest.mark.parametrize("job", ["download"], indirect=True)


# --- disks and rights -----------------------------------------------------------------------------


@only_download
def test_full_disk_fails_and_the_next_run_goes_on(job: Job, client: Client, hub: Hub) -> None:
    with disk(client.work / "disk", "4m") as cache:
        other = cache / "other"
        hub.queue("file", first(lambda: other.write_bytes(bytes(2_000_000))), file=BIG)
        result = job.run("--cache_dir", cache)
        assert_failed(result, f"    {BIG!r}: OSError(28, 'No space left on device')")
        assert result.err.count(TRIED_AGAIN) <= 1  # and only if something came
        kept = tree(snapshot(cache))
        other.unlink()
        hub.log.clear()
        assert job.run("--cache_dir", cache).code == 0
        assert tree(snapshot(cache)) == FILES
    assert hub.sent() == TOTAL - sum(map(len, kept.values()))


@posix
@only_download
def test_quota_that_is_used_up_ends_a_run_at_once_in_which_nothing_came(job: Job) -> None:
    """The disk itself says that there is room."""
    quota = ["sh", "-c", 'ulimit -f 2000 && exec "$@"', "sh"]  # 1 MB a file
    assert_failed(job.run(before=quota), "[Errno 27] File too large")
    result = job.run(before=quota)
    assert_failed(result, "[Errno 27] File too large")
    assert TRIED_AGAIN not in result.err


@posix
@only_download
@pytest.mark.parametrize("place", ["", "models/alice--model/snapshots/master"])
def test_unwritable_folder_fails_with_its_path(job: Job, client: Client, place: str) -> None:
    closed = client.work / "cache" / place
    closed.mkdir(parents=True)
    closed.chmod(0o555)
    result = job.run("--cache_dir", "cache", before=NO_OVERRIDE)
    assert_failed(result, "PermissionError(13, 'Permission denied')", str(closed))


@posix
def test_home_that_cannot_be_written_names_the_variables_to_set(job: Job, client: Client) -> None:
    client.home.chmod(0o555)
    assert_failed(job.run(before=NO_OVERRIDE), "MODELSCOPE_HOME and MODELSCOPE_CACHE")
    job.check(job.run(before=NO_OVERRIDE, **HOMES))


# --- Python, its streams and its packages ---------------------------------------------------------

IN_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@posix
def test_result_of_a_quick_run_begins_a_line_in_a_terminal(
    job: Job, client: Client, hub: Hub
) -> None:
    """A line of the SDK's log may draw the bar just before the end."""
    if not job.is_upload:
        hub.queue("file", status(500), file=BIG)  # which the SDK logs
    result = on_terminal(client, Path(job.command[1]).name)
    assert ("Upload finished." if job.is_upload else SUCCESS[0]) in result.lines, result


@pytest.mark.parametrize("env", [IN_C, {"PYTHONIOENCODING": "cp1252"}], ids=["C", "cp1252"])
def test_ascii_terminal_gets_escapes(job: Job, client: Client, env: Env) -> None:
    lay(client.work / "模型", FILES | {"模型.pem": b"1"})  # to be warned about
    result = job.run("--model-dir" if job.is_upload else "--cache_dir", "模型", **env)
    assert result.code == 0, result
    assert (result.out + result.err).isascii()
    assert "\\u" in result.out + result.err
    assert job.is_upload or tree(snapshot(client.work / "模型")) == FILES


def test_torch_is_not_imported(job: Job, client: Client) -> None:
    torch = b"import pathlib; pathlib.Path('imported').touch(); raise OSError('no driver')"
    lay(client.site, {"torch/__init__.py": torch})
    job.check(job.run())
    assert not (client.work / "imported").exists()


@pytest.mark.timeout(40)  # a line that is kept back hangs
def test_lines_of_both_streams_come_at_once_in_order(job: Job, client: Client, hub: Hub) -> None:
    lay(snapshot(client.work), {"old.safetensors": b"1"})
    lay(client.work / "folder", {".env": b"secret"})
    release, patient = threading.Event(), {"MODELSCOPE_REPO_TREE_PAGE_TIMEOUT_SECONDS": "600"}
    hub.queue("list", first(release.wait))
    process = job.start(sys.executable, "-c", ONE_PIPE, **patient, SPEC_DRAFT_MODEL_ID="no/draft")
    lines = [process.stdout.readline()]  # while the hub still thinks
    release.set()
    lines += process.stdout
    expected = ["Uploading", "WARNING", "共 5 个文件", "Upload finished."]
    if not job.is_upload:
        expected = ["Using", "WARNING", "Model download s", "Resolved", "[spec] Do", "[spec] Dr"]
    lines = [line for line in lines if line.startswith(tuple(expected))]
    assert [line[: len(word)] for line, word in zip(lines, expected, strict=True)] == expected


def test_sdk_that_cannot_start_is_not_said_to_be_missing(job: Job) -> None:
    result = job.run(MODELSCOPE_LOG_LEVEL="DEBUG")
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 2), result
    assert result.err.startswith("ValueError(")
    assert "install" not in result.err


# --- signals --------------------------------------------------------------------------------------


def has_moved(hub: Hub) -> bool:
    return hub.sent() + hub.received() > 300_000


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_is_one_line_within_two_seconds(
    job: Job, client: Client, hub: Hub, number: int
) -> None:
    hub.rate = 500_000
    process = job.start(**PARTS)
    result = client.interrupt(process, when=lambda: has_moved(hub), number=number)
    assert (result.code, result.seconds < 2) == (128 + number, True), result
    assert result.err.splitlines()[-1] == INTERRUPTED
    assert result.err.count("Interrupted") == 1
    assert "Traceback" not in result.err
    assert "successful" not in result.out
    assert "finished" not in result.out


@posix
def test_ignored_ctrl_c_stays_ignored(job: Job, client: Client, hub: Hub) -> None:
    hub.rate = 1_000_000
    process = job.start(*IGNORE_SIGINT)
    result = client.interrupt(process, when=lambda: has_moved(hub))
    job.check(result)
    assert INTERRUPTED not in result.err
