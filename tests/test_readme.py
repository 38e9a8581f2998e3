"""What a reader of the two pages copies works, and they say what the scripts say."""

import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.hub.models import DRAFT, MAIN, PRIVATE, SENTENCES, SERVED
from tests.support.cases import posix, snapshot
from tests.support.client import ROOT, SCRIPTS, Client, lay, source
from tests.support.readme import BOTH, PAGES, README, blocks, codes, section, table

SDK = Path(importlib.util.find_spec("modelscope_hub").origin).parent
OWN = "you/your-model"
REHEARSE = ("python", "-m", "tests.hub", "--")
# Installing is for `.ci/run`, and so are the tests; here all is installed, except vLLM.
STUBS = """pip() { :; }; python3() { mkdir -p .venv/bin && touch .venv/bin/activate; }
python() { case $2 in pip | pytest) ;; *) command python "$@" ;; esac; }
modelscope() { [ "$1" != login ] || set -- login --token ms-your-token; command modelscope "$@"; }
vllm() { test -f "$2/config.json" && echo "$@" >>served; }
"""
LOAD = """import sys, transformers
generate = transformers.pipeline("text-generation", sys.argv[1])
print(generate("The model goes", max_new_tokens=20, do_sample=False)[0]["generated_text"])
"""


@pytest.fixture
def clone(client: Client) -> Client:
    """A clone of this project on a machine that knows of no hub."""
    lay(client.work, {name: source(name).encode() for name in SCRIPTS})
    shutil.copytree(ROOT / "tests/hub", client.work / "tests/hub")
    del client.env["MODELSCOPE_ENDPOINT"]
    return client


@posix
def test_blocks_pasted_in_their_order_work_and_serve(clone: Client) -> None:
    pasted = [block for block in blocks(README) if "docker " not in block]
    pasted += [code for code in codes(section("Options")) if code.startswith("modelscope cache")]
    script = f"{STUBS}unset MODELSCOPE_API_TOKEN\n{''.join(pasted)}"  # a reader has none at first
    result = clone.run(*REHEARSE, "bash", "-ec", script)
    assert result.code == 0, result
    [shown] = [code for code in codes(section("Download")) if code.startswith("Resolved")]
    assert shown.replace("/home/you/clone", str(clone.work)) in result.lines
    assert "Upload finished." in result.lines
    downloaded, copied, _ = (clone.work / "served").read_text().splitlines()
    main, draft = (snapshot(clone.work / "model", f"Qwen/Qwen3-{size}") for size in ("8B", "0.6B"))
    assert downloaded.startswith(f"serve {main} ")
    assert f" --speculative-config.model {draft} " in downloaded
    assert sorted(copied.split()) == sorted(downloaded.split())


@posix
def test_copy_with_an_old_shard_is_not_served(clone: Client) -> None:
    download, serve = blocks(section("Serve and load"))
    assert clone.run(*REHEARSE, "bash", "-ec", STUBS + download).code == 0
    shard = str(snapshot(Path(), "Qwen/Qwen3-8B") / "old.safetensors")
    (clone.work / "model" / shard).touch()
    result = clone.run("bash", "-c", STUBS + serve)
    assert (result.code, result.lines) == (1, [shard])


def test_commands_that_serve_an_image_name_its_folders() -> None:
    main, draft = re.findall(r"\b(?:MODEL|DRAFT)_DIR=(\S+)", source("Dockerfile"))
    commands = re.findall(r"(?:docker run --gpus|python3 -m sglang)[^`\n]+", section("Serving"))
    assert [{main, draft} <= {*command.split()} for command in commands] == [True, True]


def test_rehearsal_needs_no_package_and_has_the_models_of_the_pages(clone: Client) -> None:
    named = re.findall(r"\b(?:Qwen|you)/[\w.-]*\w", "".join(blocks(BOTH)))
    assert set(named) - SERVED.keys() == {OWN}
    hub = ("python", "-S", "-m", "tests.hub")  # -S: no site-packages
    listed = clone.run(*hub, "-h").out
    assert all(f"\n  {model} " in listed for model in SERVED)
    fetch = ("python", "download_model.py", "--model_name", PRIVATE)
    assert clone.run(*hub, "--", *fetch).code == 0


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


def test_table_of_options_is_that_of_the_scripts(client: Client) -> None:
    rows = [row for row in table(README, "`download_model.py`") if row[0].startswith("`--")]
    helps = [client.run("python", ROOT / script, "-h", COLUMNS="200").out for script in SCRIPTS]
    options = [option for text in helps for option in text.split("\n  --")[1:]]
    assert len(options) == 7 + 4
    assert [codes(row[0]) for row in rows] == [[f"--{each.split()[0]}"] for each in options]
    for row, option in zip(rows, options, strict=True):
        for code in codes(row[1]):
            assert code.strip("$") in option or f'"{code}"' in source(*SCRIPTS), row


def test_table_of_build_arguments_is_that_of_the_dockerfile() -> None:
    named = {name for row in table(BOTH, "build argument") for name in codes(row[0])}
    lines = re.findall("^ARG (.+)", source("Dockerfile"), re.MULTILINE)
    assert named == {word.split("=")[0] for line in lines for word in line.split()}
    assert set(re.findall(r"--build-arg (\w+)", BOTH)) <= named


def test_variables_of_the_pages_are_those_of_the_sdk() -> None:
    known = "".join((SDK / name).read_text("utf-8") for name in ("constants.py", "config.py"))
    named = set(re.findall(r"\bMODELSCOPE_[A-Z_]+\b", BOTH)) - {"MODELSCOPE_TOKEN"}
    assert [name for name in named if f'"{name}"' not in known] == []


# Those of the system, of other programs and of the hub.
FOREIGN = ("No locks", "No space", "Disk quota", "WinError", "Permission", "CERTIFICATE_VERIFY")
FOREIGN += ("modelscope: command", "No matching", "error: unrec", "429", "E1021")
FOREIGN += ("User not", "no write", "AccessToken", "running", "Run 'conda", "CondaToS", "ensurepip")


def test_messages_in_the_table_of_errors_are_printed_by_something() -> None:
    printed = source(*SCRIPTS) + "".join(path.read_text("utf-8") for path in SDK.rglob("*.py"))
    for row in table(section("Errors 错误")):
        for message in codes(row[0]):
            # What stands for a value has no place in a program: … and what is in quotes.
            pieces = re.split(r"…|'.*'|\(|: (?=un)", message)
            unknown = [piece for piece in pieces if piece.strip() not in printed]
            assert message.startswith(FOREIGN) or not unknown, f"nothing prints {message!r}"


def test_figures_are_those_of_the_benchmark() -> None:
    measured = {row[0]: row[2] for row in table(source("tests/BENCH.md"), "scenario")}
    [line] = [line for line in README.splitlines() if line.startswith("- **Speed**")]
    shown = dict(re.findall(r"(\d+ x \d+ MB, .*?), take ([\d.]+)", line))
    assert shown == {name: measured[name] for name in shown} != {}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[page])
    assert len(links) > 3
    for link in links:
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        titles = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
        anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
        assert not anchor or anchor in anchors, link
