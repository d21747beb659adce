"""Columns against conditions that are evaluated one product at a time."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.columns import FEW_NUMBERS, Columns
from index.filters import Equal, Filter, In, Not, Range, Under
from index.product import Product
from item.catalog.listing import AttributeValue
from tests.index.conditions import held, passes, products, trees, typed


def item(**attributes: AttributeValue) -> Product:
    return Product(product_id="p", attributes=attributes)


def columns_of(products: list[Product]) -> Columns:
    columns = Columns()
    columns.append(products)
    return columns


@st.composite
def histories(draw: st.DrawFn) -> tuple[Columns, list[Product]]:
    """Columns after some changes, and the products that are in them."""
    columns, present = Columns(), list[Product]()
    for _ in range(draw(st.integers(1, 6))):
        change = draw(st.sampled_from(["append", "append", "update", "append table", "reload"]))
        if change == "append":
            new = draw(st.lists(products, max_size=8))
            columns.append(new)
            present += new
        elif change == "append table":
            other = draw(st.lists(products, max_size=8))
            start, end = sorted(draw(st.tuples(*[st.integers(0, len(other))] * 2)))
            columns.append_table(columns_of(other).to_table(start, end))
            present += other[start:end]
        elif change == "update" and present:
            row = draw(st.integers(0, len(present) - 1))
            present[row] = draw(products)
            columns.update(row, present[row])
        elif change == "reload":
            cut = draw(st.integers(0, len(present)))
            tables = [columns.to_table(0, cut), columns.to_table(cut)]
            columns = Columns()
            for table in tables:
                columns.append_table(table)
    return columns, present


def check_cells(columns: Columns, present: list[Product]) -> None:
    assert len(columns) == len(present)
    for name in {name for product in present for name in product.attributes} | {"none has this"}:
        for row, product in enumerate(present):
            value, expected = columns.value(row, name), product.attributes.get(name)
            assert (value, isinstance(value, bool)) == (expected, isinstance(expected, bool))
        numeric = [held(product, name) for product in present]
        expected_numbers = [next((value for kind, value in held if kind == "number"), np.nan) for held in numeric]
        np.testing.assert_array_equal(columns.numbers(name), np.array(expected_numbers, np.float64))
    codes = columns.group_codes()
    assert (codes.shape, codes.dtype) == ((len(present),), np.dtype(np.int32))
    groups = {(product.group_id, code) for product, code in zip(present, codes.tolist(), strict=True)}
    assert len(groups) == len({group for group, _ in groups}) == len({code for _, code in groups})
    assert all((group is None) == (code == -1) for group, code in groups)


@given(histories(), st.lists(trees, min_size=1, max_size=8))
@settings(max_examples=300)
def test_masks_and_cells_equal_the_oracle(history: tuple[Columns, list[Product]], conditions: list[Filter]) -> None:
    columns, present = history
    check_cells(columns, present)
    for condition in conditions:
        mask = columns.mask(condition)
        assert mask.dtype == np.bool_
        assert mask.tolist() == [passes(condition, product) for product in present]


@given(histories(), st.data())
@settings(max_examples=150)
def test_facets_equal_a_counter(history: tuple[Columns, list[Product]], data: st.DataObject) -> None:
    columns, present = history
    rows = [row for row in range(len(present)) if data.draw(st.booleans())]
    for name in {name for product in present for name in product.attributes} | {"none has this"}:
        expected = Counter(value for row in rows for value in held(present[row], name))
        found = columns.facets(np.array(rows, np.int64), name)
        assert {typed(value): count for value, count in found} == expected
        assert len(found) == len(expected)
        assert [count for _, count in found] == sorted(expected.values(), reverse=True)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (Equal("a", True), [0]),
        (Equal("a", 1.0), [1, 2]),
        (Equal("a", 1), [1, 2]),
        (Equal("a", "1"), [3, 5]),
        (Equal("a", "True"), [4, 5]),
        (Equal("a", False), []),
        (In("a", (True, "1")), [0, 3, 5]),
        (In("a", (1.0, "nothing")), [1, 2]),
        (Range("a", at_least=0), [1, 2]),
        (Range("a", above=1), []),
        (Range("a", at_most=1, above=0), [1, 2]),
        (Not(Equal("a", True)), [1, 2, 3, 4, 5, 6, 7]),
        (Not(Range("a", below=1)), [0, 1, 2, 3, 4, 5, 6, 7]),
        (Equal("b", "1"), []),
        (Not(Equal("b", "1")), [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_types_are_told_apart(condition: Filter, expected: list[int]) -> None:
    rows = [
        item(a=True),
        item(a=1.0),
        item(a=1),
        item(a="1"),
        item(a="True"),
        item(a=["1", "True"]),
        item(a=[]),
        item(),
    ]
    for columns in (columns_of(rows), Columns()):
        if not columns:
            columns.append_table(columns_of(rows).to_table())
        assert np.flatnonzero(columns.mask(condition)).tolist() == expected
    kinds = [(type(value), count) for value, count in columns.facets(np.arange(8), "a")]
    assert kinds == [(float, 2), (str, 2), (str, 2), (bool, 1)]


def test_a_category_passes_under_itself_and_wider_ones() -> None:
    paths = [("A",), ("A", "B"), ("AB",), (), ("B", "A"), ("A", "B", "C")]
    columns = columns_of([Product(product_id="p", category=path) for path in paths])
    assert np.flatnonzero(columns.mask(Under(("A",)))).tolist() == [0, 1, 5]
    assert np.flatnonzero(columns.mask(Under(("A", "B")))).tolist() == [1, 5]
    assert not columns.mask(Under(("C",))).any()
    assert not columns.mask(Equal("category", "A")).any(), "a category is no attribute"


def test_many_numbers() -> None:
    columns = columns_of([item(a=-0.0), item(a=0.0), item(a=7.0), item(a=7.5), item(), item(a="7")])
    many = tuple(float(number) for number in range(FEW_NUMBERS + 10))
    for values in (many, (*many[1:], -0.0), many[:8]):
        assert columns.mask(In("a", values)).tolist() == [True, True, True, False, False, False]


def test_facets_are_in_order() -> None:
    columns = columns_of([item(a=["b", "b", "c"]), item(a="c"), item(a="a"), item(a=2.0), item(a=True), item(a=-1.0)])
    counted = [("c", 2), (True, 1), (-1.0, 1), (2.0, 1), ("a", 1), ("b", 1)]
    assert columns.facets(np.arange(6), "a") == counted
    assert columns.facets(np.array([4, 4, 3]), "a") == [(True, 2), (2.0, 1)]
    assert columns.facets(np.arange(0), "a") == []


def test_more_rows_than_the_first_capacity() -> None:
    rows = [item(a=float(row), b=f"b{row % 7}") for row in range(1000)]
    columns = Columns()
    places = []
    for start in range(0, 1000, 9):
        columns.append(rows[start : start + 9])
        places.append(columns.group_codes().ctypes.data)
    assert sum(one != other for one, other in pairwise(places)) <= 7, "copied more than by doubling"
    check_cells(columns, rows)
    columns.append([item(a="late", c=True)])
    assert np.flatnonzero(columns.mask(Equal("c", True))).tolist() == [1000]
    assert columns.mask(Equal("b", "b3")).sum() == 143


def test_a_row_that_is_updated_keeps_nothing() -> None:
    columns = columns_of([Product(product_id="p", category=("A",), group_id="g", attributes={"a": 1.0, "b": "x"})] * 2)
    columns.update(1, item(b=2.0))
    assert columns.value(0, "a") == 1.0
    assert columns.value(1, "a") is None
    assert columns.value(1, "b") == 2.0
    assert columns.group_codes().tolist() == [0, -1]
    assert columns.mask(Under(("A",))).tolist() == [True, False]
    for row in (-1, 2):
        with pytest.raises(IndexError, match=f"row {row} of 2"):
            columns.update(row, item())
        with pytest.raises(IndexError, match=f"row {row} of 2"):
            columns.value(row, "a")


def test_a_table_holds_only_the_words_of_its_rows() -> None:
    columns = columns_of([item(a=f"word {row}") for row in range(10)])
    columns.update(4, item(a="new"))
    (chunk,) = columns.to_table(3, 6)["coded:a"].chunks
    assert chunk.dictionary.to_pylist() == ['"word 3"', '"word 5"', '"new"']
    assert chunk.to_pylist() == ['"word 3"', '"new"', '"word 5"']


def test_what_is_handed_out_does_not_change_the_columns() -> None:
    columns = columns_of([item(a=1.0, b=["x"]), item(a=2.0, b="y")])
    columns.mask(Not(Equal("a", 5.0)))[:] = False
    value = columns.value(0, "b")
    assert isinstance(value, list)
    value.append("z")
    for view in (columns.numbers("a"), columns.numbers("none"), columns.group_codes()):
        assert not view.flags.writeable
    table = columns.to_table()
    columns.update(0, item(a=9.0, b="new"))
    assert table["numeric:a"].to_pylist() == [1.0, 2.0]
    assert table["coded:b"].to_pylist() == ['["x"]', '"y"']
    assert columns.mask(Not(Equal("a", 5.0))).all()


def test_tables_may_have_been_stored_joined_and_selected_from(tmp_path: Path) -> None:
    first = [item(a="x", b=-0.0), item(a=["x", "y"]), item(b=0.1 + 0.2)]
    second = [item(a="y", c=True), item(), item(a="x", b=2.0)]
    tables = [columns_of(rows).to_table() for rows in (first, second)]
    joined = pa.concat_tables(tables, promote_options="default")
    pa.feather.write_feather(joined, str(tmp_path / "a.arrow"))
    pq.write_table(joined, tmp_path / "a.parquet")
    picked = [5, 0, 1]
    for table, rows in [
        (joined, first + second),
        (pa.feather.read_table(tmp_path / "a.arrow"), first + second),
        (pq.read_table(tmp_path / "a.parquet"), first + second),
        (joined.take(picked), [(first + second)[row] for row in picked]),
        (joined.schema.empty_table(), []),
    ]:
        columns = columns_of([item(a="z")])
        columns.append_table(table)
        check_cells(columns, [item(a="z"), *rows])
        signs = np.signbit(columns.numbers("b")[1:]).tolist()
        assert signs == [np.signbit(row.attributes["b"]) if "b" in row.attributes else False for row in rows]


def test_no_rows() -> None:
    columns = columns_of([])
    columns.append_table(Columns().to_table())
    assert len(columns) == 0
    for condition in (Equal("a", 1.0), In("a", ("x",)), Range("a", above=0), Under(("A",)), Not(Equal("a", True))):
        assert columns.mask(condition).shape == (0,)
    check_cells(columns, [])
