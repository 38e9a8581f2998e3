"""Lay out a model, and a draft model, as ten layers of an image.

    python3 layers.py LAYERS MODEL [DRAFT]

Registries limit the size of a layer, so files above 32 MiB are dealt to LAYERS/1 to LAYERS/9. All
others are in LAYERS/0, with the list of digests. The same files give the same layers on any
builder, and no two layers are equal: some nodes stream no image with equal ones.

The models lie in a cache mount, which is another file system, so each file is hashed while it is
copied. Nothing is removed there: after a full disk, the next build has nothing to download.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LARGE = 32 << 20
CHUNK = 1 << 20
AT_ONCE = 4


def deal(layers: Path, model: str, source: Path, turns: Sequence[int]) -> dict[Path, Path]:
    """Return the files of a model by their places; the largest file has the first turn."""
    sizes = {path: path.stat().st_size for path in source.rglob("*") if path.is_file()}
    large = [path for path in sizes if sizes[path] > LARGE]
    large.sort(key=lambda path: (-sizes[path], path.as_posix()))
    numbers = {path: turns[i % len(turns)] for i, path in enumerate(large)}
    folders = {path: layers / str(numbers.get(path, 0)) / "model" / model for path in sizes}
    return {folder / path.relative_to(source): path for path, folder in folders.items()}


def copy(source: Path, target: Path) -> str:
    """Copy a file, and return the sha256 of the bytes that were copied."""
    digest = hashlib.sha256()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as reader, target.open("wb") as writer:
            while chunk := reader.read(CHUNK):
                digest.update(chunk)
                writer.write(chunk)
    except OSError as error:  # that of a full disk names no file
        raise OSError(error.errno, error.strerror, str(source), None, str(target)) from error
    return digest.hexdigest()


def copy_all(layers: Path, files: dict[Path, Path]) -> None:
    """Copy each file to its place, and write the list that `sha256sum --check` reads."""
    names = [Path(*target.relative_to(layers).parts[2:]).as_posix() for target in files]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        sums = zip(names, pool.map(copy, files.values(), files), strict=True)
        lines = [f"{digest}  {name}\n" for name, digest in sorted(sums)]
    (layers / "0/model/SHA256SUMS").write_text("".join(lines), "utf-8")


def main() -> None:
    os.umask(0o022)  # every user can read the files
    layers, main, *draft = map(Path, sys.argv[1:])
    folders = [layers / str(number) / "model" for number in range(10)]
    for folder in folders:
        folder.mkdir(parents=True)
    files = deal(layers, "main", main, range(1, 10))
    if draft:  # from the other end, so that a new one changes as few layers as possible
        files |= deal(layers, "draft", draft[0], range(9, 0, -1))
    try:
        copy_all(layers, files)
    except OSError as error:
        sys.exit(f"The models could not be copied to their layers: {error}")
    for path in layers.rglob("*"):
        os.utime(path, (0, 0))
    for number, folder in enumerate(folders):  # all that tells layers without files apart
        os.utime(folder, (number, number))


if __name__ == "__main__":
    main()
