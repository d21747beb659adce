"""Listings that come twice."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from index.exact import Vectors
from index.product import Product
from index.shards import Mark, Shard, write_shard
from index.twins import COMMON, SAME, find_twins, rows_that_share, write_twins

TITLES = ("Red mug", "red  MUG!", "Blue mug", "", "...")
DIRECTIONS = np.eye(8, dtype=np.float32)[:2]


def shards(folder: Path, products: list[Product], vectors: Vectors, shard_rows: int) -> dict[int, Mark]:
    """A finished job's; a shard of which nothing was embedded is among them."""
    marks = {}
    for number, first in enumerate(range(0, len(products), shard_rows)):
        rows = slice(first, first + shard_rows)
        shard = Shard(number=number, first_row=first, end_row=first + shard_rows, last=False)
        marks[number] = write_shard(folder, shard, vectors[rows], products[rows], [], "engine")
    return marks


listings = st.lists(
    st.tuples(st.sampled_from(TITLES), st.integers(0, 1), st.sampled_from([None, "a", "b"])), min_size=1, max_size=12
)


@given(listings, st.integers(1, 5))
def test_twins_have_a_title_and_a_look_in_common(drawn: list[tuple[str, int, str | None]], shard_rows: int) -> None:
    """Against all pairs: two directions are either the same or far apart."""
    products = [
        Product(product_id=f"p{row}", title=title, group_id=group, has_picture=True)
        for row, (title, _, group) in enumerate(drawn)
    ]
    vectors = DIRECTIONS[[look for _, look, _ in drawn]]
    words = {"Red mug": "red", "red  MUG!": "red", "Blue mug": "blue"}
    expected = set()
    for title, look, _ in drawn:
        if title in words:
            rows = [row for row, one in enumerate(drawn) if words.get(one[0], "") == words[title] and one[1] == look]
            groups = {drawn[row][2] for row in rows}
            if len(rows) > 1 and (len(groups) > 1 or None in groups):
                expected.add(tuple(f"p{row}" for row in rows))
    with tempfile.TemporaryDirectory() as folder:
        found = list(find_twins(Path(folder), shards(Path(folder), products, vectors, shard_rows)))
    assert set(found) == expected
    assert len(found) == len(expected)


def test_each_is_like_the_first_of_its_group(tmp_path: Path) -> None:
    """Not like its neighbour alone: a chain of small steps is no group."""
    step = float(np.arccos(SAME)) * 0.9
    angles = [0.0, step, 2 * step, 3 * step]
    vectors = np.array([[np.cos(angle), np.sin(angle)] for angle in angles], np.float32)
    products = [Product(product_id=f"p{row}", title="A mug", has_picture=True) for row in range(4)]
    assert list(find_twins(tmp_path, shards(tmp_path, products, vectors, 3))) == [("p0", "p1"), ("p2", "p3")]


def test_without_pictures_the_title_is_all_there_is(tmp_path: Path) -> None:
    products = [
        Product(product_id=f"p{row}", title=title, has_picture=row == 3)
        for row, title in enumerate(["Mug!", "mug", "cup", "mug"])
    ]
    assert list(find_twins(tmp_path, shards(tmp_path, products, np.eye(4, dtype=np.float32), 2))) == [("p0", "p1")]


def test_a_title_of_very_many_names_no_product() -> None:
    hashes = np.array([7] * (COMMON + 1) + [5, 6, 5], np.uint64)
    assert [rows.tolist() for rows in rows_that_share(hashes)] == [[COMMON + 1, COMMON + 3]]
    assert len(next(rows_that_share(hashes[1:]))) == COMMON
    assert list(rows_that_share(hashes[:0])) == []


def test_groups_are_written_a_line_each(tmp_path: Path) -> None:
    path = tmp_path / "twins.jsonl"
    assert write_twins([("a", "é"), ("b", "c", "d")], path) == 2
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {"product_ids": ["a", "é"]},
        {"product_ids": ["b", "c", "d"]},
    ]
