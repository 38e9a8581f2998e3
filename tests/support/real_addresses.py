"""The hub at its real addresses, as every user meets it: no `MODELSCOPE_ENDPOINT`, both sites, TLS.

The stand-ins and their clients live in a network namespace of their own. Its `/etc/hosts` has the
real names, on loopback; any other name is asked of a name server that knows none and notes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shlex
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.hub import Hub, Store
from tests.support.client import ROOT, Client

# Each site has a name that the SDK of today asks for, and one that older ones do. No record names a
# storage host of the international site: it sends all by itself.
CN = {
    "hub": ("modelscope.cn", ("127.0.0.2", 443)),
    "storage": ("cdn-lfs-cn-1.modelscope.cn", ("127.0.0.3", 443)),
    "uploads": ("lfs.modelscope.cn", ("127.0.0.4", 443)),
}
AI = {"hub": ("modelscope.ai", ("127.0.0.5", 443))}
NAMES = {name: address for name, (address, _) in (*CN.values(), *AI.values())}
NAMES |= {f"www.{name}": NAMES[name] for name in ("modelscope.cn", "modelscope.ai")}

SET_FLAGS, UP = 0x8914, 1  # SIOCSIFFLAGS and IFF_UP of <linux/if.h>
HOLD = "mount --bind {hosts} /etc/hosts && mount --bind {resolv} /etc/resolv.conf && echo && cat"


class Namespace:
    """A network of its own, for the processes and the sockets that are started in it."""

    def __init__(self, folder: Path) -> None:
        hosts, resolv = folder / "hosts", folder / "resolv.conf"
        lines = [f"{address} {name}\n" for name, address in NAMES.items()]
        hosts.write_text("".join(["127.0.0.1 localhost\n", *lines]))
        resolv.write_text("nameserver 127.0.0.1\n")
        hold = HOLD.format(hosts=shlex.quote(str(hosts)), resolv=shlex.quote(str(resolv)))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        # It ends with its standard input, so also when this process is killed.
        self.holder = subprocess.Popen(["unshare", "--net", "--mount", "sh", "-ec", hold], **pipes)
        assert self.holder.stdout.readline() == b"\n", "no network namespace"
        self.inside = ThreadPoolExecutor(1, initializer=self.enter)
        self.lookups: set[str] = set()
        self.names = self.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        self.names.bind(("127.0.0.1", 53))
        self.names.settimeout(0.2)  # to notice that it was closed
        threading.Thread(target=self.know_no_name, daemon=True).start()

    def enter(self) -> None:
        """Move this thread into the network; the sockets that it makes stay there."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/proc/{self.holder.pid}/ns/net") as network:
            if libc.setns(network.fileno(), 0):
                raise OSError(ctypes.get_errno(), "setns")
        with socket.socket() as any_socket:
            fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sh", b"lo", UP))

    def run(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """Call `function` inside, and return what it returns."""
        return self.inside.submit(function, *args, **kwargs).result()

    def command(self, folder: Path, words: list[str]) -> list[str]:
        """Return the command that runs `words` inside, in `folder`."""
        enter = ["nsenter", "--target", str(self.holder.pid), "--net", "--mount", "--"]
        return [*enter, "sh", "-c", 'cd "$0" && exec "$@"', str(folder), *words]

    def know_no_name(self) -> None:
        """Answer each question for a name with: there is no such name."""
        while self.names.fileno() >= 0:
            with contextlib.suppress(OSError):  # none has come, or nobody waits for the answer
                question, client = self.names.recvfrom(512)
                self.lookups.add(read_name(question))
                self.names.sendto(question[:2] + b"\x81\x83" + question[4:], client)

    def close(self) -> None:
        self.names.close()
        self.inside.shutdown()
        self.holder.communicate()


def read_name(question: bytes) -> str:
    """Return the name that a DNS question asks for."""
    labels, at = [], 12
    while length := question[at]:
        labels.append(question[at + 1 : at + 1 + length].decode())
        at += 1 + length
    return ".".join(labels)


class RealClient(Client):
    """A machine in the namespace: it is told of no hub, but trusts the certificates there."""

    def __init__(self, folder: Path, hub: Hub, namespace: Namespace, authority: Path) -> None:
        super().__init__(folder, hub)
        del self.env["MODELSCOPE_ENDPOINT"]
        self.env["REQUESTS_CA_BUNDLE"] = str(authority)
        self.namespace = namespace

    def start(self, *command: object, **env: str | None) -> subprocess.Popen[str]:
        words = [str(word) for word in command]
        if words[0].endswith(".py"):
            words = [sys.executable, str(ROOT / words[0]), *words[1:]]
        return super().start(*self.namespace.command(self.work, words), **env)


@dataclass
class RealHub:
    """Both sites and a client of them."""

    cn: Hub
    ai: Hub
    client: RealClient
    lookups: set[str] = field(default_factory=set)

    def met_a_token(self) -> set[str]:
        """The hosts that a token was sent to, by their names."""
        log = [*self.cn.log, *self.ai.log]
        return {r.headers["Host"] for r in log if r.token or "Cookie" in r.headers}

    def check(self) -> None:
        self.cn.check()
        self.ai.check()
        assert not self.lookups, f"looked up: {self.lookups}"


@contextlib.contextmanager
def real_hub(folder: Path, cn: Store, ai: Store) -> Iterator[RealHub]:
    """Serve `cn` and `ai` at the two sites until the block ends, and then check them both."""
    if os.geteuid() != 0:
        pytest.skip("only root may make a network namespace")
    folder.mkdir()
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert(*NAMES).configure_cert(tls)
    namespace = Namespace(folder)
    try:
        hubs = [namespace.run(Hub, s, tls=tls, hosts=h) for s, h in ((cn, CN), (ai, AI))]
        with hubs[0], hubs[1]:
            client = RealClient(folder, hubs[0], namespace, folder / "ca.pem")
            real = RealHub(*hubs, client, namespace.lookups)
            yield real
        real.check()
    finally:
        namespace.close()
