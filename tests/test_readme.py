"""Every command block of the README is run as it stands; its output is what the README shows."""

from __future__ import annotations

import re
import shutil

import pytest

from tests.hub import Store
from tests.support.client import ROOT, Client
from tests.support.readme import README

# A block, and the block of output right below it, if there is one.
BLOCKS = re.findall(r"^```sh\n(.*?)^```\n(?:\n```\n(.*?)^```$)?", README, re.MULTILINE | re.DOTALL)
# These need a builder, or are the tests themselves: `test_image` and `.ci/run` have them.
ELSEWHERE = ("docker ", "-m pytest")
HERE = [block for block in BLOCKS if not any(word in block[0] for word in ELSEWHERE)]


@pytest.fixture
def clone(client: Client, store: Store) -> Client:
    """A clone with a folder to upload, and a hub with the models that the README names."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("download_model.py", "upload_model.py", "requirements.txt"):
        shutil.copy(ROOT / name, client.work)
    shutil.copytree(ROOT / "tests", client.work / "tests", ignore=ignore)
    # Installing is for `.ci/run`, which may reach a package index; here all is installed.
    stubs = client.work / "stubs"
    stubs.mkdir()
    (stubs / "pip").write_text("#!/bin/sh\n")
    (stubs / "pip").chmod(0o755)
    client.env["PATH"] = f"{stubs}:{client.env['PATH']}"
    (client.work / "awq-out").mkdir()
    (client.work / "awq-out/config.json").write_bytes(b"{}")
    for model in ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B"):
        store.add(model, {"config.json": b"{}", "model.safetensors": model.encode()})
    store.users["ms-your-token"] = "you"
    return client


@pytest.mark.parametrize(
    "commands, shown", HERE, ids=lambda text: text.splitlines()[-1] if text else ""
)
def test_block_runs_and_prints_what_is_shown(clone: Client, commands: str, shown: str) -> None:
    # The pipeline's snippet has its model in the environment, as a job has.
    env = {} if "tests.hub" in commands else {"MODEL_ID": "Qwen/Qwen3-0.6B"}
    commands = re.sub(r"^python3 -m venv.*&& ", "", commands, flags=re.MULTILINE)
    result = clone.run("bash", "-ec", commands, **env)
    assert result.code == 0, result
    expected = shown.replace("/home/you/clone", str(clone.work)).splitlines()
    assert not expected or result.lines == expected


def test_blocks_that_need_a_builder_name_what_the_dockerfile_has() -> None:
    """The image tests build with these arguments and stages; here no other is named."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    blocks = "\n".join(block for block, _ in BLOCKS if "docker " in block)
    assert blocks
    for argument in re.findall(r"--build-arg (\w+)", blocks):
        assert f"ARG {argument}" in dockerfile
    for stage in re.findall(r"--target (\w+)", blocks):
        assert f" AS {stage}\n" in dockerfile
    for secret in re.findall(r"--secret \"?id=(\w+)", blocks):
        assert f"id={secret}" in dockerfile


def test_languages_show_the_same_options_and_exit_codes() -> None:
    english, chinese = README.split("\n# 中文\n")
    row = r"^\| (`--(?!help)[\w-]+`) \|"
    options = set(re.findall(row, english, re.MULTILINE))
    assert options == set(re.findall(row, chinese, re.MULTILINE))
    assert len(options) == 10  # --token is in both scripts
    for code in ("0", "1", "2", "130", "143"):
        assert re.search(rf"^\| (\d+, )?{code}(, \d+)? \|", english, re.MULTILINE)
        assert re.search(rf"(?<!\d){code}[ 、]", chinese)


def test_links_within_the_readme_lead_somewhere() -> None:
    titles = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    links = re.findall(r"\]\(#([^)]+)\)", README)
    assert links
    assert set(links) <= anchors
