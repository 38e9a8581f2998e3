"""Cases after public bug reports, each named in its test: a plainer script meets them too."""

import errno
import re
import sys

import pytest

from tests.hub import Hub, Store
from tests.hub.faults import Answer, Response, status
from tests.support.cases import (
    BIG,
    FILES,
    MODEL,
    assert_downloaded,
    assert_failed,
    assert_uploaded,
    download,
    snapshot,
    upload,
    uploaded,
)
from tests.support.client import PARTS, ROOT, Client, lay, tree

REPO = "alice/new"
linux = pytest.mark.skipif(sys.platform != "linux", reason="imitates file systems of Linux")


def both(client: Client, store: Store, **env: str | None) -> None:
    """Download a private model and upload a folder to a new repo, with a login of their owner."""
    store.add(MODEL, FILES, private=True)
    store.add(REPO)
    assert_downloaded(client, download(client, **env))
    assert_uploaded(store, upload(client, REPO_ID=REPO, **env), model=REPO)


@pytest.mark.parametrize("login", ["token", "stored"])
@pytest.mark.usefixtures("folder")
def test_netrc_replaces_no_login(client: Client, hub: Hub, token: str, login: str) -> None:
    """huggingface/huggingface_hub#2765: `requests` prefers a login of ~/.netrc to a token."""
    assert client.run("modelscope", "login", "--token", token).code == 0
    hub.log.clear()
    (client.home / ".netrc").write_text("machine 127.0.0.1 login alice password wrong\n")
    both(client, hub.store, MODELSCOPE_API_TOKEN=token if login == "token" else None)
    assert not any(str(r.headers.get("Authorization")).startswith("Basic") for r in hub.log)


def test_model_folder_below_the_sdk_home_goes_up(client: Client, store: Store, token: str) -> None:
    """kubeflow/mcp-server#33: the home can't be written, and there is one volume for all."""
    lay(client.work, {"home": b"a file, so that no rights help"})
    lay(client.work / "volume/models/mine", FILES)
    env = {"MODELSCOPE_HOME": "volume", "MODELSCOPE_CACHE": "volume/cache", "HOME": "home"}
    assert client.run("modelscope", "login", "--token", token, **env).code == 0
    store.add(REPO)
    env["MODELSCOPE_API_TOKEN"] = ""
    result = upload(client, REPO_ID=REPO, MODEL_DIR="volume/models/mine", **env)
    assert_uploaded(store, result, model=REPO)


@pytest.mark.usefixtures("model")
def test_home_that_cannot_be_used_is_no_reason_to_fail_without_a_token(client: Client) -> None:
    """av/harbor#262: the home of a container's user can't be written."""
    lay(client.work, {"home": b"a file, so that no rights help"})
    assert_downloaded(client, download(client, HOME=str(client.work / "home")))


@pytest.mark.parametrize(("code", "probes"), [(429, []), (500, ["info", "revisions"])])
@pytest.mark.usefixtures("model")
def test_hub_is_not_waited_for_an_hour(
    client: Client, hub: Hub, code: int, probes: list[str]
) -> None:
    """huggingface/huggingface_hub#3342: `Retry-After: 3600`, and the run hangs for hours."""
    for route in ("list", *probes):
        hub.always(route, status(code if route == "list" else 429, Retry_After="3600"))
    result = download(client, MODELSCOPE_REPO_TREE_LIST_TIMEOUT_SECONDS="2")
    assert_failed(result, "FAILED: ", f"Error('status {code}')")
    assert result.seconds < 30
    assert {request.route for request in hub.log} == {"list", *probes}


@pytest.mark.usefixtures("model")
def test_proxy_that_refuses_ranges_gets_the_model_in_one_stream(client: Client, hub: Hub) -> None:
    """modelscope/modelscope#197: a proxy answers 403 to every request for a range."""
    hub.rules.direct = True

    def refuse_ranges(answer: Answer) -> Response:
        request = hub.requests("file", BIG)[-1]
        return Response(403) if "Range" in request.headers else answer()

    hub.always("file", refuse_ranges, file=BIG)
    assert_downloaded(client, download(client, **PARTS))


@pytest.mark.usefixtures("folder", "token")
def test_repo_without_a_branch_is_filled(client: Client, store: Store) -> None:
    """modelscope/modelscope#1397: uploads to a repo that was just created leave it as it is."""
    store.create(MODEL, branch=False)
    assert_uploaded(store, upload(client))


REFUSE_RENAMES = """
import pathlib
def refuse(path, target):
    raise PermissionError({}, "no renames", str(path), None, str(target))
pathlib.Path.replace = refuse
"""


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
@pytest.mark.usefixtures("model")
def test_rename_that_is_refused_fails_with_its_paths(client: Client, number: int) -> None:
    """modelscope/facechain#98: a mounted bucket refuses to rename what has been downloaded."""
    target = snapshot(client.work) / "config.json"
    client.at_start(REFUSE_RENAMES.format(number))
    result = download(client)
    paths = f"{f'{target}.incomplete'!r} -> {str(target)!r}"
    assert_failed(result, "    'config.json': ", f"[Errno {number}] no renames: {paths}")


NOTHING_FREE = "return os.statvfs_result((4096, 4096, 1 << 20, 0, 0, 0, 0, 0, 0, 255))"


@linux
@pytest.mark.parametrize("does", [NOTHING_FREE, "raise OSError(95, 'Operation not supported')"])
@pytest.mark.usefixtures("model")
def test_disk_that_does_not_know_its_free_space_takes_a_model(client: Client, does: str) -> None:
    """huggingface/huggingface_hub#3097: 0 bytes on BlobFuse; Cyberdrop-DL#1450: errno 95, sshfs."""
    client.at_start(f"def statvfs(path): {does}\nos.statvfs = statvfs")
    assert_downloaded(client, download(client))


NO_LOCKS = """
import fcntl
def flock(*args):
    raise OSError(37, "No locks available")
fcntl.flock = flock
"""


@linux
@pytest.mark.usefixtures("model")
def test_disk_without_locks_shows_the_error_and_works_without_them(client: Client) -> None:
    """huggingface/datasets#2618: "[Errno 37] No locks available", of a network disk."""
    client.at_start(NO_LOCKS)
    assert_failed(download(client), "OSError(37, 'No locks available')")
    assert "`MODELSCOPE_DOWNLOAD_FILE_LOCK=0`" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert_downloaded(client, download(client, MODELSCOPE_DOWNLOAD_FILE_LOCK="0"))


@pytest.mark.usefixtures("token")
def test_old_shards_that_the_repo_keeps_are_named(client: Client, hub: Hub) -> None:
    """Blaizzard/mlx-vlm#1464: a server that goes by the old index loads the old shards."""
    index = "model.safetensors.index.json"
    weights = ["q/old.gguf", "old.bin", "old.pt", "old.pth"]
    old = dict.fromkeys([*FILES, index, *weights, "old.txt", ".gitattributes"], b"1")
    hub.store.add(MODEL, old)
    lay(client.work / "folder", {"config.json": b"{}", "model.safetensors": FILES[BIG]})
    for _ in range(2):
        hub.log.clear()
        result = upload(client)
        assert result.code == 0, result
        (named,) = re.findall("^WARNING: .*safetensors.*$", result.err, re.MULTILINE)
        expected = {index, *weights, BIG, BIG.replace("2-of", "1-of")}
        assert set(re.findall("'(.+?)'", named)) == expected
    assert not any(map(hub.requests, ("batch", "blob", "commit")))
    assert uploaded(hub.store) == old | tree(client.work / "folder")


@pytest.mark.usefixtures("token")
def test_git_lfs_pointer_is_not_taken_for_weights(client: Client, hub: Hub) -> None:
    """huggingface/diffusers#13559: a clone without git-lfs has pointers in place of the files."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 2560000\n" % 7
    lay(client.work / "folder", FILES | {BIG: pointer})
    hub.store.add(MODEL)
    result = upload(client)
    assert_failed(result, "ERROR: 上传失败：", "git-lfs", BIG)
    assert not any(map(hub.requests, ("batch", "blob", "commit")))
