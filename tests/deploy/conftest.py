"""A small real model, an index that it built, and servers over both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from index.store import Store
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
    """An index folder of the 30 products of `tests.deploy.serving.shop`."""
    folder = tmp_path_factory.mktemp("index")
    write_index(folder, served_engine, shop())
    return folder


@pytest.fixture(scope="session")
def served_store(served_index: Path) -> Store:
    """The open index."""
    return Store.open(served_index)


@pytest.fixture(scope="session")
def hosting() -> Iterator[Hosting]:
    """Where tests start servers."""
    hosting = Hosting()
    yield hosting
    hosting.close()


@pytest.fixture(scope="session")
def address(hosting: Hosting, served_engine: Engine, served_store: Store) -> str:
    """The address of a server over the tiny model and its index."""
    return f"127.0.0.1:{hosting.serve(served_engine, served_store).port}"
