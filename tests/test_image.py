"""What only an engine shows of the Dockerfile: images built against the stand-in hub, for real."""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import Hub, Store
from tests.hub.faults import slow
from tests.support.builders import BASE, Buildah, Builder, Clone, Docker, Registry, make_base, run
from tests.support.client import ROOT, kill, lay, tree, wait_until
from tests.support.jobs import EXAMPLES, FINGERPRINT, shell
from tests.support.readme import block, codes, section

pytestmark = [pytest.mark.gate, pytest.mark.timeout(600)]

COPIED = {"requirements.txt", "download_model.py", ".docker/layers.py"}
FILES = ("Dockerfile", ".dockerignore", *COPIED, FINGERPRINT)
MAIN, DRAFT = "Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B"  # the README's
BOTH = {"MODEL_ID": MAIN, "SPEC_DRAFT_MODEL_ID": DRAFT}

# A serve image as users have them: a user, a folder, an entrypoint, a command.
SERVE = f"""
FROM {BASE}
WORKDIR /srv
USER 65534:65534
ENTRYPOINT ["sh", "-euc"]
CMD ["cat $MODEL_DIR/config.json $DRAFT_DIR/config.json; echo $HF_HUB_OFFLINE$TRANSFORMERS_OFFLINE"]
"""


@pytest.fixture(scope="module")
def builders() -> Iterator[dict[str, Builder]]:
    """Both of them, with the base image, as soon as a test asks for one."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(Docker(Path(folder, "docker"))) as docker,
        contextlib.closing(Buildah(Path(folder, "buildah"))) as buildah,
    ):
        base = make_base(Path(folder, "base"))
        for builder in (docker, buildah):
            builder("build", "-t", BASE, base)
        yield {"docker": docker, "buildah": buildah}


@pytest.fixture(params=["docker"])
def clone(
    request: pytest.FixtureRequest, builders: dict[str, Builder], hub: Hub, tmp_path: Path
) -> Iterator[Clone]:
    """A clone on a machine with Docker, unless a test asks for another builder."""
    with contextlib.closing(Clone(tmp_path, hub, builders[request.param])) as clone:
        lay(clone.work, {name: (ROOT / name).read_bytes() for name in FILES})
        yield clone


on_both = pytest.mark.parametrize("clone", ["docker", "buildah"], indirect=True)


def add(store: Store, *models: str) -> None:
    """Add models, each of a configuration that holds its name."""
    for model in models:
        store.add(model, {"config.json": model.encode()})


def labels(clone: Clone, tag: str = "my-model") -> list[str]:
    found = clone.docker.image(tag)["Config"]["Labels"]
    return [found[f"modelscope.{key}"] for key in ("model", "revision", "draft", "draft_revision")]


# --- what an image holds --------------------------------------------------------------------------


def test_quick_start_builds_both_models_and_finds_them_intact(clone: Clone, store: Store) -> None:
    add(store, MAIN, DRAFT)
    assert clone.sh(block("echo intact")).out.endswith("intact\n")
    files = {"main/config.json": MAIN.encode(), "draft/config.json": DRAFT.encode()}
    assert clone.docker.baked() == files


def test_models_alone_are_copied_by_another_dockerfile_and_come_once_for_two_platforms(
    clone: Clone, hub: Hub, store: Store
) -> None:
    add(store, DRAFT)
    build = block("-t my-weights")
    clone.sh(build)
    [copy] = [code for code in codes(section("The models alone, in three ways")) if "COPY" in code]
    held = clone.docker.export(copy)
    assert held == clone.docker.export("COPY --from=my-weights / /")
    assert held.keys() == {"model/SHA256SUMS", "model/main/config.json"}
    sent = hub.sent()
    clone.sh(build.replace(" build", " build --platform linux/arm64"))
    assert clone.docker.image("my-weights")["Architecture"] == "arm64"
    assert hub.sent() == sent


def test_revisions_that_are_named_come_and_are_in_the_labels(clone: Clone, store: Store) -> None:
    add(store, MAIN, DRAFT)
    store.add(MAIN, {"config.json": b"main"}, revision="v1.0")
    store.add(DRAFT, {"config.json": b"draft"}, revision="v2.0")
    clone.build(**BOTH, MODEL_REVISION="v1.0", SPEC_DRAFT_MODEL_REVISION="v2.0")
    assert {*clone.docker.baked().values()} == {b"main", b"draft"}
    assert labels(clone) == [MAIN, "v1.0", DRAFT, "v2.0"]


def test_serve_image_stays_as_it_is_and_its_user_reads_the_models_without_a_network(
    clone: Clone, store: Store
) -> None:
    add(store, MAIN, DRAFT)
    build = block("-t my-vllm:1")
    base = re.search(r"SERVE_IMAGE=(\S+)", build)[1]
    lay(clone.work, {"own/Dockerfile": SERVE.encode()})
    clone.sh(f"docker build -t {base} own && {build}")
    before, after = (clone.docker.image(tag)["Config"] for tag in (base, "my-vllm:1"))
    for key in ("Entrypoint", "Cmd", "User", "WorkingDir"):
        assert after[key] == before[key]
    assert clone.sh("docker run --rm --network none my-vllm:1").out == f"{MAIN}{DRAFT}11\n"
    assert labels(clone, "my-vllm:1") == [MAIN, "master", DRAFT, "master"]


def test_optional_draft_that_fails_is_left_out_and_tried_again_with_another_refresh(
    clone: Clone, store: Store
) -> None:
    add(store, MAIN)
    log = clone.build(**BOTH, SPEC_DRAFT_OPTIONAL="1", REFRESH="1").err
    assert "[spec] Draft model download FAILED (optional, continue): " in log
    assert clone.docker.baked().keys() == {"main/config.json"}
    add(store, DRAFT)
    clone.build(**BOTH, SPEC_DRAFT_OPTIONAL="1", REFRESH="2")
    assert clone.docker.baked().keys() == {"main/config.json", "draft/config.json"}


def test_layers_are_those_of_any_base_and_builder_and_a_new_draft_leaves_the_others(
    clone: Clone, builders: dict[str, Builder], store: Store
) -> None:
    store.add("alice/main", {"large.safetensors": bytes((32 << 20) + 1)})
    add(store, "alice/one", "alice/other")

    def layers(draft: str, base: str = "scratch") -> list[str]:
        """Build, and return the digests of the ten layers; each is downloaded anew."""
        args = {"MODEL_ID": "alice/main", "SPEC_DRAFT_MODEL_ID": draft, "REFRESH": base}
        clone.build(SERVE_IMAGE=base, **args)
        return clone.docker.layers()[-10:]

    first = layers("alice/one")
    assert len({*first}) == 10  # no two are equal
    assert layers("alice/one", BASE) == first
    assert layers("alice/other")[:-1] == first[:-1]  # all but the one of small files
    clone.use(builders["buildah"])
    assert layers("alice/one") == first


# --- builds that fail or break --------------------------------------------------------------------


@on_both
def test_model_or_draft_that_fails_fails_the_build_with_the_code_of_the_script(
    clone: Clone, store: Store
) -> None:
    for code, line in ((1, "Model download FAILED: "), (2, "[spec] Draft model download FAILED: ")):
        result = clone.build(**BOTH, check=False)
        assert result.code != 0
        assert re.search(rf"exit (code:|status) {code}\b", result.err)
        assert line in result.err
        add(store, MAIN)


@on_both
def test_build_after_a_broken_one_asks_for_the_rest_only_and_clears_the_cache(
    clone: Clone, hub: Hub, store: Store
) -> None:
    model = {"config.json": b"{}", "1.safetensors": b"1", "2.safetensors": bytes(1_000_000)}
    store.add("alice/broken", model)
    hub.queue("file", slow(50_000), file="2.safetensors")
    build = clone.start("docker", "build", "--build-arg=MODEL_ID=alice/broken", ".")
    whole = {"config.json", "1.safetensors"}
    wait_until(lambda: clone.docker.kept("alice/broken") >= whole or build.poll() is not None)
    wait_until(lambda: hub.requests("file", "2.safetensors") or build.poll() is not None)
    kill(build)
    wait_until(lambda: not hub.open)
    asked = len(hub.log)
    clone.build(MODEL_ID="alice/broken")
    assert {r.file for r in hub.log[asked:] if r.route == "file"} == {"2.safetensors"}
    assert clone.docker.baked() == {f"main/{name}": data for name, data in model.items()}
    assert not clone.docker.kept("alice/broken")


def test_file_that_left_the_revision_after_a_failed_build_is_not_in_the_image(
    clone: Clone, store: Store
) -> None:
    store.add(MAIN, {"old.safetensors": b"old"})
    clone.build(**BOTH, check=False)
    assert clone.docker.kept(MAIN) >= {"old.safetensors"}
    add(store, MAIN, DRAFT)
    clone.build(**BOTH)
    assert clone.docker.baked().keys() == {"main/config.json", "draft/config.json"}


@on_both
def test_private_model_comes_with_the_token_which_no_layer_and_no_cache_holds(
    clone: Clone, store: Store
) -> None:
    token = clone.env["MODELSCOPE_API_TOKEN"] = store.add_user("you")
    store.add("you/private", {"config.json": b"private weights"}, private=True)
    log = clone.sh(block("-t my-private")).err
    assert token not in log
    assert clone.docker.baked("my-private") == {"main/config.json": b"private weights"}
    secret = "--secret=id=modelscope_token,env=MODELSCOPE_API_TOKEN"
    clone.build(secret, check=False, MODEL_ID="you/private", SPEC_DRAFT_MODEL_ID="you/nowhere")
    assert "config.json" in clone.docker.kept("you/private")
    # Layers, their history and the cache are all below the builder's folder.
    run("grep", "-rqF", "private weights", clone.docker.root)
    run("bash", "-c", '! grep -rlF "$0" "$1"', token, clone.docker.root)


# --- what is downloaded, and when -----------------------------------------------------------------


def test_python_image_and_package_index_are_those_that_are_named(clone: Clone) -> None:
    log = clone.build(check=False, PYTHON_IMAGE="127.0.0.1:1/own").err  # nothing listens there
    assert "dial tcp 127.0.0.1:1: " in log
    lay(clone.work, {"requirements.txt": b"nowhere"})
    index = {"PIP_INDEX_URL": "http://mirror:1/simple"}
    mirror = "--add-host=mirror:127.0.0.1"
    log = clone.build(mirror, check=False, **index).err
    assert "mirror is not a trusted or secure host" in log
    log = clone.build(mirror, check=False, **index, PIP_TRUSTED_HOST="mirror").err
    assert re.search("connection broken by .*: /simple/nowhere/", log)


def test_nightly_build_downloads_only_when_a_model_has_moved(
    clone: Clone, hub: Hub, store: Store
) -> None:
    nightly = block(FINGERPRINT)
    base, tag = re.findall(r"(?:SERVE_IMAGE=| -t )(\S+)", nightly)
    clone.docker("tag", BASE, base)
    add(store, MAIN, DRAFT)
    clone.sh(nightly)
    before, asked = clone.docker.layers(tag), len(hub.log)
    clone.sh(nightly)
    assert [request.route for request in hub.log[asked:]] == ["list", "list"]
    assert clone.docker.layers(tag) == before
    store.add(DRAFT, {"config.json": b"moved"})
    clone.sh(nightly)
    assert {*clone.docker.baked(tag).values()} == {MAIN.encode(), b"moved"}


def test_edit_of_another_file_is_not_seen_by_the_build(clone: Clone) -> None:
    lay(clone.work, {"model/big.safetensors": b"big", "copy": b"FROM scratch\nCOPY . /\n"})
    clone.sh("docker build -f copy --output seen .")
    assert tree(clone.work / "seen").keys() == COPIED


# --- the jobs of the CI examples ------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with contextlib.closing(Registry(tmp_path)) as registry:
        yield registry


@pytest.mark.parametrize("system", EXAMPLES)
def test_image_job_builds_each_state_once_and_latest_is_the_one_of_the_hub(
    clone: Clone, hub: Hub, store: Store, registry: Registry, system: str
) -> None:
    token = store.add_user("Qwen")
    script, env = shell(system, "image", token)
    image, base = (f"{registry.address}/you/{name}" for name in ("your-model", "base"))
    clone.env |= env | {"IMAGE": image, "SERVE_IMAGE": base, "CI_REGISTRY": registry.address}

    def push_base(content: bytes) -> None:
        lay(clone.work / "own", {"Dockerfile": b"FROM scratch\nCOPY file /\n", "file": content})
        clone.sh(f"docker build -t {base} own && docker push {base}")

    def night(draft: bytes, card: bytes = b"") -> tuple[dict[str, str], bool]:
        """Run the job; return the tags with their digests, and whether it has built."""
        files = {"config.json": draft, "README.md": card}
        store.add(env["SPEC_DRAFT_MODEL_ID"], files if draft else {}, private=True)
        result = clone.sh(f"pip() {{ :; }}\n{script}", check=False)
        assert (result.code == 0, token in result.out + result.err) == (bool(draft), False), result
        return registry.tags("you/your-model"), "load build definition" in result.err

    store.add(env["MODEL_ID"], {"config.json": b"{}"}, private=True)
    push_base(b"one")
    first, built = night(b"first")
    assert (built, len(first), len({*first.values()})) == (True, 2, 1)
    assert night(b"first", b"mended card") == (first, False)
    sent = hub.sent()
    push_base(b"other")
    second, built = night(b"first")
    [tag] = second.keys() - first.keys()
    assert (built, second) == (True, first | {tag: second[tag], "latest": second[tag]})
    assert hub.sent() == sent
    third, built = night(b"second")
    assert (built, len(third)) == (True, 4)
    back = third | {"latest": second[tag]}
    assert night(b"first") == (back, False)
    assert night(b"") == (back, False)  # a model of which the hub lists no files
