"""Ctrl-C and SIGTERM at any moment, and what a shell or a service manager passes on of them."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.hub import Hub, Store
from tests.hub.faults import slow, stall, status
from tests.support.client import ROOT, Client, lay, tree, wait_until
from tests.support.download import BIG, MODEL, snapshot

FILES = {"big": BIG, "config.json": b"{}", "tokenizer_config.json": b"{}"}
SCRIPTS = ["download_model.py", "upload_model.py"]
SIGNALS = [signal.SIGINT, signal.SIGTERM]
CLOSED = [
    " ".join(closed)
    for count in range(4)
    for closed in itertools.combinations(("<&-", ">&-", "2>&-"), count)
]


@pytest.fixture(autouse=True)
def model(store: Store, client: Client) -> None:
    """A model to download, and the same in a folder to upload."""
    store.add(MODEL, FILES)
    store.add("alice/new")
    lay(client.work / "folder", {**FILES, "other": BIG[:1_000_000]})
    token = store.add_user("alice")
    client.env |= {"MODEL_ID": MODEL, "REPO_ID": "alice/new", "MODEL_DIR": "folder"}
    client.env |= {"MODELSCOPE_API_TOKEN": token}


def read_status(pid: int, field: str) -> int:
    """Return a set of signals that the kernel keeps for a process, as bits."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1], 16)


def handles(pid: int) -> bool:
    """Tell whether the script has begun, and keeps SIGTERM for itself."""
    bit = 1 << signal.SIGTERM - 1
    return bool((read_status(pid, "SigBlk") | read_status(pid, "SigCgt")) & bit)


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- at any moment ------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("number", SIGNALS)
def test_signal_at_any_moment_is_one_line_within_2_seconds(
    client: Client, hub: Hub, script: str, number: int
) -> None:
    hub.latency = 0.2
    early = 0
    for step in range(1, 34):
        process = client.start(script)
        time.sleep(0.03 * step)
        begun = handles(process.pid) if process.poll() is None else True
        result = client.interrupt(process, when=lambda: True, number=number)
        if not begun:  # in Python's own start, and while it reads the script
            assert "argparse" not in result.err, (step, result)  # an import that takes its time
            early += 1
            continue
        assert result.seconds < 2
        assert result.code in (128 + number, 0), (step, result)
        assert "Traceback" not in result.err
        assert result.err.count("Interrupted.") == (result.code != 0), (step, result)
    assert early < 30


@pytest.mark.parametrize("script", SCRIPTS)
def test_signals_are_handled_before_the_imports_take_their_time(
    client: Client, script: str
) -> None:
    bare = [sys.executable, "-c", "import os; print(sum(os.times()[:2]))"]
    start = min(float(client.run(*bare).out) for _ in range(3))
    process = client.start(script)
    wait_until(lambda: handles(process.pid))
    spent = processor_seconds(process.pid)
    client.interrupt(process, when=lambda: True)
    assert spent - start < 0.1


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("number", SIGNALS)
def test_signal_while_the_sdk_is_read_from_a_slow_disk_ends_it_within_2_seconds(
    client: Client, script: str, number: int
) -> None:
    package = b"import pathlib, time; pathlib.Path('reached').touch(); time.sleep(30)"
    lay(client.work / "path", {"modelscope/__init__.py": package})
    process = client.start(script, PYTHONPATH=str(client.work / "path"))
    result = client.interrupt(process, when=(client.work / "reached").exists, number=number)
    assert result.code == 128 + number
    assert result.seconds < 2
    assert result.err.count("Interrupted.") == 1
    assert "Traceback" not in result.err


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("number", SIGNALS)
def test_second_signal_changes_nothing(client: Client, hub: Hub, script: str, number: int) -> None:
    hub.queue("login", stall())
    process = client.start(script)
    wait_until(lambda: hub.requests("login"))
    for _ in range(5):
        process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert err.count("Interrupted.") == 1
    assert "Traceback" not in out + err


@pytest.mark.parametrize("route", ["login", "me", "list", "file"])
@pytest.mark.parametrize("number", SIGNALS)
def test_signal_while_the_hub_says_nothing_ends_a_download(
    client: Client, hub: Hub, route: str, number: int
) -> None:
    hub.always(route, stall())
    process = client.start("download_model.py", MODELSCOPE_API_TIMEOUT="60")
    result = client.interrupt(process, when=lambda: hub.requests(route), number=number)
    assert (result.code, result.out.count("successful")) == (128 + number, 0)
    assert result.seconds < 2


@pytest.mark.parametrize("route", ["login", "revisions", "list", "batch", "blob", "commit"])
@pytest.mark.parametrize("number", SIGNALS)
def test_signal_while_the_hub_says_nothing_ends_an_upload(
    client: Client, hub: Hub, route: str, number: int
) -> None:
    hub.always(route, stall())
    process = client.start("upload_model.py", MODELSCOPE_API_TIMEOUT="60")
    result = client.interrupt(process, when=lambda: hub.requests(route), number=number)
    assert (result.code, result.out.count("finished")) == (128 + number, 0)
    assert result.seconds < 2


@pytest.mark.parametrize("pause", ["list", "files"])
def test_signal_in_the_pause_before_another_try_ends_it(
    client: Client, hub: Hub, pause: str
) -> None:
    if pause == "list":
        hub.always("list", status(500))
    else:
        hub.always("file", status(403), file="big")
    waits = {"MODELSCOPE_REPO_TREE_PAGE_RETRY_MAX_DELAY_SECONDS": "30"}
    process = client.start("download_model.py", MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS="1", **waits)
    seen = ""
    while "trying once more" not in seen:
        seen = process.stderr.readline()
        assert seen
    result = client.interrupt(process, when=lambda: True)
    assert result.code == 130
    assert result.seconds < 2


RESOLVE_NOTHING = """
import fcntl, os, socket, struct, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(server, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS: up
server.bind(("127.0.0.1", 53))
server.set_inheritable(True)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a network without a name server that answers")
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("number", SIGNALS)
def test_signal_while_a_name_is_looked_up_ends_it_within_2_seconds(
    client: Client, script: str, number: int
) -> None:
    (client.work / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:30\n")
    (client.work / "nsswitch.conf").write_text("hosts: files dns\n")
    shell = (
        "mount --bind resolv.conf /etc/resolv.conf && mount --bind nsswitch.conf /etc/nsswitch.conf"
        ' && exec "$@"'
    )
    command = ["unshare", "--mount", "--net", "sh", "-c", shell, "sh"]
    command += [sys.executable, "-c", RESOLVE_NOTHING, ROOT / script]
    process = client.start(*command, MODELSCOPE_ENDPOINT="http://hub.example")

    def asked() -> bool:
        """Tell whether a question waits in the silent server's queue."""
        lines = Path(f"/proc/{process.pid}/net/udp").read_text().splitlines()
        return any(":0035 " in x[:22] and not x.split()[4].endswith(":00000000") for x in lines)

    result = client.interrupt(process, when=asked, number=number)
    assert result.code == 128 + number, result
    assert result.seconds < 2
    assert "Traceback" not in result.err
    assert result.err.count("Interrupted.") == 1


# --- what the shell passes on -------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_ignored_ctrl_c_stays_ignored_and_sigterm_still_ends(
    client: Client, store: Store, hub: Hub, script: str
) -> None:
    """As in a job that a shell starts in the background."""
    hub.queue("login", stall())
    shell = f"trap '' INT; exec {sys.executable} {ROOT / script}"
    process = client.start("sh", "-c", shell, MODELSCOPE_API_TIMEOUT="60")
    wait_until(lambda: hub.requests("login"))
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    result = client.interrupt(process, when=lambda: True, number=signal.SIGTERM)
    assert result.code == 143
    assert result.seconds < 2


@pytest.mark.parametrize("script", SCRIPTS)
def test_ignored_ctrl_c_does_not_keep_a_run_from_its_success(
    client: Client, hub: Hub, script: str
) -> None:
    hub.latency = 0.3
    process = client.start("sh", "-c", f"trap '' INT; exec {sys.executable} {ROOT / script}")
    wait_until(lambda: hub.requests("login"))
    result = client.interrupt(process, when=lambda: True)
    assert result.code == 0, result


@pytest.mark.parametrize("script", SCRIPTS)
def test_signals_that_the_parent_has_blocked_still_end_a_run(
    client: Client, hub: Hub, script: str
) -> None:
    """A parent of many threads may start others with signals blocked."""
    hub.queue("login", stall())
    program = (
        "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals());"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    process = client.start(sys.executable, "-c", program, ROOT / script)
    result = client.interrupt(process, when=lambda: hub.requests("login"), number=signal.SIGTERM)
    assert result.code == 143
    assert result.seconds < 2


def test_hangup_ends_a_run_without_a_traceback(client: Client, hub: Hub) -> None:
    hub.queue("login", stall())
    process = client.start("download_model.py")
    wait_until(lambda: hub.requests("login"))
    result = client.interrupt(process, when=lambda: True, number=signal.SIGHUP)
    assert result.code in (-signal.SIGHUP, 129)
    assert "Traceback" not in result.err


def test_stopped_run_goes_on(client: Client, hub: Hub) -> None:
    """Ctrl-Z and `fg`: the connection may be gone meanwhile."""
    hub.queue("file", slow(1_500_000), file="big")
    process = client.start("download_model.py")
    partial = snapshot(client.work) / "big.incomplete"
    wait_until(lambda: partial.exists() and partial.stat().st_size > 100_000)
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)  # longer than the idle limit of the tests
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert tree(snapshot(client.work)) == FILES


# --- closed descriptors -------------------------------------------------------------------------


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize("script", SCRIPTS)
def test_closed_streams_do_not_keep_a_run_from_its_success(
    client: Client, store: Store, script: str, closed: str
) -> None:
    result = client.run("sh", "-c", f"exec {sys.executable} {ROOT / script} {closed}")
    assert result.code == 0, result
    if script == "download_model.py":
        assert tree(snapshot(client.work)) == FILES
    else:
        assert tree(store.root / "alice/new") == tree(client.work / "folder")
    assert result.err.count("Traceback") == 0


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize("number", SIGNALS)
def test_line_of_a_signal_goes_to_no_file_of_the_model(
    client: Client, hub: Hub, closed: str, number: int
) -> None:
    hub.always("file", slow(400_000), file="big")
    shell = f"exec {sys.executable} {ROOT / 'download_model.py'} {closed}"
    process = client.start("sh", "-c", shell)
    partial = snapshot(client.work) / "big.incomplete"
    result = client.interrupt(process, when=partial.exists, number=number)
    assert result.code == 128 + number
    held = tree(snapshot(client.work))
    assert not any(b"Interrupted" in content for content in held.values())
    assert BIG.startswith(held["big.incomplete"])
