"""Each test has a hub of its own, and runs the scripts as their users do: as processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from tests.hub import Hub, Store
from tests.support.client import Client

MANY = 5  # cases of one test, beyond which a fifth of them has to do


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Three for each processor, as half of a test's time is the SDK's pauses."""
    return 3 * (os.cpu_count() or 1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out four fifths of the long tables, unless TEST_ALL is set, as the gate does."""
    if os.environ.get("TEST_ALL"):
        return
    tables = [list(cases) for _, cases in groupby(items, lambda item: item.nodeid.split("[")[0])]
    kept = [case for cases in tables for case in (cases[::5] if len(cases) > MANY else cases)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "hub")


@pytest.fixture
def hub(store: Store) -> Iterator[Hub]:
    with Hub(store) as hub:
        yield hub
    hub.check()


@pytest.fixture
def client(tmp_path: Path, hub: Hub) -> Client:
    return Client(tmp_path, hub)
