"""What the service needs of a store of products and vectors, whatever keeps them: `Store` on one machine
(index.store), `MilvusStore` on many (index.milvus). tests/index/test_vector_store.py holds both to it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from index.about import About
from index.exact import Vectors, is_unit
from index.filters import Filter
from index.product import Product
from index.search import Found
from item.errors import ConfigError, StoreError


class VectorStore(Protocol):
    """An open collection. Any number of threads may search it and write to it.

    Shapes: Q queries, D = `about.vector_width`. All methods raise StoreError where the store fails, and its kind
    UnavailableError where trying again later may help. A write that has returned is durable, and seen by everything
    that is asked afterwards.
    """

    @property
    def about(self) -> About:
        """What the collection holds."""

    @property
    def generation(self) -> str:
        """The name of what is searched; building the collection again makes another one."""

    @property
    def writable(self) -> bool:
        """Whether this process may write."""

    def __len__(self) -> int:
        """Products."""

    def close(self) -> None:
        """Ends the work on the collection; a second call does nothing."""

    def product(self, product_id: str) -> Product | None:
        """The product with this id, or None."""

    def products(self, keys: Sequence[int]) -> dict[int, Product]:
        """Products by their keys, as hits name them; those that were deleted or replaced since are left out."""

    def vector(self, product_id: str) -> Vectors | None:
        """(D,) float32, the vector of a product as it was written, to the last bit; or None."""

    def search(
        self,
        queries: Vectors,
        k: int,
        leave_out: Sequence[Collection[str]] | None = None,
        filters: Sequence[Filter | None] | None = None,
    ) -> list[Found]:
        """The nearest k products of each query, the best first, equal scores in the order in which they were written.

        Scores are cosines, up to float32's rounding, whatever the plan. With the plan EXACT the hits are the nearest,
        and there are k where k products may be hits; which of several with the score of the last one are hits is up to
        the store.

        Args:
            queries: (Q, D) float32 of any length but zero.
            k: at least 1.
            leave_out: for each query the ids of products that are not wanted; k others are found all the same.
            filters: for each query what its hits have to pass, None: nothing.

        Raises:
            SpaceError: queries of another width, or not finite, or of length zero.
            ConfigError: k below 1, or not one entry of `leave_out` or `filters` for each query.
        """

    def upsert(self, products: Sequence[Product], vectors: Vectors) -> list[bool]:
        """Writes whole products with their vectors, (n, D) of unit norm; of two with one id the later stays.

        Returns for each whether it was not there before. Raises StoreError for vectors that could not be searched, and
        ReadOnlyError; nothing is written then.
        """

    def update(self, products: Sequence[Product]) -> None:
        """Writes products that are there and keep their vectors and their place among equal scores.

        Raises StoreError where one is not there, and ReadOnlyError; nothing is written then.
        """

    def delete(self, product_ids: Sequence[str]) -> list[bool]:
        """Deletes products. Returns for each id whether it was there. Raises ReadOnlyError."""


def per_query(
    num_queries: int,
    k: int,
    leave_out: Sequence[Collection[str]] | None,
    filters: Sequence[Filter | None] | None,
) -> tuple[list[set[str]], Sequence[Filter | None]]:
    """What each query leaves out, and its filter. Raises ConfigError as `VectorStore.search` does."""
    if k < 1:
        raise ConfigError(f"k: {k} is below 1")
    for name, given in (("leave_out", leave_out), ("filters", filters)):
        if given is not None and len(given) != num_queries:
            raise ConfigError(f"{name}: {len(given)} entries for {num_queries} queries")
    return [set(ids) for ids in leave_out or [()] * num_queries], filters or [None] * num_queries


def checked(
    blocks: Iterable[tuple[Sequence[Product], Vectors]], width: int
) -> Iterator[tuple[Sequence[Product], Vectors]]:
    """The same blocks of products and vectors, (n, width). Raises StoreError for vectors that could not be searched."""
    first_row = 0
    for products, vectors in blocks:
        if vectors.shape != (len(products), width):
            raise StoreError(
                f"vectors of shape {vectors.shape} from row {first_row}, expected {(len(products), width)}"
            )
        lengths = np.linalg.norm(vectors, axis=1)
        if wrong := np.flatnonzero(~is_unit(lengths)).tolist():
            raise StoreError(f"row {first_row + wrong[0]}: a vector of length {lengths[wrong[0]]}, expected 1")
        yield products, vectors
        first_row += len(products)
