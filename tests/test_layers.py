"""How the files of two models become the layers of an image; test_image builds the image."""

import hashlib
import os
import sys
from pathlib import Path

import pytest

from tests.support.client import ROOT, Client, Result, lay, tree

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it runs in the build of an image")

LARGE = 32 << 20  # bytes; a larger file is in one of the nine layers


def lay_large(folder: Path, *sizes: int) -> None:
    """Make 0.safetensors, 1.safetensors and so on, of these sizes; they take no space."""
    for number, size in enumerate(sizes):
        lay(folder, {f"{number}.safetensors": b""})
        os.truncate(folder / f"{number}.safetensors", size)


def lay_out(client: Client, *models: str, shell: str = "true") -> Result:
    """Lay out models from the client's folder in `layers`, after a command of the shell."""
    program = [sys.executable, ROOT / ".docker/layers.py", "layers", *models]
    return client.run("bash", "-ec", f'{shell}; exec "$@"', "bash", *program)


def layers(client: Client) -> list[Path]:
    return [client.work / "layers" / str(number) for number in range(10)]


def dealt(client: Client, model: str) -> list[str]:
    """The large files that each of the layers has of a model, by their first characters."""
    folders = [layer / "model" / model for layer in layers(client)]
    return ["".join(sorted(p.name[0] for p in f.glob("*.safetensors"))) for f in folders]


def test_large_files_take_turns_largest_first_and_the_draft_from_the_other_end(
    client: Client,
) -> None:
    lay_large(client.work / "a", *(LARGE + number for number in range(4)))  # 0 isn't larger
    lay_large(client.work / "b", *[LARGE + 1] * 10)
    result = lay_out(client, "a", "b")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert dealt(client, "main") == ["0", "3", "2", "1", "", "", "", "", "", ""]
    assert dealt(client, "draft") == ["", "8", "7", "6", "5", "4", "3", "2", "1", "09"]


def test_every_file_is_there_and_in_the_list_of_digests_by_name(client: Client) -> None:
    names = ("a/b", "a-b/c", "B", "中文", "with space", ".hidden")
    model = lay(client.work / "a", {name: name.encode() for name in names})
    lay_large(model, LARGE + 1)
    assert lay_out(client, "a").code == 0
    laid = {name: data for layer in layers(client) for name, data in tree(layer).items()}
    sums = laid.pop("model/SHA256SUMS").decode()
    assert laid == {f"model/main/{name}": data for name, data in tree(model).items()}
    listed = sorted((f"main/{name}".encode(), data) for name, data in tree(model).items())
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name.decode()}\n" for name, data in listed]
    assert sums == "".join(lines)


def test_rights_and_times_are_fixed_and_no_two_layers_are_equal(client: Client) -> None:
    lay(client.work / "a", {"nested/config.json": b"{}"})
    assert lay_out(client, "a", shell="umask 077").code == 0
    paths = [path for layer in layers(client) for path in layer.rglob("*")]
    rights = {(path.is_dir(), path.stat().st_mode & 0o777) for path in paths}
    assert rights == {(True, 0o755), (False, 0o644)}
    # A layer without files has nothing of its own but the time of this folder.
    folders = [layer / "model" for layer in layers(client)]
    assert len({folder.stat().st_mtime for folder in folders}) == 10
    assert {path.stat().st_mtime for path in paths if path not in folders} == {0}


def test_file_that_cannot_be_written_fails_with_its_cause_and_the_models_stay(
    client: Client,
) -> None:
    model = lay(client.work / "a", {"config.json": b"{}", "large.bin": bytes(100_000)})
    result = lay_out(client, "a", shell="ulimit -f 50")
    assert (result.code, result.out) == (1, "")
    cause = "[Errno 27] File too large: 'a/large.bin' -> 'layers/0/model/main/large.bin'"
    assert result.err == f"The models could not be copied to their layers: {cause}\n"
    assert tree(model).keys() == {"config.json", "large.bin"}
