"""Second runs, leftovers, two runs at once, kills: nothing is lost, and nothing is moved twice."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.hub import Fault, Hub, Store, faults
from tests.support.cases import BIG, FILES, MODEL, disk, download, on_terminal, snapshot, uploaded
from tests.support.client import PARTS, Client, Process, kill, lay, tree, wait_until

CONTENT, SIZE = FILES[BIG], len(FILES[BIG])
OTHERS = {name: content for name, content in FILES.items() if name != BIG}
TOTAL = sum(map(len, FILES.values()))
NAMES = {"MODEL_ID": MODEL, "REPO_ID": MODEL, "MODEL_DIR": "folder"}
PART = 1 << 20
PARTIAL, FIRST = f"{BIG}.incomplete", f"{BIG}_0_{PART - 1}"
STARTS = range(0, SIZE, PART)
IN_PARTS = {f"{BIG}_{i}_{min(i + PART, SIZE) - 1}": CONTENT[i : i + PART] for i in STARTS}
# A killed upload still arrives as far as the system has taken it: all of a smaller file.
LARGE = {**FILES, "large.bin": bytes(20_000_000)}
Env = dict[str, str]
pytestmark = pytest.mark.usefixtures("model")
in_both_ways = pytest.mark.parametrize("env", [{}, PARTS], ids=["in one stream", "in parts"])


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
    process = client.start("download_model.py", **NAMES, **env)
    wait_until(lambda: sum(path.stat().st_size for path in cache.glob(f"{BIG}*")) > 1_000_000)
    break_off(process, hub)
    kept = sum(map(len, tree(cache).values()))
    result = download(client, **env)
    assert (result.code, tree(cache)) == (0, FILES)
    assert (hub.sent(), "WARNING" in result.err) == (TOTAL - kept, False)


@pytest.mark.parametrize(
    ("leftovers", "env", "sent"),
    [
        ({PARTIAL: CONTENT}, {}, 0),
        ({PARTIAL: CONTENT}, PARTS, 0),
        ({PARTIAL: CONTENT[:-9]}, PARTS, 9),
        (IN_PARTS, PARTS, 0),
        ({PARTIAL: bytes(SIZE)}, {}, SIZE),
        ({PARTIAL: bytes(1_000_000)}, {}, 2 * SIZE - 1_000_000),
        ({FIRST: bytes(PART)}, PARTS, 2 * SIZE - PART),
    ],
)
def test_leftover_is_used_if_its_bytes_are_right(
    client: Client, hub: Hub, cache: Path, leftovers: dict[str, bytes], env: Env, sent: int
) -> None:
    lay(cache, {**OTHERS, **leftovers})
    assert download(client, **env).code == 0
    assert (hub.sent(), tree(cache)) == (sent, FILES)


@pytest.mark.gate
@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE, SIZE + 1])
@pytest.mark.parametrize("name", [PARTIAL, f"{BIG}.parallel_tmp", *IN_PARTS])
def test_leftover_of_any_size_is_right(client: Client, cache: Path, name: str, size: int) -> None:
    lay(cache, {**OTHERS, name: (CONTENT + b"more")[:size]})
    result = download(client, **PARTS)
    assert (result.code, tree(cache)) == (0, FILES), result


def test_leftovers_that_are_of_no_use_are_named(client: Client, cache: Path) -> None:
    """Those of another revision, and parts of another size."""
    names = [f"{BIG}_0_524287", "old.safetensors.incomplete", "old.safetensors_0_1048575"]
    lay(cache, dict.fromkeys(names, b"half"))
    result = download(client, **PARTS)
    assert result.code == 0
    assert f"WARNING: not in this revision, but in {cache}: {names}" in result.err.splitlines()


def test_folder_of_an_older_sdk_is_used_again(client: Client, hub: Hub) -> None:
    older = lay(client.work / MODEL, OTHERS)
    result = download(client)
    assert (result.code, result.lines[-1]) == (0, f"Resolved model_dir: {older}")
    assert (hub.sent(), tree(older)) == (SIZE, FILES)


@pytest.mark.parametrize(
    ("name", "size", "sent"),
    [(PARTIAL, 2 * PART, SIZE - 2 * PART), (FIRST, PART, SIZE - PART), ("stale", 2 * PART, 0)],
)
def test_space_check_counts_what_is_begun_but_no_stale_shard(
    client: Client, hub: Hub, name: str, size: int, sent: int
) -> None:
    with disk(client.work / "cache", "4m") as cache:
        lay(snapshot(cache), {name: CONTENT[:size]})
        assert download(client, "--cache_dir", cache, **PARTS).code == (not sent)
    assert sum(request.sent for request in hub.requests("file", BIG)) == sent


@pytest.mark.parametrize("is_running", [False, True])
def test_joined_parts_of_a_killed_run_go_and_those_of_a_running_one_count(
    client: Client, hub: Hub, is_running: bool
) -> None:
    """The disk has room for the model and half again."""
    join = 'exec 3>>"$0"; while [ -e "$0" ]; do printf 1 >&3; sleep 0.05; done'
    with disk(client.work / "cache", "4m") as cache:
        joined = snapshot(cache) / f"{BIG}.parallel_tmp"
        lay(joined.parent, {joined.name: CONTENT[: 2 * PART]})
        job = client.start("sh", "-c", join if is_running else "true", joined)
        found: list[bool] = []

        def end() -> None:
            found.append(joined.exists())
            joined.unlink(missing_ok=True)
            job.wait()

        hub.queue("file", faults.first(end), file=BIG)
        assert download(client, "--cache_dir", cache, **PARTS).code == 0
        assert (tree(snapshot(cache)), found) == (FILES, [is_running])


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
    result = on_terminal(client, "download_model.py", **NAMES)
    shown = [line for line in result.lines if "%" in line]
    percents = [int(line.split("%")[0].split(":")[1]) for line in shown]
    assert (result.code, max(percents), percents[-1]) == (0, 100, 100)
    assert any(seen <= percent < 99 for percent in percents), percents
    assert all("/2.82M " in line for line in shown)


@in_both_ways
def test_two_runs_at_once_share_the_work(client: Client, hub: Hub, cache: Path, env: Env) -> None:
    hub.rate = 2e6
    runs = [client.start("download_model.py", **NAMES, **env) for _ in range(2)]
    outputs = [run.communicate(timeout=60) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert (hub.sent(), tree(cache)) == (TOTAL, FILES)


# --- uploads, and kills ---------------------------------------------------------------------------


def test_broken_upload_sends_what_the_hub_lacks_and_after_that_nothing(
    client: Client, store: Store, hub: Hub, token: str
) -> None:
    folder = lay(client.work / "folder", LARGE)
    start_over(client, store, "upload")
    hub.rate = 5e6
    process = client.start("upload_model.py", **NAMES)
    wait_until(lambda: len(store.blobs) == 2)
    break_off(process, hub)
    for _ in range(2):
        assert client.run("upload_model.py", **NAMES).code == 0
        assert uploaded(store) == tree(folder) == LARGE
        assert (hub.received(), len(hub.requests("commit"))) == (len(LARGE["large.bin"]), 1)


def start_over(client: Client, store: Store, way: str) -> None:
    """Nothing is where it is to go."""
    shutil.rmtree(client.work / "models", ignore_errors=True)
    if way == "upload":
        store.add(MODEL)
        store.blobs.clear()


def missing(client: Client, store: Store, way: str) -> int:
    """The bytes that are still to be moved."""
    if way == "upload":
        contents = {hashlib.sha256(content).hexdigest(): content for content in LARGE.values()}
        return sum(len(contents[digest]) for digest in contents.keys() - store.blobs.keys())
    files = tree(snapshot(client.work))
    return TOTAL - sum(len(files[name]) for name in files if not name.endswith(".parallel_tmp"))


@pytest.mark.gate
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["download", "in parts", "upload"])
def test_kills_at_random_moments_lose_nothing(
    client: Client, store: Store, hub: Hub, token: str, way: str
) -> None:
    print(f"seed {(seed := random.randrange(10**9))}")  # to run the same again
    chance, kills = random.Random(seed), 0
    script = "upload_model.py" if way == "upload" else "download_model.py"
    env = NAMES | (PARTS if way == "in parts" else {})
    lay(client.work / "folder", LARGE)
    start_over(client, store, way)
    while kills < 14:
        hub.rate = {"download": 1.5e6, "in parts": 5e5, "upload": 1.5e7}[way]
        process = client.start(script, **env)
        time.sleep(chance.uniform(0.2, 2.5))
        process.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        output = process.communicate(timeout=30)
        # Python's own end, without the script's line, is for one that has just begun.
        assert process.returncode in (-9, -2, -15, 130, 143, 0), output
        kills += process.returncode != 0
        break_off(process, hub)
        if process.returncode == 0:
            start_over(client, store, way)
    to_move = missing(client, store, way)
    result = client.run(script, **env)
    assert (result.code, "WARNING" in result.err) == (0, False), result
    files = uploaded(store) if way == "upload" else tree(snapshot(client.work))
    assert files == (LARGE if way == "upload" else FILES)
    assert hub.sent() + hub.received() <= to_move
