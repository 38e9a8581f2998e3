"""The models that the hub comes with: the scripts' defaults and a draft model, small but real."""

from __future__ import annotations

import json
import tempfile
import zlib
from pathlib import Path

import numpy
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from tests.hub.store import Store

MAIN = "YukinoStuki/Qwen3-4B-Plus-Merged"
UPLOAD = "YukinoStuki/Qwen3-4B-Plus-LLM-AWQ"
DRAFT = "YukinoStuki/Qwen3-4B-Plus-Draft"

PARTS = ("gate", "up", "down")
WORDS = ["<unk>", "<eos>", "the", "model", "comes", "down", "goes", "up", ".", "模型", "下载"]


def add_defaults(store: Store) -> None:
    """Put the default models into `store`, unless it has them already."""
    for model_id, layers in ((MAIN, 4), (UPLOAD, 2), (DRAFT, 1)):
        if model_id not in store.models:
            with tempfile.TemporaryDirectory(dir=store.root / ".blobs") as folder:
                write(Path(folder), model_id, layers=layers)
                files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
            store.add(model_id)
            store.add(model_id, files)


def write(folder: Path, name: str, *, layers: int = 2, hidden: int = 64) -> None:
    """Write a model of `layers` random layers to `folder`, one shard a layer, and its tokenizer."""
    source = numpy.random.default_rng(zlib.crc32(name.encode()))
    where: dict[str, str] = {}
    for layer in range(layers):
        shapes = {f"model.layers.{layer}.mlp.{p}_proj.weight": (hidden, 4 * hidden) for p in PARTS}
        if layer == 0:
            shapes["model.embed_tokens.weight"] = (len(WORDS), hidden)
        shard = f"model-{layer + 1:05}-of-{layers:05}.safetensors"
        tensors = {name: source.standard_normal(shape, "float32") for name, shape in shapes.items()}
        save_file(tensors, folder / shard, {"format": "pt"})
        where |= dict.fromkeys(tensors, shard)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "vocab_size": len(WORDS),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (folder / "README.md").write_text(f"# {name}\n\nRandom weights, for rehearsals.\n")
