"""What the Dockerfile promises: images built against the stand-in hub, by a real builder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import shutil
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.hub import Hub, Store
from tests.support.builders import BASE, LOOPBACK, Clone, Docker, registry, run
from tests.support.client import ROOT, Result, lay, tree, wait_until
from tests.support.readme import README, blocks

pytestmark = [pytest.mark.gate, pytest.mark.timeout(600)]

CONTEXT = ("Dockerfile", ".dockerignore", "requirements.txt", "download_model.py")
WEIGHTS = ("--target", "weights")
# The block that builds and runs, and the output that is shown below it.
QUICK_START = r"^```sh\n(docker build .*?)^```\n\n```\n(.*?)^```$"
# Nothing but a file, so that a layer of it is small.
SCRIPT = b"FROM scratch\nCOPY serve.py /app/\n"
SECRET = ("--secret", "id=modelscope_token,src=../token")
SIZE = 12_000_000  # bytes of the model whose build is broken off

# A serve image as users have them: a script, a user, an entrypoint, a command.
SERVE_IMAGE = "vllm/vllm-openai:latest"
SERVE = f"""
FROM {BASE}
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
    docker = Docker(tmp_path_factory.mktemp("docker"))
    try:
        docker.make_base()
        yield docker
    finally:
        docker.close()


@pytest.fixture
def clone(docker: Docker, hub: Hub, tmp_path: Path) -> Clone:
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in CONTEXT:
        shutil.copy(ROOT / name, folder)
    return Clone(docker, folder, {"HOME": str(tmp_path), "MODELSCOPE_ENDPOINT": hub.url})


def add_token(store: Store, tmp_path: Path, owner: str = "alice") -> str:
    """A token of a user, in the file that the README names."""
    token = store.add_user(owner)
    (tmp_path / "token").write_text(f"{token}\n")
    return token


def readme_build(word: str) -> str:
    """The one command of the README that builds with `word`, on a line of its own or in one."""
    commands = re.findall(r"(?:^|`)(docker build [^`\n]+ \.)(?:`|$)", README, re.MULTILINE)
    [command] = {command for command in commands if word in command}
    return command


def assert_fails(result: Result, code: int, line: str) -> None:
    """Assert that the build failed, and that its log shows the script's own code and line."""
    assert result.code != 0
    assert f"exit status {code}" in result.err
    assert line in result.err


# --- what an image holds --------------------------------------------------------------------------


def test_quick_start_builds_both_models_and_lists_what_the_readme_shows(
    clone: Clone, store: Store
) -> None:
    commands, shown = re.search(QUICK_START, README, re.MULTILINE | re.DOTALL).groups()
    models = {"draft": "Qwen/Qwen3-0.6B", "main": "Qwen/Qwen3-8B"}
    for name in models.values():
        store.add(name, {"config.json": b"{}", "model.safetensors": name.encode()})
    assert clone.run(commands).out == shown
    assert shown.split() == [*models]
    for folder, name in models.items():
        held = clone.docker.held(f"app/model/{folder}")
        assert held == {"config.json": b"{}", "model.safetensors": name.encode()}
    check = re.search(r"`(docker run .*? /app/model/main)`", README)[1]
    assert clone.run(check).out.split() == ["config.json", "model.safetensors"]


def test_weights_are_the_files_alone_and_a_rebuild_gives_the_same_layer(
    clone: Clone, hub: Hub, store: Store
) -> None:
    model = {"model.safetensors": os.urandom(1000), "nested/config.json": b"{}"}
    store.add("Qwen/Qwen3-0.6B", model)
    command = readme_build("--target weights")
    clone.run(command)
    with clone.docker.open("my-weights") as root:
        assert tree(root) == {f"main/{name}": data for name, data in model.items()}
        assert {path.stat().st_mtime for path in (root / "main").rglob("*")} == {0}
    before, sent = clone.docker.layers("my-weights"), hub.sent()
    clone.run(f"{command.removesuffix(' .')} --no-cache .")
    assert hub.sent() == 2 * sent > 0
    assert clone.docker.layers("my-weights") == before


def test_revisions_are_those_that_are_named(clone: Clone, store: Store) -> None:
    for name in ("alice/main", "alice/draft"):
        store.add(name, {"config.json": b"master"})
        store.add(name, {"config.json": name.encode()}, revision="v1.0")
    models = {"MODEL_ID": "alice/main", "SPEC_DRAFT_MODEL_ID": "alice/draft"}
    revisions = {"MODEL_REVISION": "v1.0", "SPEC_DRAFT_MODEL_REVISION": "v1.0"}
    clone.build(*WEIGHTS, **models, **revisions)
    expected = {"main/config.json": b"alice/main", "draft/config.json": b"alice/draft"}
    assert clone.docker.held() == expected


def test_serve_image_stays_as_it_is_and_serves_without_a_network(
    clone: Clone, hub: Hub, store: Store
) -> None:
    store.add("Qwen/Qwen3-0.6B", {"config.json": b"{}"})
    lay(clone.folder, {"serve/Dockerfile": SERVE.encode(), "serve/serve.py": SERVER.encode()})
    clone.run(f"docker build -t {SERVE_IMAGE} serve")
    clone.run(readme_build("SERVE_IMAGE"))
    before, config = (clone.docker.inspect(x)["config"] for x in (SERVE_IMAGE, "my-model"))
    for key in ("Entrypoint", "Cmd", "User", "WorkingDir"):
        assert config[key] == before[key]
    serve = shlex.join(["my-model", *config["Entrypoint"], *config["Cmd"], hub.url.split(":")[2]])
    offline = json.loads(clone.run(f"docker run --rm --network none {serve}").out)
    assert offline.pop("error") in {errno.ENETUNREACH, errno.ECONNREFUSED}
    model = {"user": 65534, "model": {"config.json": "{}"}, "draft": False, "offline": ["1", "1"]}
    assert offline == model
    online = json.loads(clone.run(f"docker run --rm --network host {serve}").out)
    assert online == model | {"error": 0}


def test_optional_draft_that_fails_is_left_out_and_tried_again_with_another_refresh(
    clone: Clone, store: Store
) -> None:
    store.add("alice/served", {"config.json": b"{}"})
    args = {"MODEL_ID": "alice/served", "SPEC_DRAFT_MODEL_ID": "alice/late"}
    log = clone.build(**args, SPEC_DRAFT_OPTIONAL="1", REFRESH="1").err
    assert "[spec] Draft model download FAILED (optional, continue): " in log
    with clone.docker.open() as root:
        assert tree(root / "app/model") == {"main/config.json": b"{}"}
        assert not (root / "app/model/draft").exists()
    assert "DRAFT_DIR=/app/model/draft" in clone.docker.inspect()["config"]["Env"]
    store.add("alice/late", {"config.json": b"late"})
    clone.build(**args, SPEC_DRAFT_OPTIONAL="1", REFRESH="2")
    assert clone.docker.held("app/model/draft") == {"config.json": b"late"}


# --- builds that fail or break --------------------------------------------------------------------


def test_model_or_draft_that_fails_fails_the_build_with_the_code_of_the_script(
    clone: Clone, store: Store
) -> None:
    store.add("alice/alone", {"config.json": b"{}"})
    result = clone.build(check=False, MODEL_ID="alice/nowhere")
    assert_fails(result, 1, "\nModel download FAILED: ")
    args = {"MODEL_ID": "alice/alone", "SPEC_DRAFT_MODEL_ID": "alice/nowhere"}
    assert_fails(clone.build(check=False, **args), 2, "\n[spec] Draft model download FAILED: ")


def break_off(clone: Clone, hub: Hub, store: Store, number: int) -> dict[str, bytes]:
    """Let a signal end the build of a private model when 0.6 of it has come; return its files."""
    model = {f"{i}.safetensors": os.urandom(SIZE // 4) for i in range(4)}
    store.add("alice/broken", model, private=True)
    command = clone.build_command(*SECRET, *WEIGHTS, MODEL_ID="alice/broken", REFRESH=hub.url)
    hub.rate = SIZE / 8
    clone.break_off(command, lambda: hub.sent() >= 0.6 * SIZE, number)
    hub.rate = None
    wait_until(lambda: not hub.busy)
    assert clone.docker.kept("alice/broken")
    return model


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_build_after_a_broken_one_asks_for_the_rest_only_and_clears_the_cache(
    clone: Clone, hub: Hub, store: Store, tmp_path: Path, number: int
) -> None:
    token = add_token(store, tmp_path)
    model = break_off(clone, hub, store, number)
    assert token.encode() not in b"".join(clone.docker.kept("alice/broken"))
    sent = hub.sent()
    clone.build(*SECRET, *WEIGHTS, MODEL_ID="alice/broken")
    assert 0 < hub.sent() - sent < 0.6 * SIZE
    assert clone.docker.held() == {f"main/{name}": data for name, data in model.items()}
    assert not clone.docker.kept("alice/broken")


def test_file_that_left_the_revision_after_a_broken_build_is_not_in_the_image(
    clone: Clone, hub: Hub, store: Store, tmp_path: Path
) -> None:
    add_token(store, tmp_path)
    break_off(clone, hub, store, signal.SIGINT)
    store.add("alice/broken", {"config.json": b"new"})
    clone.build(*SECRET, *WEIGHTS, MODEL_ID="alice/broken")
    assert clone.docker.held() == {"main/config.json": b"new"}


# --- secrets --------------------------------------------------------------------------------------


def test_private_model_comes_with_the_token_which_no_layer_and_no_cache_holds(
    clone: Clone, store: Store, tmp_path: Path
) -> None:
    clone.docker("rm", "--all")  # what a killed build leaves, as the README says
    token = add_token(store, tmp_path, owner="you")
    store.add("you/private", {"config.json": b"{}"}, private=True)
    log = clone.run(readme_build("you/private --secret")).err
    assert token not in log
    assert clone.docker.held("app/model") == {"main/config.json": b"{}"}
    assert clone.docker.search(token) == []
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
    clone: Clone, store: Store, tmp_path: Path, own_dockerfile: str
) -> None:
    token = add_token(store, tmp_path, owner="you")
    (clone.folder / "Dockerfile").write_text(own_dockerfile)
    clone.run(readme_build("docker build -t my-model --secret"))
    assert b"{}" in clone.docker.held("model").values()
    assert clone.docker.held("login") == {}
    assert clone.docker.search(token) == []


@pytest.mark.parametrize("leak", ["RUN rm -r /login", "ENV MODELSCOPE_API_TOKEN={token}"])
def test_search_finds_the_token_in_an_image_that_leaks(
    clone: Clone, store: Store, tmp_path: Path, own_dockerfile: str, leak: str
) -> None:
    token = add_token(store, tmp_path, owner="you")
    if "login" in leak:
        own_dockerfile = own_dockerfile.replace(" --mount=type=tmpfs,target=/login", "")
    (clone.folder / "Dockerfile").write_text(own_dockerfile + leak.format(token=token))
    clone.build(*SECRET)
    assert clone.docker.search(token)


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
    lay(clone.folder, {"own/Dockerfile": OWN_PYTHON.encode()})
    clone.run("docker build -t own-python own")
    clone.build("--target", "download", PYTHON_IMAGE="own-python", MODEL_ID="alice/small")
    freeze = "docker run --rm --network none my-model"
    after = clone.run(f"{freeze} python3 -m pip freeze").out.splitlines()
    before = clone.run(f"{freeze} cat /before").out.splitlines()
    assert {"requests==2.28.2", "modelscope==1.40.2"} <= {*after}
    assert {*before} <= {*after}
    assert clone.docker.held("weights") == {"main/config.json": b"{}"}


RECIPE = next(block for block in blocks("Images", "sh") if "REFRESH=$(" in block)


def test_build_with_the_recipe_downloads_only_when_a_model_has_moved(
    clone: Clone, hub: Hub, store: Store
) -> None:
    for name in ("Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B"):
        store.add(name, {"config.json": name.encode()})
    clone.run(RECIPE)
    before, asked = clone.docker.layers(), len(hub.log)
    clone.run(RECIPE)
    assert [request.route for request in hub.log[asked:]] == ["list", "list"]
    assert clone.docker.layers() == before
    store.add("Qwen/Qwen3-0.6B", {"config.json": b"moved"})
    clone.run(RECIPE)
    assert clone.docker.held("app/model/draft") == {"config.json": b"moved"}


def test_recipe_builds_the_revisions_that_it_has_looked_at_with_a_draft_that_may_be_missing(
    clone: Clone, store: Store
) -> None:
    store.add("Qwen/Qwen3-8B", {"config.json": b"master"})
    store.add("Qwen/Qwen3-8B", {"config.json": b"v1.0"}, revision="v1.0")
    clone.run(f"export MODEL_REVISION=v1.0 SPEC_DRAFT_OPTIONAL=1\n{RECIPE}")
    assert clone.docker.held("app/model") == {"main/config.json": b"v1.0"}
    store.add("Qwen/Qwen3-0.6B", {"config.json": b"master"})
    store.add("Qwen/Qwen3-0.6B", {"config.json": b"v2.0"}, revision="v2.0")
    clone.run(f"export SPEC_DRAFT_MODEL_REVISION=v2.0\n{RECIPE}")
    expected = {"main/config.json": b"master", "draft/config.json": b"v2.0"}
    assert clone.docker.held("app/model") == expected


@pytest.mark.parametrize("broken", ["no model", "no files", "no draft files"])
def test_recipe_fails_and_builds_nothing_when_a_list_cannot_be_had(
    clone: Clone, store: Store, broken: str
) -> None:
    store.add("Qwen/Qwen3-8B", {"config.json": b"{}"} if "draft" in broken else {})
    store.add("Qwen/Qwen3-0.6B", {})
    if broken == "no model":
        del store.models["Qwen/Qwen3-8B"]
    result = clone.run(RECIPE, check=False)
    assert result.code != 0
    assert "Qwen3-8B" in result.err or "draft" in broken
    assert "STEP" not in result.err


@pytest.mark.parametrize("name", ["github", "gitlab"])
def test_example_of_a_pipeline_has_the_recipe_and_gives_the_build_what_it_looks_at(
    name: str,
) -> None:
    example = (ROOT / f".ci/examples/{name}.yml").read_text()
    looked_at = {*re.findall(r"(?:environ\[|getenv\()\"(\w+)\"", RECIPE), "MODELSCOPE_ENDPOINT"}
    for text in (RECIPE, example):
        assert looked_at <= {*re.findall(r"--build-arg (\w+)(?: |$)", text, re.MULTILINE)}
    lines = ["\n".join(map(str.strip, text.splitlines())) for text in (RECIPE, example)]
    assert lines[0].split("\n", 1)[1].split(" && ")[0] in lines[1]


def test_edit_of_another_file_is_not_seen_by_the_build(clone: Clone) -> None:
    lay(clone.folder, {"model/big.safetensors": b"big", "copy": b"FROM scratch\nCOPY . /\n"})
    clone.build("-f", "copy")
    assert clone.docker.held().keys() == {"requirements.txt", "download_model.py"}


def test_second_pull_after_a_change_of_the_server_moves_kilobytes(
    clone: Clone, store: Store, tmp_path: Path
) -> None:
    weights = os.urandom(3_000_000)
    store.add("alice/served", {"model.safetensors": weights})
    other, moved = Docker(tmp_path / "other"), []
    with contextlib.closing(other), registry(tmp_path) as (address, sent):
        for server in (b"first", b"second"):
            lay(clone.folder / "script", {"Dockerfile": SCRIPT, "serve.py": server})
            clone.run("docker build -t script --timestamp 0 script")
            clone.build("--timestamp", "0", SERVE_IMAGE="script", MODEL_ID="alice/served")
            name = f"{address}/model"
            clone.docker("push", "--tls-verify=false", "my-model", f"docker://{name}")
            before = sent()
            other("pull", "--policy", "always", "--tls-verify=false", f"docker://{name}")
            moved.append(sent() - before)
            expected = {"serve.py": server, "model/main/model.safetensors": weights}
            assert other.held("app", name) == expected
    assert moved[0] > len(weights)
    assert 0 < moved[1] < 10_000
