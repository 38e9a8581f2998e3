"""What the hub keeps: users, models, their revisions, and the blobs behind them."""

import hashlib
import mmap
import re
import secrets
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

    @property
    def content(self) -> memoryview:
        return read(self.path)


@dataclass
class Model:
    """A repo: for each revision, the blob behind every file name; and its commits."""

    id: str
    private: bool = False
    revisions: dict[str, dict[str, Blob]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def head(self) -> str:
        """The id of the last commit."""
        return f"{len(self.messages):040x}"


class Store:
    """Models and users, which live as long as the hub does, and the folder for their blobs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs: dict[str, Blob] = {}
        self.models: dict[str, Model] = {}
        self.users: dict[str, str] = {}  # token: owner; the owner "*" owns every model
        self.lock = threading.Lock()
        root.mkdir(parents=True, exist_ok=True)

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
        kept = {name: self.keep(content) for name, content in (files or {}).items()}
        model.revisions[revision] = kept
        return model

    def create(self, model_id: str, *, private: bool = False, branch: bool = True) -> Model:
        """Make a new repo, which holds the hub's own files, or has no `branch` yet."""
        model = self.models[model_id] = Model(model_id, private)
        if branch:
            files = {name: self.keep(content) for name, content in OWN_FILES.items()}
            self.commit(model, MASTER, files, "initial commit")
        return model

    def new_file(self) -> Path:
        return self.root / secrets.token_hex(8)

    def keep(self, content: bytes | Path) -> Blob:
        """Make a blob of some bytes, or of a file that stays where it is."""
        path = content if isinstance(content, Path) else self.new_file()
        if isinstance(content, bytes):
            path.write_bytes(content)
        data = read(path)
        blob = Blob(path, len(data), hashlib.sha256(data).hexdigest())
        with self.lock:
            return self.blobs.setdefault(blob.sha256, blob)

    def commit(self, model: Model, branch: str, changes: dict[str, Blob], message: str) -> None:
        """Add `changes` to a branch, which begins with its first commit."""
        with self.lock:
            model.revisions[branch] = model.revisions.get(branch, {}) | changes
            model.messages.append(message)

    def owns(self, user: str | None, model_id: str) -> bool:
        return user in ("*", model_id.split("/")[0])

    def visible(self, user: str | None, model_id: str) -> Model | None:
        model = self.models.get(model_id)
        return model if model and (not model.private or self.owns(user, model_id)) else None


def read(path: Path) -> memoryview:
    """The bytes of a file, which stay on disk."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def is_large(name: str, size: int) -> bool:
    """Whether a file is kept in the storage, not in the repo itself."""
    path = PurePosixPath(name.lower())
    if NEVER_LARGE.fullmatch(path.name):
        return False
    return size > LARGE_SIZE or bool(LARGE_SUFFIXES.fullmatch(path.suffix))
