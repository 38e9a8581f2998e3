"""Two builders, each with a storage of its own: a Docker engine with BuildKit, and buildah.

Each has a command `docker`, so the commands of the README run as they stand, and a base image made
from Debian's packages, so nothing is pulled.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.hub import Hub
from tests.support.client import Client, Result, tree, wait_until

BASE = "python:3.12-slim"  # what the Dockerfile and the README name
DEBIAN = "python3,python3-pip,ca-certificates"
# By the Debian package that has it. The engine comes first, as the one that is missed most.
TOOLS = {"docker.io": "dockerd"} | {t: t for t in ("buildah", "debootstrap", "docker-registry")}
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


def find_missing() -> str:
    """Say what to install, and as whom to run the tests, or nothing if all is there."""
    missing = [package for package, tool in TOOLS.items() if not shutil.which(tool)]
    if sys.platform != "linux" or os.geteuid():
        return "images are built and run by root on Debian"
    return f"run: apt-get install {' '.join(missing)}" if missing else ""


def run(*command: object) -> str:
    """Run a command that has to succeed, and return what it prints."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def start(log: Path, ready: str, *command: object) -> subprocess.Popen[bytes]:
    """Start a service in a process group of its own, and wait until its log says `ready`."""
    with log.open("w") as file:
        words = [str(word) for word in command]
        service = subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True)
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
    layers: list[Path]

    @property
    def digests(self) -> list[str]:
        return self.config["rootfs"]["diff_ids"]

    def held(self, folder: str = "") -> dict[str, bytes]:
        """The files whose path begins with `folder`, by the rest of their path."""
        files = {}
        for layer in self.layers:
            with tarfile.open(layer) as tar:
                for entry in tar:
                    if entry.isfile() and entry.name.startswith(folder):
                        files[entry.name.removeprefix(folder)] = tar.extractfile(entry).read()
        return files

    def places(self, text: str) -> list[str]:
        """Where a text is: in layers, or in the configuration, which has the history."""
        layers = [path.name for path in self.layers if text.encode() in path.read_bytes()]
        return layers + ["configuration"] * (text in json.dumps(self.config))


class Builder:
    """A folder `root` with a storage, and a command `docker` in `root / "bin"`."""

    def __init__(self, root: Path, command: str, options: str, export: str) -> None:
        self.root, self.bin = root, root / "bin"
        self.bin.mkdir(parents=True)
        shim = SHIM.format(command=command, options=options, export=export)
        (self.bin / "docker").write_text(shim)
        (self.bin / "docker").chmod(0o755)

    def __call__(self, *words: object) -> str:
        return run(self.bin / "docker", *words)

    def save(self, tag: str, file: Path) -> None:
        """Write an image as `docker save` does."""
        raise NotImplementedError

    def image(self, tag: str = "my-model") -> Image:
        folder = Path(tempfile.mkdtemp(dir=self.root))
        self.save(tag, folder / "image.tar")
        run("tar", "-xf", folder / "image.tar", "-C", folder)
        (folder / "image.tar").unlink()
        [manifest] = json.loads((folder / "manifest.json").read_text())
        config = json.loads((folder / manifest["Config"]).read_text())
        return Image(config, [folder / layer for layer in manifest["Layers"]])

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
    """An engine of its own, without a network of its own."""

    def __init__(self, root: Path) -> None:
        socket = f"unix://{root}/docker.sock"
        export = f"export DOCKER_HOST={socket} DOCKER_BUILDKIT=1"
        super().__init__(root, "/usr/bin/docker", "--network host", export)
        off = ("--iptables=false", "--ip6tables=false", "--ip-forward=false", "--bridge=none")
        own = (f"--data-root={root}/data", f"--exec-root={root}/exec", f"--pidfile={root}/pid")
        command = ("dockerd", *off, *own, f"--host={socket}")
        self.engine = start(root / "log", "API listen on", *command)

    def make_base(self) -> None:
        make_tree(self.root / "debian")
        run("tar", "-cf", self.root / "base.tar", "-C", self.root / "debian", ".")
        self("import", self.root / "base.tar", BASE)
        shutil.rmtree(self.root / "debian")

    def save(self, tag: str, file: Path) -> None:
        self("save", "--output", file, tag)

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

    def save(self, tag: str, file: Path) -> None:
        self("push", "--quiet", tag, f"docker-archive:{file}")


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

    def break_off(self, command: str, when: Callable[[], object], number: signal.Signals) -> None:
        """Start a build, and send a signal to all of its processes as soon as `when()` holds."""
        process = self.start("bash", "-ec", command)
        wait_until(lambda: when() or process.poll() is not None, DEADLINE)
        os.killpg(process.pid, number)
        process.communicate(timeout=DEADLINE)
        assert process.returncode != 0


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
        command = ("docker-registry", "serve", folder / "registry.json")
        self.service = start(log, "listening on", *command)
        self.address = re.search(r"listening on (.*?:\d+)", log.read_text())[1]

    def tags(self, name: str) -> dict[str, str]:
        """The tags of an image, and the digest that each of them stands for."""
        links = self.storage.glob(f"**/{name}/_manifests/tags/*/current/link")
        return {link.parts[-3]: link.read_text() for link in links}

    def close(self) -> None:
        self.service.terminate()
        self.service.wait(60)
