"""The SDK: its names, its versions, a machine without it, and its own command."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub import Hub, Store
from tests.support.cases import (
    BIG,
    FILES,
    MODEL,
    TOTAL,
    assert_downloaded,
    assert_uploaded,
    download,
    snapshot,
    upload,
    uploaded,
)
from tests.support.client import ROOT, SCRIPTS, Client, Result, lay, source, tree
from tests.support.readme import codes, section

PINS = source("requirements.txt").split()


@pytest.mark.parametrize(
    "platform", ["win32", "linux", pytest.param("darwin", marks=pytest.mark.gate)]
)
def test_names_of_the_sdk_that_the_scripts_use_exist(platform: str, tmp_path: Path) -> None:
    checked = [*SCRIPTS, *(ROOT / "tests/hub").glob("*.py")]
    options = ["--platform", platform, "--ignore-missing-imports", "--follow-imports", "silent"]
    command = [sys.executable, "-m", "mypy", "--cache-dir", tmp_path, *options, *checked]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"{len(checked)} source files" in found.stdout, found
    missing = re.findall(r"^.*\[(?:attr-defined|call-arg)\]$", found.stdout, re.MULTILINE)
    assert missing == [], "\n".join(missing)


def test_versions_of_the_sdk_are_the_same_in_every_file() -> None:
    files = ("requirements.txt", "tests/requirements.txt", "README.md", *SCRIPTS)
    named = {file: re.findall(r"modelscope(?:-hub)?==[\w.]+", source(file)) for file in files}
    assert {file: sorted(set(named[file])) for file in files} == dict.fromkeys(files, sorted(PINS))
    install = f"pip install {' '.join(PINS)}"
    assert [source(script).count(install) for script in SCRIPTS] == [1, 1]


def test_last_part_of_both_scripts_is_the_same() -> None:
    last = [re.split(r"^# --- the same in .*$", source(s), flags=re.MULTILINE) for s in SCRIPTS]
    assert last[0][1:] == last[1][1:] != []


def test_each_script_works_alone(client: Client, store: Store, token: str, model: str) -> None:
    store.add(copy := "alice/copy")
    env = {"MODEL_ID": model, "REPO_ID": copy, "MODEL_DIR": str(snapshot(client.work))}
    for script in SCRIPTS:
        alone = lay(client.home / script[:-3], {script: source(script).encode()}) / script
        result = client.run("python", "-S", alone, **env)  # -S: no site-packages
        assert (result.code, result.out) == (1, "")
        assert result.err.startswith("ModuleNotFoundError(")
        assert "\nTo install the SDK: pip install modelscope==" in result.err
        assert client.run("python", alone, **env).code == 0
    assert uploaded(store, copy) == FILES


def test_sdk_that_lacks_a_name_is_told_at_the_start(client: Client, hub: Hub) -> None:
    """Also one that a run needs only when it fails."""
    client.at_start("import modelscope_hub as sdk; del sdk.errors.FileDownloadError")
    client.at_start("del sdk.FileDownloadError")
    result = download(client)
    assert (result.code, result.out, hub.log) == (1, "", []), result
    assert "\nTo install the SDK: pip install modelscope==" in result.err


def run_row(client: Client, words: str, **env: str) -> Result:
    """Run a command of the README's list, found by the words that its line begins with."""
    [line] = [x for x in section("Options").splitlines() if x.startswith(f"- {words}")]
    command = codes(line)[0]
    return client.run(*shlex.split(command.replace("$MODELSCOPE_API_TOKEN", env.get("TOKEN", ""))))


def test_cli_accepts_and_reuses_our_download(client: Client, hub: Hub, model: str) -> None:
    served = hub.store.add("Qwen/Qwen3-0.6B", FILES).id  # as the README has it
    for name in (served, model):
        assert download(client, "--cache_dir", "model", MODEL_ID=name).code == 0
    assert run_row(client, "Check a folder").code == 0
    assert client.run("modelscope", "download", served, "--cache_dir", "model").code == 0
    assert hub.sent() == 2 * TOTAL
    folder = snapshot(client.work / "model", served)
    for harm in ({"config.json": b"[]"}, FILES | {"extra": b""}):
        lay(folder, harm)
        assert run_row(client, "Check a folder").code == 1
    clear = ("modelscope", "cache", "clear", "--cache-dir", "model", "--repo-type", "model")
    assert client.run(*clear, "--repo-id", served, "--yes").code == 0
    assert (folder.exists(), tree(snapshot(client.work / "model"))) == (False, FILES)


def test_our_script_reuses_a_download_of_the_cli(client: Client, hub: Hub, model: str) -> None:
    assert client.run("modelscope", "download", model, "--cache_dir", ".").code == 0
    assert_downloaded(client, download(client))
    assert (hub.sent(), len(hub.requests("file", BIG))) == (TOTAL, 1)


def test_one_login_serves_the_cli_and_both_scripts(
    client: Client, store: Store, folder: Path
) -> None:
    store.add(MODEL, FILES, private=True)
    token, fetch = store.add_user("alice"), ("modelscope", "download", MODEL)
    assert download(client).code == 1
    assert run_row(client, "Log in once", TOKEN=token).code == 0
    lay(folder, {"added": b"1"})
    assert download(client).code == 0
    assert_uploaded(store, upload(client), tree(folder))
    shutil.rmtree(client.home / ".modelscope")
    assert client.run(*fetch).code != 0
    assert download(client, MODELSCOPE_API_TOKEN=token).code == 0
    assert client.run(*fetch).code == 0
