"""What the Dockerfile promises: images built against the stand-in hub, by real builders."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import re
import shlex
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.hub import Hub, Store
from tests.support.builders import BASE, LOOPBACK, Buildah, Clone, Docker, Image, Registry, run
from tests.support.client import ROOT, Result, lay, wait_until
from tests.support.jobs import EXAMPLES, FINGERPRINT, shell
from tests.support.readme import README, blocks

pytestmark = [pytest.mark.gate, pytest.mark.timeout(600)]

FILES = ("Dockerfile", ".dockerignore", "requirements.txt", "download_model.py", FINGERPRINT)
# The block that builds an image and checks it.
QUICK_START = r"^```sh\n(docker build .*?)^```"
# Nothing but a file, so that a layer of it is small.
SCRIPT = b"FROM scratch\nCOPY serve.py /app/\n"
SECRET = ("--secret", "id=modelscope_token,env=MODELSCOPE_API_TOKEN")
SIZE = 12_000_000  # bytes of the model whose build is broken off
LARGE = 32 << 20  # a larger file is in one of the nine layers

# A serve image as users have them: a script, a folder of its user's, an entrypoint, a command.
SERVE_IMAGE = "vllm/vllm-openai:v0.25.0"
SERVE = f"""
FROM {BASE}
RUN mkdir -m 750 /app && chown 1000:1000 /app
WORKDIR /srv
COPY serve.py ./
USER 65534:65534
ENTRYPOINT ["python"]
CMD ["/srv/serve.py"]
"""

# Reads the model as a server would, and tries to connect to the hub, at the port that is given.
SERVER = """
import json, os, pathlib, socket, sys
model = pathlib.Path(os.environ["MODEL_DIR"])
print(json.dumps({
    "user": os.getuid(),
    "model": {path.name: path.read_text() for path in model.iterdir()},
    "draft": os.path.isdir(os.environ["DRAFT_DIR"]),
    "app": [os.stat("/app").st_uid, os.stat("/app").st_mode & 0o777],
    "offline": [os.environ["HF_HUB_OFFLINE"], os.environ["TRANSFORMERS_OFFLINE"]],
    "error": socket.socket().connect_ex(("127.0.0.1", int(sys.argv[1]))),
}))
"""

# An image whose Python has an owner: old versions, Debian's marker, no `python`, a user, a command.
OWN_PYTHON = f"""
FROM {BASE}
RUN pip install requests==2.28.2 filelock==3.9.0 'urllib3<2' && pip freeze >/before && \
    touch /usr/lib/python3.11/EXTERNALLY-MANAGED && rm /usr/bin/python
USER 65534
ENTRYPOINT ["false"]
"""


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    with contextlib.closing(Docker(tmp_path_factory.mktemp("docker"))) as docker:
        docker.make_base()
        yield docker


@pytest.fixture(scope="module")
def buildah(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    with contextlib.closing(Buildah(tmp_path_factory.mktemp("buildah"))) as buildah:
        docker.save(BASE, docker.root / "base.tar")
        buildah("pull", "--quiet", f"docker-archive:{docker.root}/base.tar")
        yield buildah


@pytest.fixture
def clone(request: pytest.FixtureRequest, hub: Hub, tmp_path: Path) -> Iterator[Clone]:
    """A clone on a machine with Docker, unless a test asks for another builder."""
    builder = request.getfixturevalue(getattr(request, "param", "docker"))
    with contextlib.closing(Clone(tmp_path, hub, builder)) as clone:
        lay(clone.work, {name: (ROOT / name).read_bytes() for name in FILES})
        yield clone


def add_token(store: Store, clone: Clone, owner: str = "alice") -> str:
    """A token of a user, in the variable that the README names."""
    token = clone.env["MODELSCOPE_API_TOKEN"] = store.add_user(owner)
    return token


def large(seed: int, size: int = LARGE + 1) -> bytes:
    """The bytes of a file that a registry gets as 130 kB."""
    return random.Random(seed).randbytes(100_000) + bytes(size - 100_000)


def add(store: Store, model: str, *weights: bytes) -> dict[str, bytes]:
    """Add a model of weights and a configuration; return its files."""
    files = {f"{i}.safetensors": data for i, data in enumerate(weights)}
    store.add(model, files | {"nested/config.json": model.encode()})
    return files | {"nested/config.json": model.encode()}


def baked(image: Image) -> dict[str, bytes]:
    """The files of the models in an image, whose list of digests has to name exactly these."""
    files = image.held("model/")
    listed = files.pop("SHA256SUMS").decode()
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert listed == "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    return files


def inspect(clone: Clone, tag: str = "my-model") -> dict:
    """What Docker says of an image, which it need not save for that."""
    return json.loads(clone.docker("inspect", tag))[0]


def readme_build(word: str) -> str:
    """The one command of the README that builds with `word`, on a line of its own or in one."""
    commands = re.findall(r"(?:^|`)(docker build [^`\n]+ \.)(?:`|$)", README, re.MULTILINE)
    [command] = {command for command in commands if word in command}
    return command


def assert_fails(result: Result, code: int, line: str) -> None:
    """Assert that the build failed, and that its log shows the script's own code and line."""
    assert result.code != 0
    assert re.search(rf"exit (code:|status) {code}\b", result.err)
    assert line in result.err


# --- what an image holds --------------------------------------------------------------------------


def test_quick_start_builds_both_models_and_finds_them_intact(clone: Clone, store: Store) -> None:
    [commands] = re.search(QUICK_START, README, re.MULTILINE | re.DOTALL).groups()
    models = {"draft": "Qwen/Qwen3-0.6B", "main": "Qwen/Qwen3-8B"}
    for model in models.values():
        store.add(model, {"config.json": model.encode()})
    assert clone.sh(commands).out == "intact\n"
    expected = {f"{folder}/config.json": model.encode() for folder, model in models.items()}
    assert baked(clone.docker.image()) == expected


def test_models_alone_are_copied_by_another_dockerfile_and_come_once_for_two_platforms(
    clone: Clone, hub: Hub, store: Store
) -> None:
    store.add("Qwen/Qwen3-0.6B", {"config.json": b"{}"})
    clone.sh(readme_build("scratch"))
    held = clone.docker.image("my-weights").held()
    assert sorted(held) == ["model/SHA256SUMS", "model/main/config.json"]
    line = re.search("`(COPY --from=my-weights .*?)`", README)[1]
    lay(clone.work, {"own/Dockerfile": f"FROM scratch\n{line}\n".encode()})
    clone.sh("docker build -t my-model own")
    assert baked(clone.docker.image()) == {"main/config.json": b"{}"}
    sent = hub.sent()
    clone.sh(readme_build("scratch").replace(" build", " build --platform linux/arm64"))
    assert clone.docker.image("my-weights").config["architecture"] == "arm64"
    assert hub.sent() == sent


def test_revisions_are_those_that_are_named_in_labels_too(clone: Clone, store: Store) -> None:
    for name in ("alice/main", "alice/draft"):
        store.add(name, {"config.json": b"master"})
        store.add(name, {"config.json": name.encode()}, revision="v1.0")
    models = {"MODEL_ID": "alice/main", "SPEC_DRAFT_MODEL_ID": "alice/draft"}
    revisions = {"MODEL_REVISION": "v1.0", "SPEC_DRAFT_MODEL_REVISION": "v1.0"}
    clone.build(**models, **revisions)
    expected = {"main/config.json": b"alice/main", "draft/config.json": b"alice/draft"}
    image = clone.docker.image()
    assert baked(image) == expected
    labels = {*image.config["config"]["Labels"].items()}
    assert {("modelscope.model", "alice/main"), ("modelscope.revision", "v1.0")} < labels
    assert {("modelscope.draft", "alice/draft"), ("modelscope.draft_revision", "v1.0")} < labels


def test_serve_image_stays_as_it_is_and_serves_without_a_network(
    clone: Clone, hub: Hub, store: Store
) -> None:
    for name in ("Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B"):
        store.add(name, {"config.json": b"{}"})
    lay(clone.work, {"serve/Dockerfile": SERVE.encode(), "serve/serve.py": SERVER.encode()})
    clone.sh(f"docker build -t {SERVE_IMAGE} serve")
    clone.sh(readme_build("SERVE_IMAGE=vllm"))
    before, config = (inspect(clone, tag)["Config"] for tag in (SERVE_IMAGE, "my-model"))
    for key in ("Entrypoint", "Cmd", "User", "WorkingDir"):
        assert config[key] == before[key]
    serve = shlex.join(["my-model", *config["Cmd"], hub.url.split(":")[2]])
    offline = json.loads(clone.sh(f"docker run --rm --network none {serve}").out)
    assert offline.pop("error") in {errno.ENETUNREACH, errno.ECONNREFUSED}
    assert offline.pop("app") == [1000, 0o750]
    model = {"user": 65534, "model": {"config.json": "{}"}, "draft": True, "offline": ["1", "1"]}
    assert offline == model
    online = json.loads(clone.sh(f"docker run --rm --network host {serve}").out)
    assert online == model | {"app": [1000, 0o750], "error": 0}


def test_optional_draft_that_fails_is_left_out_and_tried_again_with_another_refresh(
    clone: Clone, store: Store
) -> None:
    store.add("alice/served", {"config.json": b"{}"})
    args = {"MODEL_ID": "alice/served", "SPEC_DRAFT_MODEL_ID": "alice/late"}
    log = clone.build(**args, SPEC_DRAFT_OPTIONAL="1", REFRESH="1").err
    assert "[spec] Draft model download FAILED (optional, continue): " in log
    image = clone.docker.image()
    assert baked(image) == {"main/config.json": b"{}"}
    assert not any("draft" in entry.name for _, entry, _ in image.members())
    assert "DRAFT_DIR=/model/draft" in image.config["config"]["Env"]
    store.add("alice/late", {"config.json": b"late"})
    clone.build(**args, SPEC_DRAFT_OPTIONAL="1", REFRESH="2")
    assert baked(clone.docker.image()) == {"main/config.json": b"{}", "draft/config.json": b"late"}


# --- layers ---------------------------------------------------------------------------------------


def test_large_files_are_spread_fairly_over_layers_that_are_those_of_any_builder(
    clone: Clone, buildah: Buildah, store: Store
) -> None:
    main = add(store, "alice/main", *(large(i, LARGE + i) for i in range(11)))  # 0 isn't larger
    draft = add(store, "alice/draft", large(20), large(21))
    args = {"MODEL_ID": "alice/main", "SPEC_DRAFT_MODEL_ID": "alice/draft"}
    clone.build(**args)
    image = clone.docker.image()
    expected = {f"main/{name}": data for name, data in main.items()}
    assert baked(image) == expected | {f"draft/{name}": data for name, data in draft.items()}
    spread: list[list[str]] = [[] for _ in range(10)]
    for number, entry, _ in image.members():
        assert (entry.mtime, entry.uid, entry.mode & 0o777 in (0o644, 0o755)) == (0, 65530, True)
        if entry.size > LARGE:
            spread[number].append(entry.name.split("/")[1])
    assert [*map(len, spread)] == [2, 1, 1, 1, 1, 1, 1, 2, 2, 0]
    assert ["draft" in names for names in spread] == [False] * 7 + [True] * 2 + [False]
    clone.docker = buildah
    clone.env["PATH"] = f"{buildah.bin}:{clone.env['PATH']}"
    clone.build(**args)
    assert buildah.image().digests == image.digests


def test_new_draft_and_new_base_move_no_byte_of_the_model(
    clone: Clone, store: Store, tmp_path: Path
) -> None:
    main = add(store, "alice/main", large(1), large(2))
    nights = (("first", "alice/one"), ("first", "alice/other"), ("second", "alice/other"))
    drafts = {name: add(store, name, large(len(name))) for _, name in nights[:2]}
    node, moved, layers = Buildah(tmp_path / "node"), [], []
    with contextlib.closing(node), contextlib.closing(Registry(tmp_path)) as hosted:
        name = f"{hosted.address}/model"
        for base, draft in nights:
            lay(clone.work / "script", {"Dockerfile": SCRIPT, "serve.py": base.encode()})
            clone.sh("docker build -t script script")
            # Each is downloaded anew, as on a builder that keeps nothing.
            args = {"MODEL_ID": "alice/main", "SPEC_DRAFT_MODEL_ID": draft, "REFRESH": base}
            clone.build("--tag", name, SERVE_IMAGE="script", **args)
            before = hosted.received(), hosted.sent()
            clone.docker("push", name)
            node("pull", "--quiet", "--policy", "always", "--tls-verify=false", name)
            moved.append((hosted.received() - before[0], hosted.sent() - before[1]))
            image = node.image(name)
            layers.append({*image.digests})
            expected = {f"main/{n}": data for n, data in main.items()}
            assert baked(image) == expected | {f"draft/{n}": d for n, d in drafts[draft].items()}
    assert len(layers[1] - layers[0]) == 2
    assert len(layers[2] - layers[1]) == 1
    assert all(400_000 < size < 500_000 for size in moved[0])
    assert all(130_000 < size < 150_000 for size in moved[1])
    assert all(0 < size < 10_000 for size in moved[2])


# --- builds that fail or break --------------------------------------------------------------------


def test_model_or_draft_that_fails_fails_the_build_with_the_code_of_the_script(
    clone: Clone, store: Store
) -> None:
    store.add("alice/alone", {"config.json": b"{}"})
    result = clone.build(check=False, MODEL_ID="alice/nowhere")
    assert_fails(result, 1, "Model download FAILED: ")
    args = {"MODEL_ID": "alice/alone", "SPEC_DRAFT_MODEL_ID": "alice/nowhere"}
    assert_fails(clone.build(check=False, **args), 2, "[spec] Draft model download FAILED: ")


def break_off(clone: Clone, hub: Hub, store: Store, number: int) -> dict[str, bytes]:
    """Let a signal end the build of a private model when 0.6 of it has come; return its files."""
    model = {f"{i}.safetensors": os.urandom(SIZE // 4) for i in range(4)}
    store.add("alice/broken", model, private=True)
    command = clone.build_command(*SECRET, MODEL_ID="alice/broken", REFRESH=hub.url)
    hub.rate = SIZE / 8
    clone.break_off(command, lambda: hub.sent() >= 0.6 * SIZE, number)
    hub.rate = None
    wait_until(lambda: not hub.busy)
    assert clone.docker.kept("alice/broken")
    return model


@pytest.mark.parametrize(
    ("clone", "number"),
    [("docker", signal.SIGINT), ("docker", signal.SIGKILL), ("buildah", signal.SIGKILL)],
    indirect=["clone"],
)
def test_build_after_a_broken_one_asks_for_the_rest_only_and_clears_the_cache(
    clone: Clone, hub: Hub, store: Store, number: int
) -> None:
    token = add_token(store, clone)
    model = break_off(clone, hub, store, number)
    assert token.encode() not in b"".join(clone.docker.kept("alice/broken"))
    sent = hub.sent()
    clone.build(*SECRET, MODEL_ID="alice/broken")
    assert 0 < hub.sent() - sent < 0.6 * SIZE
    assert baked(clone.docker.image()) == {f"main/{name}": data for name, data in model.items()}
    assert not clone.docker.kept("alice/broken")


def test_file_that_left_the_revision_after_a_broken_build_is_not_in_the_image(
    clone: Clone, hub: Hub, store: Store
) -> None:
    add_token(store, clone)
    break_off(clone, hub, store, signal.SIGINT)
    store.add("alice/broken", {"config.json": b"new"})
    clone.build(*SECRET, MODEL_ID="alice/broken")
    assert baked(clone.docker.image()) == {"main/config.json": b"new"}


# --- secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("clone", ["docker", "buildah"], indirect=True)
def test_private_model_comes_with_the_token_which_no_layer_and_no_cache_holds(
    clone: Clone, store: Store
) -> None:
    token = add_token(store, clone, owner="you")
    store.add("you/private", {"config.json": b"{}"}, private=True)
    log = clone.sh(readme_build("you/private")).err
    assert token not in log
    image = clone.docker.image()
    assert baked(image) == {"main/config.json": b"{}"}
    assert image.search(token) == []
    args = {"MODEL_ID": "you/private", "SPEC_DRAFT_MODEL_ID": "you/nowhere"}
    assert_fails(clone.build(*SECRET, check=False, **args), 2, "[spec] Draft model download FAILED")
    run("bash", "-c", '! grep -rlF "$0" "$1"', token, clone.docker.root)


@pytest.fixture
def own_dockerfile(clone: Clone, hub: Hub, store: Store) -> str:
    """The README's Dockerfile of one's own, and in it where the hub is."""
    store.add("you/private", {"config.json": b"{}"}, private=True)
    [text] = blocks("Images", "dockerfile")
    return text.replace("RUN --mount", f"ENV MODELSCOPE_ENDPOINT={hub.url}\nRUN --mount")


def test_dockerfile_of_ones_own_leaves_no_login_in_the_image(
    clone: Clone, store: Store, own_dockerfile: str
) -> None:
    token = add_token(store, clone, owner="you")
    (clone.work / "Dockerfile").write_text(own_dockerfile)
    clone.sh(readme_build("docker build -t my-model --secret"))
    image = clone.docker.image()
    assert b"{}" in image.held("model/").values()
    assert image.held("login/") == {}
    assert image.search(token) == []


@pytest.mark.parametrize("leak", ["RUN rm -r /login", "ENV MODELSCOPE_API_TOKEN={token}"])
def test_search_finds_the_token_in_an_image_that_leaks(
    clone: Clone, store: Store, own_dockerfile: str, leak: str
) -> None:
    token = add_token(store, clone, owner="you")
    if "login" in leak:
        own_dockerfile = own_dockerfile.replace(" --mount=type=tmpfs,target=/login", "")
    (clone.work / "Dockerfile").write_text(own_dockerfile + leak.format(token=token))
    clone.build(*SECRET)
    assert clone.docker.image().search(token)


# --- what is downloaded, and when -----------------------------------------------------------------


def test_packages_come_from_the_index_that_is_named(clone: Clone) -> None:
    asked: list[str] = []

    class Index(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with ThreadingHTTPServer((LOOPBACK, 0), Index) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://{LOOPBACK}:{server.server_port}/simple"
        result = clone.build(check=False, PIP_INDEX_URL=address)
        server.shutdown()
    assert result.code != 0
    assert asked == ["/simple/modelscope/"]


def test_python_image_with_packages_and_a_user_of_its_own_downloads_and_keeps_them(
    clone: Clone, store: Store
) -> None:
    store.add("alice/small", {"config.json": b"{}"})
    lay(clone.work, {"own/Dockerfile": OWN_PYTHON.encode()})
    clone.sh("docker build -t own-python own")
    clone.build("--target", "download", PYTHON_IMAGE="own-python", MODEL_ID="alice/small")
    freeze = "docker run --rm --network none --entrypoint"
    after = clone.sh(f"{freeze} python3 my-model -m pip freeze").out.splitlines()
    before = clone.sh(f"{freeze} cat my-model /before").out.splitlines()
    assert {"requests==2.28.2", "modelscope==1.40.2"} <= {*after}
    assert {*before} <= {*after}
    assert clone.docker.image().held("layers/0/model/main/") == {"config.json": b"{}"}


def test_nightly_build_downloads_only_when_a_model_has_moved(
    clone: Clone, hub: Hub, store: Store
) -> None:
    [nightly] = [block for block in blocks("In CI", "sh") if FINGERPRINT in block]
    for name in ("Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B"):
        store.add(name, {"config.json": name.encode()})
    clone.sh(nightly)
    before, asked = inspect(clone)["RootFS"], len(hub.log)
    clone.sh(nightly)
    assert [request.route for request in hub.log[asked:]] == ["list", "list"]
    assert inspect(clone)["RootFS"] == before
    store.add("Qwen/Qwen3-0.6B", {"config.json": b"moved"})
    clone.sh(nightly)
    expected = {"main/config.json": b"Qwen/Qwen3-8B", "draft/config.json": b"moved"}
    assert baked(clone.docker.image()) == expected


def test_edit_of_another_file_is_not_seen_by_the_build(clone: Clone) -> None:
    lay(clone.work, {"model/big.safetensors": b"big", "copy": b"FROM scratch\nCOPY . /\n"})
    clone.build("-f", "copy")
    assert clone.docker.image().held().keys() == {"requirements.txt", "download_model.py"}


# --- the jobs of the CI examples ------------------------------------------------------------------


@pytest.mark.parametrize("system", EXAMPLES)
def test_image_job_builds_and_pushes_only_what_the_registry_lacks_as_its_latest(
    clone: Clone, hub: Hub, store: Store, tmp_path: Path, system: str
) -> None:
    token = store.add_user("Qwen")
    script, env = shell(system, "image", token)
    models = [env["MODEL_ID"], env["SPEC_DRAFT_MODEL_ID"]]
    for model in models:
        store.add(model, {"config.json": model.encode()}, private=True)
    lay(clone.work / "script", {"Dockerfile": SCRIPT, "serve.py": b"first"})
    with contextlib.closing(Registry(tmp_path)) as hosted:
        image, base = (f"{hosted.address}/you/{name}" for name in ("your-model", "base"))
        clone.env |= env | {"IMAGE": image, "SERVE_IMAGE": base, "CI_REGISTRY": hosted.address}
        clone.sh(f"docker build -t {base} script && docker push {base}")

        def night(*, check: bool = True) -> tuple[bool, bool, set[str]]:
            """Run the job: whether weights came, layers went, and the tags that there are then."""
            before = hub.sent(), hosted.received()
            result = clone.sh(f"pip() {{ :; }}\n{script}", check=check)
            assert token not in result.out + result.err
            assert check == (result.code == 0)
            tags = hosted.tags("you/your-model")
            return hub.sent() > before[0], hosted.received() > before[1], tags

        came, went, first = night()
        assert (came, went, len(first)) == (True, True, 2)
        assert night() == (False, False, first)
        store.add(models[1], {"config.json": b"moved"}, private=True)
        came, went, second = night()
        assert (came, went, len(second - first)) == (True, True, 1)
        store.add(models[1], {"config.json": models[1].encode()}, private=True)  # and back
        assert night()[2] == second
        manifests = (clone.sh(f"docker manifest inspect {image}:{tag}").out for tag in first)
        assert len({*manifests}) == 1
        lay(clone.work / "script", {"serve.py": b"second"})
        clone.sh(f"docker build -t {base} script && docker push {base}")
        came, went, third = night()
        assert (came, went, len(third - second)) == (False, True, 1)
        del store.models[models[1]]
        assert night(check=False) == (False, False, third)
