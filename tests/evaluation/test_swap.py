from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from item.catalog.listing import Listing, Picture
from item.evaluation.bootstrap import paired_interval
from item.evaluation.exam import BY_NEIGHBOURS, SAME_PRODUCT, Exam
from item.evaluation.result import Result
from item.evaluation.swap import COMPLETE, WAYS, contributions, sentences, swapped


def listing(i: int) -> Listing:
    return Listing(product_id=f"p{i}", title=f"t{i}", description=f"d{i}", images=(Picture(data=bytes([i])),))


@given(
    st.lists(st.sampled_from("abc"), min_size=2, max_size=9).filter(lambda names: len({*names}) > 1), st.integers(0, 9)
)
def test_only_the_part_is_exchanged_and_comes_from_another_product(products: list[str], seed: int) -> None:
    listings = [listing(i) for i in range(len(products))]
    product_of = dict(zip((one.title for one in listings), products, strict=True))
    title_of = {one.images: one.title for one in listings}
    for own, by_words, by_picture in zip(
        listings, swapped(listings, products, "words", seed), swapped(listings, products, "picture", seed), strict=True
    ):
        assert (by_words.product_id, by_words.images) == (own.product_id, own.images)
        assert product_of[by_words.title] != product_of[own.title]
        assert by_words.description == by_words.title.replace("t", "d")
        assert (by_picture.title, by_picture.description) == (own.title, own.description)
        assert product_of[title_of[by_picture.images]] != product_of[own.title]


def test_the_seed_decides() -> None:
    listings, products = [listing(i) for i in range(20)], [str(i) for i in range(20)]
    first, again, other = (swapped(listings, products, "words", seed) for seed in (0, 0, 1))
    assert first == again != other


@pytest.fixture
def found() -> list[Result]:
    """Eight rows to ask about, of which p8 has no picture. The vector is the words' number and the picture's, one-hot;
    a wrong picture outweighs the words, wrong words do no harm."""
    catalog = [
        Listing(product_id=f"p{i}", category=(f"c{i % 2}",), split="train" if i < 8 else "test") for i in range(16)
    ]
    exam = Exam(
        catalog=catalog, offers=[Listing(product_id=f"o{i}", group_id=f"p{i}") for i in range(8, 16)], split="test"
    )
    truth = np.repeat(np.eye(8, dtype=np.float32), 2, axis=0).reshape(8, 2, 8).transpose(1, 0, 2).reshape(16, 8)
    own, wrong = truth[8:], np.roll(truth[8:], 1, axis=0)
    picture = own.copy()
    picture[0] = 0
    views = {"both": own, "words": own, "picture": picture, "wrong picture": wrong, "wrong words": own}
    catalog_vectors = truth.copy()
    catalog_vectors[:8] *= 0.9
    return list(contributions(exam, "ours", catalog_vectors, views, views))


def test_each_way_against_both_on_complete_queries(found: list[Result]) -> None:
    assert {one.subset for one in found} == {COMPLETE}
    assert {one.queries for one in found} == {7}
    assert {(one.task, one.measure) for one in found} == {(SAME_PRODUCT, "recall@1"), (BY_NEIGHBOURS, "accuracy")}
    values = {(one.task, one.inputs): one.value for one in found if one.against is None}
    changes = {(one.task, one.inputs): one for one in found if one.against == "both"}
    assert {inputs for _, inputs in values} == {"both", *WAYS}
    assert {inputs for _, inputs in changes} == {*WAYS}
    for task in (SAME_PRODUCT, BY_NEIGHBOURS):
        assert [values[task, way] for way in ("both", "words", "wrong words", "wrong picture")] == [1, 1, 1, 0]
    expected = paired_interval(np.zeros(7), np.ones(7))
    change = changes[SAME_PRODUCT, "wrong picture"]
    assert (change.value, change.low, change.high) == (expected.value, expected.low, expected.high) == (-1, -1, -1)


def test_said_in_words(found: list[Result]) -> None:
    said = [*sentences(found)]
    assert len(said) == 2
    assert said[0] == (
        "ours, same product: a query's recall@1 goes from 1.000 to 1.000 without its picture, "
        "to 0.000 with a wrong picture, to 1.000 without its words, to 1.000 with wrong words."
    )


def test_nothing_to_swap_leaves_the_other_ways() -> None:
    exam = Exam(catalog=[Listing(product_id="p", split="test")], offers=None, split="test")
    one = np.ones((1, 1), np.float32)
    views = {"both": one, "words": one, "picture": one}
    assert list(contributions(exam, "ours", one, views, views)) == []  # no group_id, no category: nothing is asked
