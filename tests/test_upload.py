"""What `upload_model.py` promises: a test for each sentence of its contract."""

from __future__ import annotations

import os
import random
import socket
import sys
from pathlib import Path

import pytest

from tests.hub import Hub, Store
from tests.hub.faults import answers, refuse, stall, status
from tests.hub.server import Fault
from tests.hub.store import OWN_FILES
from tests.support.client import ROOT, Client, Result, lay, tree, wait_until
from tests.support.download import USED, snapshot

REPO = "alice/model"
WEIGHTS = "model-00001-of-00002.safetensors"
BIG = random.Random(1).randbytes(2_000_000)
FILES = {
    "config.json": b"{}",
    "tokenizer_config.json": b"{}",
    WEIGHTS: BIG[:400_000],
    "model-00002-of-00002.safetensors": BIG[400_000:700_000],
    "nested/deep/vocab.txt": b"a\nb\n",
}
SENT = 700_000  # bytes of blobs; the rest goes with the commit


@pytest.fixture(autouse=True)
def token(store: Store, client: Client) -> str:
    """An empty repo, and a token of its owner in the environment."""
    store.add(REPO)
    client.env["MODELSCOPE_API_TOKEN"] = store.add_user("alice")
    return client.env["MODELSCOPE_API_TOKEN"]


@pytest.fixture
def folder(client: Client) -> Path:
    return lay(client.work / "folder", FILES)


def upload(client: Client, *options: object, **env: str | None) -> Result:
    env = {"REPO_ID": REPO, "MODEL_DIR": "folder", **env}
    return client.run("upload_model.py", *options, **env)


def on_hub(store: Store, repo: str = REPO) -> dict[str, bytes]:
    return {n: b.path.read_bytes() for n, b in store.models[repo].revisions["master"].items()}


def failed(result: Result, *words: str) -> None:
    """Assert an honest failure: exit 1, an ERROR line on standard error, no success, no trace."""
    assert result.code == 1, result
    assert "Upload finished." not in result.out
    assert any(line.startswith("ERROR: ") for line in result.err.splitlines()), result
    for word in words:
        assert word in result.err, result
    assert "Traceback" not in result.out + result.err


def warnings(result: Result) -> list[str]:
    return [line for line in result.err.splitlines() if line.startswith("WARNING: ")]


# --- options, variables, defaults ---------------------------------------------------------------


def test_upload_prints_its_two_lines_and_the_hub_holds_the_folder(
    client: Client, store: Store, folder: Path
) -> None:
    result = upload(client)
    assert result.code == 0, result
    assert result.lines == [f"Uploading folder: folder  -->  {REPO}", "Upload finished."]
    assert warnings(result) == []
    assert on_hub(store) == FILES


def test_tilde_of_nobody_is_a_folder_that_is_not_there(client: Client) -> None:
    failed(upload(client, MODEL_DIR="~nobody-at-all/x"), "模型目录不存在：~nobody-at-all/x")


def test_no_option_uploads_the_default_folder_to_the_default_repo(
    client: Client, store: Store
) -> None:
    repo = "YukinoStuki/Qwen3-4B-Plus-LLM-AWQ"
    lay(client.work / "model" / repo, FILES)
    store.add(repo)
    client.env["MODELSCOPE_API_TOKEN"] = store.add_user("YukinoStuki")
    result = upload(client, REPO_ID=None, MODEL_DIR=None)
    assert result.lines[0] == f"Uploading folder: model/{repo}  -->  {repo}"
    assert on_hub(store, repo) == FILES


def test_options_win_over_variables(client: Client, store: Store, folder: Path) -> None:
    options = ["--repo-id", f"  {REPO} ", "--model-dir", folder]
    result = upload(client, *options, REPO_ID="alice/other", MODEL_DIR="other")
    assert result.lines[0] == f"Uploading folder: {folder}  -->  {REPO}"
    assert on_hub(store) == FILES


def test_tilde_in_model_dir_is_home(client: Client, store: Store, folder: Path) -> None:
    folder.rename(client.home / "folder")
    result = upload(client, MODEL_DIR="~/folder")
    assert result.lines[0] == f"Uploading folder: {client.home / 'folder'}  -->  {REPO}"
    assert on_hub(store) == FILES


@pytest.mark.parametrize("message", [None, "量化后的模型 v2"])
def test_commit_message(client: Client, store: Store, folder: Path, message: str | None) -> None:
    options = ["--commit-message", message] if message else []
    assert upload(client, *options).code == 0
    # The SDK adds the number of the batch.
    assert store.models[REPO].messages == [f"{message or 'upload model folder'} (batch 1/1)"]


@pytest.mark.parametrize("name", ["REPO_ID", "MODEL_DIR"])
@pytest.mark.parametrize("blank", ["", "  "])
def test_blank_variable_is_an_error_that_names_it(
    client: Client, hub: Hub, folder: Path, name: str, blank: str
) -> None:
    failed(upload(client, **{name: blank}), name)
    assert hub.log == []


@pytest.mark.parametrize("repo", ["model", "alice/", "/model", "a/b/c"])
def test_malformed_repo_id_is_an_error(client: Client, hub: Hub, folder: Path, repo: str) -> None:
    failed(upload(client, "--repo-id", repo), "OWNER/NAME")
    assert hub.log == []


def test_missing_folder_is_an_error(client: Client, hub: Hub) -> None:
    failed(upload(client), "ERROR: 模型目录不存在：folder")
    assert hub.log == []


def test_file_in_place_of_a_folder_is_an_error(client: Client, hub: Hub) -> None:
    (client.work / "folder").write_text("mine")
    failed(upload(client), "ERROR: 不是目录：folder")
    assert hub.log == []


def test_empty_folder_fails(client: Client, store: Store) -> None:
    (client.work / "folder").mkdir()
    failed(upload(client), "ERROR: 上传失败：InvalidParameter(")
    assert on_hub(store) == {}


@pytest.mark.parametrize(
    "options",
    [
        ["--tokne", "ms-secret"],
        ["--token=ms-secret", "ms-secret"],
        ["--tokenms-secret"],
        ["--tok", "ms-secret"],
        ["--repo_id", "ms-secret"],
        ["--repo-id", "ms-secret", "--token"],
    ],
)
def test_usage_error_is_1_and_shows_nothing_that_was_typed(
    client: Client, hub: Hub, options: list[str]
) -> None:
    result = client.run("upload_model.py", *options)
    assert result.code == 1
    assert "secret" not in result.out + result.err
    assert "usage: upload_model.py" in result.err
    assert hub.log == []


def test_word_stuck_to_the_short_help_is_not_shown(client: Client, hub: Hub) -> None:
    result = client.run("upload_model.py", "-hms-secret")
    assert result.code in (0, 1)  # newer Pythons show the help, older ones an error
    assert "usage: upload_model.py" in (result.err if result.code else result.out)
    assert "secret" not in result.out + result.err
    assert hub.log == []


def test_help_lists_the_four_options_and_no_token(client: Client, token: str) -> None:
    result = client.run("upload_model.py", "-h")
    listed = {word.strip(",") for word in result.out.split() if word.startswith("--")}
    assert listed == {"--repo-id", "--model-dir", "--token", "--commit-message", "--help"}
    assert token not in result.out


# --- warnings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "missing",
    [["config.json"], ["tokenizer_config.json"], ["config.json", "tokenizer_config.json"]],
)
def test_missing_key_file_is_a_warning(
    client: Client, store: Store, folder: Path, missing: list[str]
) -> None:
    for name in missing:
        (folder / name).unlink()
    result = upload(client)
    assert result.code == 0
    assert warnings(result) == [f"WARNING: 目录缺少关键文件：{missing}"]
    assert "LoRA adapter" in result.err
    assert on_hub(store) == {k: v for k, v in FILES.items() if k not in missing}


def test_files_that_hold_secrets_stay_behind_and_are_named(
    client: Client, store: Store, folder: Path
) -> None:
    secret = [
        ".env",
        ".env.local",
        ".netrc",
        ".git-credentials",
        "key.pem",
        "id_rsa",
        "id_rsa.pub",
        "id_ed25519",
    ]
    secret += ["nested/.env", "nested/deep/[x].pem"]
    kept = dict.fromkeys(["environment.yml", "my.env", "pem.txt", "nested/x.env.txt"], b"fine")
    lay(folder, dict.fromkeys(secret, b"secret") | kept)
    result = upload(client)
    assert result.code == 0
    assert on_hub(store) == FILES | kept
    (warning,) = warnings(result)
    assert all(repr(name) in warning for name in secret)
    assert not any(repr(name) in warning for name in kept)


def test_version_control_and_caches_stay_behind(client: Client, store: Store, folder: Path) -> None:
    names = [".git/config", ".cache/x", "nested/.git/x", "nested/.cache/y/z", ".ms_upload_cache"]
    lay(folder, dict.fromkeys(names, b"no model"))
    result = upload(client)
    assert (result.code, warnings(result)) == (0, [])
    assert on_hub(store) == FILES


# --- the token and its four sources -------------------------------------------------------------

SOURCES = ["--token", "MODELSCOPE_API_TOKEN", "MODELSCOPE_TOKEN", "login"]
OTHERS = {"blank": "", "spaces": " \n", "absent": None}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("others", OTHERS)
def test_token_is_taken_from_the_first_source_that_has_one(
    client: Client, store: Store, hub: Hub, token: str, folder: Path, source: str, others: str
) -> None:
    """Sources before this one are blank or absent; those after it hold other tokens."""
    given: dict[str, str | None] = {}
    for name in SOURCES:
        before = SOURCES.index(name) < SOURCES.index(source)
        given[name] = OTHERS[others] if before else store.add_user("bob")
    given[source] = token
    assert client.run("modelscope", "login", "--token", given.pop("login")).code == 0
    hub.log.clear()
    option = given.pop("--token")
    options = [] if option is None else ["--token", option]
    assert upload(client, *options, **given).code == 0
    assert {request.token for request in hub.log} == {token}
    assert on_hub(store) == FILES


def test_no_token_warns_and_tries_all_the_same(client: Client, hub: Hub, folder: Path) -> None:
    # The hub says that nobody is logged in, by a code that the SDK tries again at a commit.
    env = {"MODELSCOPE_UPLOAD_COMMIT_MAX_ATTEMPTS": "1"}
    result = upload(client, MODELSCOPE_API_TOKEN=None, **env)
    failed(result, "WARNING: 未提供 token", "ERROR: 上传失败：", "MODELSCOPE_API_TOKEN", "--token")
    assert hub.requests("batch")


def test_no_token_with_a_stored_login_warns_and_succeeds(
    client: Client, store: Store, token: str, folder: Path
) -> None:
    assert client.run("modelscope", "login", "--token", token).code == 0
    result = upload(client, MODELSCOPE_API_TOKEN=None)
    assert result.code == 0
    assert warnings(result)[0].startswith("WARNING: 未提供 token")
    assert on_hub(store) == FILES


def test_wrong_token_fails_without_the_hint(client: Client, hub: Hub, folder: Path) -> None:
    result = upload(client, "--token", "ms-wrong-secret")
    failed(result, "ERROR: 上传失败：AuthenticationError(")
    assert "--token" not in result.err
    assert "ms-wrong-secret" not in result.out + result.err
    assert hub.requests("commit") == []


@pytest.mark.parametrize("token_", ["ms-pa\nss", "ms-päss", "令牌"])
def test_token_that_cannot_be_one_is_refused_unseen(
    client: Client, hub: Hub, folder: Path, token_: str
) -> None:
    result = upload(client, "--token", token_)
    failed(result, "ERROR: 上传失败：ValueError(")
    assert not any(part in result.out + result.err for part in ("ms-", "ss\\", "pä", "令"))
    assert hub.log == []


def test_token_that_the_hub_repeats_is_not_shown(
    client: Client, hub: Hub, token: str, folder: Path
) -> None:
    hub.queue("commit", status(403, f"no good: Bearer {token}"))
    result = upload(client)
    failed(result)
    assert "Bearer ***" in result.err
    assert token not in result.out + result.err


def test_token_of_the_stored_login_is_not_shown(
    client: Client, hub: Hub, token: str, folder: Path
) -> None:
    assert client.run("modelscope", "login", "--token", token).code == 0
    hub.queue("commit", status(403, f"no good: Bearer {token}"))
    result = upload(client, MODELSCOPE_API_TOKEN=None)
    failed(result, "Bearer ***")
    assert token not in result.out + result.err


# --- the folder is only read --------------------------------------------------------------------


def traits(folder: Path) -> dict[str, tuple]:
    stats = {path: path.lstat() for path in [folder, *folder.rglob("*")]}
    traits = {str(p): (s.st_mode, s.st_size, s.st_mtime_ns, s.st_ino) for p, s in stats.items()}
    return traits | {f"{name}!": (content,) for name, content in tree(folder).items()}


@pytest.mark.parametrize("outcome", ["success", "failure", "kill"])
def test_folder_is_the_same_afterwards(
    client: Client, hub: Hub, folder: Path, outcome: str
) -> None:
    before = traits(folder)
    if outcome == "failure":
        hub.queue("commit", status(403))
    if outcome == "kill":
        hub.queue("commit", stall())
        with client.start("upload_model.py", REPO_ID=REPO, MODEL_DIR="folder") as process:
            while not hub.requests("commit"):
                assert process.poll() is None
            process.kill()
    else:
        assert upload(client).code == (0 if outcome == "success" else 1)
    assert traits(folder) == before


def test_read_only_folder_uploads(client: Client, store: Store, folder: Path) -> None:
    """A mount when the tests may make one, else a folder without the right to write."""
    mount = "mount --bind folder folder && mount -o remount,ro,bind folder && ! touch folder/x && "
    command = f"{mount} {sys.executable} {ROOT}/upload_model.py"
    if os.geteuid() != 0:
        folder.chmod(0o555)
        command = f"! touch folder/x && {sys.executable} {ROOT}/upload_model.py"
    wrap = ["unshare", "--mount"] if os.geteuid() == 0 else []
    result = client.run(*wrap, "sh", "-c", command, REPO_ID=REPO, MODEL_DIR="folder")
    folder.chmod(0o755)
    assert result.code == 0, result
    assert on_hub(store) == FILES


# --- the hub holds the folder -------------------------------------------------------------------


def test_second_upload_sends_no_blob_again(client: Client, hub: Hub, folder: Path) -> None:
    assert upload(client).code == 0
    assert hub.received() == SENT
    assert upload(client).code == 0
    assert hub.received() == SENT


def test_killed_upload_goes_on_without_the_blobs_that_arrived(
    client: Client, store: Store, hub: Hub, folder: Path
) -> None:
    hub.queue("commit", stall())
    with client.start("upload_model.py", REPO_ID=REPO, MODEL_DIR="folder") as process:
        while not hub.requests("commit"):
            assert process.poll() is None
        process.kill()
    assert on_hub(store) == {}
    assert upload(client).code == 0
    assert on_hub(store) == FILES
    assert hub.received() == SENT


@pytest.mark.parametrize("lost", ["config.json", WEIGHTS])
def test_file_that_the_hub_lost_is_sent_again(
    client: Client, store: Store, folder: Path, lost: str
) -> None:
    assert upload(client).code == 0
    blob = store.models[REPO].revisions["master"].pop(lost)
    store.blobs.pop(blob.sha256)
    assert upload(client).code == 0
    assert on_hub(store) == FILES


@pytest.mark.parametrize("changed", ["config.json", WEIGHTS])
def test_file_that_changed_without_its_time_is_sent_again(
    client: Client, store: Store, folder: Path, changed: str
) -> None:
    assert upload(client).code == 0
    path = folder / changed
    times = path.stat()
    content = FILES[changed][::-1]
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert upload(client).code == 0
    assert on_hub(store) == FILES | {changed: content}


def test_cache_of_another_tool_is_not_believed(client: Client, store: Store, folder: Path) -> None:
    assert client.run("modelscope", "upload", REPO, "folder").code == 0
    assert (folder / ".ms_upload_cache").exists()
    store.models[REPO].revisions["master"].clear()
    assert upload(client).code == 0
    assert on_hub(store) == FILES


def test_same_content_twice_is_sent_once(client: Client, store: Store, hub: Hub) -> None:
    files = {"a.safetensors": BIG, "b.safetensors": BIG, "nested/c.bin": BIG}
    lay(client.work / "folder", files)
    assert upload(client).code == 0
    assert on_hub(store) == files
    assert hub.received() == len(BIG)


@pytest.mark.parametrize("name", ["empty.txt", "empty.safetensors"])
def test_empty_file_goes_up(client: Client, store: Store, folder: Path, name: str) -> None:
    (folder / name).touch()
    assert upload(client).code == 0
    assert on_hub(store) == FILES | {name: b""}


def test_links_to_files_go_up_as_their_content(client: Client, store: Store, folder: Path) -> None:
    """As in a Hugging Face cache: snapshots of links into a folder of blobs."""
    blobs, links = client.work / "blobs", client.work / "links"
    links.mkdir()
    lay(blobs, {"1": b"{}", "2": BIG})
    (links / "config.json").symlink_to("../blobs/1")
    (links / "model.safetensors").symlink_to("../blobs/2")
    assert upload(client, MODEL_DIR="links").code == 0
    assert on_hub(store) == {"config.json": b"{}", "model.safetensors": BIG}


def make_broken_link(path: Path) -> None:
    path.symlink_to("nowhere")


def make_link_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_folder_link(path: Path) -> None:
    path.symlink_to("nested")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(os.path.relpath(path))


def make_latin_1(path: Path) -> None:
    path.with_name(os.fsdecode(b"odd\xe4")).touch()


@pytest.mark.parametrize(
    "make",
    [
        make_broken_link,
        make_link_loop,
        make_folder_link,
        make_latin_1,
    ],
)
def test_entry_that_would_be_left_out_silently_fails_before_anything_is_sent(
    client: Client, hub: Hub, folder: Path, make: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)  # the path of a socket has to be short
    make(folder / "odd")
    failed(upload(client), "ERROR: 上传失败：ValueError(", "'odd")
    assert {request.route for request in hub.log} <= {"login", "me"}


@pytest.mark.parametrize("make", [os.mkfifo, make_socket])
def test_pipe_or_socket_stays_behind_and_is_named(
    client: Client, store: Store, folder: Path, make: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)  # the path of a socket has to be short
    make(folder / "odd")
    result = upload(client)
    assert result.code == 0, result
    assert len(warnings(result)) == 1
    assert "'odd'" in warnings(result)[0]
    assert on_hub(store) == FILES


def test_folder_that_the_hub_could_not_list_fails_before_anything_is_sent(
    client: Client, hub: Hub, folder: Path
) -> None:
    lay(folder / "many", {str(number): b"" for number in range(3000)})
    failed(upload(client), "3000", "folder/many")
    assert {request.route for request in hub.log} <= {"login", "me"}


def test_many_small_files_go_up(client: Client, store: Store) -> None:
    files = {f"{i % 7}/{i}.txt": str(i).encode() for i in range(600)}
    lay(client.work / "folder", files)
    assert upload(client).code == 0
    assert on_hub(store) == files


def test_files_that_only_the_hub_has_stay_there(client: Client, store: Store, folder: Path) -> None:
    store.add(REPO, {"README.md": b"of the hub", "config.json": b"old"})
    assert upload(client).code == 0
    assert on_hub(store) == FILES | {"README.md": b"of the hub"}


@pytest.mark.parametrize("from_home", ["the same", "another"])
def test_file_that_is_listed_without_a_digest_is_sent_when_it_has_changed(
    client: Client, hub: Hub, store: Store, folder: Path, from_home: str
) -> None:
    hub.rules.no_digest = "small"
    assert upload(client).code == 0
    (folder / "config.json").write_bytes(FILES["config.json"][::-1])
    env = {} if from_home == "the same" else {"MODELSCOPE_CACHE": str(client.work / "cache")}
    assert upload(client, **env).code == 0
    assert on_hub(store) == FILES | {"config.json": FILES["config.json"][::-1]}
    assert (client.work / "cache").exists() == (from_home == "another")


@pytest.mark.parametrize("length", [255, 256, 5000])
def test_folder_with_too_long_a_name_fails_without_a_traceback(client: Client, length: int) -> None:
    failed(upload(client, "--model-dir", "x" * length))


# --- success that the SDK would believe ---------------------------------------------------------

DONE = {"Code": 200, "Success": True, "Data": {"CommitId": "1"}}


def test_commit_that_the_hub_forgets_fails(client: Client, hub: Hub, folder: Path) -> None:
    hub.queue("commit", answers(DONE))
    failed(upload(client), "ERROR: 上传失败：RuntimeError(", WEIGHTS, "config.json")


def test_commit_that_shows_a_moment_later_succeeds(
    client: Client, store: Store, hub: Hub, folder: Path
) -> None:
    hub.queue("list", answers({"Code": 200, "Success": True, "Data": {"Files": []}}))
    assert upload(client).code == 0
    assert on_hub(store) == FILES


def test_missing_repo_is_refused_and_not_created(
    client: Client, store: Store, hub: Hub, folder: Path
) -> None:
    result = upload(client, "--repo-id", "alice/tpyo")
    failed(result, "LookupError(", "alice/tpyo", "modelscope create alice/tpyo")
    assert store.models.keys() == {REPO}
    assert hub.requests("create") == []


def test_advised_command_creates_the_repo(client: Client, store: Store, folder: Path) -> None:
    message = upload(client, "--repo-id", "alice/new").err.split("创建：")[1]
    command = message.split("'")[0].split()
    assert client.run(*command).code == 0
    assert store.models["alice/new"].private
    assert upload(client, "--repo-id", "alice/new").code == 0
    assert on_hub(store, "alice/new") == OWN_FILES | FILES


def test_private_repo_of_another_is_as_good_as_missing(
    client: Client, store: Store, folder: Path
) -> None:
    store.add("bob/private", private=True)
    failed(upload(client, "--repo-id", "bob/private"), "LookupError(", "bob/private")


def test_public_repo_of_another_fails(client: Client, store: Store, folder: Path) -> None:
    store.add("bob/public")
    failed(upload(client, "--repo-id", "bob/public"), "ERROR: 上传失败：")
    assert on_hub(store, "bob/public") == {}


@pytest.mark.parametrize(
    "fault", [status(403, "not yours"), answers({"Success": False, "Message": "rejected"})]
)
def test_refused_commit_fails_and_names_each_file(
    client: Client, store: Store, hub: Hub, folder: Path, fault: Fault
) -> None:
    hub.always("commit", fault)
    result = upload(client)
    failed(result, "ERROR: 上传失败：StorageError(")
    for name in FILES:  # by the SDK's log
        assert f"- {name}: " in result.err
    assert on_hub(store) == {}


@pytest.mark.parametrize("route", ["revisions", "batch", "blob", "commit", "list"])
@pytest.mark.parametrize("fault", [refuse, status(503), status(429, Retry_After="1")])
def test_fault_that_passes_is_ridden_out(
    client: Client, store: Store, hub: Hub, folder: Path, route: str, fault: Fault
) -> None:
    hub.queue(route, fault)
    result = upload(client)
    assert result.code == 0, result
    assert on_hub(store) == FILES


def test_hub_that_is_down_fails_before_anything_is_tried(client: Client, folder: Path) -> None:
    result = upload(client, MODELSCOPE_API_TOKEN=None, MODELSCOPE_ENDPOINT="http://127.0.0.1:9")
    failed(result, "ERROR: 上传失败：NetworkError(", "The hub cannot be reached")
    assert "bytes to upload" not in result.err


def test_torch_beside_the_sdk_is_not_imported_and_nothing_is_left_unchecked(
    client: Client, store: Store, folder: Path
) -> None:
    lay(client.work / "path", {"torch/__init__.py": b"raise SystemExit('torch was imported')"})
    result = upload(client, PYTHONPATH=str(client.work / "path"))
    assert (result.code, warnings(result)) == (0, []), result
    assert on_hub(store) == FILES


def test_missing_sdk_fails_without_a_traceback(client: Client, folder: Path) -> None:
    bare = [sys.executable, "-S", ROOT / "upload_model.py"]
    result = client.run(*bare, REPO_ID=REPO, MODEL_DIR="folder")
    failed(result, "ModuleNotFoundError(")


# --- output, Ctrl-C -----------------------------------------------------------------------------


def test_output_survives_a_terminal_without_chinese(client: Client, folder: Path) -> None:
    (folder / "config.json").unlink()
    result = upload(client, PYTHONIOENCODING="ascii")
    assert result.code == 0
    assert "\\u76ee\\u5f55" in warnings(result)[0]


def test_progress_in_a_log_is_a_line_now_and_then(client: Client, hub: Hub) -> None:
    lay(client.work / "folder", {"model.safetensors": BIG * 6})
    hub.rate = 1_000_000
    result = upload(client)
    assert result.code == 0
    assert "\r" not in result.err
    assert "\x1b" not in result.err
    progress = [line for line in result.err.splitlines() if "%|" in line]
    assert 1 <= len(progress) <= 2  # 12 seconds, a line every 10
    assert "" not in result.err.splitlines()


def test_ctrl_c_in_a_blob_is_130_within_2_seconds_and_one_line(
    client: Client, store: Store, hub: Hub
) -> None:
    lay(client.work / "folder", {"model.safetensors": BIG * 4, **FILES})
    hub.rate = 500_000
    process = client.start("upload_model.py", REPO_ID=REPO, MODEL_DIR="folder")
    result = client.interrupt(process, when=lambda: hub.received() > 100_000)
    assert result.code == 130
    assert result.seconds < 2
    ours = [line for line in result.err.splitlines() if " | " not in line and "%|" not in line]
    assert len(ours) == 2
    assert (
        ours[0] == f"6 of 6 files, {len(BIG) * 4 + sum(map(len, FILES.values()))} bytes to upload"
    )
    assert ours[1].startswith("Interrupted. Run the same command again to resume")
    assert on_hub(store) == {}


def test_ctrl_c_that_ended_the_reader_of_the_log_too_is_130(client: Client, hub: Hub) -> None:
    lay(client.work / "folder", {"model.safetensors": BIG * 4, **FILES})
    hub.rate = 500_000
    process = client.start("upload_model.py", REPO_ID=REPO, MODEL_DIR="folder")
    result = client.interrupt(process, when=lambda: hub.received() > 100_000, log_read=False)
    assert result.code == 130
    assert result.seconds < 2


def test_reader_of_the_log_that_goes_away_meanwhile_fails_no_upload(
    client: Client, hub: Hub, store: Store
) -> None:
    files = {"model.safetensors": BIG, **FILES}
    lay(client.work / "folder", files)
    hub.rate = 2_000_000
    with client.start("upload_model.py", REPO_ID=REPO, MODEL_DIR="folder") as process:
        wait_until(lambda: hub.received() > 100_000)
        process.stderr.close()
        assert process.wait(30) == 0
        assert process.stdout.read().splitlines()[-1] == "Upload finished."
    assert on_hub(store) == files


@pytest.mark.parametrize(
    ("streams", "code"), [(">&-", 0), ("2>&-", 0), ("2>/dev/full", 0), (">/dev/full", 1)]
)
def test_stream_that_takes_nothing_shows_no_traceback(
    client: Client, folder: Path, streams: str, code: int
) -> None:
    script = f"{sys.executable} {ROOT / 'upload_model.py'}"
    env = {"REPO_ID": REPO, "MODEL_DIR": "folder"}
    result = client.run("sh", "-c", f"{script} {streams}", **env)
    assert result.code == code
    assert "Traceback" not in result.out + result.err


@pytest.mark.parametrize("end", ["success", "failure", "Ctrl-C"])
def test_no_temporary_folder_is_left(client: Client, hub: Hub, folder: Path, end: str) -> None:
    temporary = lay(client.work.parent / "temporary", {"mine": b""})
    env = {"REPO_ID": REPO, "MODEL_DIR": "folder", "TMPDIR": str(temporary)}
    if end == "failure":
        hub.always("commit", status(403))
    if end == "Ctrl-C":
        hub.always("commit", stall())
    with client.start("upload_model.py", **env) as process:
        if end == "Ctrl-C":
            client.interrupt(process, when=lambda: hub.requests("commit"))
        assert process.wait(30) == {"success": 0, "failure": 1, "Ctrl-C": 130}[end]
    assert os.listdir(temporary) == ["mine"]


# --- the way round ------------------------------------------------------------------------------


def test_what_goes_up_comes_down_byte_for_byte(client: Client, folder: Path) -> None:
    odd = ["模型 [1] 100%.txt", "-dash", "a+b&c=d#e;f'\"", "nested/new\nline", ".hidden", "a..b"]
    lay(folder, dict.fromkeys(odd, b"odd") | {"big.bin": BIG, "empty": b""})
    assert upload(client).code == 0
    result = client.run("download_model.py", "--model_name", REPO, "--cache_dir", "down")
    assert result.code == 0, result
    assert result.lines[0] == USED
    assert tree(snapshot(client.work / "down", REPO)) == tree(folder)
    cli = ["modelscope", "download", "--model", REPO, "--local_dir", "cli"]
    assert client.run(*cli).code == 0
    assert tree(client.work / "cli") == tree(folder)
