"""The truth of a collection's generation: products and vectors in SQLite. What it has acknowledged survives kill -9 and
a power cut (WAL, synchronous=FULL).

A *key* names one vector for ever: a product whose vector changes gets a new key, and its old one a tombstone. What was
made of a key's vector, such as a row of a FAISS segment, is thus good for as long as the key is there. A *revision*
numbers transactions: products and tombstones carry that of their last change, so that whoever knows the state at one
revision reads only what came after. A generation that is encoded anew by another model has its source's keys, and
remembers up to which of the source's revisions it has followed (`Level`).

SQLite notices a damaged write-ahead log by dropping its end in silence, acknowledged or not. The file `acknowledged`
holds the last revision that was acknowledged; a database behind it is refused.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from index.files import sealed, unsealed
from index.product import Product
from item.errors import ReadOnlyError, StoreError

Vectors = npt.NDArray[np.float32]
Keys = npt.NDArray[np.int64]

TRUTH, ACKNOWLEDGED = "truth.sqlite", "acknowledged"
APPLICATION_ID = 0x4954456D  # "ITEm"
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE products (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    product_id TEXT NOT NULL UNIQUE,
    revision INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX products_by_revision ON products (revision);
CREATE TABLE vectors (key INTEGER PRIMARY KEY, checksum INTEGER NOT NULL, vector BLOB NOT NULL);
CREATE TABLE tombstones (key INTEGER PRIMARY KEY, revision INTEGER NOT NULL);
CREATE INDEX tombstones_by_revision ON tombstones (revision);
"""
# A later version brings its statements: from the version before to that one.
MIGRATIONS: dict[int, str] = {}
PAGE_BYTES = 4096  # each replaced row rewrites some pages elsewhere: 8192 took twice as long
CACHE_KIB = 32 * 1024
BUSY_S = 30.0
AT_ONCE = 4096  # rows between two answers of an iteration; and at most as many parameters of one statement
REBUILD = "restore a backup, or build the index again"


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a generation holds: vectors of width `vector_width`, all in `space`.

    `model`, its `variant` (empty: full precision) and `engine` say what made them; `catalog`, `catalog_sha256` and
    `splits` (empty: all) of what, with the `hosts` that pictures were fetched from. `created` is in UTC, ISO 8601.
    """

    space: str
    vector_width: int
    model: str = ""
    variant: str = ""
    engine: str = ""
    catalog: str = ""
    catalog_sha256: str = ""
    splits: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="microseconds"))


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


class Truth:
    """An open database. One thread at a time writes; any may read, each over its own connection."""

    def __init__(self, folder: Path, *, writable: bool) -> None:
        """Opens what `create` has made.

        Raises:
            StoreError: not there, damaged, of a newer version, or behind what it has acknowledged.
        """
        self.folder, self.path = folder, folder / TRUTH
        self.writable = writable
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        if not self.path.is_file():
            raise StoreError(f"{self.path}: is not there; {REBUILD}")
        self._writer: sqlite3.Connection | None = None
        self._acknowledged: _Acknowledged | None = None
        try:
            self._writer = self._open_writer() if writable else None
            self._check_version()
            self._check_structure()
            self.about = self._read_about()
            self._acknowledged = _Acknowledged(folder / ACKNOWLEDGED, writable)
            self._check_acknowledged(self._acknowledged.read())
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, folder: Path, about: About, last_key: int = 0) -> Truth:
        """An empty database in a folder that is there, whose keys come after `last_key`. Raises StoreError."""
        with _errors(folder / TRUTH):
            connection = sqlite3.connect(folder / TRUTH, isolation_level=None)
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
            values = [("about", sealed(asdict(about))), ("revision", 0), ("pruned", 0)]
            connection.executemany("INSERT INTO meta VALUES (?, ?)", values)
            connection.execute("INSERT INTO sqlite_sequence VALUES ('products', ?)", (last_key,))
            connection.close()
            (folder / ACKNOWLEDGED).touch()
        return cls(folder, writable=True)

    def close(self) -> None:
        """Closes every connection; the last one of a database folds the write-ahead log into it."""
        with self._lock:
            for connection in [*self._readers, *([self._writer] if self._writer else [])]:
                connection.close()
            self._readers.clear()
            self._local = threading.local()
            self._writer = None
            if self._acknowledged is not None:
                self._acknowledged.close()
                self._acknowledged = None

    # Reading

    def revision(self) -> int:
        """That of the last transaction."""
        return int(self._one("SELECT value FROM meta WHERE name = 'revision'"))

    def pruned(self) -> int:
        """Tombstones up to this revision are gone."""
        return int(self._one("SELECT value FROM meta WHERE name = 'pruned'"))

    def count(self) -> int:
        """Products."""
        return int(self._one("SELECT count(*) FROM products"))

    def level(self) -> Level | None:
        """How far this generation has followed another; None: it was made on its own."""
        return _level(self.path, self._reader())

    def key(self, product_id: str) -> int | None:
        """The key of a product, or None."""
        found: int | None = self._one("SELECT key FROM products WHERE product_id = ?", product_id)
        return found

    def products(self, keys: Sequence[int]) -> dict[int, Product]:
        """By key, those that are there. Raises StoreError for a damaged row."""
        found: dict[int, Product] = {}
        for start in range(0, len(keys), AT_ONCE):
            some = [int(key) for key in keys[start : start + AT_ONCE]]
            marks = ",".join("?" * len(some))
            query = f"SELECT key, product_id, checksum, body FROM products WHERE key IN ({marks})"
            found |= {key: self._product(key, *row) for key, *row in self._all(query, *some)}
        return found

    def product(self, product_id: str) -> tuple[int, Product] | None:
        """Key and product, or None."""
        rows = self._all("SELECT key, product_id, checksum, body FROM products WHERE product_id = ?", product_id)
        return next(((key, self._product(key, *row)) for key, *row in rows), None)

    def vector(self, product_id: str) -> Vectors | None:
        """(D,) of a product, or None. Raises StoreError where it is damaged."""
        rows = self._all(
            "SELECT p.key, v.checksum, v.vector FROM products p LEFT JOIN vectors v ON v.key = p.key "
            "WHERE p.product_id = ?",
            product_id,
        )
        return next((self._vector(*row) for row in rows), None)

    def changes(self, since: int, last_key: int) -> Changes:
        """What came after a revision whose highest key was `last_key`."""
        with self._snapshot() as connection:
            revision = connection.execute("SELECT value FROM meta WHERE name = 'revision'").fetchone()[0]
            deleted = connection.execute("SELECT key FROM tombstones WHERE revision > ?", (since,)).fetchall()
            rows = connection.execute(
                "SELECT p.key, p.product_id, p.checksum, p.body, v.checksum, v.vector FROM products p "
                "LEFT JOIN vectors v ON v.key = p.key AND p.key > ? WHERE p.revision > ? ORDER BY p.key",
                (last_key, since),
            ).fetchall()
        written = []
        for key, product_id, checksum, body, vector_checksum, vector in rows:
            if key > last_key and vector is None:
                raise StoreError(f"{self.path}: key {key}: its vector is missing; {REBUILD}")
            known = None if vector is None else self._vector(key, vector_checksum, vector)
            product = self._product(key, product_id, checksum, body)
            written.append(Written(key=key, product=product, vector=known))
        return Changes(revision=revision, deleted=[key for (key,) in deleted], written=written)

    @contextmanager
    def frozen(self) -> Iterator[FrozenTruth]:
        """The state at one revision, whatever is written meanwhile."""
        with self._snapshot() as connection:
            yield FrozenTruth(self, connection)

    def integrity_errors(self) -> list[str]:
        """What SQLite finds wrong with its file; empty: nothing."""
        rows = self._all("PRAGMA integrity_check(20)")
        return [text for (text,) in rows if text != "ok"]

    def damaged(self) -> Iterator[str]:
        """Reads every row; yields what is wrong with those that are not what was written."""
        with self._snapshot() as connection:
            rows = connection.execute(
                "SELECT p.key, p.product_id, p.checksum, p.body, v.checksum, v.vector FROM products p "
                "LEFT JOIN vectors v ON v.key = p.key ORDER BY p.key"
            )
            for key, product_id, checksum, body, vector_checksum, vector in rows:
                try:
                    self._product(key, product_id, checksum, body)
                    self._check_vector(key, vector_checksum, vector)
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
        with _errors(folder / TRUTH):
            self._reader().execute("VACUUM INTO ?", (str(folder / TRUTH),))
            copy = sqlite3.connect(folder / TRUTH, isolation_level=None)
            copy.execute("PRAGMA journal_mode = WAL")
            copy.close()
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
        body, content = product.to_json(), np.asarray(vector, "<f4").tobytes()
        checksum = _checksum(product.product_id, body)
        try:
            key = connection.execute(
                "INSERT INTO products (key, product_id, revision, checksum, body) VALUES (?, ?, ?, ?, ?)",
                (given_key, product.product_id, revision, checksum, body),
            ).lastrowid
        except sqlite3.IntegrityError as error:
            raise StoreError(f"product_id: {product.product_id!r} comes twice; ids are unique") from error
        assert key is not None
        connection.execute("INSERT INTO vectors VALUES (?, ?, ?)", (key, _vector_checksum(key, content), content))
        return key

    def _update(self, connection: sqlite3.Connection, product: Product, revision: int) -> int:
        body = product.to_json()
        row = connection.execute(
            "UPDATE products SET revision = ?, checksum = ?, body = ? WHERE product_id = ? RETURNING key",
            (revision, _checksum(product.product_id, body), body, product.product_id),
        ).fetchone()
        if row is None:
            raise StoreError(f"product_id: {product.product_id!r} is not there to be updated")
        return int(row[0])

    @contextmanager
    def _transaction(self, count: bool = True) -> Iterator[tuple[sqlite3.Connection, int]]:
        """A connection and the transaction's revision; `count`: whether there is a revision of its own."""
        if self._writer is None:
            raise ReadOnlyError(f"{self.folder}: is open to read; open it to write")
        connection = self._writer
        with _errors(self.path):
            connection.execute("BEGIN IMMEDIATE")
            try:
                step = "value + 1" if count else "value"
                (revision,) = connection.execute(
                    f"UPDATE meta SET value = {step} WHERE name = 'revision' RETURNING value"
                ).fetchone()
                yield connection, revision
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            assert self._acknowledged is not None
            with suppress(OSError):  # it is durable; that the note of it lags behind is allowed for
                self._acknowledged.write(revision)

    # Connections

    def _open_writer(self) -> sqlite3.Connection:
        with _errors(self.path):
            connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode=rw",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                timeout=BUSY_S,
            )
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            return connection

    def _reader(self) -> sqlite3.Connection:
        """This thread's own."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None or self._local.immutable != self._immutable_since():
            self._local.immutable = self._immutable_since()
            connection = self._open_reader()
            self._local.connection = connection
            with self._lock:
                self._readers.append(connection)
        return connection

    def _open_reader(self) -> sqlite3.Connection:
        uri = f"{self.path.absolute().as_uri()}?mode=ro"
        with _errors(self.path):
            return sqlite3.connect(
                uri if self._immutable_since() is None else f"{uri}&immutable=1",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                timeout=BUSY_S,
            )

    def _immutable_since(self) -> int | None:
        """The file's time where the folder cannot be written, None where it can.

        There SQLite reads a database only if it is told that nobody writes to it: then a connection is good for as long
        as the file stays as it was.
        """
        if os.access(self.folder, os.W_OK) or self.path.with_name(f"{TRUTH}-wal").exists():
            return None
        return self.path.stat().st_mtime_ns

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own that sees one state."""
        connection = self._open_reader()
        try:
            with _errors(self.path):
                connection.execute("BEGIN")
                yield connection
        finally:
            connection.close()

    def _all(self, query: str, *values: object) -> list[Any]:
        with _errors(self.path):
            return self._reader().execute(query, values).fetchall()

    def _one(self, query: str, *values: object) -> Any:
        rows = self._all(query, *values)
        return rows[0][0] if rows else None

    # Checks

    def _check_version(self) -> None:
        (application,), (version,) = self._all("PRAGMA application_id") + self._all("PRAGMA user_version")
        if application != APPLICATION_ID:
            raise StoreError(f"{self.path}: is not a store of ITEm; {REBUILD}")
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{self.path}: schema version {version}, this program knows up to {SCHEMA_VERSION}; update the program"
            )
        while version < SCHEMA_VERSION:
            if self._writer is None:
                raise StoreError(
                    f"{self.path}: schema version {version}; open it to write once, which brings it up to date"
                )
            version += 1
            with _errors(self.path):
                self._writer.executescript(f"BEGIN; {MIGRATIONS[version]} PRAGMA user_version = {version}; COMMIT;")

    def _check_structure(self) -> None:
        """What a row's checksum cannot tell: tables and indexes that are not what they were. Rows are not read."""
        with closing(sqlite3.connect(":memory:")) as expected:
            expected.executescript(SCHEMA)
            query = "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_stat%' ORDER BY name"
            if self._all(query) != expected.execute(query).fetchall():
                raise StoreError(f"{self.path}: its schema is damaged; {REBUILD}")
        for table in ("products", "tombstones", "meta", "sqlite_sequence"):
            for (text,) in self._all(f"PRAGMA integrity_check({table})"):
                if text != "ok":
                    raise StoreError(f"{self.path}: damaged: {text}; {REBUILD}")
        for name in ("revision", "pruned", "about"):
            if self._one("SELECT value FROM meta WHERE name = ?", name) is None:
                raise StoreError(f"{self.path}: {name} is missing; {REBUILD}")

    def _check_acknowledged(self, acknowledged: int) -> None:
        """`acknowledged` was read first: a writer may go on meanwhile."""
        if self.revision() < acknowledged:
            raise StoreError(
                f"{self.path}: is at revision {self.revision()}, but {acknowledged} was acknowledged: its write-ahead"
                f" log is damaged or missing; {REBUILD}"
            )

    def _read_about(self) -> About:
        try:
            text = str(self._one("SELECT value FROM meta WHERE name = 'about'"))
            return TypeAdapter(About).validate_python(unsealed(text.encode()))
        except ValueError as error:  # pydantic's errors are ValueErrors
            raise StoreError(f"{self.path}: about: {error}; {REBUILD}") from error

    def _product(self, key: int, product_id: Any, checksum: int, body: Any) -> Product:
        if not isinstance(product_id, str) or not isinstance(body, str) or _checksum(product_id, body) != checksum:
            raise StoreError(f"{self.path}: key {key}, product {product_id!r}: damaged; {REBUILD}, or upsert it again")
        return Product.from_json(product_id, body)

    def _vector(self, key: int, checksum: int | None, content: Any) -> Vectors:
        self._check_vector(key, checksum, content)
        return np.frombuffer(content, "<f4").astype(np.float32)

    def _check_vector(self, key: int, checksum: int | None, content: Any) -> None:
        size = 4 * self.about.vector_width
        if not isinstance(content, bytes) or len(content) != size or _vector_checksum(key, content) != checksum:
            raise StoreError(f"{self.path}: key {key}: its vector is damaged; {REBUILD}, or upsert its product again")


def read_level(folder: Path) -> Level | None:
    """As `Truth.level`, of a generation's folder, without a look at all the rest. Raises StoreError."""
    path = folder / TRUTH
    with _errors(path), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        return _level(path, connection)


def _level(path: Path, connection: sqlite3.Connection) -> Level | None:
    with _errors(path):
        rows = connection.execute("SELECT value FROM meta WHERE name = 'level'").fetchall()
    try:
        return TypeAdapter(Level).validate_python(unsealed(rows[0][0].encode())) if rows else None
    except ValueError as error:
        raise StoreError(f"{path}: level: {error}; {REBUILD}") from error


class FrozenTruth:
    """A truth at one revision."""

    def __init__(self, truth: Truth, connection: sqlite3.Connection) -> None:
        self.truth, self._connection = truth, connection
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

    def vectors_of(self, keys: Keys) -> Vectors:
        """(n, D) of n keys that are there. Raises StoreError for a damaged row."""
        vectors = np.empty((len(keys), self.truth.about.vector_width), dtype=np.float32)
        for place, key in enumerate(keys.tolist()):
            row = self._connection.execute("SELECT key, checksum, vector FROM vectors WHERE key = ?", (key,)).fetchone()
            vectors[place] = self.truth._vector(*row)
        return vectors

    def vectors(self) -> Iterator[tuple[Keys, Vectors]]:
        """All (n,) keys, ascending, and (n, D) vectors, block by block. Raises StoreError for a damaged row."""
        cursor = self._connection.execute("SELECT key, checksum, vector FROM vectors ORDER BY key")
        while rows := cursor.fetchmany(AT_ONCE):
            for row in rows:
                self.truth._check_vector(*row)
            vectors = np.frombuffer(b"".join(row[2] for row in rows), "<f4").reshape(len(rows), -1)
            yield np.array([row[0] for row in rows], dtype=np.int64), vectors.astype(np.float32)

    def blocks(self, after_key: int = 0) -> Iterator[tuple[Keys, list[Product], Vectors]]:
        """(n,) higher keys, ascending, n products and (n, D) vectors. Raises StoreError for a damaged row."""
        cursor = self._connection.execute(
            "SELECT p.key, p.product_id, p.checksum, p.body, v.checksum, v.vector FROM products p "
            "LEFT JOIN vectors v ON v.key = p.key WHERE p.key > ? ORDER BY p.key",
            (after_key,),
        )
        while rows := cursor.fetchmany(AT_ONCE):
            products = [self.truth._product(*row[:4]) for row in rows]
            for row in rows:
                self.truth._check_vector(row[0], row[4], row[5])
            vectors = np.frombuffer(b"".join(row[5] for row in rows), "<f4").reshape(len(rows), -1)
            yield np.array([row[0] for row in rows], dtype=np.int64), products, vectors.astype(np.float32)

    def _keys(self, query: str, *values: object) -> Keys:
        return np.array([key for (key,) in self._connection.execute(query, values)], dtype=np.int64)

    def _value(self, query: str, *values: object) -> int:
        return int(self._connection.execute(query, values).fetchone()[0])


class _Acknowledged:
    """The last revision that was acknowledged: 8 bytes and their checksum, written after each commit.

    Never flushed: it lags behind after a power cut at worst, and then refuses nothing.
    """

    LAYOUT = struct.Struct("<QI")

    def __init__(self, path: Path, writable: bool) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        except OSError as error:
            raise StoreError(f"{path}: cannot be opened ({error.strerror}); {REBUILD}") from error

    def read(self) -> int:
        """The revision; 0 before the first."""
        content = os.pread(self._descriptor, self.LAYOUT.size, 0)
        if not content:
            return 0
        revision, checksum = self.LAYOUT.unpack(content.ljust(self.LAYOUT.size, b"\0"))
        if zlib.crc32(content[:8]) != checksum:
            raise StoreError(
                f"{self.path}: damaged: nobody can tell whether acknowledged writes are missing; restore a backup, or"
                " empty the file to go on with what is there"
            )
        return int(revision)

    def write(self, revision: int) -> None:
        number = struct.pack("<Q", revision)
        os.pwrite(self._descriptor, number + struct.pack("<I", zlib.crc32(number)), 0)

    def close(self) -> None:
        os.close(self._descriptor)


def _vector_checksum(key: int, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(struct.pack("<q", key)))


def _checksum(product_id: str, body: str) -> int:
    return zlib.crc32(body.encode(), zlib.crc32(product_id.encode()))


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """What SQLite says, as a StoreError."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: {error}; nothing of this was written") from error
