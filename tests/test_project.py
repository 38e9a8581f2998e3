"""What a reader of the README copies works, and what is said in several places is said alike."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.hub import Hub, Store
from tests.hub.models import DRAFT, MAIN, PRIVATE, SENTENCES, SERVED, files
from tests.support.cases import FILES, MODEL, download, snapshot, upload, uploaded
from tests.support.client import ROOT, Client, Result, lay, tree
from tests.support.jobs import EXAMPLES, FINGERPRINT, shell
from tests.support.readme import README, blocks, codes, section, table

SCRIPTS = ("download_model.py", "upload_model.py")
SDK = Path(importlib.util.find_spec("modelscope_hub").origin).parent
INSTALL = "pip install modelscope==1.40.2 modelscope-hub==0.5.1"
# Installing is for `.ci/run`, and so are the tests; here all is installed, except vLLM.
STUBS = """pip() { :; }; python3() { mkdir -p .venv/bin && touch .venv/bin/activate; }
python() { case $2 in pip | pytest) ;; *) command python "$@" ;; esac; }
modelscope() { [ "$1" != login ] || set -- login --token ms-your-token; command modelscope "$@"; }
vllm() { test "$1" = serve -a -f "$2/config.json" && echo served >&2; }
"""
LOAD = """import sys, transformers
generate = transformers.pipeline("text-generation", sys.argv[1])
print(generate("The model goes", max_new_tokens=20, do_sample=False)[0]["generated_text"])
"""
REHEARSE = ("python", "-m", "tests.hub", "--")
OWN, SMALL = "you/your-model", "Qwen/Qwen3-0.6B"


def source(*names: str) -> str:
    return "\n".join((ROOT / name).read_text("utf-8") for name in names)


@pytest.fixture
def clone(client: Client) -> Client:
    """A clone of this project on a machine that knows of no hub."""
    lay(client.work, {name: source(name).encode() for name in SCRIPTS})
    shutil.copytree(ROOT / "tests/hub", client.work / "tests/hub")
    del client.env["MODELSCOPE_ENDPOINT"]
    return client


@pytest.mark.skipif(sys.platform == "win32", reason="lines for bash")
def test_blocks_pasted_in_their_order_print_what_is_shown_and_serve(clone: Client) -> None:
    pattern = r"^```sh\n(.*?)^```\n(?:\n```\n(.*?)^```$)?"
    found = re.findall(pattern, README, re.MULTILINE | re.DOTALL)
    pairs = [(block, shown) for block, shown in found if "docker " not in block]
    script = f"{STUBS}unset MODELSCOPE_API_TOKEN\n"  # a reader has none at first
    script += "".join(f"{block}echo ===\n" for block, _ in pairs)
    result = clone.run(*REHEARSE, "bash", "-ec", script)
    printed = result.out.replace(str(clone.work), "/home/you/clone").split("===\n")
    assert (result.code, len(printed)) == (0, len(pairs) + 1), result
    for (block, shown), out in zip(pairs, printed, strict=False):
        assert not shown or out == shown, block
    assert result.err.count("served\n") == 2


@pytest.mark.skipif(sys.platform == "win32", reason="lines for bash")
def test_command_that_runs_the_tests_finds_them(clone: Client) -> None:
    [command] = re.findall(r"^python3 -m venv .* python -m pytest$", README, re.MULTILINE)
    shutil.copytree(ROOT / "tests", clone.work / "tests", dirs_exist_ok=True)
    lay(clone.work, {name: source(name).encode() for name in (".pytest.ini", "README.md")})
    stubs = STUBS.replace("pip | pytest", "pip")
    run = clone.run("bash", "-ec", stubs + command, PYTEST_ADDOPTS="--co -n0 tests/test_hub.py")
    assert (run.code, " collected in " in run.out) == (0, True), run


@pytest.mark.skipif(sys.platform == "win32", reason="lines for bash")
def test_block_for_a_script_gives_it_both_paths_or_ends_it(clone: Client) -> None:
    [block] = [block for block in blocks("Serve and load", "sh") if block.startswith("out=")]
    given = f"vllm() {{ printf '%s\\n' \"$@\"; }}\n{block}"
    _, main, _, settings = clone.run(*REHEARSE, "bash", "-c", given).lines
    assert main == str(snapshot(clone.work / "model", "Qwen/Qwen3-8B"))
    assert json.loads(settings)["model"] == str(snapshot(clone.work / "model", SMALL))
    failed = clone.run("bash", "-c", given, MODELSCOPE_ENDPOINT="http://127.0.0.1:9")
    assert (failed.code, len(failed.lines)) == (1, 1), failed
    assert failed.out.startswith("Model download FAILED: ")


@pytest.mark.skipif(sys.platform == "win32", reason="lines for bash")
def test_command_that_serves_names_the_folders_of_the_image_and_passes_valid_json(
    client: Client,
) -> None:
    [command] = [block for block in blocks("Serve and load", "sh") if "docker run" in block]
    given = client.run("bash", "-ec", f"docker() {{ printf '%s\\n' \"$@\"; }}\n{command}").lines
    main, *options = given[given.index("my-model") + 1 :]
    draft = json.loads(options[options.index("--speculative-config") + 1])["model"]
    assert f"ENV MODEL_DIR={main} DRAFT_DIR={draft} " in source("Dockerfile")
    sglang = re.search("`(python3 -m sglang.*?)`", section("Serve and load"))[1]
    assert {main, draft} <= {*sglang.split()}


def test_options_and_exit_codes_are_those_of_the_scripts(client: Client) -> None:
    lines = README.splitlines()
    shown = [line.split(" |")[:2] for line in lines if line.startswith("| `--")]
    helps = "".join(client.run(script, "-h", COLUMNS="200").out for script in SCRIPTS)
    texts = re.findall(r"^  (--[\w-]+)(?: [A-Z_]+)?\s+(.+)", helps, re.MULTILINE)
    assert [codes(option)[0] for option, _ in shown] == [option for option, _ in texts]
    for (_, default), (_, text) in zip(shown, texts, strict=True):
        assert re.findall(r"\$(\w+)", default) == re.findall(r"[A-Z]+_[A-Z_]+", text)
        literals = [code for code in codes(default) if code[0] not in "$~"]
        assert [text for text in literals if f'"{text}"' not in source(*SCRIPTS)] == []
    exits = [line for line in lines if re.match(r"- \*\*(Exit codes|退出码)\*\*", line)]
    assert [re.findall(r"`(\d+)`", line) for line in exits] == [["0", "1", "2", "130", "143"]] * 2


def test_table_of_build_arguments_is_that_of_the_dockerfile() -> None:
    named = {n for row in table(section("Images"), "build argument") for n in codes(row[0])}
    assert named == set(re.findall(r"^ARG (\w+)", source("Dockerfile"), re.MULTILINE))
    assert set(re.findall(r"--build-arg (\w+)", README)) <= named


def test_variables_of_the_page_are_those_of_the_sdk() -> None:
    known = "".join((SDK / name).read_text("utf-8") for name in ("constants.py", "config.py"))
    named = set(re.findall(r"\bMODELSCOPE_[A-Z_]+\b", README)) - {"MODELSCOPE_TOKEN"}
    assert [name for name in named if f'"{name}"' not in known] == []


def test_messages_in_the_tables_are_those_that_are_printed() -> None:
    printed = source(*SCRIPTS) + "".join(path.read_text("utf-8") for path in SDK.rglob("*.py"))
    shown = [code for row in table(section("Errors 错误")) for code in codes(row[0])]
    # Those of the system and of the hub aside, and what stands in quotes or brackets.
    foreign = r"No locks|WinError|Permission|User not|no write|error: unrec|429|--"
    shown = [text for text in shown if not re.match(foreign, text)]
    pieces = re.split(r"…|'\w+'|\[.*\]|[()']|\n", "\n".join(shown))
    assert [piece for piece in pieces if piece.strip(" ,") not in printed] == []


def test_figures_are_those_of_the_benchmark() -> None:
    measured = {row[0]: row for row in table(source("tests/BENCH.md"), "scenario")}
    [line] = [line for line in README.splitlines() if line.startswith("- **Speed**")]
    shown = re.findall(r"(\d+ x \d+ MB, .*?), take ([\d.]+)", line)
    assert [measured[name][2] for name, _ in shown] == [figure for _, figure in shown] != []


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", README)
    assert len(links) > 5
    titles = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    anchors = {"#" + re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    for link in links:
        assert link in anchors or (ROOT / link).is_file(), link


def test_versions_are_the_same_everywhere() -> None:
    pins = source("requirements.txt").split()
    assert f"pip install {' '.join(pins)}" == INSTALL
    assert set(pins) <= set(source("tests/requirements.txt").splitlines())
    assert source(*SCRIPTS).count(f"# dependencies = {json.dumps(pins)}\n") == 2
    named = re.findall(r"pip install modelscope[^`\"\n]*", source(*SCRIPTS, "README.md"))
    assert named == [INSTALL] * 4


def test_each_script_alone_names_what_to_install_and_runs_once_it_is(
    client: Client, store: Store, token: str, model: str
) -> None:
    store.add(copy := "alice/copy")
    env = {"MODEL_ID": model, "REPO_ID": copy, "MODEL_DIR": str(snapshot(client.work))}
    for script in SCRIPTS:
        alone = lay(client.home / script[:-3], {script: source(script).encode()}) / script
        result = client.run("python", "-S", alone, **env)  # -S: no site-packages
        assert (result.code, result.out) == (1, "")
        assert result.err.endswith(f"\nTo install the SDK: {INSTALL}\n")
        assert client.run("python", alone, **env).code == 0
    assert uploaded(store, copy) == FILES


def test_top_level_holds_both_scripts_and_what_belongs_to_them() -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {name.split("/")[0] for name in listed.splitlines() if not name.startswith(".")}
    assert top == {*SCRIPTS, "tests", "requirements.txt", "Dockerfile", "README.md"}


BASE, TOKEN = "Qwen/Qwen3-1.7B", "ms-secret-token"
RunJob = Callable[[], Result]


@pytest.fixture(params=EXAMPLES)
def run_job(request: pytest.FixtureRequest, client: Client, store: Store) -> RunJob:
    """Runs the upload job as GitHub or GitLab would, on a runner that has our scripts."""
    if sys.platform == "win32":
        pytest.skip("the runner is Linux")
    for name, model in ((BASE, FILES), (SMALL, FILES), (OWN, {})):
        store.add(name, model)
    store.users[TOKEN] = "you"
    lay(client.work, {name: source(name).encode() for name in SCRIPTS})
    lay(client.work, {"variables": b"", "awq-out/config.json": b"{}"})
    script, env = shell(request.param, "upload", TOKEN)
    script = f'pip() {{ :; }}\n{script}\necho "draft: $SPEC_DRAFT_MODEL_ID."'

    def run() -> Result:
        result = client.run("bash", "-ec", script, **env | {"GITHUB_ENV": "./variables"})
        assert TOKEN not in result.out + result.err
        return result

    return run


@pytest.mark.parametrize("path", [*EXAMPLES.values(), ".github/workflows/ci.yml"])
def test_job_is_valid(client: Client, path: str) -> None:
    schema = "vendor.gitlab-ci" if "gitlab" in path else "vendor.github-workflows"
    assert client.run("check-jsonschema", "--builtin-schema", schema, ROOT / path).code == 0


def test_example_builds_at_night_and_uploads_on_a_tag() -> None:
    github, gitlab = (yaml.safe_load(source(path)) for path in EXAMPLES.values())
    assert github[True]["schedule"]  # YAML 1.1 reads `on` as true
    assert [job["if"].split("'")[1] for job in github["jobs"].values()] == ["branch", "tag"]
    assert {"if": '$CI_PIPELINE_SOURCE == "schedule"'} in gitlab["build-image"]["rules"]
    assert gitlab["upload-model"]["rules"] == [{"if": "$CI_COMMIT_TAG"}]
    steps = [step for job in github["jobs"].values() for step in job["steps"]]
    assert not any("${{" in step.get("run", "") for step in steps)  # nothing is pasted in


def test_builds_of_the_examples_and_of_the_readme_are_given_what_the_fingerprint_is_of() -> None:
    names = set(re.findall(r'"((?:MODEL|SPEC_DRAFT)_\w+)"', source(FINGERPRINT)))
    [nightly] = [block for block in blocks("In CI", "sh") if FINGERPRINT in block]
    for text in (nightly, *map(source, EXAMPLES.values())):
        given = set(re.findall(r"--build-arg (\w+)", text))
        assert names | {"MODELSCOPE_ENDPOINT", "REFRESH"} <= given
        assert "--secret id=modelscope_token,env=MODELSCOPE_API_TOKEN" in text
        assert "SPEC_DRAFT_OPTIONAL" not in text


def test_fingerprint_changes_with_each_model_and_each_revision(
    client: Client, store: Store
) -> None:
    token = store.add_user("alice")
    env = {"MODEL_ID": MODEL, "SPEC_DRAFT_MODEL_ID": "alice/draft", "MODELSCOPE_API_TOKEN": token}
    revisions = ("MODEL_REVISION", "SPEC_DRAFT_MODEL_REVISION")
    for name in (MODEL, "alice/draft"):
        store.add(name, FILES, private=True)
        store.add(name, FILES, revision="v1.0")

    def fingerprint(**more: str) -> str:
        result = client.run("python", ROOT / FINGERPRINT, **env | more)
        assert (result.code, token in result.err) == (0, False), result
        return result.out

    states = [fingerprint(), *(fingerprint(**{name: "v1.0"}) for name in revisions)]
    assert fingerprint(MODEL_REVISION="", MODELSCOPE_API_TOKEN=f"{token}\n") == states[0]
    assert client.run("modelscope", "login", "--token", token).code == 0  # and from here on
    for name in (MODEL, "alice/draft"):
        store.add(name, FILES | {"config.json": b"moved"})
        states.append(fingerprint(MODELSCOPE_API_TOKEN=" "))
    assert len({*states}) == 5
    assert all(re.fullmatch(r"[0-9a-f]{64}\n", state) for state in states)


@pytest.mark.parametrize("missing", [MODEL, "alice/draft"])
def test_fingerprint_without_a_list_fails_with_the_cause(
    client: Client, store: Store, missing: str
) -> None:
    for name in {MODEL, "alice/draft"} - {missing}:
        store.add(name, FILES)
    env = {"MODEL_ID": MODEL, "SPEC_DRAFT_MODEL_ID": "alice/draft"}
    result = client.run("python", ROOT / FINGERPRINT, **env)
    assert (result.code, result.out) == (1, "")
    assert f"{missing}: the file list could not be read: NotExistError(" in result.err
    store.add(missing, {})
    result = client.run("python", ROOT / FINGERPRINT, **env)
    assert (result.code, result.out) == (1, "")
    assert result.err.endswith(f"{missing}: the hub lists no files (revision=master)\n")


def test_fingerprint_shows_no_token_that_cannot_be_one(client: Client, model: str) -> None:
    env = {"MODEL_ID": model, "MODELSCOPE_API_TOKEN": "ms-two\nlines"}
    result = client.run("python", ROOT / FINGERPRINT, **env)
    assert (result.code, result.out, "lines" in result.err) == (1, "", False)


def test_upload_job_goes_on_without_a_draft_but_not_without_a_model(
    run_job: RunJob, store: Store
) -> None:
    result = run_job()
    assert (result.code, result.lines[-1]) == (0, f"draft: {SMALL}."), result
    assert uploaded(store, OWN) == {"config.json": b"{}"}
    del store.models[SMALL]
    result = run_job()
    assert (result.code, result.lines[-1]) == (0, "draft: ."), result
    assert "The draft model failed; going on without it." in result.out
    del store.models[BASE]
    result = run_job()
    assert (result.code, "Uploading" in result.out) == (1, False)


def test_rehearsal_needs_no_package_and_lists_and_serves_the_models_of_the_page(
    clone: Client,
) -> None:
    shown = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    named = re.findall(r"\b(?:Qwen|you)/[\w.-]*\w", "".join(shown))
    assert set(named) - SERVED.keys() == {OWN}
    hub = ["python", "-S", "-m", "tests.hub"]  # -S: no site-packages
    listed = clone.run(*hub, "-h").out
    assert all(f"\n  {model} " in listed for model in SERVED)
    fetch = [*hub, "--", "python", "download_model.py", "--model_name", PRIVATE]
    assert (clone.run(*fetch).code, clone.run(*fetch, "--token", "ms-wrong").code) == (0, 1)
    assert tree(snapshot(clone.work, PRIVATE)) == files()


def run_row(client: Client, words: str, **env: str) -> Result:
    """Run a command of the README's list, found by the words that its line begins with."""
    [line] = [x for x in section("Options").splitlines() if x.startswith(f"- {words}")]
    command = codes(line)[0]
    return client.run(*shlex.split(command.replace("$MODELSCOPE_API_TOKEN", env.get("TOKEN", ""))))


def test_cli_accepts_and_reuses_what_our_script_downloaded(
    client: Client, hub: Hub, store: Store, model: str
) -> None:
    for name in (store.add(SMALL, FILES).id, model):
        assert download(client, "--cache_dir", "model", MODEL_ID=name).code == 0
    sent = hub.sent()
    assert run_row(client, "Check a folder").code == 0
    assert client.run("modelscope", "download", SMALL, "--cache_dir", "model").code == 0
    assert hub.sent() == sent
    folder = snapshot(client.work / "model", SMALL)
    for harm in ({"config.json": b"[]"}, FILES | {"extra": b""}):
        lay(folder, harm)
        assert run_row(client, "Check a folder").code == 1
    clear = ("modelscope", "cache", "clear", "--cache-dir", "model", "--repo-type", "model")
    assert client.run(*clear, "--repo-id", SMALL, "--yes").code == 0
    assert (folder.exists(), tree(snapshot(client.work / "model"))) == (False, FILES)


def test_our_script_reuses_what_the_cli_downloaded(client: Client, hub: Hub, store: Store) -> None:
    store.add(SMALL, FILES)
    assert client.run("modelscope", "download", SMALL, "--cache_dir", "model").code == 0
    sent = hub.sent()
    assert download(client, "--cache_dir", "model", MODEL_ID=SMALL).code == 0
    assert hub.sent() == sent


def test_login_of_the_cli_serves_both_scripts_and_that_of_a_script_the_cli(
    client: Client, store: Store, folder: Path
) -> None:
    store.add(MODEL, FILES, private=True)
    token, fetch = store.add_user("alice"), ("modelscope", "download", MODEL)
    assert download(client).code == 1
    assert run_row(client, "Log in once", TOKEN=token).code == 0
    lay(folder, {"added": b"1"})
    assert (download(client).code, upload(client).code) == (0, 0)
    assert uploaded(store) == tree(folder)
    shutil.rmtree(client.home / ".modelscope")
    assert client.run(*fetch).code != 0
    assert download(client, MODELSCOPE_API_TOKEN=token).code == 0
    assert client.run(*fetch).code == 0


def test_adapter_goes_up_with_a_warning(client: Client, store: Store, token: str) -> None:
    adapter = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"lora"}
    store.add(MODEL)
    lay(client.work / "folder", adapter)
    result = upload(client)
    assert (result.code, "WARNING: 目录缺少关键文件" in result.err) == (0, True)
    assert uploaded(store) == adapter


@pytest.mark.gate
@pytest.mark.timeout(600)
def test_what_comes_down_is_loaded_without_a_network_also_after_going_up(clone: Client) -> None:
    fetch = "python download_model.py --cache_dir"
    steps = f"""{fetch} model --draft_model_name {DRAFT}
        modelscope create {OWN} --repo-type model
        python upload_model.py --repo-id {OWN} --model-dir {snapshot(Path("model"), MAIN)}
        {fetch} check --model_name {OWN}"""
    assert clone.run(*REHEARSE, "sh", "-ec", steps).code == 0
    # Where torch is installed, every other test would wait for it: so it may be another Python.
    python = os.environ.get("TORCH_PYTHON", sys.executable)
    load = ("unshare", "--map-root-user", "--net", python, "-c", LOAD)
    for cache, name in (("model", MAIN), ("model", DRAFT), ("check", OWN)):
        result = clone.run(*load, snapshot(Path(cache), name), timeout=200, HF_HUB_OFFLINE="1")
        assert result.lines[-1:] == [SENTENCES[0]], result
