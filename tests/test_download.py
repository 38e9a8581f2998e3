"""What `download_model.py` promises: its document's sentences, then those of the contract."""

import os
import re
import sys
import threading
from pathlib import Path

import pytest

from tests.hub import Fault, Hub, Store, faults
from tests.support.cases import (
    BIG,
    DRAFT,
    FILES,
    IN_TERMINAL,
    MODEL,
    NAMES,
    SLOW_DISK,
    SMALL,
    SUCCESS,
    TOTAL,
    TRIED_AGAIN,
    Env,
    assert_downloaded,
    assert_failed,
    disk,
    download,
    in_both_ways,
    lists_big,
    snapshot,
)
from tests.support.client import DOWNLOAD, PARTS, ROOT, Client, lay, tree, wait_until

DEFAULT, PRIVATE = "YukinoStuki/Qwen3-4B-Plus-Merged", "alice/private"
USED = "Using ModelScope token for authenticated download."
FAILED = "Model download FAILED: "
DRAFT_FAILED = "[spec] Draft model download FAILED: "
DRAFT_SKIPPED = "[spec] Draft model download FAILED (optional, continue): "
UNREADABLE = {"Code": 10990101004, "Success": False, "Message": "获取模型目录树失败", "Data": None}
pytestmark = pytest.mark.usefixtures("model")


def success(folder: Path) -> list[str]:
    return [line.format(folder) for line in SUCCESS]


def draft_success(folder: Path, revision: str) -> list[str]:
    return [
        f"[spec] Downloading draft model: {DRAFT} (revision={revision})",
        "[spec] Draft model download successful!",
        f"[spec] Resolved draft_model_dir: {folder}",
    ]


# --- options and variables ------------------------------------------------------------------------


def test_no_option_downloads_the_default_model(client: Client, hub: Hub) -> None:
    hub.store.add(DEFAULT, FILES)
    result = download(client, MODEL_ID=None)
    assert (result.code, result.lines) == (0, success(snapshot(client.work, DEFAULT)))
    assert tree(snapshot(client.work, DEFAULT)) == FILES
    assert [r.query["Revision"] for r in hub.requests("list")] == ["master"]
    assert {request.token for request in hub.log} == {None}


def test_variables_are_options_and_the_draft_is_last(client: Client, hub: Hub, token: str) -> None:
    hub.store.add(PRIVATE, FILES, private=True)
    hub.store.add(DRAFT, SMALL, revision="v2", private=True)
    env = {"SPEC_DRAFT_MODEL_ID": DRAFT, "SPEC_DRAFT_MODEL_REVISION": "v2"}
    result = download(client, MODEL_ID=PRIVATE, **env)
    folder, draft = snapshot(client.work, PRIVATE), snapshot(client.work, DRAFT, "v2")
    expected = [USED, *success(folder), *draft_success(draft, "v2")]
    assert (result.code, result.lines) == (0, expected)
    assert (tree(folder), tree(draft)) == (FILES, SMALL)
    asked = [r.path.removesuffix("/repo/files") for r in hub.log if r.route in ("login", "list")]
    assert asked == ["/api/v1/login", f"/api/v1/models/{PRIVATE}", f"/api/v1/models/{DRAFT}"]


def test_options_win_over_variables(client: Client, store: Store) -> None:
    store.add(PRIVATE, SMALL, revision="v1", private=True)
    store.add(DRAFT, FILES, revision="v2", private=True)
    options = ["--model_name", PRIVATE, "--revision", "v1", "--token", store.add_user("alice")]
    options += ["--draft_model_name", DRAFT, "--draft_revision", "v2"]
    other = {"MODEL_ID": "bob/x", "MODELSCOPE_API_TOKEN": store.add_user("bob")}
    other |= {"SPEC_DRAFT_MODEL_ID": "bob/x", "SPEC_DRAFT_MODEL_REVISION": "v9"}
    result = download(client, *options, **other)
    folder, draft = snapshot(client.work, PRIVATE, "v1"), snapshot(client.work, DRAFT, "v2")
    expected = [USED, *success(folder), *draft_success(draft, "v2")]
    assert (result.code, result.lines) == (0, expected)
    assert (tree(folder), tree(draft)) == (SMALL, FILES)


@pytest.mark.parametrize("value", ["{}\r\n", ' "{}" \r', "'{}'"])
def test_white_space_and_quotes_around_values_go(
    client: Client, store: Store, token: str, value: str
) -> None:
    """`docker run --env-file` keeps quotes (moby/moby#46773), as `set X="…"` does on Windows.

    A secret made of a file ends with a newline (1Password/connect-sdk-go#73), a line of a Windows
    file in a carriage return (Osmantic/ODS#1678)."""
    store.add(PRIVATE, SMALL, revision="v1", private=True)
    names = {"MODEL_ID": PRIVATE, "MODELSCOPE_API_TOKEN": token, "SPEC_DRAFT_MODEL_ID": DRAFT}
    names |= {"SPEC_DRAFT_MODEL_REVISION": "v2", "SPEC_DRAFT_OPTIONAL": "1"}
    options = ["--revision", value.format("v1"), "--cache_dir", value.format("there")]
    result = download(client, *options, **{name: value.format(names[name]) for name in names})
    folder = snapshot(client.work / "there", PRIVATE, "v1")
    start = f"[spec] Downloading draft model: {DRAFT} (revision=v2)"
    assert result.lines[:-1] == [USED, *success(folder), start], result
    assert result.lines[-1].startswith(f"{DRAFT_SKIPPED}LookupError(")
    assert (result.code, tree(folder)) == (0, SMALL)


@pytest.mark.parametrize("blank", ["", " \r\n"])
def test_blank_model_id_is_an_error_that_names_it(client: Client, hub: Hub, blank: str) -> None:
    assert_failed(download(client, MODEL_ID=blank), FAILED, "MODEL_ID")
    assert hub.log == []


def test_blank_revisions_are_master(client: Client, store: Store) -> None:
    store.add(DRAFT, SMALL)
    env = {"SPEC_DRAFT_MODEL_ID": DRAFT, "SPEC_DRAFT_MODEL_REVISION": " "}
    result = download(client, "--revision", "", **env)
    draft = draft_success(snapshot(client.work, DRAFT), "master")
    assert (result.code, result.lines) == (0, [*success(snapshot(client.work)), *draft])


@pytest.mark.parametrize("revision", ["v1.0", "feature/x", "0" * 39 + "1"])
def test_revision_is_a_branch_tag_or_commit(client: Client, store: Store, revision: str) -> None:
    store.add(MODEL, SMALL, revision=revision)
    assert download(client, "--revision", revision).code == 0
    assert tree(snapshot(client.work, revision=revision)) == SMALL


@pytest.mark.parametrize("base", ["work", "home", "anywhere"])
def test_cache_dir_is_printed_absolute(client: Client, tmp_path: Path, base: str) -> None:
    folder = tmp_path / base / "two words/new"
    given = {"work": "two words/new", "home": "~/two words/new", "anywhere": folder}[base]
    result = download(client, "--cache_dir", given)
    assert (result.code, result.lines) == (0, success(snapshot(folder)))
    assert tree(snapshot(folder)) == FILES


# --- the draft model ------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "variable"), [([], " "), (["--draft_model_name="], DRAFT)])
def test_blank_draft_is_skipped(client: Client, options: list[str], variable: str) -> None:
    result = download(client, *options, SPEC_DRAFT_MODEL_ID=variable)
    assert (result.code, result.lines) == (0, success(snapshot(client.work)))


@pytest.mark.parametrize("option", [[], ["--draft_optional"]])
@pytest.mark.parametrize("variable", [None, "0", "true", "11", "1"])
def test_failed_draft_is_2_unless_it_is_optional(
    client: Client, option: list[str], variable: str | None
) -> None:
    env = {"SPEC_DRAFT_MODEL_ID": DRAFT, "SPEC_DRAFT_OPTIONAL": variable}
    result = download(client, *option, **env)
    is_optional = bool(option) or variable == "1"
    assert_failed(result, code=0 if is_optional else 2)
    start = f"[spec] Downloading draft model: {DRAFT} (revision=master)"
    assert result.lines[:-1] == [*success(snapshot(client.work)), start]
    failed = DRAFT_SKIPPED if is_optional else DRAFT_FAILED
    assert result.lines[-1].startswith(f"{failed}LookupError(")


def test_draft_is_not_tried_after_a_failed_model(client: Client, hub: Hub) -> None:
    hub.store.add(DRAFT, SMALL)
    env = {"SPEC_DRAFT_MODEL_ID": DRAFT, "SPEC_DRAFT_OPTIONAL": "1"}
    result = download(client, MODEL_ID="alice/nowhere", **env)
    assert_failed(result, FAILED)
    assert len(result.lines) == 1
    assert not any(DRAFT in request.path for request in hub.log)


# --- logins ---------------------------------------------------------------------------------------


def test_failed_login_is_a_failed_download(client: Client, hub: Hub) -> None:
    result = download(client, "--token", "ms-wrong", SPEC_DRAFT_MODEL_ID=DRAFT)
    assert_failed(result, f"{FAILED}AuthenticationError(")
    assert (len(result.lines), hub.requests("list")) == (1, [])


# --- names, revisions, the file list --------------------------------------------------------------


@pytest.mark.parametrize("name", ["../b", "a/..", "/b", "a\\b/c", "Qwen3", "https://a/b", "a/b/c"])
def test_id_that_cannot_be_one_fails_at_once(client: Client, hub: Hub, name: str) -> None:
    cause = ValueError(f"not a model id: {name!r}; expected OWNER/NAME (see MODEL_ID)")
    assert_failed(download(client, MODEL_ID=name), f"{FAILED}{cause!r}\n")
    assert (hub.log, list(client.work.iterdir())) == ([], [])


@pytest.mark.parametrize("name", ["../../../out", "/tmp/out", "C:out"])
def test_revision_that_leaves_the_folder_fails_at_once(client: Client, hub: Hub, name: str) -> None:
    cause = ValueError(f"not a revision: {name!r}; expected a branch, tag or commit")
    assert_failed(download(client, "--revision", name), f"{FAILED}{cause!r}\n")
    assert (hub.log, list(client.work.iterdir())) == ([], [])


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "nested/../../out", "a\\b", "C:/out"])
def test_file_that_leaves_the_folder_fails_at_once(client: Client, hub: Hub, name: str) -> None:
    hub.queue("list", faults.named(name))
    assert_failed(download(client), f"{FAILED}ValueError(", repr(name).replace("\\", "\\\\"))
    assert (hub.requests("file"), list(client.work.iterdir())) == ([], [])


def test_odd_names_and_empty_files_arrive_as_they_are(client: Client, store: Store) -> None:
    names = ["with space", "模型.json", "[brackets].txt", "100%25", "-dash", "a+b&c=d#e;f", "q'q"]
    names += ["a..b/...c", ".hidden", "data_0_1", "x.incomplete.txt", "~"]
    files = {name: name.encode() for name in names} | {"empty": b""}
    store.add(MODEL, files)
    result = download(client)
    assert (result.code, tree(snapshot(client.work))) == (0, files), result
    assert "WARNING" not in result.err


def test_sdk_works_from_the_list_that_was_checked(client: Client, hub: Hub) -> None:
    """The branch moves on once its list is read."""
    files = {**FILES, "new": b"new"}
    hub.queue("list", lambda answer: (answer(), hub.store.add(MODEL, files))[0])
    assert download(client).code == 0
    assert (tree(snapshot(client.work)), len(hub.requests("list"))) == (FILES, 1)


@pytest.mark.parametrize("files", [[], [{"Path": "a", "Type": "tree"}], None, [17]])
def test_list_without_files_fails(client: Client, hub: Hub, files: object) -> None:
    hub.always("list", faults.answers({"Code": 200, "Success": True, "Data": {"Files": files}}))
    assert_failed(download(client), FAILED)
    assert list(client.work.iterdir()) == []


@pytest.mark.parametrize("fault", [faults.status(404), faults.answers(UNREADABLE)])
def test_unreadable_list_is_read_once_more_after_a_pause(
    client: Client, hub: Hub, fault: Fault
) -> None:
    hub.queue("list", fault)
    result = download(client)
    assert_downloaded(client, result)
    [pause] = hub.pauses("list")
    assert (pause >= 1, result.err.count(TRIED_AGAIN)) == (True, 1)
    hub.always("list", fault)
    result = download(client, "--cache_dir", "other")
    assert_failed(result, FAILED)
    assert (result.err.count(TRIED_AGAIN), (client.work / "other").exists()) == (1, False)


@pytest.mark.parametrize("envelope", [False, True])
def test_known_revisions_answer_an_unknown_one(client: Client, hub: Hub, envelope: bool) -> None:
    hub.store.add(MODEL, FILES, revision="v1.0")
    hub.rules.envelope = envelope
    result = download(client, "--revision", "main")
    cause = LookupError(f"{MODEL} has no revision 'main', but ['master', 'v1.0']")
    assert (result.code, result.lines) == (1, [f"{FAILED}{cause!r}"])
    assert "login" not in result.err  # which is another cause's advice
    assert {request.status for request in hub.requests("list")} == {200 if envelope else 404}


def test_unknown_commit_is_named(client: Client) -> None:
    """The hub lists no files in it."""
    assert_failed(download(client, "--revision", "a" * 40), FAILED, "a" * 40)


@pytest.mark.parametrize("name", [PRIVATE, "alice/nowhere"])
@pytest.mark.parametrize("envelope", [False, True])
@pytest.mark.parametrize("login", [False, True])
def test_unknown_model_is_said_to_be_missing_or_private(
    client: Client, hub: Hub, name: str, envelope: bool, login: bool
) -> None:
    """With a token, it is of no use to ask for one: xorbitsai/inference#1142."""
    hub.store.add(PRIVATE, FILES, private=True)
    hub.rules.envelope = envelope
    result = download(client, *["--token", hub.store.add_user("bob")] * login, MODEL_ID=name)
    words = "or is not open to this login" if login else "or is private and needs a token"
    cause = LookupError(f"{name} does not exist, {words}")
    assert (result.code, result.lines[-1]) == (1, f"{FAILED}{cause!r}")


# --- the disk -------------------------------------------------------------------------------------


def test_too_little_space_fails_before_the_first_byte(client: Client, hub: Hub) -> None:
    with disk(client.work / "cache", "2m") as cache:
        result = download(client, "--cache_dir", cache)
        assert_failed(result, f"{FAILED}OSError(28, '{TOTAL} bytes are still to come, and ")
        assert not any(cache.iterdir())
    assert hub.requests("file") == []


def test_files_that_are_not_in_the_revision_are_named_in_a_warning(client: Client) -> None:
    """Also leftovers of other revisions, and parts of another size."""
    names = [f"{BIG}_0_524287", "a/b.incomplete", "b.safetensors", "b.safetensors_0_1048575"]
    folder = lay(snapshot(client.work), dict.fromkeys(sorted(names), b"stale"))
    result = download(client, **PARTS)
    assert result.code == 0
    assert result.warnings == [f"WARNING: not in this revision, but in {folder}: {sorted(names)}"]


def test_file_that_vanishes_meanwhile_is_a_failure(client: Client, hub: Hub) -> None:
    config = snapshot(client.work) / "config.json"
    hub.queue("file", faults.first(lambda: (wait_until(config.exists), config.unlink())), file=BIG)
    assert_failed(download(client), f"{FAILED}FileNotFoundError(", "['config.json']")


# --- transfers that go wrong ----------------------------------------------------------------------


def test_wrong_size_is_no_failure_where_the_digest_is_right(client: Client, hub: Hub) -> None:
    """OpenBMB/VoxCPM#55: "should be of size 12585 but has size 12582", of a file edited online."""
    hub.always("list", lists_big(Size=7))
    assert_downloaded(client, download(client))
    assert_downloaded(client, download(client))
    assert hub.sent() == TOTAL


def test_failed_file_is_tried_once_more_after_a_pause(client: Client, hub: Hub) -> None:
    """As when its signed address has expired."""
    hub.queue("file", faults.status(403), file=BIG)
    result = download(client)
    assert_downloaded(client, result)
    assert f"WARNING: 1 of 5 files failed; {TRIED_AGAIN} in 1 s" in result.warnings
    assert len(hub.requests("file")) == 6
    [pause] = hub.pauses("file", BIG)
    assert pause >= 1


def test_link_that_breaks_again_and_again_is_no_error(client: Client, hub: Hub) -> None:
    """More often than the SDK tries in two rounds, each time three times."""
    for name in (BIG, "model-00001-of-00002.safetensors"):
        hub.queue("file", faults.half, file=name, times=7)
    result = download(client)
    assert_downloaded(client, result)
    assert (hub.sent(), result.err.count(TRIED_AGAIN)) == (TOTAL, 2)


def test_refused_file_is_tried_once_more_where_nothing_came(client: Client, hub: Hub) -> None:
    lay(snapshot(client.work), {name: FILES[name] for name in FILES if name != BIG})
    hub.always("file", faults.status(403), file=BIG)
    result = download(client)
    assert_failed(result, f"{FAILED}FileDownloadError('1 of ")
    assert (len(hub.requests("file", BIG)), result.err.count(TRIED_AGAIN)) == (2, 1)


@in_both_ways
def test_wrong_digest_costs_three_transfers(client: Client, hub: Hub, env: Env) -> None:
    """modelscope/modelscope#758: 24 GB whose digest is wrong each time, and "please try again"."""
    hub.always("file", faults.corrupt, BIG)
    result = download(client, **env)
    assert_failed(result, f"{FAILED}FileDownloadError(", f"\n    '{BIG}': FileIntegrityError(")
    assert len(hub.requests("file", BIG)) == (9 if env else 3)
    assert tree(snapshot(client.work)) == {n: b for n, b in FILES.items() if n != BIG}


def test_files_that_keep_failing_are_listed_each_with_its_causes(client: Client, hub: Hub) -> None:
    in_the_way = lay(snapshot(client.work) / "nested/vocab.txt", {"mine": b"mine"})
    hub.always("file", faults.status(403, "not yours"), BIG)
    hub.always("file", faults.refuse, "config.json")
    result = download(client)
    assert_failed(result, f"{FAILED}FileDownloadError('3 of ")
    listed = {line.split(":")[0]: line for line in result.lines[1:]}
    assert listed.keys() == {f"    {n!r}" for n in (BIG, "config.json", "nested/vocab.txt")}
    assert listed[f"    '{BIG}'"].endswith(": PermissionDeniedError('not yours')")
    assert re.search(r": NetworkError\(.* from .*Connection", listed["    'config.json'"])
    assert repr(str(in_the_way)) in listed["    'nested/vocab.txt'"]


def test_small_files_come_many_at_once_beside_a_large_one(client: Client, hub: Hub) -> None:
    small = {f"{number}.txt": b"small" for number in range(16)}
    hub.store.add(MODEL, small | {BIG: FILES[BIG]})
    together = threading.Barrier(len(small))
    for name in small:
        hub.queue("file", faults.first(lambda: together.wait(20)), file=name)
    assert download(client, **PARTS, MODELSCOPE_DOWNLOAD_TIMEOUT="30").code == 0


@in_both_ways
def test_outage_beyond_two_rounds_is_ridden_out(client: Client, hub: Hub, env: Env) -> None:
    """A router restarts. Three minutes are patience; with the short pauses of tests, 20 s are."""
    back = threading.Timer(10, hub.restart)
    goes_away = faults.first(lambda: (hub.stop(), back.start()), faults.truncate(100_000))
    hub.queue("file", goes_away, file=BIG)
    result = download(client, **env)
    back.join()
    assert_downloaded(client, result)
    assert result.err.count(TRIED_AGAIN) > 2


def test_hub_that_goes_away_fails_and_the_next_run_goes_on(client: Client, hub: Hub) -> None:
    hub.queue("file", faults.first(hub.stop, faults.truncate(1_000_000)), file=BIG)
    assert_failed(download(client), f"{FAILED}FileDownloadError(", f"\n    '{BIG}': NetworkError(")
    assert_failed(download(client), f"{FAILED}NetworkError(")
    hub.restart()
    assert_downloaded(client, download(client))
    assert hub.requests("file", BIG)[-1].sent < len(FILES[BIG])


# --- how a large file comes, and the settings of the SDK ------------------------------------------


@pytest.mark.parametrize(
    ("env", "requests"),
    [
        ({}, 1),
        (PARTS, 3),
        (PARTS | {"MODELSCOPE_DOWNLOAD_PARALLEL_WORKERS": "1"}, 1),
        (PARTS | {"MODELSCOPE_DOWNLOAD_PARALLELS": "1"}, 1),
    ],
    ids=["default", "larger than the threshold", "one at once", "older name"],
)
def test_large_file_comes_in_parts_by_default(
    client: Client, hub: Hub, env: Env, requests: int
) -> None:
    """modelscope/modelscope#434: the maintainers tell people to set the last one."""
    assert_downloaded(client, download(client, **env))
    assert len(hub.requests("file", BIG)) == requests


def test_large_file_comes_in_one_stream_where_the_disk_is_slow(client: Client, hub: Hub) -> None:
    """Parts are written twice."""
    client.at_start(SLOW_DISK)
    assert_downloaded(client, download(client, **PARTS))
    assert len(hub.requests("file", BIG)) == 1


def test_many_large_files_come_in_one_stream_each(client: Client, hub: Hub) -> None:
    hub.store.add(MODEL, {f"{number}.bin": bytes([number]) * 1_100_000 for number in range(12)})
    assert download(client, **PARTS).code == 0
    assert len(hub.requests("file")) == 12


def test_number_of_connections_is_a_setting(client: Client, hub: Hub) -> None:
    """huggingface/huggingface_hub#2499: a weak router takes few."""
    hub.store.add(MODEL, {f"{number}.txt": b"small" for number in range(12)})
    crowd = faults.Crowd()
    hub.always("file", crowd)
    assert download(client, MODELSCOPE_API_CONNECTION_POOL_MAXSIZE="2").code == 0
    assert crowd.most == 2


def test_file_may_take_days_unless_the_user_says_otherwise(client: Client) -> None:
    """At 1 MB/s, 50 GB take 50,000 seconds; another run waits as long, but not for weeks.

    modelscope/modelscope#1778: a lock that a killed run left is waited for.
    """
    names = ["DOWNLOAD_TOTAL_TIMEOUT", "DOWNLOAD_FILE_LOCK_TIMEOUT_SECONDS"]
    program = f"import download_model as d; print(*(getattr(d.constants, n) for n in {names}))"
    env = {"PYTHONPATH": str(ROOT)}
    limits = client.run(sys.executable, "-c", program, **env).out.split()
    assert all(int(limit) > 50_000 for limit in limits), limits
    assert int(limits[1]) <= 24 * 3600
    env |= {f"MODELSCOPE_{name}": "7" for name in names}
    assert client.run(sys.executable, "-c", program, **env).out == "7 7\n"


# --- what is shown --------------------------------------------------------------------------------


def test_log_gets_a_line_each_ten_seconds_with_the_mean_rate(client: Client, hub: Hub) -> None:
    """The last bytes come at 40 kB/s."""
    hub.queue("file", faults.short(560_000), faults.slow(4e4), file=BIG)
    with client.start(*DOWNLOAD, MODEL_ID=MODEL) as process:
        log = process.stderr.buffer.read().replace(os.linesep.encode(), b"\n").decode()
    assert (process.returncode, tree(snapshot(client.work))) == (0, FILES)
    assert not re.search(r"[\r\x1b]|^\n", log, re.MULTILINE)
    [line] = [line for line in log.splitlines() if "%" in line]
    shown = r"Total: +\d\d%\|.*\| 2\.\d+M/2\.82M \[00:\d\d<00:\d\d, 2\d\dkB/s\]"
    assert re.fullmatch(shown, line), line


def test_bar_in_a_terminal_is_one_and_never_passes_its_end(client: Client, hub: Hub) -> None:
    """Neither for a file that is larger than listed."""
    hub.queue("list", lists_big(Size=2_000_000))
    hub.always("file", faults.slow(5e5), BIG)
    result = download(client, before=IN_TERMINAL)
    assert (result.code, tree(snapshot(client.work))) == (0, FILES)
    assert len(set(result.percents)) > 2
    assert (max(result.percents), result.percents[-1]) == (100, 100)
    assert "2.26M/2.26M" in [line for line in result.lines if "%" in line][-1]


def test_wait_for_the_list_is_shown(client: Client, hub: Hub) -> None:
    release = threading.Event()
    hub.queue("list", faults.first(release.wait))
    patient = {f"MODELSCOPE_REPO_TREE_{name}_TIMEOUT_SECONDS": "30" for name in ("PAGE", "LIST")}
    process = client.start(*IN_TERMINAL, *DOWNLOAD, **NAMES, **patient)
    assert any("Checking" in line for line in process.stdout)
    release.set()
    output = process.communicate(timeout=30)
    assert process.returncode == 0, output
