"""What stands in the way: links, pipes, devices, leftovers and conflicting names."""

from __future__ import annotations

import os
import pty
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub import Hub, Store
from tests.hub.faults import edit, slow, status
from tests.support.client import PARTS, ROOT, Client, Result, lay, tree, wait_until
from tests.support.download import BIG, DRAFT, MODEL, download, snapshot

FILES = {"big": BIG, "config.json": b"{}", "sub/file": b"1"}
PART = "big_0_1048575"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes devices, mounts")


@pytest.fixture(autouse=True)
def model(store: Store) -> None:
    store.add(MODEL, FILES)


@pytest.fixture
def folder(client: Client) -> Path:
    """The snapshot's folder, empty, in a cache folder as a run would make it."""
    folder = snapshot(client.work)
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    return lay(tmp_path / "outside", {"file": b"mine"})


def refused(result: Result, *words: str, code: int = 1) -> None:
    """Assert a failure that names what is in the way, before anything was fetched."""
    assert result.code == code, result
    assert "FAILED" in result.out
    for word in words:
        assert word in result.out, result
    assert "Traceback" not in result.out + result.err


# --- links, pipes, devices ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["big.incomplete", "config.json.incomplete", PART, "big.parallel_tmp", "sub/file.incomplete"],
)
@pytest.mark.parametrize("target", ["file", "nothing", ".", "/dev/null"])
@pytest.mark.parametrize("parts", [False, True], ids=["in one stream", "in parts"])
def test_link_in_place_of_an_unfinished_file_is_never_written_through(
    client: Client, folder: Path, outside: Path, name: str, target: str, parts: bool
) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(outside / target)
    result = download(client, **(PARTS if parts else {}))
    assert tree(outside) == {"file": b"mine"}
    refused(result, name)


@pytest.mark.parametrize("target", ["file", "nothing"])
def test_link_in_a_files_own_place_is_replaced_and_not_followed(
    client: Client, folder: Path, outside: Path, target: str
) -> None:
    (folder / "config.json").symlink_to(outside / target)
    (folder / "big").symlink_to(outside / target)
    result = download(client, **PARTS)
    assert result.code == 0, result
    assert tree(outside) == {"file": b"mine"}
    assert tree(folder) == FILES
    assert not (folder / "big").is_symlink()
    assert not (folder / "config.json").is_symlink()


def test_link_to_the_right_bytes_counts_as_the_file(
    client: Client, hub: Hub, folder: Path, outside: Path
) -> None:
    """So do the folders that `huggingface-cli` and others make of links into their cache."""
    (outside / "file").write_bytes(BIG)
    (folder / "big").symlink_to(outside / "file")
    assert download(client).code == 0
    assert (outside / "file").read_bytes() == BIG
    assert tree(folder) == FILES
    assert hub.requests("file", "big") == []


def test_hard_link_of_an_unfinished_file_is_not_written_through_in_silence(
    client: Client, folder: Path, outside: Path
) -> None:
    """Nobody can plant one who could not write to the file; the run is a success all the same."""
    os.link(outside / "file", folder / "config.json")
    assert download(client).code == 0
    assert tree(folder) == FILES
    assert tree(outside) == {"file": b"mine"}


@pytest.mark.parametrize("below", ["file", "other/file"])
def test_folder_that_is_a_link_is_not_entered(
    client: Client, store: Store, folder: Path, outside: Path, below: str
) -> None:
    store.add(MODEL, {**FILES, f"sub/{below}": b"1"})
    (folder / "sub").symlink_to(outside)
    result = download(client)
    assert tree(outside) == {"file": b"mine"}
    refused(result, "sub")


@pytest.mark.parametrize(
    "depth", ["models", "models/alice--model", "models/alice--model/snapshots"]
)
def test_link_above_the_snapshot_is_the_users_own(
    client: Client, tmp_path: Path, depth: str
) -> None:
    """Someone who keeps models on another disk links a folder of the cache there."""
    disk = tmp_path / "disk"
    disk.mkdir()
    link = client.work / depth
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(disk)
    result = download(client)
    assert result.code == 0, result
    assert tree(snapshot(client.work)) == FILES
    assert sorted(p.name for p in disk.rglob("config.json")) == ["config.json"]


@pytest.mark.parametrize(
    "name", ["big.incomplete", PART, "big.parallel_tmp", "big", "sub", "config.json"]
)
@pytest.mark.parametrize("parts", [False, True], ids=["in one stream", "in parts"])
def test_pipe_does_not_hang(client: Client, folder: Path, name: str, parts: bool) -> None:
    os.mkfifo(folder / name)
    result = download(client, **(PARTS if parts else {}))
    if result.code:
        refused(result, name)
    else:
        assert {n: b for n, b in tree(folder).items() if n in FILES} == FILES


@needs_root
@pytest.mark.parametrize("name", ["big.incomplete", "big", "sub/file", PART])
def test_device_is_neither_read_nor_written(client: Client, folder: Path, name: str) -> None:
    (folder / "sub").mkdir()
    os.mknod(folder / name, 0o666 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero has no end
    result = download(client, **PARTS)
    if result.code:
        refused(result, name)
    else:
        assert tree(folder) == FILES


def test_socket_is_no_hang(client: Client, folder: Path) -> None:
    os.mknod(folder / "big.incomplete", 0o666 | stat.S_IFSOCK)
    refused(download(client), "big.incomplete")


@pytest.mark.parametrize("name", ["big", "config.json", "big.incomplete", PART])
def test_folder_where_a_file_is_to_go_fails_with_its_name(
    client: Client, folder: Path, name: str
) -> None:
    lay(folder / name, {"mine": b"1"})
    result = download(client, **PARTS)
    refused(result, name.partition(".inc")[0].partition("_")[0])
    assert (folder / name / "mine").read_bytes() == b"1"


def test_file_where_a_folder_is_to_go_fails_with_its_name(client: Client, folder: Path) -> None:
    (folder / "sub").write_bytes(b"mine")
    refused(download(client), "sub")
    assert (folder / "sub").read_bytes() == b"mine"


def test_strange_things_that_are_in_nobodys_way_do_not_matter(
    client: Client, folder: Path, outside: Path
) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    (folder / "dangling").symlink_to("nowhere")
    result = download(client)
    assert result.code == 0, result
    assert {n: b for n, b in tree(folder).items() if n in FILES} == FILES
    assert tree(outside) == {"file": b"mine"}
    assert "'pipe'" in result.err


def test_link_that_is_planted_while_files_come_is_reported(
    client: Client, hub: Hub, folder: Path, outside: Path
) -> None:
    """The folder is the user's; whoever can write to it can have the files. No false success."""
    hub.queue("file", slow(1_000_000), file="big")
    with client.start("download_model.py", MODEL_ID=MODEL) as process:
        wait_until(lambda: (folder / "config.json").exists())
        (folder / "config.json").unlink()
        (folder / "config.json").symlink_to("nowhere")
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 1, out
    assert "config.json" in out


# --- what an earlier run left -------------------------------------------------------------------


@pytest.mark.parametrize("earlier", ["cli", "our script with one worker"])
def test_file_begun_in_one_stream_goes_on_in_one(
    client: Client, hub: Hub, folder: Path, earlier: str
) -> None:
    hub.queue("file", slow(1_500_000), file="big")
    partial = folder / "big.incomplete"
    command = ["modelscope", "download", "--model", MODEL, "--cache_dir", "."]
    if earlier != "cli":
        command = ["download_model.py", "--model_name", MODEL]
    one = {**PARTS, "MODELSCOPE_DOWNLOAD_PARALLEL_WORKERS": "1"}
    with client.start(*command, **one) as process:
        wait_until(lambda: partial.exists() and partial.stat().st_size > 1_000_000)
        process.kill()
    kept = partial.stat().st_size
    hub.log.clear()
    result = download(client, **PARTS)
    assert result.code == 0, result
    assert tree(folder) == FILES
    assert hub.sent() <= len(BIG) - kept + 3
    assert "WARNING" not in result.err


def begin_in_parts(client: Client, hub: Hub, folder: Path) -> int:
    """Break a run off while the large file comes in parts; return how many bytes are there."""
    hub.queue("file", slow(400_000), slow(400_000), slow(400_000), file="big")
    with client.start("download_model.py", MODEL_ID=MODEL, **PARTS) as process:
        wait_until(lambda: sum(p.stat().st_size for p in folder.glob("big_*")) > 900_000)
        process.kill()
    hub.log.clear()
    return sum(path.stat().st_size for path in folder.glob("big_*"))


def test_file_begun_in_parts_goes_on_in_parts(client: Client, hub: Hub, folder: Path) -> None:
    kept = begin_in_parts(client, hub, folder)
    result = download(client, **PARTS)
    assert result.code == 0, result
    assert tree(folder) == FILES
    assert hub.sent() <= len(BIG) - kept + 3
    assert "WARNING" not in result.err


def test_file_begun_in_parts_goes_on_in_parts_also_among_many(
    client: Client, store: Store, hub: Hub, folder: Path
) -> None:
    files = FILES | {f"shard-{i}": BIG[i:][:1_100_000] for i in range(20)}
    kept = begin_in_parts(client, hub, folder)
    store.add(MODEL, files)
    result = download(client, **PARTS)
    assert result.code == 0, result
    assert tree(folder) == files
    assert sum(r.sent for r in hub.requests("file", "big")) <= len(BIG) - kept
    assert {len(hub.requests("file", f"shard-{i}")) for i in range(20)} == {1}


@pytest.mark.parametrize("change", ["one stream", "other size of parts"])
def test_file_begun_in_parts_arrives_whatever_the_settings_are_now(
    client: Client, hub: Hub, folder: Path, change: str
) -> None:
    begin_in_parts(client, hub, folder)
    now = {"MODELSCOPE_DOWNLOAD_PARALLEL_WORKERS": "1"}
    if change != "one stream":
        now = {**PARTS, "MODELSCOPE_DOWNLOAD_PART_SIZE_MB": "2"}
    result = download(client, **now)
    assert result.code == 0, result
    assert {n: b for n, b in tree(folder).items() if n in FILES} == FILES
    left = sorted(tree(folder).keys() - FILES.keys())
    assert all(name in result.err for name in left)  # named in the warning


def test_many_large_files_come_in_one_stream_each(client: Client, store: Store, hub: Hub) -> None:
    files = {f"shard-{i:02}": BIG[i:][:1_100_000] for i in range(16)}
    store.add(MODEL, files)
    assert download(client, **PARTS).code == 0
    assert tree(snapshot(client.work)) == files
    assert {len(hub.requests("file", name)) for name in files} == {1}


def test_few_large_files_come_in_parts(client: Client, store: Store, hub: Hub) -> None:
    files = {f"shard-{i:02}": BIG[i:][:1_100_000] for i in range(15)}
    store.add(MODEL, files)
    assert download(client, **PARTS).code == 0
    assert tree(snapshot(client.work)) == files
    assert {len(hub.requests("file", name)) for name in files} == {2}


@pytest.mark.parametrize("content", [b"", BIG[:-1], BIG, BIG + b"more", b"x" * len(BIG)])
@pytest.mark.parametrize(
    "suffix", [".incomplete", ".parallel_tmp", "_0_1048575", "_1048576_2097151"]
)
def test_leftover_of_any_size_ends_in_the_right_file(
    client: Client, folder: Path, suffix: str, content: bytes
) -> None:
    (folder / f"big{suffix}").write_bytes(content)
    result = download(client, **PARTS)
    if result.code:  # bytes that are wrong show only in the digest of the whole
        refused(result, "big")
        result = download(client, **PARTS)
    assert result.code == 0, result
    assert tree(folder) == FILES


# --- names that share a place -------------------------------------------------------------------


@pytest.mark.parametrize(
    "pair",
    [
        ("a/b", "a//b"),
        ("a/b", "a/./b"),
        ("a", "./a"),
        ("a", "a/b"),
        ("a/b", "a/b/c/d"),
        ("a", "a/"),
        ("a/b", "a/b/"),
    ],
    ids=" and ".join,
)
def test_names_that_share_a_place_are_refused_before_anything_is_written(
    client: Client, hub: Hub, pair: tuple[str, str]
) -> None:
    entries = [
        {"Name": n, "Path": n, "Type": "blob", "Size": 4, "Sha256": d * 64}
        for n, d in zip(pair, "01", strict=True)
    ]
    hub.always("list", edit(lambda files: files.extend(entries)))
    result = download(client, "--cache_dir", "cache")
    refused(result, "conflicting names")
    assert not (client.work / "cache").exists()
    assert hub.requests("file") == []


def test_names_that_differ_in_case_or_form_both_arrive_or_the_run_fails(
    client: Client, store: Store, folder: Path
) -> None:
    """On Linux all are different; elsewhere the digest of one of them would not hold."""
    files = {"Readme": b"1", "README": b"2", "caf\u00e9": b"3", "cafe\u0301": b"4"}
    store.add(MODEL, files)
    assert download(client).code == 0
    assert tree(folder) == files


def test_draft_inside_the_main_models_folder_is_refused(client: Client, store: Store) -> None:
    store.add(MODEL, FILES, revision="v1")
    store.add(MODEL, {"config.json": b"draft"}, revision="v1/sub")
    result = download(
        client, "--revision", "v1", "--draft_model_name", MODEL, "--draft_revision", "v1/sub"
    )
    refused(result, "[spec] Draft model download FAILED", "holds the main model", code=2)
    assert tree(snapshot(client.work, revision="v1")) == FILES


def test_main_model_around_the_drafts_folder_is_refused(client: Client, store: Store) -> None:
    store.add(MODEL, FILES, revision="v1/sub")
    store.add(MODEL, {"config.json": b"draft"}, revision="v1")
    result = download(
        client, "--revision", "v1/sub", "--draft_model_name", MODEL, "--draft_revision", "v1"
    )
    refused(result, "[spec] Draft model download FAILED", code=2)
    assert tree(snapshot(client.work, revision="v1/sub")) == FILES


def test_two_models_with_one_folder_are_refused(client: Client, store: Store) -> None:
    store.add("a--b/c", FILES)
    store.add("a/b--c", {"config.json": b"draft"})
    result = download(client, MODEL_ID="a--b/c", SPEC_DRAFT_MODEL_ID="a/b--c")
    refused(result, "[spec] Draft model download FAILED", code=2)
    assert tree(snapshot(client.work, "a--b/c")) == FILES


def test_two_models_with_one_folder_through_a_link_are_refused(
    client: Client, store: Store
) -> None:
    store.add(DRAFT, {"config.json": b"draft"})
    snapshot(client.work).mkdir(parents=True)
    (client.work / "models" / "alice--draft").symlink_to(client.work / "models" / "alice--model")
    result = download(client, SPEC_DRAFT_MODEL_ID=DRAFT)
    assert tree(snapshot(client.work)) == FILES
    refused(result, "[spec] Draft model download FAILED", code=2)


def test_draft_that_is_the_main_model_again_moves_no_bytes(client: Client, hub: Hub) -> None:
    result = download(client, SPEC_DRAFT_MODEL_ID=MODEL)
    assert result.code == 0, result
    assert hub.sent() == sum(map(len, FILES.values()))


@pytest.mark.parametrize(
    "revision", [".", "a/.", "./master", "master/", "a//b", "..", " ", "~", "-x"]
)
def test_odd_revision_is_a_success_or_a_failure_with_a_cause(
    client: Client, store: Store, revision: str
) -> None:
    result = download(client, f"--revision={revision}")
    assert "Traceback" not in result.out + result.err
    assert result.code in (0, 1)
    inside = snapshot(client.work).parent
    written = [path for path in client.work.rglob("*") if path.is_file()]
    assert all(p.is_relative_to(inside) or p.suffix == ".lock" for p in written)


# --- names that a terminal would obey -----------------------------------------------------------

NASTY = "\x1b[2K\x1b[1A\x9b31mModel download successful!\x07\r\n\x7f.bin"
RAW = re.compile(r"\x1b\[2K|\x1b\[1A|\x9b|\x07|\x7f")


def test_name_with_escape_sequences_reaches_no_log_raw(
    client: Client, store: Store, hub: Hub, folder: Path
) -> None:
    store.add(MODEL, {NASTY: b"1", "config.json": b"{}"})
    lay(folder, {f"extra{NASTY}": b"1"})
    hub.always("file", status(403, f"no{NASTY}"), file=NASTY)
    result = download(client)
    assert result.code == 1
    assert not RAW.search(result.out + result.err), result
    assert "Model download successful!" not in result.lines
    assert not any(line.startswith("Model download succ") for line in result.err.splitlines())


@pytest.mark.parametrize("outcome", ["success", "failure"])
def test_name_with_escape_sequences_reaches_no_terminal_raw(
    client: Client, store: Store, hub: Hub, outcome: str
) -> None:
    store.add(MODEL, {NASTY: BIG, "config.json": b"{}"})
    hub.queue("file", slow(3_000_000), file=NASTY)
    if outcome == "failure":
        hub.always("file", status(403, f"no{NASTY}"), file=NASTY)
        hub.faults = [queued for queued in hub.faults if queued.always]
    shown = on_terminal(client, "download_model.py", MODEL_ID=MODEL).decode()
    raw = re.sub(r"\x1b\[A", "", shown)  # tqdm's own, from bar to bar
    assert "\x1b" not in raw
    assert not RAW.search(raw)
    assert ("\nModel download successful!" in raw) == (outcome == "success")


@pytest.mark.parametrize("outcome", ["success", "failure"])
def test_name_with_escape_sequences_in_an_upload_reaches_no_terminal_raw(
    client: Client, store: Store, hub: Hub, outcome: str
) -> None:
    lay(client.work / "folder", {NASTY: BIG, f"{NASTY}.pem": b"1", "config.json": b"{}"})
    os.mkfifo(client.work / "folder" / f"{NASTY}.pipe")
    store.add(MODEL)
    token = store.add_user("alice")
    if outcome == "failure":
        hub.always("commit", status(403, f"no{NASTY}"))
    env = {"REPO_ID": MODEL, "MODEL_DIR": "folder", "MODELSCOPE_API_TOKEN": token}
    shown = on_terminal(client, "upload_model.py", **env).decode()
    raw = re.sub(r"\x1b\[A", "", shown)
    assert "\x1b" not in raw
    assert not RAW.search(raw)
    assert ("\nUpload finished." in raw) == (outcome == "success")


def on_terminal(client: Client, script: str, **env: str) -> bytes:
    """Run a script with both streams on a terminal; return what the terminal was sent."""
    leader, follower = pty.openpty()
    command = [sys.executable, str(ROOT / script)]
    streams = {"stdin": subprocess.DEVNULL, "stdout": follower, "stderr": follower}
    environment = {**client.env, **env}
    with subprocess.Popen(command, cwd=client.work, env=environment, **streams) as process:
        os.close(follower)
        shown = b""
        while chunk := read(leader):
            shown += chunk
    os.close(leader)
    assert process.returncode in (0, 1)
    return shown


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other end is closed
        return b""


# --- the folder that is checked is the folder that goes up --------------------------------------


@pytest.mark.parametrize(
    ("model_dir", "expected"),
    [("./~/m", "here"), ("~/m", "home"), ("~", None), ("./~", "here"), ("x/../~/m", "here")],
)
def test_tilde_means_home_only_at_the_start(
    client: Client, store: Store, model_dir: str, expected: str | None
) -> None:
    lay(client.work / "~" / "m", {"which": b"here"})
    (client.work / "x").mkdir()
    lay(client.home / "m", {"which": b"home"})
    store.add(MODEL)
    env = {"REPO_ID": MODEL, "MODELSCOPE_API_TOKEN": store.add_user("alice")}
    result = client.run("upload_model.py", "--model-dir", model_dir, **env)
    assert result.code == 0, result
    up = tree(store.root / MODEL)
    wanted = {"which": (expected or "home").encode()}
    inner = {"m/which": wanted["which"]}
    assert up == (inner if model_dir in ("~", "./~") else wanted)
