"""The documents of the two scripts, sentence by sentence, on a stub of `modelscope`.

Here it counts what is asked of the SDK, in which order, and what is printed for its answers; what
comes of it on a hub is for the other tests.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Result, lay, tree
from tests.support.stub import ALONE, BESIDE, MISSING, PATCHED, StubClient

DOWNLOAD, UPLOAD = "download_model.py", "upload_model.py"
MODEL, DRAFT, REPO = "alice/model", "alice/draft", "alice/repo"
DEFAULT_MODEL = "YukinoStuki/Qwen3-4B-Plus-Merged"
DEFAULT_REPO = "YukinoStuki/Qwen3-4B-Plus-LLM-AWQ"
DEFAULT_FOLDER = "model/YukinoStuki/Qwen3-4B-Plus-LLM-AWQ"
TOKEN = "ms-0123456789-Stub"
CAUSE = repr(RuntimeError("the hub said no"))
FILES = {"config.json": b"{}", "tokenizer_config.json": b"{}", "model.safetensors": b"weights"}

USED = "Using ModelScope token for authenticated download."
SUCCESS = "Model download successful!"
FAILED = f"Model download FAILED: {CAUSE}"
DRAFT_START = f"[spec] Downloading draft model: {DRAFT} (revision=master)"
DRAFT_FAILED = f"[spec] Draft model download FAILED: {CAUSE}"
DRAFT_SKIPPED = f"[spec] Draft model download FAILED (optional, continue): {CAUSE}"


@pytest.fixture
def stub(tmp_path: Path, request: pytest.FixtureRequest) -> StubClient:
    return StubClient(tmp_path, getattr(request, "param", ALONE))


# What the guard might come in the way of is tried with the real SDK within its reach, too.
with_each_sdk = pytest.mark.parametrize("stub", [ALONE, BESIDE, PATCHED], indirect=True)


@pytest.fixture
def folder(stub: StubClient) -> Path:
    """A full model."""
    return lay(stub.work / "folder", FILES)


def download(stub: StubClient, *options: object, **env: str) -> Result:
    return stub.run(DOWNLOAD, *options, **{"MODEL_ID": MODEL, **env})


def upload(stub: StubClient, *options: object, **env: str) -> Result:
    return stub.run(UPLOAD, *options, **{"REPO_ID": REPO, "MODEL_DIR": "folder", **env})


def login(token: str = TOKEN) -> list[Any]:
    return ["login", [token], {}]


def fetch(cache_dir: Path, model: str = MODEL, revision: str = "master") -> list[Any]:
    return ["snapshot_download", [model], {"cache_dir": str(cache_dir), "revision": revision}]


def send(folder: Path, repo: str = REPO, message: str = "upload model folder") -> list[Any]:
    options = {"repo_id": repo, "folder_path": str(folder), "commit_message": message}
    return ["upload_folder", [], options]


def lines(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def succeeded(result: Result) -> None:
    assert result.code == 0, result
    assert "Traceback" not in result.err


def failed(result: Result, code: int = 1) -> None:
    assert result.code == code, result
    assert "Traceback" not in result.out + result.err


# --- download_model.py, 1: what it does, its output, its exit codes -------------------------------


def test_main_model_alone_is_downloaded_with_the_documented_call(stub: StubClient) -> None:
    succeeded(download(stub))
    assert stub.calls == [fetch(stub.work)]


def test_main_model_is_reported_with_its_folder(stub: StubClient) -> None:
    result = download(stub)
    succeeded(result)
    assert result.lines == [SUCCESS, f"Resolved model_dir: {stub.work / MODEL}"]


def test_draft_is_downloaded_after_the_main_model(stub: StubClient) -> None:
    succeeded(download(stub, "--draft_model_name", DRAFT))
    assert stub.calls == [fetch(stub.work), fetch(stub.work, DRAFT)]


@with_each_sdk
def test_draft_is_reported_with_its_folder(stub: StubClient) -> None:
    result = download(stub, "--draft_model_name", DRAFT)
    succeeded(result)
    assert result.lines == [
        SUCCESS,
        f"Resolved model_dir: {stub.work / MODEL}",
        DRAFT_START,
        "[spec] Draft model download successful!",
        f"[spec] Resolved draft_model_dir: {stub.work / DRAFT}",
    ]


@with_each_sdk
def test_failed_main_model_exits_1_with_its_cause(stub: StubClient) -> None:
    result = download(stub, STUB_FAILS=MODEL)
    failed(result, 1)
    assert result.lines == [FAILED]


@with_each_sdk
def test_failed_draft_exits_2_with_its_cause(stub: StubClient) -> None:
    result = download(stub, "--draft_model_name", DRAFT, STUB_FAILS=DRAFT)
    failed(result, 2)
    assert result.lines[2:] == [DRAFT_START, DRAFT_FAILED]


def test_failed_draft_that_is_optional_exits_0_with_its_cause(stub: StubClient) -> None:
    options = ("--draft_model_name", DRAFT, "--draft_optional")
    result = download(stub, *options, STUB_FAILS=DRAFT)
    succeeded(result)
    assert result.lines[2:] == [DRAFT_START, DRAFT_SKIPPED]


def test_failed_draft_leaves_the_report_of_the_main_model(stub: StubClient) -> None:
    result = download(stub, "--draft_model_name", DRAFT, STUB_FAILS=DRAFT)
    assert result.lines[:2] == [SUCCESS, f"Resolved model_dir: {stub.work / MODEL}"]


def test_failed_main_model_leaves_the_draft_untried(stub: StubClient) -> None:
    options = ("--draft_model_name", DRAFT, "--draft_optional")
    result = download(stub, *options, STUB_FAILS=MODEL)
    failed(result, 1)
    assert result.lines == [FAILED]
    assert stub.calls == [fetch(stub.work)]


def test_download_writes_below_cache_dir_alone(stub: StubClient) -> None:
    succeeded(download(stub, "--cache_dir", "models"))
    assert [path.name for path in stub.work.iterdir()] == ["models"]


# --- download_model.py, 2: options and environment variables --------------------------------------


def test_model_name_defaults_to_the_documented_model(stub: StubClient) -> None:
    succeeded(stub.run(DOWNLOAD))
    assert stub.calls == [fetch(stub.work, DEFAULT_MODEL)]


def test_model_name_wins_over_model_id(stub: StubClient) -> None:
    succeeded(download(stub, "--model_name", "bob/model"))
    assert stub.calls == [fetch(stub.work, "bob/model")]


def test_blank_model_id_is_an_error_that_names_it(stub: StubClient) -> None:
    result = download(stub, MODEL_ID=" ")
    failed(result)
    assert "MODEL_ID" in result.out
    assert stub.calls == []


def test_revision_is_handed_on(stub: StubClient) -> None:
    succeeded(download(stub, "--revision", "v1.0"))
    assert stub.calls == [fetch(stub.work, revision="v1.0")]


def test_relative_cache_dir_is_below_the_current_folder(stub: StubClient) -> None:
    succeeded(download(stub, "--cache_dir", "./models"))
    assert stub.calls == [fetch(stub.work / "models")]


def test_absolute_cache_dir_is_handed_on(stub: StubClient, tmp_path: Path) -> None:
    succeeded(download(stub, "--cache_dir", tmp_path / "app/model"))
    assert stub.calls == [fetch(tmp_path / "app/model")]


def test_cache_dir_expands_the_home(stub: StubClient) -> None:
    succeeded(download(stub, "--cache_dir", "~/models"))
    assert stub.calls == [fetch(stub.home / "models")]


def test_draft_goes_to_the_same_cache_dir(stub: StubClient) -> None:
    succeeded(download(stub, "--cache_dir", "models", "--draft_model_name", DRAFT))
    assert stub.calls == [fetch(stub.work / "models"), fetch(stub.work / "models", DRAFT)]


def test_download_token_logs_in_before_the_download(stub: StubClient) -> None:
    succeeded(download(stub, "--token", TOKEN))
    assert stub.calls == [login(), fetch(stub.work)]


def test_download_token_is_read_from_its_variable(stub: StubClient) -> None:
    succeeded(download(stub, MODELSCOPE_API_TOKEN=TOKEN))
    assert stub.calls == [login(), fetch(stub.work)]


def test_download_token_wins_over_its_variable(stub: StubClient) -> None:
    succeeded(download(stub, "--token", TOKEN, MODELSCOPE_API_TOKEN="ms-other"))
    assert stub.calls == [login(), fetch(stub.work)]


def test_download_token_is_stripped(stub: StubClient) -> None:
    succeeded(download(stub, MODELSCOPE_API_TOKEN=f" {TOKEN}\n"))
    assert stub.calls == [login(), fetch(stub.work)]


@pytest.mark.parametrize("blank", ["", " \t\n"])
def test_blank_download_token_is_anonymous(stub: StubClient, blank: str) -> None:
    succeeded(download(stub, "--token", blank))
    succeeded(download(stub, MODELSCOPE_API_TOKEN=blank))
    assert stub.calls == 2 * [fetch(stub.work)]


@with_each_sdk
def test_download_logs_in_once_for_both_models(stub: StubClient) -> None:
    succeeded(download(stub, "--token", TOKEN, "--draft_model_name", DRAFT))
    assert stub.calls == [login(), fetch(stub.work), fetch(stub.work, DRAFT)]


@pytest.mark.parametrize("fails", ["", "login", MODEL, DRAFT])
def test_download_token_is_not_printed(stub: StubClient, fails: str) -> None:
    env = {"STUB_FAILS": fails, "STUB_CAUSE": f"{TOKEN} was refused"}
    result = download(stub, "--token", TOKEN, "--draft_model_name", DRAFT, **env)
    assert len(stub.calls) > 0
    assert TOKEN not in result.out + result.err


def test_draft_is_read_from_its_variables(stub: StubClient) -> None:
    env = {"SPEC_DRAFT_MODEL_ID": DRAFT, "SPEC_DRAFT_MODEL_REVISION": "v2"}
    result = download(stub, **env)
    succeeded(result)
    assert stub.calls == [fetch(stub.work), fetch(stub.work, DRAFT, "v2")]
    assert f"[spec] Downloading draft model: {DRAFT} (revision=v2)" in result.lines


def test_draft_options_win_over_their_variables(stub: StubClient) -> None:
    env = {"SPEC_DRAFT_MODEL_ID": "bob/draft", "SPEC_DRAFT_MODEL_REVISION": "v2"}
    succeeded(download(stub, "--draft_model_name", DRAFT, "--draft_revision", "v3", **env))
    assert stub.calls == [fetch(stub.work), fetch(stub.work, DRAFT, "v3")]


def test_draft_revision_is_not_that_of_the_main_model(stub: StubClient) -> None:
    succeeded(download(stub, "--revision", "v1", "--draft_model_name", DRAFT))
    assert stub.calls == [fetch(stub.work, revision="v1"), fetch(stub.work, DRAFT, "master")]


def test_blank_revisions_are_master(stub: StubClient) -> None:
    env = {"SPEC_DRAFT_MODEL_ID": DRAFT, "SPEC_DRAFT_MODEL_REVISION": ""}
    succeeded(download(stub, "--revision", "", **env))
    assert stub.calls == [fetch(stub.work), fetch(stub.work, DRAFT)]


def test_draft_optional_is_on_when_its_variable_is_1(stub: StubClient) -> None:
    env = {"SPEC_DRAFT_MODEL_ID": DRAFT, "SPEC_DRAFT_OPTIONAL": "1"}
    result = download(stub, STUB_FAILS=DRAFT, **env)
    succeeded(result)
    assert result.lines[-1] == DRAFT_SKIPPED


@pytest.mark.parametrize("value", ["", "0", "true", "yes", "11", " 1"])
def test_draft_optional_is_off_when_its_variable_is_not_1(stub: StubClient, value: str) -> None:
    env = {"SPEC_DRAFT_MODEL_ID": DRAFT, "SPEC_DRAFT_OPTIONAL": value}
    result = download(stub, STUB_FAILS=DRAFT, **env)
    failed(result, 2)
    assert result.lines[-1] == DRAFT_FAILED


def test_draft_optional_wins_over_its_variable(stub: StubClient) -> None:
    env = {"SPEC_DRAFT_MODEL_ID": DRAFT, "SPEC_DRAFT_OPTIONAL": "0"}
    succeeded(download(stub, "--draft_optional", STUB_FAILS=DRAFT, **env))


def test_draft_optional_does_not_excuse_the_main_model(stub: StubClient) -> None:
    failed(download(stub, "--draft_optional", STUB_FAILS=MODEL, SPEC_DRAFT_OPTIONAL="1"), 1)


# --- download_model.py, 3: how it is made ---------------------------------------------------------


def test_download_imports_the_documented_names(stub: StubClient) -> None:
    imports = "__import__('modelscope').snapshot_download is snapshot_download"
    assert stub.evaluate(DOWNLOAD, imports)
    imports = "__import__('modelscope.hub.api').hub.api.HubApi is HubApi"
    assert stub.evaluate(DOWNLOAD, imports)


def test_parse_args_gives_the_documented_defaults(stub: StubClient) -> None:
    args = stub.evaluate(DOWNLOAD, "vars(parse_args())")
    assert not args.pop("token")
    assert not args.pop("draft_model_name")
    assert args == {
        "model_name": DEFAULT_MODEL,
        "revision": "master",
        "cache_dir": "./",
        "draft_revision": "master",
        "draft_optional": False,
    }


def test_parse_args_takes_its_defaults_from_the_environment(stub: StubClient) -> None:
    env = {
        "MODEL_ID": MODEL,
        "MODELSCOPE_API_TOKEN": TOKEN,
        "SPEC_DRAFT_MODEL_ID": DRAFT,
        "SPEC_DRAFT_MODEL_REVISION": "v2",
        "SPEC_DRAFT_OPTIONAL": "1",
    }
    assert stub.evaluate(DOWNLOAD, "vars(parse_args())", **env) == {
        "model_name": MODEL,
        "revision": "master",
        "cache_dir": "./",
        "token": TOKEN,
        "draft_model_name": DRAFT,
        "draft_revision": "v2",
        "draft_optional": True,
    }


def test_download_login_is_reported_first(stub: StubClient) -> None:
    result = download(stub, "--token", TOKEN)
    succeeded(result)
    assert result.lines == [USED, SUCCESS, f"Resolved model_dir: {stub.work / MODEL}"]


@with_each_sdk
def test_failed_download_login_is_a_failed_download(stub: StubClient) -> None:
    result = download(stub, "--token", TOKEN, "--draft_model_name", DRAFT, STUB_FAILS="login")
    failed(result, 1)
    assert result.lines == [FAILED]
    assert stub.calls == [login()]


# --- download_model.py, 4: questions and answers --------------------------------------------------


def test_q2_resolved_model_dir_is_what_the_sdk_returned(stub: StubClient, tmp_path: Path) -> None:
    result = download(stub, STUB_FOLDER=str(tmp_path / "elsewhere"))
    succeeded(result)
    assert result.lines[-1] == f"Resolved model_dir: {tmp_path / 'elsewhere'}"


@with_each_sdk
def test_q2_resolved_model_dir_is_absolute(stub: StubClient) -> None:
    result = download(stub, "--draft_model_name", DRAFT, STUB_FOLDER="some/folder")
    succeeded(result)
    assert result.lines[1] == f"Resolved model_dir: {stub.work / 'some/folder'}"
    assert result.lines[4] == f"[spec] Resolved draft_model_dir: {stub.work / 'some/folder'}"


def test_q3_download_may_fail_after_a_login(stub: StubClient) -> None:
    result = download(stub, "--token", TOKEN, STUB_FAILS=MODEL)
    failed(result, 1)
    assert result.lines == [USED, FAILED]


def test_q4_optional_variable_set_to_0_lets_a_failed_draft_fail(stub: StubClient) -> None:
    env = {"SPEC_DRAFT_MODEL_ID": DRAFT, "STUB_FAILS": DRAFT}
    succeeded(download(stub, SPEC_DRAFT_OPTIONAL="1", **env))
    failed(download(stub, SPEC_DRAFT_OPTIONAL="0", **env), 2)


def test_q5_main_model_exits_1_where_a_draft_exits_2(stub: StubClient) -> None:
    failed(download(stub, SPEC_DRAFT_MODEL_ID=DRAFT, STUB_FAILS="snapshot_download"), 1)
    failed(download(stub, SPEC_DRAFT_MODEL_ID=DRAFT, STUB_FAILS=DRAFT), 2)


@pytest.mark.parametrize("blank", ["", "  "])
def test_q6_blank_draft_model_is_skipped(stub: StubClient, blank: str) -> None:
    for options, value in (((), blank), (("--draft_model_name", blank), DRAFT)):
        result = download(stub, *options, SPEC_DRAFT_MODEL_ID=value)
        succeeded(result)
        assert lines(result.out, "[spec]") == []
    assert stub.calls == 2 * [fetch(stub.work)]


@pytest.mark.parametrize("token", ["", " ", TOKEN])
def test_q7_login_is_reported_only_with_a_token(stub: StubClient, token: str) -> None:
    result = download(stub, MODELSCOPE_API_TOKEN=token)
    succeeded(result)
    assert (USED in result.lines) == bool(token.strip())


# --- upload_model.py, 1: what it does, its output, its exit codes ---------------------------------


def test_folder_is_uploaded_with_the_documented_call(stub: StubClient, folder: Path) -> None:
    succeeded(upload(stub))
    assert stub.calls == [send(folder)]


@with_each_sdk
def test_upload_prints_folder_repo_and_success(stub: StubClient, folder: Path) -> None:
    result = upload(stub, "--model-dir", folder)
    succeeded(result)
    assert result.lines == [f"Uploading folder: {folder}  -->  {REPO}", "Upload finished."]


@with_each_sdk
def test_failed_upload_exits_1_with_its_cause(stub: StubClient, folder: Path) -> None:
    result = upload(stub, "--model-dir", folder, STUB_FAILS="upload_folder")
    failed(result)
    assert result.lines == [f"Uploading folder: {folder}  -->  {REPO}"]
    assert lines(result.err, "ERROR") == [f"ERROR: 上传失败：{CAUSE}"]


@with_each_sdk
def test_upload_leaves_the_folder_as_it_is(stub: StubClient, folder: Path) -> None:
    before = tree(folder), folder.stat().st_mtime_ns
    succeeded(upload(stub))
    assert (tree(folder), folder.stat().st_mtime_ns) == before


# --- upload_model.py, 2: options and environment variables ----------------------------------------


def test_upload_defaults_are_the_documented_ones(stub: StubClient) -> None:
    lay(stub.work / DEFAULT_FOLDER, FILES)
    succeeded(stub.run(UPLOAD))
    assert stub.calls == [send(stub.work / DEFAULT_FOLDER, DEFAULT_REPO)]


def test_repo_id_is_stripped(stub: StubClient, folder: Path) -> None:
    succeeded(upload(stub, REPO_ID=f" {REPO}\n"))
    assert stub.calls == [send(folder)]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("blank", ["", "  "])
def test_blank_repo_id_exits_1_before_the_login(stub: StubClient, blank: str) -> None:
    for result in (upload(stub, REPO_ID=blank), upload(stub, "--repo-id", blank)):
        failed(result)
        [line] = lines(result.err, "ERROR: ")
        assert "REPO_ID" in line
        assert result.out == ""
    assert stub.calls == []


def test_model_dir_wins_over_its_variable(stub: StubClient) -> None:
    lay(stub.work / "other", FILES)
    succeeded(upload(stub, "--model-dir", "other"))
    assert stub.calls == [send(stub.work / "other")]


def test_missing_model_dir_exits_1_before_the_login(stub: StubClient) -> None:
    result = upload(stub, "--token", TOKEN)
    failed(result)
    [line] = lines(result.err, "ERROR: ")
    assert "folder" in line
    assert result.out == ""
    assert stub.calls == []


def test_file_as_model_dir_exits_1(stub: StubClient, folder: Path) -> None:
    result = upload(stub, MODEL_DIR=str(folder / "config.json"))
    failed(result)
    assert len(lines(result.err, "ERROR: ")) == 1
    assert stub.calls == []


def test_blank_model_dir_is_an_error_that_names_its_variable(stub: StubClient) -> None:
    result = upload(stub, MODEL_DIR=" ")
    failed(result)
    [line] = lines(result.err, "ERROR: ")
    assert "MODEL_DIR" in line
    assert stub.calls == []


def test_model_dir_expands_the_home(stub: StubClient) -> None:
    lay(stub.home / "exported", FILES)
    result = upload(stub, "--model-dir", "~/exported")
    succeeded(result)
    assert stub.calls == [send(stub.home / "exported")]
    assert result.lines[0] == f"Uploading folder: {stub.home / 'exported'}  -->  {REPO}"


def test_home_of_a_stranger_exits_1(stub: StubClient) -> None:
    result = upload(stub, "--model-dir", "~nobody-of-this-name/exported")
    failed(result)
    assert len(lines(result.err, "ERROR: ")) == 1
    assert stub.calls == []


@with_each_sdk
def test_upload_token_logs_in_before_the_upload(stub: StubClient, folder: Path) -> None:
    succeeded(upload(stub, "--token", TOKEN))
    assert stub.calls == [login(), send(folder)]


@pytest.mark.parametrize("name", ["MODELSCOPE_API_TOKEN", "MODELSCOPE_TOKEN"])
def test_upload_token_is_read_from_either_variable(
    stub: StubClient, folder: Path, name: str
) -> None:
    succeeded(upload(stub, **{name: f" {TOKEN}\n"}))
    assert stub.calls == [login(), send(folder)]


def test_upload_token_wins_over_its_variables(stub: StubClient, folder: Path) -> None:
    env = {"MODELSCOPE_API_TOKEN": "ms-other", "MODELSCOPE_TOKEN": "ms-third"}
    succeeded(upload(stub, "--token", f" {TOKEN} ", **env))
    assert stub.calls == [login(), send(folder)]


def test_blank_upload_token_gives_way_to_its_variable(stub: StubClient, folder: Path) -> None:
    succeeded(upload(stub, "--token", "", MODELSCOPE_API_TOKEN=TOKEN))
    assert stub.calls == [login(), send(folder)]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("fails", ["", "login", "upload_folder"])
def test_upload_token_is_not_printed(stub: StubClient, fails: str) -> None:
    env = {"STUB_FAILS": fails, "STUB_CAUSE": f"{TOKEN} was refused"}
    result = upload(stub, "--token", TOKEN, **env)
    assert len(stub.calls) > 0
    assert TOKEN not in result.out + result.err


def test_commit_message_is_handed_on(stub: StubClient, folder: Path) -> None:
    succeeded(upload(stub, "--commit-message", "新权重, quantized"))
    assert stub.calls == [send(folder, message="新权重, quantized")]


# --- upload_model.py, 3: how it is made -----------------------------------------------------------


def test_upload_imports_the_documented_name(stub: StubClient) -> None:
    assert stub.evaluate(UPLOAD, "__import__('modelscope.hub.api').hub.api.HubApi is HubApi")


@pytest.mark.parametrize(
    ("first", "second", "token"),
    [
        ("", "", ""),
        (TOKEN, "ms-other", TOKEN),
        (f" {TOKEN}\n", "", TOKEN),
        ("", f"\t{TOKEN} ", TOKEN),
        (" \n", TOKEN, TOKEN),
        (" ", "\t", ""),
    ],
)
def test_env_token_prefers_the_api_token_and_strips(
    stub: StubClient, first: str, second: str, token: str
) -> None:
    env = {"MODELSCOPE_API_TOKEN": first, "MODELSCOPE_TOKEN": second}
    assert stub.evaluate(UPLOAD, "_env_token()", **env) == token


def test_env_token_without_its_variables_is_empty(stub: StubClient) -> None:
    assert stub.evaluate(UPLOAD, "_env_token()") == ""


def test_upload_parse_args_gives_the_documented_defaults(stub: StubClient) -> None:
    env = {"MODELSCOPE_API_TOKEN": TOKEN, "MODELSCOPE_TOKEN": TOKEN}  # not a default of --token
    assert stub.evaluate(UPLOAD, "vars(_parse_args())", **env) == {
        "repo_id": DEFAULT_REPO,
        "model_dir": DEFAULT_FOLDER,
        "token": "",
        "commit_message": "upload model folder",
    }


def test_upload_parse_args_takes_its_defaults_from_the_environment(stub: StubClient) -> None:
    args = stub.evaluate(UPLOAD, "vars(_parse_args())", REPO_ID=REPO, MODEL_DIR="some/folder")
    assert (args["repo_id"], args["model_dir"]) == (REPO, "some/folder")


def test_failed_upload_login_leaves_the_upload_untried(stub: StubClient, folder: Path) -> None:
    result = upload(stub, "--token", TOKEN, STUB_FAILS="login")
    failed(result)
    assert lines(result.err, "ERROR") == [f"ERROR: 上传失败：{CAUSE}"]
    assert "Upload finished." not in result.out
    assert stub.calls == [login()]


@with_each_sdk
def test_missing_token_warns_and_the_upload_is_tried(stub: StubClient, folder: Path) -> None:
    result = upload(stub)
    succeeded(result)
    assert len(lines(result.err, "WARNING: 未提供 token")) == 1
    assert stub.calls == [send(folder)]


@pytest.mark.usefixtures("folder")
def test_token_given_does_not_warn(stub: StubClient) -> None:
    result = upload(stub, "--token", TOKEN)
    succeeded(result)
    assert "未提供 token" not in result.err


def hints(result: Result) -> list[str]:
    """The lines that say how to give a token."""
    names = ("MODELSCOPE_API_TOKEN", "--token")
    return [line for line in result.err.splitlines() if all(name in line for name in names)]


@pytest.mark.usefixtures("folder")
def test_upload_that_failed_without_a_token_says_how_to_give_one(stub: StubClient) -> None:
    assert hints(upload(stub)) == []
    result = upload(stub, STUB_FAILS="upload_folder")
    failed(result)
    assert len(hints(result)) == 1


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("fails", ["login", "upload_folder"])
def test_upload_that_failed_with_a_token_does_not_ask_for_one(stub: StubClient, fails: str) -> None:
    for result in (
        upload(stub, "--token", TOKEN, STUB_FAILS=fails),
        upload(stub, MODELSCOPE_TOKEN=TOKEN, STUB_FAILS=fails),
    ):
        failed(result)
        assert hints(result) == []


# --- upload_model.py, 4: questions and answers ----------------------------------------------------


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("options", [(), ("--token", " ")])
def test_q1_warning_of_a_missing_token_may_be_ignored(
    stub: StubClient, options: tuple[str, ...]
) -> None:
    result = upload(stub, *options)
    succeeded(result)
    assert lines(result.err, "WARNING: 未提供 token") != []
    assert result.lines[-1] == "Upload finished."


@pytest.mark.parametrize("missing", [["config.json"], ["tokenizer_config.json"], [*FILES][:2]])
def test_q2_missing_key_files_are_named_with_what_it_means(
    stub: StubClient, folder: Path, missing: list[str]
) -> None:
    for name in missing:
        (folder / name).unlink()
    result = upload(stub)
    succeeded(result)
    all_lines = result.err.splitlines()
    start = all_lines.index(f"WARNING: 目录缺少关键文件：{missing}")
    full_model, adapter = all_lines[start + 1 : start + 3]
    assert re.search("完整模型目录.*导出目录不对", full_model)
    assert re.search("LoRA adapter.*可忽略", adapter)
    assert stub.calls == [send(folder)]


@pytest.mark.usefixtures("folder")
def test_q2_full_model_does_not_warn(stub: StubClient) -> None:
    result = upload(stub)
    succeeded(result)
    assert "缺少" not in result.err


def test_q2_key_files_in_a_subfolder_do_not_count(stub: StubClient) -> None:
    lay(stub.work / "folder/inner", FILES)
    result = upload(stub)
    succeeded(result)
    assert lines(result.err, f"WARNING: 目录缺少关键文件：{[*FILES][:2]}") != []


def test_q2_key_files_are_looked_for_before_the_login(stub: StubClient) -> None:
    (stub.work / "folder").mkdir()
    first, *_ = lines(upload(stub).err, "WARNING: ")
    assert first.startswith("WARNING: 目录缺少关键文件：")


@pytest.mark.usefixtures("folder")
def test_q3_failed_upload_prints_the_repr_of_its_cause(stub: StubClient) -> None:
    cause = "目录中有不可读的文件\nand a second line"
    result = upload(stub, STUB_FAILS="upload_folder", STUB_CAUSE=cause)
    failed(result)
    assert lines(result.err, "ERROR") == [f"ERROR: 上传失败：{RuntimeError(cause)!r}"]


def test_q4_repo_id_wins_over_its_variable(stub: StubClient, folder: Path) -> None:
    succeeded(upload(stub))
    succeeded(upload(stub, "--repo-id", "bob/repo"))
    assert stub.calls == [send(folder, REPO), send(folder, "bob/repo")]


def test_q5_each_upload_is_one_call_on_the_whole_folder(stub: StubClient, folder: Path) -> None:
    for _ in range(2):
        succeeded(upload(stub))
    assert stub.calls == 2 * [send(folder)]


# --- both: the command line -----------------------------------------------------------------------

OPTIONS = {
    DOWNLOAD: "--model_name --revision --cache_dir --token "
    "--draft_model_name --draft_revision --draft_optional",
    UPLOAD: "--repo-id --model-dir --token --commit-message",
}
both = pytest.mark.parametrize("script", [DOWNLOAD, UPLOAD])
USAGE_ERRORS = [
    (DOWNLOAD, "--unknown"),
    (DOWNLOAD, "--model_name"),
    (DOWNLOAD, "--model=alice/model"),
    (DOWNLOAD, "alice/model"),
    (UPLOAD, "--unknown"),
    (UPLOAD, "--repo-id"),
    (UPLOAD, "--repo=alice/repo"),
    (UPLOAD, "folder"),
]


@both
def test_help_lists_the_documented_options_alone(stub: StubClient, script: str) -> None:
    result = stub.run(script, "-h")
    succeeded(result)
    assert set(re.findall(r"--[\w-]+", result.out)) == {"--help", *OPTIONS[script].split()}


@both
def test_help_does_not_show_a_token(stub: StubClient, script: str) -> None:
    result = stub.run(script, "--help", MODELSCOPE_API_TOKEN=TOKEN, MODELSCOPE_TOKEN=TOKEN)
    succeeded(result)
    assert TOKEN not in result.out + result.err


@pytest.mark.parametrize(("script", "word"), USAGE_ERRORS)
def test_usage_error_exits_1(stub: StubClient, script: str, word: str) -> None:
    result = stub.run(script, word)
    failed(result, 1)
    assert "usage: " in result.err
    assert stub.calls == []


@both
def test_usage_error_does_not_show_a_token(stub: StubClient, script: str) -> None:
    result = stub.run(script, "--tokn", TOKEN)
    failed(result, 1)
    assert TOKEN not in result.out + result.err


# --- both: another SDK, or none -------------------------------------------------------------------


def unchecked(result: Result) -> list[str]:
    """The warnings that nothing beyond the document was checked, and what would check it."""
    return [
        line
        for line in lines(result.err, "WARNING")
        if "checked" in line and re.search(r"\bmodelscope\b.*\d\.\d", line)
    ]


@with_each_sdk
def test_unknown_sdk_warns_that_the_download_is_unchecked(stub: StubClient) -> None:
    result = download(stub)
    succeeded(result)
    assert len(unchecked(result)) == 1


@with_each_sdk
@pytest.mark.usefixtures("folder")
def test_unknown_sdk_warns_that_the_upload_is_unchecked(stub: StubClient) -> None:
    result = upload(stub)
    succeeded(result)
    assert len(unchecked(result)) == 1


@both
def test_help_needs_no_sdk(tmp_path: Path, script: str) -> None:
    result = StubClient(tmp_path, MISSING).run(script, "-h")
    succeeded(result)
    assert set(OPTIONS[script].split()) < set(re.findall(r"--[\w-]+", result.out))


@pytest.mark.parametrize(("script", "word"), USAGE_ERRORS)
def test_usage_error_needs_no_sdk(tmp_path: Path, script: str, word: str) -> None:
    result = StubClient(tmp_path, MISSING).run(script, word)
    failed(result, 1)
    assert "usage: " in result.err
    assert "pip install" not in result.err


def says_how_to_install(result: Result) -> bool:
    return "pip install modelscope==" in result.out + result.err


@pytest.mark.parametrize("token", ["", TOKEN])
def test_download_without_an_sdk_fails_and_says_how_to_install_it(
    tmp_path: Path, token: str
) -> None:
    stub = StubClient(tmp_path, MISSING)
    result = download(stub, "--draft_model_name", DRAFT, MODELSCOPE_API_TOKEN=token)
    failed(result, 1)
    [line] = lines(result.out, "Model download FAILED: ")
    assert "No module named 'modelscope'" in line
    assert says_how_to_install(result)
    assert USED not in result.out
    assert "[spec]" not in result.out


@pytest.mark.parametrize("token", ["", TOKEN])
def test_upload_without_an_sdk_fails_and_says_how_to_install_it(tmp_path: Path, token: str) -> None:
    stub = StubClient(tmp_path, MISSING)
    lay(stub.work / "folder", FILES)
    result = upload(stub, MODELSCOPE_API_TOKEN=token)
    failed(result, 1)
    [line] = lines(result.err, "ERROR: 上传失败：")
    assert "No module named 'modelscope'" in line
    assert says_how_to_install(result)
    assert "Upload finished." not in result.out


def test_upload_of_a_missing_folder_needs_no_sdk(tmp_path: Path) -> None:
    result = upload(StubClient(tmp_path, MISSING))
    failed(result, 1)
    [line] = lines(result.err, "ERROR: ")
    assert "folder" in line
    assert not says_how_to_install(result)


@both
@pytest.mark.parametrize("error", ["ImportError", "ValueError"])
def test_broken_sdk_is_a_failed_run_with_its_cause(tmp_path: Path, script: str, error: str) -> None:
    stub = StubClient(tmp_path)
    lay(stub.work / "folder", FILES)
    result = stub.run(script, STUB_BROKEN=error, MODEL_ID=MODEL, REPO_ID=REPO, MODEL_DIR="folder")
    failed(result, 1)
    where, start = {
        DOWNLOAD: (result.out, "Model download FAILED: "),
        UPLOAD: (result.err, "ERROR: 上传失败："),
    }[script]
    assert lines(where, start) == [f"{start}{error}('libhub.so is missing')"]
    assert says_how_to_install(result)


@both
def test_help_works_with_a_broken_sdk(tmp_path: Path, script: str) -> None:
    succeeded(StubClient(tmp_path).run(script, "-h", STUB_BROKEN="ImportError"))
