"""What searches work on: the rows of all segments one after another, then fresh ones, which no segment holds yet.

A segment's keys are above those of the one before; fresh rows are in the order of theirs. A row that was deleted or
replaced stays until its segment is written anew, but is not alive. `Memory` changes with every write, under the store's
lock; a `View` never does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from index.changes import Changes, Keys
from index.columns import Columns
from index.exact import Mask, Rows, Vectors, score
from index.filters import Filter
from index.product import Product
from index.segment import Segment
from index.words import FreshWords

FIRST_CAPACITY = 1024

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The state at one moment. n rows, of which `num_segment_rows` are of segments and the others fresh.

    keys: (n,). alive: (n,), None where all are. fresh: (n - num_segment_rows, D). fresh_ids: theirs; more may
    be at its end. fresh_words: theirs, and those of `reworded` rows, in place of what segments know; more may be there.
    """

    segments: tuple[Segment, ...]
    num_segment_rows: int
    keys: Keys
    alive: Mask | None
    fresh: Vectors
    fresh_ids: list[str]
    fresh_words: FreshWords
    reworded: Rows

    def __len__(self) -> int:
        return len(self.keys)

    def product_ids(self, rows: Rows) -> list[str]:
        """The ids of rows in [0, n)."""
        found = np.empty(len(rows), dtype=object)
        for segment, first in self.parts():
            if len(self.segments) == 1 and not len(self.fresh):
                return list(segment.ids[rows])
            here = (rows >= first) & (rows < first + len(segment))
            found[here] = segment.ids[rows[here] - first]
        fresh = rows >= self.num_segment_rows
        found[fresh] = [self.fresh_ids[row] for row in (rows[fresh] - self.num_segment_rows).tolist()]
        return list(found)

    def scores(self, query: Vectors, rows: Rows) -> Vectors:
        """(m,) cosines of a query, (D,), with rows in [0, n), (m,), whatever part they are of."""
        found = np.empty(len(rows), dtype=np.float32)
        for vectors, first in self.arrays():
            here = (rows >= first) & (rows < first + len(vectors))
            if here.any():
                found[here] = score(query[None], vectors, (rows[here] - first)[None])[0]
        return found

    def vectors(self, rows: Rows) -> Vectors:
        """(m, D) of rows in [0, n), (m,)."""
        found = np.empty((len(rows), self.fresh.shape[1]), dtype=np.float32)
        for vectors, first in self.arrays():
            here = (rows >= first) & (rows < first + len(vectors))
            found[here] = vectors[rows[here] - first]
        return found

    def rows_of(self, keys: Keys) -> Rows:
        """(m,) the rows of keys, (m,); -1 for those that are not here."""
        return rows_of(keys, self.segments, self.keys[self.num_segment_rows :])

    def rows_with_words(self, text: str, count: int, allowed: Mask | None) -> Rows:
        """The best `count` rows by their words (index.words) of those that are allowed, (n,), the best first."""
        fresh_allowed = np.ones(len(self), dtype=bool) if allowed is None else allowed
        found = [self.fresh_words.search(text, count, fresh_allowed)]
        for segment, first in self.parts():
            if segment.words is not None:
                part = self.worded_by_segment(first, len(segment), allowed)
                ranks, scores = segment.words.search(text, count, None if part is None else part[segment.rows_by_key])
                found.append((segment.rows_by_key[ranks] + first, scores))
        rows, scores = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        return rows[np.lexsort((self.keys[rows], -scores))][:count]

    def worded_by_segment(self, first: int, num_rows: int, allowed: Mask | None) -> Mask | None:
        """(num_rows,) allowed rows of a segment whose words it knows; None: all of them."""
        reworded = self.reworded[(self.reworded >= first) & (self.reworded < first + num_rows)] - first
        if not len(reworded):
            return None if allowed is None else allowed[first : first + num_rows]
        part = np.ones(num_rows, dtype=bool) if allowed is None else allowed[first : first + num_rows].copy()
        part[reworded] = False
        return part

    def arrays(self) -> list[tuple[Vectors, int]]:
        """The vectors of all parts, each with its first row."""
        return [*((segment.vectors, first) for segment, first in self.parts()), (self.fresh, self.num_segment_rows)]

    def parts(self) -> list[tuple[Segment, int]]:
        """The segments, each with its first row."""
        firsts = accumulate(map(len, self.segments), initial=0)
        return list(zip(self.segments, firsts, strict=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The n rows of segments at a revision: their attributes, (n,) whether they are alive, and those that got other
    words than the segments know."""

    segments: tuple[Segment, ...]
    revision: int
    columns: Columns
    alive: Mask
    reworded: Rows

    def parts(self) -> Iterator[tuple[Segment, pa.Table, Mask, bool]]:
        """Each segment, its attributes, its rows that are alive, and whether words of it changed."""
        first = 0
        for segment in self.segments:
            end = first + len(segment)
            reworded = bool(np.any((self.reworded >= first) & (self.reworded < end)))
            yield segment, self.columns.to_table(first, end), self.alive[first:end], reworded
            first = end


class Memory:
    """Keys, life, attributes and fresh vectors of all rows; see the module. The caller holds the store's lock."""

    def __init__(self, segments: Sequence[Segment], width: int, revision: int) -> None:
        """The rows of segments; `revision` is that of the oldest of them, up to which `apply` need not go back."""
        self.segments = tuple(segments)
        self.revision = revision
        self.last_key = segments[-1].info.last_key if segments else 0
        self.num_segment_rows = sum(map(len, segments))
        self.num_updated = 0  # rows of segments that have other attributes than these say
        self._is_updated = np.zeros(self.num_segment_rows, dtype=bool)
        self.columns = Columns()
        for segment in segments:
            self.columns.append_table(segment.attributes)
        self._keys = Grown(np.concatenate([np.empty(0, np.int64), *(one.keys for one in segments)]))
        alive = (np.ones(len(one), dtype=bool) if one.alive is None else one.alive for one in segments)
        self._alive = Grown(np.concatenate([np.empty(0, dtype=bool), *alive]))
        self.num_dead = self.num_segment_rows - int(np.count_nonzero(self._alive.values))
        self._fresh = Grown(np.empty((0, width), dtype=np.float32))
        self._fresh_ids: list[str] = []
        self._fresh_words = FreshWords()
        self._reworded = Grown(np.empty(0, np.int64))  # rows of segments that got other words since

    def __len__(self) -> int:
        return len(self._keys.values) - self.num_dead

    @property
    def num_fresh(self) -> int:
        """Rows that are in no segment, dead ones too."""
        return len(self._fresh_ids)

    def segment_sizes(self) -> list[tuple[int, int]]:
        """Of each segment: the rows that are alive, and all of them."""
        sizes, first = [], 0
        for segment in self.segments:
            alive = self._alive.values[first : first + len(segment)]
            sizes.append((int(np.count_nonzero(alive)), len(segment)))
            first += len(segment)
        return sizes

    def apply(self, changes: Changes) -> None:
        """Takes changes over; those that are here already change nothing."""
        rows = self._rows(changes.deleted)
        dying = np.unique(rows[rows >= 0])
        self.num_dead += int(np.count_nonzero(self._alive.values[dying]))
        self._alive.values[dying] = False
        new = []
        rows = self._rows([written.key for written in changes.written])
        for written, row in zip(changes.written, rows.tolist(), strict=True):
            if written.key > self.last_key:
                assert written.vector is not None
                new.append((written.key, written.product, written.vector))
            elif row >= 0:
                self._update(row, written.product)
        if new:
            keys, products, vectors = zip(*new, strict=True)
            for row, product in enumerate(products, start=len(self._keys.values)):
                self._fresh_words.add(row, product)
            self.columns.append(products)
            self._fresh.append(np.stack(vectors))
            self._fresh_ids += [product.product_id for product in products]
            self._keys.append(np.array(keys, dtype=np.int64))
            self._alive.append(np.ones(len(keys), dtype=bool))
            self.last_key = keys[-1]
        self.revision = changes.revision

    def snapshot(self) -> Snapshot:
        """Attributes and life of the segments' rows as they are now, to be written without the lock."""
        return Snapshot(
            segments=self.segments,
            revision=self.revision,
            columns=self.columns.snapshot(),
            alive=self._alive.values[: self.num_segment_rows].copy(),
            reworded=self._reworded.values,
        )

    def view(self) -> View:
        """The present state, for searches outside the lock."""
        return View(
            segments=self.segments,
            num_segment_rows=self.num_segment_rows,
            keys=self._keys.values,
            alive=self._alive.values.copy() if self.num_dead else None,
            fresh=self._fresh.values,
            fresh_ids=self._fresh_ids,
            fresh_words=self._fresh_words,
            reworded=self._reworded.values,
        )

    def mask(self, condition: Filter) -> Mask:
        """(n,) the living rows that pass."""
        passed = self.columns.mask(condition)
        if self.num_dead:
            passed &= self._alive.values
        return passed

    def masks(self, filters: Sequence[Filter | None]) -> list[Mask | None]:
        """Of each filter its mask, made once for equal ones; None for none."""
        by_filter = {one: self.mask(one) for one in dict.fromkeys(filters) if one is not None}
        return [None if one is None else by_filter[one] for one in filters]

    def _update(self, row: int, product: Product) -> None:
        """Gives a row other attributes; its words are searched anew only where a text of them changed."""
        before = self.columns.texts(row)
        self.columns.update(row, product)
        if row < self.num_segment_rows and not self._is_updated[row]:
            self._is_updated[row] = True
            self.num_updated += 1
        if self.columns.texts(row) != before:
            self._fresh_words.add(row, product)
            if row < self.num_segment_rows:
                self._reworded.append(np.array([row]))

    def _rows(self, keys: Sequence[int]) -> Rows:
        """(m,) the rows of m keys, -1 for those that are not here."""
        return rows_of(np.array(keys, dtype=np.int64), self.segments, self._keys.values[self.num_segment_rows :])


def rows_of(keys: Keys, segments: Sequence[Segment], fresh: Keys) -> Rows:
    """(m,) the rows of keys, (m,), -1 for those that are not there: of segments one after another, then fresh ones."""
    found, first = np.full(len(keys), -1), 0
    for segment in segments:
        rows = segment.rows_of(keys)
        found = np.where(rows < 0, found, rows + first)
        first += len(segment)
    places = np.searchsorted(fresh, keys)
    there = np.append(fresh, -1)[places] == keys
    return np.where(there, places + first, found)


class Grown(Generic[T]):
    """An array that grows at its end; what `values` gave out before stays as it was, but for changes in place."""

    def __init__(self, values: npt.NDArray[T]) -> None:
        self._content, self._count = values, len(values)

    @property
    def values(self) -> npt.NDArray[T]:
        return self._content[: self._count]

    def append(self, values: npt.NDArray[T]) -> None:
        count = self._count + len(values)
        if count > len(self._content):
            larger = np.empty((max(FIRST_CAPACITY, count + count // 2), *values.shape[1:]), dtype=values.dtype)
            larger[: self._count] = self.values
            self._content = larger
        self._content[self._count : count] = values
        self._count = count
