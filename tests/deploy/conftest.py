"""A small real model, an index of what it encoded, and servers over both."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.server import Server
from index.store import Store
from item.client import Client
from item.engine.interface import Engine
from item.engine.loading import load_engine
from tests.deploy.serving import Hosting, shop, write_index, write_model


@pytest.fixture(scope="session")
def served_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights of width 32."""
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return folder


@pytest.fixture(scope="session")
def served_engine(served_model: Path) -> Engine:
    """The engine of the tiny model."""
    return load_engine(served_model, "cpu")


@pytest.fixture(scope="session")
def served_index(served_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index folder with the 30 products of `tests.deploy.serving.shop`; no test writes to it."""
    folder = tmp_path_factory.mktemp("index")
    write_index(folder, served_engine, shop())
    return folder


@pytest.fixture(scope="session")
def served_store(served_index: Path) -> Iterator[Store]:
    """Its collection, open to read."""
    with Store.open(served_index / "default") as store:
        yield store


@pytest.fixture
def own_index(served_index: Path, tmp_path: Path) -> Path:
    """A copy of the index folder that a test may write to."""
    return shutil.copytree(served_index, tmp_path / "index")


@pytest.fixture(scope="session")
def hosting() -> Iterator[Hosting]:
    """Where tests start servers."""
    hosting = Hosting()
    yield hosting
    hosting.close()


@pytest.fixture
def own_server(hosting: Hosting, served_engine: Engine, own_index: Path) -> Iterator[Server]:
    """A server over an index that the test may write to."""
    server = hosting.serve(served_engine, own_index)
    yield server
    hosting.run(server.stop())


@pytest.fixture(scope="session")
def address(hosting: Hosting, served_engine: Engine, served_index: Path) -> str:
    """The address of a server over the tiny model and the index that no test writes to."""
    return f"127.0.0.1:{hosting.serve(served_engine, served_index, read_only=True).port}"


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client of the server that a test file defines."""
    with Client(f"127.0.0.1:{server.port}", timeout_s=30) as client:
        yield client
