#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["modelscope==1.40.2", "modelscope-hub==0.5.1"]
# ///
"""Upload a local model folder to a ModelScope repo.

The SDK does the work; exit code 0 means that the hub lists every file as it is here."""

import argparse
import contextlib
import functools
import glob
import itertools
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TextIO

if __name__ == "__main__":  # the SDK would import torch, which takes seconds and may fail
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]

try:
    import modelscope_hub  # the layer below `modelscope`; only its HubApi lists digests
    from modelscope.hub.api import HubApi
    from modelscope_hub import constants, errors
    from modelscope_hub.utils import compute_hash
    from tqdm import auto, tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm
except (AttributeError, ImportError) as error:  # missing, or too old
    sys.exit(f"{error!r}\nTo install the SDK: pip install modelscope==1.40.2 modelscope-hub==0.5.1")
except Exception as error:  # no home for this user, a bad setting
    sys.exit(f"{error!r}\nThe SDK cannot start: check HOME and the MODELSCOPE_ variables.")

DEFAULT_REPO = "YukinoStuki/Qwen3-4B-Plus-LLM-AWQ"
DEFAULT_FOLDER = "model/YukinoStuki/Qwen3-4B-Plus-LLM-AWQ"
# Left out silently: caches, and what the SDK leaves behind after downloads and uploads.
SKIPPED = {".git", ".cache", ".modelscope", "__pycache__", "lost+found", ".lock"}
SKIPPED |= {"._____temp", ".msc", ".mdl", ".mv", ".ms_upload_cache", ".ms_upload_progress"}
# Left out with a warning: secrets, logins, unfinished downloads, what macOS adds to a share.
HELD_BACK = [".env", ".env.*", ".netrc", ".git-credentials", "*.pem", "id_rsa*", "id_ed25519*"]
HELD_BACK += [f"credentials/{name}" for name in ("cookies", "git_token", "session", "user")]
HELD_BACK += ["*.incomplete", "._*"]
LOADED = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".index.json")  # what servers pick up
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # how a pointer file begins
AGAIN = "请再运行一次同一命令（已传的不会重传）。"
Sizes = dict[str, int]  # by name, in bytes


def _env_token() -> str:
    """Return the token of the environment, or an empty string; a blank variable is none."""
    first, second = (clean(os.environ.get(name, "")) for name in TOKEN_VARIABLES)
    return first or second


def _parse_args() -> argparse.Namespace:
    """Parse the command line; the environment gives the defaults."""
    env = os.environ.get
    parser = Parser(description="Upload a model folder to ModelScope.", allow_abbrev=False)
    add = functools.partial(parser.add_argument, type=clean)
    add("--repo-id", default=env("REPO_ID", DEFAULT_REPO), help="OWNER/NAME; default: $REPO_ID")
    add("--model-dir", default=env("MODEL_DIR", DEFAULT_FOLDER), help="folder; default: $MODEL_DIR")
    add("--token", default="", help="default: $MODELSCOPE_API_TOKEN, $MODELSCOPE_TOKEN")
    add("--commit-message", default="upload model folder", type=str, help="message of the commit")
    return parser.parse_args()


def main() -> int:
    """Check the arguments, log in, upload the folder; return the exit code."""
    args = _parse_args()
    token = args.token or _env_token()
    mask_tokens(token)  # only now, as it unsets the variables
    try:
        folder = check_arguments(args.repo_id, args.model_dir)
        if token:
            log_in(token)
        else:
            warn("WARNING: 未提供 token，将尝试使用本机已保存的登录信息。")
        say(f"Uploading folder: {folder}  -->  {args.repo_id}")
        upload(args.repo_id, folder.resolve(), args.commit_message)
    except PlainError as error:
        warn(f"ERROR: {error}")
    except Exception as error:  # whatever it is, it ends as a failed upload
        warn(f"ERROR: 上传失败：{error!r}")
        advise(error)
        if not token:
            hint = "请先设置 MODELSCOPE_API_TOKEN 或使用 --token，也可以运行 modelscope login"
            warn(f"如果还没有登录，{hint}，然后重试。")
    else:
        say("Upload finished.")
        return 0
    return 1


class PlainError(Exception):
    """Shown without its repr: a wrong argument, a missing repo, a list that cannot be read."""


def check_arguments(repo_id: str, model_dir: str) -> Path:
    """Return the folder; raise PlainError if it is missing, and warn if config files are."""
    if not re.fullmatch("[^/]+/[^/]+", repo_id):
        raise PlainError(f"仓库 ID 应为 用户名/仓库名：“{repo_id}”（--repo-id / REPO_ID）")
    folder = Path(model_dir).expanduser()
    if not model_dir or not folder.is_dir():
        raise PlainError(f"模型目录不存在，或不是目录：“{model_dir}”（--model-dir / MODEL_DIR）")
    key_files = ("config.json", "tokenizer_config.json")
    if missing := [name for name in key_files if not (folder / name).is_file()]:
        warn(f"WARNING: 目录缺少关键文件：{missing}")
        warn("  - 上传的是完整模型目录时，这通常意味着导出目录不对，请检查 --model-dir。")
        warn("  - 上传的是 LoRA adapter 时，可忽略该 warning。")
    return folder


def upload(repo_id: str, folder: Path, message: str) -> None:
    """Upload a resolved `folder`; raise unless the hub lists all of it in the end: PlainError,
    ValueError and OSError for the folder, and what the SDK raises."""
    api = Hub()
    sizes = show_progress(lambda: list_folder(folder))
    listed = show_progress(lambda: list_repo(api, repo_id))
    missing = show_progress(lambda: find_missing(listed, folder, sizes, by_size=False))
    warn(f"共 {len(sizes)} 个文件，需要上传 {len(missing)} 个")
    if missing:
        send_files(api, repo_id, folder, message, {name: sizes[name] for name in missing})
        listed = show_progress(lambda: await_list(api, repo_id, folder, sizes))
    extra = {file.path for file in listed} - sizes.keys()
    if loaded := sorted(name for name in extra if name.lower().endswith(LOADED)):
        warn(f"WARNING: 仓库里有、本地没有的权重，服务可能会加载；多余的请在网页上删除：{loaded}")


class Hub(modelscope_hub.HubApi):
    """The SDK, except that it creates no repo: an upload would create a missing one, public."""

    def create_repo(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        pass


# --- the folder -----------------------------------------------------------------------------------
def list_folder(folder: Path) -> Sizes:
    """Return the files to upload; warn about those that are left out."""
    credentials = modelscope_hub.get_default_config().credentials_dir.resolve()
    sizes, kept_back = {}, []
    for path in walk(folder):
        name = path.relative_to(folder).as_posix()
        is_secret = path.resolve().is_relative_to(credentials)
        if path.is_file() and not is_secret and not any(map(Path(name.lower()).match, HELD_BACK)):
            sizes[name] = path.stat().st_size
        else:
            kept_back.append(name)
    if kept_back:
        warn(f"WARNING: 可能含有密钥、未下载完或不是普通文件，不会上传：{kept_back}")
    small = [name for name, size in sizes.items() if size < 1024]
    if pointers := [name for name in small if (folder / name).read_bytes().startswith(LFS_POINTER)]:
        raise ValueError(f"git-lfs 指针文件，不是模型本身，请先运行 git lfs pull：{pointers}")
    if not sizes:
        raise ValueError(f"没有可以上传的文件：{folder.as_posix()}，不会上传的：{kept_back}")
    return sizes


def walk(folder: Path) -> Iterator[Path]:
    """Yield each entry that is not a folder; raise for what the SDK would skip silently."""
    for path in sorted(each for each in folder.iterdir() if each.name not in SKIPPED):
        path.stat()  # raises for a link that leads nowhere
        if not path.is_dir():
            yield path
        elif path.is_symlink():
            raise ValueError(f"指向目录的链接无法上传：{path.as_posix()}")
        else:
            yield from walk(path)


@functools.cache
def compute_digest(path: Path) -> str:
    """Return a file's SHA-256, computed once: a file that changes later won't match the hub's."""
    path.stat()  # raises where the SDK would tell of a wrong digest
    return compute_hash(path, "sha256")


# --- the hub's list, and the transfer -------------------------------------------------------------
def list_repo(api: Hub, repo_id: str) -> list[Any]:
    """Return what the hub lists, [] if it answers no list; raise PlainError without a repo."""
    try:
        listed = api.list_repo_files(repo_id, "model")
    except (errors.RateLimitError, errors.RequestTimeoutError):
        return []  # so all is sent; it would not answer `repo_exists` either
    except (errors.APIError, ValueError, TypeError, AttributeError, LookupError):
        listed = []  # it is nonsense, or the repo is new and has no list
    if listed or ask(lambda: api.repo_exists(repo_id, "model"), otherwise=True):
        return listed
    hint = "请检查名称和 token（登录 30 天后失效）；新仓库要先创建"
    create = f"modelscope create {repo_id} --repo-type model --visibility private"
    raise PlainError(f"仓库 {repo_id} 不存在，或当前登录无权查看。{hint}：\n{create}")


def find_missing(listed: list[Any], folder: Path, sizes: Sizes, by_size: bool) -> list[str]:
    """Return what the hub lacks or has otherwise; `by_size`: without a digest, the size decides."""
    missing = dict.fromkeys(sizes)
    for file in (each for each in listed if each.path in sizes and not each.is_dir):
        if file.sha256:
            is_same = file.sha256 == compute_digest(folder / file.path)
        else:  # a size of 0 may stand for one that the hub does not know
            is_same = by_size and file.size in (0, sizes[file.path])
        if is_same:
            missing.pop(file.path, None)
    return list(missing)


def send_files(api: Hub, repo_id: str, folder: Path, message: str, missing: Sizes) -> None:
    """Let the SDK upload what is missing; raise the last error that kept a file from being sent."""
    total, sent, lock = sum(missing.values()), 0, threading.Lock()
    failures: list[Exception] = []

    def count(bar: object, size: float = 1) -> None:
        nonlocal sent
        with lock:  # files go in threads
            sent += int(size)

    def keep_failures(record: logging.LogRecord) -> bool:
        failures.extend(each for each in record.args or () if isinstance(each, Exception))
        return True

    # The SDK reports what it sends to bars of tqdm.auto, even hidden ones; our bar is a tqdm.tqdm.
    auto.tqdm.update = count  # type: ignore
    logging.getLogger("modelscope_hub.upload").addFilter(keep_failures)
    are_small = max(missing.values()) <= constants.UPLOAD_BLOB_PROGRESS_THRESHOLD_BYTES
    workers = constants.API_CONNECTION_POOL_MAXSIZE if are_small else None  # None: SDK's default
    options: Any = {"repo_id": repo_id, "repo_type": "model", "folder_path": folder}
    options |= {"commit_message": message, "allow_patterns": list(map(glob.escape, missing))}
    options |= {"use_cache": False, "disable_tqdm": True, "max_workers": workers}
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # the SDK's report
        try:
            show_progress(lambda: api.upload_folder(**options), total, lambda: min(sent, total))
        except errors.StorageError as error:  # it only says how many files have failed
            last = (failures or [error])[-1]
            raise last from last.__cause__  # not from `error`: `advise` follows the causes


def await_list(api: Hub, repo_id: str, folder: Path, sizes: Sizes) -> list[Any]:
    """Return the hub's list once it has everything: it may lag behind a commit."""
    for name in sizes:
        compute_digest(folder / name)  # before the clock starts
    deadline = time.monotonic() + PROBE_SECONDS
    for tries in itertools.count(1):
        try:
            listed, cause = api.list_repo_files(repo_id, "model"), None
        except Exception as error:  # whatever keeps the list from being read
            listed, cause = [], error
        missing = find_missing(listed, folder, sizes, by_size=True)  # no digest: just sent
        if not missing or time.monotonic() > deadline:
            break
        if tries == 3:
            warn("等待仓库的文件列表显示这次提交，约 60 秒…")
        time.sleep(min(tries, 5))
    if cause:
        raise PlainError(f"已全部上传到 {repo_id}，但读不到列表，尚未核对。{AGAIN}原因：{cause!r}")
    if missing:
        hint = f"{AGAIN}仍在写入的文件（如日志）请放到目录之外。"
        raise RuntimeError(f"上传后 {repo_id} 中缺少或不同于本地的文件：{missing}。{hint}")
    return listed


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
