#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["modelscope==1.40.2", "modelscope-hub==0.5.1"]
# ///
"""Download a model, and optionally a draft model, from ModelScope into a folder.

Made for the build of an image: with the files in place, serving needs no network. The SDK does
the work; exit code 0 means that every file of the revision is there and verified, 1 that the
model failed, 2 that only the draft model did.
"""

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
from errno import ENOENT, ENOSPC
from pathlib import Path, PureWindowsPath
from typing import Any, ClassVar, NoReturn, TextIO

# The SDK reads its settings when it is imported; values that the user has set are kept.
# A file may take as long as it needs; the SDK's other limits still end a stalled or crawling one.
os.environ.setdefault("MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT", str(30 * 24 * 3600))
# A second run waits as long for a file that the first one is fetching.
os.environ.setdefault("MODELSCOPE_DOWNLOAD_FILE_LOCK_TIMEOUT_SECONDS", str(30 * 24 * 3600))
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
    from modelscope_hub import FileInfo, FileIntegrityError, ProgressCallback, constants
    from modelscope_hub.constants import DOWNLOAD_PARALLEL_THRESHOLD as LARGE
    from modelscope_hub.constants import REPO_TREE_PAGE_RETRY_MAX_DELAY_SECONDS as PAUSE
    from tqdm import tqdm
except Exception as error:  # missing, too old, or broken by a bad setting
    sys.exit(f"{error!r}\nTo install the SDK: pip install modelscope==1.40.2 modelscope-hub==0.5.1")

DEFAULT_MODEL = "YukinoStuki/Qwen3-4B-Plus-Merged"
DEFAULT_REVISION = "master"
FILES_AT_ONCE = 32  # as many connections as the SDK keeps open
LARGE_AT_ONCE = 4  # files that come in parts, each over several connections
MANY_LARGE = 12  # from so many large files on, parts gain nothing, and are written twice
DOWNLOAD_REPO = modelscope_hub.HubApi.download_repo
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
    draft, draft_revision = "SPEC_DRAFT_MODEL_ID", "SPEC_DRAFT_MODEL_REVISION"
    add("--draft_model_name", default=env(draft, ""), help=f"draft model; default: ${draft}")
    add("--draft_revision", default=env(draft_revision, ""), help=f"default: ${draft_revision}")
    optional = env("SPEC_DRAFT_OPTIONAL", "").strip() == "1"
    parser.add_argument(
        "--draft_optional", action="store_true", default=optional, help="or SPEC_DRAFT_OPTIONAL=1"
    )
    return parser.parse_args()


def main() -> int:
    """Log in, download the model, then the draft model if one is named; return the exit code."""
    args = parse_args()
    hide_tokens(args.token)
    try:
        if token := args.token.strip(AROUND):
            log_in(token)
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


def download(model_id: str, revision: str, cache_dir: str) -> Path:
    """Download a revision of a model below `cache_dir`, verify it, and return its folder's path.

    Raises ValueError for names that cannot be used, LookupError for a model or a revision that
    isn't there, OSError for the disk, and what the SDK raises.
    """
    if not re.fullmatch("[^/]+/[^/]+", model_id) or any(map(escapes_folder, (model_id, revision))):
        raise ValueError(f"not a model id or revision: {model_id!r}, {revision!r}; see MODEL_ID")
    endpoint = modelscope_hub.get_default_config().endpoint
    with contextlib.suppress(Exception):  # a failed probe proves nothing: the SDK goes on, too
        endpoint = modelscope_hub.HubApi().resolve_endpoint_for_read(model_id)
    files = list_files(modelscope_hub.HubApi(endpoint=endpoint), model_id, revision)
    cache_dir = os.path.abspath(os.path.expanduser(cache_dir))
    fetch = functools.partial(
        snapshot_download, model_id, cache_dir=cache_dir, revision=revision, endpoint=endpoint
    )
    try:
        folder = Path(fetch(local_files_only=True))
    except modelscope_hub.CacheNotFound as error:  # not there yet; this is where it will be
        folder = Path(str(error.cache_dir))
    existing = take_stock(folder, files)
    spare = check_space(folder, sum(max(0, f.size - existing[n]) for n, f in files.items()))
    total = sum(f.size for n, f in files.items() if existing[n] != f.size)
    show_progress(total, lambda: fetch_files(fetch, folder, files, spare))
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
            check_exists(api, model_id, revision, error)
            if is_last:
                raise
            pause(f"the file list of {model_id} could not be read ({error!r})")
    if outside := [name for name in files if escapes_folder(name)]:
        raise ValueError(f"the hub lists files outside the model's folder: {outside}")
    return files


def check_exists(api: Any, model_id: str, revision: str, cause: Exception) -> None:
    """Raise LookupError when the hub has no such model, or other revisions but not this one."""
    exists, known = True, []
    with contextlib.suppress(Exception):  # a failed probe proves nothing
        if not isinstance(cause, modelscope_hub.NetworkError):
            exists = api.repo_exists(model_id, "model")
            known = [each["Revision"] for each in api.list_repo_revisions(model_id, "model")]
    if not (exists or known):
        raise LookupError(f"{model_id} does not exist, or is private and needs a token") from cause
    if known and revision not in known and not re.fullmatch("[0-9a-f]{7,40}", revision):
        raise LookupError(f"{model_id} has no revision {revision!r}, but {known}") from cause


# --- the folder, and the transfer -----------------------------------------------------------------


def scan(folder: Path) -> set[str]:
    """Return the names of the files below `folder`."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def take_stock(folder: Path, files: Files) -> Counter[str]:
    """Return the bytes on disk for each file; rename an `.incomplete` that has all its bytes."""
    existing: Counter[str] = Counter()
    for name in scan(folder):
        with contextlib.suppress(FileNotFoundError):  # another run may finish it meanwhile
            size = Path(folder, name).stat().st_size
            whole = re.sub(r"(\.incomplete|_\d+_\d+)$", "", name)
            existing[name if name in files else whole] += size
            if name == f"{whole}.incomplete" and whole in files and size == files[whole].size:
                Path(folder, name).replace(folder / whole)  # the SDK would start it anew
    return existing


def check_space(folder: Path, missing: int) -> int:
    """Return how many bytes stay free after the download; raise OSError if there is too little."""
    parent = next(each for each in (folder, *folder.parents) if each.exists())
    disk = shutil.disk_usage(parent)
    is_root = sys.platform != "win32" and os.geteuid() == 0
    free = disk.total - disk.used if is_root else disk.free  # some is reserved for root
    if missing > free and disk.total:  # some file systems report 0
        reason = f"{missing} bytes are still to come, and {free} are free"
        raise OSError(ENOSPC, reason, str(parent))
    return free - missing


def check_folder(folder: Path, files: Files) -> None:
    """Raise FileNotFoundError unless `folder` has all of `files`; warn about what else it has."""
    on_disk = scan(folder)
    if missing := sorted(files.keys() - on_disk):
        raise FileNotFoundError(ENOENT, f"missing after the download: {missing}", str(folder))
    if extra := sorted(on_disk - files.keys()):
        warn(f"WARNING: not in this revision, but in {folder}: {extra}")


class Progress(ProgressCallback):
    """Made by the SDK for each file; all count into one bar, which never passes its end."""

    bar: ClassVar[Any]

    def update(self, size: int) -> None:
        with self.bar.get_lock():  # files come in threads
            self.bar.update(max(-self.bar.n, min(size, self.bar.total - self.bar.n)))


def fetch_files(fetch: Callable[..., str], folder: Path, files: Files, spare: int) -> None:
    """Let the SDK download `files`; those that failed are tried once more.

    Not after a disk error, or a wrong digest, which the SDK has tried three times. The second try
    is in one stream, as a proxy may refuse parts, except where parts have come.
    """
    try:
        fetch_listed(fetch, files, choose_sized(folder, files, spare))
    except modelscope_hub.FileDownloadError as error:
        causes = [cause.__cause__ or cause for cause in error.failed_files.values()]
        local = [c for c in causes if isinstance(c, OSError) and (c.filename or c.errno == ENOSPC)]
        if local or FileIntegrityError in map(type, causes):  # a wrong size is a subclass of it
            raise
        failed = {name: files[name] for name in error.failed_files}
        pause(f"{len(failed)} of {len(files)} files failed")
        fetch_listed(fetch, failed, find_begun(folder, failed))


def choose_sized(folder: Path, files: Files, spare: int) -> set[str]:
    """Return the files whose size the SDK may know: it fetches large ones of these in parts."""
    new = {name for name in files if not Path(folder, name).exists()}  # others go by digest alone
    small = {name for name in new if files[name].size <= LARGE}
    large = {n for n in new - small if len(os.path.basename(n).encode()) < 200}  # parts add to it
    if len(large) >= MANY_LARGE or spare < 2 * LARGE_AT_ONCE * constants.DOWNLOAD_PART_SIZE:
        return small | find_begun(folder, files)
    return small | {name for name in large if not Path(folder, f"{name}.incomplete").exists()}


def find_begun(folder: Path, files: Files) -> set[str]:
    """Return the files that have parts on disk."""
    return {re.sub(r"_\d+_\d+$", "", name) for name in scan(folder) - files.keys()} & files.keys()


def fetch_listed(fetch: Callable[..., str], files: Files, sized: set[str]) -> None:
    """Fetch `files`: `snapshot_download` takes no list, so its `download_repo` is given one."""
    # With a size, the SDK fetches a large file in parts; without one, the digest alone decides.
    sizes = {n: f.size or None for n, f in files.items() if n in sized or not f.sha256}
    entries = [{"Path": n, "Sha256": f.sha256, "Size": sizes.get(n)} for n, f in files.items()]
    patched: Any = functools.partialmethod(DOWNLOAD_REPO, file_list=entries)
    modelscope_hub.HubApi.download_repo = patched  # type: ignore[method-assign]
    at_once = LARGE_AT_ONCE if any(files[n].size > LARGE for n in sized) else FILES_AT_ONCE
    fetch(max_workers=at_once, progress_callbacks=[Progress])


def pause(reason: str) -> None:
    """Say why, and wait before a second try."""
    warn(f"WARNING: {reason}; trying once more in {PAUSE} s")
    time.sleep(PAUSE)


def report(failed: str, error: Exception) -> None:
    """Print the cause, a line for each file that failed, and what to do next."""
    say(f"{failed}: {error!r}")
    for name, cause in getattr(error, "failed_files", {}).items():
        origin = cause.__cause__ or (isinstance(cause, OSError) and cause.filename and cause)
        say(f"    {name!r}: {cause!r}" + (f" from {origin}" if origin else ""))
    advise(error)


# --- the same in `upload_model.py`, as each script is copied alone --------------------------------
TOKENS = ("MODELSCOPE_API_TOKEN", "MODELSCOPE_TOKEN")  # the upload takes the first that is set
AROUND = " \t\r\n'\""  # what may stand around a token: `docker run --env-file` keeps quotes
SECRETS: set[str] = set()
IN_ADDRESSES = re.compile(r"(?i)(//)\S+(?=@)|(\?)\S*(?:key|sign|token)\w*=\S+")


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line without secrets: a result on standard output."""
    print(hide(text), file=file)


warn = functools.partial(say, file=sys.stderr)  # for all that is not a result


def hide(text: str) -> str:
    """Return `text` with *** in place of tokens, and of passwords and signatures in addresses."""
    for secret in sorted(SECRETS, key=len, reverse=True):  # one may begin with another
        characters = (r"\\+" if each == "\\" else re.escape(each) for each in secret)
        text = re.sub(r"\\*".join(characters), "***", text)  # however often it was escaped
    return IN_ADDRESSES.sub(r"\1\2***", text)


def hide_in_log(record: logging.LogRecord) -> bool:
    """Filter the SDK's log."""
    record.msg, record.args = hide(record.getMessage()), ()
    return True


def hide_tokens(token: str) -> None:
    """Unset the variables, as a blank one would hide a stored login; mask tokens from now on."""
    tokens = [token, *(os.environ.pop(name, "") for name in TOKENS)]
    with contextlib.suppress(Exception):  # the SDK reports a stored login that cannot be read
        tokens.append(modelscope_hub.get_default_config().token or "")
    SECRETS.update(filter(None, (token.strip(AROUND) for token in tokens)))


def log_in(token: str) -> None:
    """Log in, and let the SDK store the login; raise ValueError for what cannot be a token."""
    if not (token.isascii() and token.isprintable()):
        raise ValueError("the token has characters that cannot occur in a token; copy it again")
    os.environ.setdefault("NETRC", os.devnull)  # a ~/.netrc would replace the token
    HubApi().login(token)


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


def show_progress(total: int, work: Callable[[], object]) -> None:
    """Run `work` beside a bar of `total` bytes; in a log, print it as a line every ten seconds."""
    is_terminal = sys.stderr.isatty() and all(os.get_terminal_size(2))  # tqdm draws none of size 0
    style = {"desc": "Total", "unit": "B", "unit_scale": True, "ascii": True, "delay": 0.3}
    file = sys.stderr if is_terminal else open(os.devnull, "w")  # noqa: SIM115
    with tqdm(total=total, file=file, disable=False, miniters=1, **style) as Progress.bar:
        future = ThreadPoolExecutor(1).submit(work)
        second = 0
        while not wait([future], timeout=1).done:  # Windows takes Ctrl-C between two waits
            second += 1
            if second % 10 == 0 and not is_terminal:
                warn(str(Progress.bar))
    future.result()


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End with 1, as 2 means a failed draft model; show nothing typed: it may be a token."""
        self.exit(1, f"{self.format_usage()}error: unknown option or missing value (see -h)\n")


def end_on_signal(number: int, frame: object) -> None:
    """End at once: Python would wait for the transfers."""
    with contextlib.suppress(OSError):  # the log's reader may be gone after the same Ctrl-C
        os.write(2, b"\n" * os.isatty(2) + b"Interrupted. Run the same command again to resume.\n")
    os._exit(128 + number)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore
    for name in ("modelscope", "modelscope_hub"):
        for handler in (logging.lastResort, *logging.getLogger(name).handlers):
            handler.addFilter(hide_in_log)  # type: ignore
    for number in {signal.SIGINT, signal.SIGTERM}:
        if signal.getsignal(number) != signal.SIG_IGN:  # as in a shell's background job
            signal.signal(number, end_on_signal)
    os._exit(main())  # Python would wait for running threads
