"""The CI jobs of the README: valid YAML is half of it, so their shell is run here, step by step."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.hub import Hub, Store
from tests.support.client import ROOT, Client, Result, tree
from tests.support.download import snapshot
from tests.support.readme import blocks

GITHUB, GITLAB = blocks("In a CI job", "yaml")
SCHEMAS = {"github": "vendor.github-workflows", "gitlab": "vendor.gitlab-ci"}
JOBS = [pytest.param("github", id="github"), pytest.param("gitlab", id="gitlab")]

MODEL, DRAFT = "Qwen/Qwen3-4B", "Qwen/Qwen3-0.6B"
FILES = {"config.json": b"{}", "tokenizer_config.json": b"{}", "model.safetensors": b"weights"}
WARNING = "The draft model failed; going on without it."

# Stands in for docker: prints what it was told, and what a build would read of it.
DOCKER = """#!/bin/sh
echo "docker $*"
for word; do
    case $word in id=modelscope_token,src=*) echo "secret: $(cat "${word#*src=}")" ;; esac
done
echo "draft: $SPEC_DRAFT_MODEL_ID"
"""


class Job:
    """A job of the README on a machine of its own, its steps run as the CI system runs them."""

    def __init__(self, system: str, client: Client, token: str) -> None:
        self.system = system
        self.client = client
        self.env = {"MODELSCOPE_API_TOKEN": token, **self.load()[self.key("env", "variables")]}
        self.variables_file = client.work / self.key("github_env", "draft.env")
        self.variables_file.touch()
        for script in ("download_model.py", "upload_model.py"):
            shutil.copy(ROOT / script, client.work)

    def key(self, github: str, gitlab: str) -> str:
        return github if self.system == "github" else gitlab

    def load(self) -> Any:
        return yaml.safe_load(self.key(GITHUB, GITLAB))

    def steps(self) -> dict[str, str]:
        """The shell of each step, by its name."""
        if self.system == "gitlab":
            install, download, upload = self.load()["model"]["script"]
            build = "\n".join(self.load()["build-image"]["script"])
            return {"install": install, "download": download, "upload": upload, "build": build}
        steps = [step for step in self.load()["jobs"]["model"]["steps"] if "run" in step]
        names = ("install", "download", "upload", "build")
        return {name: step["run"] for name, step in zip(names, steps, strict=True)}

    def run(self, *names: str, **env: str) -> Result:
        """Run steps in one shell; on GitHub it has -e, on GitLab also -o pipefail."""
        shell = ["bash", "-e", *self.key("", "-o pipefail").split(), "-c"]
        paths = {"RUNNER_TEMP": str(self.client.home), "GITHUB_ENV": str(self.variables_file)}
        script = "\n".join(self.steps()[name] for name in names)
        return self.client.run(*shell, script, **{**paths, **self.env, **env})

    def variables(self) -> dict[str, str]:
        """What the steps so far have set for those that follow."""
        return dict(line.split("=", 1) for line in self.variables_file.read_text().splitlines())


@pytest.fixture
def job(request: pytest.FixtureRequest, client: Client, store: Store) -> Job:
    store.add("you/your-model")
    return Job(request.param, client, store.add_user("you"))


each_job = pytest.mark.parametrize("job", JOBS, indirect=True)


def validate(client: Client, system: str, path: Path) -> int:
    return client.run("check-jsonschema", "--builtin-schema", SCHEMAS[system], path).code


# --- valid --------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", JOBS)
def test_job_of_the_readme_is_valid(client: Client, system: str) -> None:
    path = client.work / "job.yml"
    path.write_text({"github": GITHUB, "gitlab": GITLAB}[system])
    assert validate(client, system, path) == 0
    path.write_text(path.read_text().replace("script:", "scripts:").replace("runs-on:", "runs:"))
    assert validate(client, system, path) != 0


def test_workflow_of_this_project_is_valid_and_runs_the_gate(client: Client) -> None:
    path = ROOT / ".github/workflows/ci.yml"
    assert validate(client, "github", path) == 0
    workflow = yaml.safe_load(path.read_text())
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads `on` as true
    assert workflow["jobs"]["gate"]["steps"][-1] == {"run": ".ci/run"}


@each_job
def test_job_installs_what_the_project_pins_and_caches_the_folder_it_downloads_to(job: Job) -> None:
    assert job.steps()["install"] == "pip install -r requirements.txt"
    assert "--cache_dir model " in job.steps()["download"]
    if job.system == "gitlab":
        cache = job.load()["model"]["cache"]
        assert (cache["paths"], cache["key"]) == (["model"], "model")  # a key holds no slash
    else:
        steps = job.load()["jobs"]["model"]["steps"]
        [cache] = [s["with"] for s in steps if s.get("uses", "").startswith("actions/cache@")]
        assert cache["path"] == "model"


def test_github_gives_the_token_to_the_steps_that_need_it_alone() -> None:
    steps = yaml.safe_load(GITHUB)["jobs"]["model"]["steps"]
    secret = {"MODELSCOPE_API_TOKEN": "${{ secrets.MODELSCOPE_API_TOKEN }}"}
    given = {step["name"]: step["env"] for step in steps if "env" in step}
    assert given == dict.fromkeys(["Download", "Upload", "Build the image"], secret)
    assert GITHUB.count("secrets.") == len(given)


# --- run ----------------------------------------------------------------------------------------


@each_job
def test_both_models_there_the_job_goes_on(job: Job, client: Client, store: Store) -> None:
    store.add(MODEL, FILES)
    store.add(DRAFT, FILES)
    result = job.run("download")
    assert result.code == 0, result
    assert WARNING not in result.out
    for model in (MODEL, DRAFT):
        assert tree(snapshot(client.work / "model", model)) == FILES
    assert job.variables().get("SPEC_DRAFT_MODEL_ID") in (None, DRAFT)


@each_job
def test_draft_missing_the_job_goes_on_with_a_warning_and_without_the_draft(
    job: Job, client: Client, store: Store
) -> None:
    store.add(MODEL, FILES)
    result = job.run("download")
    assert result.code == 0, result
    assert "[spec] Draft model download FAILED: " in result.out
    assert WARNING in result.out
    assert tree(snapshot(client.work / "model", MODEL)) == FILES
    assert job.variables() == {"SPEC_DRAFT_MODEL_ID": ""}


@each_job
@pytest.mark.parametrize("draft_there", [True, False])
def test_model_missing_the_job_fails(job: Job, store: Store, draft_there: bool) -> None:
    if draft_there:
        store.add(DRAFT, FILES)
    result = job.run("download", CI_COMMIT_TAG="v1")
    assert result.code == 1, result
    assert "Model download FAILED: " in result.out
    assert WARNING not in result.out
    assert job.variables() == {}


@each_job
def test_cached_folder_spares_the_next_run_the_bytes_and_holds_no_token(
    job: Job, client: Client, store: Store, hub: Hub
) -> None:
    store.add(MODEL, FILES)
    store.add(DRAFT, FILES)
    assert job.run("download").code == 0
    sent = hub.sent()
    shutil.rmtree(client.home / ".modelscope")
    assert job.run("download").code == 0
    assert hub.sent() == sent
    token = job.env["MODELSCOPE_API_TOKEN"].encode()
    assert not [name for name, content in tree(client.work / "model").items() if token in content]


@each_job
def test_tag_uploads_the_folder_also_after_a_failed_draft(
    job: Job, client: Client, store: Store
) -> None:
    store.add(MODEL, FILES)
    for name, content in FILES.items():
        path = client.work / "awq-out" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    result = job.run("download", "upload", CI_COMMIT_TAG="v1")
    assert result.code == 0, result
    assert WARNING in result.out
    assert tree(store.root / "you/your-model") == FILES


def test_without_a_tag_nothing_is_uploaded(client: Client, store: Store, hub: Hub) -> None:
    store.add("you/your-model")
    job = Job("gitlab", client, store.add_user("you"))
    assert job.run("upload").code == 0
    assert hub.log == []
    steps = {s.get("name"): s for s in yaml.safe_load(GITHUB)["jobs"]["model"]["steps"]}
    assert steps["Upload"]["if"] == "github.ref_type == 'tag'"


@each_job
def test_image_build_reads_the_token_from_a_file_and_leaves_a_failed_draft_out(
    job: Job, client: Client, store: Store
) -> None:
    store.add(MODEL, FILES)
    assert job.run("download").code == 0
    docker = client.home / "docker"
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    path = f"{client.home}:{client.env['PATH']}"
    result = job.run("build", PATH=path, **job.variables())
    assert result.code == 0, result
    command, secret, draft = result.lines
    assert command.startswith("docker build --secret id=modelscope_token,src=")
    assert command.endswith(
        " --build-arg MODEL_ID --build-arg SPEC_DRAFT_MODEL_ID --tag your-model ."
    )
    assert secret == f"secret: {job.env['MODELSCOPE_API_TOKEN']}"
    assert job.env["MODELSCOPE_API_TOKEN"] not in command
    assert draft == "draft: "
