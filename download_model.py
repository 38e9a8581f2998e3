#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["modelscope==1.40.2", "modelscope-hub==0.5.1"]
# ///
"""Download a model, and optionally a draft model, from ModelScope into a folder.

Made for the build of an image: with the files in place, serving needs no network. The SDK does
the work; exit code 0 means that every file of the revision is there and verified, 1 that the
model failed, 2 that only the draft model did."""

import argparse
import contextlib
import functools
import logging
import os
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from difflib import get_close_matches
from errno import ENOENT, ENOSPC
from pathlib import Path, PureWindowsPath
from typing import Any, NoReturn, TextIO

# The SDK reads its settings when it is imported; values that the user has set are kept.
# A file may take as long as it needs; the SDK's other limits still end a stalled or crawling one.
os.environ.setdefault("MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT", str(30 * 24 * 3600))
# A second run waits a day for a file that the first one is fetching.
os.environ.setdefault("MODELSCOPE_DOWNLOAD_FILE_LOCK_TIMEOUT_SECONDS", str(24 * 3600))
# Large files come in parts, as one connection rarely gets the full bandwidth.
os.environ.setdefault("MODELSCOPE_DOWNLOAD_PARALLEL_WORKERS", "8")
os.environ.setdefault("MODELSCOPE_DOWNLOAD_PARALLEL_THRESHOLD_MB", "128")
os.environ.setdefault("MODELSCOPE_DOWNLOAD_PART_SIZE_MB", "24")
os.environ["TQDM_DISABLE"] = "1"  # the SDK's bars, one for each file; ours shows the whole
if __name__ == "__main__":  # the SDK would import torch, which takes seconds and may fail
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]

try:
    import modelscope_hub  # the layer below `modelscope`; only its HubApi lists digests
    from modelscope import snapshot_download
    from modelscope.hub.api import HubApi
    from modelscope_hub import FileInfo, FileSizeMismatchError, constants
    from modelscope_hub.constants import DOWNLOAD_PARALLEL_THRESHOLD as LARGE
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    DOWNLOAD_REPO = modelscope_hub.HubApi.download_repo
    PAUSE = min(8, constants.DOWNLOAD_RETRY_MAX_DELAY_SECONDS)  # seconds between two tries
except (AttributeError, ImportError) as error:  # missing, or too old
    sys.exit(f"{error!r}\nTo install the SDK: pip install modelscope==1.40.2 modelscope-hub==0.5.1")
except Exception as error:  # no home for this user, a bad setting
    sys.exit(f"{error!r}\nThe SDK cannot start: check HOME and the MODELSCOPE_ variables.")

DEFAULT_MODEL = "YukinoStuki/Qwen3-4B-Plus-Merged"
DEFAULT_REVISION = "master"
FILES_AT_ONCE = 32  # as many connections as the SDK keeps open
LARGE_AT_ONCE = 4  # files that come in parts, each over several connections
MANY_LARGE = 12  # from so many large files on, parts gain nothing, and are written twice
LEFTOVER = re.compile(r"(\.incomplete|\.parallel_tmp|_\d+_\d+)$")  # what the SDK adds to a name
Files = dict[str, FileInfo]  # by name, what the hub lists: size in bytes, sha256


def parse_args() -> argparse.Namespace:
    """Parse the command line; the environment gives the defaults."""
    env = os.environ.get
    parser = Parser(description="Download a model from ModelScope.", allow_abbrev=False)
    add = functools.partial(parser.add_argument, type=str.strip)
    add("--model_name", default=env("MODEL_ID", DEFAULT_MODEL), help="OWNER/NAME (or $MODEL_ID)")
    add("--revision", default=DEFAULT_REVISION, help="branch, tag or commit (master)")
    add("--cache_dir", default="./", help="folder to download to; default: ./")
    add("--token", default=env("MODELSCOPE_API_TOKEN", ""), help="default: $MODELSCOPE_API_TOKEN")
    draft, revision = "SPEC_DRAFT_MODEL_ID", "SPEC_DRAFT_MODEL_REVISION"
    add("--draft_model_name", default=env(draft, ""), help=f"draft model; default: ${draft}")
    add("--draft_revision", default=env(revision, DEFAULT_REVISION), help=f"default: ${revision}")
    optional = env("SPEC_DRAFT_OPTIONAL", "").strip() == "1"
    parser.add_argument(
        "--draft_optional", action="store_true", default=optional, help="or SPEC_DRAFT_OPTIONAL=1"
    )
    return parser.parse_args()


def main() -> int:
    """Log in, download the model, then the draft model if one is named; return the exit code."""
    args = parse_args()
    unset_and_hide_tokens(args.token)
    name, revision = args.model_name, args.revision or DEFAULT_REVISION
    try:
        if token := args.token.strip(AROUND):
            show_progress(lambda bar: log_in(token))
            say("Using ModelScope token for authenticated download.")
        model_dir = show_progress(lambda bar: download(name, revision, args.cache_dir, bar))
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
        draft_dir = show_progress(lambda bar: download(name, revision, args.cache_dir, bar))
    except Exception as error:  # whatever it is, it ends as a failed draft
        optional = " (optional, continue)" if args.draft_optional else ""
        report(f"[spec] Draft model download FAILED{optional}", error)
        return 0 if args.draft_optional else 2
    say("[spec] Draft model download successful!")
    say(f"[spec] Resolved draft_model_dir: {draft_dir}")
    return 0


def download(model_id: str, revision: str, cache_dir: str, bar: Any) -> Path:
    """Download a revision of a model below `cache_dir`, verify it, and return its folder's path.

    Raises ValueError for names that cannot be used, LookupError for a model or a revision that
    isn't there, OSError for the disk, and what the SDK raises."""
    if not re.fullmatch("[^/]+/[^/]+", model_id) or escapes_folder(model_id):
        raise ValueError(f"not a model id: {model_id!r}; expected OWNER/NAME (see MODEL_ID)")
    if escapes_folder(revision):
        raise ValueError(f"not a revision: {revision!r}; expected a branch, tag or commit")
    resolve = functools.partial(modelscope_hub.HubApi().resolve_endpoint_for_read, model_id)
    endpoint = ask(resolve, "") or modelscope_hub.get_default_config().endpoint
    files = list_files(modelscope_hub.HubApi(endpoint=endpoint), model_id, revision)
    cache_dir = os.path.abspath(os.path.expanduser(cache_dir))
    place = {"cache_dir": cache_dir, "revision": revision, "endpoint": endpoint}
    fetch = functools.partial(snapshot_download, model_id, **place)
    try:
        folder = Path(fetch(local_files_only=True))
    except modelscope_hub.CacheNotFound as error:  # not there yet; this is where it will be
        folder = Path(str(error.cache_dir))
    tidy_leftovers(folder, files)
    missing = count_missing(folder, files)
    spare = check_space(folder, missing)
    bar.total = sum(file.size for file in files.values())
    bar.initial = bar.n = bar.last_print_n = bar.total - missing
    work = ThreadPoolExecutor(1).submit(fetch_files, fetch, folder, files, spare)
    while wait([work], timeout=1).not_done:  # what is on disk, once a second
        bar.update(bar.total - count_missing(folder, files) - bar.n)
    work.result()
    bar.update(bar.total - bar.n)
    check_folder(folder, files)
    return folder


def escapes_folder(name: str) -> bool:
    """Tell whether a name could leave the folder that it is joined to, on any system."""
    path = PureWindowsPath(name)
    return bool(path.anchor) or ".." in path.parts or "\\" in name or not path.parts


def list_files(api: Any, model_id: str, revision: str) -> Files:
    """Return the files of a revision; a list that cannot be read is read once more."""
    for is_last in (False, True):
        try:
            entries = api.list_repo_files(model_id, "model", revision=revision)
            files = {entry.path: entry for entry in entries if not entry.is_dir}
            if files:  # there are none if the hub answers an error as HTTP 200, too
                break
            raise LookupError(f"the hub lists no files in {model_id} (revision={revision})")
        except Exception as error:  # whatever kept the list from being read
            if is_last:
                raise
            if not isinstance(error, (modelscope_hub.NetworkError, modelscope_hub.RateLimitError)):
                check_exists(api, model_id, revision)
            warn(f"WARNING: cannot read the file list: {error!r}; trying again in {PAUSE} s")
            time.sleep(PAUSE)
    if outside := [name for name in files if escapes_folder(name)]:
        raise ValueError(f"the hub lists files outside the model's folder: {outside}")
    return files


def check_exists(api: Any, model_id: str, revision: str) -> None:
    """Raise LookupError when the hub has no such model, or other revisions but not this one."""
    exists = ask(lambda: api.repo_exists(model_id, "model"), True)
    names = functools.partial(api.list_repo_revisions, model_id, "model")
    known = ask(lambda: [each["Revision"] for each in names()], [revision])  # or it may exist
    if not (exists or known):
        raise LookupError(f"{model_id} does not exist, or is private and needs a token") from None
    if known and revision not in known and not re.fullmatch("[0-9a-f]{7,40}", revision):
        raise LookupError(f"{model_id} has no revision {revision!r}, but {known}") from None


# --- the folder, and the transfer -----------------------------------------------------------------
def scan(folder: Path) -> dict[str, int]:
    """Return the files below `folder`: their names, and their sizes in bytes."""
    sizes = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another run may finish it meanwhile
            if path.is_file():
                sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    return sizes


def tidy_leftovers(folder: Path, files: Files) -> None:
    """Rename an `.incomplete` that has all its bytes; delete what a killed run was joining."""
    leftovers = {name: size for name, size in scan(folder).items() if name not in files}
    if any(name.endswith(".parallel_tmp") for name in leftovers):
        time.sleep(PAUSE)  # a running job writes to it
    for name, size in leftovers.items():
        path, whole = folder / name, LEFTOVER.sub("", name)
        with contextlib.suppress(OSError):  # on a read-only disk, or when another run is faster
            if name.endswith(".incomplete") and whole in files and size == files[whole].size > 0:
                path.replace(folder / whole)  # the SDK would start it anew
            elif name.endswith(".parallel_tmp") and whole in files and size == path.stat().st_size:
                path.unlink()


def count_missing(folder: Path, files: Files) -> int:
    """Return the bytes still to come; parts of a file count, and what the SDK joins them to."""
    on_disk: Counter[str] = Counter()
    for name, size in scan(folder).items():
        on_disk[name if name in files else LEFTOVER.sub("", name)] += size
    return sum(max(0, file.size - on_disk[name]) for name, file in files.items())


def check_space(folder: Path, missing: int) -> int:
    """Return how many bytes stay free after the download; raise OSError if there is too little."""
    parent = next((each for each in (folder, *folder.parents) if each.exists()), folder)
    free = 0
    with contextlib.suppress(OSError):  # some file systems can't tell, and some report 0
        disk = shutil.disk_usage(parent)
        is_root = sys.platform != "win32" and os.geteuid() == 0
        free = disk.total - disk.used if is_root else disk.free  # some is reserved for root
    if 0 < free < missing:
        reason = f"{missing} bytes are still to come, and {free} are free"
        raise OSError(ENOSPC, reason, str(parent))
    return free - missing


def choose_in_parts(folder: Path, files: Files, spare: int) -> set[str]:
    """Return the files to fetch in parts; where none are worthwhile, those that have parts."""
    on_disk = scan(folder).keys()
    large = [name for name, file in files.items() if file.size > LARGE and name not in on_disk]
    room = 2 * LARGE_AT_ONCE * constants.DOWNLOAD_PART_SIZE  # while parts are joined
    if len(large) >= MANY_LARGE or spare < room:
        return {re.sub(r"_\d+_\d+$", "", name) for name in on_disk - files.keys()} & files.keys()
    short = [name for name in large if len(os.path.basename(name).encode()) < 200]  # of 255
    return {name for name in short if f"{name}.incomplete" not in on_disk}


def fetch_files(fetch: Any, folder: Path, files: Files, spare: int) -> None:
    """Let the SDK download `files`; those that failed are tried again as long as bytes come."""
    remaining, gained_from = files, float("-inf")  # the first round is followed by a second
    while True:
        started = time.monotonic()
        try:
            return fetch_listed(fetch, remaining, choose_in_parts(folder, remaining, spare))
        except modelscope_hub.FileDownloadError as error:
            on_disk = sum(scan(folder).values())
            crawled = (time.monotonic() - started) * constants.DOWNLOAD_MIN_BYTES_PER_SECOND
            if on_disk - gained_from <= crawled or any(map(is_final, error.failed_files.values())):
                raise
            # In one stream, as a proxy may refuse parts, except where parts have come.
            remaining, spare = {name: files[name] for name in error.failed_files}, 0
        gained_from = on_disk
        warn(f"WARNING: {len(remaining)} of {len(files)} files failed; trying again in {PAUSE} s")
        time.sleep(PAUSE)


def is_final(cause: BaseException) -> bool:
    """Tell whether a try is of no use: a digest was wrong, or the disk failed (it names a file)."""
    origin = cause.__cause__ or cause
    if isinstance(origin, modelscope_hub.FileIntegrityError):  # the SDK has tried three times
        return not isinstance(origin, FileSizeMismatchError)  # here the digest may still be right
    return isinstance(origin, OSError) and bool(origin.filename or origin.errno == ENOSPC)


def fetch_listed(fetch: Any, files: Files, in_parts: set[str]) -> None:
    """Fetch `files`: `snapshot_download` takes no list, so its `download_repo` is given one."""
    # With a size, the SDK fetches a large file in parts; without one, the digest alone decides.
    sizes = {n: f.size or None for n, f in files.items() if n in in_parts or not f.sha256}
    entries = [{"Path": n, "Sha256": f.sha256, "Size": sizes.get(n)} for n, f in files.items()]
    patched: Any = functools.partialmethod(DOWNLOAD_REPO, file_list=entries)
    modelscope_hub.HubApi.download_repo = patched  # type: ignore[method-assign]
    at_once = FILES_AT_ONCE - len(in_parts) * (constants.DOWNLOAD_PARALLELS - 1)
    fetch(max_workers=max(LARGE_AT_ONCE, at_once))


def check_folder(folder: Path, files: Files) -> None:
    """Raise FileNotFoundError unless `folder` has all of `files`; warn about what else it has."""
    on_disk = scan(folder).keys()
    if missing := sorted(files.keys() - on_disk):
        raise FileNotFoundError(ENOENT, f"missing after the download: {missing}", str(folder))
    if extra := sorted(on_disk - files.keys()):
        warn(f"WARNING: not in this revision, but in {folder}: {extra}")


def report(failed: str, error: Exception) -> None:
    """Print the cause, a line for each file that failed, and what to do next."""
    say(f"{failed}: {error!r}")
    for name, cause in getattr(error, "failed_files", {}).items():
        origin = cause.__cause__ or (cause if getattr(cause, "filename", None) else None)
        say(f"    {name!r}: {cause!r}" + (f" from {origin}" if origin else ""))
    advise(error)


def filter_log(record: logging.LogRecord) -> bool:
    """Hide the secrets in the SDK's log."""
    record.msg, record.args = hide(record.getMessage()), ()
    return True


# --- the same in `upload_model.py`, as each script is copied alone --------------------------------
TOKEN_VARIABLES = ("MODELSCOPE_API_TOKEN", "MODELSCOPE_TOKEN")  # the upload takes the first set
TOKEN = re.compile(r"[A-Za-z0-9_.~+/=-]{8,}")
AROUND = " \t\r\n'\""  # what may stand around a token: `docker run --env-file` keeps quotes
SECRETS: set[str] = set()
IN_ADDRESSES = re.compile(r"(?i)(://)\S+(?=@)|(\?)\S*(?:key|sig|token)\w*=\S+")


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line without secrets, above the bar: a result on standard output."""
    tqdm.write(hide(text), file=file)


warn = functools.partial(say, file=sys.stderr)  # for all that is not a result


def hide(text: str) -> str:
    """Return `text` with *** in place of tokens, and of passwords and signatures in addresses."""
    for secret in sorted(SECRETS, key=len, reverse=True):  # one may begin with another
        text = text.replace(secret, "***")
    return IN_ADDRESSES.sub(r"\1\2***", text)


def unset_and_hide_tokens(token: str) -> None:
    """Unset the variables, as a blank one would hide a stored login; mask tokens from now on."""
    tokens = [token, *(os.environ.pop(name, "") for name in TOKEN_VARIABLES)]
    with contextlib.suppress(Exception):  # the SDK reports a stored login that cannot be read
        tokens.append(modelscope_hub.get_default_config().token or "")
    SECRETS.update(filter(TOKEN.fullmatch, (token.strip(AROUND) for token in tokens)))


def log_in(token: str) -> None:
    """Log in, and let the SDK store the login; raise ValueError for what cannot be a token."""
    if not TOKEN.fullmatch(token):
        raise ValueError("not a token: too short, or with characters that none has; copy it again")
    os.environ.setdefault("NETRC", os.devnull)  # a ~/.netrc would replace the token
    HubApi().login(token)


def ask(question: Callable[[], Any], otherwise: Any) -> Any:
    """Return the hub's answer, [] for "not there", or `otherwise` where a probe proves nothing."""
    seconds = min(60, constants.REPO_TREE_LIST_TIMEOUT_SECONDS)  # the SDK may sleep for hours
    try:
        return ThreadPoolExecutor(1).submit(question).result(seconds)
    except Exception as error:
        return [] if isinstance(error, modelscope_hub.NotExistError) else otherwise


def advise(error: BaseException | None) -> None:
    """Print the paths and the advice that an error and its causes carry."""
    while error:
        if isinstance(error, OSError) and error.filename:  # its repr leaves the path out
            warn(str(error))
        if isinstance(error, modelscope_hub.CacheError):
            warn("Set MODELSCOPE_HOME and MODELSCOPE_CACHE to folders that can be written.")
        elif advice := getattr(error, "suggestion", ""):
            warn(advice)
        error = error.__cause__


def show_progress(work: Callable[[Any], Any]) -> Any:
    """Run `work(bar)` while the bar is drawn, in a log every ten seconds; return its result."""
    is_terminal = sys.stderr.isatty() and all(os.get_terminal_size(2))  # tqdm draws none of size 0
    style = {"unit": "B", "unit_scale": True, "ascii": True, "delay": 0.3, "miniters": 1}
    file = sys.stderr if is_terminal else open(os.devnull, "w")  # noqa: SIM115
    with tqdm(desc="Total", file=file, disable=False, **style) as bar:
        future = ThreadPoolExecutor(1).submit(work, bar)
        second = 0
        while not wait([future], timeout=1).done:  # Windows takes Ctrl-C between two waits
            second += 1
            bar.set_description_str("Total" if bar.n < (bar.total or 0) else "Checking")
            if second % 10 == 0 and not is_terminal:
                warn(str(bar))
    return future.result()


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End with 1, as 2 means a failed draft model; show nothing typed: it may be a token."""
        known = re.findall(r"--[\w-]+", self.format_usage())
        typed = {word.partition("=")[0] for word in sys.argv[1:]}
        near = {each for word in typed for each in get_close_matches(word, known, 1)} - typed
        hint = f"; did you mean {min(near)}?" if near else "."
        words = f"{message.partition(':')[0]}{hint} See -h; your input may hold a token, so it"
        self.exit(1, f"{self.format_usage()}error: {words} is not shown.\n")


def end_on_signal(number: int, frame: object) -> None:
    """End at once: Python would wait for the transfers."""
    with contextlib.suppress(OSError):  # the log's reader may be gone after the same Ctrl-C
        os.write(2, b"\n" * os.isatty(2) + b"Interrupted. Run the same command again to resume.\n")
    os._exit(128 + number)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore
    for number in {signal.SIGINT, signal.SIGTERM}:
        if signal.getsignal(number) != signal.SIG_IGN:  # as in a shell's background job
            signal.signal(number, end_on_signal)
    loggers = [logging.getLogger(name) for name in ("modelscope", "modelscope_hub")]
    with logging_redirect_tqdm(loggers):  # above the bar; lastResort prints urllib3's warnings
        for handler in (logging.lastResort, *loggers[0].handlers, *loggers[1].handlers):
            handler.addFilter(filter_log)  # type: ignore
        os._exit(main())  # Python would wait for running threads
