"""The stand-in hub is only worth what it is true to: the SDK's own CLI, and its own promises."""

from __future__ import annotations

import hashlib
import http.client
import signal
import sys
from pathlib import Path

import pytest
import requests

from tests.hub import Hub, Store
from tests.hub.faults import passes, status, truncate
from tests.hub.models import MAIN
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
    expected = FILES | {"docs/notes.md": b"notes"}
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
        started = hub.log[0]
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
        "new": {"weights.bin": b"weights"},
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
        host = url.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=30)
        connection.request("GET", "/api/v1/models/bob/model/repo?FilePath=shard")
        answer, digest = connection.getresponse(), hashlib.sha256()
        while chunk := answer.read(1 << 20):
            digest.update(chunk)
        peak = Path(f"/proc/{process.pid}/status").read_text().split("VmHWM:")[1].split()[0]
        process.send_signal(signal.SIGINT)
    assert digest.hexdigest() == zeros.hexdigest()
    assert int(peak) < 200_000  # kB
