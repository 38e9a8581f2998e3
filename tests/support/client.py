"""A user's machine, which runs commands as processes."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.hub import Hub

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("download_model.py", "upload_model.py")
DOWNLOAD, UPLOAD = ((sys.executable, str(ROOT / script)) for script in SCRIPTS)
Process = subprocess.Popen[str]

# The SDK's own settings keep its waits short; without them it would back off for minutes.
SHORT_WAITS = {
    "MODELSCOPE_API_CONNECT_TIMEOUT": "2",
    "MODELSCOPE_API_MAX_RETRIES": "2",
    "MODELSCOPE_API_TIMEOUT": "5",
    "MODELSCOPE_DOWNLOAD_LOW_SPEED_WINDOW_SECONDS": "2",
    "MODELSCOPE_DOWNLOAD_MAX_RETRIES": "2",
    "MODELSCOPE_DOWNLOAD_RETRY_MAX_DELAY_SECONDS": "1",
    "MODELSCOPE_DOWNLOAD_TIMEOUT": "1",
    "MODELSCOPE_REPO_TREE_LIST_TIMEOUT_SECONDS": "5",
    "MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "2",
    "MODELSCOPE_REPO_TREE_PAGE_RETRY_MAX_DELAY_SECONDS": "1",
    "MODELSCOPE_REPO_TREE_PAGE_TIMEOUT_SECONDS": "2",
    "MODELSCOPE_UPLOAD_BLOB_MAX_ATTEMPTS": "2",
    "MODELSCOPE_UPLOAD_BLOB_READ_TIMEOUT_SECONDS": "10",
    "MODELSCOPE_UPLOAD_COMMIT_MAX_ATTEMPTS": "2",
    "MODELSCOPE_UPLOAD_RECOVERY_MAX_DELAY_SECONDS": "1",
    "MODELSCOPE_UPLOAD_RECOVERY_SINGLE_FILE_DELAY_SECONDS": "1",
}

# Large files come in parts; with these, a file of more than 1 MB is a large one.
PARTS = {"MODELSCOPE_DOWNLOAD_PARALLEL_THRESHOLD_MB": "1", "MODELSCOPE_DOWNLOAD_PART_SIZE_MB": "1"}


@dataclass
class Result:
    """What a command left behind: its exit code and its two streams."""

    code: int
    out: str
    err: str
    seconds: float = 0.0

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def warnings(self) -> list[str]:
        return re.findall("^WARNING: .*", self.err, re.MULTILINE)

    @property
    def percents(self) -> list[int]:
        """How far the bar was, each time that a terminal was sent it."""
        return [int(percent) for percent in re.findall(r"(\d+)%\|", self.out)]


class Client:
    """A machine with nothing but the environment it needs, a HOME of its own, and the scripts."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.home = folder / "home"
        self.work = folder / "work"
        self.site = folder / "site"
        self.home.mkdir()
        self.work.mkdir()
        self.started: list[Process] = []
        self.env = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HOME": str(self.home),
            "MODELSCOPE_ENDPOINT": hub.url,
            "PYTHONPATH": str(self.site),
            **SHORT_WAITS,
        }
        # On every machine, and however busy it is, the download measures a fast disk.
        self.at_start("import itertools, os, time; os.fsync = lambda file: None")
        self.at_start("time.perf_counter = itertools.count(step=1e-9).__next__")
        if sys.platform == "win32":  # nothing starts there without the one; the other is HOME
            self.env |= {"SYSTEMROOT": os.environ["SYSTEMROOT"], "USERPROFILE": str(self.home)}

    def at_start(self, code: str) -> None:
        """Let Python run some code at its start, after what was given before."""
        self.site.mkdir(exist_ok=True)
        with (self.site / "sitecustomize.py").open("a") as file:
            file.write(f"{code}\n")

    def start(self, *command: object, **env: str | None) -> Process:
        """Start a command in `work`."""
        words = [str(word) for word in command]
        environment = {k: v for k, v in {**self.env, **env}.items() if v is not None}
        where = {"cwd": self.work, "env": environment, "start_new_session": True}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.started.append(subprocess.Popen(words, encoding="utf-8", **where, **pipes))
        return self.started[-1]

    def run(self, *command: object, timeout: float = 60, **env: str | None) -> Result:
        """Run a command to its end; one that takes too long is killed and fails the test."""
        started = time.monotonic()
        with self.start(*command, **env) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                kill(process)
                raise
        return Result(process.returncode, out, err, time.monotonic() - started)

    def interrupt(
        self, process: Process, when: Callable[[], object], number: int = signal.SIGINT
    ) -> Result:
        """Send Ctrl-C, or another signal, as soon as `when()` holds, and time the end."""
        wait_until(lambda: when() or process.poll() is not None)
        started = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        return Result(process.returncode, out, err, time.monotonic() - started)

    def close(self) -> None:
        """Kill what a failed test has left running."""
        for process in self.started:
            if process.poll() is None:
                kill(process)


def kill(process: Process) -> None:
    """Kill a command with all that it started (on Windows, only itself) and wait for its end."""
    with contextlib.suppress(ProcessLookupError):
        process.kill() if sys.platform == "win32" else os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_until(holds: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def source(*names: str) -> str:
    """The text of files of this project."""
    return "\n".join((ROOT / name).read_text("utf-8") for name in names)


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    """Write `files` below `folder`, which is made with all that is above it."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """The files below `folder` and their bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
