"""The stand-in hub: what others recorded of the real one, with clients that we didn't write."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from tests.hub import Hub, Store, faults
from tests.hub.models import files
from tests.hub.store import OWN_FILES, is_large
from tests.support.cases import BIG, FILES, MODEL, snapshot, uploaded
from tests.support.client import IGNORE_SIGINT, ROOT, Client, tree
from tests.support.real_hub import RealHub

API = f"/api/v1/models/{MODEL}"
SIZE = len(FILES[BIG])


def get(hub: Hub, path: str, token: str = "", **options: object) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return requests.get(hub.url + path, **{"headers": headers, "timeout": 5, **options})


def get_file(hub: Hub, name: str = BIG, **options: object) -> requests.Response:
    return get(hub, f"{API}/repo?Revision=master&FilePath={name}", **options)


def listed(hub: Hub, query: str = "Recursive=True") -> dict[str, dict]:
    answer = get(hub, f"{API}/repo/files?{query}").json()
    return {file["Path"]: file for file in answer["Data"]["Files"]}


def commit(hub: Hub, user: str, *paths: str, content: bytes = b"1") -> tuple[int, object, str]:
    """Commit small files; return the HTTP status, the hub's own code and its words."""
    new = {"action": "create", "type": "normal", "content": base64.b64encode(content).decode()}
    body = {"commit_message": "some files", "actions": [{**new, "path": path} for path in paths]}
    headers = {"Authorization": f"Bearer {hub.store.add_user(user)}"} if user else {}
    url = f"{hub.url}/api/v1/repos/models/{MODEL}/commit/master"
    answer = requests.post(url, json=body, headers=headers, timeout=5)
    return answer.status_code, answer.json()["Code"], answer.json()["Message"]


# --- the SDK's own command ----------------------------------------------------------------------


def test_private_model_comes_after_a_login(client: Client, hub: Hub) -> None:
    hub.store.add(MODEL, FILES, private=True)
    token, place = hub.store.add_user("alice"), ["--cache_dir", "cache"]
    assert client.run("modelscope", "login", "--token", "ms-wrong").code != 0
    assert client.run("modelscope", "download", MODEL, *place).code != 0
    assert client.run("modelscope", "login", "--token", token).code == 0
    assert client.run("modelscope", "download", MODEL, *place).code == 0
    assert tree(snapshot(client.work / "cache")) == FILES
    assert {r.token for r in hub.requests("file", "config.json")} == {token}
    [stored] = hub.requests("file", BIG)
    assert (stored.host, token in str(stored.headers)) == ("storage", False)
    verify = ["modelscope", "cache", "verify", MODEL, "--cache-dir", "cache"]
    assert client.run(*verify).code == 0


@pytest.mark.parametrize("branch", [True, False], ids=["created", "without a branch"])
def test_folder_goes_up_to_a_new_repo(
    client: Client, hub: Hub, token: str, folder: Path, branch: bool
) -> None:
    if branch:
        create = ["modelscope", "create", MODEL, "--repo-type", "model", "--visibility", "private"]
        assert client.run(*create).code == 0
        assert (uploaded(hub.store), hub.store.models[MODEL].private) == (OWN_FILES, True)
    else:
        hub.store.create(MODEL, branch=False)
        paths = (API, f"{API}/revisions", f"{API}/repo/files")
        assert [get(hub, path, token).status_code for path in paths] == [200, 404, 404]
    assert client.run("modelscope", "upload", MODEL, folder).code == 0
    assert uploaded(hub.store) == (OWN_FILES if branch else {}) | FILES
    assert {request.host for request in hub.requests("blob")} == {"uploads"}
    assert hub.received() == sum(len(c) for n, c in FILES.items() if is_large(n, len(c)))


def test_hub_keeps_as_large_what_the_sdk_sends_as_large() -> None:
    from modelscope_hub import constants

    size = constants.UPLOAD_LFS_FORCE_THRESHOLD_BYTES
    assert all(is_large(f"a{suffix.upper()}", 0) for suffix in constants.MODEL_LFS_SUFFIX)
    assert not any(is_large(f"a/{name}", 10**9) for name in constants.UPLOAD_INLINE_METADATA_PATHS)
    assert (is_large("a.json", size), is_large("a.json", size + 1)) == (False, True)


def test_host_that_is_no_hub_is_refused_and_fails_the_test(tmp_path: Path) -> None:
    real = RealHub(tmp_path)
    ask = "import requests; requests.get('https://huggingface.co')"
    assert "403 Forbidden" in real.client.run("python", "-c", ask).err
    with pytest.raises(AssertionError, match=r"huggingface\.co"):
        real.close()


@pytest.mark.parametrize("partial", [True, False])
def test_range_is_answered(hub: Hub, model: str, partial: bool) -> None:
    hub.rules.partial = partial
    for wanted, start, end in (("10-19", 10, 20), (f"10-{SIZE}", 10, SIZE), (f"{SIZE}-", 0, 0)):
        answer = get_file(hub, headers={"Range": f"bytes={wanted}"})
        assert answer.status_code == ((206 if partial else 200) if end else 416)
        assert answer.content == FILES[BIG][start:end]
        assert answer.headers["Content-Range"].endswith(f"/{SIZE}")


def test_large_file_is_at_a_signed_address_until_it_expires(hub: Hub, model: str) -> None:
    moved = get_file(hub, allow_redirects=False)
    address = moved.headers["Location"]
    assert re.match(r"http://localhost:\d+/prod/lfs-objects/.*auth_key=", address)
    hub.restart()
    assert requests.get(address, timeout=5).content == FILES[BIG]
    assert requests.head(moved.url, timeout=5).headers["Content-Length"] == str(SIZE)
    hub.expire()
    assert requests.get(address, timeout=5).status_code == 403
    hub.rules.direct = True
    assert get_file(hub, allow_redirects=False).content == FILES[BIG]


@pytest.mark.parametrize("envelope", [False, True])
def test_errors_have_the_hub_s_codes(hub: Hub, model: str, envelope: bool) -> None:
    hub.store.add("alice/private", private=True)
    hub.rules.envelope = envelope
    codes = {"none/revisions": 10010205001, "private/repo/files": 10010200001}
    codes |= {"none/repo/files": 10010205001, "model/repo/files?Revision=main": 10990101004}
    for path, code in codes.items():
        answer = get(hub, f"/api/v1/models/alice/{path}")
        assert answer.status_code == (200 if envelope else 404)
        assert (answer.json()["Success"], answer.json()["Code"]) == (False, code)
    assert listed(hub, f"Revision={'a' * 40}") == {}
    paths = (API, f"{API}/repo/files", f"/openapi/v1/models/{MODEL}")
    assert [get(hub, path, "ms-revoked").status_code for path in paths] == [200, 200, 401]


def test_list_has_every_field_and_may_lack_digests(hub: Hub) -> None:
    hub.store.add(MODEL, FILES | {"empty": b""})
    found = listed(hub)
    fields = "Path Name Type Size Sha256 IsLFS InCheck Mode Revision CommittedDate"
    assert all(set(file) == set(fields.split()) for file in found.values())
    assert found[BIG]["Sha256"] == hashlib.sha256(FILES[BIG]).hexdigest()
    hub.rules.no_digest = "empty"
    assert [name for name, f in listed(hub).items() if not f["Sha256"]] == ["empty", "nested"]
    hub.rules.no_digest = "small"
    assert all(bool(file["Sha256"]) == file["IsLFS"] for file in listed(hub).values())


def test_commits_are_refused_as_a_whole(hub: Hub, model: str) -> None:
    policy = (400, 10030000001, "commit rejected by repository policy")
    assert commit(hub, "", "a") == (400, 10030000001, "user not logged in")
    assert commit(hub, "bob", "a")[0] == 404
    assert commit(hub, "alice", "fine", "./a") == commit(hub, "alice", "../a") == policy
    hub.rules.refuse_unchanged, hub.rules.commits = True, 1
    refused = commit(hub, "alice", "config.json", content=FILES["config.json"])
    assert refused == (400, 400, "A file with this name already exists: config.json")
    assert uploaded(hub.store) == FILES
    assert [commit(hub, "alice", name)[1] for name in "ab"] == [200, "E1021"]


def test_faults_are_met_in_their_order(hub: Hub, model: str) -> None:
    hub.queue("list", faults.status(500), faults.passes, times=2)
    hub.queue("list", faults.named("../out"), faults.answers([]), faults.reads(b"{"))
    hub.always("list", faults.status(404))
    answers = [get(hub, f"{API}/repo/files") for _ in range(9)]
    assert [a.status_code for a in answers] == [500, 200, 500, 200, 200, 200, 200, 404, 404]
    assert answers[4].json()["Data"]["Files"][-1]["Path"] == "../out"
    assert [answer.text for answer in answers[5:7]] == ["[]", "{"]


def test_what_goes_wrong_in_the_hub_fails_the_test(store: Store) -> None:
    with Hub(store) as hub:
        assert get(hub, "/api/v1/nothing").status_code == 404
        with pytest.raises(requests.ConnectionError):
            requests.post(f"{hub.url}/api/v1/login", data=b"no json", timeout=5)
        hub.queue("file", faults.truncate(1), file="a")
    with pytest.raises(AssertionError, match=r"GET /api/v1/nothing(.|\n)*JSON(.|\n)*a: never met"):
        hub.check()


STEPS = """
modelscope download Qwen/Qwen3-0.6B --cache_dir model
modelscope create you/your-model --repo-type model --visibility private
modelscope upload you/your-model model/models/Qwen--Qwen3-0.6B/snapshots/master
modelscope download you/your-model --local_dir back
"""


@pytest.fixture
def rehearse(client: Client) -> list[str]:
    client.env["PYTHONPATH"] = str(ROOT)
    del client.env["MODELSCOPE_ENDPOINT"]
    return [sys.executable, "-m", "tests.hub"]


def test_rehearsal_passes_ctrl_c_and_exit_code_on(client: Client, rehearse: list[str]) -> None:
    for script, code in (("exit 2", 2), ("kill -TERM $$", 128 + signal.SIGTERM)):
        assert client.run(*rehearse, "--", "sh", "-c", script).code == code
    sleep = "import time\ntry: print(flush=True); time.sleep(60)\nexcept KeyboardInterrupt: exit(7)"
    with client.start(*IGNORE_SIGINT, *rehearse, "--", "python", "-c", sleep) as process:
        process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
    assert process.returncode == 7


def test_hub_serves_and_prints_the_lines_to_paste(client: Client, rehearse: list[str]) -> None:
    process = client.start(*rehearse)
    lines = "".join(iter(process.stdout.readline, "# serving until Ctrl-C\n"))
    pasted = client.run("sh", "-ec", lines + STEPS)
    assert pasted.code == 0, pasted
    assert tree(client.work / "back") == OWN_FILES | files("draft")
    result = client.interrupt(process, when=lambda: True)
    assert (result.code, result.err) == (130, "")


def test_command_that_takes_too_long_is_killed_with_its_children(client: Client) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        client.run("sh", "-c", "(sleep 1; touch late) & sleep 60", timeout=0.5)
    time.sleep(1)
    assert tree(client.work) == {}
