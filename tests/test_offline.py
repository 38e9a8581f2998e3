"""What was downloaded is loaded and generates, with no network at all: the README's own example."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.models import DRAFT, EMPTY, END, MAIN, SENTENCES, files
from tests.support.client import ROOT, Client, tree
from tests.support.download import snapshot
from tests.support.readme import README

# A Python that has torch may be another one: where torch is installed, the SDK imports it too, and
# every other test would wait for that.
PYTHON = os.environ.get("TORCH_PYTHON", sys.executable)
if sys.executable == PYTHON:
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"no {package}: tests/requirements-torch.txt", allow_module_level=True)

pytestmark = pytest.mark.timeout(400)

# SENTENCES[0] and the end, as the models have said them since they were made.
TOKENS = [272, 350, 348, 328, 319, 327, 349, 12, 346, 347, 336, 354, 355, 12, 334, 352, 353]
TOKENS += [268, 351, 14, 0]

# A process of its own, like the README's example: pytest needs no torch in its workers.
ASSISTED = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model, draft = map(AutoModelForCausalLM.from_pretrained, sys.argv[1:])
for words in ("The model goes", "模型"):
    inputs = tokenizer(words, return_tensors="pt")
    tokens = model.generate(**inputs, assistant_model=draft, max_new_tokens=60, do_sample=False)
    print(tokenizer.decode(tokens[0]))
"""


def example() -> str:
    """The README's example of loading; in a second language it is the same one."""
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    [code] = {block for block in blocks if "AutoModelForCausalLM" in block}
    return code


def without_network() -> list[str]:
    """What to put before a command to leave it no network, or nothing where that is forbidden."""
    words = ["unshare", "--map-root-user", "--net"]
    try:
        allowed = subprocess.run([*words, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    return words if allowed else []


def load(client: Client, code: str, *folders: Path) -> list[str]:
    """Run `code`, which loads `folders`, and return the lines that it prints."""
    nowhere = "http://127.0.0.1:1"  # should a request be tried where the network cannot be cut
    env = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "MODELSCOPE_ENDPOINT": nowhere}
    command = [*without_network(), PYTHON, "-c", code, *folders]
    result = client.run(*command, timeout=120, HTTPS_PROXY=nowhere, HTTP_PROXY=nowhere, **env)
    assert result.code == 0, result
    return result.lines


def generate(client: Client, folder: Path) -> list[int]:
    """Load `folder` with the README's own code, and return the tokens that it generates."""
    text, tokens = load(client, f"{example()}print(tokens[0].tolist())\n", folder)
    assert text.removesuffix(END) == SENTENCES[0]
    return json.loads(tokens)


def rehearse(client: Client, *commands: str) -> None:
    """Run `commands` in turn against the embedded hub, in a clone as far as they can tell."""
    shell = " && ".join(commands)
    hub = [sys.executable, "-m", "tests.hub", "--", "sh", "-c", shell]
    result = client.run(*hub, PYTHONPATH=str(ROOT), MODELSCOPE_ENDPOINT=None)
    assert result.code == 0, result


def script(name: str, options: str) -> str:
    return f"python {ROOT / name} {options}"


def test_first_command_leaves_a_folder_that_generates_the_known_tokens(client: Client) -> None:
    rehearse(client, script("download_model.py", "--cache_dir model"))
    assert generate(client, snapshot(client.work / "model", MAIN)) == TOKENS


def test_model_generates_the_same_tokens_after_upload_and_download(client: Client) -> None:
    rehearse(
        client,
        script("download_model.py", "--cache_dir model"),
        f"mv model/models/{MAIN.replace('/', '--')}/snapshots/master mine",
        script("upload_model.py", f"--repo-id {EMPTY} --model-dir mine"),
        script("download_model.py", f"--model_name {EMPTY} --cache_dir model"),
    )
    folder = snapshot(client.work / "model", EMPTY)
    assert tree(folder) == tree(client.work / "mine") == files()
    assert generate(client, folder) == TOKENS


def test_draft_assists_and_changes_no_word(client: Client) -> None:
    rehearse(client, script("download_model.py", f"--cache_dir model --draft_model_name {DRAFT}"))
    folders = [snapshot(client.work / "model", name) for name in (MAIN, DRAFT)]
    assert load(client, ASSISTED, *folders) == [f"{sentence}{END}" for sentence in SENTENCES]


def test_models_can_be_made_again(client: Client) -> None:
    make = [PYTHON, "-m", "tests.hub.models.make", "made"]
    result = client.run(*make, timeout=120, PYTHONPATH=str(ROOT))
    assert result.code == 0, result
    for name in ("qwen3", "draft"):
        assert shapes(tree(client.work / "made" / name)) == shapes(files(name))


def shapes(model: dict[str, bytes]) -> dict[str, bytes]:
    """The files, but of weights only the head: another processor may round them differently."""
    heads = {name: 8 + int.from_bytes(data[:8], "little") for name, data in model.items()}
    heads = {name: size for name, size in heads.items() if name.endswith(".safetensors")}
    return {name: data[: heads.get(name)] for name, data in model.items()}
