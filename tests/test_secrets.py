"""What is never shown and never sent where it doesn't belong: tokens, passwords, signatures."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub import Hub, Store
from tests.hub.faults import first, status
from tests.support.cases import (
    BIG,
    FILES,
    MODEL,
    SOON,
    assert_uploaded,
    download,
    upload,
)
from tests.support.client import Client, Result, lay

Run = Callable[..., Result]
STEPS = {
    download: ("login", "me", "list", "file"),
    upload: ("login", "me", "list", "batch", "blob", "commit"),
}
LOGIN = "me:pa55:w%40rd"
both = pytest.mark.parametrize("run", [download, upload])


@pytest.fixture(autouse=True)
def private(store: Store, folder: Path) -> None:
    """A private model, empty for now, and a folder to upload to it."""
    store.add(MODEL, private=True)


def unseen(result: Result, *secrets: str) -> None:
    """Assert that no stream shows a secret, nor a traceback."""
    for text in ("Traceback", *secrets):
        assert text not in result.out, result
        assert text not in result.err, result


# --- the token is not shown -----------------------------------------------------------------------


@both
def test_help_shows_no_token(client: Client, run: Run, token: str) -> None:
    result = run(client, "--help", MODELSCOPE_TOKEN=token)
    assert result.code == 0
    unseen(result, token)


USAGE = {  # what is typed, and what is said; xx stands for what may be a token
    "--tokne xx": "unrecognized arguments; did you mean --token?",
    "--token=xx --tok=xx": "unrecognized arguments",  # and no abbreviation
    "-x=xx xx": "unrecognized arguments. ",
    "--token xx --token": "argument --token",
}


@both
@pytest.mark.parametrize("words", USAGE)
def test_usage_error_is_1_and_repeats_nothing(
    client: Client, hub: Hub, run: Run, words: str
) -> None:
    result = run(client, *words.replace("xx", "ms-5ecre7").split())
    assert (result.code, result.out, hub.log) == (1, "", [])
    assert result.err.startswith("usage: ")
    assert result.err.splitlines()[-1].startswith(f"error: {USAGE[words]}"), result
    unseen(result, "5ecre7")


@pytest.mark.parametrize(("run", "route"), [(run, route) for run in STEPS for route in STEPS[run]])
def test_token_in_any_answer_is_not_shown(client: Client, hub: Hub, run: Run, route: str) -> None:
    """Such an answer holds what was sent: headers and a body."""
    hub.store.add(MODEL, FILES if run is download else {})
    token = "ms-5ec_re7.5ec~re7+5ec/re7="
    hub.store.users[token] = "alice"
    hub.always(route, status(400, f"refused: Bearer {token}"))
    result = run(client, MODELSCOPE_API_TOKEN=token, MODELSCOPE_LOG_LEVEL="10", **SOON)
    assert result.code == 1
    assert "refused: Bearer ***" in result.out + result.err
    unseen(result, "5ec", "re7")


@both
@pytest.mark.parametrize(
    "token", ["ms-5ec\nre7", "ms-5ecré7", "ms-5ec\\re7", "ms-5ec'\"re7", "5ec-re7"]
)
def test_impossible_token_is_refused_unseen(client: Client, hub: Hub, run: Run, token: str) -> None:
    result = run(client, "--token", token)
    assert result.code == 1
    assert "ValueError(" in result.out + result.err
    unseen(result, "5ec", "re7")
    assert hub.log == []


@both
def test_blank_variable_hides_no_login(client: Client, hub: Hub, run: Run, token: str) -> None:
    hub.store.add(MODEL, FILES)
    assert client.run("modelscope", "login", "--token", token).code == 0
    blank = {"MODELSCOPE_API_TOKEN": " ", "MODELSCOPE_TOKEN": ""}
    assert run(client, **blank).code == 0
    lay(client.work / "folder", {"new.bin": b"new"})
    hub.always("file" if run is download else "commit", status(403, f"refused: {token}"))
    result = run(client, *(["--cache_dir", "2"] if run is download else []), **blank)
    assert "refused: ***" in result.out + result.err
    unseen(result, token)


@both
def test_token_that_another_overrules_is_not_shown(client: Client, run: Run, token: str) -> None:
    name = {download: "--model_name", upload: "--repo-id"}[run]
    options = [name, "alice/ms-0ther", "--token", token]
    result = run(client, *options, MODELSCOPE_API_TOKEN="ms-0ther")
    assert "alice/***" in result.out
    unseen(result, "0ther")


# --- nor are passwords and signatures -------------------------------------------------------------


@both
@pytest.mark.parametrize("name", ["model", "my model's name", "me@work"])
@pytest.mark.skipif(sys.platform == "win32", reason="it has other paths")
def test_path_like_a_secret_is_shown(
    client: Client, store: Store, run: Run, token: str, name: str
) -> None:
    """As a token variable that another overrules has the same word, or as it begins with //."""
    store.add(MODEL, FILES)
    path = f"/{lay(client.work / name, FILES)}"
    option = "--cache_dir" if run is download else "--model-dir"
    result = run(client, option, path, "--token", token, MODELSCOPE_TOKEN=name)
    assert result.code == 0, result
    assert path in result.out


@both
def test_password_of_the_hub_is_not_shown(client: Client, hub: Hub, run: Run) -> None:
    hub.store.models[MODEL].private = False
    if run is download:
        hub.store.add(MODEL, FILES)
        hub.always("file", status(403), file="config.json")
    result = run(client, MODELSCOPE_ENDPOINT=hub.url.replace("://", f"://{LOGIN}@"), **SOON)
    assert result.code == 1
    assert "http://***@127.0.0.1:" in result.err
    unseen(result, "pa55", "w%40rd", "w@rd")


@both
@pytest.mark.parametrize("answer", [True, False])
def test_password_of_a_proxy_is_not_shown(
    client: Client, hub: Hub, run: Run, token: str, answer: bool
) -> None:
    proxy = f"http://{LOGIN}@127.0.0.1:9"
    if answer:
        proxy = hub.url.replace("://", f"://{LOGIN}@")
        hub.always("login", status(400, f"{proxy} does not let you pass"))
    result = run(client, HTTP_PROXY=proxy, MODELSCOPE_LOG_LEVEL="10")
    assert result.code == 1
    assert ("does not let you pass" in result.out + result.err) == answer
    unseen(result, "pa55", "w%40rd", "w@rd", token)


def test_signature_of_an_address_is_not_shown(client: Client, hub: Hub, token: str) -> None:
    hub.store.add(MODEL, FILES)
    hub.always("file", first(hub.expire), file=BIG)
    result = download(client, MODELSCOPE_LOG_LEVEL="10")
    assert result.code == 1
    assert "/prod/lfs-objects/" in result.out + result.err
    unseen(result, *hub.signed, token)


# --- and each goes only where it belongs ----------------------------------------------------------


@pytest.mark.parametrize(
    ("home", "model_dir"),
    [
        ("folder/nested", "folder"),
        ("folder/odd [x]", "folder"),
        (".", "folder"),
        ("link/nested", "folder"),
        ("folder", "link"),
        ("folder", "folder/nested/.."),
        ("other", "folder"),
    ],
)
def test_login_of_this_machine_never_goes_up(
    client: Client, store: Store, folder: Path, token: str, home: str, model_dir: str
) -> None:
    (client.work / "link").symlink_to("folder")
    credentials = client.work / home / "credentials"
    login = {"MODELSCOPE_HOME": str(client.work / home)}
    assert client.run("modelscope", "login", "--token", token, **login).code == 0
    (folder / "linked").symlink_to(credentials / "session")
    result = upload(client, MODEL_DIR=model_dir, **login)
    assert_uploaded(store, result)
    assert "'linked'" in result.err


def test_login_of_another_home_never_goes_up(
    client: Client, store: Store, folder: Path, token: str
) -> None:
    home = str(folder / "nested/home")
    assert client.run("modelscope", "login", "--token", token, MODELSCOPE_HOME=home).code == 0
    assert_uploaded(store, upload(client))
