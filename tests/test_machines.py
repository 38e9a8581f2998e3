"""Odd machines: disks, rights, locales, signals, other systems, and a hub that is of no use."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.hub import Hub, Store
from tests.hub.faults import first, page, reads, status
from tests.support.cases import BIG, FILES, MODEL, disk, snapshot, uploaded
from tests.support.client import (
    IGNORE_SIGINT,
    PARTS,
    ROOT,
    Client,
    Process,
    Result,
    lay,
    tree,
    wait_until,
)

INTERRUPTED = "Interrupted. Run the same command again to resume."
LONG = "x" * 300
HOMES = {"MODELSCOPE_HOME": "home", "MODELSCOPE_CACHE": "home/cache"}
IS_ROOT = sys.platform != "win32" and os.geteuid() == 0
# Root may write everywhere, unless it gives that right up.
NO_OVERRIDE = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if IS_ROOT else []
NEW_USER = ["unshare", "--user", "--map-user=12345"]  # whom the system doesn't know
# Starts a command with both of its streams in one pipe, or without standard input.
ONE_PIPE = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:], stderr=sys.stdout))"
NO_INPUT = "import os, subprocess, sys; os.close(0); sys.exit(subprocess.call(sys.argv[1:]))"

gate = pytest.mark.gate
posix = pytest.mark.skipif(sys.platform == "win32", reason="the rights and signals of POSIX")


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
only_upload = pytest.mark.parametrize("job", ["upload"], indirect=True)


def assert_failed(result: Result, *words: str) -> None:
    assert result.code == 1, result
    assert [word for word in words if word not in result.out + result.err] == [], result
    for word in ("Traceback", "successful", "Upload finished"):
        assert word not in result.out + result.err, result


# --- disks and rights -----------------------------------------------------------------------------


@only_download
def test_disk_that_fills_up_fails_and_the_next_run_goes_on(
    job: Job, client: Client, hub: Hub
) -> None:
    with disk(client.work / "disk", "4m") as cache:
        other = cache / "other"
        hub.queue("file", first(lambda: other.write_bytes(bytes(2_000_000))), file=BIG)
        result = job.run("--cache_dir", cache)
        assert_failed(result, f"    {BIG!r}: OSError(28, 'No space left on device')")
        kept = tree(snapshot(cache))
        other.unlink()
        hub.log.clear()
        assert job.run("--cache_dir", cache).code == 0
        assert tree(snapshot(cache)) == FILES
    assert hub.sent() == sum(map(len, FILES.values())) - sum(map(len, kept.values()))


@only_download
def test_read_only_disk_fails_with_its_path(job: Job, client: Client) -> None:
    with disk(client.work / "disk", "4m") as cache:
        subprocess.run(["mount", "-o", "remount,ro", cache], check=True)
        result = job.run("--cache_dir", cache)
    assert_failed(result, "OSError(30, 'Read-only file system')", str(cache))


@posix
@only_download
@pytest.mark.parametrize("place", ["", "models/alice--model/snapshots/master"])
def test_folder_that_cannot_be_written_fails_with_its_path(
    job: Job, client: Client, place: str
) -> None:
    closed = client.work / "cache" / place
    closed.mkdir(parents=True)
    closed.chmod(0o555)
    result = job.run("--cache_dir", "cache", before=NO_OVERRIDE)
    assert_failed(result, "PermissionError(13, 'Permission denied')", str(closed))


@only_download
def test_cache_folder_that_is_a_file_fails_with_its_path(job: Job, client: Client) -> None:
    lay(client.work, {"cache": b"mine"})
    assert_failed(job.run("--cache_dir", "cache"), "Error(", str(client.work / "cache"))
    assert (client.work / "cache").read_bytes() == b"mine"


def test_path_of_300_letters_fails_with_its_cause(job: Job) -> None:
    option = "--model-dir" if job.is_upload else "--cache_dir"
    assert_failed(job.run(option, LONG), "Error(", LONG)


@only_download
def test_file_with_a_name_of_300_letters_fails_alone(
    job: Job, client: Client, store: Store
) -> None:
    store.add(MODEL, FILES | {LONG: b"{}"})
    assert_failed(job.run(), f"    {LONG!r}: OSError(")
    assert tree(snapshot(client.work)) == FILES


@only_upload
def test_folder_of_an_unknown_user_fails(job: Job, hub: Hub) -> None:
    assert_failed(job.run("--model-dir", "~nouser/x"), "ERROR: ")
    assert hub.log == []


@posix
def test_home_that_cannot_be_written_names_the_variables_to_set(job: Job, client: Client) -> None:
    client.home.chmod(0o555)
    assert_failed(job.run(before=NO_OVERRIDE), "MODELSCOPE_HOME and MODELSCOPE_CACHE")
    job.check(job.run(before=NO_OVERRIDE, **HOMES))


# --- Python, its streams and its packages ---------------------------------------------------------

IN_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("env", [IN_C, {"PYTHONIOENCODING": "cp1252"}], ids=["C", "cp1252"])
def test_terminal_without_chinese_gets_escapes(
    job: Job, client: Client, env: dict[str, str]
) -> None:
    lay(client.work / "模型", FILES | {"模型.pem": b"1"})  # to be warned about
    result = job.run("--model-dir" if job.is_upload else "--cache_dir", "模型", **env)
    assert result.code == 0, result
    assert (result.out + result.err).isascii()
    assert "\\u" in result.out + result.err
    assert job.is_upload or tree(snapshot(client.work / "模型")) == FILES


def test_python_without_docstrings_and_asserts_is_enough(job: Job, client: Client) -> None:
    job.check(client.run(sys.executable, "-OO", job.command[1]))
    usage = job.run("-h", PYTHONOPTIMIZE="2")
    assert (usage.code, usage.err) == (0, "")
    assert "ModelScope" in usage.out


def test_torch_is_not_imported(job: Job, client: Client) -> None:
    torch = b"import pathlib; pathlib.Path('imported').touch(); raise OSError('no driver')"
    lay(client.work / "path", {"torch/__init__.py": torch})
    job.check(job.run(PYTHONPATH=str(client.work / "path")))
    assert not (client.work / "imported").exists()


@pytest.mark.timeout(40)  # a line that is kept back hangs
def test_lines_of_both_streams_come_in_order_and_at_once(
    job: Job, client: Client, hub: Hub
) -> None:
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


def test_parent_without_a_home_and_standard_input_is_enough(job: Job) -> None:
    job.check(job.run(before=[sys.executable, "-c", NO_INPUT], HOME=None, **HOMES))


@pytest.mark.parametrize(
    ("before", "env", "cause"),
    [
        (NEW_USER, {"HOME": None}, "RuntimeError('Could not determine home directory.')"),
        ([], {"MODELSCOPE_LOG_LEVEL": "DEBUG"}, "ValueError("),
    ],
)
def test_sdk_that_cannot_start_is_not_said_to_be_missing(
    job: Job, before: list[str], env: dict[str, str | None], cause: str
) -> None:
    if before and (sys.platform != "linux" or subprocess.run([*before, "true"]).returncode):
        pytest.skip("nobody can become another user here")
    result = job.run(before=before, **env)
    assert_failed(result, cause)
    assert (result.err.count("\n") <= 2, "install" in result.err) == (True, False), result


@pytest.mark.parametrize("platform", ["win32", "darwin", "linux"])
def test_no_call_is_missing_on_a_system(platform: str, tmp_path: Path) -> None:
    checked = [*ROOT.glob("*_model.py"), *(ROOT / "tests/hub").glob("*.py")]
    options = ["--platform", platform, "--ignore-missing-imports", "--follow-imports", "skip"]
    command = [sys.executable, "-m", "mypy", "--cache-dir", tmp_path, *options, *checked]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"{len(checked)} source files" in found.stdout, found
    assert [x for x in found.stdout.splitlines() if x.endswith("[attr-defined]")] == []


# --- signals --------------------------------------------------------------------------------------


def has_moved(hub: Hub) -> bool:
    return hub.sent() + hub.received() > 300_000


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_in_a_transfer_is_one_line_within_two_seconds(
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
def test_signal_that_has_ended_the_reader_of_the_log_too_ends_a_run(job: Job, hub: Hub) -> None:
    hub.rate = 500_000
    process = job.start()
    wait_until(lambda: has_moved(hub))
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(2) == 130


@posix
def test_ignored_ctrl_c_stays_ignored(job: Job, client: Client, hub: Hub) -> None:
    hub.rate = 1_000_000
    process = job.start(*IGNORE_SIGINT)
    result = client.interrupt(process, when=lambda: has_moved(hub))
    job.check(result)
    assert INTERRUPTED not in result.err


# --- a hub that is of no use ----------------------------------------------------------------------


def test_hub_that_is_down_fails_with_its_cause(job: Job) -> None:
    env: dict[str, str | None] = {} if job.is_upload else {"MODELSCOPE_API_TOKEN": None}
    with socket.socket() as bound:  # it does not listen, and nobody else gets its port
        bound.bind(("127.0.0.1", 0))
        env["MODELSCOPE_ENDPOINT"] = f"http://127.0.0.1:{bound.getsockname()[1]}"
        assert_failed(job.run(**env), "NetworkError(")


NONSENSE = {
    "throttled": (status(429, "slow down", Retry_After="1"), "slow down"),
    "html": (page(), "Error("),
    "json": (reads(b'{"Code": 200, "Data": {"Fil'), "Error("),
}


@pytest.mark.parametrize(
    ("job", "route", "kind"),
    [
        ("download", "login", "html"),
        ("download", "list", "html"),
        ("download", "list", "json"),
        ("upload", "login", "throttled"),
        ("upload", "login", "json"),
        ("upload", "batch", "html"),
        pytest.param("download", "login", "throttled", marks=gate),
        pytest.param("download", "login", "json", marks=gate),
        pytest.param("upload", "login", "html", marks=gate),
        pytest.param("upload", "batch", "throttled", marks=gate),
        pytest.param("upload", "batch", "json", marks=gate),
        pytest.param("upload", "commit", "throttled", marks=gate),
        pytest.param("upload", "commit", "html", marks=gate),
        pytest.param("upload", "commit", "json", marks=gate),
    ],
    indirect=["job"],
)
def test_hub_that_is_throttled_or_answers_nonsense_fails_with_its_cause(
    job: Job, hub: Hub, route: str, kind: str
) -> None:
    fault, cause = NONSENSE[kind]
    hub.always(route, fault)
    assert_failed(job.run(), cause)
