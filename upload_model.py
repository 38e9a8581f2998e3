#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["modelscope==1.40.2", "modelscope-hub==0.5.1"]
# ///
"""Upload a local model folder to a ModelScope repo.

The SDK does the work; exit code 0 means that the hub lists every file of the folder as it is here.
"""

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
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TextIO

# Read at the SDK's import: seconds to wait for the answer to a blob (the SDK's default: an hour).
os.environ.setdefault("MODELSCOPE_UPLOAD_BLOB_READ_TIMEOUT_SECONDS", "600")
if __name__ == "__main__":  # the SDK would import torch, which takes seconds and may fail
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]

try:
    import modelscope_hub  # the layer below `modelscope`; only its HubApi lists digests
    from modelscope.hub.api import HubApi
    from modelscope_hub import constants
    from modelscope_hub.utils import compute_hash
    from tqdm import auto, tqdm
except Exception as error:  # missing, too old, or broken by a bad setting
    sys.exit(f"{error!r}\nTo install the SDK: pip install modelscope==1.40.2 modelscope-hub==0.5.1")

DEFAULT_REPO = "YukinoStuki/Qwen3-4B-Plus-LLM-AWQ"
DEFAULT_FOLDER = "model/YukinoStuki/Qwen3-4B-Plus-LLM-AWQ"
# Left out: version control, caches, what the SDK keeps of downloads and uploads.
SKIPPED = {".git", ".cache", ".modelscope", "._____temp", ".msc", ".mdl", ".mv", ".lock"}
SKIPPED |= {constants.UPLOAD_CACHE_FILE, constants.UPLOAD_LEGACY_PROGRESS_FILE}
# Left out with a warning: secrets, logins, unfinished downloads, what macOS adds to a share.
WARNED_OF = [".env", ".env.*", ".netrc", ".git-credentials", "*.pem", "id_rsa*", "id_ed25519*"]
WARNED_OF += [f"credentials/{name}" for name in ("cookies", "git_token", "session", "user")]
WARNED_OF += ["*.incomplete", "*.parallel_tmp", f"*.*_[0-9]*_{'[0-9]' * 6}*[0-9]", "._*"]
NAMES_AT_ONCE = 200  # for a call of the SDK, which matches each with every file of the folder
SMALL_AT_ONCE = 32  # small files wait for answers, not for the link
Sizes = dict[str, int]  # by name, in bytes


def _env_token() -> str:
    """Return the token of the environment, or an empty string; a blank variable is none."""
    tokens = (os.environ.get(name, "").strip(AROUND) for name in TOKENS)
    return next(filter(None, tokens), "")


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
    hide_tokens(args.token)  # and unset the variables, which have been read
    try:
        folder = check_arguments(args.repo_id, args.model_dir)
        if token:
            log_in(token)
        else:
            warn("WARNING: 未提供 token，将尝试使用本机已保存的登录信息。")
        say(f"Uploading folder: {folder}  -->  {args.repo_id}")
        show_progress(0, lambda: upload(args.repo_id, folder.resolve(), args.commit_message))
    except PlainError as error:
        warn(f"ERROR: {error}")
    except Exception as error:  # whatever it is, it ends as a failed upload
        warn(f"ERROR: 上传失败：{error!r}")
        advise(error)
        if not token:
            warn("请设置 MODELSCOPE_API_TOKEN 或使用 --token 后重试。")
    else:
        say("Upload finished.")
        return 0
    return 1


class PlainError(Exception):
    """Reported as it is: a wrong argument, or an upload that could not be verified."""


def check_arguments(repo_id: str, model_dir: str) -> Path:
    """Return the folder; raise PlainError if it is missing, and warn if key files are."""
    if not re.fullmatch("[^/]+/[^/]+", repo_id):
        raise PlainError(f"仓库 ID 应为 OWNER/NAME：{repo_id!r}（--repo-id / REPO_ID）")
    folder = Path(model_dir).expanduser()
    if not model_dir or not folder.is_dir():
        raise PlainError(f"模型目录不存在，或不是目录：{model_dir!r}（--model-dir / MODEL_DIR）")
    key_files = ("config.json", "tokenizer_config.json")
    if missing := [name for name in key_files if not (folder / name).is_file()]:
        warn(f"WARNING: 目录缺少关键文件：{missing}")
        warn("  - 上传的是完整模型目录时，这通常意味着导出目录不对，请检查 --model-dir。")
        warn("  - 上传的是 LoRA adapter 时，可忽略该 warning。")
    return folder


def upload(repo_id: str, folder: Path, message: str) -> None:
    """Upload a resolved `folder`; raise unless the hub lists all of it in the end."""
    sizes = list_folder(folder)
    require_repo(repo_id)
    pool = ThreadPoolExecutor(1)  # hashes while the SDK sends
    digests = {name: pool.submit(compute_hash, folder / name, "sha256") for name in sizes}
    missing = sizes
    # Without a usable list, upload all. A NetworkError ends the run: the hub cannot be reached.
    with contextlib.suppress(modelscope_hub.APIError, ValueError, TypeError, AttributeError):
        missing = find_missing(repo_id, sizes, digests, strict=True)
    warn(f"{len(missing)} of {len(sizes)} files to upload; the hub has the rest")
    if missing:
        Progress.bar.total = sum(missing.values())
        send_files(repo_id, folder, message, missing)
        await_list(repo_id, sizes, digests)


# --- the folder, and the hub's list ---------------------------------------------------------------


def list_folder(folder: Path) -> Sizes:
    """Return the files to upload; warn about those that are left out."""
    credentials = modelscope_hub.get_default_config().credentials_dir.resolve()
    sizes, kept_back = {}, []
    for path in walk(folder):
        name = path.relative_to(folder).as_posix()
        is_excluded = any(map(Path(name.lower()).match, WARNED_OF))
        is_excluded |= path.resolve().is_relative_to(credentials)
        if path.is_file() and not is_excluded:
            sizes[name] = path.stat().st_size
        else:
            kept_back.append(name)
    if kept_back:
        warn(f"WARNING: 可能含有密钥、未下载完或不是普通文件，不会上传：{kept_back}")
    if not sizes:
        raise ValueError(f"没有可以上传的文件：{str(folder)!r}，不会上传的：{kept_back}")
    return sizes


def walk(folder: Path) -> Iterator[Path]:
    """Yield each entry that is not a folder; raise for what the SDK would skip silently."""
    for path in sorted(folder.iterdir()):  # raises for a folder that cannot be read
        if path.name in SKIPPED:
            continue
        path.stat()  # raises for a link that leads nowhere
        if not path.is_dir():
            yield path
        elif path.is_symlink():
            raise ValueError(f"指向目录的链接无法上传：{str(path)!r}")
        else:
            yield from walk(path)


def require_repo(repo_id: str) -> None:
    """Raise LookupError for a missing repo, probably a typo: the SDK would create it, public."""
    modelscope_hub.HubApi.create_repo = lambda *args, **settings: None  # type: ignore  # never
    api = modelscope_hub.HubApi()
    try:
        found: Any = api.repo_exists(repo_id, "model")
        found = found or api.list_repo_revisions(repo_id, "model")  # 404 may be wrong
    except modelscope_hub.NotExistError:
        found = False
    except Exception:  # a failed probe proves nothing
        found = True
    if not found:
        create = f"modelscope create {repo_id} --repo-type model --visibility private"
        raise LookupError(f"仓库 {repo_id} 不存在，或当前登录无权查看；创建：{create}")


def find_missing(repo_id: str, sizes: Sizes, digests: dict[str, Any], strict: bool) -> Sizes:
    """Return the files that the hub lacks or lists otherwise; if `strict`, or without a digest."""
    missing = dict(sizes)
    for file in modelscope_hub.HubApi().list_repo_files(repo_id, "model"):
        if file.path in sizes:
            same_size = file.size in (0, sizes[file.path])  # 0: it may be unknown
            same = file.sha256 == digests[file.path].result() if file.sha256 else same_size
            if same and (file.sha256 or not strict):
                missing.pop(file.path, None)
    return missing


def await_list(repo_id: str, sizes: Sizes, digests: dict[str, Any]) -> None:
    """Wait until nothing is missing in the hub's list, which may lag behind a commit."""
    deadline = time.monotonic() + min(60, constants.REPO_TREE_LIST_TIMEOUT_SECONDS)
    for tries in range(1, 99):  # until the deadline
        try:
            missing, cause = find_missing(repo_id, sizes, digests, strict=False), None
        except Exception as error:  # whatever keeps the list from being read
            missing, cause = {}, error
        if time.monotonic() > deadline or not (missing or cause):
            break
        if tries == 3:
            warn("等待仓库的文件列表显示这次提交，最多 60 秒…")
        time.sleep(min(tries, 5))
    if cause:
        raise PlainError(f"已全部上传到 {repo_id}，但文件列表读不到，未核对，请再运行：{cause!r}")
    if missing:
        raise RuntimeError(f"上传后 {repo_id} 中缺少或不同于本地的文件：{list(missing)}")


class Progress:
    """Its `update` replaces that of the SDK's bars, one for each file; all count into this one."""

    bar: ClassVar[Any]

    def update(self, size: int) -> None:
        with Progress.bar.get_lock():  # files go in threads
            Progress.bar.update(min(size, Progress.bar.total - Progress.bar.n))


def send_files(repo_id: str, folder: Path, message: str, missing: Sizes) -> None:
    """Let the SDK upload what is missing, in shares."""
    auto.tqdm.update = Progress.update  # called by the SDK also where it shows no bar
    all_small = max(missing.values()) <= constants.UPLOAD_BLOB_PROGRESS_THRESHOLD_BYTES
    api, names = HubApi(), list(missing)
    for start in range(0, len(names), NAMES_AT_ONCE):
        with contextlib.redirect_stdout(sys.stderr):  # the SDK prints a report
            api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=message,
                allow_patterns=list(map(glob.escape, names[start : start + NAMES_AT_ONCE])),
                max_workers=SMALL_AT_ONCE if all_small else None,
                use_cache=False,  # no record in the folder
                disable_tqdm=True,
            )
    Progress.bar.update(Progress.bar.total - Progress.bar.n)  # what went in commits, not as blobs


# --- the same in `download_model.py`, as each script is copied alone ------------------------------
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
