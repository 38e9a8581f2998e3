#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["modelscope==1.40.2", "modelscope-hub==0.5.1"]
# ///
"""Upload a local model folder to a ModelScope repo.

Made for what comes before the build of an image: a quantised or merged model goes up, so that the
build can download it. Exit code 0 means that the hub lists every file of the folder with its
digest; 1, it failed. The SDK does the work; the guard below verifies the result.
"""

from __future__ import annotations

import signal

SIGNALS = {n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN}
if __name__ == "__main__":  # before anything takes time: they wait for `end_on_signal`
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

import argparse
import contextlib
import fnmatch
import functools
import glob
import hashlib
import inspect
import io
import itertools
import locale
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

INTERRUPTED = (
    "Interrupted. Run the same command again to resume: files on the hub are not sent again, "
    "a file that was broken off starts over."
)


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
# After the last byte of a blob, wait ten minutes for the hub's answer, not the SDK's hour.
os.environ.setdefault("MODELSCOPE_UPLOAD_BLOB_READ_TIMEOUT_SECONDS", "600")
if not os.environ.get("MODELSCOPE_API_TOKEN", "unset").strip():
    del os.environ["MODELSCOPE_API_TOKEN"]  # blank, it would hide a stored login

SDK_ERROR = None
try:
    from modelscope.hub.api import HubApi
except Exception as error:  # not installed, or broken by a setting: `-h` works all the same
    SDK_ERROR = error

INSTALL = "pip install modelscope==1.40.2 modelscope-hub==0.5.1"
DEFAULT_REPO = "YukinoStuki/Qwen3-4B-Plus-LLM-AWQ"
DEFAULT_FOLDER = "model/YukinoStuki/Qwen3-4B-Plus-LLM-AWQ"
KEY_FILES = ("config.json", "tokenizer_config.json")  # a full model has them; an adapter may not
# What stays behind at any depth: version control, caches, what the SDK keeps of logins and uploads.
NOT_MODEL = (".git", ".cache", ".modelscope", ".ms_upload_cache", ".ms_upload_progress")
# What a model has no use for, and a public repo must not show.
SECRET_FILES = (".env", ".env.*", ".netrc", ".git-credentials", "*.pem", "id_rsa*", "id_ed25519*")
TOKENS = ("MODELSCOPE_API_TOKEN", "MODELSCOPE_TOKEN")  # the variables; the first one wins
THREADS = 64  # what the SDK and the digests may start
SMALL_AT_ONCE = 32  # small files wait for answers, not for the link
FEW = 200  # up to so many missing files are named to the SDK one by one
LIST_SECONDS = 60  # how long the hub's list may lag behind a commit
UNCHECKED = f"WARNING: this SDK is unknown or older than 1.38, its result unchecked; {INSTALL}"


def _env_token() -> str:
    """Return the token of the environment, or an empty string; a blank variable is none."""
    return next(filter(None, (os.environ.get(name, "").strip() for name in TOKENS)), "")


def _parse_args() -> argparse.Namespace:
    """Parse the command line; the environment gives the defaults."""
    env = os.environ.get
    parser = Parser(
        description="Upload a local model folder to a ModelScope repo.",
        epilog="Defaults: REPO_ID, MODEL_DIR; MODELSCOPE_API_TOKEN, else MODELSCOPE_TOKEN, "
        "else the stored login.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--repo-id", default=env("REPO_ID", DEFAULT_REPO), help="repo to upload to, OWNER/NAME")
    add("--model-dir", default=env("MODEL_DIR", DEFAULT_FOLDER), help="folder to upload")
    add("--token", default="", help="ModelScope token")
    add("--commit-message", default="upload model folder", help="message of the commit")
    return parser.parse_args()


def main() -> int:
    """Check the arguments, log in, upload the folder; return the exit code."""
    args = _parse_args()
    repo_id, folder = args.repo_id.strip(), Path(os.path.expanduser(args.model_dir))
    token = args.token.strip() or _env_token()
    keep_secret(token, *(os.environ.pop(name, "") for name in TOKENS))  # not for the SDK
    guard_sdk()
    try:
        if fault := find_fault(repo_id, args.model_dir, folder):
            print(f"ERROR: {fault}", file=sys.stderr)
            return 1
        warn_about_key_files(folder)
        check_sdk(token)
        api = HubApi()
        if token:
            api.login(token)
        else:
            print("WARNING: 未提供 token，将尝试使用本机已保存的登录信息。", file=sys.stderr)
        print(f"Uploading folder: {hide(str(folder))}  -->  {hide(repo_id)}")
        api.upload_folder(
            repo_id=repo_id, folder_path=folder.absolute(), commit_message=args.commit_message
        )
    except Exception as error:  # whatever it is, it ends as a failed upload
        print(f"ERROR: 上传失败：{error!r}", file=sys.stderr)
        advise(error)
        if not token:
            print("请设置 MODELSCOPE_API_TOKEN 或使用 --token 后重试。", file=sys.stderr)
        return 1
    if not CHECKED:  # nothing went through the guard
        print(UNCHECKED, file=sys.stderr)
    print("Upload finished.")
    return 0


def find_fault(repo_id: str, model_dir: str, folder: Path) -> str:
    """Return what is wrong with the arguments, or an empty string."""
    if not repo_id:
        return "仓库 ID 为空，请检查 REPO_ID 或 --repo-id。"
    if repo_id.count("/") != 1 or repo_id.strip("/") != repo_id:
        return f"仓库 ID 应为 OWNER/NAME：{repo_id}"
    if not model_dir.strip():
        return "模型目录为空，请检查 MODEL_DIR 或 --model-dir。"
    if not folder.exists():
        return f"模型目录不存在：{folder}"
    return "" if folder.is_dir() else f"不是目录：{folder}"


def warn_about_key_files(folder: Path) -> None:
    if missing := [name for name in KEY_FILES if not (folder / name).is_file()]:
        print(
            f"WARNING: 目录缺少关键文件：{missing}",
            "  - 上传的是完整模型目录时，这通常意味着导出目录不对，请检查 --model-dir。",
            "  - 上传的是 LoRA adapter 时，可忽略该 warning。",
            sep="\n",
            file=sys.stderr,
        )


# --- the guard at the SDK's door ------------------------------------------------------------------

Digests = dict[str, Callable[[], str]]  # by name, what gives the sha256 of a file

CHECKED: set[Path] = set()  # folders that came through the guard


def guard_sdk() -> None:
    """Wrap `modelscope_hub.HubApi.upload_folder`, through which all uploads of a folder pass.

    An SDK that has none, or whose `upload_folder` takes no record, stays as it is.
    """
    if SDK_ERROR:  # `check_sdk` raises it
        return
    try:
        from modelscope_hub import HubApi as Hub
        from modelscope_hub import HubConfig

        upload_folder = Hub.upload_folder
    except (ImportError, AttributeError):
        return
    with contextlib.suppress(Exception):  # a stored login that cannot be read, the SDK tells
        keep_secret(HubConfig().token or "")

    def guarded(api: Any, repo_id: str, repo_type: str, folder_path: Path, **call: Any) -> Any:
        folder = Path(folder_path).absolute()
        door = functools.partial(upload_folder, api, repo_id, repo_type, folder, **call)
        return guard(api, repo_id, folder, door)

    if "tracker_path" in inspect.signature(upload_folder).parameters:
        Hub.upload_folder = guarded


def guard(api: Any, repo_id: str, folder: Path, door: Callable[..., Any]) -> Any:
    """Check the repo and the folder, let the SDK upload, and compare the hub's list with it.

    `door` is the SDK's `upload_folder` for this repo and folder. Raises ValueError for a folder
    that cannot go up whole, LookupError for a missing repo, RuntimeError when the hub does not
    hold the folder afterwards, and what the SDK raises.
    """
    sizes, ignored = list_folder(folder)
    refuse_missing_repo(api, repo_id)
    CHECKED.add(folder)
    few_threads = has_few_threads()  # the SDK needs them
    with hash_files(folder, sizes, few_threads) as digests:
        compare = functools.partial(find_missing, api, repo_id, sizes, digests)
        try:
            missing = compare(strict=True)
        except Exception:  # a failed probe proves nothing
            missing = list(sizes)
        if sizes and not missing:
            print("The hub has all of it already; nothing is sent.", file=sys.stderr)
            return None
        record = find_record(repo_id, folder)
        kept = {"use_cache": record is not None, "tracker_path": record}
        door = functools.partial(door, ignore_patterns=ignored, **kept)
        for _ in range(2):
            remembered = record is not None and record.exists()
            commits = send(door, sizes, missing, few_threads)
            missing = await_list(compare, LIST_SECONDS if commits else 0)
            if not (missing and remembered):
                break
            record.unlink()  # the hub has lost what the SDK remembers as committed
    if missing:
        raise RuntimeError(f"上传后 {repo_id} 中缺少或不同于本地的文件：{missing}")
    return commits


def list_folder(folder: Path) -> tuple[dict[str, int], list[str]]:
    """Return the size in bytes of each file that goes up, and patterns for what stays behind.

    Raises ValueError for the SDK's own folder, and for what the SDK would leave out without a word.
    """
    from modelscope_hub import HubConfig

    logins, folder = HubConfig().config_dir, folder.resolve()
    if folder.is_relative_to(logins):
        raise ValueError(f"{folder} 是 SDK 保存登录信息的目录，不会上传")
    sizes, kept_back, bad = {}, [], []
    for path in walk(folder, logins):
        name = path.relative_to(folder).as_posix()
        if any(fnmatch.fnmatch(path.name.lower(), pattern) for pattern in SECRET_FILES):
            kept_back.append(name)
        elif path.is_file() and name == name.encode(errors="replace").decode():
            sizes[name] = path.stat().st_size
        else:
            (bad if path.is_file() or path.is_symlink() else kept_back).append(name)
    if bad:
        raise ValueError(f"无法上传的条目（失效或指向目录的链接、名称不是 UTF-8）：{sorted(bad)}")
    if kept_back:
        print(f"WARNING: 可能含有密钥，或不是普通文件，不会上传：{kept_back}", file=sys.stderr)
    ignored = [glob.escape(name) for name in kept_back]
    for name in (*NOT_MODEL, glob.escape(os.path.relpath(logins, folder))):
        ignored += [name, f"{name}/*", f"*/{name}", f"*/{name}/*"]
    return sizes, ignored


def walk(folder: Path, logins: Path) -> Iterator[Path]:
    """Give each entry that is not a folder, but for those of NOT_MODEL and the SDK's logins.

    Raises OSError for a folder that cannot be read, ValueError for one that the hub could not list.
    """
    from modelscope_hub.constants import REPO_FILES_TRUNCATION_LIMIT as LIMIT

    errors = []
    for root, folders, files in os.walk(folder, onerror=errors.append):
        folders[:] = [n for n in folders if n not in NOT_MODEL and Path(root, n) != logins]
        if len(folders) + len(files) >= LIMIT:
            raise ValueError(f"目录内不少于 {LIMIT} 项，上传后无法列全：{root}")
        links = [name for name in folders if Path(root, name).is_symlink()]
        yield from (Path(root, name) for name in links + files if name not in NOT_MODEL)
    if errors:
        raise errors[0]


def refuse_missing_repo(api: Any, repo_id: str) -> None:
    """Raise LookupError for a missing repo, and keep the SDK from creating one, for all to see.

    Both probes must agree, as hubs have denied repos that exist. NetworkError is raised when
    neither reaches the hub; the SDK would try for ten minutes.
    """
    from modelscope_hub import NetworkError, NotExistError

    api.create_repo = lambda *args, **settings: None
    unreachable = False
    for probe in (api.list_repo_revisions, api.repo_exists):
        try:
            if probe(repo_id, "model"):
                return
        except NotExistError:
            continue
        except NetworkError:
            if unreachable:
                raise
            unreachable = True
        except Exception:  # a failed probe proves nothing
            return
    if unreachable:
        return
    create = f"modelscope create {repo_id} --repo-type model --visibility private"
    raise LookupError(f"仓库 {repo_id} 不存在，或当前登录无权查看；创建：{create}")


@contextlib.contextmanager
def hash_files(folder: Path, names: Iterable[str], few_threads: bool) -> Iterator[Digests]:
    """Give the digest of each file, hashed in threads while the SDK sends.

    The SDK hashes the files too, before it sends them, so these threads get the lowest priority
    where a thread has its own.
    """
    from modelscope_hub.utils import compute_hash

    def digest(name: str) -> str:
        with contextlib.suppress(OSError):  # gone meanwhile: the hub can't have it
            return compute_hash(folder / name, "sha256")
        return ""

    hashes = {name: functools.partial(digest, name) for name in names}
    nice = functools.partial(os.nice, 19) if sys.platform == "linux" else None
    pool = ThreadPoolExecutor(2, initializer=nice)
    try:
        yield hashes if few_threads else {n: pool.submit(h).result for n, h in hashes.items()}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def find_record(repo_id: str, folder: Path) -> Path | None:
    """Return the path of the SDK's record of commits, or None if that lies inside the folder."""
    from modelscope_hub import HubConfig

    config = HubConfig()
    key = hashlib.sha256(repr((config.endpoint, repo_id, str(folder))).encode()).hexdigest()
    record = config.cache_dir / "uploads" / f"{key[:32]}.json"
    return None if record.is_relative_to(folder.resolve()) else record


def send(
    door: Callable[..., Any], sizes: dict[str, int], missing: list[str], few_threads: bool
) -> Any:
    """Let the SDK upload, and return its commits; large blobs, which can't resume, few at once."""
    from modelscope_hub.constants import UPLOAD_BLOB_PROGRESS_THRESHOLD_BYTES as LARGE
    from modelscope_hub.constants import UPLOAD_MAX_CONCURRENT_WORKERS as LARGE_AT_ONCE

    small = max(sizes.values(), default=0) <= LARGE
    # The hub may refuse unchanged files. Not for many, as the SDK tries each pattern on each name.
    only = [glob.escape(name) for name in missing] if len(missing) <= FEW else None
    total = sum(sizes[name] for name in missing)
    print(f"{len(missing)} of {len(sizes)} files, {total} bytes to upload", file=sys.stderr)
    with contextlib.suppress(locale.Error):  # the SDK reads its record in the locale's encoding
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    with open_bar(total) as bar, contextlib.redirect_stdout(sys.stderr):
        return door(
            allow_patterns=only,
            max_workers=1 if few_threads else SMALL_AT_ONCE if small else LARGE_AT_ONCE,
            disable_tqdm=not sys.stderr.isatty(),
            progress_callback=lambda event: bar.update(
                max(event["uploaded_bytes"], event["committed_bytes"]) - bar.n
            ),
        )


def find_missing(
    api: Any, repo_id: str, sizes: dict[str, int], digests: Digests, strict: bool = False
) -> list[str]:
    """Return the files that the hub does not list as they are here, by size and by digest.

    A file that is listed without a digest counts as missing where the comparison is `strict`.
    """
    there = {file.path: file for file in api.list_repo_files(repo_id, "model")}

    def is_same(name: str) -> bool:
        if name not in there or there[name].size not in (0, sizes[name]):  # 0: it may be unknown
            return False
        digest = there[name].sha256
        return digest.lower() == digests[name]() if digest else not strict

    return sorted(name for name in sizes if not is_same(name))


def await_list(compare: Callable[[], list[str]], seconds: float) -> list[str] | None:
    """Compare for up to `seconds` until nothing is missing; return what is, or None for no list."""
    from modelscope_hub.constants import REPO_TREE_LIST_TIMEOUT_SECONDS as LIMIT

    deadline = time.monotonic() + min(seconds, LIMIT)
    for delay in itertools.chain((1, 2), itertools.repeat(5)):
        try:
            missing = compare()
        except Exception as error:  # a failed probe proves nothing
            missing, cause = None, error
        if missing == [] or time.monotonic() + delay > deadline:
            break
        if delay == 2:
            print(f"等待仓库的文件列表显示这次提交，最多 {seconds} 秒…", file=sys.stderr)
        time.sleep(delay)
    if missing is None:
        print(f"WARNING: 无法读取仓库的文件列表，上传结果未核对：{cause!r}", file=sys.stderr)
    return missing


# From here on the same as in `download_model.py`: each script is copied alone.


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
