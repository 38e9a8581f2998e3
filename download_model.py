#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["modelscope==1.40.2", "modelscope-hub==0.5.1"]
# ///
"""Download a model, and optionally a draft model, from ModelScope into a folder.

Made for the build of an image: with the files in place, serving needs no network. Exit code 0
means that every file of the revision is there and matches its digest; 1, the model failed;
2, the draft model failed. The SDK moves the bytes; what is added here makes its result true.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import posixpath
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NoReturn, TextIO

DEFAULT_MODEL = "YukinoStuki/Qwen3-4B-Plus-Merged"
DEFAULT_REVISION = "master"
PROGRESS_SECONDS = 10  # between two lines of progress, where there is no terminal

# The SDK reads these when it is imported; what the user has set stays.
SETTINGS = {
    # A file may take as long as it needs: an hour, the SDK's limit, is too short for 50 GB at
    # 1 MB/s. Connections that stall or crawl still end by the SDK's idle and low-speed limits.
    "MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT": str(30 * 24 * 3600),
    # Large files come in parts, over several connections, as most links give one only a share.
    # Eight for each of four files are the 32 that the SDK keeps open, and no hub minds.
    "MODELSCOPE_DOWNLOAD_PARALLEL_WORKERS": "8",
    "MODELSCOPE_DOWNLOAD_PARALLEL_THRESHOLD_MB": "128",
    "MODELSCOPE_DOWNLOAD_PART_SIZE_MB": "24",
    # A second run waits as long for a file that the first one is fetching.
    "MODELSCOPE_DOWNLOAD_FILE_LOCK_TIMEOUT_SECONDS": str(30 * 24 * 3600),
}

LARGE_AT_ONCE = 4  # files that come in parts

# What the SDK leaves beside a file that it has not finished, and goes on from.
UNFINISHED = re.compile(r"(\.incomplete|_\d+_\d+)$")

SECRETS: set[str] = set()  # what `hide_token` hides


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End with 1, as 2 means a failed draft; show nothing that was typed: it may be a token."""
        self.print_usage(sys.stderr)
        self.exit(1, f"{self.prog}: error: an unknown option, or one without its value\n")


def parse_args() -> argparse.Namespace:
    """Parse the command line; the environment gives the defaults, as the document lists them."""
    env = os.environ.get
    parser = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--model_name",
        default=env("MODEL_ID", DEFAULT_MODEL),
        help=f"model id, OWNER/NAME (default: $MODEL_ID, else {DEFAULT_MODEL})",
    )
    parser.add_argument(
        "--revision",
        default=DEFAULT_REVISION,
        help=f"branch, tag or commit of the model (default: {DEFAULT_REVISION})",
    )
    parser.add_argument(
        "--cache_dir", default="./", help="folder to download to (default: the current one)"
    )
    parser.add_argument(
        "--token",
        default=env("MODELSCOPE_API_TOKEN", ""),
        help="ModelScope token (default: $MODELSCOPE_API_TOKEN, else the stored login, if any)",
    )
    parser.add_argument(
        "--draft_model_name",
        default=env("SPEC_DRAFT_MODEL_ID", ""),
        help="model id of a draft model (default: $SPEC_DRAFT_MODEL_ID, else no draft)",
    )
    parser.add_argument(
        "--draft_revision",
        default=env("SPEC_DRAFT_MODEL_REVISION", DEFAULT_REVISION),
        help=f"its revision (default: $SPEC_DRAFT_MODEL_REVISION, else {DEFAULT_REVISION})",
    )
    parser.add_argument(
        "--draft_optional",
        action="store_true",
        default=env("SPEC_DRAFT_OPTIONAL") == "1",
        help="a failed draft is no failure (default: on when $SPEC_DRAFT_OPTIONAL is 1)",
    )
    args = parser.parse_args()
    args.model_name, args.draft_model_name = args.model_name.strip(), args.draft_model_name.strip()
    args.revision = args.revision.strip() or DEFAULT_REVISION
    args.draft_revision = args.draft_revision.strip() or DEFAULT_REVISION
    args.token = args.token.strip()
    return args


def hide(token: str) -> None:
    """Keep `token` out of all that is printed from now on, also where a repr has escaped it."""
    SECRETS.update({token, repr(token)[1:-1]} - {""})


def hide_token(text: str) -> str:
    """Return `text` with *** in place of the token."""
    for secret in SECRETS:
        text = text.replace(secret, "***")
    return text


class Log:
    """Standard error: it never shows the token, and out of a terminal it is made of lines.

    Progress bars reach a terminal as they are; elsewhere a redraw becomes a line, now and then.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.last_progress = time.monotonic()
        self.at_line_start = True

    def write(self, text: str) -> int:
        text = hide_token(text if self.stream.isatty() else self.flatten(text))
        self.at_line_start = text.endswith("\n") if text else self.at_line_start
        with contextlib.suppress(OSError):  # a log that nobody reads is no failure
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.flush()

    def flatten(self, text: str) -> str:
        """Turn the redraws and cursor moves of a progress bar into a line, or into nothing."""
        redraw, text = text.startswith("\r"), text.replace("\x1b[A", "")
        if not redraw:
            return "" if self.at_line_start and not text.strip("\n") else text
        if not text.strip() or time.monotonic() - self.last_progress < PROGRESS_SECONDS:
            return ""
        self.last_progress = time.monotonic()
        return f"{text.strip()}\n"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def set_up_streams(token: str) -> None:
    """Let both streams come line by line, in any encoding, and keep `token` out of the log."""
    hide(token)
    streams = (sys.stdout, sys.stderr)  # each None when whoever started this has closed it
    sys.stdout, sys.stderr = (
        stream or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w") for stream in streams
    )
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace", line_buffering=True)
    sys.stderr = Log(sys.stderr)


def interrupt(signum: int, frame: object) -> NoReturn:
    """End at once on Ctrl-C: the SDK would wait for its threads, and the next run resumes."""
    after_a_bar = "\n" if os.isatty(2) else ""
    line = f"{after_a_bar}Interrupted; the same command again goes on from here.\n"
    with contextlib.suppress(OSError):  # a `| tee log` ends by the same Ctrl-C, maybe before this
        os.write(2, line.encode())
    os._exit(130)


def adjust_sdk() -> None:
    """Set up the environment for the SDK, before it is imported: SETTINGS that the user left open.

    The token variable goes: the SDK would take it as it stands, and blank it hides a stored login.
    """
    os.environ.update({k: v for k, v in SETTINGS.items() if not os.environ.get(k)})
    os.environ.pop("MODELSCOPE_API_TOKEN", None)


def login(token: str) -> None:
    """Log in with `token`, which the SDK then stores; without one, a stored login stays in force.

    Raises ValueError for what cannot be a token, and what the SDK raises for a rejected one.
    """
    from modelscope_hub import HubApi, HubConfig

    if not token:
        hide(HubConfig().token or "")
        return
    if not (token.isascii() and token.isprintable()):
        raise ValueError("the token holds characters that no token has; copy it once more")
    HubApi().login(token)
    print("Using ModelScope token for authenticated download.")


def leads_out(name: str) -> bool:
    """Tell whether a file name, joined to a folder, may point out of it on any system."""
    path = PureWindowsPath(name)  # the one that knows drives, and both kinds of slashes
    return bool(path.anchor) or ".." in path.parts or "\\" in name or not path.parts


def check_names(model_id: str, revision: str, cache_dir: str) -> None:
    """Raise ValueError for what would name no model, or a folder outside `cache_dir`."""
    if not model_id:
        raise ValueError("MODEL_ID or --model_name is blank; name a model, or unset MODEL_ID")
    if not cache_dir.strip():
        raise ValueError("--cache_dir is blank; name a folder")
    if model_id.count("/") != 1 or model_id.strip("/") != model_id or leads_out(model_id):
        raise ValueError(f"{model_id!r} is no model id; it should be OWNER/NAME")
    if leads_out(revision):
        raise ValueError(f"{revision!r} is no revision; it should be a branch, a tag or a commit")


def list_files(model_id: str, revision: str, endpoint: str) -> list[dict[str, Any]]:
    """Return what the hub says of each file: its `Path`, its `Size` in bytes, its `Sha256`.

    Raises ValueError for a list without files, for one that the hub has cut short, and for one
    with names that lead out of the folder or get in each other's way; and what the SDK raises.
    """
    from modelscope_hub import HubApi
    from modelscope_hub.constants import REPO_FILES_TRUNCATION_LIMIT as LIMIT

    entries = HubApi(endpoint=endpoint).legacy.list_repo_files(model_id, "model", revision)
    if bad := [entry["Path"] for entry in entries if leads_out(entry["Path"])]:
        raise ValueError(f"the hub lists files of {model_id} outside its folder: {bad}")
    folders = Counter(posixpath.dirname(entry["Path"]) for entry in entries)
    if cut := [folder for folder, count in folders.items() if count >= LIMIT]:
        raise ValueError(f"the hub lists {LIMIT} files of a folder at most; {cut} may have more")
    files = [entry for entry in entries if entry.get("Type") != "tree"]
    if not files:
        raise ValueError(f"the hub lists no files in this revision of {model_id}")
    names = {file["Path"] for file in files}
    if both := names & {str(above) for name in names for above in PurePosixPath(name).parents}:
        raise ValueError(f"the hub lists a file and a folder of one name in {model_id}: {both}")
    return files


@contextlib.contextmanager
def given(files: list[dict[str, Any]]) -> Iterator[None]:
    """Let `snapshot_download` fetch `files`, as they were checked, and read no list of its own.

    It has no parameter for them, but `download_repo`, which does its work, has.
    """
    from modelscope_hub import HubApi

    download_repo = HubApi.download_repo
    HubApi.download_repo = partialmethod(download_repo, file_list=files)
    try:
        yield
    finally:
        HubApi.download_repo = download_repo


class PartsBar:
    """Progress of a file that comes in parts; for the others the SDK draws a bar of its own."""

    def __init__(self, name: str, size: int) -> None:
        from modelscope_hub.constants import DOWNLOAD_PARALLEL_THRESHOLD as IN_PARTS
        from tqdm.auto import tqdm

        looks = {"unit": "B", "unit_scale": True, "desc": name, "leave": False}
        self.bar = tqdm(total=size, disable=size <= IN_PARTS, **looks)

    def update(self, size: int) -> None:
        self.bar.update(size)

    def end(self) -> None:
        self.bar.close()


def sizes_in(folder: Path) -> dict[str, int]:
    """Return the size in bytes of each file below `folder`, by its name there."""
    sizes = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another run may finish a file meanwhile
            if not path.is_dir():
                sizes[path.relative_to(folder).as_posix()] = path.lstat().st_size
    return sizes


def check_space(wanted: dict[str, int], there: dict[str, int], cache_dir: str) -> None:
    """Raise OSError when `cache_dir` has less room than is still to come, in bytes.

    Parts are joined to a new file, and each goes when it is in there: till then it is there twice.
    """
    from modelscope_hub.constants import DOWNLOAD_PARALLEL_THRESHOLD as IN_PARTS
    from modelscope_hub.constants import DOWNLOAD_PART_SIZE as PART

    have: Counter[str] = Counter()
    for name, size in there.items():
        for key in {name, UNFINISHED.sub("", name)}:
            have[key] += size
    missing = sum(max(0, size - have[name]) for name, size in wanted.items())
    joined = sum(size > IN_PARTS and there.get(name) != size for name, size in wanted.items())
    missing += min(joined, LARGE_AT_ONCE) * PART
    free = shutil.disk_usage(cache_dir).free
    if missing > free:
        reason = f"{missing} bytes are still to come, and {free} are free"
        raise OSError(errno.ENOSPC, reason, cache_dir)


def find_snapshot(model_id: str, **where: str) -> str:
    """Return the folder that earlier runs left, wherever the SDK will look for it; "" for none."""
    from modelscope import snapshot_download
    from modelscope_hub.errors import CacheNotFound

    try:
        return snapshot_download(model_id, **where, local_files_only=True)
    except CacheNotFound:
        return ""


def plan(wanted: dict[str, int]) -> dict[str, Any]:
    """Return how to fetch files of these sizes: few at once when large ones come in parts.

    Small files wait for answers, not for the link; beyond 16 the SDK's own work takes over.
    """
    from modelscope_hub.constants import DOWNLOAD_PARALLEL_THRESHOLD as IN_PARTS

    if max(wanted.values()) > IN_PARTS:
        return {"max_workers": LARGE_AT_ONCE, "progress_callbacks": [PartsBar]}
    return {"max_workers": 16}


def check_snapshot(folder: str, files: list[dict[str, Any]]) -> None:
    """Raise FileNotFoundError unless `folder` has all of `files`; warn of what else is amiss."""
    if unknown := [file["Path"] for file in files if not file.get("Sha256")]:
        print(f"WARNING: the hub gives no digest to check these by: {unknown}", file=sys.stderr)
    names = {file["Path"] for file in files}
    # Such as a name that the SDK uses while it works; a folder may be a link to another place.
    if lost := sorted(name for name in names if not Path(folder, name).is_file()):
        raise FileNotFoundError(errno.ENOENT, f"gone after the download: {lost}", folder)
    if strangers := sorted(sizes_in(Path(folder)).keys() - names):
        print(f"WARNING: not in this revision, yet in {folder}: {strangers}", file=sys.stderr)


def download(model_id: str, revision: str, cache_dir: str, taken: str = "") -> str:
    """Download `revision` of a model below `cache_dir` and return the absolute path of its folder.

    `taken` is a folder that holds another model. Raises ValueError, OSError, or what the SDK
    raises; then some of the files may be there, and the next run goes on from them.
    """
    from modelscope import snapshot_download
    from modelscope_hub import HubApi

    check_names(model_id, revision, cache_dir)
    cache_dir = os.path.abspath(os.path.expanduser(cache_dir))
    endpoint = HubApi().resolve_endpoint_for_read(model_id)
    files = list_files(model_id, revision, endpoint)
    wanted = {file["Path"]: int(file.get("Size") or 0) for file in files}
    where = {"revision": revision, "cache_dir": cache_dir, "endpoint": endpoint}
    os.makedirs(cache_dir, exist_ok=True)
    left = find_snapshot(model_id, **where)
    if left and left == taken:  # an older SDK's folder has no revision; `a--b/c` and `a/b--c`
        raise ValueError(f"{left} holds the main model; use another --cache_dir for one of them")
    check_space(wanted, sizes_in(Path(left)) if left else {}, cache_dir)
    with given(files):
        folder = snapshot_download(model_id, **where, **plan(wanted))
    check_snapshot(folder, files)
    return folder


def download_draft(args: argparse.Namespace, main_folder: str) -> int:
    """Download the draft model and return the exit code: 2 when it failed and isn't optional."""
    model_id, revision, optional = args.draft_model_name, args.draft_revision, args.draft_optional
    taken = "" if (model_id, revision) == (args.model_name, args.revision) else main_folder
    print(f"[spec] Downloading draft model: {model_id} (revision={revision})")
    try:
        folder = download(model_id, revision, args.cache_dir, taken)
    except Exception as error:  # whatever it is, the document wants it printed and turned to 2
        failed = "FAILED (optional, continue)" if optional else "FAILED"
        report(f"[spec] Draft model download {failed}", error, f"{model_id} ({revision=!s})")
        return 0 if optional else 2
    print("[spec] Draft model download successful!")
    print(f"[spec] Resolved draft_model_dir: {folder}")
    return 0


def report(failed: str, error: Exception, subject: str) -> None:
    """Print the cause and a line for each file that failed; what to do next is for the log."""
    files = getattr(error, "failed_files", {})
    lines = [f"    {' '.join(name.splitlines())}: {cause!r}" for name, cause in files.items()]
    print(f"{failed}: {hide_token(repr(error))}", *map(hide_token, lines), sep="\n")
    advice = getattr(error, "suggestion", "")
    if isinstance(error, OSError) and error.filename:  # its repr leaves the path out
        advice = f"{error.filename}: {error.strerror}"
    if advice:
        print(f"{subject}: {advice}", file=sys.stderr)


def main() -> int:
    """Download the model, then the draft model if one is named, and return the exit code."""
    signal.signal(signal.SIGINT, interrupt)
    args = parse_args()
    set_up_streams(args.token)
    adjust_sdk()
    try:
        login(args.token)
        folder = download(args.model_name, args.revision, args.cache_dir)
    except Exception as error:  # whatever it is, the document wants it printed and turned to 1
        report("Model download FAILED", error, f"{args.model_name} (revision={args.revision})")
        return 1
    print("Model download successful!")
    print(f"Resolved model_dir: {folder}")
    if not args.draft_model_name:
        return 0
    return download_draft(args, folder)


def run() -> int:
    """Return the exit code of `main`, or 1 when standard output does not take its lines."""
    try:
        code = main()
        sys.stdout.flush()
    except OSError as error:  # of a `print`: what fails beside it, `main` turns into a code
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the exit would try once more, and fail
        print(f"standard output: {error!r}", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(run())
