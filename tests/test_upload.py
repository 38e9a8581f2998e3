"""What `upload_model.py` promises: its document sentence by sentence, then what makes 0 true."""

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.hub import Fault, Hub, Store
from tests.hub.faults import answers, edit, first, passes, refuse, status
from tests.hub.store import OWN_FILES, Model
from tests.support.cases import (
    BIG,
    FILES,
    IN_TERMINAL,
    MODEL,
    NO_OVERRIDE,
    SOON,
    assert_failed,
    assert_uploaded,
    lists_big,
    posix,
    upload,
    uploaded,
)
from tests.support.client import ROOT, Client, lay, tree

DEFAULT = "YukinoStuki/Qwen3-4B-Plus-LLM-AWQ"
KEY_FILES = ["config.json", "tokenizer_config.json"]
NO_TOKEN = "WARNING: 未提供 token，将尝试使用本机已保存的登录信息。"
HINT = "如果还没有登录，请先设置 MODELSCOPE_API_TOKEN 或使用 --token"
AGAIN = "请再运行一次同一命令（已传的不会重传）。"
UNUSABLE = {"MODEL_DIR": ["", " \r\n", r"C:\no\where", "folder/config.json"]}
UNUSABLE["REPO_ID"] = ["", " \r\n", "model", "/model", "a/b/c"]
HOUR = status(429, Retry_After="3600")


@pytest.fixture(autouse=True)
def repo(store: Store, token: str, folder: Path) -> Model:
    """An empty repo, its owner's token in the environment, and a folder to upload."""
    return store.add(MODEL)


def nothing_sent(hub: Hub) -> bool:
    return not any(map(hub.requests, ("create", "batch", "blob", "commit")))


# --- four options, two streams, two exit codes ----------------------------------------------------


def test_upload_prints_two_lines(client: Client, store: Store, repo: Model) -> None:
    result = upload(client)
    assert_uploaded(store, result)
    assert result.lines == [f"Uploading folder: folder  -->  {MODEL}", "Upload finished."]
    assert repo.messages == ["upload model folder (batch 1/1)"]  # the SDK adds the number
    assert "共 5 个文件，需要上传 5 个" in result.err.splitlines()
    assert result.warnings == []
    assert "\x1b" not in result.err


def test_default_folder_goes_to_the_default_repo(client: Client, store: Store) -> None:
    store.add(DEFAULT)
    lay(client.work / "model" / DEFAULT, FILES)
    env = {"MODELSCOPE_API_TOKEN": store.add_user("YukinoStuki")}
    result = upload(client, REPO_ID=None, MODEL_DIR=None, **env)
    assert result.lines[0] == f"Uploading folder: {Path('model', DEFAULT)}  -->  {DEFAULT}"
    assert uploaded(store, DEFAULT) == FILES


def test_options_win_over_variables(client: Client, hub: Hub, repo: Model, token: str) -> None:
    folder = lay(client.home / "mine", FILES)
    options = ["--repo-id", MODEL, "--model-dir", "~/mine", "--token", token]
    env = {"REPO_ID": "bob/x", "MODEL_DIR": "nowhere", "MODELSCOPE_API_TOKEN": "ms-wrong"}
    result = upload(client, *options, "--commit-message", "量化后的模型 v2", **env)
    assert_uploaded(hub.store, result)
    assert result.lines[0] == f"Uploading folder: {folder}  -->  {MODEL}"
    assert repo.messages == ["量化后的模型 v2 (batch 1/1)"]


@pytest.mark.parametrize("value", ["{}\r\n", ' "{}" \r', "'{}'"])
def test_white_space_and_quotes_around_values_go(
    client: Client, store: Store, token: str, value: str
) -> None:
    """modelscope/facechain#184 had quotes; `test_download.py` names the others."""
    names = {"REPO_ID": MODEL, "MODEL_DIR": "folder", "MODELSCOPE_TOKEN": token}
    env = {name: value.format(names[name]) for name in names}
    assert_uploaded(store, upload(client, "--token", " ", MODELSCOPE_API_TOKEN="\r\n", **env))


@pytest.mark.parametrize(("name", "value"), [(n, v) for n in UNUSABLE for v in UNUSABLE[n]])
def test_unusable_value_is_an_error(client: Client, hub: Hub, name: str, value: str) -> None:
    result = upload(client, **{name: value})
    assert_failed(result, name, f"“{value.strip()}”")
    assert "上传失败" not in result.err
    assert hub.log == []


def test_documented_functions_answer_as_documented(client: Client) -> None:
    script = "import upload_model as u; print([u._env_token()], vars(u._parse_args()), u.main)"
    env = {"MODELSCOPE_API_TOKEN": " ", "MODELSCOPE_TOKEN": " b\t", "PYTHONPATH": str(ROOT)}
    result = client.run(sys.executable, "-B", "-c", script, **env)
    options = {"repo_id": DEFAULT, "model_dir": f"model/{DEFAULT}", "token": ""}
    options["commit_message"] = "upload model folder"
    assert result.out.startswith(f"['b'] {options} <function main")


# --- what is missing in the folder, and what stays behind -----------------------------------------


@pytest.mark.parametrize("missing", [KEY_FILES, KEY_FILES[1:]])
def test_missing_key_files_are_a_warning(client: Client, hub: Hub, missing: list[str]) -> None:
    folder = client.work / "folder"
    for name in missing:
        (folder / name).rename(folder / "nested" / name)
    result = upload(client)
    assert_uploaded(hub.store, result, tree(folder))
    assert result.err.splitlines()[:3] == [
        f"WARNING: 目录缺少关键文件：{missing}",
        "  - 上传的是完整模型目录时，这通常意味着导出目录不对，请检查 --model-dir。",
        "  - 上传的是 LoRA adapter 时，可忽略该 warning。",
    ]


def test_caches_stay_behind_silently(client: Client, store: Store, folder: Path) -> None:
    """modelscope/ms-swift#3035: a push stumbles over the `._____temp` of a download.

    `lost+found` is in the root of every volume: invoiceninja/dockerfiles#553."""
    names = [".git/HEAD", ".cache/x", ".modelscope/x/y", "._____temp/x", ".msc", ".mdl", ".mv"]
    names += [".ms_upload_cache", ".ms_upload_progress", ".lock/x", "__pycache__/a.pyc"]
    names += ["lost+found/x"]
    lay(folder, dict.fromkeys([*names, *(f"nested/deep/{name}" for name in names)], b"no model"))
    result = upload(client)
    assert_uploaded(store, result)
    assert result.warnings == []


@posix
def test_secrets_stay_behind_and_are_named(client: Client, hub: Hub, folder: Path) -> None:
    """SceneWorks/SceneWorks#1333: a server takes macOS's `._model.safetensors` for weights."""
    names = [".env", ".Env.local", ".NETRC", ".git-credentials", "Key.PEM", "id_rsa", "ID_RSA.pub"]
    names += ["id_ed25519", "._model.safetensors", "m.bin.incomplete"]
    names += [f"nested/{name}" for name in names]
    others = ["environment.yml", "my.env", "x_id_rsa", "run.2024_01_15", "m.bin_0_1048575"]
    lay(folder, dict.fromkeys(names, b"secret") | dict.fromkeys(others, b"fine"))
    os.mkfifo(folder / "pipe")
    (folder / "device").symlink_to(os.devnull)
    result = upload(client)
    assert_uploaded(hub.store, result, FILES | dict.fromkeys(others, b"fine"))
    (warning,) = result.warnings
    assert set(re.findall("'(.+?)'", warning)) == {*names, "pipe", "device"}


@pytest.mark.parametrize("names", [[], [".env", "nested/x.incomplete"]])
def test_nothing_to_upload_is_an_error(client: Client, hub: Hub, names: list[str]) -> None:
    lay(client.work / "adapter", dict.fromkeys(names, b"")).mkdir(exist_ok=True)
    assert_failed(upload(client, MODEL_DIR="adapter"), "上传失败：ValueError(", "adapter", *names)
    assert nothing_sent(hub)


@posix
@pytest.mark.parametrize("name", ["nested", BIG])
def test_unreadable_entry_is_an_error(client: Client, hub: Hub, folder: Path, name: str) -> None:
    (folder / name).chmod(0)
    result = upload(client, before=NO_OVERRIDE)
    (folder / name).chmod(0o755)
    assert_failed(result, "上传失败：")
    assert str(folder / name) in result.err
    assert BIG not in uploaded(hub.store)
    assert name == BIG or nothing_sent(hub)


@pytest.mark.parametrize("target", ["nowhere", "odd", ".."])
def test_link_to_no_file_is_an_error(client: Client, hub: Hub, folder: Path, target: str) -> None:
    (folder / "nested/odd").symlink_to(target)
    result = upload(client)
    assert_failed(result, "上传失败：")
    assert "nested/odd" in result.err.replace("\\\\", "/")
    assert nothing_sent(hub)


@posix
def test_odd_names_links_and_empty_files_go_up(client: Client, hub: Hub, folder: Path) -> None:
    names = ["模型 [1] 100%.txt", "-dash", "a+b&c=d#e;f'", ".hidden", "a..b", "[a]/{b}/c d.bin"]
    names += ["a*b", "a?b", 'quote".txt', "back\\slash", "new\nline"]
    lay(
        folder, dict.fromkeys(names, b"odd") | dict.fromkeys(["empty.txt", "nested/empty.bin"], b"")
    )
    blobs = lay(client.work / "blobs", {"1": b"one", "2": bytes(100_000)})
    (folder / "link.txt").symlink_to(blobs / "1")
    (folder / "nested/link.bin").symlink_to("../../blobs/2")
    assert_uploaded(hub.store, upload(client), tree(folder))


# --- the token, and where it comes from -----------------------------------------------------------

SOURCES = ["--token", "MODELSCOPE_API_TOKEN", "MODELSCOPE_TOKEN", "login"]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("blank", [None, " \n"])
def test_token_comes_from_the_first_source_that_has_one(
    client: Client, hub: Hub, token: str, source: str, blank: str | None
) -> None:
    """Sources before this one are blank or unset, those after it hold the token of another."""
    tokens = dict.fromkeys(SOURCES, blank) | {source: token}
    tokens |= dict.fromkeys(SOURCES[SOURCES.index(source) + 1 :], hub.store.add_user("bob"))
    assert client.run("modelscope", "login", "--token", tokens.pop("login")).code == 0
    hub.log.clear()
    option = tokens.pop("--token")
    result = upload(client, *([] if option is None else ["--token", option]), **tokens)
    assert_uploaded(hub.store, result)
    assert {request.token for request in hub.log} == {token}
    assert result.warnings == ([NO_TOKEN] if source == "login" else [])


def test_without_a_token_it_warns_tries_and_hints(client: Client, hub: Hub) -> None:
    result = upload(client, MODELSCOPE_API_TOKEN=None, **SOON)
    assert_failed(result, "ERROR: 上传失败：")
    assert result.warnings == [NO_TOKEN]
    assert result.err.splitlines()[-1].startswith(HINT)
    assert hub.requests("batch")


@pytest.mark.parametrize(
    "wrong", [{"MODELSCOPE_API_TOKEN": "ms-wrong"}, {"MODELSCOPE_ENDPOINT": "127.0.0.1:9"}], ids=str
)
def test_failed_login_is_a_failure(client: Client, hub: Hub, wrong: dict[str, str]) -> None:
    result = upload(client, **wrong)
    assert_failed(result, "ERROR: 上传失败：", "Error('")
    assert HINT not in result.err
    assert nothing_sent(hub)


# --- the folder is only read, the hub holds all of it, and the repo is never created --------------


def traits(folder: Path) -> list[tuple[object, ...]]:
    stats = {path: path.lstat() for path in [folder, *sorted(folder.rglob("*"))]}
    return [(p, s.st_mode, s.st_size, s.st_mtime_ns, s.st_ino) for p, s in stats.items()]


@posix
@pytest.mark.parametrize("mode", [0o755, 0o555])
@pytest.mark.parametrize("code", [0, 1])
def test_folder_is_only_read(client: Client, hub: Hub, folder: Path, mode: int, code: int) -> None:
    if code:
        hub.always("commit", status(403))
    for path in (folder / "nested", folder):
        path.chmod(mode)
    before = traits(folder)
    result = upload(client, before=NO_OVERRIDE)
    assert result.code == code, result
    assert uploaded(hub.store) == ({} if code else FILES)
    assert traits(folder) == before


def test_only_what_was_lost_or_changed_is_sent(client: Client, hub: Hub, repo: Model) -> None:
    """Whatever the CLI has noted in the folder: lost there, changed there, changed here."""
    assert client.run("modelscope", "upload", MODEL, "folder").code == 0
    folder, files = client.work / "folder", repo.revisions["master"]
    del hub.store.blobs[files.pop(BIG).sha256]
    files["nested/vocab.txt"] = hub.store.keep(b"b\na\n")
    before = (folder / "config.json").stat()
    (folder / "config.json").write_bytes(FILES["config.json"].swapcase())
    os.utime(folder / "config.json", ns=(before.st_atime_ns, before.st_mtime_ns))
    hub.rules.refuse_unchanged = True
    hub.log.clear()
    assert upload(client).code == 0
    expected = tree(folder)
    assert expected.pop(".ms_upload_cache")
    assert uploaded(hub.store) == expected
    assert hub.received() == len(FILES[BIG])


def test_change_is_sent_where_no_digest_is_listed(client: Client, hub: Hub, folder: Path) -> None:
    hub.rules.no_digest = "small"
    hub.store.add(MODEL, FILES)
    lay(folder, {"nested/vocab.txt": b"b\na\n"})
    assert_uploaded(hub.store, upload(client), tree(folder))


def test_limit_of_commits_takes_some_runs(client: Client, hub: Hub, repo: Model) -> None:
    """modelscope/modelscope#1793: 429 E1021, and nobody is told how many are allowed."""
    files = {f"{i % 7}/{i}.txt": str(i).encode() for i in range(450)}
    lay(client.work / "many", files)
    limits = SOON | {"MODELSCOPE_UPLOAD_COMMIT_BATCH_MAX_OPERATIONS": "200"}
    for code in (1, 1, 0):
        hub.faults.clear()
        hub.queue("commit", passes)
        if code:
            hub.always("commit", status(429, "[E1021] Commit frequency limit exceeded"))
        result = upload(client, MODEL_DIR="many", **limits)
        assert result.code == code, result
        assert ("Commit frequency limit exceeded" in result.err) == (code == 1)
    assert uploaded(hub.store) == files
    assert len(repo.messages) == 3


def test_missing_repo_is_an_error_with_a_remedy(client: Client, hub: Hub) -> None:
    result = upload(client, "--repo-id", "alice/new")
    assert_failed(result, "仓库 alice/new 不存在", "30 天")  # when a login ends
    assert nothing_sent(hub)
    (command,) = re.findall("^modelscope create .+$", result.err, re.MULTILINE)
    assert client.run(*shlex.split(command)).code == 0
    assert hub.store.models["alice/new"].private
    assert upload(client, "--repo-id", "alice/new").code == 0
    assert uploaded(hub.store, "alice/new") == OWN_FILES | FILES


def test_throttled_list_is_followed_by_no_probe(client: Client, hub: Hub) -> None:
    hub.queue("list", HOUR, HOUR)  # the SDK asks twice
    assert_uploaded(hub.store, upload(client))
    assert not any(map(hub.requests, ("info", "legacy_info", "revisions", "create")))


def test_throttled_probe_is_given_up(client: Client, hub: Hub) -> None:
    hub.store.create(MODEL, branch=False)
    hub.always("info", HOUR)
    result = upload(client)
    assert_uploaded(hub.store, result)
    assert result.seconds < 30  # of which the probe has 5


@pytest.mark.parametrize(
    ("route", "fault", "cause", "advice"),
    [
        ("blob", status(401, "expired"), "AuthenticationError('expired", "verify your token"),
        ("blob", status(403, "quota exceeded"), "PermissionDeniedError('quota", "access rights"),
        ("blob", status(400, "user not logged in"), "InvalidParameter('User not logged in", ""),
        ("blob", refuse, 'StorageError("Blob upload failed', "check your network"),
        ("commit", status(404, "model not found"), "NotExistError('model not found", "private"),
        ("commit", status(409, "branch changed"), "AlreadyExistsError('branch changed", ""),
    ],
)
def test_failed_upload_names_its_cause_and_that_ones_advice(
    client: Client, hub: Hub, route: str, fault: Fault, cause: str, advice: str
) -> None:
    hub.always(route, fault)
    result = upload(client, **SOON)
    assert_failed(result, f"上传失败：{cause}")
    assert advice in result.err
    assert ("storage service error" in result.err) == cause.startswith("StorageError")


# --- exit 0 is true -------------------------------------------------------------------------------

STORED = answers({"Code": 200, "Success": True, "Data": {}})
FALSE = {
    "commit": [STORED, answers({"Code": 400, "Success": False, "Message": "rejected"})],
    "blob": [STORED, status(500)],
    "list": [lists_big(Sha256="0" * 64), lists_big(Size=7, Sha256="")],
}


@pytest.mark.parametrize(("route", "fault"), [(r, f) for r in FALSE for f in FALSE[r]])
def test_false_success_is_a_failure(client: Client, hub: Hub, route: str, fault: Fault) -> None:
    hub.always(route, fault)
    result = upload(client, **SOON)
    assert_failed(result, "上传失败：", *([MODEL, BIG, AGAIN] if route == "list" else []))
    assert BIG in result.err


def test_wrong_size_beside_the_right_digest_is_no_failure(client: Client, hub: Hub) -> None:
    hub.always("list", lists_big(Size=7))
    assert_uploaded(hub.store, upload(client))


@pytest.mark.parametrize("lists", [1, 3])
def test_list_that_lags_is_waited_for(client: Client, hub: Hub, lists: int) -> None:
    hub.queue("list", edit(list.clear), times=1 + lists)  # the first one is empty as it is
    result = upload(client, MODELSCOPE_REPO_TREE_LIST_TIMEOUT_SECONDS="30")
    assert_uploaded(hub.store, result)
    assert ("等待仓库的文件列表" in result.err) == (lists == 3)
    assert len(hub.requests("commit")) == 1


@pytest.mark.parametrize("fault", [status(500), refuse])
def test_list_that_cannot_be_read_is_told(client: Client, hub: Hub, fault: Fault) -> None:
    hub.queue("list", passes)  # before the upload
    hub.always("list", fault)
    result = upload(client, **SOON)
    told = f"ERROR: 已全部上传到 {MODEL}，但读不到列表，尚未核对。{AGAIN}原因："
    assert_failed(result, told, "Error(")
    assert uploaded(hub.store) == FILES
    hub.faults.clear()
    hub.log.clear()
    assert upload(client).code == 0
    assert nothing_sent(hub)


@pytest.mark.parametrize("name", ["config.json", BIG])
@pytest.mark.parametrize("content", [None, b"z" * 23, bytes(2_560_000)])
def test_file_that_changes_meanwhile_is_no_false_success(
    client: Client, hub: Hub, folder: Path, name: str, content: bytes | None
) -> None:
    """It changes after all files were hashed, before any is sent."""
    path = folder / name
    change = path.unlink if content is None else lambda: path.write_bytes(content)
    hub.queue("batch", first(change))
    result = upload(client, **SOON)
    if content is None:
        assert_failed(result, "上传失败：FileNotFoundError(")
        assert str(path) in result.err
    assert result.code == 1 or uploaded(hub.store) == tree(folder)


def test_file_that_vanishes_once_sent_is_told(client: Client, hub: Hub, folder: Path) -> None:
    """A trainer removes old checkpoints."""
    path = folder / "nested/vocab.txt"
    hub.queue("commit", lambda answer: (answer(), path.unlink())[0])
    result = upload(client)
    assert_failed(result, "上传失败：FileNotFoundError(", str(path))
    assert "Will retry automatically" not in result.err  # the SDK's advice on wrong digests


def test_file_that_grows_is_said_to_belong_elsewhere(
    client: Client, hub: Hub, folder: Path
) -> None:
    """rclone/rclone#3029: `> upload.log`, in the folder itself."""
    log = folder / "upload.log"
    log.write_bytes(b"a line\n")
    hub.queue("commit", lambda answer: (answer(), log.write_bytes(b"two\nlines\n"))[0])
    assert_failed(upload(client, **SOON), "上传失败：", "'upload.log'", AGAIN, "写入")


def test_change_after_the_check_does_not_matter(client: Client, hub: Hub, folder: Path) -> None:
    """Files appear, and the link to the folder comes to lead elsewhere."""
    link = client.work / "link"
    link.symlink_to("folder")
    hub.queue("info", first(lambda: (link.unlink(), link.symlink_to("nowhere"))))
    hub.queue("list", first(lambda: lay(folder, {"new.bin": b"new", "nested/.env": b"secret"})))
    assert_uploaded(hub.store, upload(client, MODEL_DIR="link"))


@posix
def test_terminal_shows_one_bar_that_moves_within_a_file(client: Client, hub: Hub) -> None:
    lay(client.work / "folder", {BIG: FILES[BIG] * 20})  # far more than a connection keeps
    hub.rate = 12_500_000
    hub.queue("blob", status(500))  # it is sent twice, yet counts no more than 100 %
    hub.store.add(MODEL, FILES | {"old.bin": b"1"})  # to be warned of, when the bar has been drawn
    result = upload(client, before=IN_TERMINAL)
    assert result.code == 0, result
    assert "Upload finished." in result.lines
    (warning,) = (line for line in result.lines if "old.bin" in line)
    assert warning.startswith("WARNING: ")
    bars = result.percents
    drawn = {line.split(":")[0] for line in result.lines if "/s]" in line}
    assert drawn <= {"Checking", "Total"}  # no bar of the SDK's
    assert len({percent for percent in bars if 0 < percent < 100}) > 2
    assert bars == sorted(bars)
    assert bars[-1] == 100
