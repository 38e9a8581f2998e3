"""The stand-in at the addresses of the real hub, as every user meets it; by an older SDK too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import Store
from tests.hub.faults import status
from tests.hub.store import OWN_FILES
from tests.support.client import lay, tree
from tests.support.download import FILES, MODEL, WEIGHTS, snapshot
from tests.support.real_addresses import RealHub, real_hub

OLD_PYTHON = os.environ.get("OLD_SDK_PYTHON", "")
old_sdk = pytest.mark.skipif(
    not OLD_PYTHON,
    reason="OLD_SDK_PYTHON is not set: the python of a venv with modelscope==1.35.3",
)


@pytest.fixture
def real(tmp_path: Path) -> Iterator[RealHub]:
    with real_hub(tmp_path / "real", Store(tmp_path / "cn"), Store(tmp_path / "ai")) as real:
        yield real


def cli(real: RealHub, *words: object) -> int:
    return real.client.run("modelscope", *words).code


@pytest.mark.parametrize("site", ["cn", "ai"])
def test_model_is_found_on_the_site_that_has_it(real: RealHub, site: str) -> None:
    home = getattr(real, site)
    home.store.add(MODEL, FILES)
    assert cli(real, "download", MODEL, "--cache_dir", "cache") == 0
    assert tree(snapshot(real.client.work / "cache")) == FILES
    assert home.sent() == sum(map(len, FILES.values()))
    other = real.ai if site == "cn" else real.cn
    assert other.requests("file") == []


def test_token_stays_in_the_domain_of_the_hub(real: RealHub) -> None:
    real.cn.store.add(MODEL, FILES, private=True)
    assert cli(real, "login", "--token", real.cn.store.add_user("alice")) == 0
    assert cli(real, "download", MODEL, "--cache_dir", "cache") == 0
    assert tree(snapshot(real.client.work / "cache")) == FILES
    [transfer] = real.cn.requests("file", WEIGHTS)
    assert (transfer.host, transfer.sent) == ("storage", len(FILES[WEIGHTS]))
    # The SDK's cookie is one of the whole domain, which the storage host is in; the header isn't.
    assert transfer.headers["Authorization"] is None
    assert real.met_a_token() == {"modelscope.cn", "cdn-lfs-cn-1.modelscope.cn"}


def test_upload_sends_blobs_to_the_host_for_uploads(real: RealHub) -> None:
    lay(real.client.work / "folder", FILES)
    token = real.cn.store.add_user("alice")
    assert cli(real, "upload", "--token", token, "alice/new", "folder") == 0
    assert tree(real.cn.store.root / "alice/new") == OWN_FILES | FILES
    [blob] = real.cn.requests("blob")
    assert (blob.host, blob.received) == ("uploads", len(FILES[WEIGHTS]))
    assert real.met_a_token() == {"modelscope.cn", "lfs.modelscope.cn"}
    assert real.ai.log == []


def test_script_is_run_as_by_a_user(real: RealHub) -> None:
    real.cn.store.add(MODEL, FILES)
    result = real.client.run("download_model.py", "--model_name", MODEL, "--cache_dir", "cache")
    assert result.code == 0, result
    assert tree(snapshot(real.client.work / "cache")) == FILES


@pytest.mark.parametrize("code", [401, 500, 503])
def test_probe_that_fails_leaves_the_chinese_site(real: RealHub, code: int) -> None:
    real.cn.store.add(MODEL, FILES)
    real.cn.always("info", status(code))
    assert cli(real, "download", MODEL, "--cache_dir", "cache") == 0
    assert tree(snapshot(real.client.work / "cache")) == FILES
    assert real.ai.log == []


def test_other_name_is_not_found_and_noticed(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match=r"looked up.*huggingface"),
        real_hub(tmp_path / "real", Store(tmp_path / "cn"), Store(tmp_path / "ai")) as real,
    ):
        code = "import socket; socket.getaddrinfo('huggingface.co', 443)"
        assert "Name or service not known" in real.client.run("python", "-c", code).err


# --- an older SDK -------------------------------------------------------------------------------

OLD_DOWNLOAD = """
from modelscope import snapshot_download
print(snapshot_download({model!r}, cache_dir="cache", revision="master"))
"""
OLD_UPLOAD = """
from modelscope.hub.api import HubApi
api = HubApi()
api.login({token!r})
api.upload_folder(repo_id="alice/new", folder_path="folder", commit_message="from before")
"""


@old_sdk
@pytest.mark.parametrize("site", ["cn", "ai"])
def test_older_sdk_downloads(real: RealHub, site: str) -> None:
    getattr(real, site).store.add(MODEL, FILES)
    result = real.client.run(OLD_PYTHON, "-c", OLD_DOWNLOAD.format(model=MODEL))
    assert result.code == 0, result
    assert tree(real.client.work / "cache" / MODEL).items() >= FILES.items()
    assert real.met_a_token() == set()


@old_sdk
def test_older_sdk_logs_in_and_uploads(real: RealHub) -> None:
    lay(real.client.work / "folder", FILES)
    token = real.cn.store.add_user("alice")
    result = real.client.run(OLD_PYTHON, "-c", OLD_UPLOAD.format(token=token))
    assert result.code == 0, result
    assert tree(real.cn.store.root / "alice/new") == OWN_FILES | FILES
    assert real.met_a_token() == {"www.modelscope.cn", "lfs.modelscope.cn"}
