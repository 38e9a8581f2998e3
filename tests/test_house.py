"""What holds the files together: one set of versions, one test command, a README of it all."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.support.client import ROOT
from tests.support.readme import README

DOCKERFILE = (ROOT / "Dockerfile").read_text()
SCRIPTS = [path.name for path in ROOT.glob("*_model.py")]
ALLOWED = {*SCRIPTS, "tests", "requirements.txt", "Dockerfile", "README.md", "LICENSE"}


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\s*\"?([\w-]+)==([\w.]+)", text, re.MULTILINE))


@pytest.mark.parametrize("script", SCRIPTS)
def test_header_of_a_script_names_the_versions_of_requirements(script: str) -> None:
    header = (ROOT / script).read_text().split("# ///")[1]
    assert '# requires-python = ">=3.10"' in header
    named = dict(re.findall(r'"([\w-]+)==([\w.]+)"', header))
    assert named.keys() == {"modelscope", "modelscope-hub"}
    assert named.items() <= pins((ROOT / "requirements.txt").read_text()).items()


def test_requirements_are_exact_pins_and_those_of_the_tests_agree() -> None:
    for file in ("requirements.txt", "tests/requirements.txt", "tests/requirements-torch.txt"):
        lines = (ROOT / file).read_text().splitlines()
        assert all(re.match(r"#|[\w-]+==[\w.]+", line) for line in lines)
    ours = pins((ROOT / "requirements.txt").read_text())
    assert ours.items() <= pins((ROOT / "tests/requirements.txt").read_text()).items()


def test_readme_names_one_line_to_install_for_a_script_alone_and_its_versions_are_ours() -> None:
    [line] = set(re.findall(r"pip install modelscope\S* [^`\n]*", README))
    named = dict(re.findall(r"([\w-]+)==([\w.]+)", line))
    assert line == "pip install " + " ".join(f"{k}=={v}" for k, v in named.items())
    assert named.keys() == {"modelscope", "modelscope-hub"}
    assert named.items() <= pins((ROOT / "requirements.txt").read_text()).items()


def test_ci_runs_the_test_commands_of_the_readmes() -> None:
    gate, tests_readme = (ROOT / ".ci/run").read_text(), (ROOT / "tests/README.md").read_text()
    assert "&& python -m pytest\n```" in README
    assert "\npython -m pytest\n" in gate
    images = "python -m pytest -n 0 -m gate"
    assert f"\n{images}\n" in tests_readme
    assert f"\n{images}\n" in gate


@pytest.mark.parametrize("script", SCRIPTS)
def test_readme_names_every_option_and_variable(script: str) -> None:
    source = (ROOT / script).read_text()
    options = re.findall(r'"(--[\w-]+)"', source)
    variables = re.findall(r'env\(\s*"(\w+)"|"(MODELSCOPE_\w+)"', source)
    assert options
    for name in [*options, *(a or b for a, b in variables)]:
        assert f"`{name}`" in README or f"`${name}`" in README, name


def test_readme_names_every_build_argument_and_none_is_a_secret() -> None:
    names = re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE)
    assert names
    for name in names:
        assert f"`{name}`" in README, name
        assert not re.search("TOKEN|SECRET|PASSWORD", name)


def test_nothing_else_lies_at_the_top() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= ALLOWED
