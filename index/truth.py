"""The truth of a collection's generation: products and vectors in SQLite. What it has acknowledged survives kill -9 and
a power cut.

A *key* names one vector for ever: a product whose vector changes gets a new key, and its old one a tombstone. What was
made of a key's vector, such as a row of a FAISS segment, is thus good for as long as the key is there. A *revision*
numbers transactions: products and tombstones carry that of their last change, so that whoever knows the state at one
revision reads only what came after. A generation that is encoded anew by another model has its source's keys, and
remembers up to which of the source's revisions it has followed (`Level`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from index.about import About
from index.acknowledged import ACKNOWLEDGED, Acknowledged
from index.changes import Changes, Followed, Level, Written
from index.exact import Vectors
from index.files import sealed, unsealed
from index.frozen_truth import FrozenTruth
from index.product import Product
from index.truth_database import Database, create_database, sqlite_errors
from index.truth_rows import AT_ONCE, REBUILD, RowDecoder, encode_product, encode_vector
from item.errors import StoreError

TRUTH = "truth.sqlite"
# With OR in place of UNION, SQLite would read all products.
CHANGES = """
SELECT p.key, p.product_id, p.checksum, p.body, v.checksum, v.vector
FROM products p LEFT JOIN vectors v ON v.key = p.key AND p.key > :last_key
WHERE p.key IN
    (SELECT key FROM products WHERE revision > :since UNION SELECT key FROM products WHERE key > :last_key)
ORDER BY p.key
"""
LEVEL = "SELECT value FROM meta WHERE name = 'level'"


class Truth:
    """An open database. One thread at a time writes; any may read, each over its own connection."""

    def __init__(self, folder: Path, *, writable: bool) -> None:
        """Opens what `create` has made.

        Raises:
            StoreError: not there, damaged, of a newer version, or behind what it has acknowledged.
        """
        self.folder, self.path = folder, folder / TRUTH
        self._database = Database(self.path, writable=writable)
        self._acknowledged: Acknowledged | None = None
        try:
            self.about = self._read_about()
            self._decoder = RowDecoder(self.path, self.about.vector_width)
            self._acknowledged = Acknowledged(folder / ACKNOWLEDGED, writable)
            self._check_acknowledged(self._acknowledged.read())
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, folder: Path, about: About, last_key: int = 0) -> Truth:
        """An empty database in a folder that is there, whose keys come after `last_key`. Raises StoreError."""
        create_database(folder / TRUTH, sealed(asdict(about)), last_key)
        (folder / ACKNOWLEDGED).touch()
        return cls(folder, writable=True)

    def close(self) -> None:
        """Closes every connection; the last one of a database folds the write-ahead log into it."""
        self._database.close()
        if self._acknowledged is not None:
            self._acknowledged.close()

    # Reading

    def revision(self) -> int:
        """That of the last transaction."""
        return int(self._database.value("SELECT value FROM meta WHERE name = 'revision'"))

    def pruned(self) -> int:
        """Tombstones up to this revision are gone."""
        return int(self._database.value("SELECT value FROM meta WHERE name = 'pruned'"))

    def count(self) -> int:
        """Products."""
        return int(self._database.value("SELECT count(*) FROM products"))

    def level(self) -> Level | None:
        """How far this generation has followed another; None: it was made on its own."""
        return _level_of(self.path, self._database.rows(LEVEL))

    def key(self, product_id: str) -> int | None:
        """The key of a product, or None."""
        found: int | None = self._database.value("SELECT key FROM products WHERE product_id = ?", product_id)
        return found

    def products(self, keys: Sequence[int]) -> dict[int, Product]:
        """By key, those that are there. Raises StoreError for a damaged row."""
        found: dict[int, Product] = {}
        for start in range(0, len(keys), AT_ONCE):
            some = [int(key) for key in keys[start : start + AT_ONCE]]
            marks = ",".join("?" * len(some))
            query = f"SELECT key, product_id, checksum, body FROM products WHERE key IN ({marks})"
            found |= {key: self._decoder.product(key, *row) for key, *row in self._database.rows(query, *some)}
        return found

    def product(self, product_id: str) -> tuple[int, Product] | None:
        """Key and product, or None."""
        rows = self._database.rows(
            "SELECT key, product_id, checksum, body FROM products WHERE product_id = ?", product_id
        )
        return next(((key, self._decoder.product(key, *row)) for key, *row in rows), None)

    def vector(self, product_id: str) -> Vectors | None:
        """(D,) of a product, or None. Raises StoreError where it is damaged."""
        rows = self._database.rows(
            "SELECT p.key, v.checksum, v.vector FROM products p LEFT JOIN vectors v ON v.key = p.key "
            "WHERE p.product_id = ?",
            product_id,
        )
        return next((self._decoder.vector(*row) for row in rows), None)

    def changes(self, since: int, last_key: int) -> Changes:
        """What came after a revision, and all products with keys above `last_key`."""
        with self._database.snapshot() as connection:
            revision = connection.execute("SELECT value FROM meta WHERE name = 'revision'").fetchone()[0]
            deleted = connection.execute("SELECT key FROM tombstones WHERE revision > ?", (since,)).fetchall()
            rows = connection.execute(CHANGES, {"last_key": last_key, "since": since}).fetchall()
        written = []
        for key, product_id, checksum, body, vector_checksum, vector in rows:
            if key > last_key and vector is None:
                raise StoreError(f"{self.path}: key {key}: its vector is missing; {REBUILD}")
            known = None if vector is None else self._decoder.vector(key, vector_checksum, vector)
            product = self._decoder.product(key, product_id, checksum, body)
            written.append(Written(key=key, product=product, vector=known))
        return Changes(revision=revision, deleted=[key for (key,) in deleted], written=written)

    @contextmanager
    def frozen(self) -> Iterator[FrozenTruth]:
        """The state at one revision, whatever is written meanwhile."""
        with self._database.snapshot() as connection:
            yield FrozenTruth(connection, self._decoder)

    def integrity_errors(self) -> list[str]:
        """What SQLite finds wrong with its file; empty: nothing."""
        rows = self._database.rows("PRAGMA integrity_check(20)")
        return [text for (text,) in rows if text != "ok"]

    def damaged(self) -> Iterator[str]:
        """Reads every row; yields what is wrong with those that are not what was written."""
        with self._database.snapshot() as connection:
            rows = connection.execute(
                "SELECT p.key, p.product_id, p.checksum, p.body, v.checksum, v.vector FROM products p "
                "LEFT JOIN vectors v ON v.key = p.key ORDER BY p.key"
            )
            for key, product_id, checksum, body, vector_checksum, vector in rows:
                try:
                    self._decoder.product(key, product_id, checksum, body)
                    self._decoder.check_vector(key, vector_checksum, vector)
                except StoreError as error:
                    yield str(error)

    # Writing

    def write(
        self,
        upserts: Sequence[tuple[Product, Vectors]] = (),
        updates: Sequence[Product] = (),
        deletes: Sequence[str] = (),
    ) -> Changes:
        """One transaction, durable when it returns.

        Args:
            upserts: whole products with their vectors, (D,) float32; of two with one id the later stays.
            updates: products that are there and keep their vectors.
            deletes: ids; those that are not there are passed over.

        Raises:
            StoreError: it could not be written; nothing of it was.
        """
        with self._transaction() as (connection, revision):
            deleted, written = [], {}
            for product_id in deletes:
                if (old := self._delete(connection, product_id, revision)) is not None:
                    deleted.append(old)
            for product in updates:
                key = self._update(connection, product, revision)
                written[key] = Written(key=key, product=product, vector=None)
            for product, vector in upserts:
                if (old := self._delete(connection, product.product_id, revision)) is not None:
                    deleted.append(old)
                    written.pop(old, None)
                key = self._insert(connection, product, vector, revision)
                written[key] = Written(key=key, product=product, vector=vector)
        return Changes(revision=revision, deleted=deleted, written=[written[key] for key in sorted(written)])

    def load(self, blocks: Iterable[tuple[Sequence[Product], Vectors]]) -> int:
        """Fills an empty database, a transaction for each block of products and vectors, (n, D). Returns their number.

        Raises StoreError where an id comes twice.
        """
        count = 0
        for products, vectors in blocks:
            with self._transaction() as (connection, revision):
                for product, vector in zip(products, vectors, strict=True):
                    self._insert(connection, product, vector, revision)
            count += len(products)
        return count

    def follow(self, followed: Followed) -> Changes:
        """Takes over what came in another generation, under its keys, in one transaction. Raises StoreError."""
        with self._transaction() as (connection, revision):
            for key in followed.gone:
                connection.execute("DELETE FROM products WHERE key = ?", (key,))
                connection.execute("DELETE FROM vectors WHERE key = ?", (key,))
                connection.execute("INSERT OR REPLACE INTO tombstones VALUES (?, ?)", (key, revision))
            deleted, written = list(followed.gone), []
            for key, product in followed.updated:
                self._update(connection, product, revision)
                written.append(Written(key=key, product=product, vector=None))
            for key, product, vector in followed.added:
                if (old := self._delete(connection, product.product_id, revision)) is not None:
                    deleted.append(old)
                self._insert(connection, product, vector, revision, key)
                written.append(Written(key=key, product=product, vector=vector))
            connection.execute(
                "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = 'products'", (followed.last_key,)
            )
            self._set_level(connection, followed.level)
        written.sort(key=lambda one: one.key)
        return Changes(revision=revision, deleted=deleted, written=written)

    def set_level(self, level: Level | None) -> None:
        """Remembers how far this generation has followed another, or that it has not. Raises StoreError."""
        with self._transaction(count=False) as (connection, _):
            self._set_level(connection, level)

    def prune(self, revision: int) -> None:
        """Forgets the tombstones up to a revision that everything made of this truth has seen."""
        with self._transaction(count=False) as (connection, _):
            connection.execute("DELETE FROM tombstones WHERE revision <= ?", (revision,))
            connection.execute("UPDATE meta SET value = max(value, ?) WHERE name = 'pruned'", (revision,))

    def copy_to(self, folder: Path) -> None:
        """Writes the present state into another folder, whatever is written meanwhile. Raises StoreError."""
        self._database.copy_to(folder / TRUTH)
        (folder / ACKNOWLEDGED).touch()

    def _delete(self, connection: sqlite3.Connection, product_id: str, revision: int) -> int | None:
        row = connection.execute("SELECT key FROM products WHERE product_id = ?", (product_id,)).fetchone()
        if row is None:
            return None
        connection.execute("DELETE FROM products WHERE key = ?", row)
        connection.execute("DELETE FROM vectors WHERE key = ?", row)
        connection.execute("INSERT INTO tombstones VALUES (?, ?)", (*row, revision))
        return int(row[0])

    def _set_level(self, connection: sqlite3.Connection, level: Level | None) -> None:
        connection.execute("DELETE FROM meta WHERE name = 'level'")
        if level is not None:
            connection.execute("INSERT INTO meta VALUES ('level', ?)", (sealed(asdict(level)),))

    def _insert(
        self,
        connection: sqlite3.Connection,
        product: Product,
        vector: Vectors,
        revision: int,
        given_key: int | None = None,
    ) -> int:
        """Adds a product under the next key, or one that another generation has given it."""
        checksum, body = encode_product(product)
        try:
            key = connection.execute(
                "INSERT INTO products (key, product_id, revision, checksum, body) VALUES (?, ?, ?, ?, ?)",
                (given_key, product.product_id, revision, checksum, body),
            ).lastrowid
        except sqlite3.IntegrityError as error:
            raise StoreError(f"product_id: {product.product_id!r} comes twice; ids are unique") from error
        assert key is not None
        connection.execute("INSERT INTO vectors VALUES (?, ?, ?)", (key, *encode_vector(key, vector)))
        return key

    def _update(self, connection: sqlite3.Connection, product: Product, revision: int) -> int:
        checksum, body = encode_product(product)
        row = connection.execute(
            "UPDATE products SET revision = ?, checksum = ?, body = ? WHERE product_id = ? RETURNING key",
            (revision, checksum, body, product.product_id),
        ).fetchone()
        if row is None:
            raise StoreError(f"product_id: {product.product_id!r} is not there to be updated")
        return int(row[0])

    @contextmanager
    def _transaction(self, count: bool = True) -> Iterator[tuple[sqlite3.Connection, int]]:
        """A connection and the transaction's revision; `count`: whether there is a revision of its own."""
        with self._database.transaction() as connection:
            step = "value + 1" if count else "value"
            (revision,) = connection.execute(
                f"UPDATE meta SET value = {step} WHERE name = 'revision' RETURNING value"
            ).fetchone()
            yield connection, revision
        assert self._acknowledged is not None
        with suppress(OSError):  # it is durable; that the note of it lags behind is allowed for
            self._acknowledged.write(revision)

    # Checks

    def _check_acknowledged(self, acknowledged: int) -> None:
        """`acknowledged` was read first: a writer may go on meanwhile."""
        if self.revision() < acknowledged:
            raise StoreError(
                f"{self.path}: is at revision {self.revision()}, but {acknowledged} was acknowledged: its write-ahead"
                f" log is damaged or missing; {REBUILD}"
            )

    def _read_about(self) -> About:
        try:
            text = str(self._database.value("SELECT value FROM meta WHERE name = 'about'"))
            return TypeAdapter(About).validate_python(unsealed(text.encode()))
        except ValueError as error:  # pydantic's errors are ValueErrors
            raise StoreError(f"{self.path}: about: {error}; {REBUILD}") from error


def read_level(folder: Path) -> Level | None:
    """As `Truth.level`, of a generation's folder, without a look at all the rest. Raises StoreError."""
    path = folder / TRUTH
    with sqlite_errors(path), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        return _level_of(path, connection.execute(LEVEL).fetchall())


def _level_of(path: Path, rows: list[Any]) -> Level | None:
    try:
        return TypeAdapter(Level).validate_python(unsealed(rows[0][0].encode())) if rows else None
    except ValueError as error:
        raise StoreError(f"{path}: level: {error}; {REBUILD}") from error
