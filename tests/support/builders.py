"""Builders of images, what an image holds, and a registry: what the image tests stand on.

A builder is used as its users do, by its command line. An image is read from the archive that
`docker save` and buildah both write: a config, and a tar for each layer.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import IO

from tests.support.client import ROOT, Result

NAMES = "localhost/image-tests"  # no image of the user's own is called so
DEBIAN = "python3,python3-venv,python3-pip,ca-certificates"
HOST_BUNDLE = "/etc/host-certificates.pem"  # where a build finds the host's own, if it has any
LOOPBACK = "127.0.0.1"


def run(*command: object, check: bool = True, **env: str) -> Result:
    """Run a command; its two streams come as one, in order, as a build log shows them."""
    with start(*command, **env) as process:
        out = process.communicate()[0]
    if check:
        assert process.returncode == 0, f"{process.args}\n{out}"
    return Result(process.returncode, out, "")


def start(*command: object, **env: str) -> subprocess.Popen[str]:
    words = [str(word) for word in command]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
    env = {**os.environ, "NO_PROXY": LOOPBACK, "no_proxy": LOOPBACK, "DOCKER_BUILDKIT": "1", **env}
    return subprocess.Popen(words, env=env, text=True, encoding="utf-8", **streams)


def cancel(process: subprocess.Popen[str], number: int) -> Result:
    """Send a signal to a command and all it started, as Ctrl-C does, and wait for their end."""
    started = descendants(process.pid)
    for pid in (process.pid, *started):
        send_signal(pid, number)
    out = process.communicate(timeout=30)[0]
    for pid in started:
        send_signal(pid, signal.SIGKILL)
    return Result(process.returncode, out, "")


def send_signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def descendants(pid: int) -> list[int]:
    """The processes that `pid` started, and those that they started."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it may just have ended
            children = [int(word) for word in task.read_text().split()]
            found += children + [pid for child in children for pid in descendants(child)]
    return found


class Builder:
    """What the tests ask of a builder."""

    name: str
    base: str
    build_command: tuple[object, ...]
    same_times: tuple[str, ...] = ()  # the options that make all layers reproducible
    env: Mapping[str, str] = MappingProxyType({})

    def ref(self, tag: str) -> str:
        return f"{NAMES}/{tag}"

    def build(self, tag: str, *options: object, check: bool = True, **given: object) -> Result:
        """Build `tag`; what else may be given, `build_words` says."""
        return run(*self.build_words(tag, *options, **given), check=check, **self.env)

    def start(self, tag: str, *options: object, **given: object) -> subprocess.Popen[str]:
        """Start to build `tag`."""
        return start(*self.build_words(tag, *options, **given), **self.env)

    def build_words(
        self,
        tag: str,
        *options: object,
        context: Path = ROOT,
        secret: Path | None = None,
        **args: str,
    ) -> list[object]:
        """The command to build `tag` in `context`; `args` are build arguments, `secret` a file."""
        given = {"PYTHON_IMAGE": self.base, **args}
        words = [word for k, v in given.items() for word in ("--build-arg", f"{k}={v}")]
        if secret:
            words += ["--secret", f"id=modelscope_token,src={secret}"]
        words += ["-t", self.ref(tag)]
        return [*self.build_command, *options, *words, context]

    def image_id(self, tag: str) -> str:
        raise NotImplementedError

    def save(self, tag: str, archive: Path) -> None:
        raise NotImplementedError

    def run(self, tag: str, *command: str, network: bool, user: str) -> Result:
        """Run `command` in a new container of the image; only its user and its network differ."""
        raise NotImplementedError

    def close(self) -> None:
        """Leave nothing behind."""

    @contextlib.contextmanager
    def open(self, tag: str) -> Iterator[Archive]:
        """The image, read from an archive that lasts as long as the block."""
        with tempfile.TemporaryDirectory(prefix="image-") as folder:
            path = Path(folder, "archive.tar")
            self.save(tag, path)
            with tarfile.open(path) as tar:
                yield Archive(tar)


class Docker(Builder):
    """A running Docker engine; the base image comes from where it takes images from."""

    name = "docker"
    build_command = ("docker", "build", "--progress", "plain", "--network", "host")

    def __init__(self) -> None:
        self.base = os.environ.get("PYTHON_IMAGE", "python:3.12-slim")
        self.ids: set[str] = set()

    def build(self, tag: str, *options: object, **given: object) -> Result:
        result = super().build(tag, *options, **given)
        if result.code == 0:
            self.ids.add(self.image_id(tag))
        return result

    def image_id(self, tag: str) -> str:
        return run("docker", "inspect", "--format", "{{.Id}}", self.ref(tag)).out.strip()

    def save(self, tag: str, archive: Path) -> None:
        run("docker", "save", "-o", archive, self.ref(tag))

    def run(self, tag: str, *command: str, network: bool, user: str) -> Result:
        where = "host" if network else "none"
        options = ("--rm", "--network", where, "--user", user, "--entrypoint", command[0])
        return run("docker", "run", *options, self.ref(tag), *command[1:], check=False)

    def close(self) -> None:
        run("docker", "rmi", "--force", *sorted(self.ids), check=False)


class Buildah(Builder):
    """Buildah with a storage of its own, and a base image made from Debian packages."""

    name = "buildah"
    same_times = ("--timestamp", "0")

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base = self.ref("python")
        places = ("--root", root / "storage", "--runroot", root / "run")
        self.command = ("buildah", *places)
        options = ("--isolation", "chroot", "--layers", "--force-rm")
        self.build_command = (*self.command, "build", *options, *mounts(root))
        self.env = {"TMPDIR": f"{root}"}  # the cache mounts of builds are there

    def __call__(self, *words: object, check: bool = True) -> Result:
        return run(*self.command, *words, check=check)

    def make_base(self) -> None:
        """Build an image with Python in it, as there may be no registry to take one from."""
        folder = self.root / "debian"
        run("debootstrap", "--variant=minbase", f"--include={DEBIAN}", "bookworm", folder)
        for marker in folder.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            marker.unlink()  # an official Python image has none
        (folder / "usr/bin/python").symlink_to("python3")
        (folder / "etc/resolv.conf").write_text("")
        for packages in (folder / "var/cache/apt/archives", folder / "var/lib/apt/lists"):
            shutil.rmtree(packages)
        self.commit(folder, self.base)
        shutil.rmtree(folder)

    def commit(self, folder: Path, tag: str) -> None:
        container = self("from", "scratch").out.strip()
        self("add", "--quiet", container, folder, "/")
        paths = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self("config", "--env", paths, "--cmd", "python3", container)
        self("commit", "--quiet", "--rm", container, tag)

    def image_id(self, tag: str) -> str:
        return self(
            "inspect", "--type", "image", "--format", "{{.FromImageID}}", self.ref(tag)
        ).out.strip()

    def save(self, tag: str, archive: Path) -> None:
        self("push", "--quiet", self.ref(tag), f"docker-archive:{archive}:{self.ref(tag)}")

    def run(self, tag: str, *command: str, network: bool, user: str) -> Result:
        container = self("from", "--pull-never", self.ref(tag)).out.strip()
        try:
            alone = () if network else ("unshare", "--net")
            options = ("--isolation", "chroot", "--user", user)
            return run(
                *alone, *self.command, "run", *options, container, "--", *command, check=False
            )
        finally:
            self("rm", container)

    def close(self) -> None:
        for line in Path("/proc/mounts").read_text().splitlines()[::-1]:
            if (folder := line.split()[1]).startswith(f"{self.root}/"):
                run("umount", folder)
        shutil.rmtree(self.root)


def mounts(folder: Path) -> list[str]:
    """The options that let pip find the index in a build as it does here, if that is special."""
    listed = run(sys.executable, "-m", "pip", "config", "list").out
    found = re.findall(r"^[\w:]+\.(index-url|cert|trusted-host)=(.+)$", listed, re.MULTILINE)
    settings = {key: ast.literal_eval(value) for key, value in found}
    if not settings:
        return []
    options = []
    if bundle := settings.get("cert"):
        options += ["-v", f"{bundle}:{HOST_BUNDLE}:ro"]
        settings["cert"] = HOST_BUNDLE
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["[global]", *(f"{key} = {value}" for key, value in settings.items())]
    (folder / "pip.conf").write_text("\n".join(lines) + "\n")
    return [*options, "-v", f"{folder / 'pip.conf'}:/etc/pip.conf:ro"]


def package_index() -> str:
    """The address where pip finds packages here."""
    listed = run(sys.executable, "-m", "pip", "config", "list").out
    found = re.search(r"^[\w:.]+\.index-url='(.+)'$", listed, re.MULTILINE)
    return found[1] if found else "https://pypi.org/simple"


@contextlib.contextmanager
def mirror(name: str) -> Iterator[tuple[str, list[str]]]:
    """A package index on loopback, `name` in its address, and the paths that it was asked for."""
    asked: list[str] = []
    elsewhere = package_index()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(302)
            self.send_header("Location", elsewhere + self.path.removeprefix(f"/{name}/simple"))
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """What was asked for is in `asked`."""

    with ThreadingHTTPServer((LOOPBACK, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{LOOPBACK}:{server.server_port}/{name}/simple", asked
        server.shutdown()


def find_builder() -> str:
    """The builder this machine has, by name; blank when it has none that can be used."""
    if wanted := os.environ.get("IMAGE_BUILDER"):
        return wanted
    if shutil.which("docker") and run("docker", "info", check=False).code == 0:
        return "docker"
    tools = ("buildah", "debootstrap", "unshare")
    return "buildah" if os.geteuid() == 0 and all(map(shutil.which, tools)) else ""


@dataclass
class Archive:
    """An image as `docker save` writes it."""

    tar: tarfile.TarFile
    manifest: dict = field(init=False)
    config: dict = field(init=False)

    def __post_init__(self) -> None:
        [self.manifest] = json.loads(self.read("manifest.json"))
        self.config = json.loads(self.read(self.manifest["Config"]))

    def read(self, name: str) -> bytes:
        return self.file(name).read()

    def file(self, name: str) -> IO[bytes]:
        member = self.tar.getmember(name)
        if member.issym():  # a layer that the image has twice
            name = os.path.normpath(os.path.join(os.path.dirname(name), member.linkname))
        opened = self.tar.extractfile(name)
        assert opened, name
        return opened

    @property
    def digests(self) -> list[str]:
        return self.config["rootfs"]["diff_ids"]

    def layers(self) -> Iterator[tarfile.TarFile]:
        for name in self.manifest["Layers"]:
            with self.file(name) as file, tarfile.open(fileobj=file) as layer:
                yield layer

    def members(self, below: str = "") -> dict[str, tarfile.TarInfo]:
        """What the layers hold, one over the other, by its path; `below` ends with a slash."""
        found: dict[str, tarfile.TarInfo] = {}
        for layer in self.layers():
            entries = ((clean(entry.name), entry) for entry in layer)
            found |= {name: entry for name, entry in entries if name.startswith(below) and name}
        return found

    def tree(self, below: str) -> dict[str, bytes]:
        """The bytes of the files in a folder of the image, by their path there."""
        files: dict[str, bytes] = {}
        for layer in self.layers():
            for entry in layer:
                name = clean(entry.name)
                if name.startswith(below) and entry.isfile():
                    files[name.removeprefix(below)] = layer.extractfile(entry).read()
        return files

    def search(self, secret: str) -> set[str]:
        """Where `secret` stands in the image, be it as it is or encoded, in any of its parts."""
        needles = spellings(secret)
        found = {name for name in self.tar.getnames() if holds(io.BytesIO(name.encode()), needles)}
        for member in filter(tarfile.TarInfo.isfile, self.tar.getmembers()):
            if holds(self.tar.extractfile(member), needles):  # config, history, names, contents
                found.add(member.name)
        for layer in self.layers():
            found |= {entry.name for entry in layer if entry_holds(layer, entry, needles)}
        return found


def clean(name: str) -> str:
    return name.removeprefix("./").strip("/")


def spellings(secret: str) -> set[bytes]:
    """The secret itself, in hex, and what each alignment of base64 makes of it."""
    raw = secret.encode()
    encoded = {base64.b64encode(b"\0" * i + raw)[4:-4] for i in range(3)}
    return {raw, raw.hex().encode(), *encoded}


def holds(file: IO[bytes], needles: set[bytes], size: int = 1 << 22) -> bool:
    """Search a file of any size, also where a needle lies across two reads."""
    overlap = max(map(len, needles))
    kept = b""
    while chunk := file.read(size):
        kept += chunk
        if any(needle in kept for needle in needles):
            return True
        kept = kept[-overlap:]
    return False


def entry_holds(layer: tarfile.TarFile, entry: tarfile.TarInfo, needles: set[bytes]) -> bool:
    """Search what a layer says of a file, and the file; a layer may be a compressed one."""
    words = "\0".join([entry.name, entry.linkname, repr(entry.pax_headers)]).encode()
    if holds(io.BytesIO(words), needles):
        return True
    return entry.isfile() and holds(layer.extractfile(entry), needles)


class Proxy:
    """A TCP proxy on loopback that counts the bytes that come back from what is behind it."""

    def __init__(self, port: int) -> None:
        self.behind = port
        self.moved = 0
        self.lock = threading.Lock()
        self.listener = socket.create_server((LOOPBACK, 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection((LOOPBACK, self.behind))
                for pair in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self.pump, args=pair, daemon=True).start()

    def pump(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):  # either side may go away
            while chunk := source.recv(1 << 16):
                if counts:
                    with self.lock:
                        self.moved += len(chunk)
                sink.sendall(chunk)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def count(self) -> int:
        """The bytes moved since the last count."""
        with self.lock:
            moved, self.moved = self.moved, 0
        return moved


@contextlib.contextmanager
def registry(folder: Path) -> Iterator[Proxy]:
    """A registry on a port that the system picks, behind a proxy that counts."""
    config = folder / "registry.json"  # JSON is YAML too
    storage = {"filesystem": {"rootdirectory": str(folder / "registry")}}
    http = {"addr": f"{LOOPBACK}:0"}
    config.write_text(json.dumps({"version": "0.1", "storage": storage, "http": http}))
    command = ["docker-registry", "serve", str(config)]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **streams) as process:
        try:
            lines = iter(process.stderr.readline, "")
            port = next(int(m[1]) for line in lines if (m := re.search(r"listening.*:(\d+)", line)))
            threading.Thread(target=process.stderr.read, daemon=True).start()
            proxy = Proxy(port)
            yield proxy
            proxy.listener.close()
        finally:
            process.terminate()
