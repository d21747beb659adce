"""A tiny real model, an index that it built, and a server over both.

Imports are inside: tests that ask for none of this load no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from index.store import Store
    from item.engine.interface import Engine
    from tests.serving import Hosting


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights of width 32."""
    from tests.serving import write_model

    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_engine(tiny_model: Path) -> Engine:
    """The engine of the tiny model."""
    from item.engine.loading import load_engine

    return load_engine(tiny_model, "cpu")


@pytest.fixture(scope="session")
def tiny_index(tiny_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index folder of the 30 products of `tests.serving.shop`."""
    from tests.serving import shop, write_index

    folder = tmp_path_factory.mktemp("index")
    write_index(folder, tiny_engine, shop())
    return folder


@pytest.fixture(scope="session")
def tiny_store(tiny_index: Path) -> Store:
    """The open index."""
    from index.store import Store

    return Store.open(tiny_index)


@pytest.fixture(scope="session")
def hosting() -> Iterator[Hosting]:
    """Where tests start servers."""
    from tests.serving import Hosting

    hosting = Hosting()
    yield hosting
    hosting.close()


@pytest.fixture(scope="session")
def address(hosting: Hosting, tiny_engine: Engine, tiny_store: Store) -> str:
    """The address of a server over the tiny model and its index."""
    return f"127.0.0.1:{hosting.serve(tiny_engine, tiny_store).port}"
