"""What stands beside the scripts: the README's commands, run on what the scripts left behind."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.hub import Hub, Store
from tests.support.client import ROOT, Client, Result, tree, wait_until
from tests.support.download import snapshot
from tests.support.readme import commands, section

TITLE = "Related `modelscope` commands"
COMMANDS = commands(TITLE)
MODEL = "Qwen/Qwen3-0.6B"
BY_CLI = ("modelscope", "download", MODEL, "--cache_dir", "model")
WEIGHTS = "model.safetensors"
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"[1]",
    "merges.txt": b"a b\n",
    WEIGHTS: bytes(300_000),
}
SIZE = sum(map(len, FILES.values()))


@pytest.fixture(autouse=True)
def model(store: Store, client: Client) -> None:
    store.add(MODEL, FILES)
    for script in ("download_model.py", "upload_model.py"):
        shutil.copy(ROOT / script, client.work)


@pytest.fixture
def run(client: Client) -> Callable[..., Result]:
    """Runs a command of the README, found by the words that its row begins with."""

    def run(words: str, **env: str | None) -> Result:
        [command] = [command for row, command in COMMANDS.items() if row.startswith(words)]
        return client.run("sh", "-c", command, **env)

    return run


Run = Callable[..., Result]


def download(client: Client, *options: object, **env: str | None) -> Result:
    env.setdefault("MODEL_ID", MODEL)
    return client.run("download_model.py", "--cache_dir", "model", *options, **env)


@pytest.fixture
def folder(client: Client, hub: Hub) -> Path:
    """The folder that our script has downloaded the model to."""
    result = download(client)
    assert result.code == 0, result
    hub.log.clear()
    return snapshot(client.work / "model", MODEL)


# --- the SDK's command line ---------------------------------------------------------------------


def test_cli_downloads_the_files_that_are_asked_for(client: Client, hub: Hub, run: Run) -> None:
    assert run("download some files").code == 0
    expected = {name: data for name, data in FILES.items() if name.endswith((".json", ".txt"))}
    assert tree(client.work / "some") == expected
    assert hub.requests("file", WEIGHTS) == []


def test_login_of_the_cli_opens_a_private_model_to_both_scripts(
    client: Client, store: Store, run: Run
) -> None:
    store.add("alice/private", FILES, private=True)
    assert download(client, MODEL_ID="alice/private").code == 1
    assert run("log in once", MODELSCOPE_API_TOKEN=store.add_user("alice")).code == 0
    assert download(client, MODEL_ID="alice/private").code == 0
    mine = snapshot(client.work / "model", "alice/private")
    assert tree(mine) == FILES
    (mine / "added.json").write_bytes(b"{}")
    upload = ["upload_model.py", "--repo-id", "alice/private", "--model-dir", mine]
    assert client.run(*upload).code == 0
    assert tree(store.root / "alice/private")["added.json"] == b"{}"


def test_login_of_our_script_opens_a_private_model_to_the_cli(client: Client, store: Store) -> None:
    store.add("alice/private", FILES, private=True)
    fetch = ["modelscope", "download", "alice/private", "--local_dir", "here"]
    assert client.run(*fetch).code != 0
    assert download(client, MODELSCOPE_API_TOKEN=store.add_user("alice")).code == 0
    assert client.run(*fetch).code == 0
    assert tree(client.work / "here") == FILES


def test_cli_finds_complete_what_our_script_downloaded(
    client: Client, hub: Hub, folder: Path
) -> None:
    assert client.run(*BY_CLI).code == 0
    assert hub.sent() == 0
    assert tree(folder) == FILES


def test_our_script_finds_complete_what_the_cli_downloaded(client: Client, hub: Hub) -> None:
    assert client.run(*BY_CLI).code == 0
    hub.log.clear()
    result = download(client)
    assert (result.code, hub.sent()) == (0, 0)
    assert result.lines[-1] == f"Resolved model_dir: {snapshot(client.work / 'model', MODEL)}"


# --- the care of the folder ---------------------------------------------------------------------


def test_cli_lists_what_is_there_with_sizes(run: Run, folder: Path) -> None:
    result = run("list what is there")
    assert result.code == 0
    [row] = [line.split() for line in result.lines if line.startswith(MODEL)]
    assert row[:4] == [MODEL, "model", "master", str(len(FILES))]
    assert row[4:6] == [f"{SIZE / 1024:.1f}", "KiB"]


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / WEIGHTS).write_bytes(bytes(299_999) + b"x"),
        lambda folder: (folder / WEIGHTS).unlink(),
        lambda folder: (folder / "stale.safetensors").write_bytes(b"old"),
    ],
    ids=["damaged", "missing", "too many"],
)
def test_cli_verifies_what_is_there(run: Run, folder: Path, harm: Callable[[Path], object]) -> None:
    assert run("verify it").code == 0
    harm(folder)
    assert run("verify it").code == 1


def test_file_that_is_named_is_downloaded_anew(hub: Hub, run: Run, folder: Path) -> None:
    assert run("download a file anew").code == 0
    assert hub.sent() == len(FILES["config.json"])


def test_force_without_a_name_downloads_nothing(client: Client, hub: Hub, folder: Path) -> None:
    fetch = ["modelscope", "download", MODEL, "--cache_dir", "model", "--force"]
    assert client.run(*fetch).code == 0
    assert hub.sent() == 0


def test_cli_removes_the_model_that_is_named_and_no_other(
    client: Client, store: Store, run: Run, folder: Path
) -> None:
    store.add("alice/other", FILES)
    assert download(client, MODEL_ID="alice/other").code == 0
    assert run("remove a model").code == 0
    assert not folder.exists()
    assert tree(snapshot(client.work / "model", "alice/other")) == FILES


def test_folder_that_was_moved_is_found_complete(client: Client, hub: Hub, folder: Path) -> None:
    (client.work / "model").rename(client.work / "elsewhere")
    options = ["--model_name", MODEL, "--cache_dir", "elsewhere"]
    result = client.run("download_model.py", *options)
    assert (result.code, hub.sent()) == (0, 0), result
    assert tree(snapshot(client.work / "elsewhere", MODEL)) == FILES


# --- a mirror, a proxy --------------------------------------------------------------------------


@dataclass
class Proxy:
    """A proxy process on loopback; it finds every host there, also one that has no address."""

    url: str
    notes: Path

    @property
    def asked(self) -> set[str]:
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return {line for line in lines if not line.startswith("came ")}

    @property
    def carried(self) -> int:
        lines = self.notes.read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("came "))


@pytest.fixture
def proxy(tmp_path: Path, client: Client) -> Iterator[Proxy]:
    port, notes = tmp_path / "port", tmp_path / "notes"
    # On a busy machine a proxy may take its time; a retry would be counted as bytes sent twice.
    client.env |= {"MODELSCOPE_DOWNLOAD_TIMEOUT": "30", "MODELSCOPE_API_TIMEOUT": "30"}
    few = ["--num-workers", "1", "--num-acceptors", "1"]
    options = [
        "--port",
        "0",
        "--port-file",
        str(port),
        "--plugins",
        "tests.support.proxy_plugin.Notes",
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "proxy", "--hostname", "127.0.0.1", *few, *options],
        env={"PROXY_NOTES": str(notes), "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            wait_until(lambda: port.exists() and port.read_text().endswith("\n"))
            yield Proxy(f"http://127.0.0.1:{port.read_text().strip()}", notes)
        finally:
            process.terminate()


def there_and_back(client: Client, store: Store, hub: Hub, **env: str) -> None:
    """Download the model and upload it to another repo, and find every byte where it belongs."""
    store.add("alice/copy")
    hub.rules.direct = True  # all by the one name that only the proxy can find
    token = store.add_user("alice")
    result = download(client, **env)
    assert result.code == 0, result
    folder = snapshot(client.work / "model", MODEL)
    assert tree(folder) == FILES
    (folder / WEIGHTS).write_bytes(bytes(200_000) + b"changed")
    upload = ["upload_model.py", "--repo-id", "alice/copy", "--model-dir", folder]
    result = client.run(*upload, MODELSCOPE_API_TOKEN=token, **env)
    assert result.code == 0, result
    assert tree(store.root / "alice/copy") == tree(folder)
    assert (hub.sent(), hub.received()) == (SIZE, 200_007)


def test_proxy_carries_every_byte_to_a_hub_that_only_it_can_find(
    client: Client, store: Store, hub: Hub, proxy: Proxy
) -> None:
    endpoint = hub.url.replace("127.0.0.1", "hub.invalid")
    there_and_back(client, store, hub, MODELSCOPE_ENDPOINT=endpoint, HTTP_PROXY=proxy.url)
    assert {"GET hub.invalid", "POST hub.invalid", "PUT hub.invalid"} <= proxy.asked
    assert proxy.carried > SIZE


def test_proxy_carries_every_byte_to_an_https_mirror_with_a_certificate_of_its_own(
    client: Client, store: Store, proxy: Proxy
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(client.work / "ca.pem")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("mirror.invalid").configure_cert(tls)
    with Hub(store, tls=tls) as mirror:
        env = {
            "MODELSCOPE_ENDPOINT": mirror.url.replace("127.0.0.1", "mirror.invalid"),
            "HTTPS_PROXY": proxy.url,
        }
        distrusted = download(client, **env)
        assert distrusted.code == 1
        assert "certificate verify failed" in distrusted.out
        assert mirror.log == []
        there_and_back(client, store, mirror, REQUESTS_CA_BUNDLE="ca.pem", **env)
    mirror.check()
    assert proxy.asked == {"CONNECT mirror.invalid"}
    assert proxy.carried > SIZE


def test_cli_takes_the_same_proxy(client: Client, hub: Hub, run: Run, proxy: Proxy) -> None:
    hub.rules.direct = True
    endpoint = hub.url.replace("127.0.0.1", "hub.invalid")
    fetched = client.run(*BY_CLI, MODELSCOPE_ENDPOINT=endpoint, HTTP_PROXY=proxy.url)
    assert (fetched.code, hub.sent()) == (0, SIZE)
    assert proxy.asked == {"GET hub.invalid"}


def test_no_proxy_names_the_hosts_to_reach_without_it(
    client: Client, store: Store, hub: Hub, proxy: Proxy
) -> None:
    there_and_back(client, store, hub, HTTP_PROXY=proxy.url, NO_PROXY="127.0.0.1,elsewhere.invalid")
    assert proxy.asked == set()
    assert download(client, HTTP_PROXY=proxy.url).code == 0
    assert proxy.asked == {"GET 127.0.0.1"}


def test_proxy_that_is_down_fails_the_download(client: Client, hub: Hub) -> None:
    with socket.socket() as taken:  # bound and not listening: whoever connects is refused
        taken.bind(("127.0.0.1", 0))
        result = download(client, HTTP_PROXY=f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert result.code == 1
    assert "ProxyError" in result.out + result.err
    assert hub.log == []


def test_readme_names_each_variable_that_is_tested_here() -> None:
    tested = {"MODELSCOPE_ENDPOINT", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE"}
    for variable in tested:
        assert f"`{variable}`" in section("Variables of the SDK")
