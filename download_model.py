#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["modelscope==1.40.2", "modelscope-hub==0.5.1"]
# ///
"""Download a model, and optionally a draft model, from ModelScope into a folder.

Meant for image builds: serving then needs no network. Exit code 0 means that every file is there
and verified (a --draft_optional model may be missing), 1 that the model failed, 2 the draft."""

import argparse
import contextlib
import functools
import itertools
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from difflib import get_close_matches
from errno import ENOENT, ENOSPC
from pathlib import Path, PureWindowsPath
from typing import Any, NoReturn, TextIO

# The SDK reads its settings at import. A value that the user has set wins, even under its old name.
for setting, older_name, default in (
    ("MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT", "", 30 * 24 * 3600),  # seconds; other limits end a stall
    ("MODELSCOPE_DOWNLOAD_FILE_LOCK_TIMEOUT_SECONDS", "", 24 * 3600),  # while another run has it
    ("MODELSCOPE_DOWNLOAD_PARALLEL_WORKERS", "MODELSCOPE_DOWNLOAD_PARALLELS", 8),
    ("MODELSCOPE_DOWNLOAD_PARALLEL_THRESHOLD_MB", "MODELSCOPE_PARALLEL_DOWNLOAD_THRESHOLD_MB", 128),
    ("MODELSCOPE_DOWNLOAD_PART_SIZE_MB", "DOWNLOAD_PART_SIZE", 24),
):
    if older_name not in os.environ:
        os.environ.setdefault(setting, str(default))
os.environ["TQDM_DISABLE"] = "1"  # the SDK's bars, one for each file; ours shows the total
if __name__ == "__main__":  # the SDK would import torch, which takes seconds and may fail
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]

try:
    import modelscope_hub  # the layer below `modelscope`; only its HubApi lists digests
    import requests
    from modelscope import snapshot_download
    from modelscope.hub.api import HubApi
    from modelscope_hub import CacheNotFound, FileDownloadError, FileInfo, constants, errors
    from modelscope_hub.constants import API_CONNECTION_POOL_MAXSIZE as CONNECTIONS
    from modelscope_hub.constants import DOWNLOAD_PARALLEL_THRESHOLD as LARGE  # bytes
    from modelscope_hub.constants import DOWNLOAD_PARALLELS as PARTS_AT_ONCE  # of a large file
    from modelscope_hub.errors import NetworkError, RateLimitError, ServerError
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm
except (AttributeError, ImportError) as error:  # missing, or too old
    sys.exit(f"{error!r}\nTo install the SDK: pip install modelscope==1.40.2 modelscope-hub==0.5.1")
except Exception as error:  # no home for this user, a bad setting
    sys.exit(f"{error!r}\nThe SDK cannot start: check HOME and the MODELSCOPE_ variables.")

DEFAULT_MODEL = "YukinoStuki/Qwen3-4B-Plus-Merged"
DEFAULT_REVISION = "master"
PAUSE = min(8, constants.DOWNLOAD_RETRY_MAX_DELAY_SECONDS)  # seconds between two rounds
OUTAGE_SECONDS = 22 * PAUSE  # 176 s: how long a link may be dead
READ_IN_TIME = constants.DOWNLOAD_LOW_SPEED_WINDOW_SECONDS * 2**26  # bytes, of a disk of 67 MB/s
TRANSIENT = (requests.RequestException, NetworkError, RateLimitError, ServerError)
# What the SDK adds to a name: .incomplete while the file comes in one stream; _FIRST_LAST, of its
# bytes, for each part; .parallel_tmp while it joins the parts, deleting each that it has copied.
LEFTOVER = re.compile(r"(\.incomplete|\.parallel_tmp|_\d+_\d+)$")
Files = dict[str, FileInfo]  # by name, what the hub lists: size in bytes, sha256
Failed = dict[str, BaseException]  # by name, why a file failed


def parse_args() -> argparse.Namespace:
    """Parse the command line; the environment gives the defaults."""
    env = os.environ.get
    parser = Parser(description="Download a model from ModelScope.", allow_abbrev=False)
    add = functools.partial(parser.add_argument, type=clean)
    add("--model_name", default=env("MODEL_ID", DEFAULT_MODEL), help="OWNER/NAME (or $MODEL_ID)")
    add("--revision", default=DEFAULT_REVISION, help="branch, tag or commit (master)")
    add("--cache_dir", default="./", help="folder to download to; default: ./")
    add("--token", default=env("MODELSCOPE_API_TOKEN", ""), help="default: $MODELSCOPE_API_TOKEN")
    draft, revision = "SPEC_DRAFT_MODEL_ID", "SPEC_DRAFT_MODEL_REVISION"
    add("--draft_model_name", default=env(draft, ""), help=f"draft model; default: ${draft}")
    add("--draft_revision", default=env(revision, DEFAULT_REVISION), help=f"default: ${revision}")
    flag: Any = {"action": "store_true", "default": clean(env("SPEC_DRAFT_OPTIONAL", "")) == "1"}
    parser.add_argument("--draft_optional", **flag, help="it may fail (or SPEC_DRAFT_OPTIONAL=1)")
    return parser.parse_args()


def main() -> int:
    """Log in, download the model, then the draft model if one is named; return the exit code."""
    args = parse_args()
    mask_tokens(args.token)
    try:
        if args.token:
            log_in(args.token)
            say("Using ModelScope token for authenticated download.")
        model_dir = download(args.model_name, args.revision or DEFAULT_REVISION, args.cache_dir)
    except Exception as error:  # whatever it is, it ends as a failed download
        report("Model download FAILED", error)
        return 1
    say("Model download successful!")
    say(f"Resolved model_dir: {model_dir}")
    return download_draft(args) if args.draft_model_name else 0


def download_draft(args: argparse.Namespace) -> int:
    """Download the draft model; return the exit code, 2 when it failed and isn't optional."""
    name, revision = args.draft_model_name, args.draft_revision or DEFAULT_REVISION
    say(f"[spec] Downloading draft model: {name} (revision={revision})")
    try:
        draft_dir = download(name, revision, args.cache_dir)
    except Exception as error:  # whatever it is, it ends as a failed draft
        optional = " (optional, continue)" if args.draft_optional else ""
        report(f"[spec] Draft model download FAILED{optional}", error)
        return 0 if args.draft_optional else 2
    say("[spec] Draft model download successful!")
    say(f"[spec] Resolved draft_model_dir: {draft_dir}")
    return 0


def report(headline: str, error: Exception) -> None:
    """Print the cause, each failed file with the path that a repr leaves out, and advice."""
    say(f"{headline}: {error!r}")
    for name, cause in getattr(error, "failed_files", {}).items():
        origin = cause.__cause__ or (cause if getattr(cause, "filename", None) else None)
        say(f"    {name!r}: {cause!r}" + (f" from {origin}" if origin else ""))
    advise(error)


def download(model_id: str, revision: str, cache_dir: str) -> Path:
    """Download a revision of a model below `cache_dir`, verify it, and return its folder's path;
    raise ValueError for bad names, LookupError for what the hub lacks, OSError and SDK errors."""
    if not re.fullmatch("[^/]+/[^/]+", model_id) or escapes_folder(model_id):
        raise ValueError(f"not a model id: {model_id!r}; expected OWNER/NAME (see MODEL_ID)")
    if escapes_folder(revision):
        raise ValueError(f"not a revision: {revision!r}; expected a branch, tag or commit")
    api = show_progress(lambda: find_hub(model_id))
    files = show_progress(lambda: list_files(api, model_id, revision))
    place = {"cache_dir": os.path.abspath(os.path.expanduser(cache_dir)), "revision": revision}
    folder = find_folder(model_id, place)
    tidy_leftovers(folder, files)
    on_disk = functools.partial(count_bytes, folder, files)
    total = sum(file.size for file in files.values())
    check_space(folder, total - on_disk())
    # `snapshot_download` calls this, too, but takes no list of files.
    fetch = functools.partial(api.download_repo, model_id, "model", local_dir=folder, **place)
    show_progress(lambda: fetch_files(fetch, folder, files), total, on_disk)
    check_folder(folder, files)
    return folder


# --- the model on the hub -------------------------------------------------------------------------
def escapes_folder(name: str) -> bool:
    """Return whether a name could leave the folder that it is joined to, on any system."""
    path = PureWindowsPath(name)
    return bool(path.anchor) or ".." in path.parts or "\\" in name or not path.parts


def find_hub(model_id: str) -> Any:
    """Return the API of the site that has the model, or of the default one if none says so."""
    resolve = modelscope_hub.HubApi().resolve_endpoint_for_read
    return modelscope_hub.HubApi(endpoint=ask(lambda: resolve(model_id), otherwise=None))


def list_files(api: Any, model_id: str, revision: str) -> Files:
    """Return the files of a revision; a list that cannot be read is asked for once more."""
    try:
        files = read_list(api, model_id, revision)
    except Exception as error:  # whatever kept the list from being read
        if not isinstance(error, (NetworkError, RateLimitError)):
            check_exists(api, model_id, revision)
        warn(f"WARNING: cannot read the file list: {error!r}; trying again in {PAUSE} s")
        time.sleep(PAUSE)
        files = read_list(api, model_id, revision)
    if outside := [name for name in files if escapes_folder(name)]:
        raise ValueError(f"the hub lists files outside the model's folder: {outside}")
    return files


def read_list(api: Any, model_id: str, revision: str) -> Files:
    """Return the files that the hub lists; raise LookupError if there are none."""
    entries = api.list_repo_files(model_id, "model", revision=revision)
    files = {entry.path: entry for entry in entries if not entry.is_dir}
    if not files:  # as when a hub answers an error with HTTP 200
        raise LookupError(f"the hub lists no files in {model_id} (revision={revision})")
    return files


def check_exists(api: Any, model_id: str, revision: str) -> None:
    """Raise LookupError when the hub has no such model, or other revisions but not this one."""
    if not ask(lambda: api.repo_exists(model_id, "model"), otherwise=True):
        login = modelscope_hub.get_default_config().token
        why = "is not open to this login" if login else "is private and needs a token"
        raise LookupError(f"{model_id} does not exist, or {why}")
    known = ask(lambda: [r["Revision"] for r in api.list_repo_revisions(model_id, "model")], [])
    if known and revision not in known and not re.fullmatch("[0-9a-f]{7,40}", revision):
        raise LookupError(f"{model_id} has no revision {revision!r}, but {known}")


# --- the folder -----------------------------------------------------------------------------------
def find_folder(model_id: str, place: dict[str, str]) -> Path:
    """Return the folder that the SDK uses; raise FileExistsError for one that is not its own."""
    try:
        folder = Path(snapshot_download(model_id, **place, local_files_only=True))
    except CacheNotFound as error:  # not there yet; this is where it will be
        return Path(str(error.cache_dir))
    # SDKs before 1.38 used OWNER/NAME, with a list, .msc. Without one, it is the user's own folder.
    repo_folder = Path(place["cache_dir"], "models", model_id.replace("/", "--"))
    if repo_folder not in folder.parents and not (folder / ".msc").exists():
        raise FileExistsError(f"{folder} is not a download (no .msc): use another --cache_dir")
    return folder


def scan(folder: Path) -> dict[str, int]:
    """Return the files below `folder`: their names, and their sizes in bytes."""
    sizes = {}
    for parent, _, names in os.walk(folder):  # which skips what it cannot read
        for path in (Path(parent, name) for name in names):
            with contextlib.suppress(OSError):  # another run may finish it meanwhile
                sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    return sizes


def count_bytes(folder: Path, files: Files) -> int:
    """Return the bytes of `files` that are on disk, also in parts and in unfinished files."""
    on_disk: Counter[str] = Counter()
    for name, size in scan(folder).items():
        on_disk[name if name in files else LEFTOVER.sub("", name)] += size
    return sum(min(file.size, on_disk[name]) for name, file in files.items())


def tidy_leftovers(folder: Path, files: Files) -> None:
    """Delete what a killed run was joining; rename an `.incomplete` that has all its bytes."""
    for name, file in files.items():
        incomplete = folder / f"{name}.incomplete"
        with contextlib.suppress(OSError):  # it isn't there, or the disk is read-only
            (folder / f"{name}.parallel_tmp").unlink(missing_ok=True)
            if 0 < incomplete.stat().st_size == file.size:
                incomplete.replace(folder / name)  # the SDK would start it anew, not hash it


def check_space(folder: Path, missing: int) -> None:
    """Raise OSError if the disk is too small for the bytes that are still to come."""
    disk = next((each for each in (folder, *folder.parents) if each.exists()), folder)
    free = 0
    with contextlib.suppress(OSError):  # some file systems can't tell, and some report 0
        free = shutil.disk_usage(disk).free
    if 0 < free < missing:
        raise OSError(ENOSPC, f"{missing} bytes are still to come, and {free} are free", str(disk))


def check_folder(folder: Path, files: Files) -> None:
    """Raise FileNotFoundError if a file isn't there (the SDK checks digests); warn about others."""
    if missing := sorted(name for name in files if not (folder / name).is_file()):
        raise FileNotFoundError(ENOENT, f"missing after the download: {missing}", str(folder))
    if extra := sorted(scan(folder).keys() - files.keys() - {".msc", ".mdl", ".mv"}):  # old SDKs'
        warn(f"WARNING: not in this revision, but in {folder}: {extra}")


# --- the transfer ---------------------------------------------------------------------------------
def fetch_files(fetch: Any, folder: Path, files: Files) -> None:
    """Let the SDK download `files`, again while that may help; raise FileDownloadError if not."""
    most_bytes, gained_at, idle_rounds = count_bytes(folder, files), time.monotonic(), 0
    remaining, is_first = files, True
    while failed := fetch_round(fetch, folder, remaining, is_first):
        message = f"{len(failed)} of {len(files)} files failed"
        on_disk, idle_rounds = count_bytes(folder, files), idle_rounds + 1
        if on_disk > most_bytes:
            gained_at, idle_rounds = time.monotonic(), 0
        # The count before the first round has damaged files in it, which the SDK then deleted.
        most_bytes = on_disk if is_first else max(on_disk, most_bytes)
        if not may_retry(failed, idle_rounds, time.monotonic() - gained_at):
            raise FileDownloadError(message, failed_files=failed)
        warn(f"WARNING: {message}; trying again in {PAUSE} s")
        time.sleep(PAUSE)
        remaining, is_first = {name: files[name] for name in failed}, False


def may_retry(failed: Failed, idle_rounds: int, idle_seconds: float) -> bool:
    """Return whether to try again: after progress; else once, or for a while on network errors."""
    causes = [cause.__cause__ or cause for cause in failed.values()]  # the SDK wraps most of them
    if any(type(cause) is errors.FileIntegrityError for cause in causes):
        return False  # a wrong digest, three times; a wrong size (a subclass) may be tried again
    if idle_rounds == 0:
        return True
    not_disk = (*TRANSIENT, FileNotFoundError)  # the last: another run has taken the file
    if any(isinstance(cause, OSError) and not isinstance(cause, not_disk) for cause in causes):
        return False  # the disk has failed
    is_network = any(isinstance(cause, TRANSIENT) for cause in causes)
    return idle_rounds == 1 or (is_network and idle_seconds < OUTAGE_SECONDS)


def fetch_round(fetch: Any, folder: Path, files: Files, is_first: bool) -> Failed:
    """Let the SDK try each of `files`; return those that failed, each with its cause.

    A large file goes on as it began: in one stream, or in parts. A new one comes in parts if that
    is faster, in the first round only: a proxy may refuse it. Without a digest: always in parts."""
    on_disk = scan(folder)  # under its own name, a file is whole, or, rarely, damaged: one stream
    large = {name for name, file in files.items() if file.size > LARGE and name not in on_disk}
    in_stream = {name for name in large if f"{name}.incomplete" in on_disk}
    in_parts = (large & {LEFTOVER.sub("", name) for name in on_disk}) - in_stream
    new = large - in_stream - in_parts
    if is_first and are_parts_faster(folder, len(new)):
        in_parts |= new
    # To resume a stream, the SDK connects, then hashes the bytes on disk, and fails if it receives
    # nothing for a minute: so these files go first, so few at once that a slow disk keeps up.
    longest = max((on_disk[f"{name}.incomplete"] for name in in_stream), default=0)
    begun = [files[name] for name in sorted(in_stream)]
    failed = fetch_some(fetch, begun, in_parts, at_once=READ_IN_TIME // max(1, longest))
    # Each file in parts takes PARTS_AT_ONCE of the CONNECTIONS; what is left goes to streams.
    at_once = max(CONNECTIONS // PARTS_AT_ONCE, CONNECTIONS - len(in_parts) * (PARTS_AT_ONCE - 1))
    others = [file for name, file in files.items() if name not in in_stream]
    return failed | fetch_some(fetch, others, in_parts, at_once)


def are_parts_faster(folder: Path, count: int) -> bool:
    """Return whether `count` large files come faster in parts, by the speed of writing to disk."""
    if not 0 < count < 12 or not 1 < PARTS_AT_ONCE <= CONNECTIONS:
        return False  # twelve are as fast in a stream each
    size, block = min(LARGE, 2**27), os.urandom(2**20)  # which no file system can compress
    with contextlib.suppress(OSError):  # the SDK will meet it, too
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            started = time.perf_counter()
            for _ in range(0, size, len(block)):
                file.write(block)
            os.fsync(file.fileno())
            speed = size / (time.perf_counter() - started)
            return speed > count * 2 * 50e6  # twice: as parts, then joined; 50 MB/s: one stream
    return False


def fetch_some(fetch: Any, files: list[FileInfo], in_parts: set[str], at_once: int) -> Failed:
    """Let the SDK download `files`, some at once; return those that failed, each with its cause."""
    # A size is how to ask the SDK for parts. Without a digest, it is also the only check.
    sizes = {f.path: f.size or None for f in files if f.path in in_parts or not f.sha256}
    listed = [{"Path": f.path, "Sha256": f.sha256, "Size": sizes.get(f.path)} for f in files]
    try:
        if listed:
            fetch(file_list=listed, max_workers=max(1, min(at_once, CONNECTIONS)))
    except FileDownloadError as error:
        return error.failed_files
    return {}


# --- the same in both scripts, as each is copied alone --------------------------------------------
TOKEN_VARIABLES = ("MODELSCOPE_API_TOKEN", "MODELSCOPE_TOKEN")
TOKEN = re.compile(r"[A-Za-z0-9_.~+/=-]{8,}")
SECRETS: set[str] = set()  # what `hide` replaces; `mask_tokens` fills it
IN_ADDRESSES = re.compile(r"(?i)(://)\S+(?=@)|(\?)\S*(?:key|sig|token)\w*=\S+")
PROBE_SECONDS = min(60, constants.REPO_TREE_LIST_TIMEOUT_SECONDS)  # the user's limit may be lower


def clean(value: str) -> str:
    """Return a value without the white space and quotes that env files and shells leave around."""
    return value.strip(" \t\r\n'\"")


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line without secrets, above the bar: a result on standard output."""
    tqdm.write(hide(text), file=file)


warn = functools.partial(say, file=sys.stderr)  # for all that is not a result


def hide(text: str) -> str:
    """Return `text` with *** in place of tokens, and of passwords and signatures in addresses."""
    for secret in sorted(SECRETS, key=len, reverse=True):  # one may begin with another
        text = text.replace(secret, "***")
    return IN_ADDRESSES.sub(r"\1\2***", text)


def hide_in_log(record: logging.LogRecord) -> bool:
    """Hide the secrets in a line of the SDK's log."""
    record.msg, record.args = hide(record.getMessage()), ()
    return True


def mask_tokens(token: str) -> None:
    """Mask all tokens; unset their variables: even a blank one would win over a stored login."""
    tokens = [token, *(clean(os.environ.pop(name, "")) for name in TOKEN_VARIABLES)]
    with contextlib.suppress(Exception):  # the SDK itself reports a login that it cannot read
        tokens.append(modelscope_hub.get_default_config().token or "")
    SECRETS.update(filter(TOKEN.fullmatch, tokens))
    if any(tokens):
        os.environ.setdefault("NETRC", os.devnull)  # a ~/.netrc would replace the token


def log_in(token: str) -> None:
    """Log in, and let the SDK store the login; raise ValueError for what cannot be a token."""
    if not TOKEN.fullmatch(token):
        raise ValueError("not a token: too short, or with characters that none has; copy it again")
    show_progress(lambda: HubApi().login(token))


def ask(question: Callable[[], Any], otherwise: Any) -> Any:
    """Return the hub's answer, or `otherwise` if there is none within a minute."""
    try:  # in a thread, as the SDK may sleep for hours where the hub is throttled
        return ThreadPoolExecutor(1).submit(question).result(PROBE_SECONDS)
    except Exception:  # whatever it is, it proves nothing
        return otherwise


def advise(error: BaseException | None) -> None:
    """Print the paths and the advice that an error and its causes carry."""
    while error:
        if isinstance(error, OSError) and error.filename:  # its repr leaves the path out
            warn(str(error))
        if isinstance(error, errors.CacheError):
            warn("Set MODELSCOPE_HOME and MODELSCOPE_CACHE to folders that can be written.")
        elif advice := getattr(error, "suggestion", ""):
            warn(advice)
        error = error.__cause__


def show_progress(
    work: Callable[[], Any], total: int = 0, count: Callable[[], int] = lambda: 0
) -> Any:
    """Run `work()` in a thread, return its result; show `count()` of `total` bytes, if any."""
    is_terminal = sys.stderr.isatty() and all(os.get_terminal_size(2))  # tqdm draws none of size 0
    style: Any = {"unit": "B", "unit_scale": True, "ascii": True, "disable": False}
    style |= {"leave": total > 0, "smoothing": 0}  # the mean rate, so that an outage shows
    file = sys.stderr if is_terminal else open(os.devnull, "w")  # noqa: SIM115
    future = ThreadPoolExecutor(1).submit(work)
    with tqdm(desc="Total", total=total, initial=count(), file=file, **style) as bar:
        for second in itertools.count(1):
            if wait([future], timeout=1).done:  # Windows takes Ctrl-C between two waits
                break
            bar.update(count() - bar.n)
            bar.initial = min(bar.initial, bar.n)  # no negative rate when a damaged file goes
            bar.set_description_str("Total" if bar.n < total else "Checking")
            if second % 10 == 0 and not is_terminal:
                warn(str(bar))
        if not future.exception():
            bar.update(total - bar.n)
    return future.result()


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End with 1, as for all failures but a draft's; echo nothing, as it may be a token."""
        known = re.findall(r"--[\w-]+", self.format_usage())
        typed = {word.partition("=")[0] for word in sys.argv[1:]}
        near = {each for word in typed for each in get_close_matches(word, known, 1)} - typed
        hint = f"; did you mean {min(near)}?" if near else "."
        self.exit(1, f"{self.format_usage()}error: {message.partition(':')[0]}{hint} See -h.\n")


def end_on_signal(number: int, frame: object) -> None:
    """End at once: Python would wait for the transfers."""
    with contextlib.suppress(OSError):  # the log's reader may be gone after the same Ctrl-C
        os.write(2, b"\n" * os.isatty(2) + b"Interrupted. Run the same command again to resume.\n")
    os._exit(128 + number)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore
    for number in {signal.SIGINT, signal.SIGTERM}:
        if signal.getsignal(number) != signal.SIG_IGN:  # a shell's background job ignores Ctrl-C
            signal.signal(number, end_on_signal)
    loggers = [logging.getLogger(name) for name in ("modelscope", "modelscope_hub")]
    with logging_redirect_tqdm(loggers):  # above the bar; lastResort: for loggers without handlers
        for handler in (logging.lastResort, *loggers[0].handlers, *loggers[1].handlers):
            handler.addFilter(hide_in_log)  # type: ignore
        os._exit(main())  # Python would wait for running threads
