"""A rehearsal needs no account, no internet, and no package but the SDK."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from tests.hub import Store
from tests.hub.models import DRAFT, EMPTY, MAIN, PRIVATE, SERVED, add_defaults, files
from tests.support.client import ROOT, Client, Result, tree
from tests.support.docker import install_docker
from tests.support.download import USED, snapshot
from tests.support.readme import README


@pytest.fixture
def clone(client: Client) -> Client:
    """A fresh clone, as the machine's own folder."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        path = client.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, path)
    del client.env["MODELSCOPE_ENDPOINT"]
    return client


def rehearse(clone: Client, command: str, *options: str) -> Result:
    result = clone.run("python", "-m", "tests.hub", *options, "--", "sh", "-ec", command)
    assert result.code == 0, result
    return result


def fetch(model: str) -> str:
    return f"python download_model.py --model_name {model} --cache_dir model"


# --- the models ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen3", "draft"])
def test_weights_are_whole_and_the_index_names_every_tensor(name: str) -> None:
    model = files(name)
    shards = {shard: data for shard, data in model.items() if shard.endswith(".safetensors")}
    where = {}
    for shard, data in shards.items():
        start = 8 + int.from_bytes(data[:8], "little")
        head = json.loads(data[8:start])
        assert head.pop("__metadata__") == {"format": "pt"}
        assert start + max(tensor["data_offsets"][1] for tensor in head.values()) == len(data)
        where |= dict.fromkeys(head, shard)
    if name == "qwen3":
        assert json.loads(model["model.safetensors.index.json"])["weight_map"] == where
        assert len(shards) == 2
    assert {"config.json", "generation_config.json", "tokenizer_config.json"} <= model.keys()


def test_draft_shares_the_tokenizer_and_is_smaller() -> None:
    main, draft = files("qwen3"), files("draft")
    assert draft["tokenizer.json"] == main["tokenizer.json"]
    layers = [json.loads(model["config.json"])["num_hidden_layers"] for model in (main, draft)]
    assert layers == [2, 1]


def test_hub_serves_the_small_models_under_the_ids_of_the_readme(store: Store) -> None:
    add_defaults(store)
    blocks = re.findall(r"^```(?:sh|yaml)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"\bQwen/[\w.-]*\w|\byou/private\b", "\n".join(blocks)))
    assert named
    assert named | {MAIN, DRAFT} <= store.models.keys()
    assert [name for name, model in store.models.items() if model.private] == [PRIVATE]


# --- rehearsals ---------------------------------------------------------------------------------


def test_model_and_draft_come_under_the_ids_that_readers_type(clone: Client) -> None:
    rehearse(clone, f"{fetch('Qwen/Qwen3-8B')} --draft_model_name Qwen/Qwen3-0.6B")
    assert tree(snapshot(clone.work / "model", "Qwen/Qwen3-8B")) == files("qwen3")
    assert tree(snapshot(clone.work / "model", "Qwen/Qwen3-0.6B")) == files("draft")


def test_private_model_comes_with_the_token_only(clone: Client) -> None:
    command = fetch(PRIVATE)
    refused = rehearse(clone, f"unset MODELSCOPE_API_TOKEN; {command} || echo exit $?")
    assert refused.lines[0].startswith("Model download FAILED: ")
    assert refused.lines[-1] == "exit 1"
    assert USED in rehearse(clone, command).lines
    assert tree(snapshot(clone.work / "model", PRIVATE)) == files()


def test_image_build_takes_the_token_from_a_file(clone: Client) -> None:
    image = install_docker(clone)
    result = rehearse(
        clone,
        'printf %s "$MODELSCOPE_API_TOKEN" >token && unset MODELSCOPE_API_TOKEN && docker build'
        " --network host --build-arg MODELSCOPE_ENDPOINT --secret id=modelscope_token,src=token"
        f" --build-arg MODEL_ID={PRIVATE} --build-arg SPEC_DRAFT_MODEL_ID=Qwen/Qwen3-0.6B .",
    )
    assert USED in result.err
    assert tree(snapshot(image, PRIVATE)) == files()
    assert tree(snapshot(image, "Qwen/Qwen3-0.6B")) == files("draft")


@pytest.mark.parametrize("options", [(), ("--data", "hub")], ids=["kept nowhere", "kept"])
def test_own_folder_goes_up_and_comes_down(clone: Client, options: tuple[str, ...]) -> None:
    mine = clone.work / "mine"
    mine.mkdir()
    for name, data in {"config.json": b"{}", "tokenizer_config.json": b"{}", "w": b"w"}.items():
        (mine / name).write_bytes(data)
    upload = f"python upload_model.py --repo-id {EMPTY} --model-dir mine"
    rehearse(clone, f"{upload} && {fetch(EMPTY)}", *options)
    assert tree(snapshot(clone.work / "model", EMPTY)) == tree(mine)
    if options:
        assert tree(clone.work / "hub" / EMPTY) == tree(mine)
        rehearse(clone, f"rm -r model && {fetch(EMPTY)}", *options)  # the hub kept it
        assert tree(snapshot(clone.work / "model", EMPTY)) == tree(mine)


def test_own_id_is_served_when_it_is_named(clone: Client) -> None:
    ids = ("our-team/our-model", "our-team/our-draft")
    options = [word for model in ids for word in ("--model", model)]
    rehearse(clone, f"{fetch(ids[0])} --draft_model_name {ids[1]}", *options)
    for model in ids:
        assert tree(snapshot(clone.work / "model", model)) == files()


def test_help_names_every_model(clone: Client) -> None:
    shown = clone.run("python", "-m", "tests.hub", "--help").out
    for model in (*SERVED, EMPTY):
        assert f"\n  {model} " in shown


# --- the first command --------------------------------------------------------------------------


def test_hub_itself_needs_no_package_at_all(clone: Client) -> None:
    """So the SDK suffices for the first command; `.ci/run` installs that and nothing else."""
    command = ["python", "download_model.py", "--cache_dir", "model"]
    result = clone.run("python", "-S", "-m", "tests.hub", "--", *command)  # -S: no site-packages
    folder = snapshot(clone.work / "model", MAIN)
    assert result.code == 0, result
    assert result.lines == [USED, "Model download successful!", f"Resolved model_dir: {folder}"]
    assert tree(folder) == files()
    assert clone.run("python", "-S", "-c", "import modelscope").code != 0
