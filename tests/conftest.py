"""Each test has a hub of its own, and runs the scripts as their users do: as processes."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import Hub, Store
from tests.support.cases import FILES, MODEL
from tests.support.client import Client, lay
from tests.support.real_hub import RealHub


def pytest_configure() -> None:
    """Let no command inherit an ignored SIGINT, which `nohup python -m pytest &` starts with."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers() -> int:
    """Three for each processor, as half of a test's time is the SDK's pauses."""
    return 3 * (os.cpu_count() or 1)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Show short lists and dictionaries in a test's id as they are."""
    is_short = isinstance(val, (dict, list, tuple)) and len(repr(val)) < 60
    return repr(val) if is_short else None


PASSED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[pytest.TestReport]:
    """Let fixtures know whether the test itself has passed."""
    report = yield
    item.stash[PASSED] = report.passed
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and config.option.markexpr == "not gate":
        terminalreporter.write_line("What is marked `gate`, as all of some files, needs -m gate.")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "hub")


@pytest.fixture
def hub(store: Store, request: pytest.FixtureRequest) -> Iterator[Hub]:
    with Hub(store) as hub:
        yield hub
    hub.check(request.node.stash[PASSED])


@pytest.fixture
def client(tmp_path: Path, hub: Hub) -> Iterator[Client]:
    client = Client(tmp_path, hub)
    yield client
    client.close()


@pytest.fixture
def model(store: Store) -> str:
    """The small model on the hub, public."""
    return store.add(MODEL, FILES).id


@pytest.fixture
def token(store: Store, client: Client) -> str:
    """The token of the model's owner, in the client's environment."""
    token = client.env["MODELSCOPE_API_TOKEN"] = store.add_user("alice")
    return token


@pytest.fixture
def folder(client: Client) -> Path:
    """The small model on the client's disk, to be uploaded."""
    return lay(client.work / "folder", FILES)


@pytest.fixture
def real(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RealHub]:
    real = RealHub(tmp_path)
    yield real
    real.close(request.node.stash[PASSED])
