"""Two builders, each with a storage of its own: a Docker engine with BuildKit, and buildah.

Each has a command `docker`, so the commands of the README run as they stand, and a base image made
from Debian's packages, so nothing is pulled.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hub import Hub
from tests.support.client import Client, Result, tree, wait_until

BASE = "python:3.12-slim"  # what the Dockerfile and the README name
DEBIAN = "python3,python3-pip,ca-certificates"
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


def make_tree(folder: Path) -> None:
    """Make the file system of BASE, alike to the official one in what matters here."""
    run("debootstrap", "--variant=minbase", f"--include={DEBIAN}", "bookworm", folder)
    for marker in folder.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        marker.unlink()
    (folder / "usr/bin/python").symlink_to("python3")
    (folder / "etc/resolv.conf").write_text("")
    # In a build, pip finds packages as it does here.
    listed = run(sys.executable, "-m", "pip", "config", "list")
    settings = dict(re.findall(r"\.(index-url|cert|trusted-host)='(.+)'$", listed, re.MULTILINE))
    if "cert" in settings:
        shutil.copy(settings["cert"], folder / "etc/pip.pem")
        settings["cert"] = "/etc/pip.pem"
    lines = ["[global]", *(f"{key} = {value}" for key, value in settings.items())]
    (folder / "etc/pip.conf").write_text("\n".join(lines))


@dataclass
class Image:
    """What a builder has saved: an image's configuration, and a tar file for each layer."""

    config: dict
    layers: list[bytes]

    @property
    def digests(self) -> list[str]:
        return self.config["rootfs"]["diff_ids"]

    def held(self, folder: str = "") -> dict[str, bytes]:
        """The files whose path begins with `folder`, by the rest of their path."""
        held = {}
        for layer in self.layers:
            with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
                held |= {e.name: tar.extractfile(e).read() for e in tar if e.isfile()}
        return {k.removeprefix(folder): v for k, v in held.items() if k.startswith(folder)}

    def count(self, text: str) -> int:
        """In how many layers a text is; the configuration, which has the history, is one more."""
        parts = [*self.layers, json.dumps(self.config).encode()]
        return sum(text.encode() in part for part in parts)


class Builder:
    """A folder `root` with a storage, and a command `docker` in `root / "bin"`."""

    save: str  # the words that write an image as `docker save` does

    def __init__(self, root: Path, command: str, options: str, export: str) -> None:
        self.root, self.bin = root, root / "bin"
        self.bin.mkdir(parents=True)
        shim = SHIM.format(command=command, options=options, export=export)
        (self.bin / "docker").write_text(shim)
        (self.bin / "docker").chmod(0o755)

    def __call__(self, words: str) -> str:
        return run(self.bin / "docker", *words.split())

    def image(self, tag: str = "my-model") -> Image:
        file = self.root / "image.tar"
        full = tag if ":" in tag else f"{tag}:latest"  # or all that are called so are saved
        self(self.save.format(tag=full, file=file))
        with tarfile.open(file) as tar:
            [manifest] = json.load(tar.extractfile("manifest.json"))
            config = json.load(tar.extractfile(manifest["Config"]))
            layers = [tar.extractfile(layer).read() for layer in manifest["Layers"]]
        file.unlink()
        return Image(config, layers)

    def kept(self, model_id: str) -> list[bytes]:
        """What broken builds of a model have left in the cache mount, which is in one of these."""
        places = ("buildah-cache*/modelscope", "data/overlay2/*/diff", "data/vfs/dir/*")
        folders = (f for place in places for f in self.root.glob(f"{place}/{model_id}@*"))
        return [data for folder in folders for data in tree(folder).values()]

    def close(self) -> None:
        """Remove all that is here."""
        for line in Path("/proc/mounts").read_text().splitlines()[::-1]:
            if (folder := line.split()[1]).startswith(f"{self.root}/"):
                run("umount", folder)
        shutil.rmtree(self.root)


class Docker(Builder):
    """An engine of its own, without a network of its own, that has the base image."""

    save = "save --output {file} {tag}"

    def __init__(self, root: Path) -> None:
        if not all(map(shutil.which, TOOLS)) or os.geteuid():
            pytest.fail(ADVICE, pytrace=False)
        socket = f"unix://{root}/docker.sock"
        export = f"export DOCKER_HOST={socket} DOCKER_BUILDKIT=1"
        super().__init__(root, "/usr/bin/docker", "--network host", export)
        make_tree(root / "debian")
        run("tar", "-cf", root / "base.tar", "-C", root / "debian", ".")
        off = "--iptables=false --ip6tables=false --ip-forward=false --bridge=none"
        own = f"--data-root={root}/data --exec-root={root}/exec --pidfile={root}/pid"
        command = f"dockerd {off} {own} --host={socket}".split()
        self.engine = start(root / "log", "API listen on", *command)
        self(f"import {root}/base.tar {BASE}")

    def close(self) -> None:
        self.engine.terminate()
        self.engine.wait(60)
        super().close()


class Buildah(Builder):
    """Its `docker build` is what the README says of buildah; the rest are its own commands."""

    save = "push --quiet {tag} docker-archive:{file}"

    def __init__(self, root: Path, docker: Docker) -> None:
        command = f"buildah --root {root}/storage --runroot {root}/run"
        # A build's log goes where Docker's goes.
        options = "--isolation chroot --layers --force-rm --logfile /dev/stderr"
        super().__init__(root, command, options, f"export TMPDIR={root}")
        docker(docker.save.format(tag=BASE, file=root / "base.tar"))
        self(f"pull --quiet docker-archive:{root}/base.tar")


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
        return self.sh(build_command(*options, **args), check=check)


def build_command(*options: str, **args: str) -> str:
    args = {"SERVE_IMAGE": "scratch", **args}
    words = [*options, *(f"--build-arg={name}={value}" for name, value in args.items())]
    return shlex.join(["docker", "build", "-t", "my-model", *words, "."])


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
