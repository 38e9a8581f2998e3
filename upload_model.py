#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["modelscope==1.40.2", "modelscope-hub==0.5.1"]
# ///
"""Upload a local model folder to a ModelScope repo.

Made for what comes before the build of an image: a quantised or merged model goes up, so that the
build can download it. Exit code 0 means that the hub lists every file of the folder with its
digest; 1, it failed. The SDK moves the bytes; what is added here makes its result true.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NoReturn, TextIO

DEFAULT_REPO = "YukinoStuki/Qwen3-4B-Plus-LLM-AWQ"
DEFAULT_FOLDER = "model/YukinoStuki/Qwen3-4B-Plus-LLM-AWQ"
DEFAULT_MESSAGE = "upload model folder"
PROGRESS_SECONDS = 10  # between two lines of progress, where there is no terminal

# The SDK reads these when it is imported; what the user has set stays.
SETTINGS = {
    # A hub that has a whole blob and says nothing would be waited for an hour, then tried again.
    "MODELSCOPE_UPLOAD_BLOB_READ_TIMEOUT_SECONDS": "600",
    # Small files wait for answers, not for the link; as many connections as the SDK keeps open.
    "MODELSCOPE_UPLOAD_MAX_CONCURRENT_WORKERS": "32",
}

BATCH = 64  # blobs that the hub is asked about at once, as by the SDK

# A full model has these; an adapter may do without.
KEY_FILES = ("config.json", "tokenizer_config.json")
# What the SDK leaves behind anyway, at any depth: version control, caches, its own bookkeeping.
NOT_MODEL = (".git", ".cache", ".ms_upload_cache", ".ms_upload_progress")
# What a model has no use for, and a public repo must not show.
SECRET_FILES = (".env", ".env.*", ".netrc", ".git-credentials", "*.pem", "id_rsa*", "id_ed25519*")

SECRETS: set[str] = set()  # what `hide_token` hides
SCRATCH: list[str] = []  # what `interrupt` removes


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End with 1, as every failure does; show nothing that was typed: it may be a token."""
        self.print_usage(sys.stderr)
        self.exit(1, f"{self.prog}: error: an unknown option, or one without its value\n")


def _env_token() -> str:
    """Return the token of the environment, or an empty string; a blank variable is none."""
    names = ("MODELSCOPE_API_TOKEN", "MODELSCOPE_TOKEN")
    return next(filter(None, (os.environ.get(name, "").strip() for name in names)), "")


def _parse_args() -> argparse.Namespace:
    """Parse the command line; the environment gives the defaults, as the document lists them."""
    env = os.environ.get
    parser = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--repo-id",
        default=env("REPO_ID", DEFAULT_REPO),
        help=f"repo to upload to, OWNER/NAME (default: $REPO_ID, else {DEFAULT_REPO})",
    )
    parser.add_argument(
        "--model-dir",
        default=env("MODEL_DIR", DEFAULT_FOLDER),
        help=f"folder to upload (default: $MODEL_DIR, else {DEFAULT_FOLDER})",
    )
    parser.add_argument(
        "--token",
        default="",
        help="ModelScope token (default: $MODELSCOPE_API_TOKEN, else $MODELSCOPE_TOKEN, "
        "else the stored login, if any)",
    )
    parser.add_argument(
        "--commit-message",
        default=DEFAULT_MESSAGE,
        help=f"commit message (default: {DEFAULT_MESSAGE})",
    )
    return parser.parse_args()


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
    for folder in SCRATCH:
        shutil.rmtree(folder, ignore_errors=True)
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
        print("WARNING: 未提供 token，将尝试使用本机已有的 modelscope 登录。", file=sys.stderr)
        return
    if not (token.isascii() and token.isprintable()):
        raise ValueError("the token holds characters that no token has; copy it once more")
    HubApi().login(token)


def find_fault(repo_id: str, model_dir: str) -> str:
    """Return what is wrong with the arguments, or an empty string."""
    folder = os.path.expanduser(model_dir)
    if not repo_id:
        return "仓库 ID 为空，请检查 REPO_ID 或 --repo-id。"
    if repo_id.count("/") != 1 or repo_id.strip("/") != repo_id:
        return f"仓库 ID 应为 OWNER/NAME：{repo_id}"
    if not model_dir.strip():
        return "模型目录为空，请检查 MODEL_DIR 或 --model-dir。"
    if not os.path.exists(folder):
        return f"模型目录不存在：{folder}"
    return "" if os.path.isdir(folder) else f"不是目录：{folder}"


def list_files(folder: Path) -> list[str]:
    """Return the names of the files in `folder` that are to go up.

    Raises OSError for a folder that cannot be read, and ValueError for what the SDK would leave
    out without a word, or what the hub cannot list for a download.
    """
    from modelscope_hub.constants import REPO_FILES_TRUNCATION_LIMIT as LIMIT

    names, bad = [], []
    for root, folders, files in os.walk(folder, onerror=raise_error):
        folders[:] = [name for name in folders if name not in NOT_MODEL]
        paths = [Path(root, name) for name in files if name not in NOT_MODEL]
        bad += [path for path in paths if not path.is_file() or has_odd_name(path)]
        bad += [path for path in (Path(root, name) for name in folders) if path.is_symlink()]
        bad += [Path(root)] if len(folders) + len(paths) >= LIMIT else []
        names += [path.relative_to(folder).as_posix() for path in paths]
    if bad:
        shown = sorted(path.relative_to(folder).as_posix() for path in bad)
        raise ValueError(
            f"目录中有无法上传的条目（失效或指向目录的链接、管道、套接字、"
            f"名称含反斜杠或不是 UTF-8、或目录内不少于 {LIMIT} 项）：{shown}"
        )
    return names


def has_odd_name(path: Path) -> bool:
    """Tell whether the hub cannot hold the name, or a download would refuse it."""
    return "\\" in path.name or path.name != path.name.encode(errors="replace").decode()


def raise_error(error: OSError) -> NoReturn:
    raise error


def warn(folder: Path, names: list[str]) -> list[str]:
    """Warn of key files that are missing and of files that hold secrets; return the latter."""
    if missing := [name for name in KEY_FILES if name not in names]:
        print(
            f"WARNING: 目录缺少关键文件：{missing}",
            "  - 上传的是完整模型目录时，这通常意味着导出目录不对，请检查 --model-dir。",
            "  - 上传的是 LoRA adapter 时，可忽略该 warning。",
            sep="\n",
            file=sys.stderr,
        )
    secret = [n for n in names if any(fnmatch(Path(n).name, pattern) for pattern in SECRET_FILES)]
    if secret:
        print(f"WARNING: 以下文件可能含有密钥，不会上传：{secret}", file=sys.stderr)
    return secret


def upload(repo_id: str, folder: Path, names: list[str], left_out: list[str], message: str) -> None:
    """Upload `folder` but for `left_out` as a commit to the `master` of a repo that exists.

    Raises LookupError for a missing repo, RuntimeError when the hub does not hold the folder
    afterwards, and what the SDK raises.
    """
    # `modelscope.hub.api` hands on to this one, and imports torch first where it is installed.
    from modelscope_hub import HubApi
    from modelscope_hub._upload import UploadTracker

    api = HubApi()
    if not api.repo_exists(repo_id, "model"):
        raise LookupError(
            f"仓库 {repo_id} 不存在，或当前登录无权查看；"
            f"创建：modelscope create {repo_id} --repo-type model --visibility private"
        )
    api.uploader._create_repo_fn = None  # it would make a missing repo, for all to see
    print(f"Uploading folder: {folder}  -->  {repo_id}")
    # The SDK's record of digests is believed by its next run, whatever the hub has lost since: so
    # each run has a new one, and not in the folder. Its report is no result of ours.
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        SCRATCH.append(scratch)
        record = Path(scratch, "record")
        api.upload_folder(
            repo_id=repo_id,
            repo_type="model",
            folder_path=folder,
            commit_message=message,
            ignore_patterns=[glob.escape(name) for name in left_out],
            use_cache=True,
            tracker_path=record,
        )
        sent = read_record(UploadTracker(record, repo_id), folder, set(names) - set(left_out))
    check_upload(api, repo_id, sent)


def read_record(record: Any, folder: Path, names: set[str]) -> dict[str, tuple[str, int]]:
    """Return the digest and the size in bytes of each file as it was sent.

    The digest is empty for a file that has another size or time by now.
    """
    sent = {}
    for name in names:
        stat = os.stat(folder / name)
        known = record.get_hash(name, stat.st_mtime, stat.st_size) or {"file_hash": ""}
        sent[name] = (known["file_hash"], stat.st_size)
    return sent


def check_upload(api: Any, repo_id: str, sent: dict[str, tuple[str, int]]) -> None:
    """Raise RuntimeError unless the hub holds each file with the digest that was sent."""
    for pause in (0, 1, 2, 4):  # a hub of many machines may take a moment to show a commit
        time.sleep(pause)
        with ThreadPoolExecutor() as pool:
            finders = [pool.submit(find, api, repo_id, sent) for find in (find_unlisted, find_lost)]
        if not (missing := sorted(set().union(*(finder.result() for finder in finders)))):
            return
    raise RuntimeError(f"上传后 {repo_id} 中缺少或不同于本地的文件：{missing}")


def find_unlisted(api: Any, repo_id: str, sent: dict[str, tuple[str, int]]) -> set[str]:
    """Return the files that the hub does not list, or lists with another digest."""
    listed = {file.path: file.sha256 for file in api.list_repo_files(repo_id, "model")}
    return {name for name, (digest, _) in sent.items() if listed.get(name) != digest}


def find_lost(api: Any, repo_id: str, sent: dict[str, tuple[str, int]]) -> set[str]:
    """Return the files whose blob the hub would take once more: its storage has lost it."""
    from modelscope_hub._upload import _is_lfs  # which files are blobs is the SDK's own rule

    blobs = {name for name, (_, size) in sent.items() if size and _is_lfs(name, size, "model")}
    objects = [{"oid": oid, "size": size} for oid, size in {sent[name] for name in blobs}]
    wanted = set()
    for start in range(0, len(objects), BATCH):
        answer = api.legacy.validate_blobs(repo_id, "model", objects[start : start + BATCH])
        wanted |= {oid for oid, address in answer.items() if address}
    return {name for name in blobs if sent[name][0] in wanted}


class Failures(logging.Handler):
    """Collects which files the SDK gave up, and why: its exception only counts them."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        match record.args:
            case (str(path), str(), Exception() as cause):
                self.lines.append(f"    {' '.join(path.splitlines())}: {cause!r}")


def main() -> int:
    """Upload the folder and return the exit code."""
    signal.signal(signal.SIGINT, interrupt)
    args = _parse_args()
    repo_id, folder = args.repo_id.strip(), Path(os.path.expanduser(args.model_dir))
    token = args.token.strip() or _env_token()
    set_up_streams(token)
    adjust_sdk()
    if fault := find_fault(repo_id, args.model_dir):
        print(f"ERROR: {fault}", file=sys.stderr)
        return 1
    logging.getLogger("modelscope_hub.upload").addHandler(failures := Failures())
    try:
        names = list_files(folder)
        left_out = warn(folder, names)
        login(token)
        upload(repo_id, folder, names, left_out, args.commit_message)
    except Exception as error:  # whatever it is, the document wants it printed and turned to 1
        lines = [f"ERROR: 上传失败：{error!r}", *failures.lines]
        hint = "请设置 MODELSCOPE_API_TOKEN 或使用 --token 后重试。"
        print(*map(hide_token, lines), *([] if token else [hint]), sep="\n", file=sys.stderr)
        return 1
    print("Upload finished.")
    return 0


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
