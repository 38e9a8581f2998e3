"""The example CI jobs: valid YAML is half of it, so their shell is run here, step by step."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.hub import Hub, Store
from tests.support.client import ROOT, Client, Result, lay, tree
from tests.support.docker import install_docker
from tests.support.download import snapshot

EXAMPLES = {system: ROOT / f".ci/examples/{system}.yml" for system in ("github", "gitlab")}
SCHEMAS = {"github": "vendor.github-workflows", "gitlab": "vendor.gitlab-ci"}
IMAGES = {"github": "ghcr.io/you/your-model", "gitlab": "registry.example/you/your-model"}
SECRET = "${{ secrets.MODELSCOPE_API_TOKEN }}"

MODEL, DRAFT = "Qwen/Qwen3-4B", "Qwen/Qwen3-0.6B"
FILES = {"config.json": b"{}", "tokenizer_config.json": b"{}", "model.safetensors": b"weights"}
IMAGE_WARNING = "The draft model failed; the image is without it."
UPLOAD_WARNING = "The draft model failed; going on without it."


class Pipeline:
    """A CI system on a machine of its own, which runs the jobs of its example as it would."""

    def __init__(self, system: str, client: Client, token: str) -> None:
        self.system = system
        self.client = client
        self.token = token
        self.example: dict[str, Any] = yaml.safe_load(EXAMPLES[system].read_text())
        self.image = install_docker(client)
        self.temporary = client.home / "tmp"
        self.temporary.mkdir()
        self.variables = client.home / "variables"
        for script in ("download_model.py", "upload_model.py"):
            shutil.copy(ROOT / script, client.work)
        pip = client.home / "bin/pip"  # all is installed
        pip.write_text("#!/bin/sh\n")
        pip.chmod(0o755)

    def job(self, name: str) -> dict[str, Any]:
        """The job `image` or `upload`."""
        if self.system == "github":
            return self.example["jobs"][name]
        return self.example[{"image": "build-image", "upload": "upload-model"}[name]]

    def steps(self, name: str) -> Iterator[tuple[str, dict[str, str]]]:
        """The shell of a job, a process each, with the variables that it is given."""
        job = self.job(name)
        if self.system == "gitlab":
            yield "\n".join(job["script"]), self.gitlab_variables()
            return
        given = self.example["env"] | job.get("env", {}) | {"GITHUB_RUN_NUMBER": "7"}
        for step in job["steps"]:
            if "run" in step:
                kept = dict(line.split("=", 1) for line in self.kept_variables())
                yield step["run"], self.resolve(given | step.get("env", {}) | kept)

    def gitlab_variables(self) -> dict[str, str]:
        registry = {"CI_REGISTRY": "registry.example", "CI_REGISTRY_IMAGE": IMAGES["gitlab"]}
        login = {"CI_REGISTRY_USER": "you", "CI_REGISTRY_PASSWORD": "the-password"}
        given = {"MODELSCOPE_API_TOKEN": self.token, "CI_PIPELINE_IID": "7"}
        return self.example["variables"] | registry | login | given

    def resolve(self, variables: dict[str, str]) -> dict[str, str]:
        known = {
            SECRET: self.token,
            "${{ github.actor }}": "you",
            "${{ github.token }}": "the-password",
        }
        return {name: known.get(value, value) for name, value in variables.items()}

    def kept_variables(self) -> list[str]:
        return self.variables.read_text().splitlines() if self.variables.exists() else []

    def run(self, name: str, *, then: str = "") -> Result:
        """Run a job, with a step `then` at its end, until a step fails."""
        out = err = ""
        for script, env in self.steps(name):
            result = self.shell(f"{script}\n{then}", env)
            out, err = out + result.out, err + result.err
            if result.code:
                break
        return Result(result.code, out, err)

    def shell(self, script: str, env: dict[str, str]) -> Result:
        """GitHub's shell has -e, GitLab's also -o pipefail."""
        options = ["-e", *(["-o", "pipefail"] if self.system == "gitlab" else [])]
        paths = {"TMPDIR": str(self.temporary), "GITHUB_ENV": str(self.variables)}
        return self.client.run("bash", *options, "-c", script, **paths, **env)

    def assert_no_token_is_left(self, result: Result) -> None:
        assert tree(self.temporary) == {}
        assert self.token not in result.out + result.err
        kept = tree(self.client.work).items()
        assert not [name for name, content in kept if self.token.encode() in content]


@pytest.fixture(params=["github", "gitlab"])
def pipeline(request: pytest.FixtureRequest, client: Client, store: Store) -> Pipeline:
    store.add("you/your-model")
    return Pipeline(request.param, client, store.add_user("you"))


@pytest.fixture
def model(store: Store) -> None:
    store.add(MODEL, FILES, private=False)


@pytest.fixture
def draft(store: Store) -> None:
    store.add(DRAFT, FILES)


def validate(client: Client, system: str, path: Path) -> int:
    return client.run("check-jsonschema", "--builtin-schema", SCHEMAS[system], path).code


# --- valid --------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", EXAMPLES)
def test_example_is_valid(client: Client, system: str) -> None:
    assert validate(client, system, EXAMPLES[system]) == 0
    broken = client.work / "broken.yml"
    text = EXAMPLES[system].read_text()
    broken.write_text(text.replace("script:", "scripts:").replace("runs-on:", "runs:"))
    assert validate(client, system, broken) != 0


def test_workflow_of_this_project_is_valid_and_runs_the_gate(client: Client) -> None:
    path = ROOT / ".github/workflows/ci.yml"
    assert validate(client, "github", path) == 0
    workflow = yaml.safe_load(path.read_text())
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads `on` as true
    assert workflow["jobs"]["gate"]["steps"][-1] == {"run": ".ci/run"}


@pytest.mark.parametrize("name", ["image", "upload"])
def test_job_has_a_time_limit(pipeline: Pipeline, name: str) -> None:
    job = pipeline.job(name)
    assert job.get("timeout-minutes") == 120 or job.get("timeout") == "2 hours"


def test_image_is_built_on_schedule_too_and_a_tag_uploads() -> None:
    github = yaml.safe_load(EXAMPLES["github"].read_text())
    assert github[True] == {
        "push": {"branches": ["main"], "tags": ["v*"]},
        "schedule": [{"cron": "17 3 * * *"}],
    }
    conditions = {name: job["if"] for name, job in github["jobs"].items()}
    assert conditions["image"] == "github.ref_type == 'branch'"  # a schedule's is the default one
    assert conditions["upload"] == "github.ref_type == 'tag'"
    gitlab = yaml.safe_load(EXAMPLES["gitlab"].read_text())
    assert gitlab["build-image"]["rules"] == [
        {"if": '$CI_PIPELINE_SOURCE == "schedule"'},
        {"if": "$CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH"},
    ]
    assert gitlab["upload-model"]["rules"] == [{"if": "$CI_COMMIT_TAG"}]


def test_github_grants_and_shows_each_step_what_it_needs_and_no_more() -> None:
    text = EXAMPLES["github"].read_text()
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    granted = {name: job.get("permissions") for name, job in workflow["jobs"].items()}
    assert granted == {"image": {"contents": "read", "packages": "write"}, "upload": None}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    shown = [step["name"] for step in steps if SECRET in step.get("env", {}).values()]
    assert shown == ["Build", "Download", "Upload"]
    assert text.count("secrets.") == len(shown)
    assert not [step for step in steps if "${{" in step.get("run", "")]  # nothing is pasted in


# --- the image ----------------------------------------------------------------------------------


def test_image_with_both_models_is_built_and_pushed(
    pipeline: Pipeline, hub: Hub, model: None, draft: None
) -> None:
    result = pipeline.run("image")
    assert result.code == 0, result
    assert IMAGE_WARNING not in result.out
    for name in (MODEL, DRAFT):
        assert tree(snapshot(pipeline.image, name)) == FILES
    assert len(hub.requests("file", "model.safetensors")) == 2  # one for each model
    image = IMAGES[pipeline.system]
    commands = [line for line in result.lines if line.startswith("docker ")]
    assert re.search(rf" --tag {image}:7 --tag {image}:latest \.$", commands[0])
    assert commands[1] == f"docker login {image.split('/')[0]} --username you --password-stdin"
    assert "password: the-password" in result.lines
    assert commands[2] == f"docker push --all-tags {image}"
    pipeline.assert_no_token_is_left(result)


def test_private_model_is_built_with_the_token(
    pipeline: Pipeline, store: Store, draft: None
) -> None:
    store.add(MODEL, FILES, private=True)
    store.users[pipeline.token] = "Qwen"
    result = pipeline.run("image")
    assert result.code == 0, result
    assert tree(snapshot(pipeline.image, MODEL)) == FILES
    pipeline.assert_no_token_is_left(result)


def test_draft_missing_the_image_is_pushed_without_it_and_a_warning_says_so(
    pipeline: Pipeline, model: None
) -> None:
    result = pipeline.run("image")
    assert result.code == 0, result
    assert "[spec] Draft model download FAILED (optional, continue): " in result.out
    assert IMAGE_WARNING in result.out
    assert tree(snapshot(pipeline.image, MODEL)) == FILES
    assert "docker push" in result.out


def test_model_missing_the_job_fails_pushes_nothing_and_leaves_no_token(
    pipeline: Pipeline, draft: None
) -> None:
    result = pipeline.run("image")
    assert result.code == 1, result
    assert "NotExistError" in result.err
    assert "docker " not in result.out
    pipeline.assert_no_token_is_left(result)


# --- the upload ---------------------------------------------------------------------------------


def test_model_is_downloaded_once_and_the_own_folder_uploaded(
    pipeline: Pipeline, store: Store, hub: Hub, model: None, draft: None
) -> None:
    lay(pipeline.client.work / "awq-out", FILES)
    result = pipeline.run("upload")
    assert result.code == 0, result
    assert UPLOAD_WARNING not in result.out
    for name in (MODEL, DRAFT):
        assert tree(snapshot(pipeline.client.work / "model", name)) == FILES
    assert len(hub.requests("file", "model.safetensors")) == 2  # one for each model
    assert tree(store.root / "you/your-model") == FILES
    pipeline.assert_no_token_is_left(result)


def test_draft_missing_the_upload_goes_on_with_a_warning_and_without_the_draft(
    pipeline: Pipeline, store: Store, model: None
) -> None:
    lay(pipeline.client.work / "awq-out", FILES)
    result = pipeline.run("upload", then='echo "draft: $SPEC_DRAFT_MODEL_ID."')
    assert result.code == 0, result
    assert "[spec] Draft model download FAILED: " in result.out
    assert UPLOAD_WARNING in result.out
    assert result.lines[-1] == "draft: ."
    assert tree(store.root / "you/your-model") == FILES


def test_model_missing_the_job_fails_and_uploads_nothing(
    pipeline: Pipeline, store: Store, draft: None
) -> None:
    lay(pipeline.client.work / "awq-out", FILES)
    result = pipeline.run("upload")
    assert result.code == 1, result
    assert "Model download FAILED: " in result.out
    assert UPLOAD_WARNING not in result.out
    assert tree(store.root / "you/your-model") == {}


def test_gitlab_caches_the_folder_and_the_next_run_moves_no_byte(
    client: Client, store: Store, hub: Hub, model: None, draft: None
) -> None:
    store.add("you/your-model")
    pipeline = Pipeline("gitlab", client, store.add_user("you"))
    cache = pipeline.job("upload")["cache"]
    assert (cache["paths"], cache["key"]) == (["model"], "model")  # a key holds no slash
    lay(client.work / "awq-out", FILES)
    assert pipeline.run("upload").code == 0
    sent = hub.sent()
    shutil.rmtree(client.home / ".modelscope")
    assert pipeline.run("upload").code == 0
    assert hub.sent() == sent > 0
