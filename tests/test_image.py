"""What only an engine shows of the Dockerfile: images built against the stand-in hub, for real."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import Hub, Store
from tests.support.builders import BASE, Buildah, Clone, Docker, Registry, build_command, run
from tests.support.client import ROOT, Result, lay, wait_until
from tests.support.jobs import EXAMPLES, FINGERPRINT, shell

pytestmark = [pytest.mark.gate, pytest.mark.timeout(600)]

PAGES = (ROOT / "README.md", *ROOT.glob(".ci/examples/*.md"))
COPIED = {"requirements.txt", "download_model.py", ".docker/layers.py"}
FILES = ("Dockerfile", ".dockerignore", *COPIED, FINGERPRINT)
SECRET = ("--secret", "id=modelscope_token,env=MODELSCOPE_API_TOKEN")
MAIN, DRAFT = "Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B"  # the README's
BROKEN = 12_000_000  # bytes of the model whose build is broken off

# A serve image as users have them: a user, a folder, an entrypoint, a command.
SERVE = f"""
FROM {BASE}
WORKDIR /srv
USER 65534:65534
ENTRYPOINT ["sh", "-euc"]
CMD ["cat $MODEL_DIR/config.json $DRAFT_DIR/config.json; echo $HF_HUB_OFFLINE$TRANSFORMERS_OFFLINE"]
"""

# An image whose Python has an owner: an old version, Debian's marker, no `python`, a user.
OWN_PYTHON = f"""
FROM {BASE}
RUN pip install requests==2.28.2 'urllib3<2' && rm /usr/bin/python && \
    touch /usr/lib/python3.11/EXTERNALLY-MANAGED
USER 65534
"""


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    with contextlib.closing(Docker(tmp_path_factory.mktemp("docker"))) as docker:
        yield docker


@pytest.fixture(scope="module")
def buildah(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    with contextlib.closing(Buildah(tmp_path_factory.mktemp("buildah"), docker)) as buildah:
        yield buildah


@pytest.fixture
def clone(request: pytest.FixtureRequest, hub: Hub, tmp_path: Path) -> Iterator[Clone]:
    """A clone on a machine with Docker, unless a test asks for another builder."""
    builder = request.getfixturevalue(getattr(request, "param", "docker"))
    with contextlib.closing(Clone(tmp_path, hub, builder)) as clone:
        lay(clone.work, {name: (ROOT / name).read_bytes() for name in FILES})
        yield clone


on_both = pytest.mark.parametrize("clone", ["docker", "buildah"], indirect=True)


def add(store: Store, *models: str) -> None:
    """Add models, each of a configuration that holds its name."""
    for model in models:
        store.add(model, {"config.json": model.encode()})


def baked(clone: Clone, tag: str = "my-model") -> dict[str, bytes]:
    """The files of both models in an image."""
    files = clone.docker.image(tag).held("model/")
    del files["SHA256SUMS"]
    return files


def copied(pattern: str) -> str:
    """What a reader copies from our pages, where it stands once, or as often in the same words."""
    pages = "".join(page.read_text("utf-8") for page in PAGES)
    [text] = {*re.findall(pattern, pages, re.MULTILINE | re.DOTALL)}
    return text


def copied_build(word: str) -> str:
    """The one command that builds with `word`, on a line of its own or in one."""
    return copied(rf"(?:^|`)(docker build (?=[^`\n]*{word})[^`\n]+ \.)(?:`|$)")


def assert_fails(result: Result, code: int, line: str) -> None:
    """Assert that the build failed, and that its log shows the script's own code and line."""
    assert result.code != 0
    assert re.search(rf"exit (code:|status) {code}\b", result.err)
    assert line in result.err


# --- what an image holds --------------------------------------------------------------------------


def test_quick_start_builds_both_models_and_finds_them_intact(clone: Clone, store: Store) -> None:
    add(store, MAIN, DRAFT)
    commands = copied(r"^```sh\n(docker build (?:(?!```).)*?sha256sum.*?)^```")
    assert clone.sh(commands).out.endswith("intact\n")
    assert baked(clone) == {"main/config.json": MAIN.encode(), "draft/config.json": DRAFT.encode()}


def test_models_alone_are_copied_by_another_dockerfile_and_come_once_for_two_platforms(
    clone: Clone, hub: Hub, store: Store
) -> None:
    add(store, DRAFT)
    build = copied_build("scratch")
    clone.sh(build)
    held = clone.docker.image("my-weights").held()
    assert held.keys() == {"model/SHA256SUMS", "model/main/config.json"}
    own = f"FROM scratch\n{copied('`(COPY --from=my-weights .*?)`')}\n"
    lay(clone.work, {"own/Dockerfile": own.encode()})
    clone.sh("docker build -t my-model own")
    assert baked(clone) == {"main/config.json": DRAFT.encode()}
    sent = hub.sent()
    clone.sh(build.replace(" build", " build --platform linux/arm64"))
    assert clone.docker.image("my-weights").config["architecture"] == "arm64"
    assert hub.sent() == sent


@pytest.mark.parametrize("revision", ["master", "v1.0"])
def test_revisions_that_are_named_or_master_come_and_are_in_the_labels(
    clone: Clone, store: Store, revision: str
) -> None:
    models = {"MODEL_ID": "alice/main", "SPEC_DRAFT_MODEL_ID": "alice/draft"}
    for name, each in itertools.product(models.values(), ("master", "v1.0")):
        store.add(name, {"config.json": each.encode()}, revision=each)
    named = ("MODEL_REVISION", "SPEC_DRAFT_MODEL_REVISION") if revision != "master" else ()
    clone.build(**models, **dict.fromkeys(named, revision))
    assert {*baked(clone).values()} == {revision.encode()}
    labels = {"model": "alice/main", "revision": revision}
    labels |= {"draft": "alice/draft", "draft_revision": revision}
    expected = {f"modelscope.{name}": value for name, value in labels.items()}
    assert clone.docker.image().config["config"]["Labels"].items() >= expected.items()


def test_serve_image_stays_as_it_is_and_its_user_reads_the_models_without_a_network(
    clone: Clone, store: Store
) -> None:
    add(store, MAIN, DRAFT)
    build = copied_build("SERVE_IMAGE=vllm")
    base = re.search(r"SERVE_IMAGE=(\S+)", build)[1]
    lay(clone.work, {"own/Dockerfile": SERVE.encode()})
    clone.sh(f"docker build -t {base} own && {build}")
    before, after = (clone.docker.image(tag).config["config"] for tag in (base, "my-vllm:1"))
    for key in ("Entrypoint", "Cmd", "User", "WorkingDir"):
        assert after[key] == before[key]
    assert clone.sh("docker run --rm --network none my-vllm:1").out == f"{MAIN}{DRAFT}11\n"


def test_optional_draft_that_fails_is_left_out_and_tried_again_with_another_refresh(
    clone: Clone, store: Store
) -> None:
    add(store, "alice/main")
    args = {"MODEL_ID": "alice/main", "SPEC_DRAFT_MODEL_ID": "alice/late", "SERVE_IMAGE": BASE}
    log = clone.build(**args, SPEC_DRAFT_OPTIONAL="1", REFRESH="1").err
    assert "[spec] Draft model download FAILED (optional, continue): " in log
    look = """docker run --rm --network none my-model sh -c 'ls "$MODEL_DIR" "$DRAFT_DIR"'"""
    result = clone.sh(look, check=False)
    assert result.out == "/model/main:\nconfig.json\n"
    assert "'/model/draft': No such file" in result.err
    add(store, "alice/late")
    clone.build(**args, SPEC_DRAFT_OPTIONAL="1", REFRESH="2")
    assert baked(clone) == {"main/config.json": b"alice/main", "draft/config.json": b"alice/late"}


def test_layers_are_those_of_any_base_and_builder_and_a_new_draft_leaves_the_others(
    clone: Clone, buildah: Buildah, store: Store
) -> None:
    large = [random.Random(i).randbytes(100_000) + bytes(32 << 20) for i in range(4)]
    store.add("alice/main", {"a.safetensors": large[0], "b.safetensors": large[1], "c": b"c"})
    for name, weights in zip(("alice/one", "alice/other"), large[2:], strict=True):
        store.add(name, {"a.safetensors": weights})

    def layers(draft: str, base: str = "scratch") -> list[str]:
        """Build, and return the digests of the ten layers; each is downloaded anew."""
        args = {"MODEL_ID": "alice/main", "SPEC_DRAFT_MODEL_ID": draft, "REFRESH": base}
        clone.build(SERVE_IMAGE=base, **args)
        return clone.docker.image().digests[-10:]

    first = layers("alice/one")
    assert len({*first}) == 10  # no two are equal
    assert layers("alice/one", BASE) == first
    assert len({*layers("alice/other")} - {*first}) == 2  # its weights, and the list of digests
    clone.use(buildah)
    assert layers("alice/one") == first


# --- builds that fail or break --------------------------------------------------------------------


def test_model_or_draft_that_fails_fails_the_build_with_the_code_of_the_script(
    clone: Clone, store: Store
) -> None:
    add(store, "alice/main")
    result = clone.build(check=False, MODEL_ID="alice/nowhere")
    assert_fails(result, 1, "Model download FAILED: ")
    args = {"MODEL_ID": "alice/main", "SPEC_DRAFT_MODEL_ID": "alice/nowhere"}
    assert_fails(clone.build(check=False, **args), 2, "[spec] Draft model download FAILED: ")


def break_off(clone: Clone, hub: Hub, store: Store, number: signal.Signals) -> dict[str, bytes]:
    """Let a signal end the build of a private model when 0.6 of it has come; return its files."""
    token = clone.env["MODELSCOPE_API_TOKEN"] = store.add_user("alice")
    model = {f"{i}.safetensors": os.urandom(BROKEN // 4) for i in range(4)}
    store.add("alice/broken", model, private=True)
    hub.rate = BROKEN / 8
    command = build_command(*SECRET, MODEL_ID="alice/broken", REFRESH=hub.url)
    build = clone.start("bash", "-ec", command)
    wait_until(lambda: hub.sent() >= 0.6 * BROKEN or build.poll() is not None)
    os.killpg(build.pid, number)
    build.communicate()
    hub.rate = None
    wait_until(lambda: not hub.open)
    kept = clone.docker.kept("alice/broken")
    assert kept
    assert token.encode() not in b"".join(kept)
    return model


@on_both
def test_build_after_a_broken_one_asks_for_the_rest_only_and_clears_the_cache(
    clone: Clone, hub: Hub, store: Store
) -> None:
    model = break_off(clone, hub, store, signal.SIGKILL)
    sent = hub.sent()
    clone.build(*SECRET, MODEL_ID="alice/broken")
    assert 0 < hub.sent() - sent < 0.6 * BROKEN
    assert baked(clone) == {f"main/{name}": data for name, data in model.items()}
    assert not clone.docker.kept("alice/broken")


def test_file_that_left_the_revision_after_a_broken_build_is_not_in_the_image(
    clone: Clone, hub: Hub, store: Store
) -> None:
    break_off(clone, hub, store, signal.SIGINT)
    add(store, "alice/broken")
    clone.build(*SECRET, MODEL_ID="alice/broken")
    assert baked(clone) == {"main/config.json": b"alice/broken"}


@on_both
def test_private_model_comes_with_the_token_which_no_layer_and_no_cache_holds(
    clone: Clone, store: Store
) -> None:
    token = clone.env["MODELSCOPE_API_TOKEN"] = store.add_user("you")
    store.add("you/private", {"config.json": b"you/private"}, private=True)
    log = clone.sh(copied_build("you/private")).err
    assert token not in log
    image = clone.docker.image("my-private")
    assert image.count("you/private") == 2  # the model's layer, and a label
    assert image.count(token) == 0
    args = {"MODEL_ID": "you/private", "SPEC_DRAFT_MODEL_ID": "you/nowhere"}
    assert_fails(clone.build(*SECRET, check=False, **args), 2, "[spec] Draft model download FAILED")
    run("grep", "-rqF", "you/private", clone.docker.root)
    run("bash", "-c", '! grep -rlF "$0" "$1"', token, clone.docker.root)


# --- what is downloaded, and when -----------------------------------------------------------------


def test_packages_come_from_the_index_that_is_named_also_without_tls(clone: Clone) -> None:
    index = {"PIP_INDEX_URL": "http://mirror:1/simple"}  # nothing listens there
    mirror = "--add-host=mirror:127.0.0.1"
    log = clone.build(mirror, check=False, **index).err
    assert "mirror is not a trusted or secure host" in log
    log = clone.build(mirror, check=False, **index, PIP_TRUSTED_HOST="mirror").err
    assert re.search("connection broken by .*: /simple/modelscope/", log)


def test_python_image_with_packages_and_a_user_of_its_own_downloads_and_keeps_them(
    clone: Clone, store: Store
) -> None:
    add(store, "alice/main")
    lay(clone.work, {"own/Dockerfile": OWN_PYTHON.encode()})
    clone.sh("docker build -t own-python own")
    clone.build("--target", "download", PYTHON_IMAGE="own-python", MODEL_ID="alice/main")
    assert clone.docker.image().held("layers/0/model/main/").keys() == {"config.json"}
    freeze = "docker run --rm --network none my-model python3 -m pip freeze"
    assert "requests==2.28.2" in clone.sh(freeze).out.splitlines()


def test_nightly_build_downloads_only_when_a_model_has_moved(
    clone: Clone, hub: Hub, store: Store
) -> None:
    nightly = copied(rf"^```sh\n((?:(?!```).)*{FINGERPRINT}.*?)^```")
    [tag] = re.findall(r" -t (\S+)", nightly)
    for base in re.findall(r"SERVE_IMAGE=(\S+)", nightly):
        clone.docker(f"tag {BASE} {base}")
    add(store, MAIN, DRAFT)
    clone.sh(nightly)
    before, asked = clone.docker.image(tag).digests, len(hub.log)
    clone.sh(nightly)
    assert [request.route for request in hub.log[asked:]] == ["list", "list"]
    assert clone.docker.image(tag).digests == before
    store.add(DRAFT, {"config.json": b"moved"})
    clone.sh(nightly)
    assert baked(clone, tag) == {"main/config.json": MAIN.encode(), "draft/config.json": b"moved"}


def test_edit_of_another_file_is_not_seen_by_the_build(clone: Clone) -> None:
    lay(clone.work, {"model/big.safetensors": b"big", "copy": b"FROM scratch\nCOPY . /\n"})
    clone.build("-f", "copy")
    assert clone.docker.image().held().keys() == COPIED


# --- the jobs of the CI examples ------------------------------------------------------------------


@pytest.fixture
def hosted(tmp_path: Path) -> Iterator[Registry]:
    with contextlib.closing(Registry(tmp_path)) as registry:
        yield registry


@pytest.mark.parametrize("system", EXAMPLES)
def test_image_job_builds_each_state_once_and_latest_is_the_one_of_the_hub(
    clone: Clone, hub: Hub, store: Store, hosted: Registry, system: str
) -> None:
    token = store.add_user("Qwen")
    script, env = shell(system, "image", token)
    image, base = (f"{hosted.address}/you/{name}" for name in ("your-model", "base"))
    clone.env |= env | {"IMAGE": image, "SERVE_IMAGE": base, "CI_REGISTRY": hosted.address}

    def push_base(content: bytes) -> None:
        lay(clone.work / "own", {"Dockerfile": b"FROM scratch\nCOPY file /\n", "file": content})
        clone.sh(f"docker build -t {base} own && docker push {base}")

    def night(draft: bytes, card: bytes = b"") -> tuple[dict[str, str], bool]:
        """Run the job; return the tags with their digests, and whether weights came."""
        files = {"config.json": draft, "README.md": card}
        store.add(env["SPEC_DRAFT_MODEL_ID"], files if draft else {}, private=True)
        sent = hub.sent()
        result = clone.sh(f"pip() {{ :; }}\n{script}", check=False)
        assert (result.code == 0, token in result.out + result.err) == (bool(draft), False), result
        return hosted.tags("you/your-model"), hub.sent() > sent

    store.add(env["MODEL_ID"], {"config.json": b"{}"}, private=True)
    push_base(b"one")
    first, came = night(b"first")
    assert (came, len(first), len({*first.values()})) == (True, 2, 1)
    assert night(b"first", b"mended card") == (first, False)
    push_base(b"other")
    second, came = night(b"first")
    [tag] = second.keys() - first.keys()
    assert (came, second) == (False, first | {tag: second[tag], "latest": second[tag]})
    third, came = night(b"second")
    assert (came, len(third)) == (True, 4)
    clone.docker("builder prune --all --force")  # a build would download again
    back = third | {"latest": second[tag]}
    assert night(b"first") == (back, False)
    assert night(b"") == (back, False)  # a model of which the hub lists no files
