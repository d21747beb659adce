"""Buckets: every listing once, within the budget, with what it may run with."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from item.engine.batching import MAX_PADDING, buckets, num_tokens
from item.preprocessing.prepared import Prepared

PIXELS = np.zeros((3, 2, 2), np.uint8)


@st.composite
def prepared(draw: st.DrawFn) -> Prepared:
    """Words, a picture, or both."""
    has_words, has_picture = draw(st.sampled_from([(True, False), (False, True), (True, True)]))
    words = np.zeros(draw(st.integers(1, 40)), np.int32)
    return Prepared(word_ids=words if has_words else None, pixels=PIXELS if has_picture else None)


LISTINGS = st.lists(prepared(), max_size=30)
CELLS, BUDGETS = st.integers(1, 20), st.integers(1, 300)


@given(listings=LISTINGS, num_cells=CELLS, budget=BUDGETS, packed=st.booleans())
def test_every_row_is_in_one_bucket(listings: list[Prepared], num_cells: int, budget: int, packed: bool) -> None:
    made = list(buckets(listings, num_cells, budget, packed))
    assert all(made)
    assert sorted(row for bucket in made for row in bucket) == list(range(len(listings)))


@given(listings=LISTINGS, num_cells=CELLS, budget=BUDGETS, packed=st.booleans())
def test_only_a_listing_alone_exceeds_the_budget(
    listings: list[Prepared], num_cells: int, budget: int, packed: bool
) -> None:
    for bucket in buckets(listings, num_cells, budget, packed):
        lengths = [num_tokens(listings[row], num_cells) for row in bucket]
        cost = sum(lengths) if packed else len(lengths) * max(lengths)
        assert cost <= budget or len(bucket) == 1
        assert not packed or len(lengths) * max(lengths) <= MAX_PADDING * sum(lengths)


@given(listings=LISTINGS, num_cells=CELLS, budget=BUDGETS)
def test_padded_buckets_are_with_or_without_pictures(listings: list[Prepared], num_cells: int, budget: int) -> None:
    for bucket in buckets(listings, num_cells, budget, packed=False):
        assert len({listings[row].pixels is None for row in bucket}) == 1


@given(listings=LISTINGS, num_cells=CELLS, budget=BUDGETS, packed=st.booleans())
def test_no_bucket_could_have_taken_the_next_listing(
    listings: list[Prepared], num_cells: int, budget: int, packed: bool
) -> None:
    made = list(buckets(listings, num_cells, budget, packed))
    for bucket, following in pairwise(made):
        rows = [*bucket, following[0]]
        lengths = [num_tokens(listings[row], num_cells) for row in rows]
        padded = len(lengths) * max(lengths)
        if packed:
            assert sum(lengths) > budget or padded > MAX_PADDING * sum(lengths)
        else:
            assert padded > budget or len({listings[row].pixels is None for row in rows}) == 2


def test_tokens_are_cls_words_and_cells() -> None:
    words = np.zeros(5, np.int32)
    assert num_tokens(Prepared(word_ids=words), 9) == 6
    assert num_tokens(Prepared(pixels=PIXELS), 9) == 10
    assert num_tokens(Prepared(word_ids=words, pixels=PIXELS), 9) == 15


def test_pictures_and_words_share_a_packed_run() -> None:
    listings = [Prepared(word_ids=np.zeros(8, np.int32)), Prepared(pixels=PIXELS)]
    assert len(list(buckets(listings, 9, 100, packed=True))) == 1
    assert len(list(buckets(listings, 9, 100, packed=False))) == 2
