"""The shell of the CI examples, as a runner would have it."""

import yaml

from tests.support.client import ROOT

EXAMPLES = {system: f".ci/examples/{system}.yml" for system in ("github", "gitlab")}
FINGERPRINT = ".ci/examples/fingerprint.py"
# What GitLab sets by itself; GitHub's has it in the steps, in place of what `${{ }}` stands for.
GITLAB = {"CI_REGISTRY_USER": "you", "CI_REGISTRY_PASSWORD": "secret"}
GITHUB = dict.fromkeys(("GITHUB_ENV", "GITHUB_OUTPUT"), "/dev/null")
GITHUB |= {"USER": "you", "PASSWORD": "secret"}


def shell(system: str, name: str, token: str) -> tuple[str, dict[str, str]]:
    """The shell of a job, `image` or `upload`, and the variables that it is run with."""
    example = yaml.safe_load((ROOT / EXAMPLES[system]).read_text("utf-8"))
    [job] = [job for key, job in example.get("jobs", example).items() if name in key]
    own = {"MODELSCOPE_API_TOKEN": token}
    if system == "gitlab":
        env = example["variables"] | job.get("variables", {}) | GITLAB
        return "\n".join(["set -o pipefail", *job["script"]]), env | own
    steps = [step for step in job["steps"] if "run" in step]
    script = [f"({step['run']}\n)\nset -a; . $GITHUB_ENV; set +a" for step in steps]
    env = {k: v for part in (example, job, *steps) for k, v in part.get("env", {}).items()}
    return "\n".join(script), env | GITHUB | own
