"""The stages of the job that need no Ray: how shards are cut and how they travel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from index.pipeline import Embedded, Job, Ready, Rows, pack, prepare, read, unpack, write
from index.product import Product
from index.shards import Mark, Shard, read_blocks, read_refused
from item.catalog.listing import Listing, Picture, Place
from item.catalog.reader import Refused
from item.catalog.splits import assign_splits
from item.fetching.hosts import AllowedHosts
from item.preprocessing.preprocessor import Preprocessor


def job(catalog: Path, **changes: object) -> Job:
    values = {
        "model": Path("M"),
        "variant": None,
        "space": "5" * 64,
        "catalog": (catalog,),
        "hosts": AllowedHosts(()),
        "private_addresses": False,
        "splits": (),
        "has_splits": True,
        "shard_rows": 3,
        "picture_size": 32,
        "num_workers": 1,
        "num_gpus": 0,
        "folder": Path("F"),
    }
    return Job(**values | changes)  # type: ignore[arg-type]


def catalog(folder: Path, count: int) -> Path:
    """Titles alone; every fifth row has none and is refused; splits in turn."""
    path = folder / "catalog.jsonl"
    rows = [
        {"product_id": f"p{i}", "title": f"mug {i}" if i % 5 != 4 else "", "split": ("train", "val", "test")[i % 3]}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def shards(job: Job, done: frozenset[int] = frozenset()) -> list[Rows]:
    return [unpack(table) for table in read(pack(None), job, done)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 10])
def test_shards_cover_every_row_once(tmp_path: Path, count: int) -> None:
    found = shards(job(catalog(tmp_path, count)))
    assert [rows.shard.number for rows in found] == list(range(len(found)))
    assert [rows.shard.last for rows in found] == [False] * (len(found) - 1) + [True]
    covered = [row for rows in found for row in range(rows.shard.first_row, rows.shard.end_row)]
    assert covered == list(range(count))
    kept = [listing.product_id for rows in found for _, listing in rows.listings]
    refused = [row.product_id for rows in found for row in rows.refused]
    assert kept == [f"p{i}" for i in range(count) if i % 5 != 4]
    assert refused == [f"p{i}" for i in range(count) if i % 5 == 4]
    assert all(listing.product_id == f"p{place.line - 1}" for rows in found for place, listing in rows.listings)


def test_shards_that_are_done_are_not_handed_on(tmp_path: Path) -> None:
    path = catalog(tmp_path, 10)
    everything = shards(job(path))
    assert shards(job(path), frozenset({0, 2})) == [everything[1], everything[3]]


def test_other_splits_are_left_out(tmp_path: Path) -> None:
    path = catalog(tmp_path, 12)
    kept = [listing for rows in shards(job(path, splits=("train", "val"))) for _, listing in rows.listings]
    assert {listing.split for listing in kept} == {"train", "val"}
    assert len(kept) == sum(1 for i in range(12) if i % 5 != 4 and i % 3 != 2)


def test_splits_are_assigned_where_the_catalogue_has_none(tmp_path: Path) -> None:
    path = tmp_path / "catalog.jsonl"
    path.write_text("".join(json.dumps({"product_id": f"p{i}", "title": "mug"}) + "\n" for i in range(60)))
    kept = [
        listing.product_id
        for rows in shards(job(path, splits=("val",), has_splits=False))
        for _, listing in rows.listings
    ]
    listings = assign_splits([Listing(product_id=f"p{i}", title="mug") for i in range(60)])
    assert kept == [listing.product_id for listing in listings if listing.split == "val"]
    assert 0 < len(kept) < 60


@given(st.lists(arrays.arrays(st.sampled_from([np.float32, np.uint8, np.int32]), arrays.array_shapes(min_side=0))))
def test_messages_arrive_as_they_were_sent(sent: list[np.ndarray]) -> None:
    found = unpack(pack({"arrays": sent, "text": "grün"}))
    assert found["text"] == "grün"
    assert len(found["arrays"]) == len(sent)
    for arrived, array in zip(found["arrays"], sent, strict=True):
        assert arrived.dtype == array.dtype
        assert arrived.shape == array.shape
        np.testing.assert_array_equal(arrived, array)


def test_pixels_are_read_where_they_lie() -> None:
    table = pack(np.zeros((3, 64, 64), np.uint8))
    address = table["arrays"][0].values[0].as_buffer().address
    assert unpack(table).ctypes.data == address


def test_preparing_refuses_a_listing_alone(tmp_path: Path, preprocessor: Preprocessor) -> None:
    preprocessor.save_pretrained(tmp_path)
    shard = Shard(number=0, first_row=0, end_row=3, last=True)
    good = Listing(product_id="a", title="a red mug", attributes={"price": 2.0})
    bad = Listing(product_id="b", images=(Picture(data=b"no picture"),))
    already = Refused(file="catalog.csv", line=2, product_id="c", field="category", reason="is empty")
    rows = Rows(
        shard=shard, listings=[(Place("catalog.csv", 1), good), (Place("catalog.csv", 3), bad)], refused=[already]
    )
    ready: Ready = unpack(prepare(pack(rows), job(tmp_path, model=tmp_path)))
    assert ready.products == [(Place("catalog.csv", 1), Product.from_listing(good))]
    assert len(ready.prepared) == 1
    np.testing.assert_array_equal(ready.prepared[0].word_ids, preprocessor(good).word_ids)
    assert [(row.line, row.product_id, row.field) for row in ready.refused] == [(2, "c", "category"), (3, "b", "image")]


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_a_vector_that_cannot_be_searched_refuses_its_listing_alone(tmp_path: Path, bad: float) -> None:
    vectors = np.eye(3, 4, dtype=np.float32)
    vectors[1] = bad
    listings = [Listing(product_id=f"p{i}", title="mug") for i in range(3)]
    shard = Shard(number=0, first_row=0, end_row=3, last=True)
    products = [(Place("catalog.csv", line), Product.from_listing(listing)) for line, listing in enumerate(listings, 1)]
    sent = Embedded(shard=shard, products=products, vectors=vectors, refused=[], engine="E")
    mark: Mark = unpack(write(pack(sent), tmp_path))
    assert mark.count == 2
    (refused,) = read_refused(tmp_path, {0: mark})
    assert (refused.file, refused.line, refused.product_id) == ("catalog.csv", 2, "p1")
    assert f"length {bad}" in refused.reason
    ((kept, found),) = read_blocks(tmp_path, {0: mark})
    np.testing.assert_array_equal(found, vectors[[0, 2]])
    assert [product.product_id for product in kept] == ["p0", "p2"]
