"""A `docker` for tests that have no builder: its build downloads what the Dockerfile would."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.client import Client

# Only what the build is given reaches the download, and only into the folder `image`.
DOCKER = """
import os, subprocess, sys, tempfile

words = sys.argv[1:]
print("docker", *words, flush=True)
if words[0] == "login":
    print("password:", sys.stdin.read())
if words[0] != "build":
    sys.exit()
hidden = ("MODEL_ID", "SPEC_", "MODELSCOPE_API_TOKEN")
env = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
for option, value in zip(words, words[1:]):
    if option == "--build-arg":
        name, given, text = value.partition("=")
        env[name] = text if given else os.environ[name]
    if option == "--secret":
        secret = dict(part.split("=", 1) for part in value.split(","))
        assert secret["id"] == "modelscope_token"
        env["MODELSCOPE_API_TOKEN"] = open(secret["src"]).read()
with tempfile.TemporaryDirectory() as env["MODELSCOPE_HOME"]:
    command = [sys.executable, "download_model.py", "--cache_dir", "image"]
    sys.exit(1 if subprocess.run(command, env=env, stdout=sys.stderr).returncode else 0)
"""


def install_docker(client: Client) -> Path:
    """Put `docker` first in the client's PATH, and return the folder that its builds fill."""
    docker = client.home / "bin/docker"
    docker.parent.mkdir(exist_ok=True)
    docker.write_text(f"#!{sys.executable}\n{DOCKER}")
    docker.chmod(0o755)
    client.env["PATH"] = f"{docker.parent}:{client.env['PATH']}"
    return client.work / "image"
