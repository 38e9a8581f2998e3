"""The stand-in hub: what others recorded of the real one, with clients that we didn't write."""

import os
import signal
import sys
from pathlib import Path

import pytest
import requests

from tests.hub import Hub, Store, faults
from tests.hub.store import OWN_FILES, is_large
from tests.support.cases import BIG, FILES, IGNORE_SIGINT, MODEL, snapshot, uploaded
from tests.support.client import ROOT, Client, tree
from tests.support.real_hub import RealHub


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


def test_files_may_be_listed_without_digests(hub: Hub) -> None:
    hub.store.add(MODEL, FILES | {"empty": b""})

    def listed() -> dict[str, dict]:
        answer = requests.get(f"{hub.url}/api/v1/models/{MODEL}/repo/files", timeout=5)
        return {file["Path"]: file for file in answer.json()["Data"]["Files"]}

    hub.rules.no_digest = "empty"
    assert [name for name, f in listed().items() if not f["Sha256"]] == ["empty", "nested"]
    hub.rules.no_digest = "small"
    assert all(bool(file["Sha256"]) == file["IsLFS"] for file in listed().values())


def test_what_goes_wrong_in_the_hub_fails_the_test(store: Store) -> None:
    with Hub(store) as hub:
        assert requests.get(f"{hub.url}/api/v1/nothing", timeout=5).status_code == 404
        with pytest.raises(requests.ConnectionError):
            requests.post(f"{hub.url}/api/v1/login", data=b"no json", timeout=5)
        hub.queue("file", faults.truncate(1), file="a")
    with pytest.raises(AssertionError, match=r"GET /api/v1/nothing(.|\n)*JSON(.|\n)*a: never met"):
        hub.check()


def test_rehearsal_passes_ctrl_c_and_exit_code_on(client: Client) -> None:
    client.env["PYTHONPATH"] = str(ROOT)
    rehearse = [sys.executable, "-m", "tests.hub", "--"]
    for script, code in (("exit 2", 2), ("kill -TERM $$", 128 + signal.SIGTERM)):
        assert client.run(*rehearse, "sh", "-c", script).code == code
    sleep = "import time\ntry: print(flush=True); time.sleep(60)\nexcept KeyboardInterrupt: exit(7)"
    with client.start(*IGNORE_SIGINT, *rehearse, "python", "-c", sleep) as process:
        process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
    assert process.returncode == 7
