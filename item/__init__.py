"""ITEm: product embeddings from words and pictures.

    from item import Client

`import item` alone loads nothing but the standard library; `item.Client` needs grpcio, protobuf and numpy.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from item.client import Client
    from item.queries import Input, Part, Query

__all__ = ["Client", "Input", "Part", "Query", "__version__"]

try:
    __version__ = version("item-embeddings")
except PackageNotFoundError:  # a checkout that was not installed
    __version__ = "0+checkout"


def __getattr__(name: str) -> object:
    """Imports the client when it is first asked for: training and indexing do without gRPC."""
    if name in __all__:
        return getattr(import_module("item.client"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
