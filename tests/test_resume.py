"""Second runs, leftovers, two runs at once, kills: nothing is lost, and nothing is moved twice."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.hub import Fault, Hub, Store, faults
from tests.support.cases import (
    BIG,
    FILES,
    IN_TERMINAL,
    MODEL,
    NAMES,
    SIZE,
    SLOW_DISK,
    TOTAL,
    Env,
    assert_done,
    assert_downloaded,
    assert_failed,
    assert_uploaded,
    disk,
    download,
    in_both_ways,
    snapshot,
    upload,
)
from tests.support.client import (
    DOWNLOAD,
    PARTS,
    UPLOAD,
    Client,
    Process,
    kill,
    lay,
    tree,
    wait_until,
)

CONTENT = FILES[BIG]
OTHERS = {name: content for name, content in FILES.items() if name != BIG}
PART = 1 << 20
PARTIAL, FIRST = f"{BIG}.incomplete", f"{BIG}_0_{PART - 1}"
STARTS = range(0, SIZE, PART)
IN_PARTS = {f"{BIG}_{i}_{min(i + PART, SIZE) - 1}": CONTENT[i : i + PART] for i in STARTS}
# A killed upload still arrives as far as the system has taken it: all of a smaller file.
LARGE = {**FILES, "large.bin": bytes(20_000_000)}
pytestmark = pytest.mark.usefixtures("model")


@pytest.fixture
def cache(client: Client) -> Path:
    """The folder that the model comes to; a test puts there what an earlier run has left."""
    return snapshot(client.work)


def break_off(process: Process, hub: Hub) -> None:
    """Kill a run, and let the hub notice."""
    kill(process)
    hub.rate = None
    hub.faults.clear()
    wait_until(lambda: not hub.open)
    hub.log.clear()


# --- downloads ------------------------------------------------------------------------------------


def test_second_run_moves_no_bytes(client: Client, hub: Hub, cache: Path) -> None:
    first = download(client)
    assert hub.sent() == TOTAL
    hub.log.clear()
    second = download(client)
    assert (second.code, second.out, tree(cache)) == (0, first.out, FILES)
    assert hub.requests("file") + hub.requests("redirect") == []


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE, SIZE + 1])
def test_damaged_file_is_repaired(client: Client, hub: Hub, cache: Path, size: int) -> None:
    lay(cache, {**OTHERS, BIG: bytes(size)})
    assert download(client).code == 0
    assert (hub.sent(), tree(cache)) == (SIZE, FILES)


@in_both_ways
def test_broken_transfer_goes_on_mid_file(client: Client, hub: Hub, cache: Path, env: Env) -> None:
    breaks = faults.truncate(900_000)  # at a rate at which few bytes are under way
    hub.queue("file", lambda answer: breaks(lambda: faults.slow(2e6)(answer)), file=BIG)
    assert download(client, **env).code == 0
    assert tree(cache) == FILES
    assert hub.sent() - TOTAL < 450_000


@in_both_ways
def test_killed_run_goes_on_mid_file(client: Client, hub: Hub, cache: Path, env: Env) -> None:
    hub.always("file", faults.slow(1e6), BIG)
    process = client.start(*DOWNLOAD, **NAMES, **env)
    wait_until(lambda: sum(path.stat().st_size for path in cache.glob(f"{BIG}*")) > 1_000_000)
    break_off(process, hub)
    kept = sum(map(len, tree(cache).values()))
    result = download(client, **env)
    assert (result.code, tree(cache)) == (0, FILES)
    assert (hub.sent(), "WARNING" in result.err) == (TOTAL - kept, False)


LEFTOVERS: dict[str, tuple[dict[str, bytes], Env, int]] = {  # what is there, and what comes
    "whole": ({PARTIAL: CONTENT}, {}, 0),
    "whole, in parts": ({PARTIAL: CONTENT}, PARTS, 0),
    "a stream stays one": ({PARTIAL: CONTENT[:-9]}, PARTS, 9),
    "all parts": (IN_PARTS, PARTS, 0),
    "wrong and whole": ({PARTIAL: bytes(SIZE)}, {}, SIZE),
    "wrong": ({PARTIAL: bytes(1_000_000)}, {}, 2 * SIZE - 1_000_000),
    "a wrong part": ({FIRST: bytes(PART)}, PARTS, 2 * SIZE - PART),
    "a part that is too long": ({FIRST: CONTENT}, PARTS, SIZE),
    "too long": ({PARTIAL: CONTENT + b"more"}, {}, SIZE),
    "empty": ({PARTIAL: b""}, PARTS, SIZE),
}


@pytest.mark.parametrize("case", LEFTOVERS)
def test_only_right_leftovers_are_used(client: Client, hub: Hub, cache: Path, case: str) -> None:
    """jundot/omlx#141: a whole file that still has its unfinished name is answered by 416."""
    leftovers, env, sent = LEFTOVERS[case]
    lay(cache, {**OTHERS, **leftovers})
    assert_downloaded(client, download(client, **env))
    assert hub.sent() == sent


def test_begun_parts_go_on_on_a_slow_disk(client: Client, hub: Hub, cache: Path) -> None:
    client.at_start(SLOW_DISK)
    lay(cache, {**OTHERS, FIRST: CONTENT[:PART]})
    assert_downloaded(client, download(client, **PARTS))
    assert (hub.sent(), len(hub.requests("file", BIG))) == (SIZE - PART, 2)


@pytest.mark.parametrize(("begun_bytes", "at_once"), [(20_000_000, 3), (40_000_000, 1)])
def test_begun_large_files_go_first_and_few_at_once(
    client: Client, hub: Hub, cache: Path, begun_bytes: int, at_once: int
) -> None:
    """The SDK hashes what is there of a file while its connection waits, and may be cut."""
    client.at_start(SLOW_DISK)
    begun = [f"{number}.bin" for number in range(5)]
    others = {f"{number}.txt": b"small" for number in range(5)}
    hub.store.add(MODEL, dict.fromkeys(begun, bytes(begun_bytes + 500_000)) | others)
    lay(cache, {f"{name}.incomplete": bytes(begun_bytes) for name in begun})
    crowd = faults.Crowd()
    for name in begun:
        hub.queue("file", crowd, file=name)
    env = {"MODELSCOPE_DOWNLOAD_LOW_SPEED_WINDOW_SECONDS": "1"}  # a minute's 4 GB become 67 MB
    assert download(client, **PARTS, **env).code == 0
    assert [request.file in begun for request in hub.requests("file")] == [True] * 5 + [False] * 5
    assert (crowd.most, hub.sent("file")) == (at_once, 5 * (500_000 + len(b"small")))


def test_folder_of_an_older_sdk_is_used_again(client: Client, hub: Hub) -> None:
    own = {".msc": b"index", ".mdl": b"name", ".mv": b"revision"}
    older = lay(client.work / MODEL, OTHERS | own)
    result = download(client)
    assert (result.code, result.lines[-1]) == (0, f"Resolved model_dir: {older}")
    assert (hub.sent(), tree(older), result.warnings) == (SIZE, FILES | own, [])


def test_own_weights_are_never_written_to(client: Client, hub: Hub) -> None:
    """The upload's own default is such a folder."""
    mine = lay(client.work / MODEL, {"config.json": b"mine", BIG: b"trained for days"})
    before = tree(client.work)
    assert_failed(download(client), str(mine))
    assert (tree(client.work), hub.requests("file")) == (before, [])


@pytest.mark.parametrize(
    ("name", "size", "sent"),
    [
        (PARTIAL, 2 * PART, SIZE - 2 * PART),
        ("stale", 2 * PART, 0),
        (f"{BIG}.parallel_tmp", 2 * PART, SIZE),
    ],
)
def test_space_check_counts_what_is_begun(
    client: Client, hub: Hub, name: str, size: int, sent: int
) -> None:
    """What a killed run was joining is deleted first."""
    with disk(client.work / "cache", "4m") as cache:
        lay(snapshot(cache), {name: CONTENT[:size]})
        assert download(client, "--cache_dir", cache).code == (not sent)
    assert sum(request.sent for request in hub.requests("file", BIG)) == sent


@pytest.mark.parametrize(
    ("leftovers", "queued", "seen"),
    [
        ({PARTIAL: CONTENT[:1_500_000], "stale.safetensors": CONTENT}, [faults.slow(4e5)], 62),
        ({BIG: bytes(SIZE)}, [faults.slow(1e6)], 9),  # as a model that was trained again
        ({}, [faults.half] * 3 + [faults.slow(1e5)], 88),  # three tries, and a second round
    ],
    ids=["resumed", "changed but not in size", "second round"],
)
def test_bar_shows_what_is_on_disk_of_the_whole(
    client: Client, hub: Hub, leftovers: dict[str, bytes], queued: list[Fault], seen: int
) -> None:
    lay(snapshot(client.work), OTHERS | leftovers)
    hub.queue("file", *queued, file=BIG)
    result = download(client, before=IN_TERMINAL)
    shown = result.percents
    assert (result.code, max(shown), shown[-1]) == (0, 100, 100)
    assert any(seen <= percent < 99 for percent in shown), shown
    assert result.out.count("/2.82M ") == len(shown)


FAILS_TO_LOOK = """
import os, threading
scandir = os.scandir
def fails(path="."):
    if threading.current_thread() is threading.main_thread() and "snapshots" in str(path):
        raise OSError(116, "Stale file handle", str(path))
    return scandir(path)
os.scandir = fails
"""


def test_look_at_the_folder_that_fails_ends_nothing(client: Client, hub: Hub) -> None:
    """modelscope/modelscope#1621, googlecolab/colabtools#1492: NFS, a mounted Drive."""
    client.at_start(FAILS_TO_LOOK)
    hub.queue("file", faults.slow(8e5), file=BIG)
    assert_downloaded(client, download(client))


@in_both_ways
def test_two_runs_at_once_share_the_work(client: Client, hub: Hub, cache: Path, env: Env) -> None:
    hub.rate = 2e6
    runs = [client.start(*DOWNLOAD, **NAMES, **env) for _ in range(2)]
    outputs = [run.communicate(timeout=60) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert (hub.sent(), tree(cache)) == (TOTAL, FILES)


# --- uploads, and kills ---------------------------------------------------------------------------


def test_broken_upload_sends_what_the_hub_lacks(client: Client, hub: Hub, token: str) -> None:
    folder = lay(client.work / "folder", LARGE)
    start_over(client, hub.store, "upload")
    hub.rate = 5e6
    process = client.start(*UPLOAD, **NAMES)
    wait_until(lambda: len(hub.store.blobs) == 2)
    break_off(process, hub)
    for _ in range(2):
        assert_uploaded(hub.store, upload(client), LARGE)
        assert tree(folder) == LARGE
        assert (hub.received(), len(hub.requests("commit"))) == (len(LARGE["large.bin"]), 1)


def start_over(client: Client, store: Store, way: str) -> None:
    """Nothing is where it is to go."""
    shutil.rmtree(client.work / "models", ignore_errors=True)
    if way == "upload":
        store.add(MODEL)
        store.blobs.clear()


@pytest.mark.gate
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["download", "in parts", "upload"])
def test_run_goes_on_after_kills_at_random(client: Client, hub: Hub, token: str, way: str) -> None:
    print(f"seed {(seed := random.randrange(10**9))}")  # to run the same again
    chance, kills = random.Random(seed), 0
    script, files = (UPLOAD, LARGE) if way == "upload" else (DOWNLOAD, FILES)
    env = NAMES | (PARTS if way == "in parts" else {})
    lay(client.work / "folder", LARGE)
    start_over(client, hub.store, way)
    while kills < 14:
        hub.rate = {"download": 1.5e6, "in parts": 5e5, "upload": 1.5e7}[way]
        process = client.start(*script, **env)
        time.sleep(chance.uniform(0.2, 2.5))
        process.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        output = process.communicate(timeout=30)
        # Python's own end, without the script's line, is for one that has just begun.
        assert process.returncode in (-9, -2, -15, 130, 143, 0), output
        kills += process.returncode != 0
        break_off(process, hub)
        if process.returncode == 0:
            start_over(client, hub.store, way)
    result = client.run(*script, **env)
    assert "WARNING" not in result.err, result
    assert_done(client, hub.store, script, result, files)
