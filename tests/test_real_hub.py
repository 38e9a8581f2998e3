"""What others have recorded of the real hub, met by both scripts; `README.md` has the sources."""

import pytest

from tests.hub import Hub
from tests.hub.faults import first, short, status
from tests.support.cases import (
    BIG,
    FILES,
    MODEL,
    TOTAL,
    Env,
    assert_downloaded,
    assert_failed,
    assert_uploaded,
    download,
    in_both_ways,
    upload,
)
from tests.support.client import Client, lay
from tests.support.real_hub import STORAGE, UPLOADS, RealHub


@pytest.mark.parametrize("site", ["cn", "ai"])
def test_model_is_found_on_the_site_that_has_it(real: RealHub, site: str) -> None:
    home, other = (real.cn, real.ai) if site == "cn" else (real.ai, real.cn)
    home.store.add(MODEL, FILES)
    assert_downloaded(real.client, download(real.client))
    assert (home.sent(), other.sent()) == (TOTAL, 0)
    assert real.token_hosts() == set()


@pytest.mark.parametrize("code", [401, 404, 500, 503])
def test_probe_for_the_site_that_fails_ends_no_download(real: RealHub, code: int) -> None:
    """gpustack/gpustack#2485: a model that is there can't be found."""
    real.cn.store.add(MODEL, FILES)
    real.cn.always("info", status(code))
    if code == 404:  # the SDK asks twice
        real.cn.always("legacy_info", status(404))
    assert_downloaded(real.client, download(real.client))
    assert real.ai.requests("list") == []


def test_revoked_login_keeps_only_a_private_model_from_coming(real: RealHub) -> None:
    model, token = real.cn.store.add(MODEL, FILES), real.cn.store.add_user("alice")
    assert real.client.run("modelscope", "login", "--token", token).code == 0
    real.cn.store.users.clear()
    assert_downloaded(real.client, download(real.client))
    model.private = True
    assert_failed(download(real.client), "Model download FAILED: ", "no access", "--token")


def test_token_in_a_header_stays_away_from_the_storage_host(real: RealHub) -> None:
    real.cn.store.add(MODEL, FILES, private=True)
    result = download(real.client, "--token", real.cn.store.add_user("alice"))
    assert_downloaded(real.client, result)
    stored = [request for request in real.cn.log if request.host == "storage"]
    assert {(r.headers["Host"], r.headers["Authorization"]) for r in stored} == {(STORAGE, None)}


@pytest.mark.parametrize("code", [200, 403, 500])
def test_upload_gives_the_token_to_its_two_hosts_only(real: RealHub, code: int) -> None:
    real.cn.store.add(MODEL)
    lay(real.client.work / "folder", FILES)
    if code != 200:
        real.cn.always("info", status(code))
    result = upload(real.client, "--token", real.cn.store.add_user("alice"))
    assert_uploaded(real.cn.store, result)
    assert {blob.headers["Host"] for blob in real.cn.requests("blob")} == {UPLOADS}
    assert real.token_hosts() == {"modelscope.cn", UPLOADS}
    assert real.ai.log == real.cn.requests("create") == []


@pytest.mark.parametrize(("code", "words"), [(200, f"仓库 {MODEL} 不存在"), (500, "上传失败：")])
def test_repo_that_neither_site_has_is_not_created(real: RealHub, code: int, words: str) -> None:
    lay(real.client.work / "folder", {"config.json": b"{}"})
    if code != 200:
        real.cn.always("info", status(code))
    result = upload(real.client, "--token", real.cn.store.add_user("alice"))
    assert_failed(result, words)
    assert real.cn.store.models == real.ai.store.models == {}


@pytest.mark.parametrize("which", ["empty", "small"])
def test_file_without_a_digest_comes(client: Client, hub: Hub, which: str) -> None:
    files = FILES | {"nested/empty": b""}
    hub.store.add(MODEL, files)
    hub.rules.no_digest = which
    assert_downloaded(client, download(client), files)


@in_both_ways
@pytest.mark.usefixtures("model")
def test_expired_address_is_asked_for_again(client: Client, hub: Hub, env: Env) -> None:
    hub.queue("file", first(hub.expire), file=BIG)
    assert_downloaded(client, download(client, **env))
    assert 403 in {request.status for request in hub.requests("file", BIG)}
    assert len(hub.requests("file", "config.json")) == 1


@in_both_ways
@pytest.mark.parametrize("partial", [True, False], ids=["206", "200"])
@pytest.mark.usefixtures("model")
def test_range_comes_with_either_code(client: Client, hub: Hub, env: Env, partial: bool) -> None:
    hub.rules.partial = partial
    hub.queue("file", short(100_000), file=BIG)
    assert_downloaded(client, download(client, **env))
    codes = [request.status for request in hub.requests("file", BIG)]
    assert (hub.sent(), len(codes), 206 in codes) == (TOTAL, 4 if env else 2, partial)
