"""A model that went up and came down generates what it did before, with no network at all."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub import Store
from tests.support.client import Client, tree
from tests.support.download import snapshot
from tests.support.readme import blocks

# A Python that has torch may be another one: where torch is installed, the SDK imports it too, and
# every other test would wait for that.
PYTHON = os.environ.get("TORCH_PYTHON", sys.executable)
if sys.executable == PYTHON:
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"no {package}: tests/requirements-torch.txt", allow_module_level=True)

REPO = "alice/tiny"

# A process of its own, like the loading: pytest needs no torch in its workers.
MAKE = """
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

words = ["<unk>", "<eos>", "The", "model", "goes", *map("word{}".format, range(123))]
tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
tokenizer.pre_tokenizer = Whitespace()
torch.manual_seed(0)
config = Qwen3Config(
    vocab_size=len(words), hidden_size=64, intermediate_size=128, head_dim=16, eos_token_id=1,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.5,
)
Qwen3ForCausalLM(config).save_pretrained("mine", max_shard_size="200KB")
wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")
wrapped.save_pretrained("mine")
"""


def without_network() -> list[str]:
    """What to put before a command to leave it no network, or nothing where that is forbidden."""
    words = ["unshare", "--map-root-user", "--net"]
    try:
        allowed = subprocess.run([*words, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    return words if allowed else []


def generate(client: Client, folder: Path) -> list[int]:
    """Load `folder` with the README's own code, and return the tokens that it generates."""
    [code] = [block for block in blocks("Beside the scripts", "python") if "AutoModel" in block]
    code += "print(tokens[0].tolist())\n"
    nowhere = "http://127.0.0.1:1"  # should a request be tried where the network cannot be cut
    env = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "MODELSCOPE_ENDPOINT": nowhere}
    command = [*without_network(), PYTHON, "-c", code, folder]
    result = client.run(*command, timeout=120, HTTPS_PROXY=nowhere, HTTP_PROXY=nowhere, **env)
    assert result.code == 0, result
    text, tokens = result.lines
    assert text.startswith("The model goes word")
    return json.loads(tokens)


@pytest.mark.timeout(400)
def test_model_generates_the_same_tokens_after_upload_and_download(
    client: Client, store: Store
) -> None:
    made = client.run(PYTHON, "-c", MAKE, timeout=120)
    assert made.code == 0, made
    mine = client.work / "mine"
    assert len(list(mine.glob("*.safetensors"))) > 1
    before = generate(client, mine)
    assert len(before) == 23
    assert len(set(before)) > 10  # a model that says the same word again would prove little

    store.add(REPO)
    token = {"MODELSCOPE_API_TOKEN": store.add_user("alice")}
    upload = ["upload_model.py", "--repo-id", REPO, "--model-dir", mine]
    assert client.run(*upload, **token).code == 0
    fetched = client.run("download_model.py", "--model_name", REPO, "--cache_dir", "model")
    assert fetched.code == 0
    folder = Path(fetched.lines[-1].removeprefix("Resolved model_dir: "))
    assert folder == snapshot(client.work / "model", REPO)
    assert tree(folder) == tree(mine)
    assert generate(client, folder) == before
