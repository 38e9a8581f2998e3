"""Odd machines: disks, rights, locales, streams, signals."""

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
    IGNORE_SIGINT,
    IN_TERMINAL,
    MODEL,
    NAMES,
    NO_OVERRIDE,
    SUCCESS,
    TOTAL,
    TRIED_AGAIN,
    Env,
    Words,
    assert_done,
    assert_failed,
    disk,
    download,
    posix,
    snapshot,
)
from tests.support.client import DOWNLOAD, PARTS, UPLOAD, Client, lay, tree

INTERRUPTED = "Interrupted. Run the same command again to resume."
HOMES = {"MODELSCOPE_HOME": "home", "MODELSCOPE_CACHE": "home/cache"}
# Starts a command with both of its streams in one pipe.
ONE_PIPE = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:], stderr=sys.stdout))"


@pytest.fixture(params=[DOWNLOAD, UPLOAD], ids=["download", "upload"])
def script(
    request: pytest.FixtureRequest, client: Client, store: Store, token: str, folder: Path
) -> Words:
    """Each script in turn, with work to do: MODEL to download, or a folder to upload as MODEL."""
    store.add(MODEL, FILES if request.param == DOWNLOAD else {})
    client.env |= NAMES
    return request.param


# --- disks and rights -----------------------------------------------------------------------------


def test_full_disk_fails_and_the_next_run_goes_on(client: Client, hub: Hub, model: str) -> None:
    with disk(client.work / "disk", "4m") as cache:
        other = cache / "other"
        hub.queue("file", first(lambda: other.write_bytes(bytes(2_000_000))), file=BIG)
        result = download(client, "--cache_dir", cache)
        assert_failed(result, f"    {BIG!r}: OSError(28, 'No space left on device')")
        assert result.err.count(TRIED_AGAIN) <= 1  # and only if something came
        kept = tree(snapshot(cache))
        other.unlink()
        hub.log.clear()
        assert download(client, "--cache_dir", cache).code == 0
        assert tree(snapshot(cache)) == FILES
    assert hub.sent() == TOTAL - sum(map(len, kept.values()))


@posix
@pytest.mark.usefixtures("model")
def test_quota_that_is_used_up_ends_a_run_at_once_in_which_nothing_came(client: Client) -> None:
    """The disk itself says that there is room."""
    quota = ["sh", "-c", 'ulimit -f 2000 && exec "$@"', "sh"]  # 1 MB a file
    assert_failed(download(client, before=quota), "[Errno 27] File too large")
    result = download(client, before=quota)
    assert_failed(result, "[Errno 27] File too large")
    assert TRIED_AGAIN not in result.err


@posix
@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("place", ["", "models/alice--model/snapshots/master"])
def test_unwritable_folder_fails_with_its_path(client: Client, place: str) -> None:
    closed = client.work / "cache" / place
    closed.mkdir(parents=True)
    closed.chmod(0o555)
    result = download(client, "--cache_dir", "cache", before=NO_OVERRIDE)
    assert_failed(result, "PermissionError(13, 'Permission denied')", str(closed))


@posix
def test_home_that_cannot_be_written_names_the_variables_to_set(
    client: Client, hub: Hub, script: Words
) -> None:
    client.home.chmod(0o555)
    result = client.run(*NO_OVERRIDE, *script)
    assert_failed(result, "MODELSCOPE_HOME and MODELSCOPE_CACHE")
    assert_done(client, hub.store, script, client.run(*NO_OVERRIDE, *script, **HOMES))


# --- Python, its streams and its packages ---------------------------------------------------------

IN_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@posix
def test_result_of_a_quick_run_begins_a_line_in_a_terminal(
    client: Client, hub: Hub, model: str
) -> None:
    """A line of the SDK's log may draw the bar just before the end."""
    hub.queue("file", status(500), file=BIG)  # which the SDK logs
    assert SUCCESS[0] in download(client, before=IN_TERMINAL).lines


@pytest.mark.parametrize("env", [IN_C, {"PYTHONIOENCODING": "cp1252"}], ids=["C", "cp1252"])
def test_ascii_terminal_gets_escapes(client: Client, script: Words, env: Env) -> None:
    lay(client.work / "模型", FILES | {"模型.pem": b"1"})  # to be warned about
    option = "--cache_dir" if script == DOWNLOAD else "--model-dir"
    result = client.run(*script, option, "模型", **env)
    assert result.code == 0, result
    assert (result.out + result.err).isascii()
    assert "\\u" in result.out + result.err
    assert script == UPLOAD or tree(snapshot(client.work / "模型")) == FILES


def test_torch_is_not_imported(client: Client, hub: Hub, script: Words) -> None:
    torch = b"import pathlib; pathlib.Path('imported').touch(); raise OSError('no driver')"
    lay(client.site, {"torch/__init__.py": torch})
    assert_done(client, hub.store, script, client.run(*script))
    assert not (client.work / "imported").exists()


@pytest.mark.timeout(40)  # a line that is kept back hangs
def test_lines_of_both_streams_come_at_once_in_order(
    client: Client, hub: Hub, script: Words
) -> None:
    lay(snapshot(client.work), {"old.safetensors": b"1"})
    lay(client.work / "folder", {".env": b"secret"})
    release, patient = threading.Event(), {"MODELSCOPE_REPO_TREE_PAGE_TIMEOUT_SECONDS": "600"}
    hub.queue("list", first(release.wait))
    command = (sys.executable, "-c", ONE_PIPE, *script)
    process = client.start(*command, **patient, SPEC_DRAFT_MODEL_ID="no/draft")
    lines = [process.stdout.readline()]  # while the hub still thinks
    release.set()
    lines += process.stdout
    expected = ["Uploading", "WARNING", "共 5 个文件", "Upload finished."]
    if script == DOWNLOAD:
        expected = ["Using", "WARNING", "Model download s", "Resolved", "[spec] Do", "[spec] Dr"]
    lines = [line for line in lines if line.startswith(tuple(expected))]
    assert [line[: len(word)] for line, word in zip(lines, expected, strict=True)] == expected


def test_sdk_that_cannot_start_is_not_said_to_be_missing(client: Client, script: Words) -> None:
    result = client.run(*script, MODELSCOPE_LOG_LEVEL="DEBUG")
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 2), result
    assert result.err.startswith("ValueError(")
    assert "install" not in result.err


# --- signals --------------------------------------------------------------------------------------


def has_moved(hub: Hub) -> bool:
    return hub.sent() + hub.received() > 300_000


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_is_one_line_within_two_seconds(
    client: Client, hub: Hub, script: Words, number: int
) -> None:
    hub.rate = 500_000
    process = client.start(*script, **PARTS)
    result = client.interrupt(process, when=lambda: has_moved(hub), number=number)
    assert (result.code, result.seconds < 2) == (128 + number, True), result
    assert result.err.splitlines()[-1] == INTERRUPTED
    assert result.err.count("Interrupted") == 1
    assert "Traceback" not in result.err
    assert "successful" not in result.out
    assert "finished" not in result.out


@posix
def test_ignored_ctrl_c_stays_ignored(client: Client, hub: Hub, script: Words) -> None:
    hub.rate = 1_000_000
    process = client.start(*IGNORE_SIGINT, *script)
    result = client.interrupt(process, when=lambda: has_moved(hub))
    assert_done(client, hub.store, script, result)
    assert INTERRUPTED not in result.err
