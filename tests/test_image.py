"""What the Dockerfile promises: images built against the stand-in hub, by a real builder."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.hub import Hub, Store
from tests.hub.models import SENTENCES, files
from tests.support.builders import (
    Buildah,
    Builder,
    Docker,
    cancel,
    find_builder,
    mirror,
    registry,
    run,
)
from tests.support.client import ROOT, Result, wait_until
from tests.support.readme import README

pytestmark = [pytest.mark.image, pytest.mark.timeout(600)]

MODEL = "alice/model"
DRAFT = "alice/draft"
OFFLINE = {"MODEL_DIR": "/app/model/main", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
NOBODY = "65534:65534"
NO_BUILDER = "needs docker with a running engine or, as root, buildah and debootstrap"

HOW = {"Ctrl-C": signal.SIGINT, "kill": signal.SIGKILL}  # how a build ends before its time
SIZE = 12_000_000  # bytes of the model whose build is broken off

# A serve image as users have them: packages, a script, a user, an entrypoint, a command.
SERVE = """
ARG PYTHON_IMAGE
FROM ${PYTHON_IMAGE}
COPY requirements.txt /
RUN pip install --no-cache-dir -c /requirements.txt safetensors tokenizers
WORKDIR /srv
COPY serve.py ./
USER 65534:65534
ENTRYPOINT ["python"]
CMD ["/srv/serve.py", "there"]
"""

# Opens the model as a server would, says what is in it, and tries to reach the address given.
SERVER = """
import errno, json, os, socket, sys
from pathlib import Path
from safetensors import deserialize
from tokenizers import Tokenizer

def reach(host, port):
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        return errno.errorcode.get(error.errno, repr(error))
    return "reached"

model = Path(os.environ["MODEL_DIR"])
index = json.loads((model / "model.safetensors.index.json").read_text())["weight_map"]
tensors = {}
for shard in sorted(set(index.values())):
    found = deserialize((model / shard).read_bytes())
    tensors |= {name: bytes(tensor["data"]).hex()[:32] for name, tensor in found}
tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
text = tokenizer.decode(tokenizer.encode(SENTENCE).ids)
print(json.dumps({
    "user": os.getuid(),
    "missing": sorted(index.keys() ^ tensors.keys()),
    "tensors": tensors,
    "text": text,
    "connections": [reach(*address.split(":")) for address in sys.argv[1:]],
}))
"""


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    name = find_builder()
    if not name:
        pytest.skip(NO_BUILDER)
    builder = Docker() if name == "docker" else Buildah(tmp_path_factory.mktemp("buildah"))
    try:
        if isinstance(builder, Buildah):
            builder.make_base()
        yield builder
    finally:
        builder.close()


@pytest.fixture(scope="session")
def serve_image(builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> str:
    context = tmp_path_factory.mktemp("serve")
    (context / "Dockerfile").write_text(SERVE)
    (context / "serve.py").write_text(f"SENTENCE = {SENTENCES[0]!r}\n{SERVER}")
    shutil.copy(ROOT / "tests/requirements.txt", context)
    builder.build("serve", context=context)
    return "serve"


@pytest.fixture
def model(store: Store) -> dict[str, bytes]:
    """The files of a model that the hub has, small but real, one of them in a folder."""
    model = files() | {"nested/notes.txt": MODEL.encode()}
    store.add(MODEL, model)
    return model


@pytest.fixture
def draft(store: Store) -> dict[str, bytes]:
    draft = files("draft") | {"nested/notes.txt": DRAFT.encode()}
    store.add(DRAFT, draft)
    return draft


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """A copy of this project, to edit."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    folder = tmp_path / "context"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def build(
    builder: Builder, tag: str, hub: Hub, *options: object, check: bool = True, **args: object
) -> Result:
    """Build the model's image against the hub; capitals among `args` are build arguments."""
    args = {"MODEL_ID": MODEL, "MODELSCOPE_ENDPOINT": hub.url, **args}
    return builder.build(tag, *options, check=check, **args)


def token_file(tmp_path: Path, store: Store, owner: str = "alice") -> tuple[Path, str]:
    token = store.add_user(owner)
    path = tmp_path / "token"
    path.write_text(f"{token}\n")
    return path, token


def assert_fails(result: Result, code: int, line: str) -> None:
    """Assert that the build failed, and that its log shows the script's own code and line."""
    assert result.code != 0
    assert f"exit status {code}" in result.out or f"exit code: {code}" in result.out, result.out
    assert line in result.out, result.out
    assert "Traceback" not in result.out


# --- what an image holds ------------------------------------------------------------------------


BUILDS = dict.fromkeys(re.findall(r"^docker build (.+) \.$", README, re.MULTILINE))


@pytest.mark.parametrize("line", BUILDS)
def test_build_of_the_readme_makes_the_image_it_promises(
    builder: Builder, serve_image: str, hub: Hub, store: Store, tmp_path: Path, line: str
) -> None:
    names = ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B", "you/private")
    for name in names:
        store.add(name, {"config.json": name.encode()}, private=name == "you/private")
    token_file(tmp_path, store, owner="you")
    options = shlex.split(line.replace("$HOME", str(tmp_path)))
    place = options.index("-t")
    del options[place : place + 2]
    given = {"SERVE_IMAGE": builder.ref(serve_image)} if "SERVE_IMAGE" in line else {}
    builder.build("readme", *options, MODELSCOPE_ENDPOINT=hub.url, **given)
    named = dict(word.split("=", 1) for word in options if word.split("=")[0].endswith("MODEL_ID"))
    folders = {"MODEL_ID": "main", "SPEC_DRAFT_MODEL_ID": "draft"}
    with builder.open("readme") as image:
        held = image.tree("" if "--target weights" in line else "app/model/")
    assert held == {f"{folders[k]}/config.json": model.encode() for k, model in named.items()}


def test_last_stage_needs_no_second_copy_of_the_weights(
    builder: Builder, hub: Hub, model: dict[str, bytes]
) -> None:
    stage = re.compile(r"AS weights|\[weights ")
    assert not stage.search(build(builder, "last", hub).out)
    assert stage.search(build(builder, "weights", hub, "--target", "weights").out)


def test_public_model_is_in_the_image_and_a_python_image_serves(
    builder: Builder, hub: Hub, model: dict[str, bytes]
) -> None:
    result = build(builder, "public", hub)
    assert "Model download successful!" in result.out
    with builder.open("public") as image:
        assert image.tree("app/model/") == {f"main/{name}": data for name, data in model.items()}
        entries = image.members("app/model/").values()
        variables = dict(line.split("=", 1) for line in image.config["config"]["Env"])
    assert all(entry.isfile() or entry.isdir() for entry in entries)
    owned = {(entry.isdir(), entry.mode & 0o777, entry.uid, entry.gid) for entry in entries}
    assert owned == {(False, 0o644, 0, 0), (True, 0o755, 0, 0)}
    assert variables.items() >= OFFLINE.items()


WHERE = re.compile(r"In the image: /(\S+) \(with --target weights: /(\S+)\)$", re.MULTILINE)


def test_log_of_the_build_says_where_the_models_are_in_the_image(
    builder: Builder, hub: Hub, model: dict[str, bytes], draft: dict[str, bytes]
) -> None:
    result = build(builder, "where", hub, SPEC_DRAFT_MODEL_ID=DRAFT)
    build(builder, "where-weights", hub, "--target", "weights", SPEC_DRAFT_MODEL_ID=DRAFT)
    places = WHERE.findall(result.out)
    assert len(places) == 2
    assert result.out.rindex("Resolved draft_model_dir: /") < WHERE.search(result.out).start()
    with builder.open("where") as last, builder.open("where-weights") as weights:
        for (here, there), files in zip(places, (model, draft), strict=True):
            assert last.tree(f"{here}/") == weights.tree(f"{there}/") == files


@pytest.mark.parametrize(
    ("name", "optional", "said"),
    [
        (DRAFT, "", "/app/model/draft"),
        (DRAFT, "1", None),
        ("alice/nowhere", "1", None),
        ("", "", None),
    ],
)
def test_draft_dir_names_a_folder_that_is_there_or_is_not_set(
    builder: Builder,
    hub: Hub,
    model: dict[str, bytes],
    draft: dict[str, bytes],
    name: str,
    optional: str,
    said: str | None,
) -> None:
    build(builder, "named", hub, SPEC_DRAFT_MODEL_ID=name, SPEC_DRAFT_OPTIONAL=optional)
    with builder.open("named") as image:
        variables = dict(line.split("=", 1) for line in image.config["config"]["Env"])
        assert image.tree("app/model/draft/") == (draft if name == DRAFT else {})
    assert variables.get("DRAFT_DIR") == said
    assert variables.items() >= OFFLINE.items()


def test_packages_come_from_the_index_that_is_named_which_the_image_does_not_know(
    builder: Builder, hub: Hub, model: dict[str, bytes]
) -> None:
    with mirror("mirror-of-mine") as (address, asked):
        result = build(builder, "mirrored", hub, PIP_INDEX_URL=address)
    assert "Successfully installed" in result.out
    assert "/mirror-of-mine/simple/modelscope/" in asked
    with builder.open("mirrored") as image:
        assert image.tree("app/model/main/") == model
        assert image.search("mirror-of-mine") == set()
        assert "PIP_INDEX_URL" not in json.dumps(image.config)


def test_revision_is_the_one_that_is_named(
    builder: Builder, hub: Hub, store: Store, model: dict[str, bytes]
) -> None:
    store.add(MODEL, {"only.txt": b"v1.0"}, revision="v1.0")
    build(builder, "revision", hub, "--target", "weights", MODEL_REVISION="v1.0")
    with builder.open("revision") as image:
        assert image.tree("") == {"main/only.txt": b"v1.0"}


def test_private_model_comes_with_the_secret_only(
    builder: Builder, hub: Hub, store: Store, tmp_path: Path
) -> None:
    store.add(MODEL, {"config.json": b"{}"}, private=True)
    secret, token = token_file(tmp_path, store)
    refused = build(builder, "private", hub, check=False)
    assert_fails(refused, 1, "Model download FAILED: ")
    result = build(builder, "private", hub, "--target", "weights", secret=secret)
    assert "Using ModelScope token for authenticated download." in result.out
    assert token not in refused.out + result.out
    with builder.open("private") as image:
        assert image.tree("") == {"main/config.json": b"{}"}


def test_weights_target_holds_the_files_of_both_models_and_nothing_else(
    builder: Builder, hub: Hub, model: dict[str, bytes], draft: dict[str, bytes]
) -> None:
    build(builder, "both", hub, "--target", "weights", SPEC_DRAFT_MODEL_ID=DRAFT)
    with builder.open("both") as image:
        files = {f"main/{name}": data for name, data in model.items()}
        files |= {f"draft/{name}": data for name, data in draft.items()}
        assert image.tree("") == files
        assert image.members().keys() - files == {
            "draft",
            "draft/nested",
            "main",
            "main/nested",
        }
        assert {entry.mtime for entry in image.members("main/").values()} == {0}
        assert len(image.digests) == 1


def test_draft_revision_is_the_one_that_is_named(
    builder: Builder, hub: Hub, store: Store, model: dict[str, bytes], draft: dict[str, bytes]
) -> None:
    store.add(DRAFT, {"only.txt": b"dev"}, revision="dev")
    args = {"SPEC_DRAFT_MODEL_ID": DRAFT, "SPEC_DRAFT_MODEL_REVISION": "dev"}
    build(builder, "draft", hub, **args)
    with builder.open("draft") as image:
        assert image.tree("app/model/draft/") == {"only.txt": b"dev"}
        assert image.tree("app/model/main/") == model


def test_optional_draft_that_fails_leaves_an_image_without_draft(
    builder: Builder, hub: Hub, model: dict[str, bytes]
) -> None:
    args = {"SPEC_DRAFT_MODEL_ID": "alice/nowhere", "SPEC_DRAFT_OPTIONAL": "1"}
    result = build(builder, "optional", hub, "--target", "weights", **args)
    assert "[spec] Draft model download FAILED (optional, continue): " in result.out
    with builder.open("optional") as image:
        assert image.tree("") == {f"main/{name}": data for name, data in model.items()}
        assert "draft" not in image.members()


# --- builds that fail ---------------------------------------------------------------------------


def test_draft_that_fails_fails_the_build_with_2(
    builder: Builder, hub: Hub, model: dict[str, bytes]
) -> None:
    result = build(builder, "failed", hub, SPEC_DRAFT_MODEL_ID="alice/nowhere", check=False)
    assert "Model download successful!" in result.out
    assert_fails(result, 2, "[spec] Draft model download FAILED: ")


def test_missing_model_fails_the_build_with_1(builder: Builder, hub: Hub) -> None:
    result = build(builder, "failed", hub, MODEL_ID="alice/nowhere", check=False)
    assert_fails(result, 1, "Model download FAILED: ")


def test_blank_model_id_is_an_error_and_not_the_default(builder: Builder, hub: Hub) -> None:
    result = build(builder, "failed", hub, MODEL_ID="", check=False)
    assert_fails(result, 1, "Model download FAILED: ")
    assert "MODEL_ID" in result.out
    assert hub.log == []


# --- builds that break ----------------------------------------------------------------------


@pytest.mark.parametrize("number", HOW.values(), ids=HOW)
def test_build_after_a_cancelled_one_asks_for_the_rest_only(
    builder: Builder, hub: Hub, store: Store, tmp_path: Path, number: int
) -> None:
    files = large_model(store, "alice/cancelled")
    break_off(builder, hub, "alice/cancelled", number)
    sent = hub.sent()
    build(builder, "resumed", hub, "--target", "weights", MODEL_ID="alice/cancelled")
    assert 0 < hub.sent() - sent < 0.6 * SIZE
    with builder.open("resumed") as image:
        assert image.tree("") == {f"main/{name}": data for name, data in files.items()}
    assert not kept(builder, tmp_path, files)


def test_file_that_left_the_revision_meanwhile_is_not_in_the_image(
    builder: Builder, hub: Hub, store: Store, tmp_path: Path
) -> None:
    large_model(store, "alice/renamed")
    break_off(builder, hub, "alice/renamed", signal.SIGINT)
    store.add("alice/renamed", {"only.txt": b"new"})
    build(builder, "renamed", hub, "--target", "weights", MODEL_ID="alice/renamed")
    with builder.open("renamed") as image:
        assert image.tree("") == {"main/only.txt": b"new"}


def test_builds_at_once_end_well_and_keep_what_another_one_left(
    builder: Builder, hub: Hub, store: Store, tmp_path: Path
) -> None:
    broken = large_model(store, "alice/broken")
    break_off(builder, hub, "alice/broken", signal.SIGINT)
    before = kept(builder, tmp_path, broken)
    models = {name: large_model(store, f"alice/{name}") for name in ("first", "second")}
    builds = {"a": "first", "b": "first", "c": "second"}  # the first two aren't the same to a cache
    processes = [
        builder.start(
            tag,
            *("--target", "weights"),
            MODEL_ID=f"alice/{name}",
            MODELSCOPE_ENDPOINT=hub.url,
            REFRESH=tag,
        )
        for tag, name in builds.items()
    ]
    for process in processes:
        out = process.communicate(timeout=300)[0]
        assert process.returncode == 0, out
    for tag, name in builds.items():
        with builder.open(tag) as image:
            assert image.tree("") == {f"main/{k}": data for k, data in models[name].items()}
    assert before
    assert kept(builder, tmp_path, broken) == before
    assert not kept(builder, tmp_path, models["first"] | models["second"])
    build(builder, "broken", hub, "--target", "weights", MODEL_ID="alice/broken")


def test_model_is_kept_when_the_draft_fails(
    builder: Builder, hub: Hub, store: Store, draft: dict[str, bytes]
) -> None:
    files = large_model(store, "alice/main")
    args = {"MODEL_ID": "alice/main", "SPEC_DRAFT_MODEL_ID": "alice/typo"}
    assert_fails(
        build(builder, "mended", hub, check=False, **args), 2, "[spec] Draft model download FAILED"
    )
    asked = len(hub.log)
    build(builder, "mended", hub, **args | {"SPEC_DRAFT_MODEL_ID": DRAFT})
    assert not {request.file for request in hub.log[asked:]} & files.keys()
    with builder.open("mended") as image:
        assert image.tree("app/model/main/") == files
        assert image.tree("app/model/draft/") == draft


def test_nothing_is_kept_when_that_is_not_wanted(
    builder: Builder, hub: Hub, store: Store, tmp_path: Path
) -> None:
    files = large_model(store, "alice/forgotten")
    break_off(builder, hub, "alice/forgotten", signal.SIGINT, KEEP_UNFINISHED="")
    assert not kept(builder, tmp_path, files)
    args = {"MODEL_ID": "alice/forgotten", "KEEP_UNFINISHED": ""}
    build(builder, "forgotten", hub, "--target", "weights", **args)
    with builder.open("forgotten") as image:
        assert image.tree("") == {f"main/{name}": data for name, data in files.items()}


def large_model(store: Store, model_id: str, *, private: bool = False) -> dict[str, bytes]:
    """A model of SIZE bytes in four files, their names its own."""
    name = model_id.split("/")[1]
    files = {f"{name}-{i}.safetensors": os.urandom(SIZE // 4) for i in range(4)}
    store.add(model_id, files, private=private)
    return files


def break_off(builder: Builder, hub: Hub, model_id: str, number: int, **given: object) -> Result:
    """Cancel a build when 0.6 of the model has come."""
    hub.rate, before = SIZE / 8, hub.sent()
    given = {"MODEL_ID": model_id, "MODELSCOPE_ENDPOINT": hub.url, **given}
    process = builder.start("broken-off", **given)
    wait_until(lambda: hub.sent() - before >= 0.6 * SIZE or process.poll() is not None, 120)
    result = cancel(process, number)
    hub.rate = None
    wait_until(lambda: not hub.busy)
    assert result.code != 0, result.out
    return result


def kept(builder: Builder, tmp_path: Path, names: Iterable[str]) -> dict[str, bytes]:
    """What the builder keeps of these files, finished or not, by their path there."""
    context = tmp_path / "kept"
    context.mkdir(exist_ok=True)
    mount = "--mount=type=cache,id=modelscope,target=/kept"
    lines = ["ARG PYTHON_IMAGE", "FROM ${PYTHON_IMAGE}", "ARG ONCE"]
    lines += [f"RUN {mount} mkdir /held && cp -r /kept/. /held"]
    (context / "Dockerfile").write_text("\n".join(lines) + "\n")
    # Not by --no-cache, with which BuildKit empties the mount.
    builder.build("kept", context=context, ONCE=os.urandom(8).hex())
    with builder.open("kept") as image:
        tree = image.tree("held/")
    return {path: data for path, data in tree.items() if any(name in path for name in names)}


# --- secrets ------------------------------------------------------------------------------------


def test_token_is_nowhere_in_the_image_nor_in_what_the_builder_keeps(
    builder: Builder, hub: Hub, store: Store, tmp_path: Path
) -> None:
    store.add(MODEL, {"config.json": b"{}"}, private=True)
    secret, token = token_file(tmp_path, store)
    for name, target in (("secret", ()), ("secret-weights", ("--target", "weights"))):
        build(builder, name, hub, *target, secret=secret)
        with builder.open(name) as image:
            assert image.tree("").keys() & {"main/config.json", "app/model/main/config.json"}
            assert image.search(token) == set()
            assert not [path for path in image.members() if "modelscope" in path.lower()]
    if isinstance(builder, Buildah):  # an engine keeps its storage to itself
        kept = run("grep", "-rlF", token, builder.root, check=False)
        assert (kept.code, kept.out) == (1, "")


@pytest.mark.parametrize("number", [None, *HOW.values()], ids=["failure", *HOW])
def test_token_is_nowhere_on_the_builders_disk_after_a_build_that_broke(
    builder: Builder, hub: Hub, store: Store, tmp_path: Path, number: int | None
) -> None:
    if isinstance(builder, Buildah):
        builder("rm", "--all")  # what a killed build of another test left
    secret, token = token_file(tmp_path, store)
    files = large_model(store, "alice/secret", private=True)
    if number is None:
        args = {"SPEC_DRAFT_MODEL_ID": "alice/nowhere", "MODEL_ID": "alice/secret"}
        result = build(builder, "broken-off", hub, secret=secret, check=False, **args)
    else:
        result = break_off(builder, hub, "alice/secret", number, secret=secret)
    assert result.code != 0
    assert token not in result.out
    if isinstance(builder, Buildah):  # an engine keeps its storage to itself
        if number == signal.SIGKILL:  # the one that `--force-rm` can't help
            builder("rm", "--all")
        found = run("grep", "-rlF", token, builder.root, check=False)
        assert (found.code, found.out) == (1, "")
        assert builder("containers", "--quiet").out == ""
    held = kept(builder, tmp_path, files)
    assert held
    with builder.open("kept") as image:
        assert image.search(token) == set()
    build(builder, "secret", hub, MODEL_ID="alice/secret", secret=secret)


@pytest.mark.parametrize(
    "leak",
    [
        "{run} cp {file} /login",
        "{run} cp {file} /login\nRUN rm /login",
        "{run} touch /$(cat {file})",
        "{run} base64 -w0 {file} >/login",
        "ENV MODELSCOPE_API_TOKEN={token}",
        "RUN : {token}",
    ],
    ids=["file", "removed file", "file name", "base64", "variable", "history"],
)
def test_search_finds_the_token_in_an_image_that_leaks(
    builder: Builder, store: Store, tmp_path: Path, leak: str
) -> None:
    secret, token = token_file(tmp_path, store)
    folder = tmp_path / "leaks"
    folder.mkdir()
    words = {"run": "RUN --mount=type=secret,id=modelscope_token", "token": token}
    leak = leak.format(file="/run/secrets/modelscope_token", **words)
    (folder / "Dockerfile").write_text(f"ARG PYTHON_IMAGE\nFROM ${{PYTHON_IMAGE}}\n{leak}\n")
    builder.build("leaks", "--no-cache", context=folder, secret=secret)  # no other test's token
    with builder.open("leaks") as image:
        assert image.search(token)
        assert not image.search(store.add_user("bob"))


# --- serving ------------------------------------------------------------------------------------


def test_model_is_served_without_a_network_by_an_unprivileged_user(
    builder: Builder, hub: Hub, model: dict[str, bytes], serve_image: str
) -> None:
    build(builder, "served", hub, SERVE_IMAGE=builder.ref(serve_image))
    with builder.open("served") as image, builder.open(serve_image) as alone:
        config, before = image.config["config"], alone.config["config"]
    for key in ("Entrypoint", "Cmd", "User", "WorkingDir"):
        assert config[key] == before[key], key
    here = hub.url.removeprefix("http://")
    words = [*config["Entrypoint"], config["Cmd"][0], here, "192.0.2.1:443"]
    offline = builder.run("served", *words, network=False, user=NOBODY)
    assert offline.code == 0, offline.out
    said = json.loads(offline.lines[-1])
    assert (said["user"], said["missing"]) == (65534, [])
    index = json.loads(model["model.safetensors.index.json"])["weight_map"]
    assert said["tensors"].keys() == index.keys()
    assert said["text"] == SENTENCES[0]
    assert set(said["connections"]) <= {"ENETUNREACH", "ECONNREFUSED"}
    reached = builder.run("served", *words[:-1], network=True, user=NOBODY)
    assert json.loads(reached.lines[-1])["connections"] == ["reached"]


# --- what an edit costs -------------------------------------------------------------------------


def test_edit_outside_the_build_rebuilds_nothing(
    builder: Builder, hub: Hub, model: dict[str, bytes], context: Path
) -> None:
    build(builder, "edited", hub, context=context)
    before, requests = builder.image_id("edited"), len(hub.log)
    for name in ("README.md", "upload_model.py", "tests/conftest.py", ".ci/run"):
        with (context / name).open("a") as file:
            file.write("\n# edited\n")
    (context / "model").mkdir()
    (context / "model/big.safetensors").write_bytes(os.urandom(1 << 20))
    build(builder, "edited", hub, context=context)
    assert (builder.image_id("edited"), len(hub.log)) == (before, requests)
    with (context / "download_model.py").open("a") as file:  # the hub would have noticed
        file.write("\n# edited\n")
    build(builder, "edited", hub, context=context)
    assert len(hub.log) > requests


def test_edit_of_the_serve_stage_or_its_base_moves_no_byte_from_the_hub(
    builder: Builder, hub: Hub, model: dict[str, bytes], context: Path, serve_image: str
) -> None:
    build(builder, "stage", hub, context=context)
    before, requests = builder.image_id("stage"), len(hub.log)
    build(builder, "stage", hub, context=context, SERVE_IMAGE=builder.ref(serve_image))
    with (context / "Dockerfile").open("a") as file:
        file.write("LABEL edited=yes\n")
    build(builder, "stage", hub, context=context, SERVE_IMAGE=builder.ref(serve_image))
    assert builder.image_id("stage") != before
    assert len(hub.log) == requests
    with builder.open("stage") as image:
        assert image.config["config"]["Labels"]["edited"] == "yes"
        assert image.tree("app/model/main/") == model


@pytest.mark.parametrize("again", [("--no-cache",), ("--build-arg", "REFRESH=today")])
def test_moving_master_is_looked_at_again_when_asked(
    builder: Builder, hub: Hub, store: Store, again: tuple[str, ...]
) -> None:
    weights = ("--target", "weights")
    store.add(MODEL, {"config.json": b"old"})
    build(builder, "moving", hub, *weights)
    before, requests = builder.image_id("moving"), len(hub.log)
    store.add(MODEL, {"config.json": b"new"})
    build(builder, "moving", hub, *weights)
    assert (builder.image_id("moving"), len(hub.log)) == (before, requests)
    result = build(builder, "moving", hub, *weights, *again)
    assert ("Successfully installed" in result.out) == ("--no-cache" in again)
    with builder.open("moving") as image:
        assert image.tree("") == {"main/config.json": b"new"}


def test_draft_that_failed_is_tried_again_when_asked(
    builder: Builder, hub: Hub, store: Store, model: dict[str, bytes]
) -> None:
    args = {"SPEC_DRAFT_MODEL_ID": "alice/late", "SPEC_DRAFT_OPTIONAL": "1"}
    for day, held in (("1", {}), ("1", {}), ("2", {"config.json": b"late"})):
        build(builder, "late", hub, REFRESH=day, **args)
        with builder.open("late") as image:
            assert image.tree("app/model/draft/") == held
            assert image.tree("app/model/main/") == model
        store.add("alice/late", {"config.json": b"late"})


def test_build_context_is_the_files_that_the_build_copies(
    builder: Builder, context: Path, tmp_path: Path
) -> None:
    (context / "model").mkdir()
    (context / "model/big.safetensors").write_bytes(b"big")
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text("FROM scratch\nCOPY . /\n")
    builder.build("context", "-f", dockerfile, context=context)
    with builder.open("context") as image:
        assert image.members().keys() == {"requirements.txt", "download_model.py"}


# --- the same again, and elsewhere --------------------------------------------------------------


def test_rebuild_from_nothing_gives_the_weights_the_same_digest(
    builder: Builder, hub: Hub, model: dict[str, bytes], draft: dict[str, bytes]
) -> None:
    digests = []
    for again in ((), ("--no-cache",), ("--build-arg", "KEEP_UNFINISHED=")):
        sent = hub.sent()
        build(builder, "same", hub, "--target", "weights", *again, SPEC_DRAFT_MODEL_ID=DRAFT)
        assert hub.sent() > sent
        with builder.open("same") as image:
            digests += image.digests
    assert len(digests) == 3
    assert len(set(digests)) == 1


def test_rebuild_with_the_builders_flag_gives_the_last_layer_the_same_digest(
    builder: Builder, hub: Hub, store: Store
) -> None:
    if not builder.same_times:
        pytest.skip(f"{builder.name} has no such flag that every version of it knows")
    store.add(MODEL, {"model.safetensors": os.urandom(1000)})  # no layer of a build without it
    digests = set()
    for again in ((), ("--no-cache",)):
        build(builder, "same", hub, *builder.same_times, *again)
        with builder.open("same") as image:
            digests.add(tuple(image.digests))
    assert len(digests) == 1


def test_second_pull_after_a_change_outside_the_weights_moves_kilobytes(
    builder: Builder, hub: Hub, store: Store, tmp_path: Path
) -> None:
    if not isinstance(builder, Buildah):
        pytest.skip("the second machine is a second storage of buildah's")
    if not (os.environ.get("IMAGE_BUILDER") or shutil.which("docker-registry")):
        pytest.skip("needs docker-registry")
    weights = os.urandom(3_000_000)
    store.add(MODEL, {"model.safetensors": weights})
    other = Buildah(tmp_path / "other")
    moved = []
    with contextlib.closing(other), registry(tmp_path) as proxy:
        address = f"docker://127.0.0.1:{proxy.port}/model"
        for script in ("first", "second"):
            serve_script(builder, tmp_path / script, script)
            args = {"SERVE_IMAGE": builder.ref("script")}
            build(builder, "pushed", hub, *builder.same_times, **args)
            builder("push", "--tls-verify=false", builder.ref("pushed"), address)
            proxy.count()
            other("pull", "--policy", "always", "--tls-verify=false", address)
            moved.append(proxy.count())
            other("tag", address.removeprefix("docker://"), other.ref("pulled"))
            with other.open("pulled") as image:
                assert image.tree("app/")["serve.py"].decode() == script
                assert image.tree("app/")["model/main/model.safetensors"] == weights
    assert moved[0] > len(weights)
    assert 0 < moved[1] < 10_000


def serve_script(builder: Builder, folder: Path, script: str) -> None:
    """Build an image that is a serve script and nothing else."""
    folder.mkdir()
    (folder / "serve.py").write_text(script)
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY serve.py /app/\n")
    builder.build("script", *builder.same_times, context=folder)
