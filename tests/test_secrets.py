"""What is never shown and never sent: tokens, passwords, signatures, files that hold secrets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.hub import Hub, Store
from tests.hub.faults import redirect, status
from tests.support.client import Client, Result, lay, tree
from tests.support.download import MODEL, WEIGHTS, download

REPO = "alice/model"
TOKEN = "ms-5ecre7"
PASSWORD = "pa55w0rd"
FILES = {"config.json": b"{}", "tokenizer_config.json": b"{}", WEIGHTS: b"weights"}


@pytest.fixture(autouse=True)
def model(store: Store) -> None:
    store.users[TOKEN] = "alice"
    store.add(MODEL, FILES)


@pytest.fixture
def folder(client: Client) -> Path:
    return lay(client.work / "folder", {**FILES, "more/notes.txt": b"more"})


def upload(client: Client, *options: object, **env: str | None) -> Result:
    env = {"REPO_ID": REPO, "MODEL_DIR": "folder", "MODELSCOPE_API_TOKEN": TOKEN, **env}
    return client.run("upload_model.py", *options, **env)


def on_hub(store: Store) -> dict[str, bytes]:
    blobs = store.models[REPO].revisions["master"]
    return {name: blob.path.read_bytes() for name, blob in blobs.items()}


def assert_unseen(secret: str, result: Result) -> None:
    assert secret not in result.out, result
    assert secret not in result.err, result
    assert "Traceback" not in result.out + result.err, result


# --- the folder with the login ------------------------------------------------------------------


@pytest.mark.parametrize("login", ["by this run", "from before"])
@pytest.mark.parametrize(
    "where",
    [
        {"HOME": "folder"},
        {"HOME": "folder/more"},
        {"MODELSCOPE_HOME": "folder/conf"},
        {"MODELSCOPE_HOME": "folder/more/.modelscope"},
        {"MODELSCOPE_HOME": "folder/odd [x]*"},
    ],
    ids=lambda where: "=".join(*where.items()),
)
def test_login_inside_the_folder_stays_behind(
    client: Client, store: Store, folder: Path, login: str, where: dict[str, str]
) -> None:
    env = {name: str(client.work / path) for name, path in where.items()}
    if login == "from before":
        assert client.run("modelscope", "login", "--token", TOKEN, **env).code == 0
    store.add(REPO)
    result = upload(client, **env)
    assert result.code == 0, result
    assert on_hub(store) == {**FILES, "more/notes.txt": b"more"}
    assert_unseen(TOKEN, result)


def test_login_behind_a_link_stays_behind(client: Client, store: Store, folder: Path) -> None:
    lay(folder / "conf", {"mine": b"1"})
    (client.work / "link").symlink_to(folder / "conf")
    store.add(REPO)
    assert upload(client, MODELSCOPE_HOME=str(client.work / "link")).code == 0
    assert on_hub(store) == {**FILES, "more/notes.txt": b"more"}


@pytest.mark.parametrize("model_dir", ["folder", "link", "folder/credentials", "folder/more"])
def test_folder_of_the_logins_itself_is_refused(
    client: Client, store: Store, folder: Path, model_dir: str
) -> None:
    (client.work / "link").symlink_to(folder)
    env = {"MODELSCOPE_HOME": str(folder)}
    assert client.run("modelscope", "login", "--token", TOKEN, **env).code == 0
    store.add(REPO)
    result = upload(client, MODEL_DIR=model_dir, **env)
    assert result.code == 1, result
    assert on_hub(store) == {}
    assert_unseen(TOKEN, result)


def test_login_that_a_run_of_another_home_left_in_the_folder_stays_behind(
    client: Client, store: Store, folder: Path
) -> None:
    env = {"HOME": str(folder / "more")}
    assert client.run("modelscope", "login", "--token", TOKEN, **env).code == 0
    store.add(REPO)
    assert upload(client).code == 0
    assert on_hub(store) == {**FILES, "more/notes.txt": b"more"}


@pytest.mark.parametrize(
    "name", ["KEY.PEM", "Server.Pem", ".ENV", ".Env.Local", "Id_Rsa", ".NETRC"]
)
def test_secret_file_stays_behind_in_any_case_of_letters(
    client: Client, store: Store, folder: Path, name: str
) -> None:
    lay(folder, {name: b"secret", f"more/{name}": b"secret"})
    store.add(REPO)
    result = upload(client)
    assert result.code == 0
    assert on_hub(store) == {**FILES, "more/notes.txt": b"more"}
    assert repr(name) in result.err
    assert repr(f"more/{name}") in result.err


def test_link_named_like_a_secret_file_stays_behind(
    client: Client, store: Store, folder: Path
) -> None:
    lay(client.home, {".netrc": b"secret"})
    (folder / ".netrc").symlink_to(client.home / ".netrc")
    store.add(REPO)
    assert upload(client).code == 0
    assert ".netrc" not in on_hub(store)


# --- the token in the wrong place ---------------------------------------------------------------

BESIDE = ["--token", TOKEN]


@pytest.mark.parametrize(
    "option",
    ["model_name", "revision", "cache_dir", "draft_model_name", "draft_revision"],
)
@pytest.mark.parametrize(
    ("shape", "how"), [("{}", "login"), ("alice/{}", "option"), ("{}/x", "variable")]
)
def test_token_given_as_another_option_of_a_download_is_not_shown(
    client: Client, option: str, shape: str, how: str
) -> None:
    options = ["--draft_model_name", MODEL] if option == "draft_revision" else []
    options += [f"--{option}", shape.format(TOKEN)]
    env = {}
    if how == "option":
        options += BESIDE
    elif how == "variable":
        env = {"MODELSCOPE_API_TOKEN": TOKEN}
    else:
        assert client.run("modelscope", "login", "--token", TOKEN).code == 0
    result = download(client, *options, **env)
    assert result.code in (0, 1, 2)
    assert_unseen(TOKEN, result)


@pytest.mark.parametrize("name", ["MODEL_ID", "SPEC_DRAFT_MODEL_ID", "SPEC_DRAFT_MODEL_REVISION"])
def test_token_in_another_variable_of_a_download_is_not_shown(client: Client, name: str) -> None:
    env = {"SPEC_DRAFT_MODEL_ID": MODEL, name: TOKEN}
    assert_unseen(TOKEN, download(client, *BESIDE, **env))


@pytest.mark.parametrize("option", ["repo-id", "model-dir", "commit-message"])
@pytest.mark.parametrize(
    ("shape", "how"),
    [("{}", "login"), ("alice/{}", "option"), ("{}/x", "variable"), ("{}", "second variable")],
)
def test_token_given_as_another_option_of_an_upload_is_not_shown(
    client: Client, hub: Hub, folder: Path, option: str, shape: str, how: str
) -> None:
    lay(client.work / shape.format(TOKEN), FILES)
    options = [f"--{option}", shape.format(TOKEN)]
    env: dict[str, str | None] = {"MODELSCOPE_API_TOKEN": None}
    if how == "option":
        options += BESIDE
    elif how == "login":
        assert client.run("modelscope", "login", "--token", TOKEN).code == 0
    else:
        name = "MODELSCOPE_API_TOKEN" if how == "variable" else "MODELSCOPE_TOKEN"
        env[name] = TOKEN
    if option == "commit-message":
        hub.always("commit", status(403, "no good"))
    assert_unseen(TOKEN, upload(client, *options, **env))


def test_token_of_the_variable_is_not_shown_when_another_is_used(client: Client) -> None:
    result = download(
        client, "--token", "ms-0ther", "--revision", TOKEN, MODELSCOPE_API_TOKEN=TOKEN
    )
    assert_unseen(TOKEN, result)


def test_token_of_a_variable_is_not_shown_when_another_logs_in(
    client: Client, store: Store, folder: Path
) -> None:
    store.users["ms-0ther"] = "alice"
    env = {"MODELSCOPE_API_TOKEN": TOKEN}
    result = download(client, "--token", "ms-0ther", "--revision", TOKEN, **env)
    assert (result.code, "Using ModelScope token" in result.out) == (1, True)
    assert_unseen(TOKEN, result)
    env = {"MODELSCOPE_API_TOKEN": "ms-0ther", "MODELSCOPE_TOKEN": TOKEN}
    assert_unseen(TOKEN, upload(client, "--repo-id", f"alice/{TOKEN}", **env))


def test_end_of_a_password_that_begins_like_another_is_not_shown(client: Client) -> None:
    proxies = {"HTTP_PROXY": f"http://me:{PASSWORD}@127.0.0.1:9"}
    proxies["FTP_PROXY"] = f"ftp://me:{PASSWORD}-l0ng@127.0.0.1:9"
    for seed in "01234567":  # the order of a set is another each time
        result = download(client, "--revision", f"{PASSWORD}-l0ng", PYTHONHASHSEED=seed, **proxies)
        assert_unseen("l0ng", result)


@pytest.mark.parametrize("script", ["download", "upload"])
def test_stored_login_that_is_damaged_shows_no_traceback(
    client: Client, folder: Path, script: str
) -> None:
    lay(client.home / ".modelscope/credentials", {"cookies": b"", "session": b"\xff"})
    result = (download if script == "download" else upload)(client, MODELSCOPE_API_TOKEN=None)
    assert_unseen("Traceback", result)


def test_token_in_a_file_name_of_the_folder_is_not_shown(client: Client, folder: Path) -> None:
    lay(folder, {f"{TOKEN}.pem": b"1", f"{TOKEN}.json": b"1"})
    os.mkfifo(folder / f"{TOKEN}.fifo")
    result = upload(client)
    assert result.code == 0
    assert_unseen(TOKEN, result)


# --- passwords and signatures in addresses ------------------------------------------------------

ENDPOINT = f"http://me:{PASSWORD}@127.0.0.1:9"


@pytest.mark.parametrize(
    "env",
    [
        {"MODELSCOPE_ENDPOINT": ENDPOINT},
        {"MODELSCOPE_ENDPOINT": f"http://me:{PASSWORD}@"},
        {"MODELSCOPE_ENDPOINT": f"http://me:{PASSWORD}/@127.0.0.1:9"},
        {"MODELSCOPE_ENDPOINT": f"http://me:a@{PASSWORD}@127.0.0.1:9"},
        {"HTTP_PROXY": ENDPOINT},
        {"HTTP_PROXY": f"http://me:a@{PASSWORD}@127.0.0.1:9"},
        {"ALL_PROXY": ENDPOINT},
        {"HTTP_PROXY": f"me:{PASSWORD}@127.0.0.1:9"},
        {"HTTP_PROXY": f"nonsense://me:{PASSWORD}@127.0.0.1:9"},
        {"HTTP_PROXY": f"http://me:{PASSWORD}@127.0.0.1:port"},
        {"HTTPS_PROXY": ENDPOINT, "MODELSCOPE_ENDPOINT": "https://127.0.0.1:9"},
    ],
    ids=lambda env: "-".join(f"{k}={v}" for k, v in env.items()).replace(PASSWORD, "…"),
)
@pytest.mark.parametrize("script", ["download", "upload"])
def test_password_in_an_address_is_not_shown(
    client: Client, folder: Path, script: str, env: dict[str, str]
) -> None:
    result = (download if script == "download" else upload)(client, **env)
    assert result.code == 1, result
    assert_unseen(PASSWORD, result)


@pytest.mark.parametrize("user", [f"me:{PASSWORD}", f"me:a@{PASSWORD}", f"me:a%40{PASSWORD}"])
@pytest.mark.parametrize("script", ["download", "upload"])
def test_password_of_a_hub_that_answers_is_not_shown(
    client: Client, hub: Hub, folder: Path, script: str, user: str
) -> None:
    endpoint = hub.url.replace("://", f"://{user}@")
    env = {"MODEL_ID": "alice/nowhere", "REPO_ID": "alice/nowhere", "MODELSCOPE_ENDPOINT": endpoint}
    result = (download if script == "download" else upload)(client, **env)
    assert result.code == 1, result
    assert hub.log
    assert_unseen(PASSWORD, result)


@pytest.mark.parametrize(
    "query",
    [
        "auth_key=1-0-0-5ecre7",
        "x=1&Signature=5ecre7%2B5ecre7",
        "X-Amz-Signature=5ecre7",
        "OSSAccessKeyId=me&Expires=1&Signature=5ecre7&security-token=5ecre7",
        "X-Amz-Security-Token=5ecre7&x-oss-signature=5ecre7",
    ],
)
def test_signature_of_an_address_is_not_shown(client: Client, hub: Hub, query: str) -> None:
    hub.always("file", redirect(f"http://127.0.0.1:9/{WEIGHTS}?{query}"), file=WEIGHTS)
    result = download(client)
    assert result.code == 1
    assert WEIGHTS in result.out
    assert_unseen("5ecre7", result)


def test_signature_in_the_words_of_the_hub_is_not_shown(
    client: Client, hub: Hub, store: Store, folder: Path
) -> None:
    hub.always("commit", status(403, "http://127.0.0.1:9/x?Signature=5ecre7&x=1 has expired"))
    store.add(REPO)
    result = upload(client)
    assert result.code == 1
    assert "has expired" in result.err
    assert_unseen("5ecre7", result)


def test_nothing_of_the_login_is_left_in_the_downloaded_folder(client: Client) -> None:
    env = {"HOME": str(client.work / "models"), "MODELSCOPE_API_TOKEN": TOKEN}
    (client.work / "models").mkdir()
    result = download(client, "--cache_dir", "models", **env)
    assert result.code == 0
    snapshot = Path(result.lines[-1].removeprefix("Resolved model_dir: "))
    assert tree(snapshot) == FILES
