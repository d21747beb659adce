"""Splits by product where the catalogue names none."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from item.catalog.listing import Listing
from item.catalog.splits import assign_splits
from item.errors import ConfigError


def listings(count: int, per_group: int = 1) -> list[Listing]:
    return [Listing(product_id=f"p{i}", title="mug", group_id=f"g{i // per_group}") for i in range(count)]


def test_shares_are_kept_roughly() -> None:
    counts = Counter(listing.split for listing in assign_splits(listings(5000)))
    assert counts.keys() == {"train", "val", "test"}
    assert abs(counts["train"] - 4000) < 120  # four standard deviations
    assert abs(counts["val"] - 500) < 90


def test_listings_of_one_product_share_their_split() -> None:
    splits: dict[str | None, set[str | None]] = {}
    for listing in assign_splits(listings(600, per_group=3)):
        splits.setdefault(listing.group_id, set()).add(listing.split)
    assert {len(found) for found in splits.values()} == {1}
    assert len(set.union(*splits.values())) == 3


def test_an_offer_of_a_product_without_group_goes_with_it() -> None:
    alone, offer = assign_splits(
        [Listing(product_id="x9", title="a"), Listing(product_id="o1", group_id="x9", title="b")]
    )
    assert alone.split == offer.split


def test_neither_order_nor_neighbours_matter() -> None:
    whole = {listing.product_id: listing.split for listing in assign_splits(listings(300))}
    part = random.Random(0).sample(listings(300), 50)
    assert all(whole[listing.product_id] == listing.split for listing in assign_splits(part))


def test_nothing_but_the_split_changes_and_the_rule_is_fixed() -> None:
    before = listings(8)
    after = assign_splits(before)
    assert [listing.product_id for listing in after] == [listing.product_id for listing in before]
    assert all(listing.split is None for listing in before)
    # a catalogue keeps its splits from one release to the next
    assert [listing.split for listing in assign_splits(listings(12))] == [
        "train",
        "train",
        "train",
        "val",
        "train",
        "val",
        "train",
        "val",
        "train",
        "train",
        "train",
        "train",
    ]


def test_another_seed_and_other_shares() -> None:
    first, second = assign_splits(listings(200)), assign_splits(listings(200), seed=1)
    assert [a.split for a in first] != [b.split for b in second]
    assert {a.split for a in assign_splits(listings(50), shares={"all": 1.0})} == {"all"}


@pytest.mark.parametrize("shares", [{"train": 0.8}, {"train": 1.2, "test": -0.2}, {}])
def test_shares_that_do_not_sum_to_one(shares: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="shares"):
        assign_splits(listings(2), shares=shares)
