#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["modelscope==1.40.2", "modelscope-hub==0.5.1"]
# ///
"""Download a model, and optionally a draft model, from ModelScope into a folder.

Made for the build of an image: with the files in place, serving needs no network. Exit code 0
means that every file of the revision is there and matches its digest; 1, the model failed;
2, the draft model failed. The SDK does the work; the guard below verifies the result.
"""

from __future__ import annotations

import signal

SIGNALS = {n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN}
if __name__ == "__main__":  # before anything takes time: they wait for `end_on_signal`
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

import argparse
import contextlib
import errno
import functools
import inspect
import io
import logging
import os
import re
import shutil
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any, NoReturn

INTERRUPTED = "Interrupted. Run the same command again to resume."


def end_on_signal() -> None:
    """End at once on Ctrl-C or SIGTERM, in a thread, as C code may keep the main one busy."""
    number = signal.sigwait(SIGNALS)
    after_a_bar = "\n" if os.isatty(2) else ""
    with contextlib.suppress(OSError):  # a `| tee log` ends by the same Ctrl-C, maybe before this
        os.write(2, f"{after_a_bar}{INTERRUPTED}\n".encode())
    os._exit(128 + number)


if __name__ == "__main__":  # about this process, before the SDK's import takes its time
    while os.open(os.devnull, os.O_RDWR) < 3:  # so that no file gets a closed stream's number
        pass
    try:
        threading.Thread(target=end_on_signal, daemon=True).start()
    except RuntimeError:  # no thread to spare: the SDK will fail, too
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    sys.modules.setdefault("torch", None)  # the SDK would import it: 2 s and 200 MB for nothing
    if not (sys.stderr and sys.stderr.isatty()):
        os.environ.setdefault("TQDM_DISABLE", "1")  # the SDK's bars are for terminals

# The SDK reads its settings when it is imported; what the user has set stays.
# A file may take as long as it needs: an hour, the SDK's limit, is too short for 50 GB at 1 MB/s.
# Connections that stall or crawl still end by the SDK's idle and low-speed limits.
os.environ.setdefault("MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT", str(30 * 24 * 3600))
# A second run waits as long for a file that the first one is fetching.
os.environ.setdefault("MODELSCOPE_DOWNLOAD_FILE_LOCK_TIMEOUT_SECONDS", str(30 * 24 * 3600))
# Large files come in parts over several connections, as most links give one only a share.
os.environ.setdefault("MODELSCOPE_DOWNLOAD_PARALLEL_WORKERS", "8")
os.environ.setdefault("MODELSCOPE_DOWNLOAD_PARALLEL_THRESHOLD_MB", "128")
os.environ.setdefault("MODELSCOPE_DOWNLOAD_PART_SIZE_MB", "24")
if not os.environ.get("MODELSCOPE_API_TOKEN", "unset").strip():
    del os.environ["MODELSCOPE_API_TOKEN"]  # blank, it would hide a stored login

SDK_ERROR = None
try:
    from modelscope import snapshot_download
    from modelscope.hub.api import HubApi
except Exception as error:  # not installed, or broken by a setting: `-h` works all the same
    SDK_ERROR = error

INSTALL = "pip install modelscope==1.40.2 modelscope-hub==0.5.1"
DEFAULT_MODEL = "YukinoStuki/Qwen3-4B-Plus-Merged"
DEFAULT_REVISION = "master"
FILES_AT_ONCE = 32  # as many connections as the SDK keeps open
LARGE_AT_ONCE = 4  # files that come in parts, over eight connections each
THREADS = 64  # what the SDK may start: two for each file in one stream
MANY_LARGE = 16  # from here on parts are no faster, and one stream writes each byte only once
UNCHECKED = f"WARNING: this SDK is unknown or older than 1.38, its result unchecked; {INSTALL}"


def parse_args() -> argparse.Namespace:
    """Parse the command line; the environment gives the defaults."""
    env = os.environ.get
    parser = Parser(
        description="Download a model, and a draft model if one is named, from ModelScope.",
        epilog="Defaults: MODEL_ID, MODELSCOPE_API_TOKEN, SPEC_DRAFT_MODEL_ID, "
        "SPEC_DRAFT_MODEL_REVISION, SPEC_DRAFT_OPTIONAL=1; without a token, the stored login.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model_name", default=env("MODEL_ID", DEFAULT_MODEL), help="model id, OWNER/NAME")
    add("--revision", default=DEFAULT_REVISION, help="branch, tag or commit of the model")
    add("--cache_dir", default="./", help="folder to download to")
    add("--token", default=env("MODELSCOPE_API_TOKEN", ""), help="ModelScope token")
    add("--draft_model_name", default=env("SPEC_DRAFT_MODEL_ID", ""), help="id of a draft model")
    draft_revision = env("SPEC_DRAFT_MODEL_REVISION", DEFAULT_REVISION)
    add("--draft_revision", default=draft_revision, help="branch, tag or commit of the draft model")
    optional = env("SPEC_DRAFT_OPTIONAL") == "1"
    add("--draft_optional", action="store_true", default=optional, help="let the draft model fail")
    args = parser.parse_args()
    for name in ("model_name", "revision", "token", "draft_model_name", "draft_revision"):
        setattr(args, name, getattr(args, name).strip())
    return args


def main() -> int:
    """Log in, download the model, then the draft model if one is named; return the exit code."""
    args = parse_args()
    keep_secret(args.token, os.environ.pop("MODELSCOPE_API_TOKEN", ""))  # not for the SDK
    guard_sdk()
    try:
        validate(args)
        args.cache_dir = os.path.abspath(os.path.expanduser(args.cache_dir))
        if args.token:
            HubApi().login(args.token)
            print("Using ModelScope token for authenticated download.")
        model_dir = snapshot_download(
            args.model_name, cache_dir=args.cache_dir, revision=args.revision or DEFAULT_REVISION
        )
    except Exception as error:  # whatever it is, it ends as a failed download
        report("Model download FAILED", error)
        return 1
    print("Model download successful!")
    print(f"Resolved model_dir: {hide(os.path.abspath(model_dir))}")
    if not CLAIMED:  # nothing came through the guard
        print(UNCHECKED, file=sys.stderr)
    return download_draft(args) if args.draft_model_name else 0


def download_draft(args: argparse.Namespace) -> int:
    """Download the draft model and return the exit code: 2 when it failed and isn't optional."""
    name, revision = args.draft_model_name, args.draft_revision or DEFAULT_REVISION
    print(f"[spec] Downloading draft model: {hide(name)} (revision={hide(revision)})")
    try:
        draft_dir = snapshot_download(name, cache_dir=args.cache_dir, revision=revision)
    except Exception as error:  # whatever it is, it ends as a failed draft
        optional = " (optional, continue)" if args.draft_optional else ""
        report(f"[spec] Draft model download FAILED{optional}", error)
        return 0 if args.draft_optional else 2
    print("[spec] Draft model download successful!")
    print(f"[spec] Resolved draft_model_dir: {hide(os.path.abspath(draft_dir))}")
    return 0


def validate(args: argparse.Namespace) -> None:
    """Raise what kept the SDK away, and ValueError for arguments that cannot be meant."""
    check_sdk(args.token)
    if not (args.model_name and args.cache_dir.strip()):
        raise ValueError("a blank --model_name or --cache_dir; name one, or unset MODEL_ID")


# --- the guard at the SDK's door ------------------------------------------------------------------

Files = dict[str, Any]  # by name, what the hub lists: size in bytes, sha256
Stats = dict[str, os.stat_result]  # by name, what stands in a folder

CLAIMED: dict[str, tuple[str, str]] = {}  # folders, and the model id and revision in each


def guard_sdk() -> None:
    """Wrap `modelscope_hub.HubApi.download_repo`, through which all of `snapshot_download` passes.

    An SDK that has none, or whose `download_repo` takes no file list, stays as it is.
    """
    if SDK_ERROR:  # `check_sdk` raises it
        return
    try:
        from modelscope_hub import HubApi as Hub
        from modelscope_hub import HubConfig

        download_repo = Hub.download_repo
    except (ImportError, AttributeError):
        return
    with contextlib.suppress(Exception):  # a stored login that cannot be read, the SDK tells
        keep_secret(HubConfig().token or "")

    def guarded(api: Any, repo_id: str, repo_type: str, **call: Any) -> Path:
        door = functools.partial(download_repo, api, repo_id, repo_type)
        return door(**call) if call["local_files_only"] else guard(api, repo_id, door, call)

    if "file_list" in inspect.signature(download_repo).parameters:
        Hub.download_repo = guarded


def guard(api: Any, model_id: str, door: Callable[..., Path], call: dict[str, Any]) -> Path:
    """Check the hub's list and the folder, let the SDK download, and check what it left.

    `door` is the SDK's `download_repo` for this model, `call` its arguments. Raises ValueError for
    a bad list, OSError for an unusable folder, LookupError for an unknown model or revision, and
    what the SDK raises.
    """
    revision, cache_dir = call["revision"], call["cache_dir"]
    if model_id.count("/") != 1 or model_id.strip("/") != model_id or escapes_folder(model_id):
        raise ValueError(f"{model_id!r} is not a model id; expected OWNER/NAME")
    if escapes_folder(revision):
        raise ValueError(f"{revision!r} is not a revision; expected a branch, a tag or a commit")
    files = check_list(list_files(api, model_id, revision))
    os.makedirs(cache_dir, exist_ok=True)
    folder = claim_folder((model_id, revision), door, call)
    on_disk = scan(folder)
    check_places(folder, files, on_disk)
    room = check_space(files, on_disk, cache_dir)
    call["file_list"], call["max_workers"] = plan(files, on_disk, room)
    sizes = {name: status.st_size for name, status in on_disk.items()}
    with open_bar(sum(f.size for name, f in files.items() if sizes.get(name) != f.size)) as bar:

        def update(size: int) -> None:
            with bar.get_lock():  # files come in threads
                bar.update(size)

        file = SimpleNamespace(update=update, end=lambda: None)
        fetch(door, call | {"progress_callbacks": [lambda name, size: file]})
    check_snapshot(folder, files)
    return Path(folder)


def escapes_folder(name: str) -> bool:
    """Tell whether a file name could leave the folder that it is joined to, on any system."""
    path = PureWindowsPath(name)
    return bool(path.root) or ".." in path.parts or "\\" in name or not path.parts


def list_files(api: Any, model_id: str, revision: str) -> list[Any]:
    """Return what the hub lists; a list that is empty or unreadable is read once more."""
    from modelscope_hub import NetworkError

    read = functools.partial(read_list, api, model_id, revision)
    try:
        return read()
    except Exception as error:  # whatever kept the list from being read
        if not isinstance(error, NetworkError):
            check_revision(api, model_id, revision, error)
        pause(f"the file list of {model_id} could not be read ({error!r})")
    return read()


def read_list(api: Any, model_id: str, revision: str) -> list[Any]:
    """Return what the hub lists; if that is nothing, raise LookupError with its own words.

    When the hub answers an error as HTTP 200, the SDK returns an empty list and drops the message.
    """
    import requests
    from modelscope_hub import HubConfig

    if entries := api.list_repo_files(model_id, "model", revision=revision):
        return entries
    endpoint, words = HubConfig().endpoint, ""
    with contextlib.suppress(Exception):  # a failed probe proves nothing
        endpoint = api.resolve_endpoint_for_read(model_id)
    with contextlib.suppress(Exception):  # the failure is told without them too
        address = f"{endpoint}/api/v1/models/{model_id}/repo/files"
        query = {"Revision": revision, "Recursive": "True"}
        said = requests.get(address, params=query, cookies=api.get_cookies(), timeout=10).json()
        words = "" if said["Success"] else f": {said['Message']} (code {said['Code']})"
    raise LookupError(f"the hub lists no files in {model_id} (revision={revision}){words}")


def check_revision(api: Any, model_id: str, revision: str, cause: Exception) -> None:
    """Raise LookupError when the hub has no such model, or other revisions but not this one."""
    from modelscope_hub import NotExistError

    try:
        known = [entry["Revision"] for entry in api.list_repo_revisions(model_id, "model")]
    except NotExistError:
        words = getattr(cause, "message", cause)
        reason = f"{model_id} does not exist, or is private and needs a token: {words}"
        raise LookupError(reason) from cause
    except Exception:  # a failed probe proves nothing
        return
    if known and revision not in known and not re.fullmatch("[0-9a-f]{7,40}", revision):
        hint = "; the default branch is master" if revision == "main" else ""
        raise LookupError(f"{model_id} has no revision {revision!r}, but {known}{hint}") from cause


def check_list(entries: list[Any]) -> Files:
    """Return the files among `entries` by name.

    Raises ValueError for a list without files, for one that the hub has cut short, and for names
    that would leave the folder or share a place.
    """
    from modelscope_hub.constants import REPO_FILES_TRUNCATION_LIMIT as LIMIT

    if bad := [entry.path for entry in entries if escapes_folder(entry.path)]:
        raise ValueError(f"the hub lists files outside the model's folder: {bad}")
    folders = Counter(str(PurePosixPath(entry.path).parent) for entry in entries)
    if cut := [folder for folder, count in folders.items() if count >= LIMIT]:
        raise ValueError(f"the hub lists at most {LIMIT} files of a folder; {cut} may have more")
    files = {(entry.path, entry.sha256): entry for entry in entries if not entry.is_dir}
    places = Counter(PurePosixPath(name) for name, _ in files)
    above = {parent for place in places for parent in place.parents}
    if twice := [str(place) for place, count in places.items() if count > 1 or place in above]:
        raise ValueError(f"the hub lists conflicting names: {twice}")
    if not files:
        raise ValueError("the hub lists no files in this revision, only folders")
    return {entry.path: entry for entry in files.values()}


def claim_folder(model: tuple[str, str], door: Callable[..., Path], call: dict[str, Any]) -> str:
    """Return the folder that the SDK will use, unless another model of this run is in it."""
    from modelscope_hub import CacheNotFound

    try:
        folder = door(**call | {"local_files_only": True})
    except CacheNotFound as error:  # not there yet; the error says where the SDK looked
        folder = error.cache_dir
    here = os.path.realpath(folder)
    for taken, owner in CLAIMED.items():
        if owner != model and os.path.commonpath([taken, here]) in (taken, here):
            raise ValueError(f"{taken} holds the main model; use another --cache_dir for the draft")
    CLAIMED[here] = model
    return str(folder)


def scan(folder: str) -> Stats:
    """Return what stands below `folder`, by name; links and unreadable folders are not entered."""
    found = {}
    for root, folders, names in os.walk(folder):
        for path in (Path(root, name) for name in folders + names):
            with contextlib.suppress(OSError):  # another run may finish a file meanwhile
                found[path.relative_to(folder).as_posix()] = path.lstat()
    return found


def check_places(folder: str, files: Files, on_disk: Stats) -> None:
    """Raise OSError where the SDK would write through a link, a pipe or a device."""
    parents = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    plain = (stat.S_IFREG, stat.S_IFDIR)
    special = {name for name, s in on_disk.items() if stat.S_IFMT(s.st_mode) not in plain}
    # A link in a file's own place is replaced, and read only if it leads to a file.
    own = {name: Path(folder, name) for name in special & files.keys()}
    special -= {name for name, path in own.items() if path.is_file() or not path.exists()}
    if odd := sorted(n for n in special if n in parents or find_target(n, files) in files):
        reason = f"links, pipes or devices stand where files are to go; remove them: {odd}"
        raise OSError(errno.EEXIST, reason, folder)


def find_target(name: str, files: Files) -> str:
    """Return the name of the file that an unfinished one becomes; any other as it is."""
    unfinished = r"(\.incomplete|\.parallel_tmp|_\d+_\d+)$"
    return name if name in files else re.sub(unfinished, "", name)


def check_space(files: Files, on_disk: Stats, cache_dir: str) -> float:
    """Return how many bytes will be free after the download; raise OSError for fewer than none."""
    have: Counter[str] = Counter()
    for name, status in on_disk.items():
        have[find_target(name, files)] += status.st_size
    missing = sum(max(0, file.size - have[name]) for name, file in files.items())
    disk = shutil.disk_usage(cache_dir)
    free = disk.free if os.geteuid() else disk.total - disk.used  # some is kept for root
    if not disk.total:  # some file systems tell nothing
        return float("inf")
    if missing > free:
        reason = f"{missing} bytes are still to come, and {free} are free"
        raise OSError(errno.ENOSPC, reason, cache_dir)
    return free - missing


def plan(files: Files, on_disk: Stats, room: float) -> tuple[list[dict], int]:
    """Return the file list for the SDK, and how many files it is to fetch at once.

    The SDK fetches a large file in parts when its size is given. Few large files come in parts,
    many in one stream each, all at once; an unfinished file goes on as it was begun. `room` is what
    stays free after the download, in bytes; joining parts needs some of it.
    """
    from modelscope_hub.constants import DOWNLOAD_PARALLEL_THRESHOLD as IN_PARTS
    from modelscope_hub.constants import DOWNLOAD_PART_SIZE as PART

    large = {name for name, file in files.items() if file.size > IN_PARTS}
    whole = {name for name in large if f"{name}.incomplete" in on_disk}
    begun = {find_target(name, files) for name in on_disk.keys() - files.keys()}
    if len(large) >= MANY_LARGE or room < 2 * LARGE_AT_ONCE * PART:
        whole |= {name for name in large - begun if files[name].sha256}
    at_once = LARGE_AT_ONCE if large - whole else FILES_AT_ONCE
    if has_few_threads():  # one file after the other, in one stream
        whole, at_once = large, 1
    sizes = {name: file.size or None for name, file in files.items() if name not in whole}
    entries = [{"Path": n, "Sha256": f.sha256, "Size": sizes.get(n)} for n, f in files.items()]
    return entries, at_once


def fetch(door: Callable[..., Path], call: dict[str, Any]) -> None:
    """Let the SDK download; files that failed while others came are tried once more."""
    from modelscope_hub import FileDownloadError

    try:
        door(**call)
    except FileDownloadError as error:
        failed, files = error.failed_files, call["file_list"]
        if len(failed) == len(files):
            raise
        pause(f"{len(failed)} of {len(files)} files failed")
        door(**call | {"file_list": [file for file in files if file["Path"] in failed]})


def pause(reason: str) -> None:
    """Say why, and wait as long as the SDK may between two tries."""
    from modelscope_hub.constants import REPO_TREE_PAGE_RETRY_MAX_DELAY_SECONDS as SECONDS

    print(f"WARNING: {reason}; trying once more in {SECONDS} s", file=sys.stderr)
    time.sleep(SECONDS)


def check_snapshot(folder: str, files: Files) -> None:
    """Raise FileNotFoundError unless `folder` has all of `files`; warn about what else it has."""
    if missing := sorted(name for name in files if not Path(folder, name).is_file()):
        raise FileNotFoundError(errno.ENOENT, f"missing after the download: {missing}", folder)
    if unverified := [name for name, file in files.items() if not file.sha256]:
        print(f"WARNING: the hub gives no digest to check these by: {unverified}", file=sys.stderr)
    others = {name for name, status in scan(folder).items() if not stat.S_ISDIR(status.st_mode)}
    if extra := sorted(others - files.keys()):
        print(f"WARNING: not in this revision, but in {folder}: {extra}", file=sys.stderr)


def report(failed: str, error: Exception) -> None:
    """Print the cause, a line for each file that failed, and on standard error what to do next."""
    print(f"{failed}: {hide(repr(error))}")
    for name, cause in getattr(error, "failed_files", {}).items():
        deeper = f" from {cause.__cause__!r}" if cause.__cause__ else ""
        print(hide(f"    {name if name.isprintable() else repr(name)}: {cause!r}{deeper}"))
    advise(error)


# From here on the same as in `upload_model.py`: each script is copied alone.


def open_bar(total: int) -> Any:
    """Return a bar over the bytes of all files; without a terminal, a line every ten seconds."""
    from tqdm.auto import tqdm

    tqdm.monitor_interval = 0  # a thread less
    looks = {"total": total, "unit": "B", "unit_scale": True, "desc": "Total"}
    if not sys.stderr.isatty():
        looks |= {"mininterval": 10, "delay": 10, "leave": False, "ascii": True, "ncols": 80}
    return tqdm(**looks, miniters=1, disable=False)


def has_few_threads() -> bool:
    """Tell whether THREADS more cannot be started: the SDK fails when it gets none."""
    done = threading.Event()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for _ in range(THREADS):
                pool.submit(done.wait)
        except RuntimeError:
            return True
        finally:
            done.set()
    return False


def check_sdk(token: str) -> None:
    """Raise what kept the SDK away, and ValueError for what cannot be a token."""
    if SDK_ERROR:
        raise SDK_ERROR
    if not (token.isascii() and token.isprintable()):
        raise ValueError("the token has characters that cannot occur in a token; copy it again")


def advise(error: Exception) -> None:
    """Print the path and the advice that the error or its cause carries."""
    for each in filter(None, (error, error.__cause__)):
        if isinstance(each, OSError) and each.filename:  # its repr leaves the path out
            print(f"{each.filename}: {each.strerror}", file=sys.stderr)
        if advice := getattr(each, "suggestion", ""):
            print(advice, file=sys.stderr)
    if isinstance(error, ConnectionError):
        print("The hub cannot be reached: network, proxy, MODELSCOPE_ENDPOINT?", file=sys.stderr)
    if error is SDK_ERROR:
        print(f"Install the SDK: {INSTALL}", file=sys.stderr)


SECRETS: set[str] = set()
IN_ADDRESSES = re.compile(  # passwords, and what signs an address
    r"(://)[^\s@'\"]+(?=@)|([?&][^=&\s]*(?:key|sign|token)[^=&\s]*=)[^&\s'\")]+", re.IGNORECASE
)
CONTROL = re.compile(r"(?!\A\r|\r\Z)[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def keep_secret(*tokens: str) -> None:
    """Keep `tokens` out of all that is printed from now on, also where a repr has escaped them.

    The same goes for passwords in addresses of the environment, such as a proxy's.
    """
    urls = (re.match(r"\w+://[^:@/]*:(.+)@", value) for value in os.environ.values())
    parts = [part for url in urls if url for part in url[1].split("/") if len(part) > 3]
    for secret in (*map(str.strip, tokens), *parts):
        SECRETS.update({secret, repr(secret)[1:-1]} - {""})


def hide(text: str) -> str:
    """Return `text` with *** in place of tokens, and of passwords and signatures in addresses."""
    for secret in sorted(SECRETS, key=len, reverse=True):  # one may begin with another
        text = text.replace(secret, "***")
    return IN_ADDRESSES.sub(r"\1\2***", text)


class Stream(io.TextIOWrapper):
    """Writes at once; on standard error without secrets and control characters.

    The run fails when standard output cannot be written, and goes on when standard error cannot.
    """

    def write(self, text: str) -> int:
        if text.startswith("\r") and not self.isatty():  # a bar becomes a line
            text = f"{text.strip()}\n" if text.strip() else ""
        if self.fileno() == 2 and text.strip("\n\x1b[A"):  # else tqdm moves from bar to bar
            text = CONTROL.sub(lambda match: repr(match[0])[1:-1], hide(text))
        try:
            super().write(text)
            super().flush()
        except OSError as error:
            if self.fileno() == 1:
                print(f"standard output: {error!r}", file=sys.stderr)
                os._exit(1)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # else the exit would try once more
        return len(text)


def set_up_streams() -> None:
    """Let both streams, and the SDK's log, pass through `Stream`, in any encoding."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        encoding = getattr(getattr(sys, name), "encoding", None)
        setattr(sys, name, Stream(os.fdopen(number, "wb"), encoding, "backslashreplace"))
    for name in ("modelscope", "modelscope_hub"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(sys.stderr)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End with 1, as 2 means a failed draft; show nothing that was typed: it may be a token."""
        reason = "unrecognized option or missing value (not repeated here: it may be a token)"
        self.exit(1, f"{self.format_usage()}{self.prog}: error: {reason}\n")


if __name__ == "__main__":
    set_up_streams()
    sys.exit(main())
