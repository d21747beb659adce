"""The truth at one revision, read at leisure while others write: what segments, backups and comparisons are made of."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

import numpy as np

from index.changes import Keys
from index.exact import Vectors
from index.product import Product
from index.truth_rows import AT_ONCE, RowDecoder


class FrozenTruth:
    """A truth at one revision; D = `vector_width`."""

    def __init__(self, connection: sqlite3.Connection, decoder: RowDecoder) -> None:
        """connection: sees one state for as long as it is read."""
        self._connection, self._decoder = connection, decoder
        self.vector_width = decoder.vector_width
        self.revision = int(self._value("SELECT value FROM meta WHERE name = 'revision'"))

    def count(self, after_key: int = 0) -> int:
        """Products with a higher key."""
        return int(self._value("SELECT count(*) FROM vectors WHERE key > ?", after_key))

    def last_key(self) -> int:
        """The highest key ever given; 0: none."""
        return self._value("SELECT seq FROM sqlite_sequence WHERE name = 'products'")

    def pruned(self) -> int:
        """Tombstones up to this revision are gone."""
        return self._value("SELECT value FROM meta WHERE name = 'pruned'")

    def keys(self, after_key: int = 0) -> Keys:
        """(n,) the keys above this one, ascending."""
        return self._keys("SELECT key FROM products WHERE key > ? ORDER BY key", after_key)

    def deleted_since(self, revision: int) -> Keys:
        """(n,) the keys that were deleted or replaced after a revision that tombstones go back to, ascending."""
        return self._keys("SELECT key FROM tombstones WHERE revision > ? ORDER BY key", revision)

    def written_since(self, revision: int) -> Keys:
        """(n,) the keys that were added or updated after a revision, ascending."""
        return self._keys("SELECT key FROM products WHERE revision > ? ORDER BY key", revision)

    def products(self, keys: Sequence[int]) -> dict[int, Product]:
        """By key, those of at most `AT_ONCE` that are there. Raises StoreError for a damaged row."""
        marks = ",".join("?" * len(keys))
        rows = self._connection.execute(
            f"SELECT key, product_id, checksum, body FROM products WHERE key IN ({marks})", keys
        )
        return {row[0]: self._decoder.product(*row) for row in rows}

    def vectors_of(self, keys: Keys) -> Vectors:
        """(n, D) of n keys that are there. Raises StoreError for a damaged row."""
        vectors = np.empty((len(keys), self.vector_width), dtype=np.float32)
        for place, key in enumerate(keys.tolist()):
            row = self._connection.execute("SELECT key, checksum, vector FROM vectors WHERE key = ?", (key,)).fetchone()
            vectors[place] = self._decoder.vector(*row)
        return vectors

    def vectors(self) -> Iterator[tuple[Keys, Vectors]]:
        """All (n,) keys, ascending, and (n, D) vectors, block by block. Raises StoreError for a damaged row."""
        cursor = self._connection.execute("SELECT key, checksum, vector FROM vectors ORDER BY key")
        while rows := cursor.fetchmany(AT_ONCE):
            yield np.array([row[0] for row in rows], dtype=np.int64), self._decoder.vectors(rows)

    def blocks(self, after_key: int = 0) -> Iterator[tuple[Keys, list[Product], Vectors]]:
        """(n,) higher keys, ascending, n products and (n, D) vectors. Raises StoreError for a damaged row."""
        cursor = self._connection.execute(
            "SELECT p.key, p.product_id, p.checksum, p.body, v.checksum, v.vector FROM products p "
            "LEFT JOIN vectors v ON v.key = p.key WHERE p.key > ? ORDER BY p.key",
            (after_key,),
        )
        while rows := cursor.fetchmany(AT_ONCE):
            products = [self._decoder.product(*row[:4]) for row in rows]
            vectors = self._decoder.vectors([(row[0], row[4], row[5]) for row in rows])
            yield np.array([row[0] for row in rows], dtype=np.int64), products, vectors

    def _keys(self, query: str, *values: object) -> Keys:
        return np.array([key for (key,) in self._connection.execute(query, values)], dtype=np.int64)

    def _value(self, query: str, *values: object) -> int:
        return int(self._connection.execute(query, values).fetchone()[0])
