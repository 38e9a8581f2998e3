"""Every fault of `tests.support.cases` on our side, kills at random moments, and fuzzed edges."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hub.faults import slow
from tests.hub.server import Response
from tests.support.cases import (
    BIG,
    DOWNLOADS,
    FALSE_SUCCESS,
    FILES,
    LIMIT,
    MODEL,
    PARTS,
    SUCCEEDED,
    UPLOADS,
    Case,
    Scene,
    judge,
    scene_of,
)
from tests.support.client import tree, wait_until

KILLS = int(os.environ.get("TEST_KILLS", "18"))
EXAMPLES = int(os.environ.get("TEST_EXAMPLES", "12"))
# A run that hangs is found by its own limit; a slow machine may take its time.
pytestmark = pytest.mark.timeout(5 * LIMIT)


def missing(scene: Scene) -> int:
    """The bytes that are not yet where they are to go."""
    if not scene.case.upload:
        there = scene.result()
        return sum(len(c) for name, c in scene.expected[-1].items() if there.get(name) != c)
    blobs = {hashlib.sha256(content).hexdigest(): content for content in FILES.values()}
    return sum(len(content) for digest, content in blobs.items() if digest not in scene.store.blobs)


CASES = [case for case in DOWNLOADS + UPLOADS if FALSE_SUCCESS not in case.wanted]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace("/", "|"))
def test_fault_ends_truly_and_the_next_run_moves_what_is_missing(case: Case) -> None:
    if case.name.startswith("disk: ") and os.geteuid() != 0:
        pytest.skip("only root may mount a disk")
    with scene_of(case) as scene:
        outcome = judge(scene, "ours")
        assert outcome.verdict in case.wanted, outcome
        assert case.warning in outcome.result.err
        scene.hub.check()
        scene.hub.faults.clear()
        scene.heal.close()
        scene.hub.rate = None
        wait_until(lambda: not scene.hub.open, LIMIT)  # the hub has noticed that nobody listens
        to_move, before = missing(scene), scene.moved()
        again = scene.run("ours")
        assert again.code == 0, again
        assert scene.result() == scene.expected[-1]
        assert scene.moved() - before <= to_move


@pytest.mark.parametrize("way", ["download", "in parts", "upload"])
@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random_moments_lose_nothing(way: str, seed: int) -> None:
    chance, upload, env = random.Random(seed), way == "upload", PARTS if way == "in parts" else {}
    with scene_of(Case("kills", lambda scene: None, upload=upload, env=env)) as scene:
        scene.hub.rate = 500_000 if env else 1_500_000
        kills = 0
        while kills < KILLS // 9:
            with scene.client.start(*scene.command("ours"), **env) as process:
                try:
                    assert process.wait(chance.uniform(0.2, 2.5)) == 0
                except subprocess.TimeoutExpired:
                    signals = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
                    process.send_signal(chance.choice(signals))
                if process.wait(LIMIT):
                    kills += 1
                else:  # also when the signal met a process that was just about to be gone
                    assert scene.result() == FILES
                    start_over(scene)
        scene.hub.rate = None
        wait_until(lambda: not scene.hub.open, LIMIT)  # what a killed run had under way has arrived
        to_move, before = missing(scene), scene.moved()
        result = scene.run("ours")
        assert result.code == 0, result
        assert "WARNING" not in result.err
        assert (tree(scene.snapshot) if not upload else scene.result()) == FILES
        assert scene.moved() - before <= to_move
        assert (tree(scene.source) if upload else FILES) == FILES


def start_over(scene: Scene) -> None:
    """A run came through before it was killed: take away what it brought."""
    if scene.case.upload:
        scene.store.models[MODEL].revisions["master"] = {}
        scene.store.blobs.clear()
    for name in tree(scene.snapshot):
        (scene.snapshot / name).unlink()


@pytest.mark.parametrize("upload", [False, True], ids=["download", "upload"])
def test_restart_of_the_hub_is_ridden_out(upload: bool) -> None:
    with scene_of(Case("restart", lambda scene: None, upload=upload)) as scene:
        scene.hub.rate = 300_000
        with scene.client.start(*scene.command("ours")) as process:
            wait_until(lambda: scene.moved() > 50_000, LIMIT)
            scene.hub.restart()
            scene.hub.rate = None
            out, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, out + err
        assert scene.result() == FILES


def test_slow_but_living_link_outlasts_every_limit() -> None:
    """Idle and low-speed limits of 2 seconds, and a file that takes 12."""
    with scene_of(Case("slow", lambda scene: None)) as scene:
        scene.hub.queue("file", slow(len(FILES[BIG]) / 12), file=BIG)
        result = scene.run("ours")
        assert (result.code, result.seconds > 12) == (0, True)
        assert scene.result() == FILES
        assert len(scene.hub.requests("file", BIG)) == 1


def test_file_without_a_digest_is_named(capfd: pytest.CaptureFixture) -> None:
    case = next(case for case in DOWNLOADS if case.name == "list: no digest")
    with scene_of(case) as scene:
        result = scene.run("ours")
    assert f"WARNING: the hub gives no digest to check these by: ['{BIG}']" in result.err


# --- fuzzed edges -------------------------------------------------------------------------------

TOKEN = "ms-0123456789abcdef"
SHORT = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
TEXT = st.one_of(
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=30),
    st.binary(max_size=20).map(lambda raw: os.fsdecode(raw.replace(b"\0", b""))),
    st.sampled_from(
        ["", " ", "-", "--", "--token", "-h=", "../..", "/", "a/b", "~", "\r\n", "%s{}"]
    ),
)
OPTIONS = {
    "download_model.py": "--model_name --revision --cache_dir --draft_model_name --draft_revision",
    "upload_model.py": "--repo-id --model-dir --commit-message",
}
VARIABLES = (
    *("MODEL_ID", "SPEC_DRAFT_MODEL_ID", "SPEC_DRAFT_MODEL_REVISION", "SPEC_DRAFT_OPTIONAL"),
    *("REPO_ID", "MODEL_DIR", "MODELSCOPE_API_TOKEN", "MODELSCOPE_TOKEN"),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


def assert_no_trace(scene: Scene, *command: str, **env: str | None) -> None:
    """Run a command; it ends with a code of ours, and shows neither a traceback nor the token."""
    before = scene.elsewhere()
    result = scene.client.run(*command, timeout=LIMIT, **env)
    assert result.code in (0, 1, 2), result
    assert "Traceback" not in result.out + result.err
    assert TOKEN not in result.out + result.err
    assert scene.elsewhere() == before


@pytest.mark.parametrize("script", OPTIONS)
@SHORT
@given(data=st.data())
def test_no_option_shows_a_traceback_or_the_token(script: str, data: st.DataObject) -> None:
    names = st.sampled_from(OPTIONS[script].split())
    words = data.draw(st.lists(st.one_of(names, TEXT, st.just("--token")), max_size=6))
    words.insert(
        data.draw(st.integers(0, len(words))),
        data.draw(st.sampled_from(["--token=", "--tokne=", "-t", ""])) + TOKEN,
    )
    with scene_of(Case("fuzz", lambda scene: None)) as scene:
        cache = ["--cache_dir=cache"] if script == "download_model.py" else []
        scene.client.env.pop("MODELSCOPE_API_TOKEN")
        assert_no_trace(scene, script, *words, *cache)


@pytest.mark.parametrize("script", OPTIONS)
@SHORT
@given(values=st.fixed_dictionaries({}, optional=dict.fromkeys(VARIABLES, TEXT)))
def test_no_variable_shows_a_traceback(script: str, values: dict[str, str]) -> None:
    with scene_of(Case("fuzz", lambda scene: None)) as scene:
        assert_no_trace(scene, script, **{"MODELSCOPE_API_TOKEN": None, **values})


@SHORT
@given(
    entries=st.lists(
        st.fixed_dictionaries(
            {"Path": st.one_of(TEXT, JSON)},
            optional={"Size": JSON, "Sha256": JSON, "Type": JSON, "Name": TEXT, "path": TEXT},
        )
    ),
    whole=st.one_of(st.none(), JSON),
)
def test_no_file_list_writes_outside_or_shows_a_traceback(entries: list, whole: object) -> None:
    payload = {"Code": 200, "Data": {"Files": entries} if whole is None else whole}
    with scene_of(Case("fuzz", lambda scene: None)) as scene:
        scene.hub.always("list", lambda answer: Response.json(payload))
        assert_no_trace(scene, *scene.command("ours"))


@pytest.mark.parametrize("upload", [False, True], ids=["download", "upload"])
@SHORT
@given(
    route=st.sampled_from(["login", "revisions", "list", "file", "batch", "blob", "commit"]),
    code=st.sampled_from([200, 204, 301, 400, 401, 403, 404, 409, 416, 429, 500, 503]),
    body=st.one_of(
        st.binary(max_size=50),
        JSON.map(lambda value: json.dumps(value).encode()),
        st.sampled_from(["token", "Message", "message", "Data", "error"]).map(
            lambda name: json.dumps({name: f"Bearer {TOKEN}", "Code": TOKEN}).encode()
        ),
    ),
    location=st.sampled_from([{}, {"Location": f"/x?token={TOKEN}"}, {"Retry-After": "soon"}]),
)
def test_no_error_body_shows_a_traceback_or_the_token(
    upload: bool, route: str, code: int, body: bytes, location: dict[str, str]
) -> None:
    with scene_of(Case("fuzz", lambda scene: None, upload=upload)) as scene:
        scene.store.users[TOKEN] = "alice"
        scene.hub.always(route, lambda answer: Response(code, body, dict(location)))
        assert_no_trace(scene, *scene.command("ours"), MODELSCOPE_API_TOKEN=TOKEN)


@pytest.mark.parametrize("env", [{}, PARTS], ids=["small files", "large ones in parts"])
def test_hub_that_throttles_connections_is_ridden_out(env: dict[str, str]) -> None:
    """A hub that takes a quarter of the connections that a download opens."""
    env = env | {"MODELSCOPE_DOWNLOAD_MAX_RETRIES": "5"}  # as the SDK has it
    with scene_of(Case("throttle", lambda scene: None, env=env)) as scene:
        count, size = (4, 2_500_000) if len(env) > 1 else (16, 50_000)
        files = {f"{i}.bin": bytes([i]) * size for i in range(count)}
        scene.store.add(MODEL, files)
        scene.expected = [files]
        scene.hub.rate, scene.hub.connections = size, 4
        outcome = judge(scene, "ours")
        assert outcome.verdict == SUCCEEDED, outcome
        assert 429 in {request.status for request in scene.hub.requests("file")}
