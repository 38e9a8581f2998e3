"""Two builders, each with a storage of its own: a Docker engine with BuildKit, and buildah.

Each has a command `docker`, so the commands of the README run as they stand, and a base image made
from Debian's packages, so nothing is pulled.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub import Hub
from tests.support.client import ROOT, Client, Result, lay, tree, wait_until

BASE = "python:3.12-slim"  # what the Dockerfile and the README name
TOOLS = ("dockerd", "buildah", "debootstrap", "docker-registry")
ADVICE = "To build images, be root: apt-get install docker.io buildah debootstrap docker-registry"
DEADLINE = 300  # seconds for a command

# `docker`, which lets a build reach the hub on loopback, and is content with a registry without
# TLS there. Debian's client has BuildKit built in, but no buildx: what CI jobs ask that for, to
# move a tag, is done by a pull and a push.
SHIM = """#!/bin/sh
{export}
case $1 in
    build) shift && set -- build {options} --build-arg MODELSCOPE_ENDPOINT "$@" ;;
    manifest) shift 2 && set -- manifest inspect --insecure "$@" ;;
    buildx) [ "$*" = "buildx imagetools create --prefer-index=false -t $6 $7" ] &&
        {command} pull --quiet "$7" && {command} tag "$7" "$6" && set -- push "$6" ;;
esac
exec {command} "$@"
"""


def run(*command: str | Path) -> str:
    """Run a command that has to succeed, and return what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def start(log: Path, ready: str, *command: str | Path) -> subprocess.Popen[bytes]:
    """Start a service in a process group of its own, and wait until its log says `ready`."""
    with log.open("w") as file:
        service = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    wait_until(lambda: service.poll() is not None or ready in log.read_text())
    assert service.poll() is None, log.read_text()
    return service


def make_base(folder: Path) -> Path:
    """Make what BASE is built from. It is harder on a build than the official image is.

    It has no `python`, a pip that wants to leave Debian's packages alone, and a user.
    """
    # Programs run without being configured, which would take longer than all the rest.
    fetch = ("--download-only", "--variant=minbase", "--include=python3-pip")
    run("debootstrap", *fetch, "bookworm", folder / "packages")
    debian = folder / "debian"
    for package in folder.glob("packages/var/cache/apt/archives/*.deb"):
        run("dpkg-deb", "--extract", package, debian)
    # Builds install what was fetched once, so they need no index, and no settings for one.
    wheels = ("--only-binary=:all:", "--python-version=3.11", "--dest", debian / "wheels")
    run(sys.executable, "-m", "pip", "download", *wheels, "-r", ROOT / "requirements.txt")
    settings = b"[global]\nindex-url = file:///wheels\nfind-links = /wheels\nretries = 1\n"
    lay(debian / "etc", {"pip.conf": settings, "resolv.conf": b""})
    for name in ("passwd", "group"):
        shutil.copy(debian / f"usr/share/base-passwd/{name}.master", debian / "etc" / name)
    base = lay(folder / "base", {"Dockerfile": b"FROM scratch\nADD debian.tar /\nUSER 65534\n"})
    shutil.rmtree(debian / "usr/share")  # most of the files, all for people
    run("tar", "-cf", base / "debian.tar", "-C", debian, ".")
    return base


class Builder:
    """A folder `root` with a storage, and a command `docker` in `root / "bin"`."""

    def __init__(self, root: Path, command: str, options: str, export: str) -> None:
        self.root, self.bin = root, root / "bin"
        shim = SHIM.format(command=command, options=options, export=export)
        lay(self.bin, {"docker": shim.encode()})
        (self.bin / "docker").chmod(0o755)

    def __call__(self, *words: str | Path) -> str:
        return run(self.bin / "docker", *words)

    def export(self, copy: str) -> dict[str, bytes]:
        """The files of an image that has nothing but what the instruction `copy` brings."""
        context = lay(self.root / "own", {"Dockerfile": f"FROM scratch\n{copy}\n".encode()})
        self("build", "--output", self.root / "out", context)
        files = tree(self.root / "out")
        shutil.rmtree(self.root / "out")
        return files

    def baked(self, tag: str = "my-model") -> dict[str, bytes]:
        """The files of both models in an image."""
        files = self.export(f"COPY --from={tag} /model /")
        del files["SHA256SUMS"]
        return files

    def kept(self, model_id: str) -> set[str]:
        """The files that failed builds of a model have left in the cache mount."""
        places = ("buildah-cache*/modelscope", "data/overlay2/*/diff", "data/vfs/dir/*")
        snapshot = f"{model_id}@*/models/*/snapshots/*"
        return {f.name for place in places for f in self.root.glob(f"{place}/{snapshot}/*.*")}

    def close(self) -> None:
        """Unmount what a build has left."""
        for line in Path("/proc/mounts").read_text().splitlines()[::-1]:
            if (folder := line.split()[1]).startswith(f"{self.root}/"):
                run("umount", folder)


class Docker(Builder):
    """An engine of its own, without a network of its own."""

    def __init__(self, root: Path) -> None:
        if not all(map(shutil.which, TOOLS)) or os.geteuid():
            pytest.fail(ADVICE, pytrace=False)
        socket = f"unix://{root}/docker.sock"
        export = f"export DOCKER_HOST={socket} DOCKER_BUILDKIT=1"
        super().__init__(root, "/usr/bin/docker", "--network host", export)
        off = "--iptables=false --ip6tables=false --ip-forward=false --bridge=none"
        own = f"--data-root={root}/data --exec-root={root}/exec --pidfile={root}/pid"
        command = f"dockerd {off} {own} --host={socket}".split()
        self.engine = start(root / "log", "API listen on", *command)

    def image(self, tag: str = "my-model") -> dict:
        """What the engine tells of an image."""
        return json.loads(self("image", "inspect", tag))[0]

    def layers(self, tag: str = "my-model") -> list[str]:
        return self.image(tag)["RootFS"]["Layers"]

    def close(self) -> None:
        self.engine.terminate()
        self.engine.wait(60)
        super().close()


class Buildah(Builder):
    """Its `docker build` is what the README says of buildah; the rest are its own commands."""

    def __init__(self, root: Path) -> None:
        command = f"buildah --root {root}/storage --runroot {root}/run"
        # A build's log goes where Docker's goes.
        options = "--isolation chroot --layers --force-rm --logfile /dev/stderr"
        super().__init__(root, command, options, f"export TMPDIR={root}")

    def layers(self, tag: str = "my-model") -> list[str]:
        return json.loads(self("inspect", "--type=image", tag))["Docker"]["rootfs"]["diff_ids"]


class Clone(Client):
    """A clone of this project on a machine that has `docker`."""

    def __init__(self, folder: Path, hub: Hub, docker: Builder) -> None:
        super().__init__(folder, hub)
        self.use(docker)

    def use(self, docker: Builder) -> None:
        self.docker = docker
        self.env["PATH"] = f"{docker.bin}:{self.env['PATH']}"

    def sh(self, script: str, *, check: bool = True) -> Result:
        """Run a script; the log of a build is on standard error."""
        result = self.run("bash", "-ec", script, timeout=DEADLINE)
        assert result.code == 0 or not check, f"{result.out}\n{result.err}"
        return result

    def build(self, *options: str, check: bool = True, **args: str) -> Result:
        """Build my-model on `scratch`, or on another SERVE_IMAGE; `args` are build arguments."""
        args = {"SERVE_IMAGE": "scratch", **args}
        words = [*options, *(f"--build-arg={name}={value}" for name, value in args.items())]
        return self.sh(shlex.join(["docker", "build", "-t", "my-model", *words, "."]), check=check)


class Registry:
    """A registry on loopback, which keeps what it is sent below a folder."""

    def __init__(self, folder: Path) -> None:
        self.storage, log = folder / "registry", folder / "registry.log"
        storage = {"filesystem": {"rootdirectory": str(self.storage)}}
        settings = {"version": "0.1", "storage": storage, "http": {"addr": "127.0.0.1:0"}}
        (folder / "registry.json").write_text(json.dumps(settings))  # JSON is YAML too
        self.service = start(log, "listening on", TOOLS[-1], "serve", folder / "registry.json")
        self.address = re.search(r"listening on (.*?:\d+)", log.read_text())[1]

    def tags(self, name: str) -> dict[str, str]:
        """The tags of an image, and the digest that each of them stands for."""
        links = self.storage.glob(f"**/{name}/_manifests/tags/*/current/link")
        return {link.parts[-3]: link.read_text() for link in links}

    def close(self) -> None:
        self.service.terminate()
        self.service.wait(60)
