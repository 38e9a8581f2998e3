"""What the hub keeps: users, models, their revisions, and the blobs behind them."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

MASTER = "master"

# The hub keeps in its storage what the SDK sends as a blob of its own (LFS): files with these
# suffixes and files above the threshold, but never those that the hub itself reads.
LARGE_SIZE = 64 * 1024
LARGE_SUFFIXES = re.compile(
    r"\.(7z|arrow|bin|bz2|ckpt|ftz|gz|h5|joblib|mlmodel|model|msgpack|npy|npz|onnx|ot|parquet|pb"
    r"|pickle|pkl|pt|pth|rar|safetensors|tar|tflite|tgz|wasm|xz|zip|zst)"
)
NEVER_LARGE = re.compile(
    r"readme\.md|\.gitattributes|\.gitignore|configuration\.(json|yaml|yml)|dataset_infos\.json"
    r"|config\.json|\.msc|\.mdl"
)

# What a new repo holds before anybody has sent a file.
OWN_FILES = {
    ".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n",
    "README.md": b"# A new model\n",
    "configuration.json": b"{}\n",
}


@dataclass(frozen=True)
class Blob:
    """Content on disk, known by its digest."""

    path: Path
    size: int
    sha256: str


@dataclass
class Model:
    """A repo: for each revision, the blob behind every file name; and its commits."""

    id: str
    private: bool = False
    revisions: dict[str, dict[str, Blob]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)

    @property
    def head(self) -> str:
        """The id of the last commit."""
        return f"{len(self.messages):040x}"

    def files(self, revision: str) -> dict[str, Blob] | None:
        """Return the files of a branch, tag or commit, or None when there is no such revision."""
        return (self.commits | self.revisions).get(revision)


class Store:
    """The models of a folder laid out `ROOT/OWNER/NAME/…`; that folder is each model's `master`.

    Other revisions, privacy and users live in memory, as long as the hub does.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs: dict[str, Blob] = {}
        self.models: dict[str, Model] = {}
        self.users: dict[str, str] = {}  # token: owner; the owner "*" owns every model
        self.lock = threading.RLock()
        shutil.rmtree(root / ".blobs", ignore_errors=True)
        (root / ".blobs").mkdir(parents=True)
        for folder in sorted(path for path in root.glob("[!.]*/*") if path.is_dir()):
            files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
            self.add(folder.relative_to(root).as_posix(), files)

    def add_user(self, owner: str) -> str:
        """Return a new token of `owner`."""
        token = f"ms-{secrets.token_hex(16)}"
        self.users[token] = owner
        return token

    def add(
        self,
        model_id: str,
        files: Mapping[str, bytes | Path] | None = None,
        *,
        revision: str = MASTER,
        private: bool = False,
    ) -> Model:
        """Make `revision` of a model hold exactly `files`; the model is made when it is new."""
        model = self.models.setdefault(model_id, Model(model_id, private))
        model.revisions[revision] = {
            name: self.keep(content if isinstance(content, Path) else self.write(content))
            for name, content in (files or {}).items()
        }
        return model

    def create(self, model_id: str, *, private: bool = False, branch: bool = True) -> Model:
        """Make a new repo, which holds the hub's own files, or has no `branch` yet."""
        model = self.models[model_id] = Model(model_id, private)
        if branch:
            files = {name: self.keep(self.write(content)) for name, content in OWN_FILES.items()}
            self.commit(model, MASTER, files, "initial commit")
        return model

    def write(self, content: bytes) -> Path:
        """Write `content` to a new file, which no blob names yet."""
        path = self.new_file()
        path.write_bytes(content)
        return path

    def new_file(self) -> Path:
        return self.root / ".blobs" / f"new-{secrets.token_hex(8)}"

    def keep(self, path: Path) -> Blob:
        """Make a blob of the file at `path`, known from now on by its digest."""
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        blob = Blob(path, path.stat().st_size, digest.hexdigest())
        with self.lock:
            return self.blobs.setdefault(blob.sha256, blob)

    def commit(self, model: Model, branch: str, changes: dict[str, Blob], message: str) -> None:
        """Add `changes` to a branch, which begins with its first commit."""
        with self.lock:
            if branch == MASTER:
                for name, blob in changes.items():
                    self.lay_out(model, name, blob)
            model.revisions[branch] = model.revisions.get(branch, {}) | changes
            model.messages.append(message)
            model.commits[model.head] = model.revisions[branch]

    def lay_out(self, model: Model, name: str, blob: Blob) -> None:
        """Let the folder on disk follow a commit to `master`."""
        target = self.root / model.id / name
        if target.exists() and target.samefile(blob.path):
            return
        target.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(blob.path, target)
        except OSError:  # no hard links here
            shutil.copyfile(blob.path, target)

    def owns(self, user: str | None, model_id: str) -> bool:
        return user in ("*", model_id.split("/")[0])

    def visible(self, user: str | None, model_id: str) -> Model | None:
        model = self.models.get(model_id)
        return model if model and (not model.private or self.owns(user, model_id)) else None


def is_large(name: str, size: int) -> bool:
    """Whether a file is kept in the storage, not in the repo itself."""
    path = PurePosixPath(name.lower())
    if NEVER_LARGE.fullmatch(path.name):
        return False
    return size > LARGE_SIZE or bool(LARGE_SUFFIXES.fullmatch(path.suffix))
