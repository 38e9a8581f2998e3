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
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.hub import Hub
from tests.support.client import Client, Result, tree, wait_until

BASE = "python:3.12-slim"  # what the Dockerfile and the README name
DEBIAN = "python3,python3-pip,ca-certificates"
LOOPBACK = "127.0.0.1"
DEADLINE = 300  # seconds for a command

# `docker`, which lets a build reach the hub on loopback, and is content with a registry without
# TLS there. Debian's own client has BuildKit built in.
SHIM = """#!/bin/sh
{export}
case $1 in
    build) shift && set -- build {options} --build-arg MODELSCOPE_ENDPOINT "$@" ;;
    manifest) shift 2 && set -- manifest inspect --insecure "$@" ;;
esac
exec {command} "$@"
"""


def run(*command: object) -> str:
    """Run a command that has to succeed, and return what it prints."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def start(log: Path, *command: object) -> subprocess.Popen[bytes]:
    """Start a service, in a process group of its own."""
    words = [str(word) for word in command]
    with log.open("w") as file:
        return subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True)


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

    def members(self) -> Iterator[tuple[int, tarfile.TarInfo, bytes]]:
        """What the layers have: a layer's number, an entry, and its bytes."""
        for number, layer in enumerate(self.layers):
            with tarfile.open(layer) as tar:
                for entry in tar:
                    yield number, entry, tar.extractfile(entry).read() if entry.isfile() else b""

    def held(self, folder: str = "") -> dict[str, bytes]:
        """The files whose path begins with `folder`."""
        members = (member for member in self.members() if member[1].name.startswith(folder))
        return {e.name.removeprefix(folder): data for _, e, data in members if e.isfile()}

    def search(self, text: str) -> list[str]:
        """Where a text is: in the configuration, with the history in it, or in a layer."""
        layers = [str(path) for path in self.layers if text.encode() in path.read_bytes()]
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
        log = root / "log"
        self.engine = start(log, "dockerd", *off, *own, f"--host={socket}")
        wait_until(lambda: self.engine.poll() is not None or "API listen on" in log.read_text())
        assert self.engine.poll() is None, log.read_text()

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
        self.docker = docker
        self.env["PATH"] = f"{docker.bin}:{self.env['PATH']}"

    def sh(self, script: str, *, check: bool = True) -> Result:
        """Run a script; the log of a build is on standard error."""
        result = self.run("bash", "-ec", script, timeout=DEADLINE)
        assert result.code == 0 or not check, f"{result.out}\n{result.err}"
        return result

    def build(self, *options: str, check: bool = True, **args: str) -> Result:
        """Build my-model on `scratch`, or on another SERVE_IMAGE; `args` are build arguments."""
        return self.sh(self.build_command(*options, **args), check=check)

    def build_command(self, *options: str, **args: str) -> str:
        args = {"SERVE_IMAGE": "scratch", **args}
        words = [*options, *(f"--build-arg={name}={value}" for name, value in args.items())]
        return shlex.join(["docker", "build", "-t", "my-model", *words, "."])

    def break_off(self, command: str, when: Callable[[], object], number: int) -> None:
        """Start a build, and send a signal to all of its processes as soon as `when()` holds."""
        process = self.start("bash", "-ec", command)
        wait_until(lambda: when() or process.poll() is not None, DEADLINE)
        os.killpg(process.pid, number)
        process.communicate(timeout=DEADLINE)
        assert process.returncode != 0


class Registry:
    """A registry on loopback, which keeps what it is sent below a folder."""

    def __init__(self, folder: Path) -> None:
        self.storage, self.log = folder / "registry", folder / "registry.log"
        storage = {"filesystem": {"rootdirectory": str(self.storage)}}
        settings = {"version": "0.1", "storage": storage, "http": {"addr": f"{LOOPBACK}:0"}}
        (folder / "registry.json").write_text(json.dumps(settings))  # JSON is YAML too
        self.service = start(self.log, "docker-registry", "serve", folder / "registry.json")
        wait_until(lambda: "listening on" in self.log.read_text())
        self.address = re.search(r"listening on (.*?:\d+)", self.log.read_text())[1]

    def sent(self) -> int:
        """The bytes of layers and configurations that clients have pulled so far."""
        lines = r'"GET /v2/\S*/blobs/\S* HTTP/1.1" 200 (\d+)'
        return sum(map(int, re.findall(lines, self.log.read_text())))

    def received(self) -> int:
        """The bytes that clients have pushed so far."""
        return sum(path.stat().st_size for path in self.storage.rglob("*") if path.is_file())

    def tags(self, name: str) -> set[str]:
        return {path.name for path in self.storage.glob(f"**/{name}/_manifests/tags/*")}

    def close(self) -> None:
        self.service.terminate()
        self.service.wait(60)
