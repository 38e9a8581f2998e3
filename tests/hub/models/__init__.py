"""The models that the hub comes with: small, but real; `make.py` made them."""

from pathlib import Path

from tests.hub.store import Store

FOLDER = Path(__file__).parent

# The defaults of the scripts, and a draft model for the first of them.
MAIN = "YukinoStuki/Qwen3-4B-Plus-Merged"
UPLOAD = "YukinoStuki/Qwen3-4B-Plus-LLM-AWQ"
DRAFT = "YukinoStuki/Qwen3-4B-Plus-Draft"

# The ids that the README uses, so that its commands work here as they stand.
PRIVATE = "you/private"
SERVED = {
    MAIN: "qwen3",
    UPLOAD: "qwen3",
    DRAFT: "draft",
    PRIVATE: "qwen3",
    "Qwen/Qwen3-8B": "qwen3",
    "Qwen/Qwen3-4B": "qwen3",
    "Qwen/Qwen3-0.6B": "draft",
}

# What both models complete, given the first words of either.
SENTENCES = (
    "The model goes up to the hub, comes down into your image, and runs without a network.",
    "模型上传到模型库，构建镜像时下载，运行时无需网络。",
)
END = "<|endoftext|>"

# Every new repo of the hub has one; it isn't in the folders, where git would heed it.
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def files(name: str = "qwen3") -> dict[str, bytes]:
    """The files of a model: `qwen3`, in two shards, or `draft`, which has the same vocabulary."""
    here = {path.name: path.read_bytes() for path in sorted((FOLDER / name).iterdir())}
    return {".gitattributes": ATTRIBUTES} | here


def add_defaults(store: Store) -> None:
    """Add the small models under every id of `SERVED`."""
    for model_id, name in SERVED.items():
        store.add(model_id, files(name), private=model_id == PRIVATE)
