"""A small model on the hub, and `download_model.py` run on it."""

from __future__ import annotations

import random
from pathlib import Path

from tests.support.client import Client, Result

MODEL = "alice/model"
DRAFT = "alice/draft"
WEIGHTS = "model.safetensors"
BIG = random.Random(0).randbytes(3_000_000)
FILES = {"config.json": b"{}", WEIGHTS: BIG[:300_000], "nested/deep/tokenizer.json": b"[1]"}
SUCCESS = ["Model download successful!", "Resolved model_dir: {}"]
USED = "Using ModelScope token for authenticated download."


def snapshot(folder: Path, model: str = MODEL, revision: str = "master") -> Path:
    return folder / "models" / model.replace("/", "--") / "snapshots" / revision


def download(client: Client, *options: object, **env: str | None) -> Result:
    env.setdefault("MODEL_ID", MODEL)
    return client.run("download_model.py", *options, **env)
