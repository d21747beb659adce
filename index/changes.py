"""What changes in a generation: by its own writes, and by what it takes over from the generation that it follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index.exact import Vectors
from index.product import Product

Keys = npt.NDArray[np.int64]  # of products; index.truth says what a key is


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A product as it was written; `vector`, (D,), is None where that of its key stayed."""

    key: int
    product: Product
    vector: Vectors | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What leads to the state at `revision`: keys that are gone, then products by ascending key."""

    revision: int
    deleted: list[int]
    written: list[Written]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """How far a generation has followed another, its `source`.

    What was deleted or updated in the source up to `revision` is so here. complete: and all its products are here, with
    keys up to `last_key`.
    """

    source: str
    revision: int
    last_key: int
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """Part of what makes a generation level with its source: products by the source's keys.

    gone: keys to delete. updated: products that keep their vectors. added: with their vectors, (D,), by ascending key.
    last_key: the highest key that the source has given.
    """

    gone: Sequence[int] = ()
    updated: Sequence[tuple[int, Product]] = ()
    added: Sequence[tuple[int, Product, Vectors]] = ()
    last_key: int = 0
    level: Level | None
