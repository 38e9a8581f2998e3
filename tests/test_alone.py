"""A script is one file: copied by itself to an empty folder, it runs."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.hub import Store
from tests.support.client import ROOT, Client, tree
from tests.support.download import snapshot

FILES = {"config.json": b"{}", "tokenizer_config.json": b"{}", "model.safetensors": b"weights"}


@pytest.fixture(autouse=True)
def models(store: Store, client: Client) -> None:
    store.add("alice/model", FILES)
    store.add("alice/copy")
    client.env["MODELSCOPE_API_TOKEN"] = store.add_user("alice")


def copy(script: str, client: Client) -> list[object]:
    """Copy a script to the folder that the client works in, where nothing else is."""
    assert list(client.work.iterdir()) == []
    return [sys.executable, shutil.copy(ROOT / script, client.work)]


def test_download_model_runs_alone(client: Client) -> None:
    script = copy("download_model.py", client)
    result = client.run(*script, MODEL_ID="alice/model")
    assert result.code == 0, result
    assert tree(snapshot(client.work, "alice/model")) == FILES


def test_upload_model_runs_alone(client: Client, store: Store, tmp_path: Path) -> None:
    script = copy("upload_model.py", client)
    for name, content in FILES.items():
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    result = client.run(*script, REPO_ID="alice/copy", MODEL_DIR=str(tmp_path / "folder"))
    assert result.code == 0, result
    assert tree(store.root / "alice/copy") == FILES
    assert tree(client.work).keys() == {"upload_model.py"}
