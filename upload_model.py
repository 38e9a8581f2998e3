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
import logging
import os
import re
import signal
import sys
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
    from modelscope_hub import constants
    from modelscope_hub.utils import compute_hash
    from tqdm import auto, tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm
except (AttributeError, ImportError) as error:  # missing, or too old
    sys.exit(f"{error!r}\nTo install the SDK: pip install modelscope==1.40.2 modelscope-hub==0.5.1")
except Exception as error:  # no home for this user, a bad setting
    sys.exit(f"{error!r}\nThe SDK cannot start: check HOME and the MODELSCOPE_ variables.")

DEFAULT_REPO = "YukinoStuki/Qwen3-4B-Plus-LLM-AWQ"
DEFAULT_FOLDER = "model/YukinoStuki/Qwen3-4B-Plus-LLM-AWQ"
SKIPPED = {".git", ".cache", ".modelscope", "._____temp", ".msc", ".mdl", ".mv", ".lock"}
SKIPPED |= {".ms_upload_cache", ".ms_upload_progress"}  # all these are left out silently
# Left out with a warning: secrets, logins, unfinished downloads, what macOS adds to a share.
WARNED_OF = [".env", ".env.*", ".netrc", ".git-credentials", "*.pem", "id_rsa*", "id_ed25519*"]
WARNED_OF += [f"credentials/{name}" for name in ("cookies", "git_token", "session", "user")]
WARNED_OF += ["*.incomplete", "*.parallel_tmp", "._*"]
LOADED = (".safetensors", ".bin", ".gguf", ".index.json")  # what a server picks up in a repo
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # how a pointer file begins
NAMES_AT_ONCE = 200  # `fnmatch` remembers 256 patterns before Python 3.11, one for each name
AGAIN = "请再运行一次同一命令（已传的不会重传）。"
LOGGED: list[Exception] = []  # by the SDK
Sizes = dict[str, int]  # by name, in bytes


def _env_token() -> str:
    """Return the token of the environment, or an empty string; a blank variable is none."""
    first, second = (os.environ.get(name, "").strip(AROUND) for name in TOKEN_VARIABLES)
    return first or second


def _parse_args() -> argparse.Namespace:
    """Parse the command line; the environment gives the defaults."""
    env = os.environ.get
    parser = Parser(description="Upload a model folder to ModelScope.", allow_abbrev=False)
    add = functools.partial(parser.add_argument, type=str.strip)
    add("--repo-id", default=env("REPO_ID", DEFAULT_REPO), help="OWNER/NAME; default: $REPO_ID")
    add("--model-dir", default=env("MODEL_DIR", DEFAULT_FOLDER), help="folder; default: $MODEL_DIR")
    add("--token", default="", help="default: $MODELSCOPE_API_TOKEN, $MODELSCOPE_TOKEN")
    add("--commit-message", default="upload model folder", help="message of the commit")
    return parser.parse_args()


def main() -> int:
    """Check the arguments, log in, upload the folder; return the exit code."""
    args = _parse_args()
    token = args.token.strip(AROUND) or _env_token()
    unset_and_hide_tokens(args.token)  # the variables have been read
    try:
        folder = check_arguments(args.repo_id, args.model_dir)
        if token:
            show_progress(lambda bar: log_in(token))
        else:
            warn("WARNING: 未提供 token，将尝试使用本机已保存的登录信息。")
        say(f"Uploading folder: {folder}  -->  {args.repo_id}")
        show_progress(lambda bar: upload(args.repo_id, folder.resolve(), args.commit_message, bar))
    except PlainError as error:
        warn(f"ERROR: {error}")
    except Exception as error:  # whatever it is, it ends as a failed upload
        cause = LOGGED[-1] if LOGGED and isinstance(error, modelscope_hub.StorageError) else error
        warn(f"ERROR: 上传失败：{cause!r}")
        advise(cause)
        if not token:
            hint = "请先设置 MODELSCOPE_API_TOKEN 或使用 --token，也可以运行 modelscope login"
            warn(f"如果还没有登录，{hint}，然后重试。")
    else:
        say("Upload finished.")
        return 0
    return 1


class PlainError(Exception):
    """Reported as it is: a wrong argument, a missing repo, an upload that is not verified."""


def check_arguments(repo_id: str, model_dir: str) -> Path:
    """Return the folder; raise PlainError if it is missing, and warn if key files are."""
    if not re.fullmatch("[^/]+/[^/]+", repo_id):
        raise PlainError(f"仓库 ID 应为 OWNER/NAME：“{repo_id}”（--repo-id / REPO_ID）")
    folder = Path(model_dir).expanduser()
    if not model_dir or not folder.is_dir():
        raise PlainError(f"模型目录不存在，或不是目录：“{model_dir}”（--model-dir / MODEL_DIR）")
    key_files = ("config.json", "tokenizer_config.json")
    if missing := [name for name in key_files if not (folder / name).is_file()]:
        warn(f"WARNING: 目录缺少关键文件：{missing}")
        warn("  - 上传的是完整模型目录时，这通常意味着导出目录不对，请检查 --model-dir。")
        warn("  - 上传的是 LoRA adapter 时，可忽略该 warning。")
    return folder


def upload(repo_id: str, folder: Path, message: str, bar: Any) -> None:
    """Upload a resolved `folder`; raise unless the hub lists all of it in the end."""
    sizes = list_folder(folder)
    listed = list_repo(repo_id)
    pool = ThreadPoolExecutor(1)  # hashes while the SDK sends
    digests = {name: pool.submit(compute_hash, folder / name, "sha256") for name in sizes}
    missing = find_missing(listed, sizes, digests, strict=True)
    warn(f"共 {len(sizes)} 个文件，需要上传 {len(missing)} 个")
    if missing:
        bar.total = sum(missing.values())
        send_files(repo_id, folder, message, missing, bar)
        sizes = {name: (folder / name).stat().st_size for name in sizes}  # raises if one is gone
        wait(digests.values())  # however long it takes, the list has its full time
        listed = await_list(repo_id, sizes, digests)
    extra = [file.path for file in listed if file.path not in sizes]
    if loaded := [name for name in extra if name.lower().endswith(LOADED)]:
        warn(f"WARNING: 仓库里有、本地没有的权重，服务可能会加载；多余的请在网页上删除：{loaded}")


# --- the folder, and the hub's list ---------------------------------------------------------------
def list_folder(folder: Path) -> Sizes:
    """Return the files to upload; warn about those that are left out."""
    credentials = modelscope_hub.get_default_config().credentials_dir.resolve()
    sizes, kept_back = {}, []
    for path in walk(folder):
        name = path.relative_to(folder).as_posix()
        is_excluded = any(map(Path(name.lower()).match, WARNED_OF)) or is_part(name)
        is_excluded |= path.resolve().is_relative_to(credentials)
        if path.is_file() and not is_excluded:
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


def is_part(name: str) -> bool:
    """Tell whether a name is that of a part of a download: NAME_START_END, cut at whole MiB."""
    if not (found := re.search(r"_(\d+)_(\d+)$", name)):
        return False
    start, end = map(int, found.groups())
    return start % 2**20 == 0 and (start > 0 or (end + 1) % 2**20 == 0)


def list_repo(repo_id: str) -> list[Any]:
    """Return what the hub lists, nothing if it can't be read; raise PlainError without a repo."""
    api = modelscope_hub.HubApi()
    try:
        listed = api.list_repo_files(repo_id, "model")
    except (modelscope_hub.RateLimitError, modelscope_hub.RequestTimeoutError):
        return []  # it would answer no other question either
    except modelscope_hub.NetworkError:  # the hub cannot be reached
        raise
    except Exception:  # whatever it is; a new repo has no list
        listed = []
    exists = listed or ask(lambda: api.repo_exists(repo_id, "model"), True)
    if not (exists or ask(lambda: api.list_repo_revisions(repo_id, "model"), True)):
        create = f"modelscope create {repo_id} --repo-type model --visibility private"
        hint = "请检查名称和 token（MODELSCOPE_API_TOKEN / --token）；新仓库要先创建"
        raise PlainError(f"仓库 {repo_id} 不存在，或当前登录无权查看。{hint}：\n{create}")
    return listed


def find_missing(listed: list[Any], sizes: Sizes, digests: dict[str, Any], strict: bool) -> Sizes:
    """Return the files that the hub lacks or lists otherwise; if `strict`, or without a digest."""
    missing = dict(sizes)
    for file in listed:
        if file.path in sizes:
            same_size = not strict and file.size in (0, sizes[file.path])  # 0: it may be unknown
            same = file.sha256 == digests[file.path].result() if file.sha256 else same_size
            if same:
                missing.pop(file.path, None)
    return missing


def await_list(repo_id: str, sizes: Sizes, digests: dict[str, Any]) -> list[Any]:
    """Return the hub's list once it has everything: it may lag behind a commit."""
    deadline = time.monotonic() + min(60, constants.REPO_TREE_LIST_TIMEOUT_SECONDS)
    for tries in range(1, 99):  # until the deadline
        try:
            listed, cause = modelscope_hub.HubApi().list_repo_files(repo_id, "model"), None
        except Exception as error:  # whatever keeps the list from being read
            listed, cause = [], error
        missing = find_missing(listed, sizes, digests, strict=False)
        if time.monotonic() > deadline or not missing:
            break
        if tries == 3:
            warn("等待仓库的文件列表显示这次提交，最多 60 秒…")
        time.sleep(min(tries, 5))
    if cause:
        raise PlainError(f"已全部上传到 {repo_id}，但读不到列表，尚未核对。{AGAIN}原因：{cause!r}")
    if missing:
        raise RuntimeError(f"上传后 {repo_id} 中缺少或不同于本地的文件：{list(missing)}。{AGAIN}")
    return listed


def send_files(repo_id: str, folder: Path, message: str, missing: Sizes, bar: Any) -> None:
    """Let the SDK upload what is missing, in shares."""

    def count(sdk_bar: object, size: int) -> None:
        with bar.get_lock():  # files go in threads
            bar.update(min(size, bar.total - bar.n))

    # It would create a missing repo, public; and it calls `update` also where it shows no bar.
    modelscope_hub.HubApi.create_repo = lambda *args, **settings: None  # type: ignore
    auto.tqdm.update = count
    options: dict[str, Any] = {"use_cache": False, "disable_tqdm": True}  # it would write a cache
    if max(missing.values()) <= constants.UPLOAD_BLOB_PROGRESS_THRESHOLD_BYTES:
        options["max_workers"] = 32  # small files wait for answers, not for the link
    names = list(missing)
    for start in range(0, len(names), NAMES_AT_ONCE):
        options["allow_patterns"] = list(map(glob.escape, names[start : start + NAMES_AT_ONCE]))
        with contextlib.redirect_stdout(open(os.devnull, "w")):  # its report
            HubApi().upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=message, **options
            )
    bar.update(bar.total - bar.n)  # what went in commits, not as blobs


def filter_log(record: logging.LogRecord) -> bool:
    """Hide the secrets in the SDK's log, and keep its errors: the one it raises sums them up."""
    LOGGED.extend(each for each in record.args or () if isinstance(each, Exception))
    record.msg, record.args = hide(record.getMessage()), ()
    return True


# --- the same in `download_model.py`, as each script is copied alone ------------------------------
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
