"""The SQLite database of a truth: its schema, and the connections to it.

One connection writes (WAL, synchronous=FULL); each thread reads over its own, and so does each snapshot.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from index.truth_rows import REBUILD
from item.errors import ReadOnlyError, StoreError

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


class Database:
    """An open database. One thread at a time writes; any may read. All methods raise StoreError where SQLite fails."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        """Opens what `create_database` has made.

        Raises:
            StoreError: not there, damaged, or of a newer version.
        """
        self.path = path
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._writer: sqlite3.Connection | None = None
        if not self.path.is_file():
            raise StoreError(f"{self.path}: is not there; {REBUILD}")
        try:
            self._writer = self._open_writer() if writable else None
            self._check_version()
            self._check_structure()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes every connection; the last one of a database folds the write-ahead log into it."""
        with self._lock:
            for connection in [*self._readers, *([self._writer] if self._writer else [])]:
                connection.close()
            self._readers.clear()
            self._local = threading.local()
            self._writer = None

    def rows(self, query: str, *values: object) -> list[Any]:
        """All rows of an answer."""
        with sqlite_errors(self.path):
            return self._reader().execute(query, values).fetchall()

    def value(self, query: str, *values: object) -> Any:
        """The first value of the first row, or None."""
        rows = self.rows(query, *values)
        return rows[0][0] if rows else None

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own that sees one state."""
        connection = self._open_reader()
        try:
            with sqlite_errors(self.path):
                connection.execute("BEGIN")
                yield connection
        finally:
            connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The connection that writes: what it is told is durable at the end, or, after an error, undone.

        Raises ReadOnlyError where the database is open to read.
        """
        if self._writer is None:
            raise ReadOnlyError(f"{self.path.parent}: is open to read; open it to write")
        connection = self._writer
        with sqlite_errors(self.path):
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def copy_to(self, path: Path) -> None:
        """Writes the present state into another file, whatever is written meanwhile."""
        with sqlite_errors(path):
            self._reader().execute("VACUUM INTO ?", (str(path),))
            copy = sqlite3.connect(path, isolation_level=None)
            copy.execute("PRAGMA journal_mode = WAL")
            copy.close()

    def _open_writer(self) -> sqlite3.Connection:
        with sqlite_errors(self.path):
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
        with sqlite_errors(self.path):
            return sqlite3.connect(
                uri if self._immutable_since() is None else f"{uri}&immutable=1",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                timeout=BUSY_S,
            )

    def _immutable_since(self) -> int | None:
        """The file's time where its folder cannot be written, None where it can.

        There SQLite reads a database only if it is told that nobody writes to it: then a connection is good for as long
        as the file stays as it was.
        """
        if os.access(self.path.parent, os.W_OK) or self.path.with_name(f"{self.path.name}-wal").exists():
            return None
        return self.path.stat().st_mtime_ns

    def _check_version(self) -> None:
        (application,), (version,) = self.rows("PRAGMA application_id") + self.rows("PRAGMA user_version")
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
            with sqlite_errors(self.path):
                self._writer.executescript(f"BEGIN; {MIGRATIONS[version]} PRAGMA user_version = {version}; COMMIT;")

    def _check_structure(self) -> None:
        """What a row's checksum cannot tell: tables and indexes that are not what they were. Rows are not read."""
        with closing(sqlite3.connect(":memory:")) as expected:
            expected.executescript(SCHEMA)
            query = "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_stat%' ORDER BY name"
            if self.rows(query) != expected.execute(query).fetchall():
                raise StoreError(f"{self.path}: its schema is damaged; {REBUILD}")
        for table in ("products", "tombstones", "meta", "sqlite_sequence"):
            for (text,) in self.rows(f"PRAGMA integrity_check({table})"):
                if text != "ok":
                    raise StoreError(f"{self.path}: damaged: {text}; {REBUILD}")
        for name in ("revision", "pruned", "about"):
            if self.value("SELECT value FROM meta WHERE name = ?", name) is None:
                raise StoreError(f"{self.path}: {name} is missing; {REBUILD}")


def create_database(path: Path, about: str, last_key: int) -> None:
    """Makes an empty database, whose keys come after `last_key`. Raises StoreError."""
    with sqlite_errors(path):
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        values = [("about", about), ("revision", 0), ("pruned", 0)]
        connection.executemany("INSERT INTO meta VALUES (?, ?)", values)
        connection.execute("INSERT INTO sqlite_sequence VALUES ('products', ?)", (last_key,))
        connection.close()


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """What SQLite says, as a StoreError."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: {error}; nothing of this was written") from error
