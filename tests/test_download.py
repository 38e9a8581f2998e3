"""What `download_model.py` promises: a test for each sentence of its contract."""

from __future__ import annotations

import fcntl
import itertools
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.hub import Hub, Store
from tests.hub.faults import (
    answers,
    corrupt,
    edit,
    named,
    page,
    passes,
    refuse,
    slow,
    stall,
    status,
    truncate,
)
from tests.hub.models import MAIN
from tests.hub.server import Fault, Response
from tests.support.client import PARTS, ROOT, Client, Result, lay, tree, wait_until
from tests.support.download import (
    BIG,
    DRAFT,
    FILES,
    MODEL,
    SUCCESS,
    USED,
    WEIGHTS,
    download,
    snapshot,
)


@pytest.fixture(autouse=True)
def model(store: Store) -> None:
    store.add(MODEL, FILES)


def failed(result: Result, *words: str, code: int = 1) -> None:
    """Assert an honest failure: its exit code, its line, and no traceback."""
    assert result.code == code, result
    assert any("FAILED" in line for line in result.lines), result
    for word in words:
        assert word in result.out, result
    assert "Traceback" not in result.out + result.err


# --- options, variables, defaults ---------------------------------------------------------------


def test_no_option_downloads_the_default_model_to_the_current_folder(
    client: Client, store: Store
) -> None:
    store.add(MAIN, FILES)
    result = download(client, MODEL_ID=None)
    assert result.code == 0
    assert result.lines == [line.format(snapshot(client.work, MAIN)) for line in SUCCESS]
    assert tree(snapshot(client.work, MAIN)) == FILES


def test_model_id_names_the_model(client: Client) -> None:
    result = download(client)
    assert result.lines == [line.format(snapshot(client.work)) for line in SUCCESS]
    assert tree(snapshot(client.work)) == FILES


def test_model_name_wins_over_model_id(client: Client) -> None:
    result = download(client, "--model_name", MODEL, MODEL_ID="alice/other")
    assert result.code == 0
    assert tree(snapshot(client.work)) == FILES


@pytest.mark.parametrize("blank", ["", "  "])
def test_blank_model_id_is_an_error_that_names_the_variable(
    client: Client, hub: Hub, blank: str
) -> None:
    failed(download(client, MODEL_ID=blank), "MODEL_ID")
    assert hub.log == []


@pytest.mark.parametrize("name", ["model", "alice/", "/model", "a/b/c", "../model", "alice\\x/y"])
def test_malformed_model_id_fails_before_any_request(client: Client, hub: Hub, name: str) -> None:
    failed(download(client, "--model_name", name), "OWNER/NAME")
    assert hub.log == []


@pytest.mark.parametrize("revision", ["dev", "v1.0", "feature/x"])
def test_revision_names_a_branch_or_tag(client: Client, store: Store, revision: str) -> None:
    store.add(MODEL, {"only": b"here"}, revision=revision)
    result = download(client, "--revision", revision)
    assert result.code == 0
    assert tree(snapshot(client.work, revision=revision)) == {"only": b"here"}


def test_blank_revision_is_master(client: Client) -> None:
    assert download(client, "--revision", "").code == 0
    assert tree(snapshot(client.work)) == FILES


def test_missing_revision_fails_with_those_that_are_there(client: Client, store: Store) -> None:
    store.add(MODEL, FILES, revision="v1.0")
    result = download(client, "--revision", "nowhere")
    failed(result, "Model download FAILED: LookupError(", "'nowhere', but ['master', 'v1.0']")


def test_main_as_a_revision_fails_with_a_hint_at_master(client: Client) -> None:
    failed(download(client, "--revision", "main"), "the default branch is master")


@pytest.mark.parametrize("revision", ["../../../../out", "/out", "a/../../../../out"])
def test_revision_that_leads_out_of_the_folder_fails_before_any_request(
    client: Client, hub: Hub, revision: str
) -> None:
    failed(download(client, "--revision", revision), "not a revision")
    assert hub.log == []


def test_missing_model_fails(client: Client) -> None:
    result = download(client, MODEL_ID="alice/nowhere")
    failed(result, "Model download FAILED: LookupError(", "alice/nowhere does not exist")
    assert "--token" in result.err


# --- cache_dir ----------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["new", "two/new folders", "模型", "100%[1]"])
def test_relative_cache_dir_resolves_to_an_absolute_path(client: Client, folder: str) -> None:
    result = download(client, "--cache_dir", folder)
    assert result.lines[-1] == f"Resolved model_dir: {snapshot(client.work / folder)}"
    assert tree(snapshot(client.work / folder)) == FILES


def test_absolute_cache_dir_is_taken_as_it_is(client: Client, tmp_path: Path) -> None:
    download(client, "--cache_dir", tmp_path / "there")
    assert tree(snapshot(tmp_path / "there")) == FILES


def test_tilde_in_cache_dir_is_home(client: Client) -> None:
    result = download(client, "--cache_dir", "~/models")
    assert result.lines[-1] == f"Resolved model_dir: {snapshot(client.home / 'models')}"
    assert tree(snapshot(client.home / "models")) == FILES


def test_blank_cache_dir_is_an_error(client: Client, hub: Hub) -> None:
    failed(download(client, "--cache_dir", ""), "--cache_dir")
    assert hub.log == []


def test_cache_dir_that_is_a_file_fails(client: Client) -> None:
    (client.work / "file").write_text("mine")
    result = download(client, "--cache_dir", "file")
    failed(result, "Model download FAILED: FileExistsError(")
    assert str(client.work / "file") in result.err
    assert (client.work / "file").read_text() == "mine"


def test_cache_dir_that_cannot_be_made_fails(client: Client) -> None:
    result = download(client, "--cache_dir", "/proc/models")
    failed(result, "Model download FAILED: FileNotFoundError(")
    assert "/proc/models" in result.err


def test_legacy_folder_of_an_older_sdk_is_reused(client: Client, hub: Hub) -> None:
    for name, content in FILES.items():
        path = client.work / MODEL / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    result = download(client)
    assert result.lines[-1] == f"Resolved model_dir: {client.work / MODEL}"
    assert hub.sent() == 0


# --- token --------------------------------------------------------------------------------------


def test_no_token_downloads_anonymously(client: Client, hub: Hub) -> None:
    result = download(client)
    assert USED not in result.out
    assert {request.token for request in hub.log} == {None}


@pytest.mark.parametrize("how", ["option", "variable", "padded option", "padded variable"])
def test_token_logs_in_and_reads_a_private_model(client: Client, store: Store, how: str) -> None:
    token = store.add_user("alice")
    store.add("alice/private", FILES, private=True)
    given = f"  {token}\n" if "padded" in how else token
    options = ["--token", given] if "option" in how else []
    env = {} if options else {"MODELSCOPE_API_TOKEN": given}
    result = download(client, *options, MODEL_ID="alice/private", **env)
    assert result.code == 0
    assert result.lines[0] == USED
    assert tree(snapshot(client.work, "alice/private")) == FILES
    assert token not in result.out + result.err


def test_token_option_wins_over_the_variable(client: Client, store: Store, hub: Hub) -> None:
    right, other = store.add_user("alice"), store.add_user("bob")
    assert download(client, "--token", right, MODELSCOPE_API_TOKEN=other).code == 0
    # Where the hub's nearest storage is, the SDK asks without a token, as it does the storage.
    asked = [r for r in hub.log if r.host == "hub" and r.route != "region"]
    assert {request.token for request in asked} == {right}


def test_empty_token_option_is_anonymous_whatever_the_variable_says(
    client: Client, store: Store, hub: Hub
) -> None:
    assert download(client, "--token", "", MODELSCOPE_API_TOKEN=store.add_user("alice")).code == 0
    assert {request.token for request in hub.log} == {None}


@pytest.mark.parametrize("blank", ["", " \n"])
def test_blank_token_variable_does_not_hide_a_stored_login(
    client: Client, store: Store, blank: str
) -> None:
    store.add("alice/private", FILES, private=True)
    assert client.run("modelscope", "login", "--token", store.add_user("alice")).code == 0
    result = download(client, MODEL_ID="alice/private", MODELSCOPE_API_TOKEN=blank)
    assert result.code == 0
    assert USED not in result.out


def test_private_model_without_a_token_fails(client: Client, store: Store) -> None:
    store.add("alice/private", FILES, private=True)
    result = download(client, MODEL_ID="alice/private")
    failed(result, "Model download FAILED: LookupError(", "is private and needs a token")
    assert "--token" in result.err


def test_wrong_token_is_a_failed_download(client: Client, hub: Hub) -> None:
    result = download(client, "--token", "ms-wrong-secret")
    failed(result, "Model download FAILED: AuthenticationError(")
    assert "ms-wrong-secret" not in result.out + result.err
    assert hub.requests("list") == []


@pytest.mark.parametrize("token", ["ms-pa\nss", "ms-pass\x07", "ms-päss", "ms-\u200bpass", "令牌"])
def test_token_that_cannot_be_one_is_refused_unseen(client: Client, hub: Hub, token: str) -> None:
    result = download(client, "--token", token)
    failed(result, "Model download FAILED: ValueError(")
    assert not any(part in result.out + result.err for part in ("ms-", "ss\\", "pass", "令"))
    assert hub.log == []


def test_token_that_the_hub_repeats_is_not_shown(client: Client, store: Store, hub: Hub) -> None:
    token = store.add_user("alice")
    hub.always("list", status(400, f"no good: Bearer {token}"))
    result = download(client, "--token", token)
    failed(result, "no good: Bearer ***")
    assert token not in result.out + result.err


def test_token_of_the_stored_login_is_not_shown(client: Client, store: Store, hub: Hub) -> None:
    token = store.add_user("alice")
    assert client.run("modelscope", "login", "--token", token).code == 0
    hub.always("list", status(400, f"no good: Bearer {token}"))
    result = download(client)
    failed(result, "no good: Bearer ***")
    assert token not in result.out + result.err


def test_token_is_stored_in_the_credentials_folder_alone(client: Client, store: Store) -> None:
    token = store.add_user("alice").encode()
    assert download(client, "--token", token.decode()).code == 0
    holders = [path for base in (client.home, client.work) for path in base.rglob("*")]
    holders = [path for path in holders if path.is_file() and token in path.read_bytes()]
    assert {path.parent for path in holders} == {client.home / ".modelscope" / "credentials"}


# --- usage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ["--tokne", "ms-secret"],
        ["--tokne=ms-secret"],
        ["-token", "ms-secret"],
        ["--tokenms-secret"],
        ["ms-secret"],
        ["--draft_optional=ms-secret"],
        ["--tok", "ms-secret"],
        ["--model", "ms-secret"],
        ["--revision", "ms-secret", "--token"],
    ],
)
def test_usage_error_is_1_and_shows_nothing_that_was_typed(
    client: Client, hub: Hub, options: list[str]
) -> None:
    result = client.run("download_model.py", *options)
    assert result.code == 1
    assert "secret" not in result.out + result.err
    assert "usage: download_model.py" in result.err
    assert "error:" in result.err.splitlines()[-1]
    assert hub.log == []


def test_word_stuck_to_the_short_help_is_not_shown(client: Client, hub: Hub) -> None:
    result = client.run("download_model.py", "-hms-secret")
    assert result.code in (0, 1)  # newer Pythons show the help, older ones an error
    assert "usage: download_model.py" in (result.err if result.code else result.out)
    assert "secret" not in result.out + result.err
    assert hub.log == []


def test_help_lists_the_seven_options_and_no_token(client: Client) -> None:
    result = client.run("download_model.py", "-h", MODELSCOPE_API_TOKEN="ms-secret")
    assert result.code == 0
    assert "secret" not in result.out + result.err
    options = "model_name revision cache_dir token draft_model_name draft_revision draft_optional"
    listed = {word.strip(",") for word in result.out.split() if word.startswith("--")}
    assert listed == {f"--{name}" for name in options.split()} | {"--help"}


# --- draft --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["option", "variable"])
def test_draft_is_downloaded_after_the_model(client: Client, store: Store, how: str) -> None:
    store.add(DRAFT, {"draft": b"1"}, revision="v2")
    option = ["--draft_model_name", DRAFT, "--draft_revision", "v2"]
    variable = {"SPEC_DRAFT_MODEL_ID": DRAFT, "SPEC_DRAFT_MODEL_REVISION": "v2"}
    result = download(client, *option) if how == "option" else download(client, **variable)
    folder = snapshot(client.work, DRAFT, "v2")
    assert result.code == 0
    assert result.lines == [
        "Model download successful!",
        f"Resolved model_dir: {snapshot(client.work)}",
        f"[spec] Downloading draft model: {DRAFT} (revision=v2)",
        "[spec] Draft model download successful!",
        f"[spec] Resolved draft_model_dir: {folder}",
    ]
    assert tree(folder) == {"draft": b"1"}


@pytest.mark.parametrize("env", [{}, {"SPEC_DRAFT_MODEL_REVISION": " "}])
def test_draft_revision_is_master_unless_given(
    client: Client, store: Store, env: dict[str, str]
) -> None:
    store.add(DRAFT, {"draft": b"1"})
    result = download(client, SPEC_DRAFT_MODEL_ID=DRAFT, **env)
    assert f"[spec] Downloading draft model: {DRAFT} (revision=master)" in result.lines
    assert tree(snapshot(client.work, DRAFT)) == {"draft": b"1"}


@pytest.mark.parametrize("blank", ["", "  "])
def test_blank_draft_is_skipped(client: Client, blank: str) -> None:
    result = download(client, SPEC_DRAFT_MODEL_ID=blank)
    assert result.code == 0
    assert "[spec]" not in result.out


def test_empty_draft_option_skips_the_draft_of_the_variable(client: Client) -> None:
    result = download(client, "--draft_model_name", "", SPEC_DRAFT_MODEL_ID=DRAFT)
    assert result.code == 0
    assert "[spec]" not in result.out


def test_failed_draft_is_2(client: Client) -> None:
    result = download(client, SPEC_DRAFT_MODEL_ID=DRAFT)
    failed(result, "[spec] Draft model download FAILED: LookupError(", code=2)
    assert tree(snapshot(client.work)) == FILES


@pytest.mark.parametrize("value", ["0", "", "true", "yes", "11"])
def test_failed_draft_is_2_unless_the_variable_is_exactly_1(client: Client, value: str) -> None:
    result = download(client, SPEC_DRAFT_MODEL_ID=DRAFT, SPEC_DRAFT_OPTIONAL=value)
    failed(result, "[spec] Draft model download FAILED: ", code=2)


@pytest.mark.parametrize("how", ["option", "variable"])
def test_failed_optional_draft_is_0(client: Client, how: str) -> None:
    options = ["--draft_optional"] if how == "option" else []
    env = {} if options else {"SPEC_DRAFT_OPTIONAL": "1"}
    result = download(client, *options, SPEC_DRAFT_MODEL_ID=DRAFT, **env)
    failed(result, "[spec] Draft model download FAILED (optional, continue): ", code=0)


def test_draft_is_not_tried_after_a_failed_model(client: Client, store: Store, hub: Hub) -> None:
    store.add(DRAFT, FILES)
    failed(download(client, "--revision", "nowhere", SPEC_DRAFT_MODEL_ID=DRAFT))
    assert not any(DRAFT in request.path for request in hub.log)


# --- output -------------------------------------------------------------------------------------


def test_output_survives_a_terminal_without_chinese(client: Client) -> None:
    result = download(client, "--cache_dir", "模型", PYTHONIOENCODING="ascii")
    assert result.code == 0
    assert result.lines[-1].endswith("--model/snapshots/master")
    assert "\\u6a21\\u578b" in result.lines[-1]


@pytest.mark.parametrize(
    ("main", "draft", "revision"),
    [("alice/model", "alice/model", "v2"), ("a--b/c", "a/b--c", "master")],
    ids=["in an older SDK's folder, which has no revision", "by names that become one"],
)
def test_draft_in_the_folder_of_the_main_model_fails(
    client: Client, store: Store, main: str, draft: str, revision: str
) -> None:
    store.add(main, FILES)
    store.add(draft, {"config.json": b"another"}, revision=revision)
    if main == draft:
        lay(client.work / main, FILES)
    options = ["--draft_model_name", draft, "--draft_revision", revision]
    result = download(client, *options, MODEL_ID=main)
    assert result.code == 2
    assert "holds the main model" in result.lines[-1]
    assert tree(Path(result.lines[1].split(": ")[1])) == FILES


def test_lines_come_at_once_and_in_order_through_one_pipe(
    client: Client, store: Store, hub: Hub
) -> None:
    store.add(DRAFT, FILES)
    hub.queue("list", passes, stall())
    command = [sys.executable, str(ROOT / "download_model.py")]
    env = {**client.env, "MODEL_ID": MODEL, "SPEC_DRAFT_MODEL_ID": DRAFT}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=client.work, env=env, **streams) as process:
        lines = []
        while not (lines and lines[-1].startswith("[spec] Downloading")):
            lines.append(process.stdout.readline().rstrip())
        assert len(hub.requests("list")) <= 2  # the draft isn't down yet, its line is here
        lines += process.stdout.read().splitlines()
    ours = [line for line in lines if " | " not in line and not line.startswith("WARNING")]
    assert [line.split(":")[0] for line in ours] == [
        "Model download successful!",
        "Resolved model_dir",
        "[spec] Downloading draft model",
        "[spec] Draft model download successful!",
        "[spec] Resolved draft_model_dir",
    ]


def test_progress_in_a_log_is_a_line_now_and_then(client: Client, store: Store, hub: Hub) -> None:
    store.add(MODEL, {"a": BIG[:1_200_000], "b": BIG[:1_200_001]})
    hub.queue("file", slow(100_000), times=2)
    result = download(client)
    assert result.code == 0
    assert "\r" not in result.err
    assert "\x1b" not in result.err
    progress = [line for line in result.err.splitlines() if "%|" in line]
    assert len(progress) == 1  # 12 seconds, a line every 10
    assert "" not in result.err.splitlines()


@pytest.mark.parametrize("parts", [False, True], ids=["in one stream", "in parts"])
def test_log_of_20_seconds_is_neither_flooded_nor_silent(
    client: Client, store: Store, hub: Hub, parts: bool
) -> None:
    store.add(MODEL, {f"shard-{i}": BIG[i:][:2_097_152] for i in range(4)})
    hub.rate = 2_097_152 / 20 / (2 if parts else 1)
    with client.start("download_model.py", MODEL_ID=MODEL, **(PARTS if parts else {})) as process:
        log, times = "", [time.monotonic()]
        while line := process.stderr.readline():
            log, times = log + line, [*times, time.monotonic()]
        times.append(time.monotonic())
    assert process.returncode == 0
    assert 18 < times[-1] - times[0] < 40
    assert len(log.splitlines()) <= 60
    assert len(log.encode()) <= 8_000
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) < 15


def test_progress_in_a_terminal_is_a_bar(client: Client, hub: Hub) -> None:
    hub.queue("file", slow(500_000), file=WEIGHTS)
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    command = [sys.executable, str(ROOT / "download_model.py")]
    env = {**client.env, "MODEL_ID": MODEL}
    with subprocess.Popen(command, cwd=client.work, env=env, stderr=follower) as process:
        os.close(follower)
        shown = b""
        while chunk := read(leader):
            shown += chunk
    assert process.returncode == 0
    assert shown.count(b"\r") > 5
    assert f"{WEIGHTS}:".encode() in shown


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other end is closed
        return b""


# --- what is there already ----------------------------------------------------------------------


def test_second_run_moves_no_bytes(client: Client, hub: Hub) -> None:
    download(client)
    moved = hub.sent()
    assert moved == sum(map(len, FILES.values()))
    assert download(client).code == 0
    assert hub.sent() == moved


@pytest.mark.parametrize("damage", [b"", b"x" * 300_000, b"short"])
def test_damaged_file_is_repaired_alone(client: Client, hub: Hub, damage: bytes) -> None:
    download(client)
    (snapshot(client.work) / WEIGHTS).write_bytes(damage)
    before = hub.sent()
    assert download(client).code == 0
    assert tree(snapshot(client.work)) == FILES
    assert hub.sent() - before == 300_000


def test_killed_run_resumes(client: Client, store: Store, hub: Hub) -> None:
    store.add(MODEL, {"big": BIG})
    hub.queue("file", slow(1_500_000), file="big")
    with client.start("download_model.py", MODEL_ID=MODEL) as process:
        partial = snapshot(client.work) / "big.incomplete"
        wait_until(lambda: partial.exists() and partial.stat().st_size > 1_000_000)
        process.kill()
    kept = partial.stat().st_size
    result = download(client)
    assert result.code == 0
    assert "WARNING" not in result.err
    assert tree(snapshot(client.work)) == {"big": BIG}
    assert hub.requests("file")[-1].sent == len(BIG) - kept


def test_files_that_the_revision_does_not_have_are_named_in_a_warning(
    client: Client, store: Store
) -> None:
    download(client)
    store.add(MODEL, {"config.json": b"{}"})
    (snapshot(client.work) / "left.incomplete").write_bytes(b"half")
    result = download(client)
    assert result.code == 0
    warning = [line for line in result.err.splitlines() if line.startswith("WARNING")]
    names = ["left.incomplete", WEIGHTS, "nested/deep/tokenizer.json"]
    folder = snapshot(client.work)
    assert warning == [f"WARNING: not in this revision, but in {folder}: {names}"]


def test_two_runs_at_once_share_the_work(client: Client, store: Store, hub: Hub) -> None:
    files = {f"shard-{i}": BIG[i:][:500_000] for i in range(6)}
    store.add(MODEL, files)
    hub.rate = 2_000_000
    runs = [client.start("download_model.py", MODEL_ID=MODEL) for _ in range(2)]
    for process in runs:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0, out
    assert tree(snapshot(client.work)) == files
    assert hub.sent() == 3_000_000


@pytest.mark.parametrize(
    "name",
    [
        "with space",
        "模型.json",
        "[brackets]*?.txt",
        "100%25.txt",
        "-leading dash",
        "a+b&c=d#e;f",
        "quote'\"quote",
        "nested/深/x y",
        "a..b/...c",
        ".hidden",
        "data_0_1",
        "a:b",
        "tab\tor\nnewline",
    ],
)
def test_odd_names_arrive_as_they_are(client: Client, store: Store, name: str) -> None:
    store.add(MODEL, {name: b"content"})
    assert download(client).code == 0
    assert tree(snapshot(client.work)) == {name: b"content"}


def test_empty_file_arrives(client: Client, store: Store) -> None:
    store.add(MODEL, {"empty": b"", "other": b"1"})
    assert download(client).code == 0
    assert tree(snapshot(client.work)) == {"empty": b"", "other": b"1"}


# --- file lists that are no good ----------------------------------------------------------------

OUTSIDE = [
    "../out",
    "/tmp/out",
    "a/../../out",
    "..",
    "C:/out",
    "C:\\out",
    "..\\out",
    "a\\b",
    "//h/s",
]
EMPTY = {"Code": 200, "Success": True, "Data": {"Files": []}}
NULL = {"Code": 200, "Success": True, "Data": None}
FOLDERS = {"Code": 200, "Success": True, "Data": {"Files": [{"Path": "a", "Type": "tree"}]}}


@pytest.mark.parametrize("name", OUTSIDE)
def test_name_that_leads_out_fails_before_anything_is_written(
    client: Client, hub: Hub, name: str
) -> None:
    hub.queue("list", named(name))
    failed(download(client, "--cache_dir", "cache"), "outside the model's folder")
    assert not any(client.work.iterdir())
    assert hub.requests("file") == []


def test_list_is_read_once_so_that_no_second_one_can_differ(client: Client, hub: Hub) -> None:
    assert download(client).code == 0
    assert len(hub.requests("list")) == 1


@pytest.mark.parametrize("fault", [answers(EMPTY), answers(NULL), answers(FOLDERS)])
def test_list_without_files_fails(client: Client, hub: Hub, fault: Fault) -> None:
    hub.always("list", fault)
    failed(download(client, "--cache_dir", "cache"), "lists no files")
    assert not any(client.work.iterdir())


@pytest.mark.parametrize(
    "fault",
    [
        page(),
        answers({}),
        answers([]),
        answers("a"),
        answers({"Data": {"Files": [17]}}),
        answers({"Data": {"Files": {"Path": "x"}}}),
        lambda answer: Response(200, answer().body[:-20]),
    ],
)
def test_list_that_is_nonsense_fails(client: Client, hub: Hub, fault: Fault) -> None:
    hub.always("list", fault)
    failed(download(client, "--cache_dir", "cache"))
    assert not any(client.work.iterdir())


def test_list_that_cannot_be_had_fails(client: Client, hub: Hub) -> None:
    hub.always("list", status(500))
    failed(download(client), "ServerError(")


def test_list_that_the_hub_cuts_short_fails(client: Client, store: Store) -> None:
    many = {f"folder/{number}": b"same" for number in range(3000)}
    store.add(MODEL, many)
    failed(download(client), "at most 3000 files of a folder", "folder")


def test_list_of_many_folders_is_read_whole(client: Client, store: Store) -> None:
    files = {f"{folder}/{number}": b"same" for folder in range(4) for number in range(800)}
    store.add(MODEL, files)
    assert download(client).code == 0
    assert tree(snapshot(client.work)) == files


@pytest.mark.parametrize("suffix", [".incomplete", ".parallel_tmp", "_0_1048575"])
def test_file_named_as_the_sdk_names_its_unfinished_ones_is_never_lost_in_silence(
    client: Client, store: Store, suffix: str
) -> None:
    files = {"big": BIG, f"big{suffix}": b"mine"}
    store.add(MODEL, files)
    result = download(client, **PARTS)
    if result.code:
        failed(result)
        result = download(client)
    assert result.code == 0
    assert tree(snapshot(client.work)) == files


def test_too_little_space_fails_before_the_first_byte(client: Client, hub: Hub) -> None:
    hub.queue("list", edit(lambda files: files[0].update(Size=10**18)))
    failed(download(client), "OSError(28, ", "are still to come")
    assert hub.requests("file") == []


# --- transfers that go wrong --------------------------------------------------------------------


@pytest.mark.parametrize("fault", [truncate(1000), refuse, corrupt, status(503), stall(1000)])
def test_transfer_that_fails_once_is_retried(client: Client, hub: Hub, fault: Fault) -> None:
    hub.queue("file", fault, file=WEIGHTS)
    assert download(client).code == 0
    assert tree(snapshot(client.work)) == FILES


def test_files_that_keep_failing_are_listed_each_with_its_cause(client: Client, hub: Hub) -> None:
    hub.always("file", status(403, "not yours"), file=WEIGHTS)
    hub.always("file", status(404, "gone"), file="config.json")
    result = download(client)
    failed(result, "Model download FAILED: FileDownloadError('2 of 2 file(s) failed to download")
    files = [line for line in result.lines if line.startswith("    ")]
    assert sorted(files) == [
        "    config.json: NotExistError('gone')",
        f"    {WEIGHTS}: PermissionDeniedError('not yours')",
    ]
    assert (snapshot(client.work) / "nested/deep/tokenizer.json").exists()


def test_hub_that_is_down_fails_with_what_to_check(client: Client) -> None:
    result = download(client, MODELSCOPE_ENDPOINT="http://127.0.0.1:9")
    failed(result, "NetworkError(")
    assert "The hub cannot be reached" in result.err


def test_torch_beside_the_sdk_is_not_imported_and_nothing_is_left_unchecked(
    client: Client,
) -> None:
    lay(client.work / "path", {"torch/__init__.py": b"raise SystemExit('torch was imported')"})
    result = download(client, PYTHONPATH=str(client.work / "path"))
    assert result.code == 0, result
    assert "WARNING" not in result.err


def test_missing_sdk_fails_without_a_traceback(client: Client) -> None:
    bare = [sys.executable, "-S", ROOT / "download_model.py"]
    failed(client.run(*bare, MODEL_ID=MODEL), "ModuleNotFoundError(")


def test_ctrl_c_in_a_transfer_is_130_within_2_seconds_and_one_line(
    client: Client, hub: Hub
) -> None:
    hub.queue("file", slow(10_000), file=WEIGHTS)
    process = client.start("download_model.py", MODEL_ID=MODEL)
    partial = snapshot(client.work) / f"{WEIGHTS}.incomplete"
    result = client.interrupt(process, when=partial.exists)
    assert result.code == 130
    assert result.seconds < 2
    ours = [line for line in result.err.splitlines() if " | " not in line]
    assert ours == ["Interrupted. Run the same command again to resume."]
    assert result.out == ""


def test_ctrl_c_that_ended_the_reader_of_the_log_too_is_130(client: Client, hub: Hub) -> None:
    hub.queue("file", slow(10_000), file=WEIGHTS)
    process = client.start("download_model.py", MODEL_ID=MODEL)
    partial = snapshot(client.work) / f"{WEIGHTS}.incomplete"
    result = client.interrupt(process, when=partial.exists, log_read=False)
    assert result.code == 130
    assert result.seconds < 2


@pytest.mark.parametrize(
    ("streams", "code"),
    [(">&-", 0), ("2>&-", 0), (">&- 2>&-", 0), ("2>/dev/full", 0), (">/dev/full", 1)],
)
def test_stream_that_takes_nothing_shows_no_traceback(
    client: Client, streams: str, code: int
) -> None:
    script = f"{sys.executable} {ROOT / 'download_model.py'}"
    result = client.run("sh", "-c", f"{script} {streams}", MODEL_ID=MODEL)
    assert result.code == code
    assert "Traceback" not in result.err
    assert ("standard output: OSError(28, " in result.err) == bool(code)
    assert tree(snapshot(client.work)) == FILES


def test_reader_that_goes_after_the_main_model_is_a_failure(client: Client, store: Store) -> None:
    store.add(DRAFT, FILES)
    script = f"{sys.executable} {ROOT / 'download_model.py'}"
    command = f"{{ {script}; echo $? >code; }} | true"
    result = client.run("sh", "-c", command, MODEL_ID=MODEL, SPEC_DRAFT_MODEL_ID=DRAFT)
    assert (client.work / "code").read_text() == "1\n"
    assert "standard output: BrokenPipeError(" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("route", ["login", "list"])
def test_ctrl_c_before_the_transfer_is_130_within_2_seconds(
    client: Client, store: Store, hub: Hub, route: str
) -> None:
    hub.queue(route, stall())
    process = client.start("download_model.py", "--token", store.add_user("alice"), MODEL_ID=MODEL)
    result = client.interrupt(process, when=lambda: hub.requests(route))
    assert (result.code, result.out.count("Interrupted")) == (130, 0)
    assert result.seconds < 2
    assert "Traceback" not in result.err


def test_settings_of_the_user_stay_and_the_others_lift_the_limit_of_an_hour(client: Client) -> None:
    program = (
        "import download_model, modelscope_hub.constants as sdk;"
        "print(sdk.DOWNLOAD_TOTAL_TIMEOUT, sdk.DOWNLOAD_FILE_LOCK_TIMEOUT_SECONDS)"
    )
    ours = client.run(sys.executable, "-c", program, PYTHONPATH=str(ROOT)).out.split()
    assert all(int(seconds) > 50_000 for seconds in ours)  # 50 GB at 1 MB/s
    users = {"MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT": "7"}
    program = client.run(sys.executable, "-c", program, PYTHONPATH=str(ROOT), **users)
    assert program.out.split()[0] == "7"


def test_sigterm_is_143_within_2_seconds_and_one_line(client: Client, hub: Hub) -> None:
    hub.queue("file", stall(1000), file=WEIGHTS)
    process = client.start("download_model.py", MODEL_ID=MODEL)
    result = client.interrupt(
        process, when=lambda: hub.requests("file", WEIGHTS), number=signal.SIGTERM
    )
    assert result.code == 143
    assert result.seconds < 2
    ours = [line for line in result.err.splitlines() if " | " not in line]
    assert ours == ["Interrupted. Run the same command again to resume."]


def test_token_that_is_a_word_of_ours_spoils_no_documented_line(
    client: Client, store: Store
) -> None:
    store.users["Model"] = "alice"
    result = download(client, "--token", "Model")
    assert result.lines == [USED, *(line.format(snapshot(client.work)) for line in SUCCESS)]
