"""The stand-in hub is only worth what it is true to: the SDK's own CLI, and its own promises."""

from __future__ import annotations

import base64
import hashlib
import re
import signal
import sys
from pathlib import Path

import pytest
import requests

from tests.hub import Hub, Store
from tests.hub.faults import first, passes, status, truncate
from tests.hub.models import MAIN
from tests.hub.store import OWN_FILES, is_large
from tests.support.client import ROOT, Client, tree, wait_until
from tests.support.download import FILES, MODEL, WEIGHTS, download, snapshot


@pytest.fixture(autouse=True)
def model(store: Store) -> None:
    store.add(MODEL, FILES)


# --- a client that we did not write -------------------------------------------------------------


def test_cli_logs_in_and_downloads_a_private_model(client: Client, store: Store) -> None:
    store.add("alice/private", FILES, private=True)
    fetch = ["modelscope", "download", "--model", "alice/private", "--cache_dir", "cache"]
    assert client.run(*fetch).code != 0
    assert client.run("modelscope", "login", "--token", store.add_user("alice")).code == 0
    assert client.run(*fetch).code == 0
    assert tree(snapshot(client.work / "cache", "alice/private")) == FILES


def test_cli_rejects_a_wrong_token(client: Client) -> None:
    assert client.run("modelscope", "login", "--token", "ms-wrong").code != 0


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (["config.json", "nested/deep/tokenizer.json"], {"config.json"}),
        (["--include", "*.safetensors"], {WEIGHTS}),
        (["--include", "nested/*"], {"nested/deep/tokenizer.json"}),
        (["--exclude", "*.json"], {WEIGHTS}),
    ],
)
def test_cli_downloads_what_it_is_told_to(
    client: Client, hub: Hub, selection: list[str], expected: set[str]
) -> None:
    result = client.run("modelscope", "download", MODEL, *selection, "--local_dir", "here")
    assert result.code == 0, result
    expected = expected | set(selection) & set(FILES)
    assert tree(client.work / "here") == {name: FILES[name] for name in expected}
    assert hub.sent() == sum(len(FILES[name]) for name in expected)


def test_cli_uploads_a_folder_and_a_file(client: Client, store: Store) -> None:
    token = store.add_user("alice")
    for name, content in FILES.items():
        path = client.work / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (client.work / "notes.md").write_bytes(b"notes")
    for source in (["folder"], ["notes.md", "docs/notes.md"]):
        result = client.run("modelscope", "upload", "--token", token, "alice/new", *source)
        assert result.code == 0, result
    expected = OWN_FILES | FILES | {"docs/notes.md": b"notes"}
    assert tree(store.root / "alice/new") == expected
    assert store.models["alice/new"].revisions["master"].keys() == expected.keys()


def test_cli_verifies_what_our_script_downloaded_and_moves_no_byte_again(
    client: Client, hub: Hub
) -> None:
    assert download(client, "--cache_dir", "cache").code == 0
    before = hub.sent()
    place = ["--cache_dir", "cache"]
    assert client.run("modelscope", "download", "--model", MODEL, *place).code == 0
    assert hub.sent() == before
    verify = ["modelscope", "cache", "verify", MODEL, "--cache-dir", "cache"]
    assert client.run(*verify).code == 0
    (snapshot(client.work / "cache") / WEIGHTS).write_bytes(b"damaged")
    assert client.run(*verify).code != 0


def test_our_script_finds_what_the_cli_downloaded_complete(client: Client, hub: Hub) -> None:
    fetch = ["modelscope", "download", "--model", MODEL, "--cache_dir", "cache"]
    assert client.run(*fetch).code == 0
    before = hub.sent()
    assert download(client, "--cache_dir", "cache").code == 0
    assert hub.sent() == before


# --- the stand-in's own promises ----------------------------------------------------------------


def test_unknown_route_fails_the_test(store: Store) -> None:
    with Hub(store) as hub:
        assert requests.get(f"{hub.url}/api/v1/nothing", timeout=5).status_code == 404
    with pytest.raises(AssertionError, match="unknown route: GET /api/v1/nothing"):
        hub.check()


def test_exception_of_a_route_fails_the_test(store: Store) -> None:
    with Hub(store) as hub:
        assert (
            requests.post(f"{hub.url}/api/v1/login", data=b"no json", timeout=5).status_code == 500
        )
    with pytest.raises(AssertionError, match="JSONDecodeError"):
        hub.check()


def test_fault_that_was_never_met_fails_the_test(store: Store) -> None:
    with Hub(store) as hub:
        hub.queue("file", truncate(1), file="a")
    with pytest.raises(AssertionError, match="file a: never met"):
        hub.check()


def test_faults_are_met_in_their_order(hub: Hub) -> None:
    hub.queue("list", status(500), passes, status(404))
    url = f"{hub.url}/api/v1/models/{MODEL}/repo/files"
    answered = [requests.get(url, timeout=5).status_code for _ in range(4)]
    assert answered == [500, 200, 404, 200]


@pytest.mark.parametrize(
    ("wanted", "code", "start", "end"),
    [
        (None, 200, 0, 300_000),
        ("bytes=10-19", 206, 10, 20),
        ("bytes=299990-", 206, 299_990, 300_000),
        ("bytes=299990-999999", 206, 299_990, 300_000),
        ("bytes=300000-", 416, 0, 0),
    ],
)
def test_ranges(hub: Hub, wanted: str | None, code: int, start: int, end: int) -> None:
    url = f"{hub.url}/api/v1/models/{MODEL}/repo?Revision=master&FilePath={WEIGHTS}"
    answer = requests.get(url, headers={"Range": wanted}, timeout=5)
    assert (answer.status_code, answer.content) == (code, FILES[WEIGHTS][start:end])
    head = requests.head(url, headers={"Range": wanted}, timeout=5)
    assert (head.status_code, head.content) == (code, b"")
    assert head.headers["Content-Length"] == str(end - start)


def test_latency_and_rate_are_kept(store: Store) -> None:
    with Hub(store, latency=0.2, rate=400_000) as hub:
        url = f"{hub.url}/api/v1/models/{MODEL}/repo?FilePath={WEIGHTS}"
        answer = requests.get(url, timeout=5, stream=True)
        assert answer.elapsed.total_seconds() > 0.2
        [started] = hub.requests("file")
        wait_until(lambda: started.sent > 0)
        assert started.sent < 300_000
        assert len(answer.content) == 300_000


def test_too_many_connections_are_throttled(store: Store) -> None:
    with Hub(store, rate=100_000, connections=1) as hub:
        url = f"{hub.url}/api/v1/models/{MODEL}/repo?FilePath={WEIGHTS}"
        first = requests.get(url, timeout=5, stream=True)
        second = requests.get(url, timeout=5)
        assert (first.status_code, second.status_code) == (200, 429)
        assert second.headers["Retry-After"] == "1"


# --- what the real hub is recorded to do --------------------------------------------------------

MISSING, NO_ACCESS, NO_TREE, NOT_LOGGED_IN = 10010205001, 10010200001, 10990101004, 10030000001


def get(hub: Hub, path: str, token: str = "", **options: object) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return requests.get(f"{hub.url}{path}", headers=headers, timeout=5, **options)


def post(hub: Hub, path: str, token: str, body: dict) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return requests.post(f"{hub.url}{path}", json=body, headers=headers, timeout=5)


def listed(hub: Hub, query: str = "Recursive=True") -> dict[str, dict]:
    files = get(hub, f"/api/v1/models/{MODEL}/repo/files?{query}").json()["Data"]["Files"]
    return {file["Path"]: file for file in files}


def commit(hub: Hub, token: str, *paths: str, content: bytes = b"1", to: str = MODEL) -> dict:
    """Commit small files, and return the answer with its HTTP status."""
    encoded = base64.b64encode(content).decode()
    actions = [{"action": "create", "type": "normal", "path": p, "content": encoded} for p in paths]
    body = {"commit_message": "some files", "actions": actions}
    answer = post(hub, f"/api/v1/repos/models/{to}/commit/master", token, body)
    return answer.json() | {"status": answer.status_code}


def address(hub: Hub, file: str = WEIGHTS) -> requests.Response:
    return get(hub, f"/api/v1/models/{MODEL}/repo?FilePath={file}", allow_redirects=False)


def test_large_file_is_at_a_signed_address_on_another_host(hub: Hub) -> None:
    moved = address(hub)
    assert moved.status_code == 302
    assert re.match(r"http://localhost:\d+/prod/lfs-objects/.*auth_key=", moved.headers["Location"])
    assert requests.get(moved.headers["Location"], timeout=5).content == FILES[WEIGHTS]
    assert address(hub, "config.json").content == FILES["config.json"]
    head = requests.head(hub.url + f"/api/v1/models/{MODEL}/repo?FilePath={WEIGHTS}", timeout=5)
    assert (head.status_code, head.headers["Content-Length"]) == (200, "300000")
    hub.rules.direct = True
    assert address(hub).content == FILES[WEIGHTS]


def test_signed_address_expires(hub: Hub) -> None:
    first, second = (address(hub).headers["Location"] for _ in range(2))
    hub.rules.lifetime = 1
    third = address(hub).headers["Location"]
    wanted = [first, third, third]
    assert [requests.get(url, timeout=5).status_code for url in wanted] == [200, 200, 403]
    hub.expire()
    wanted = [first, second, third.split("=")[0]]
    assert [requests.get(url, timeout=5).status_code for url in wanted] == [403, 403, 403]


def test_storage_host_sees_no_token_and_no_cookie(client: Client, store: Store, hub: Hub) -> None:
    store.add("alice/private", FILES, private=True)
    token = store.add_user("alice")
    assert client.run("modelscope", "login", "--token", token).code == 0
    assert client.run("modelscope", "download", "alice/private", "--local_dir", "here").code == 0
    assert tree(client.work / "here") == FILES
    stored = [request for request in hub.log if request.host == "storage"]
    assert [request.file for request in stored] == [WEIGHTS]
    assert all(token not in str(request.headers) for request in stored)
    assert {r.token for r in hub.log if r.host == "hub" and r.route == "file"} == {token}


def test_address_that_has_just_expired_fails_the_cli_once(client: Client, hub: Hub) -> None:
    hub.queue("file", first(hub.expire), file=WEIGHTS)
    fetch = ["modelscope", "download", MODEL, "--local_dir", "here"]
    assert client.run(*fetch).code != 0
    assert client.run(*fetch).code == 0
    assert [r.status for r in hub.requests("file", WEIGHTS)] == [403, 200]


def test_range_may_come_with_status_200(client: Client, hub: Hub) -> None:
    hub.rules.partial = False
    url = f"{hub.url}/api/v1/models/{MODEL}/repo?FilePath={WEIGHTS}"
    answer = requests.get(url, headers={"Range": "bytes=10-19"}, timeout=5)
    assert (answer.status_code, answer.headers["Content-Range"]) == (200, "bytes 10-19/300000")
    hub.queue("file", truncate(100_000), file=WEIGHTS)
    assert client.run("modelscope", "download", MODEL, "--local_dir", "here").code == 0
    assert tree(client.work / "here") == FILES


@pytest.mark.parametrize("envelope", [False, True])
def test_errors_have_the_codes_of_the_hub(store: Store, hub: Hub, envelope: bool) -> None:
    store.add("alice/private", private=True)
    hub.rules.envelope = envelope
    http = 200 if envelope else 404
    list_of = "/api/v1/models/{}/repo/files?Revision={}".format
    for path, code in {
        list_of("alice/none", "master"): MISSING,
        list_of("alice/private", "master"): NO_ACCESS,
        list_of(MODEL, "main"): NO_TREE,
        "/api/v1/models/alice/none/revisions": MISSING,
    }.items():
        answer = get(hub, path)
        said = answer.json()
        assert (answer.status_code, said["Code"], said["Success"]) == (http, code, False)
        assert said["Message"]
    assert get(hub, list_of(MODEL, "a" * 40)).json()["Data"] == {"Files": []}


def test_revoked_token_is_refused_by_the_newer_interface_alone(hub: Hub) -> None:
    assert get(hub, f"/openapi/v1/models/{MODEL}", "ms-revoked").status_code == 401
    assert get(hub, f"/api/v1/models/{MODEL}", "ms-revoked").status_code == 200
    assert get(hub, f"/api/v1/models/{MODEL}/repo/files", "ms-revoked").status_code == 200


def test_list_has_every_field(hub: Hub) -> None:
    files = listed(hub)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    assert {n: f["Sha256"] for n, f in files.items() if f["Type"] == "blob"} == digests
    fields = {"Path", "Name", "Type", "Size", "Sha256", "IsLFS", "InCheck", "Mode"}
    assert all(set(file) == fields | {"Revision", "CommittedDate"} for file in files.values())
    assert [name for name, file in files.items() if file["IsLFS"]] == [WEIGHTS]
    assert {name for name, file in files.items() if file["Type"] == "tree"} == {
        "nested",
        "nested/deep",
    }


@pytest.mark.parametrize(
    ("rule", "without"), [("", set()), ("empty", {"empty"}), ("small", {"empty", "config.json"})]
)
def test_list_may_lack_digests(hub: Hub, store: Store, rule: str, without: set[str]) -> None:
    store.add(MODEL, {name: FILES[name] for name in ("config.json", WEIGHTS)} | {"empty": b""})
    hub.rules.no_digest = rule
    assert {name for name, file in listed(hub).items() if not file["Sha256"]} == without


def test_list_ends_at_its_limit_without_a_word(hub: Hub, store: Store) -> None:
    store.add(MODEL, {f"{n % 2}/{n}.txt": b"1" for n in range(3100)})
    assert len(listed(hub)) == 3000
    assert len(listed(hub, "Recursive=True&Root=1")) == 1550


def test_hub_keeps_as_large_what_the_sdk_sends_as_large() -> None:
    from modelscope_hub import constants

    size = constants.UPLOAD_LFS_FORCE_THRESHOLD_BYTES
    assert all(is_large(f"a{suffix.upper()}", 0) for suffix in constants.MODEL_LFS_SUFFIX)
    assert not any(is_large(f"a/{name}", 10**9) for name in constants.UPLOAD_INLINE_METADATA_PATHS)
    assert (is_large("a.json", size), is_large("a.json", size + 1)) == (False, True)


# --- the same, of uploads -----------------------------------------------------------------------


def test_batch_has_an_address_for_each_blob_that_the_hub_has_not(hub: Hub, store: Store) -> None:
    token, new = store.add_user("alice"), hashlib.sha256(b"new").hexdigest()
    known = store.models[MODEL].revisions["master"][WEIGHTS]
    wanted = [{"oid": new, "size": 3}, {"oid": known.sha256, "size": known.size}]
    path = f"/api/v1/repos/models/{MODEL}/info/lfs/objects/batch"
    data = post(hub, path, token, {"objects": wanted}).json()["Data"]
    assert ([o["oid"] for o in data["objects"]], data["reused-objects"]) == ([new], [])
    url = data["objects"][0]["actions"]["upload"]["href"]
    assert re.fullmatch(rf"http://localhost:\d+/api/v1/repos/models/{MODEL}/blobs/{new}/3", url)
    other_size = [{"oid": known.sha256, "size": 1}]
    assert len(post(hub, path, token, {"objects": other_size}).json()["Data"]["objects"]) == 1
    for who, code in (("", 400), (store.add_user("bob"), 403), (token, 200)):
        headers = {"Authorization": f"Bearer {who}"} if who else {}
        assert requests.put(url, b"new", headers=headers, timeout=5).status_code == code


def test_blob_may_come_in_chunks(hub: Hub, store: Store) -> None:
    digest = hashlib.sha256(b"some words").hexdigest()
    url = f"{hub.address('uploads')}/api/v1/repos/models/{MODEL}/blobs/{digest}/10"
    headers = {"Authorization": f"Bearer {store.add_user('alice')}"}
    answer = requests.put(url, iter([b"some", b" words"]), headers=headers, timeout=5)
    assert (answer.status_code, hub.received()) == (200, 10)
    assert digest in store.blobs


def test_who_may_not_write_is_told_so(hub: Hub, store: Store) -> None:
    anonymous, other = commit(hub, "", "a"), commit(hub, store.add_user("bob"), "a")
    assert (anonymous["status"], anonymous["Code"]) == (400, NOT_LOGGED_IN)
    assert other["status"] == 404
    assert set(store.models[MODEL].revisions["master"]) == set(FILES)


def test_commits_are_limited(hub: Hub, store: Store) -> None:
    token = store.add_user("alice")
    hub.rules.commits = 2
    answers = [commit(hub, token, str(number)) for number in range(3)]
    assert [answer["status"] for answer in answers] == [200, 200, 429]
    assert answers[2]["Code"] == "E1021"
    assert "Commit frequency limit exceeded" in answers[2]["Message"]
    hub.rules.commits = None
    assert commit(hub, token, "2")["status"] == 200


@pytest.mark.parametrize("path", ["./a", "a/__pycache__/b.pyc"])
def test_path_that_the_hub_does_not_take_refuses_the_whole_commit(
    hub: Hub, store: Store, path: str
) -> None:
    hub.rules.refused += r"|(.*/)?__pycache__/.*"
    answer = commit(hub, store.add_user("alice"), "fine", path)
    assert (answer["status"], answer["Message"]) == (400, "commit rejected by repository policy")
    assert set(store.models[MODEL].revisions["master"]) == set(FILES)


def test_deleting_what_is_not_there_refuses_the_whole_commit(hub: Hub, store: Store) -> None:
    actions = [{"action": "delete", "path": path} for path in ("config.json", "none")]
    path = f"/api/v1/repos/models/{MODEL}/commit/master"
    body = {"commit_message": "go", "actions": actions}
    assert post(hub, path, store.add_user("alice"), body).status_code == 400
    assert set(store.models[MODEL].revisions["master"]) == set(FILES)


def test_unchanged_file_may_be_refused(hub: Hub, store: Store) -> None:
    token = store.add_user("alice")
    hub.rules.refuse_unchanged = True
    again = commit(hub, token, "config.json", content=FILES["config.json"])
    assert (again["status"], commit(hub, token, "config.json")["status"]) == (400, 200)
    assert "A file with this name already exists" in again["Message"]


def test_list_may_lag_behind_a_commit(hub: Hub, store: Store) -> None:
    token = store.add_user("alice")
    hub.rules.lag = 2
    commit(hub, token, "new")
    assert ["new" in listed(hub) for _ in range(4)] == [False, False, True, True]
    hub.rules.lag = 0
    commit(hub, token, "unseen")
    hub.rules.lag_seconds = 0.5
    commit(hub, token, "newer")
    assert "unseen" in listed(hub)
    assert "newer" not in listed(hub)
    wait_until(lambda: "newer" in listed(hub))


def test_restarted_hub_is_at_the_same_addresses(hub: Hub) -> None:
    url = address(hub).headers["Location"]
    hub.restart()
    assert requests.get(url, timeout=5).content == FILES[WEIGHTS]
    assert address(hub, "config.json").content == FILES["config.json"]


# --- python -m tests.hub ------------------------------------------------------------------------


def embedded(*words: object) -> list[object]:
    return [sys.executable, "-m", "tests.hub", *words]


def test_embedded_hub_runs_a_command_and_passes_its_exit_code_on(client: Client) -> None:
    env = {"PYTHONPATH": str(ROOT), "MODELSCOPE_ENDPOINT": None}
    script = [sys.executable, ROOT / "download_model.py", "--cache_dir", "model"]
    result = client.run(*embedded("--", *script), **env)
    folder = snapshot(client.work / "model", MAIN)
    assert result.code == 0, result
    assert result.lines[1:] == ["Model download successful!", f"Resolved model_dir: {folder}"]
    assert not (client.home / ".modelscope").exists()
    for code in (1, 2, 130):
        fails = embedded("--", sys.executable, "-c", f"raise SystemExit({code})")
        assert client.run(*fails, **env).code == code
    killed = embedded("--", "sh", "-c", "kill -TERM $$")
    assert client.run(*killed, **env).code == 128 + signal.SIGTERM


def test_embedded_hub_serves_until_ctrl_c_and_prints_the_lines_to_paste(client: Client) -> None:
    process = client.start(*embedded(), PYTHONPATH=str(ROOT))
    lines = []
    while not lines or lines[-1].startswith("export "):
        lines.append(process.stdout.readline().rstrip())
    paste = "; ".join([*lines[:-1], f"{sys.executable} {ROOT}/download_model.py"])
    try:
        pasted = client.run("sh", "-c", paste)
    finally:
        result = client.interrupt(process, when=lambda: True)
    assert pasted.code == 0, pasted
    assert tree(snapshot(client.work, MAIN))
    assert (result.code, result.err) == (130, "")


def test_embedded_hub_serves_and_keeps_a_folder(client: Client, tmp_path: Path) -> None:
    data, mine = tmp_path / "data", tmp_path / "mine"
    (data / "bob/model").mkdir(parents=True)
    (data / "bob/model/config.json").write_bytes(b"[]")
    mine.mkdir()
    (mine / "weights.bin").write_bytes(b"weights")
    env = {"PYTHONPATH": str(ROOT)}
    hub = embedded("--data", data, "--")
    assert client.run(*hub, "modelscope", "upload", "bob/new", mine, **env).code == 0
    for name, files in {
        "model": {"config.json": b"[]"},
        "new": OWN_FILES | {"weights.bin": b"weights"},
    }.items():
        script = [sys.executable, ROOT / "download_model.py", "--model_name", f"bob/{name}"]
        assert client.run(*hub, *script, **env).code == 0
        assert tree(snapshot(client.work, f"bob/{name}")) == files


def test_large_shard_takes_no_memory(client: Client, tmp_path: Path) -> None:
    shard = tmp_path / "data/bob/model/shard"
    shard.parent.mkdir(parents=True)
    zeros = hashlib.sha256(bytes(1 << 20) * 1024)
    with shard.open("wb") as file:
        file.truncate(1 << 30)
    command = embedded("--data", tmp_path / "data")
    with client.start(*command, PYTHONPATH=str(ROOT)) as process:
        url = process.stdout.readline().split("=")[1].strip()
        shard = f"{url}/api/v1/models/bob/model/repo?FilePath=shard"
        digest = hashlib.sha256()
        for chunk in requests.get(shard, timeout=30, stream=True).iter_content(1 << 20):
            digest.update(chunk)
        peak = Path(f"/proc/{process.pid}/status").read_text().split("VmHWM:")[1].split()[0]
        process.send_signal(signal.SIGINT)
    assert digest.hexdigest() == zeros.hexdigest()
    assert int(peak) < 200_000  # kB
