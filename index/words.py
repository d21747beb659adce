"""Search by letters beside search by vectors: brands and model numbers, ranked by BM25 (SQLite's FTS5).

A segment's words are an immutable file, `words-<sha256>.sqlite`; those of fresh rows are held in memory. Rows are
numbered within the segment, from 0 on. A word is a run of letters and digits, whatever its case and accents: so
"WH-1000XM4" is the phrase "wh 1000xm4", and is not found by "wh1000xm4". Scripts without spaces are no words: a run of
Chinese characters is found whole alone.

BM25 weighs a word by how many rows of the same part have it, and a row by how long it is among them. So scores of
different parts, segments or fresh rows, are comparable only roughly.
"""

from __future__ import annotations

import os
import queue
import re
import sqlite3
import threading
import unicodedata
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from index.exact import Mask, Rows
from index.product import Product
from item.errors import StoreError

Scores = npt.NDArray[np.float64]

# How often a column's words count. What a product is called says what it is; an attribute, such as the brand, is shared
# with others; a description also names what the product goes with ("fits WH-1000XM4").
WEIGHTS = {"product_id": 4.0, "title": 4.0, "attributes": 2.0, "description": 1.0}

# A posting list is read for each word, and what people type is shorter. More comes from a pasted text: its first words
# are enough to find it by.
MAX_WORDS, MAX_CHARACTERS = 32, 2_000
# BM25 takes 2 us for each row that has one of the words: a million rows with the same word would take two seconds.
MAX_ROWS = 20_000
COMMON_ROWS = 1_000  # words of more rows are counted when the file is written; others cost nothing that matters

# Nothing is to be rolled back, or flushed before the whole file is.
WRITE_PRAGMAS = (
    "page_size = 8192",
    "cache_size = -65536",  # KiB
    "journal_mode = OFF",
    "synchronous = OFF",
    "locking_mode = EXCLUSIVE",
)
HASH_BYTES = 64 * 1024 * 1024  # of postings held back before they are written; FTS5's own 1 MB makes many small parts


def searched_text(product: Product) -> tuple[str, str, str, str]:
    """What is searched of a product, by the columns of `WEIGHTS`; of attributes strings and lists of strings."""
    values: list[str] = []
    for value in product.attributes.values():
        if isinstance(value, str):
            values.append(value)
        elif isinstance(value, list):
            values += value
    return product.product_id, product.title, "\n".join(values), product.description


def phrases(text: str) -> list[str]:
    """What a person typed as phrases of FTS5, each word once, at most `MAX_WORDS`; none where there is no word.

    Each stands in quotes, in which nothing is an operator. Joined by OR or AND they are never a syntax error.
    """
    found: dict[str, str] = {}
    for word in text[:MAX_CHARACTERS].replace("\0", " ").split():  # FTS5 takes NUL for the end of the text
        if any(map(str.isalnum, word)):
            quoted = word.replace('"', '""')
            found.setdefault(word.casefold(), f'"{quoted}"')
    return list(found.values())[:MAX_WORDS]


def joined(words: Iterable[str], operator: str = "OR") -> str:
    """Phrases as one expression, in brackets."""
    return f"({f' {operator} '.join(words)})"


class Words:
    """The words of a segment, open to search by any number of threads."""

    def __init__(self, path: Path, num_rows: int) -> None:
        """Opens what `WordsWriter` has written of so many rows. Raises StoreError.

        As many connections as there are cores are opened at once: a segment that was merged with others is still
        searched by who began before, when its file has no name any more.
        """
        self.path = path
        self._connections: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        uri = f"{path.absolute().as_uri()}?immutable=1&mode=ro"
        with _errors(path):
            size_bytes = path.stat().st_size
            for _ in range(len(os.sched_getaffinity(0))):
                connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
                connection.execute(f"PRAGMA mmap_size = {size_bytes}")
                self._connections.put(connection)
            weakref.finalize(self, _close_all, self._connections)
            (last,) = self._connections.queue[-1].execute("SELECT max(id) FROM words_docsize").fetchone()
        if last != num_rows - 1:
            raise StoreError(f"{path}: holds rows up to {last}, its segment has {num_rows:,}")

    def search(self, text: str, count: int, allowed: Mask | None = None) -> tuple[Rows, Scores]:
        """The best `count` rows that have any of the words, the best first, ties in the order of rows.

        Exact while no more than `MAX_ROWS` rows have one of the words. Beyond, a row has to have one of the rarer
        words, and more common ones only add to its score, unless fewer than `count` are found so. Where the rarest word
        alone is in more rows, the first `MAX_ROWS` of those that are allowed are ranked.

        Args:
            text: as a person typed it.
            count: at least 1; fewer come back only where fewer allowed rows have any of the words.
            allowed: (n,) the rows that may come back, None: all.

        Returns:
            rows (m,) in [0, n), and their BM25 (m,), above 0, of which more is better; m <= count.

        Raises:
            StoreError: the file cannot be read.
        """
        connection = self._connections.get()
        try:
            with _errors(self.path):
                return search(connection, text, count, allowed)
        finally:
            self._connections.put(connection)


class FreshWords:
    """The words of rows that are in no segment, in memory. Any thread may add and search."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._connection.close)
        create(self._connection, "")
        self._connection.execute("BEGIN")  # without an end: a search sees what was added, and nothing is to be kept

    def add(self, row: int, product: Product) -> None:
        """Adds a row, or gives it the words of a product that has changed."""
        with self._lock:
            insert(self._connection, "INSERT OR REPLACE", [(row, *searched_text(product))])

    def search(self, text: str, count: int, allowed: Mask | None = None) -> tuple[Rows, Scores]:
        """As `Words.search`, always exact; rows from `len(allowed)` on, which were added later, do not come back."""
        with self._lock:
            return search(self._connection, text, count, allowed, max_rows=-1)


class WordsWriter:
    """Writes the words of rows in a file. Raises OSError: a full disk, for instance."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)  # of a writer that died
        self.path = path
        self._num_rows = 0
        self._connection = sqlite3.connect(path, isolation_level=None)
        with self._errors():
            for pragma in WRITE_PRAGMAS:
                self._connection.execute(f"PRAGMA {pragma}")
            create(self._connection, "content='', ")
            self._connection.execute("INSERT INTO words (words, rank) VALUES ('hashsize', ?)", (HASH_BYTES,))
            self._connection.execute("BEGIN")

    def __enter__(self) -> WordsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def append(self, products: Sequence[Product]) -> None:
        """Adds a row for each product."""
        rows = [(row, *searched_text(product)) for row, product in enumerate(products, start=self._num_rows)]
        with self._errors():
            insert(self._connection, "INSERT", rows)
        self._num_rows += len(products)

    def finish(self) -> None:
        """Brings the file into the form that is searched fastest."""
        execute = self._connection.execute
        with self._errors():
            execute("INSERT INTO words (words) VALUES ('optimize')")
            execute("CREATE VIRTUAL TABLE temp.counts USING fts5vocab(main, words, row)")
            execute("INSERT INTO common SELECT term, doc FROM temp.counts WHERE doc > ?", (COMMON_ROWS,))
            execute("COMMIT")
            execute("VACUUM")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What SQLite says, as an OSError: it is none of the truth's, out of which the rows are read meanwhile."""
        try:
            yield
        except sqlite3.Error as error:
            self._connection.close()
            raise OSError(f"{self.path}: {error}") from error


def create(connection: sqlite3.Connection, content: str) -> None:
    """The tables of an empty database. content: an option of FTS5, with a comma."""
    tokenizer = "tokenize='unicode61 remove_diacritics 2'"
    connection.execute(f"CREATE VIRTUAL TABLE words USING fts5({', '.join(WEIGHTS)}, {content}{tokenizer})")
    connection.execute("CREATE TABLE common (word TEXT PRIMARY KEY, num_rows INTEGER NOT NULL) WITHOUT ROWID")


def insert(connection: sqlite3.Connection, verb: str, rows: Sequence[tuple[int, str, str, str, str]]) -> None:
    """Row numbers with what is searched."""
    connection.executemany(f"{verb} INTO words (rowid, {', '.join(WEIGHTS)}) VALUES (?, ?, ?, ?, ?)", rows)


def search(
    connection: sqlite3.Connection, text: str, count: int, allowed: Mask | None, max_rows: int | None = None
) -> tuple[Rows, Scores]:
    """See `Words.search`. max_rows: `MAX_ROWS` unless given, -1: no bound."""
    limit = MAX_ROWS if max_rows is None else max_rows
    rare, common = (phrases(text), []) if limit < 0 else by_frequency(connection, phrases(text), limit)
    condition = ""
    if allowed is not None:
        connection.create_function("allowed", 1, allowed.tobytes().__getitem__)
        condition = f"AND rowid < {len(allowed)} AND allowed(rowid)"
    query = (
        "SELECT rowid, score FROM (SELECT rowid,"
        f" -bm25(words, {', '.join(map(str, WEIGHTS.values()))}) AS score"
        f" FROM words WHERE words MATCH ? {condition} LIMIT {limit}) ORDER BY score DESC, rowid LIMIT ?"
    )
    found: dict[int, float] = {}

    def look(expression: str, number: int) -> None:
        for row, score in connection.execute(query, (expression, number)).fetchall():
            found[row] = max(score, found.get(row, score))

    if rare:
        look(joined(rare), count)
    if rare and common:
        # A row's score is whole in one of the expressions, and less in the others.
        look(f"{joined(rare)} AND {joined(common)}", count)
        if len(found) < count:
            look(joined(common), count + len(found))
    best = sorted(found.items(), key=lambda one: (-one[1], one[0]))[:count]
    return np.array([row for row, _ in best], np.int64), np.array([score for _, score in best], np.float64)


def by_frequency(connection: sqlite3.Connection, words: list[str], max_rows: int) -> tuple[list[str], list[str]]:
    """The rarest of phrases, at least one, that no more than `max_rows` rows have together; and the others."""
    counts = {word: num_rows(connection, word) for word in words}
    rare: list[str] = []
    total = 0
    for word in sorted(words, key=counts.__getitem__):
        total += counts[word]
        if rare and total > max_rows:
            break
        rare.append(word)
    return rare, [word for word in words if word not in rare]


def num_rows(connection: sqlite3.Connection, phrase: str) -> int:
    """How many rows a phrase is in at most; 0 where those are few, or Unicode is read otherwise than by FTS5."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", phrase.lower()) if not unicodedata.combining(c))
    words = re.findall(r"[^\W_]+", plain)
    query = "SELECT num_rows FROM common WHERE word = ?"
    return min((next(iter(connection.execute(query, (word,))), (0,))[0] for word in words), default=0)


def _close_all(connections: queue.LifoQueue[sqlite3.Connection]) -> None:
    while not connections.empty():
        connections.get_nowait().close()


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """What SQLite says, as a StoreError."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"{path}: cannot be read ({error})") from error
