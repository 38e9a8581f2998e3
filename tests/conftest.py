"""Each test has a hub of its own, and runs the scripts as their users do: as processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import Hub, Store
from tests.support.client import Client


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
