"""What the hub keeps: users, models, their revisions, and the blobs behind them."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

MASTER = "master"

# What the SDK sends as a blob of its own (LFS) the hub keeps in its storage: files of these names,
# and what is larger than the threshold, but never the files that the hub itself reads.
LARGE_SIZE = 64 * 1024
LARGE_NAMES = re.compile(
    r".*\.(7z|arrow|bin|bz2|ckpt|ftz|gz|h5|joblib|mlmodel|model|msgpack|npy|npz|onnx|ot|parquet|pb"
    r"|pickle|pkl|pt|pth|rar|safetensors|tar|tflite|tgz|wasm|xz|zip|zst)",
    re.IGNORECASE | re.DOTALL,
)
NEVER_LARGE = re.compile(
    r"(.*/)?(README\.md|\.gitattributes|\.gitignore|configuration\.(json|yaml|yml)"
    r"|dataset_infos\.json|config\.json|\.msc|\.mdl)",
    re.IGNORECASE | re.DOTALL,
)

# What a new repo holds, before anybody has sent a file.
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
    """A repo: for each revision, the blob behind every file name."""

    id: str
    private: bool = False
    revisions: dict[str, dict[str, Blob]] = field(default_factory=lambda: {MASTER: {}})
    tags: set[str] = field(default_factory=set)
    messages: list[str] = field(default_factory=list)
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    @property
    def head(self) -> str:
        """The id of the last commit."""
        return f"{len(self.messages):040x}"

    def files(self, revision: str) -> dict[str, Blob] | None:
        """Return the files of a branch, a tag or a commit, or None when there is no such thing."""
        return (self.commits | self.revisions).get(revision)


class Store:
    """The models of a folder laid out `ROOT/OWNER/NAME/…`; that folder is each model's `master`.

    Branches, tags, privacy and users live in memory, as long as the hub does.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs: dict[str, Blob] = {}
        self.models: dict[str, Model] = {}
        self.users: dict[str, str] = {}  # token: owner; the owner "*" owns every model
        self.lock = threading.RLock()
        (root / ".blobs").mkdir(parents=True, exist_ok=True)
        for folder in sorted(path for path in root.glob("[!.]*/*") if path.is_dir()):
            files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
            model = Model(folder.relative_to(root).as_posix())
            model.revisions[MASTER] = {name: self.keep(path) for name, path in files.items()}
            self.models[model.id] = model

    def add_user(self, owner: str) -> str:
        """Return a new token of `owner`."""
        token = f"ms-{secrets.token_hex(16)}"
        self.users[token] = owner
        return token

    def add(
        self,
        model_id: str,
        files: dict[str, bytes | Path] | None = None,
        *,
        revision: str = MASTER,
        private: bool = False,
    ) -> Model:
        """Make `revision` of a model hold exactly `files`; the model is made when it is new."""
        model = self.models.setdefault(model_id, Model(model_id, private))
        kept = {}
        for name, content in (files or {}).items():
            kept[name] = self.keep(content if isinstance(content, Path) else self.write(content))
        model.revisions[revision] = kept
        return model

    def create(self, model_id: str, *, private: bool) -> Model:
        """Make a new repo, which holds the hub's own files."""
        model = self.models[model_id] = Model(model_id, private)
        files = {name: self.keep(self.write(content)) for name, content in OWN_FILES.items()}
        self.commit(model, MASTER, files, "initial commit")
        return model

    def write(self, content: bytes) -> Path:
        """Write `content` to a file of the store that no blob names yet."""
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

    def commit(
        self, model: Model, revision: str, changes: dict[str, Blob | None], message: str
    ) -> None:
        """Apply `changes` (`None` deletes) to a branch, all of them or none."""
        with self.lock:
            files = dict(model.revisions[revision])
            for name, blob in changes.items():
                if blob is None:
                    files.pop(name, None)
                else:
                    files[name] = blob
                if revision == MASTER:
                    self.lay_out(model, name, blob)
            model.revisions[revision] = files
            model.messages.append(message)
            model.commits[model.head] = files

    def lay_out(self, model: Model, name: str, blob: Blob | None) -> None:
        """Let the folder on disk follow a commit to `master`."""
        target = self.root / model.id / name
        if blob is not None and target.exists() and target.samefile(blob.path):
            return
        target.unlink(missing_ok=True)
        if blob is None:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(blob.path, target)
        except OSError:  # no hard links here
            shutil.copyfile(blob.path, target)

    def owns(self, user: str | None, model_id: str) -> bool:
        return user is not None and user in ("*", model_id.split("/")[0])

    def visible(self, user: str | None, model_id: str) -> Model | None:
        model = self.models.get(model_id)
        return model if model and (not model.private or self.owns(user, model_id)) else None


def is_large(name: str, size: int) -> bool:
    """Whether a file is kept in the storage, as opposed to the repo itself."""
    if NEVER_LARGE.fullmatch(name):
        return False
    return size > LARGE_SIZE or bool(LARGE_NAMES.fullmatch(name))


def leads_out(name: str) -> bool:
    path = PurePosixPath(name)
    return not name or path.is_absolute() or ".." in path.parts
