"""Shards, their done-marks and the plan that holds them together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index.exact import Vectors
from index.product import Product
from index.shards import PLAN as PLAN_FILE
from index.shards import (
    Mark,
    Plan,
    Shard,
    agree_on_plan,
    discard_partial_work,
    is_complete,
    lock_partial_work,
    read_blocks,
    read_marks,
    read_plan,
    shard_path,
    write_shard,
)
from item.catalog.reader import Refused
from item.errors import StoreError

PLAN = Plan(space="5" * 64, catalog_sha256="c" * 64, splits=(), shard_rows=4)


def vectors(number: int) -> Vectors:
    return np.eye(8, dtype=np.float32)[number : number + 3]


def products(number: int) -> list[Product]:
    return [
        Product(product_id=f"p{number}-{i}", title="", category=("a",), group_id=None, attributes={"b": 1.0}, image="")
        for i in range(3)
    ]


def write(folder: Path, number: int, *, last: bool = False) -> Mark:
    """A shard of four rows, one of them refused."""
    shard = Shard(number=number, first_row=4 * number, end_row=4 * number + 4, last=last)
    refused = (
        Refused(file="catalog.csv", line=4 * number + 1, product_id="", field="product_id", reason="is missing"),
    )
    return write_shard(folder, shard, vectors(number), products(number), refused, "torch cpu float32")


def test_shards_come_back_in_the_order_of_the_catalogue(tmp_path: Path) -> None:
    written = {number: write(tmp_path, number, last=number == 2) for number in (2, 0, 1)}
    marks = read_marks(tmp_path)
    assert marks == written
    blocks = list(read_blocks(tmp_path, marks))
    np.testing.assert_array_equal(
        np.concatenate([block for _, block in blocks]), np.vstack(list(map(vectors, range(3))))
    )
    found = [product for block, _ in blocks for product in block]
    assert found == [product for number in range(3) for product in products(number)]


def test_a_shard_without_listings_has_a_mark_and_no_block(tmp_path: Path) -> None:
    shard = Shard(number=0, first_row=0, end_row=4, last=True)
    write_shard(tmp_path, shard, np.empty((0, 8), np.float32), [], (), "torch cpu float32")
    marks = read_marks(tmp_path)
    assert marks[0].count == 0
    assert is_complete(marks)
    assert list(read_blocks(tmp_path, marks)) == []


def test_the_same_shard_has_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, 0)
    assert shard_path(tmp_path / "a", 0).read_bytes() == shard_path(tmp_path / "b", 0).read_bytes()


@pytest.mark.parametrize(
    ("numbers", "last", "complete"), [((0, 1, 2), 2, True), ((0, 1), 2, False), ((0, 2), 2, False), ((), 2, False)]
)
def test_complete_is_every_shard_up_to_the_last(
    tmp_path: Path, numbers: tuple[int, ...], last: int, complete: bool
) -> None:
    for number in numbers:
        write(tmp_path, number, last=number == last)
    assert is_complete(read_marks(tmp_path)) is complete


def test_a_damaged_shard_or_mark_does_not_count(tmp_path: Path) -> None:
    for number in range(5):
        write(tmp_path, number)
    content = bytearray(shard_path(tmp_path, 0).read_bytes())
    content[-100] ^= 1
    shard_path(tmp_path, 0).write_bytes(content)
    shard_path(tmp_path, 1).unlink()
    mark = shard_path(tmp_path, 2).with_suffix(".json")
    mark.write_bytes(mark.read_bytes()[:-9])
    shard_path(tmp_path, 3).with_suffix(".json").unlink()
    assert read_marks(tmp_path).keys() == {4}


def test_a_shard_that_was_being_written_does_not_count(tmp_path: Path) -> None:
    write(tmp_path, 0)
    shard_path(tmp_path, 1).with_name("shard-000001.arrow.1.writing").write_bytes(b"half")
    shard_path(tmp_path, 1).with_name("shard-000001.json.1.writing").write_bytes(b"half")
    assert read_marks(tmp_path).keys() == {0}


@pytest.mark.parametrize(
    "other",
    [
        replace(PLAN, space="6" * 64),
        replace(PLAN, catalog_sha256="d" * 64),
        replace(PLAN, splits=("train",)),
        replace(PLAN, shard_rows=5),
    ],
)
def test_partial_work_of_another_plan_is_refused_until_it_is_discarded(tmp_path: Path, other: Plan) -> None:
    agree_on_plan(tmp_path, PLAN)
    write(tmp_path, 0)
    with pytest.raises(StoreError, match=r"partial work with another .*--restart"):
        agree_on_plan(tmp_path, other)
    agree_on_plan(tmp_path, PLAN)
    assert read_plan(tmp_path) == PLAN
    assert read_marks(tmp_path).keys() == {0}
    discard_partial_work(tmp_path)
    agree_on_plan(tmp_path, other)
    assert read_plan(tmp_path) == other
    assert read_marks(tmp_path) == {}


def test_a_damaged_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / PLAN_FILE).write_text("{}")
    with pytest.raises(StoreError, match=r"plan\.json: damaged; add --restart"):
        agree_on_plan(tmp_path, PLAN)


def test_one_job_at_a_time(tmp_path: Path) -> None:
    with (
        lock_partial_work(tmp_path),
        pytest.raises(StoreError, match="another job is building it"),
        lock_partial_work(tmp_path),
    ):
        pass
    with lock_partial_work(tmp_path) as folder:
        write(folder, 0)
        discard_partial_work(folder)
        assert [path.name for path in folder.iterdir()] == ["lock"]
