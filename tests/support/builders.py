"""The command `docker` of a user's machine: buildah, with a storage and a base image of its own.

So the commands of the README run as they stand, without an engine and without a registry.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.client import Result, tree, wait_until

BASE = "python:3.12-slim"  # what the Dockerfile and the README name; made from Debian's packages
DEBIAN = "python3,python3-pip,ca-certificates"
PATHS = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LOOPBACK = "127.0.0.1"
DEADLINE = 300  # seconds for a command

# Of `docker run`, no more than the README has:
# --rm --network NETWORK [--entrypoint COMMAND] IMAGE [COMMAND] ARGUMENTS
DOCKER = """#!/bin/sh
export TMPDIR={root}
case $1 in
    build)
        shift
        exec {buildah} build --isolation chroot --layers --force-rm {pip} \\
            --build-arg MODELSCOPE_ENDPOINT "$@" >&2 ;;
    run)
        if [ "$4" = none ]; then alone="unshare --net"; fi
        shift 4
        if [ "$1" = --entrypoint ]; then command=$2; shift 2; fi
        container=$({buildah} from --pull-never "$1") && shift
        $alone {buildah} run --isolation chroot "$container" -- $command "$@"
        code=$?
        {buildah} rm "$container" >/dev/null
        exit $code ;;
esac
exit 1
"""


def run(*command: object) -> str:
    """Run a command that has to succeed, and return what it prints."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pip_options(folder: Path) -> list[str]:
    """Let pip find packages in a build as it does here; return the options for that."""
    listed = run(sys.executable, "-m", "pip", "config", "list")
    settings = dict(re.findall(r"\.(index-url|cert|trusted-host)='(.+)'$", listed, re.MULTILINE))
    config = folder / "pip.conf"
    config.write_text("\n".join(["[global]", *(f"{k} = {v}" for k, v in settings.items())]))
    options = ["-v", f"{config}:/etc/pip.conf:ro"]
    if bundle := settings.get("cert"):
        options += ["-v", f"{bundle}:{bundle}:ro"]
    return options


class Docker:
    """Buildah below a folder, and a command `docker` in front of it."""

    def __init__(self, root: Path) -> None:
        root.mkdir(exist_ok=True)
        self.root = root
        self.buildah = ("buildah", "--root", root / "storage", "--runroot", root / "run")
        self.bin = root / "bin"
        self.bin.mkdir()
        command, options = (shlex.join(map(str, w)) for w in (self.buildah, pip_options(root)))
        (self.bin / "docker").write_text(DOCKER.format(root=root, buildah=command, pip=options))
        (self.bin / "docker").chmod(0o755)

    def __call__(self, *words: object) -> str:
        return run(*self.buildah, *words)

    def make_base(self) -> None:
        """Make the image BASE from packages, alike to the official one in what matters here."""
        folder = self.root / "debian"
        run("debootstrap", "--variant=minbase", f"--include={DEBIAN}", "bookworm", folder)
        for marker in folder.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            marker.unlink()
        (folder / "usr/bin/python").symlink_to("python3")
        (folder / "etc/resolv.conf").write_text("")
        container = self("from", "scratch").strip()
        self("add", "--quiet", container, folder, "/")
        self("config", "--env", PATHS, "--cmd", "python3", container)
        self("commit", "--quiet", "--rm", container, BASE)
        shutil.rmtree(folder)

    @contextlib.contextmanager
    def open(self, tag: str = "my-model") -> Iterator[Path]:
        """The root folder of a new container of an image."""
        container = self("from", "--pull-never", tag).strip()
        try:
            yield Path(self("mount", container).strip())
        finally:
            self("rm", container)

    def held(self, folder: str = "", tag: str = "my-model") -> dict[str, bytes]:
        """The files in a folder of an image."""
        with self.open(tag) as root:
            return tree(root / folder)

    def inspect(self, tag: str = "my-model") -> dict:
        """The configuration of an image, and the digests of its layers."""
        return json.loads(self("inspect", "--type", "image", tag))["OCIv1"]

    def layers(self, tag: str = "my-model") -> list[str]:
        return self.inspect(tag)["rootfs"]["diff_ids"]

    def search(self, text: str, tag: str = "my-model") -> list[str]:
        """The layers of an image, or its configuration and history, that hold a text."""
        with tempfile.TemporaryDirectory(dir=self.root) as folder:
            self("push", "--quiet", "--disable-compression", tag, f"dir:{folder}")
            parts = Path(folder).iterdir()
            return [part.name for part in parts if text.encode() in part.read_bytes()]

    def kept(self, model_id: str) -> list[bytes]:
        """What broken builds of a model have left in the builder's cache."""
        folders = self.root.glob(f"buildah-cache*/modelscope/{model_id}@*")
        return [data for folder in folders for data in tree(folder).values()]

    def close(self) -> None:
        for line in Path("/proc/mounts").read_text().splitlines()[::-1]:
            if (folder := line.split()[1]).startswith(f"{self.root}/"):
                run("umount", folder)
        shutil.rmtree(self.root)


@dataclass
class Clone:
    """A folder with the files that a build needs, on a machine that has `docker`."""

    docker: Docker
    folder: Path
    env: dict[str, str]

    def start(self, script: str) -> subprocess.Popen[str]:
        """Start a script in this folder, with a process group of its own."""
        path = f"{self.docker.bin}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "NO_PROXY": LOOPBACK, "no_proxy": LOOPBACK, **self.env}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        words = ["bash", "-ec", script]
        return subprocess.Popen(
            words, cwd=self.folder, env=env, text=True, start_new_session=True, **streams
        )

    def run(self, script: str, *, check: bool = True) -> Result:
        return self.end(self.start(script), check=check)

    def end(self, process: subprocess.Popen[str], *, check: bool = True) -> Result:
        """Wait for the end of a script; the log of a build is on standard error."""
        with process:
            try:
                out, err = process.communicate(timeout=DEADLINE)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        assert process.returncode == 0 or not check, f"{out}\n{err}"
        return Result(process.returncode, out, err)

    def build(self, *options: object, check: bool = True, **args: str) -> Result:
        """Build my-model; `args` are build arguments."""
        return self.run(self.build_command(*options, **args), check=check)

    def build_command(self, *options: object, **args: str) -> str:
        words = [*map(str, options), *(f"--build-arg={k}={v}" for k, v in args.items())]
        return shlex.join(["docker", "build", "-t", "my-model", *words, "."])

    def break_off(self, command: str, when: Callable[[], object], number: int) -> None:
        """Start a build, and send a signal to all of its processes as soon as `when()` holds."""
        process = self.start(command)
        wait_until(lambda: when() or process.poll() is not None, DEADLINE)
        os.killpg(process.pid, number)
        assert self.end(process, check=False).code != 0


@contextlib.contextmanager
def registry(folder: Path) -> Iterator[tuple[str, Callable[[], int]]]:
    """The address of a registry on loopback, and a function: the bytes it has sent so far."""
    storage = {"filesystem": {"rootdirectory": str(folder / "registry")}}
    settings = {"version": "0.1", "storage": storage, "http": {"addr": f"{LOOPBACK}:0"}}
    (folder / "registry.json").write_text(json.dumps(settings))  # JSON is YAML too
    log = folder / "registry.log"
    with log.open("w") as file:
        command = ["docker-registry", "serve", folder / "registry.json"]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: re.search(r"listening on .*:\d+", log.read_text()))
        port = re.search(r"listening on .*:(\d+)", log.read_text())[1]
        sent = re.compile(r'"GET /v2/\S*/blobs/\S* HTTP/1.1" 200 (\d+)')
        yield f"{LOOPBACK}:{port}", lambda: sum(map(int, sent.findall(log.read_text())))
    finally:
        process.terminate()
        process.wait()
