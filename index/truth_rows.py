"""Products and vectors as rows of the truth, each with a checksum, so that a damaged row is noticed when it is read."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from index.exact import Vectors
from index.product import Product
from item.errors import StoreError

AT_ONCE = 4096  # rows between two answers of an iteration; and at most as many parameters of one statement
REBUILD = "restore a backup, or build the index again"


def encode_product(product: Product) -> tuple[int, str]:
    """Checksum and body of a product."""
    body = product.to_json()
    return _product_checksum(product.product_id, body), body


def encode_vector(key: int, vector: Vectors) -> tuple[int, bytes]:
    """Checksum and content of a vector, (D,), of this key."""
    content = np.asarray(vector, "<f4").tobytes()
    return _vector_checksum(key, content), content


class RowDecoder:
    """What rows of the file `path` were made of; D = `vector_width`. Its methods raise StoreError for a damaged row."""

    def __init__(self, path: Path, vector_width: int) -> None:
        self.path, self.vector_width = path, vector_width

    def product(self, key: int, product_id: Any, checksum: int, body: Any) -> Product:
        """The product of a row."""
        damaged = not isinstance(product_id, str) or not isinstance(body, str)
        if damaged or _product_checksum(product_id, body) != checksum:
            raise StoreError(f"{self.path}: key {key}, product {product_id!r}: damaged; {REBUILD}, or upsert it again")
        return Product.from_json(product_id, body)

    def vector(self, key: int, checksum: int | None, content: Any) -> Vectors:
        """(D,) of a row."""
        self.check_vector(key, checksum, content)
        return np.frombuffer(content, "<f4").astype(np.float32)

    def vectors(self, rows: Sequence[tuple[int, int | None, Any]]) -> Vectors:
        """(n, D) of n rows: key, checksum, content."""
        for row in rows:
            self.check_vector(*row)
        return np.frombuffer(b"".join(row[2] for row in rows), "<f4").reshape(len(rows), -1).astype(np.float32)

    def check_vector(self, key: int, checksum: int | None, content: Any) -> None:
        """As `vector`, but for the vector."""
        size = 4 * self.vector_width
        if not isinstance(content, bytes) or len(content) != size or _vector_checksum(key, content) != checksum:
            raise StoreError(f"{self.path}: key {key}: its vector is damaged; {REBUILD}, or upsert its product again")


def _vector_checksum(key: int, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(struct.pack("<q", key)))


def _product_checksum(product_id: str, body: str) -> int:
    return zlib.crc32(body.encode(), zlib.crc32(product_id.encode()))
