"""The CI jobs that readers copy, as far as they need no engine; `test_image.py` runs the others."""

import re

import pytest
import yaml

from tests.hub import Store
from tests.support.cases import DRAFT, FILES, MODEL, posix, uploaded
from tests.support.client import ROOT, SCRIPTS, Client, Result, lay, source
from tests.support.jobs import EXAMPLES, FINGERPRINT, shell
from tests.support.readme import block
from tests.support.real_hub import RealHub

BASE, SMALLER, OWN = "Qwen/Qwen3-1.7B", "Qwen/Qwen3-0.6B", "you/your-model"  # as the jobs have them


@pytest.mark.parametrize("path", [*EXAMPLES.values(), ".github/workflows/ci.yml"])
def test_job_is_valid(client: Client, path: str) -> None:
    schema = "vendor.gitlab-ci" if "gitlab" in path else "vendor.github-workflows"
    result = client.run("check-jsonschema", "--builtin-schema", schema, ROOT / path)
    assert result.code == 0, result


def test_example_builds_at_night_and_uploads_on_a_tag() -> None:
    github, gitlab = (yaml.safe_load(source(path)) for path in EXAMPLES.values())
    assert github[True]["schedule"]  # YAML 1.1 reads `on` as true
    assert [job["if"].split("'")[1] for job in github["jobs"].values()] == ["branch", "tag"]
    assert {"if": '$CI_PIPELINE_SOURCE == "schedule"'} in gitlab["build-image"]["rules"]
    assert gitlab["upload-model"]["rules"] == [{"if": "$CI_COMMIT_TAG"}]
    steps = [step for job in github["jobs"].values() for step in job["steps"]]
    assert not any("${{" in step.get("run", "") for step in steps)  # nothing is pasted in


def test_builds_of_the_jobs_and_of_the_page_are_given_what_the_fingerprint_is_of() -> None:
    names = set(re.findall(r'"((?:MODEL|SPEC_DRAFT)_\w+)"', source(FINGERPRINT)))
    for text in (block(FINGERPRINT), *map(source, EXAMPLES.values())):
        given = set(re.findall(r"--build-arg (\w+)", text))
        assert names | {"MODELSCOPE_ENDPOINT", "REFRESH"} <= given
        assert "--secret id=modelscope_token,env=MODELSCOPE_API_TOKEN" in text
        assert "SPEC_DRAFT_OPTIONAL" not in text


@posix
@pytest.mark.parametrize("system", EXAMPLES)
def test_upload_job_needs_the_script_and_the_model_but_not_the_draft(
    client: Client, store: Store, system: str
) -> None:
    token = store.add_user("you")
    for name, model in ((BASE, FILES), (SMALLER, FILES), (OWN, {})):
        store.add(name, model)
    lay(client.work, {name: source(name).encode() for name in SCRIPTS})
    lay(client.work, {"variables": b"", "awq-out/config.json": b"{}"})
    script, env = shell(system, "upload", token)
    script = f'pip() {{ :; }}\n{script}\necho "draft: $SPEC_DRAFT_MODEL_ID."'

    def run() -> tuple[int, bool, Result]:
        """Run the job; return its code, whether it came to the upload, and all of it."""
        result = client.run("bash", "-ec", script, **env | {"GITHUB_ENV": "./variables"})
        assert token not in result.out + result.err
        return result.code, "Uploading" in result.out, result

    *ends, result = run()
    assert (*ends, result.lines[-1]) == (0, True, f"draft: {SMALLER}."), result
    assert uploaded(store, OWN) == {"config.json": b"{}"}
    del store.models[SMALLER]
    *ends, result = run()
    assert (*ends, result.lines[-1]) == (0, True, "draft: ."), result
    assert "The draft model failed; going on without it." in result.out
    del store.models[BASE]
    assert run()[:2] == (1, False)
    (client.work / "download_model.py").unlink()  # Python exits with 2
    assert run()[:2] == (1, False)


def fingerprint(client: Client, **env: str) -> Result:
    """Run the program on MODEL and DRAFT."""
    names = {"MODEL_ID": MODEL, "SPEC_DRAFT_MODEL_ID": DRAFT}
    return client.run("python", ROOT / FINGERPRINT, **names | env)


def test_fingerprint_changes_with_a_model_not_its_card(
    client: Client, store: Store, token: str
) -> None:
    def state(**env: str) -> str:
        result = fingerprint(client, **env)
        assert (result.code, token in result.err) == (0, False), result
        return result.out

    for name in (MODEL, DRAFT):
        store.add(name, FILES, private=True)
        store.add(name, FILES, revision="v1.0")
    states = [state(), state(MODEL_REVISION="v1.0"), state(SPEC_DRAFT_MODEL_REVISION="v1.0")]
    assert state(MODEL_REVISION="", MODELSCOPE_API_TOKEN=f"{token}\n") == states[0]
    store.add(MODEL, FILES | {"README.md": b"mended", ".gitattributes": b"new"})
    assert state() == states[0]
    assert client.run("modelscope", "login", "--token", token).code == 0  # and from here on
    for name in (MODEL, DRAFT):
        store.add(name, FILES | {"config.json": b"moved"})
        states.append(state(MODELSCOPE_API_TOKEN=" "))
    assert len({*states}) == 5
    assert all(re.fullmatch(r"[0-9a-f]{64}\n", each) for each in states)


def test_fingerprint_finds_a_model_that_only_the_international_site_has(real: RealHub) -> None:
    real.ai.store.add(MODEL, FILES)
    result = real.client.run("python", ROOT / FINGERPRINT, MODEL_ID=MODEL)
    assert re.fullmatch(r"[0-9a-f]{64}\n", result.out), result


@pytest.mark.parametrize("missing", [MODEL, DRAFT])
def test_fingerprint_fails_without_a_list(client: Client, store: Store, missing: str) -> None:
    for name in {MODEL, DRAFT} - {missing}:
        store.add(name, FILES)
    result = fingerprint(client)
    assert (result.code, result.out) == (1, "")
    assert f"{missing}: the file list could not be read: NotExistError(" in result.err
    store.add(missing, {})
    result = fingerprint(client)
    assert (result.code, result.out) == (1, "")
    assert result.err.endswith(f"{missing}: the hub lists no files (revision=master)\n")


def test_fingerprint_shows_no_token_that_cannot_be_one(client: Client) -> None:
    result = fingerprint(client, MODELSCOPE_API_TOKEN="ms-two\nlines")
    assert (result.code, result.out, "lines" in result.err) == (1, "", False)
