"""Attributes, categories and groups of products as columns in memory: a filter becomes a mask over all rows.

An attribute has up to two columns, made when first seen. A *coded* one holds int32 codes into a dictionary of distinct
values: strings, booleans, lists of strings. A *numeric* one holds float64. So an attribute may be a number in one
product and a string in another. A value is looked up in hash tables, also among a million of them; what is done to all
rows is a pass of NumPy over an array.
"""

from __future__ import annotations

import copy
import json
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from typing import Any, Self, assert_never

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from index.filters import All, AnyOf, Categorised, Equal, Filter, In, Not, Range, Under, Value
from index.product import Product
from item.catalog.listing import AttributeValue

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]
Word = str | bool | tuple[str, ...]  # what has a code: no numbers, so True, which equals 1.0, is found by itself alone

# Names of a table's columns. An attribute's come with a prefix, so it may be called anything.
CATEGORY, GROUP = "category", "group"
CODED, NUMERIC = "coded:", "numeric:"

MISSING_CODE = -1
# NumPy compares all rows with one number after the other. Many numbers it sorts together with the rows: 110 ms for a
# million rows, where Arrow's hash table takes 12.
FEW_NUMBERS = 50

_JSON = json.JSONEncoder(ensure_ascii=False)


class Columns:
    """The columns of n = `len(columns)` products, rows 0 to n - 1; rows are added at the end and changed in place.

    Not safe by itself: the caller holds a lock, for reading too while another thread writes. Values that no row has any
    more stay in the dictionaries; a table leaves them out.
    """

    def __init__(self) -> None:
        self._num_rows = 0
        self._capacity = 0
        self._columns: dict[str, _Column] = {}
        self._category = self._columns[CATEGORY] = _Coded(self._capacity, _wider_paths)
        self._groups = self._column(GROUP)

    def __len__(self) -> int:
        return self._num_rows

    def append(self, products: Sequence[Product]) -> None:
        """Adds a row for each product."""
        self._reserve(self._num_rows + len(products))
        for row, product in enumerate(products, start=self._num_rows):
            self._write(row, product)
        self._num_rows += len(products)

    def update(self, row: int, product: Product) -> None:
        """Gives a row in [0, n) all values of a product; attributes that it lacks become missing. Raises IndexError."""
        self._check_row(row)
        for column in self._columns.values():
            column.cells[row] = column.missing
        self._write(row, product)

    def mask(self, condition: Filter) -> Mask:
        """(n,) a new array: the rows that pass."""
        match condition:
            case All(conditions):
                return reduce(np.logical_and, map(self.mask, conditions))
            case AnyOf(conditions):
                return reduce(np.logical_or, map(self.mask, conditions))
            case Not(negated):
                return ~self.mask(negated)
            case Equal(attribute, value):
                return self._one_of(attribute, (value,))
            case In(attribute, values):
                return self._one_of(attribute, values)
            case Range():
                return self._in_range(condition)
            case Under(category):
                return self._category.one_of((category,), self._num_rows)
            case Categorised():
                return ~self._category.one_of(((),), self._num_rows)
        assert_never(condition)

    def group_codes(self) -> npt.NDArray[np.int32]:
        """(n,) equal for rows of one group, -1 for none; read-only, and good until the next change."""
        return _read_only(self._groups.cells[: self._num_rows])

    def numbers(self, attribute: str) -> npt.NDArray[np.float64]:
        """(n,) the numeric values of an attribute, NaN for none; read-only, and good until the next change."""
        column = self._columns.get(NUMERIC + attribute)
        return _read_only(np.full(self._num_rows, np.nan) if column is None else column.cells[: self._num_rows])

    def value(self, row: int, attribute: str) -> AttributeValue | None:
        """The value of an attribute in a row in [0, n), or None. Raises IndexError."""
        self._check_row(row)
        for column in self._of(attribute):
            if (value := column.value(row)) is not None:
                return value
        return None

    def texts(self, row: int) -> list[AttributeValue]:
        """The attributes' strings and lists of strings in a row in [0, n), by column."""
        coded = (column for name, column in self._columns.items() if name.startswith(CODED))
        return [value for column in coded if isinstance(value := column.value(row), str | list)]

    def facets(self, rows: Rows, attribute: str) -> list[tuple[Value, int]]:
        """How many of the rows have each value of an attribute; a list has each of its strings, once.

        Pairs rather than a dict, in which True and 1.0 would be one. The most frequent first; ties by type, then by
        value.
        """
        counts = [count for column in self._of(attribute) for count in column.counts(rows)]
        return sorted(counts, key=lambda count: (-count[1], type(count[0]).__name__, count[0]))

    def categories(self, rows: Rows, level: int) -> list[tuple[tuple[str, ...], int]]:
        """How many of the rows lie under each category path of up to `level` levels, the most frequent first, ties by
        path; rows without category count for none."""
        counts = Counter[tuple[str, ...]]()
        for path, count in self._category.word_counts(rows):
            if isinstance(path, tuple) and path:
                counts[path[:level]] += count
        return sorted(counts.items(), key=lambda count: (-count[1], count[0]))

    def to_table(self, start: int = 0, end: int | None = None) -> pa.Table:
        """Rows [start, end) as a table of their own: dictionaries of JSON texts, and float64 with NaN for none."""
        rows = range(self._num_rows)[start:end]
        return pa.table({name: column.to_arrow(rows.start, rows.stop) for name, column in self._columns.items()})

    def snapshot(self) -> Columns:
        """The rows as they are now, for `to_table` without the lock, whatever is written to these meanwhile."""
        taken = copy.copy(self)
        taken._columns = {name: column.snapshot() for name, column in self._columns.items()}
        return taken

    def append_table(self, table: pa.Table) -> None:
        """Adds the rows of a table that `to_table` made, or of a selection or concatenation of such tables."""
        self._reserve(self._num_rows + table.num_rows)
        for name in table.column_names:
            # Gives chunks one dictionary, at once where they share it: `unify_dictionaries` took 28 s for 250 chunks
            # of a file that share a million words.
            self._column(name).read_arrow(self._num_rows, table[name].combine_chunks())
        self._num_rows += table.num_rows

    def _write(self, row: int, product: Product) -> None:
        """Puts a product's values into a row in which all are missing."""
        self._category.write(row, product.category)
        if product.group_id is not None:
            self._groups.write(row, product.group_id)
        for name, value in product.attributes.items():
            self._column((CODED if isinstance(value, str | bool | list) else NUMERIC) + name).write(row, value)

    def _reserve(self, num_rows: int) -> None:
        if num_rows > self._capacity:
            self._capacity = max(num_rows, 2 * self._capacity)
            for column in self._columns.values():
                column.resize(self._capacity)

    def _column(self, name: str) -> _Column:
        """A column by its name in a table, made when first seen."""
        if name not in self._columns:
            self._columns[name] = _new_column(name, self._capacity)
        return self._columns[name]

    def _of(self, attribute: str) -> list[_Column]:
        names = (CODED + attribute, NUMERIC + attribute)
        return [self._columns[name] for name in names if name in self._columns]

    def _one_of(self, attribute: str, values: Sequence[Value]) -> Mask:
        masks = (column.one_of(values, self._num_rows) for column in self._of(attribute))
        return reduce(np.logical_or, masks, np.zeros(self._num_rows, np.bool_))

    def _in_range(self, bounds: Range) -> Mask:
        numbers = self.numbers(bounds.attribute)  # NaN passes no comparison
        compared = (
            (np.greater_equal, bounds.at_least),
            (np.greater, bounds.above),
            (np.less_equal, bounds.at_most),
            (np.less, bounds.below),
        )
        return reduce(np.logical_and, [compare(numbers, bound) for compare, bound in compared if bound is not None])

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self._num_rows:
            raise IndexError(f"row {row} of {self._num_rows}")


class _Cells:
    """One cell a row, at least n of them. Where there is no value, and from row n on, they are `missing`."""

    def __init__(self, capacity: int, missing: np.int32 | np.float64) -> None:
        self.missing = missing
        self.cells: npt.NDArray[Any] = np.full(capacity, missing)

    def snapshot(self) -> Self:
        """Other cells of the same words, of which there may only be more later."""
        taken = copy.copy(self)
        taken.cells = self.cells.copy()
        return taken

    def resize(self, capacity: int) -> None:
        self.cells = np.concatenate([self.cells, np.full(capacity - len(self.cells), self.missing)])


class _Numeric(_Cells):
    """Numbers, NaN where there is none. Asked for values of another kind, it passes them over, as `_Coded` does."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity, np.float64(np.nan))

    def write(self, row: int, value: Any) -> None:
        self.cells[row] = value

    def value(self, row: int) -> AttributeValue | None:
        number = float(self.cells[row])
        return None if math.isnan(number) else number

    def one_of(self, values: Iterable[Value | Word], num_rows: int) -> Mask:
        wanted = np.array([value for value in values if not isinstance(value, str | bool | tuple)], np.float64)
        cells = self.cells[:num_rows]
        if len(wanted) <= FEW_NUMBERS:
            return np.isin(cells, wanted)
        wanted = np.append(wanted, -wanted[wanted == 0])  # Arrow tells -0.0 from 0.0
        return pc.is_in(pa.array(cells), pa.array(wanted)).to_numpy(zero_copy_only=False)

    def counts(self, rows: Rows) -> Iterable[tuple[Value, int]]:
        numbers = self.cells[rows]
        found, counts = np.unique(numbers[~np.isnan(numbers)], return_counts=True)
        return zip(found.tolist(), counts.tolist(), strict=True)

    def to_arrow(self, start: int, end: int) -> pa.Array:
        return pa.array(self.cells[start:end].copy())

    def read_arrow(self, start: int, cells: pa.Array) -> None:
        self.cells[start : start + len(cells)] = cells.to_numpy(zero_copy_only=False)


class _Coded(_Cells):
    """Codes of words. A word is found by itself and by its parts: a list by its strings, a path by the wider paths."""

    def __init__(self, capacity: int, parts: Callable[[tuple[str, ...]], Iterable[Word]]) -> None:
        super().__init__(capacity, np.int32(MISSING_CODE))
        self._parts = parts
        self._words: list[Word] = []
        self._codes: dict[Word, int] = {}
        # By part: the codes of the words that have it, the same code again where a list has a string twice.
        self._codes_with: defaultdict[Word, array[int]] = defaultdict(lambda: array("i"))

    def write(self, row: int, value: Any) -> None:
        self.cells[row] = self._code(_word(value))

    def value(self, row: int) -> AttributeValue | None:
        code = self.cells[row]
        if code == MISSING_CODE:
            return None
        word = self._words[code]
        return list(word) if isinstance(word, tuple) else word

    def one_of(self, values: Iterable[Value | Word], num_rows: int) -> Mask:
        wanted: list[Word] = [value for value in values if isinstance(value, str | bool | tuple)]
        passes = np.zeros(len(self._words) + 1, np.bool_)  # by code; the last one is that of a missing value
        passes[[self._codes[word] for word in wanted if word in self._codes]] = True
        for part in wanted:
            if part in self._codes_with:
                passes[np.array(self._codes_with[part])] = True
        cells = self.cells[:num_rows]
        codes = np.flatnonzero(passes).tolist()
        return cells == codes[0] if len(codes) == 1 else passes[cells]

    def counts(self, rows: Rows) -> Iterable[tuple[Value, int]]:
        found = Counter[Value]()
        for word, count in self.word_counts(rows):
            for value in set(word) if isinstance(word, tuple) else (word,):
                found[value] += count
        return found.items()

    def word_counts(self, rows: Rows) -> Iterator[tuple[Word, int]]:
        """The whole words of rows."""
        codes = self.cells[rows]
        counts = np.bincount(codes[codes != MISSING_CODE])
        for code in np.flatnonzero(counts).tolist():
            yield self._words[code], int(counts[code])

    def to_arrow(self, start: int, end: int) -> pa.Array:
        codes = self.cells[start:end]
        used = np.zeros(len(self._words) + 1, np.bool_)
        used[codes] = True
        used[MISSING_CODE] = False
        words = [_JSON.encode(self._words[code]) for code in np.flatnonzero(used).tolist()]
        positions = np.cumsum(used, dtype=np.int32) - np.int32(1)
        indices = pa.array(positions[codes], mask=codes == MISSING_CODE)
        return pa.DictionaryArray.from_arrays(indices, pa.array(words, pa.string()))

    def read_arrow(self, start: int, cells: pa.Array) -> None:
        words = json.loads(f"[{','.join(cells.dictionary.to_pylist())}]")
        codes = np.array([*map(self._code, map(_word, words)), MISSING_CODE], np.int32)
        self.cells[start : start + len(cells)] = codes[cells.indices.fill_null(MISSING_CODE).to_numpy()]

    def _code(self, word: Word) -> int:
        code = self._codes.get(word)
        if code is None:
            code = self._codes[word] = len(self._words)
            self._words.append(word)
            if isinstance(word, tuple):
                for part in self._parts(word):
                    self._codes_with[part].append(code)
        return code


_Column = _Coded | _Numeric


def _new_column(name: str, capacity: int) -> _Column:
    if name.startswith(NUMERIC):
        return _Numeric(capacity)
    return _Coded(capacity, tuple)


def _wider_paths(category: tuple[str, ...]) -> Iterable[Word]:
    return (category[:level] for level in range(1, len(category)))


def _word(value: Word | list[str]) -> Word:
    return tuple(value) if isinstance(value, list) else value


def _read_only(cells: npt.NDArray[Any]) -> npt.NDArray[Any]:
    cells.flags.writeable = False
    return cells
