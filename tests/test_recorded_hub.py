"""What others have recorded of the real hub, met by both scripts; `README.md` has the sources."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.hub import Hub, Store
from tests.hub.faults import answers, first, page, redirect, status, truncate
from tests.hub.server import Answer, Fault, Response
from tests.hub.store import OWN_FILES
from tests.support.cases import FAST
from tests.support.client import PARTS, Client, Result, lay, tree, wait_until
from tests.support.download import MODEL, SUCCESS, WEIGHTS, download, snapshot

BIG = random.Random(2).randbytes(3_000_000)
FILES = {
    "config.json": b"{}",
    "tokenizer_config.json": b"{}",
    WEIGHTS: BIG[:300_000],
    "nested/model.bin": BIG[:1000],
    "nested/vocab.txt": b"a\nb\n",
}
COMMIT = "0123456789abcdef" * 2 + "01234567"
UNREADABLE = "获取模型目录树失败"
ENVELOPE = {"Code": 10990101004, "Success": False, "Message": UNREADABLE, "Data": None}


def succeeded(result: Result, client: Client, files: dict[str, bytes], model: str = MODEL) -> None:
    assert result.code == 0, result
    assert result.lines == [line.format(snapshot(client.work, model)) for line in SUCCESS]
    assert tree(snapshot(client.work, model)) == files


def failed(result: Result, *words: str) -> None:
    """Assert an honest failure that shows `words`, on the one stream or the other."""
    said = result.out + result.err
    assert result.code == 1, result
    assert [word for word in words if word not in said] == [], result
    assert not any(word in said for word in ("success", "Upload finished.", "Traceback")), result


def warnings(result: Result) -> list[str]:
    return [line for line in result.err.splitlines() if line.startswith("WARNING: ")]


# --- downloads: what the hub says of a model ----------------------------------------------------


@pytest.fixture(params=[False, True], ids=["as 404", "as 200"])
def errors(hub: Hub, request: pytest.FixtureRequest) -> None:
    """The two forms of an error."""
    hub.rules.envelope = request.param


@pytest.mark.usefixtures("errors")
def test_missing_model_fails_with_the_words_of_the_hub(client: Client, hub: Hub) -> None:
    failed(download(client), "Model download FAILED: ", MODEL, "record not found")
    assert hub.requests("file") == []
    assert not any(client.work.rglob("*.*"))


@pytest.mark.usefixtures("errors")
@pytest.mark.parametrize("revision", ["nowhere", "main"])
def test_missing_revision_fails_with_those_that_are_there(
    client: Client, store: Store, revision: str
) -> None:
    store.add(MODEL, FILES)
    store.add(MODEL, FILES, revision="v1.0")
    result = download(client, "--revision", revision)
    failed(result, "Model download FAILED: ", f"{revision!r}, but ['master', 'v1.0']")
    assert ("master is" in result.out or "is master" in result.out) == (revision == "main")


@pytest.mark.usefixtures("errors")
def test_private_model_fails_with_the_words_of_the_hub(client: Client, store: Store) -> None:
    store.add(MODEL, FILES, private=True)
    failed(download(client), "Model download FAILED: ", "no access")


@pytest.mark.parametrize("code", [404, 403, 200])
def test_gated_model_fails_with_the_words_and_the_code(
    client: Client, store: Store, hub: Hub, code: int
) -> None:
    store.add(MODEL, FILES)
    said = {"Code": 10010200001, "Success": False, "Message": "apply for access first"}
    hub.always("list", lambda answer: Response.json(said, code))
    failed(download(client), "Model download FAILED: ", "apply for access first", "10010200001")


@pytest.mark.usefixtures("errors")
def test_unknown_commit_id_fails(client: Client, store: Store, hub: Hub) -> None:
    store.add(MODEL, FILES)
    failed(download(client, "--revision", COMMIT), "FAILED: ")
    assert hub.requests("file") == []


@pytest.mark.parametrize("form", [status(404, UNREADABLE), answers(ENVELOPE)])
def test_list_that_cannot_be_read_once_is_read_again(
    client: Client, store: Store, hub: Hub, form: Fault
) -> None:
    store.add(MODEL, FILES)
    hub.queue("list", form)
    result = download(client)
    succeeded(result, client, FILES)
    [warning] = warnings(result)
    assert "trying once more" in warning
    assert len(hub.requests("list")) <= 3
    assert hub.sent() == sum(map(len, FILES.values()))


@pytest.mark.parametrize("form", [status(404, UNREADABLE), answers(ENVELOPE)])
def test_list_of_a_commit_that_cannot_be_read_once_is_read_again(
    client: Client, store: Store, hub: Hub, form: Fault
) -> None:
    store.add(MODEL, FILES, revision=COMMIT)
    store.add(MODEL, {"config.json": b"of master"})
    hub.queue("list", form)
    result = download(client, "--revision", COMMIT)
    assert result.code == 0, result
    assert tree(snapshot(client.work, revision=COMMIT)) == FILES


@pytest.mark.parametrize("form", [status(404, UNREADABLE), answers(ENVELOPE)])
def test_list_that_can_never_be_read_fails_with_the_words_of_the_hub(
    client: Client, store: Store, hub: Hub, form: Fault
) -> None:
    store.add(MODEL, FILES)
    hub.always("list", form)
    failed(download(client), "Model download FAILED: ", UNREADABLE)
    assert hub.requests("file") == []


def test_own_files_of_a_new_repo_come_along(client: Client, store: Store) -> None:
    store.create(MODEL, private=False)
    succeeded(download(client), client, OWN_FILES)


@pytest.mark.parametrize(
    ("which", "unchecked"),
    [("empty", ["nested/empty"]), ("small", sorted({"nested/empty", *FILES} - {WEIGHTS}))],
)
def test_files_without_a_digest_come_and_are_named(
    client: Client, store: Store, hub: Hub, which: str, unchecked: list[str]
) -> None:
    files = FILES | {"nested/empty": b""}
    store.add(MODEL, files)
    hub.rules.no_digest = which
    result = download(client)
    succeeded(result, client, files)
    unchecked = [name for name in unchecked if name != "nested/model.bin"]  # large by its name
    assert warnings(result) == [f"WARNING: the hub gives no digest to check these by: {unchecked}"]


# --- downloads: where the bytes come from -------------------------------------------------------


def test_large_files_come_from_the_storage_host_without_the_token(
    client: Client, store: Store, hub: Hub
) -> None:
    store.add(MODEL, FILES, private=True)
    result = download(client, "--token", store.add_user("alice"))
    assert result.code == 0, result
    assert tree(snapshot(client.work)) == FILES
    stored = [request for request in hub.log if request.host == "storage"]
    assert {request.file for request in stored} == {WEIGHTS, "nested/model.bin"}
    assert [r for r in stored if r.token or "Cookie" in r.headers] == []


@pytest.mark.parametrize("env", [{}, PARTS], ids=["in one stream", "in parts"])
def test_address_that_has_just_expired_is_asked_for_again(
    client: Client, store: Store, hub: Hub, env: dict[str, str]
) -> None:
    files = FILES | {WEIGHTS: BIG}
    store.add(MODEL, files)
    hub.queue("file", first(hub.expire), file=WEIGHTS)
    result = download(client, **env)
    succeeded(result, client, files)
    assert 403 in {request.status for request in hub.requests("file", WEIGHTS)}
    assert len(hub.requests("file", "config.json")) == 1


@pytest.mark.parametrize("env", [{}, PARTS], ids=["in one stream", "in parts"])
def test_address_that_is_good_only_once_is_asked_for_each_time(
    client: Client, store: Store, hub: Hub, env: dict[str, str]
) -> None:
    files = FILES | {WEIGHTS: BIG}
    store.add(MODEL, files)
    hub.rules.lifetime = 1
    hub.queue("file", truncate(100_000), file=WEIGHTS)
    succeeded(download(client, **env), client, files)
    assert {r.status for r in hub.requests("file", WEIGHTS)} <= {200, 206}


def test_address_that_is_always_expired_fails_and_names_the_file(
    client: Client, store: Store, hub: Hub
) -> None:
    store.add(MODEL, FILES)
    hub.rules.lifetime = 0
    result = download(client)
    failed(result, "FileDownloadError(", f"    {WEIGHTS}: ", "    nested/model.bin: ")
    assert (snapshot(client.work) / "config.json").exists()
    assert not (snapshot(client.work) / WEIGHTS).exists()


@pytest.mark.parametrize("env", [{}, PARTS], ids=["in one stream", "in parts"])
def test_burst_of_500_is_ridden_out(
    client: Client, store: Store, hub: Hub, env: dict[str, str]
) -> None:
    files = FILES | {WEIGHTS: BIG}
    store.add(MODEL, files)
    hub.queue("list", status(500))
    hub.queue("file", status(500), times=2 * len(files))
    succeeded(download(client, **env), client, files)


def test_file_that_fails_for_a_while_comes_at_the_second_try(
    client: Client, store: Store, hub: Hub
) -> None:
    store.add(MODEL, FILES)
    hub.queue("file", status(500), file=WEIGHTS, times=3)
    result = download(client, MODELSCOPE_DOWNLOAD_MAX_RETRIES="2")
    succeeded(result, client, FILES)
    [warning] = warnings(result)
    assert "1 of 5 files failed" in warning
    assert len(hub.requests("file", "config.json")) == 1


@pytest.mark.parametrize("partial", [True, False], ids=["206", "200 with Content-Range"])
def test_broken_transfer_resumes_by_a_range(
    client: Client, store: Store, hub: Hub, partial: bool
) -> None:
    store.add(MODEL, {WEIGHTS: BIG})
    hub.rules.partial = partial
    hub.rate = 1_500_000
    with client.start("download_model.py", MODEL_ID=MODEL) as process:
        begun = snapshot(client.work) / f"{WEIGHTS}.incomplete"
        wait_until(lambda: begun.exists() and begun.stat().st_size > 1_000_000)
        process.kill()
    kept, hub.rate = begun.stat().st_size, None
    succeeded(download(client), client, {WEIGHTS: BIG})
    assert hub.requests("file")[-1].sent == len(BIG) - kept


@pytest.mark.parametrize("direct", [False, True], ids=["storage", "direct"])
def test_parts_come_by_ranges_that_are_answered_200(
    client: Client, store: Store, hub: Hub, direct: bool
) -> None:
    store.add(MODEL, {WEIGHTS: BIG})
    hub.rules.partial, hub.rules.direct = False, direct
    succeeded(download(client, **PARTS), client, {WEIGHTS: BIG})
    assert hub.sent() == len(BIG)
    assert {request.status for request in hub.requests("file")} == {200}


# --- uploads ------------------------------------------------------------------------------------

DIGITS = {f"{number}.bin": f"{number}".encode() for number in range(10)}
LISTED = {"MODELSCOPE_REPO_TREE_LIST_TIMEOUT_SECONDS": "60"}  # for which the list may lag behind
TWO_A_COMMIT = {
    "MODELSCOPE_UPLOAD_COMMIT_BATCH_MAX_OPERATIONS": "2",
    "MODELSCOPE_UPLOAD_COMMIT_MAX_ATTEMPTS": "1",
}
LARGE_AT_ONCE = min(8, (os.cpu_count() or 4) + 4)  # the SDK's own number
WAITS = "等待仓库的文件列表显示这次提交"
NOT_COMPARED = "WARNING: 无法读取仓库的文件列表，上传结果未核对"
REPO = MODEL


@pytest.fixture
def owner(client: Client, store: Store) -> str:
    """An empty repo, a folder for it, and a token of its owner in the environment."""
    store.add(REPO)
    lay(client.work / "folder", FILES)
    client.env |= {"MODELSCOPE_API_TOKEN": store.add_user("alice"), **FAST}
    return client.env["MODELSCOPE_API_TOKEN"]


def upload(client: Client, **env: str | None) -> Result:
    return client.run("upload_model.py", **{"REPO_ID": REPO, "MODEL_DIR": "folder", **env})


def on_hub(store: Store, repo: str = REPO) -> dict[str, bytes]:
    return {n: b.path.read_bytes() for n, b in store.models[repo].revisions["master"].items()}


def went_up(result: Result, store: Store, files: dict[str, bytes] = FILES) -> None:
    assert result.code == 0, result
    assert result.lines == [f"Uploading folder: folder  -->  {REPO}", "Upload finished."]
    assert on_hub(store) == files


def committed(hub: Hub) -> Counter[str]:
    """How often each path was in a commit that the hub has taken."""
    taken = [r.json["actions"] for r in hub.requests("commit") if r.status == 200]
    return Counter(action["path"] for actions in taken for action in actions)


def blobs(hub: Hub) -> Counter[str]:
    """How often each blob has come, by its address."""
    return Counter(request.path for request in hub.requests("blob"))


@pytest.mark.usefixtures("owner")
@pytest.mark.parametrize("rule", [{"lag": 3}, {"lag_seconds": 4}], ids=["requests", "seconds"])
def test_commit_that_shows_late_is_waited_for(
    client: Client, store: Store, hub: Hub, rule: dict[str, int]
) -> None:
    vars(hub.rules).update(rule)
    result = upload(client, **LISTED)
    went_up(result, store)
    assert result.err.count(WAITS) == 1
    assert warnings(result) == []
    assert len(hub.requests("commit")) == 1


@pytest.mark.usefixtures("owner")
def test_commit_that_never_shows_fails(client: Client, hub: Hub) -> None:
    hub.rules.lag = 1_000_000
    failed(upload(client), "ERROR: 上传失败：RuntimeError(", WAITS, *FILES)
    assert len(hub.requests("commit")) == 1


@pytest.mark.usefixtures("owner")
def test_folder_of_more_commits_than_the_hub_takes_is_through_after_some_runs(
    client: Client, store: Store, hub: Hub
) -> None:
    folder = lay(client.work / "digits", DIGITS)
    for run in range(1, 4):
        hub.rules.commits = 2
        result = upload(client, MODEL_DIR=str(folder), **TWO_A_COMMIT)
        assert len(on_hub(store)) == min(4 * run, len(DIGITS))
        if run < 3:
            failed(result, "ERROR: 上传失败：", "Commit frequency limit exceeded")
    assert result.code == 0, result
    assert on_hub(store) == DIGITS
    assert committed(hub) == dict.fromkeys(DIGITS, 1)
    assert set(blobs(hub).values()) == {1}


@pytest.mark.usefixtures("owner")
@pytest.mark.parametrize("refused", [False, True], ids=["taken", "refused"])
@pytest.mark.parametrize("home", ["same", "fresh"])
def test_same_folder_again_makes_no_commit_and_sends_nothing(
    client: Client, store: Store, hub: Hub, home: str, refused: bool
) -> None:
    hub.rules.refuse_unchanged = refused
    went_up(upload(client), store)
    sent = hub.received()
    if home == "fresh":
        client.env["HOME"] = str(lay(client.work.parent / "other", {"mine": b""}))
    went_up(upload(client), store)
    assert len(store.models[REPO].messages) == len(hub.requests("commit")) == 1
    assert hub.received() == sent


@pytest.mark.usefixtures("owner")
@pytest.mark.parametrize("refused", [False, True], ids=["taken", "refused"])
@pytest.mark.parametrize("home", ["same", "fresh"])
@pytest.mark.parametrize("name", ["config.json", "nested/model.bin"])
def test_one_changed_file_goes_up_alone(
    client: Client, store: Store, hub: Hub, home: str, refused: bool, name: str
) -> None:
    hub.rules.refuse_unchanged = refused
    went_up(upload(client), store)
    sent = hub.received()
    if home == "fresh":
        client.env["HOME"] = str(lay(client.work.parent / "other", {"mine": b""}))
    lay(client.work / "folder", {name: b"changed"})
    went_up(upload(client), store, FILES | {name: b"changed"})
    assert hub.received() - sent == (len(b"changed") if name.endswith(".bin") else 0)
    if home == "same":
        assert committed(hub) - Counter(FILES.keys()) == {name: 1}


@pytest.mark.usefixtures("owner")
@pytest.mark.parametrize("refused", [False, True], ids=["taken", "refused"])
@pytest.mark.parametrize("lost", ["config.json", WEIGHTS])
def test_file_that_the_hub_lost_is_sent_again_in_the_same_run(
    client: Client, store: Store, hub: Hub, lost: str, refused: bool
) -> None:
    hub.rules.refuse_unchanged = refused
    went_up(upload(client), store)
    store.blobs.pop(store.models[REPO].revisions["master"].pop(lost).sha256)
    went_up(upload(client), store)
    sent = [len(FILES[name]) for name in (WEIGHTS, "nested/model.bin")]
    assert hub.received() == sum(sent) + (len(FILES[lost]) if lost == WEIGHTS else 0)


@pytest.mark.usefixtures("owner")
def test_commit_lock_that_is_busy_once_is_waited_for(
    client: Client, store: Store, hub: Hub
) -> None:
    hub.queue("commit", status(429, "commit lock busy"))
    went_up(upload(client), store)
    assert len(hub.requests("commit")) == 2


@pytest.mark.usefixtures("owner")
def test_path_that_the_hub_refuses_fails_with_its_words(
    client: Client, store: Store, hub: Hub
) -> None:
    hub.rules.refused = r".*vocab.*"
    result = upload(client)
    failed(result, "ERROR: 上传失败：", "commit rejected by repository policy", "nested/vocab.txt")
    assert "nested/vocab.txt" not in on_hub(store)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (FILES, ["403", "no write permission to repository"]),
        ({"config.json": b"{}"}, ["model not found"]),
    ],
    ids=["403 at the blob", "404 at the commit"],
)
def test_repo_of_another_fails_with_the_words_of_the_hub(
    client: Client, store: Store, owner: str, files: dict[str, bytes], words: list[str]
) -> None:
    store.add("bob/public")
    lay(client.work / "mine", files)
    result = upload(client, REPO_ID="bob/public", MODEL_DIR="mine")
    failed(result, "ERROR: 上传失败：", words[-1])
    assert owner not in result.out + result.err
    assert on_hub(store, "bob/public") == {}


@pytest.mark.usefixtures("owner")
def test_upload_without_a_login_fails_with_the_hint(client: Client, store: Store, hub: Hub) -> None:
    result = upload(client, MODELSCOPE_API_TOKEN=None)
    failed(result, "ERROR: 上传失败：", "user not logged in", "WARNING: 未提供 token")
    assert result.err.splitlines()[-1] == "请设置 MODELSCOPE_API_TOKEN 或使用 --token 后重试。"
    assert {r.status for r in hub.requests("batch")} == {400}
    assert on_hub(store) == {}


@pytest.mark.usefixtures("owner")
@pytest.mark.parametrize("fault", [status(401), status(403), status(500), page()])
@pytest.mark.parametrize("routes", [["info"], ["revisions"], ["info", "legacy_info", "revisions"]])
def test_probe_for_the_repo_that_fails_hinders_no_upload(
    client: Client, store: Store, hub: Hub, fault: Fault, routes: list[str]
) -> None:
    for route in routes:
        hub.always(route, fault)
    went_up(upload(client), store)
    hub.faults.clear()  # which of them the script asks for is its own matter
    assert hub.requests("create") == []


@pytest.mark.usefixtures("owner")
@pytest.mark.parametrize("routes", [["info"], ["info", "legacy_info"], ["revisions"]])
def test_probe_that_denies_what_is_there_hinders_no_upload(
    client: Client, store: Store, hub: Hub, routes: list[str]
) -> None:
    for route in routes:
        hub.always(route, status(404))
    went_up(upload(client), store)
    hub.faults.clear()  # which of them the script asks for is its own matter
    assert hub.requests("create") == []


@pytest.mark.usefixtures("owner", "errors")
def test_missing_repo_is_refused_before_anything_is_sent(
    client: Client, store: Store, hub: Hub
) -> None:
    failed(upload(client, REPO_ID="alice/tpyo"), "LookupError(", "仓库 alice/tpyo 不存在")
    assert {r.route for r in hub.log} & {"create", "batch", "blob", "commit"} == set()
    assert store.models.keys() == {REPO}


@pytest.mark.usefixtures("owner")
@pytest.mark.parametrize("fault", [status(500), status(403), page()])
def test_list_that_cannot_be_read_lets_the_upload_pass_with_a_warning(
    client: Client, store: Store, hub: Hub, fault: Fault
) -> None:
    hub.always("list", fault)
    result = upload(client)
    went_up(result, store)
    [warning] = warnings(result)
    assert warning.startswith(NOT_COMPARED)
    assert len(hub.requests("commit")) == 1


class Crowd:
    """Transfers that are kept under way until there are `wanted`, and how many there were."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.now, self.peak = wanted, 0, 0
        self.change = threading.Condition()

    def __call__(self, answer: Answer) -> Response:
        with self.change:
            self.now += 1
            self.peak = max(self.peak, self.now)
            self.change.notify_all()
            self.change.wait_for(lambda: self.peak >= self.wanted, timeout=5)
        time.sleep(0.5)  # one more than wanted would come now
        with self.change:
            self.now -= 1
        return answer()


@pytest.mark.usefixtures("owner")
@pytest.mark.parametrize(("size", "at_once"), [(1_100_000, LARGE_AT_ONCE), (10_000, 32)])
def test_at_most_eight_large_blobs_or_32_small_ones_go_up_at_once(
    client: Client, store: Store, hub: Hub, size: int, at_once: int
) -> None:
    files = {f"{number}.bin": bytes([number]) * size for number in range(at_once + 8)}
    folder = lay(client.work / "blobs", files)
    crowd = Crowd(at_once)
    hub.always("blob", crowd)
    large = {"MODELSCOPE_UPLOAD_BLOB_PROGRESS_THRESHOLD_MB": "1"}
    patient = {"MODELSCOPE_UPLOAD_BLOB_READ_TIMEOUT_SECONDS": "30"}
    result = upload(client, MODEL_DIR=str(folder), **large, **patient)
    assert result.code == 0, result
    assert on_hub(store) == files
    assert crowd.peak == at_once


@pytest.mark.parametrize("route", ["info", "revisions", "list", "batch", "blob", "commit"])
@pytest.mark.parametrize("script", ["download", "upload"])
def test_redirect_to_another_host_never_has_the_token(
    client: Client, store: Store, hub: Hub, owner: str, tmp_path: Path, script: str, route: str
) -> None:
    with Hub(Store(tmp_path / "another")) as another:
        place = another.url.replace("127.0.0.1", "localhost")
        if script == "download":
            store.add(MODEL, FILES, revision="v1.0")
            hub.queue("list", answers(ENVELOPE))  # so that all is asked for that ever is
        hub.always(route, redirect(f"{place}/api/v1/models/{MODEL}"))
        result = download(client) if script == "download" else upload(client)
        assert [r for r in another.log if r.token or "Cookie" in r.headers] == []
        assert owner not in result.out + result.err
        hub.faults.clear()  # which of them a script asks for is its own matter


@pytest.mark.usefixtures("owner")
def test_record_is_not_believed_in_silence_when_the_list_cannot_be_read(
    client: Client, store: Store, hub: Hub
) -> None:
    """The SDK remembers what it has committed; the hub has lost it, and gives no list."""
    went_up(upload(client), store)
    store.models[REPO].revisions["master"].clear()
    hub.always("list", status(500))
    result = upload(client)
    assert result.code or on_hub(store) == FILES or NOT_COMPARED in result.err, result
