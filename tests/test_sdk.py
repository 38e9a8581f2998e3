"""What a hub must do around models, with the SDK's own interface as the client."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.hub import Hub, Store
from tests.hub.store import OWN_FILES
from tests.support.client import Client, Result, lay, tree
from tests.support.download import FILES, MODEL, WEIGHTS

START = """
import json
from modelscope.hub.api import HubApi as OldApi
from modelscope_hub import HubApi
api, old = HubApi(), OldApi()
"""


class Sdk:
    """The SDK in a process of its own, on a user's machine."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def run(self, *lines: str, **env: str | None) -> Result:
        return self.client.run("python", "-c", START + "\n".join(lines), **env)

    def __call__(self, *lines: str, **env: str | None) -> Any:
        """Run `lines`, and return the value of the last one."""
        result = self.run(*lines[:-1], f"print('\\n' + json.dumps({lines[-1]}))", **env)
        assert result.code == 0, result
        return json.loads(result.lines[-1])

    def fails(self, line: str, **env: str | None) -> str:
        """Run `line`, which is to raise an exception, and return what Python says of it."""
        result = self.run(line, **env)
        assert result.code == 1, result
        return result.err


@pytest.fixture
def sdk(client: Client, store: Store) -> Sdk:
    client.env["MODELSCOPE_API_TOKEN"] = store.add_user("alice")
    return Sdk(client)


@pytest.fixture
def model(store: Store) -> None:
    store.add(MODEL, FILES)


def names(store: Store, model: str = MODEL) -> set[str]:
    return set(store.models[model].revisions["master"])


LIST = f"sorted(f.path for f in api.list_repo_files({MODEL!r}, 'model') if not f.is_dir)"

# --- models -------------------------------------------------------------------------------------


def test_created_model_exists_and_holds_the_files_of_the_hub(sdk: Sdk, store: Store) -> None:
    create = f"made = api.create_repo({MODEL!r}, 'model', visibility='private')"
    exists = f"[made.repo_id, api.repo_exists({MODEL!r}, 'model'), old.repo_exists({MODEL!r})]"
    assert sdk(create, exists) == [MODEL, True, True]
    assert tree(store.root / MODEL) == OWN_FILES
    assert store.models[MODEL].private


@pytest.mark.usefixtures("model")
def test_model_that_exists_is_not_created_again(sdk: Sdk) -> None:
    create = f"api.create_repo({MODEL!r}, 'model')"
    assert "AlreadyExistsError" in sdk.fails(create)


def test_model_of_another_is_not_created(sdk: Sdk, store: Store) -> None:
    assert "PermissionDeniedError" in sdk.fails("api.create_repo('bob/mine', 'model')")
    assert store.models == {}


def test_model_that_is_not_there_does_not_exist(sdk: Sdk) -> None:
    assert sdk("[api.repo_exists('alice/none', 'model'), old.repo_exists('alice/none')]") == [
        False,
        False,
    ]
    assert "NotExistError" in sdk.fails("api.get_repo('alice/none', 'model')")


@pytest.mark.usefixtures("model")
def test_model_says_who_may_see_it(sdk: Sdk, store: Store) -> None:
    store.add("alice/private", private=True)
    asked = f"[int(api.get_repo(m, 'model').visibility) for m in ({MODEL!r}, 'alice/private')]"
    assert sdk(asked) == [5, 1]  # public, private


def test_models_of_an_owner_are_listed_a_page_at_a_time(sdk: Sdk, store: Store) -> None:
    for name in ("alice/a", "alice/b", "alice/c", "bob/a"):
        store.add(name)
    store.add("alice/secret", private=True)
    show = "[page.total_count, [repo.repo_id for repo in page.items]]"
    ask = "page = {}.list_repos('model', owner='alice', page_size=3, page_number={})"
    assert sdk(ask.format("api", 1), show) == [4, ["alice/a", "alice/b", "alice/c"]]
    assert sdk(ask.format("old", 2), show) == [4, ["alice/secret"]]
    assert sdk(ask.format("old", 2), show, MODELSCOPE_API_TOKEN=None) == [3, []]
    assert sdk("page = api.list_repos('model', search='B')", show) == [2, ["alice/b", "bob/a"]]


@pytest.mark.usefixtures("model")
def test_model_is_not_deleted_with_a_token(sdk: Sdk, store: Store) -> None:
    assert "no longer supports deletion operations" in sdk.fails(f"old.delete_model({MODEL!r})")
    assert names(store) == set(FILES)


# --- files --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("model")
def test_file_goes_up_and_is_listed_and_comes_down(sdk: Sdk, hub: Hub, store: Store) -> None:
    for name, size in (("notes.md", 5), ("more.bin", 100_000)):
        upload = f"api.upload_file({MODEL!r}, 'model', b'x' * {size}, 'docs/{name}')"
        download = f"path = api.download_file({MODEL!r}, 'model', 'docs/{name}', local_dir='here')"
        assert sdk(upload, download, "str(path)").endswith(f"here/docs/{name}")
        assert (sdk.client.work / "here/docs" / name).read_bytes() == b"x" * size
    expected = sorted([*FILES, "docs/notes.md", "docs/more.bin"])
    assert sdk(LIST) == expected
    assert names(store) == set(expected)
    assert hub.received() == 100_000  # the small one went with its commit


def test_folder_goes_up_and_comes_down(sdk: Sdk, store: Store) -> None:
    store.add(MODEL)
    lay(sdk.client.work / "folder", FILES)
    upload = f"api.upload_folder({MODEL!r}, 'model', 'folder', commit_message='all of it')"
    download = f"api.download_repo({MODEL!r}, 'model', local_dir='{{}}', {{}})"
    sdk(upload, "0")
    assert store.models[MODEL].messages[0].startswith("all of it")
    sdk(download.format("all", ""), download.format("some", "allow_patterns=['*.json']"), "0")
    assert tree(sdk.client.work / "all") == FILES
    some = {name: content for name, content in FILES.items() if name.endswith(".json")}
    assert tree(sdk.client.work / "some") == some


@pytest.mark.usefixtures("model")
def test_folder_goes_up_into_a_folder_and_sends_no_blob_twice(sdk: Sdk, hub: Hub) -> None:
    lay(sdk.client.work / "folder", FILES)
    sdk(f"api.upload_folder({MODEL!r}, 'model', 'folder', path_in_repo='copy')", "0")
    assert sdk(LIST) == sorted([*FILES, *(f"copy/{name}" for name in FILES)])
    assert hub.received() == 0


@pytest.mark.usefixtures("model")
def test_list_says_what_a_client_checks_against(sdk: Sdk, store: Store) -> None:
    files = f"api.list_repo_files({MODEL!r}, 'model')"
    show = f"{{f.path: [f.size, f.sha256] for f in {files} if not f.is_dir}}"
    blobs = store.models[MODEL].revisions["master"]
    assert sdk(show) == {name: [blob.size, blob.sha256] for name, blob in blobs.items()}


@pytest.mark.usefixtures("model")
def test_get_model_files_lists_a_folder_and_all(sdk: Sdk) -> None:
    ask = f"[sorted(f['Path'] for f in old.get_model_files({MODEL!r}, {{}}))]"
    assert sdk(ask.format("recursive=False")) == [["config.json", WEIGHTS, "nested"]]
    deep = ["nested", "nested/deep", "nested/deep/tokenizer.json"]
    assert sdk(ask.format("root='nested'")) == [deep]
    assert sdk(ask.format("")) == [sorted(["config.json", WEIGHTS, *deep])]


@pytest.mark.usefixtures("model")
def test_files_are_deleted_by_path_and_by_pattern(sdk: Sdk, store: Store) -> None:
    by_path = f"gone = api.delete_files({MODEL!r}, 'model', ['config.json'])"
    assert sdk(by_path, "gone['deleted_files']") == ["config.json"]
    assert sdk(LIST) == [WEIGHTS, "nested/deep/tokenizer.json"]
    by_pattern = f"gone = old.delete_files({MODEL!r}, delete_patterns='*.json')"
    assert sdk(by_pattern, "gone['deleted_files']") == ["nested/deep/tokenizer.json"]
    assert sdk(LIST) == [WEIGHTS]
    assert names(store) == {WEIGHTS}


# --- revisions ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("model")
def test_tag_keeps_the_files_that_it_was_made_of(sdk: Sdk, store: Store) -> None:
    tag = f"api.create_repo_tag({MODEL!r}, 'model', 'v1')"
    change = f"api.upload_file({MODEL!r}, 'model', b'[]', 'config.json')"
    sdk(tag, change, "0")
    for revision, config in (("v1", b"{}"), ("master", b"[]")):
        fetch = f"api.download_repo({MODEL!r}, 'model', local_dir={revision!r}, revision=%r)"
        sdk(fetch % revision, "0")
        assert tree(sdk.client.work / revision) == FILES | {"config.json": config}
    listed = f"sorted(r['Revision'] for r in api.list_repo_revisions({MODEL!r}, 'model'))"
    assert sdk(listed) == ["master", "v1"]


@pytest.mark.usefixtures("model")
def test_branches_and_tags_are_told_apart(sdk: Sdk, store: Store) -> None:
    store.add(MODEL, {"config.json": b"new"}, revision="next")
    sdk(f"old.create_model_tag({MODEL!r}, 'v1')", "0")
    assert sdk(f"old.get_model_branches_and_tags({MODEL!r})") == [["master", "next"], ["v1"]]
    valid = f"[old.get_valid_revision({MODEL!r}, r) for r in (None, 'master', 'next', 'v1')]"
    assert sdk(valid) == ["master", "master", "next", "v1"]


@pytest.mark.usefixtures("model")
def test_revision_that_is_not_there_is_refused(sdk: Sdk) -> None:
    for revision in ("main", "v9"):
        ask = f"old.get_valid_revision({MODEL!r}, {revision!r})"
        assert f"has no revision: {revision}" in sdk.fails(ask)
        assert "获取模型目录树失败" in sdk.fails(
            f"api.list_repo_files({MODEL!r}, 'model', revision={revision!r})"
        )


@pytest.mark.usefixtures("model")
def test_tag_is_made_once_and_of_what_is_there(sdk: Sdk) -> None:
    tag = "api.create_repo_tag({!r}, 'model', 'v1', revision={!r})"
    assert "NotExistError" in sdk.fails(tag.format(MODEL, "none"))
    sdk(tag.format(MODEL, "master"), "0")
    assert "AlreadyExistsError" in sdk.fails(tag.format(MODEL, "master"))


@pytest.mark.usefixtures("model")
def test_commit_is_a_revision_and_an_unknown_one_is_empty(sdk: Sdk, store: Store) -> None:
    for content in ("one", "two"):
        sdk(f"api.upload_file({MODEL!r}, 'model', b{content!r}, 'config.json')", "0")
    first = f"{1:040x}"
    ask = "[f.path for f in api.list_repo_files({!r}, 'model', revision={!r}) if not f.is_dir]"
    assert sorted(sdk(ask.format(MODEL, first))) == sorted(FILES)
    assert sdk(ask.format(MODEL, "f" * 40)) == []
    where = f"revision={first!r}, local_dir='.'"
    sdk(f"api.download_file({MODEL!r}, 'model', 'config.json', {where})", "0")
    assert (sdk.client.work / "config.json").read_bytes() == b"one"


# --- users --------------------------------------------------------------------------------------


def test_login_is_kept_until_logout(sdk: Sdk, store: Store) -> None:
    token = sdk.client.env.pop("MODELSCOPE_API_TOKEN")
    store.add("alice/private", FILES, private=True)
    seen = "old.repo_exists('alice/private')"
    assert sdk(seen) is False
    assert sdk(f"[api.login({token!r}).username, old.login({token!r})[0]]") == [
        "alice",
        f"git-{token}",
    ]
    assert sdk(f"[api.whoami().username, {seen}]") == ["alice", True]
    assert sdk("api.logout()", seen) is False
    assert "AuthenticationError" in sdk.fails("api.whoami()")


def test_wrong_token_is_rejected_and_the_stored_login_stays(sdk: Sdk) -> None:
    token = sdk.client.env.pop("MODELSCOPE_API_TOKEN")
    sdk(f"api.login({token!r})", "0")
    assert "AccessToken is invalid or expired" in sdk.fails("api.login('ms-wrong')")
    assert sdk("api.whoami().email") == "alice@example.com"


@pytest.mark.usefixtures("model")
def test_revoked_token_reads_a_public_model_by_the_older_interface(sdk: Sdk, hub: Hub) -> None:
    revoked = {"MODELSCOPE_API_TOKEN": "ms-revoked"}
    assert "AuthenticationError" in sdk.fails(f"api.get_repo({MODEL!r}, 'model')", **revoked)
    assert sdk(LIST, **revoked) == sorted(FILES)
    assert {r.token for r in hub.requests("list")} == {"ms-revoked"}


# --- the cache ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("model")
def test_cache_knows_what_was_downloaded_and_gives_it_back(sdk: Sdk) -> None:
    fetch = f"api.download_repo({MODEL!r}, 'model', cache_dir='cache')"
    scan = "info = api.scan_cache('cache')"
    show = "[info.total_size, [repo.repo_id for repo in info.repos]]"
    size = sum(map(len, FILES.values()))
    assert sdk(scan, show) == [0, []]
    assert sdk(fetch, scan, show) == [size, [MODEL]]
    assert sdk("api.clear_cache(cache_dir='cache', repo_type='model')") == size
    assert sdk(scan, show) == [0, []]
