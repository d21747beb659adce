from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from item.neighbours import leaf, vote

paths = st.lists(st.sampled_from("abc"), max_size=3).map(tuple)
neighbours = st.lists(st.tuples(paths, st.floats(-1, 1, width=32)), max_size=8)


def test_shares_of_every_level() -> None:
    shares = vote([("shoes", "boots"), ("shoes", "sandals"), ("bags",), ()], [0.5, 0.3, 0.2, 0.9])
    expected = {("bags",): 0.2, ("shoes",): 0.8, ("shoes", "boots"): 0.5, ("shoes", "sandals"): 0.3}
    assert list(shares) == list(expected)
    assert shares == pytest.approx(expected)


@pytest.mark.parametrize("similarities", [[], [0.0], [-0.3], [float("nan")]])
def test_no_voter(similarities: list[float]) -> None:
    assert vote([("a",)] * len(similarities), similarities) == {}
    assert leaf([("a",)] * len(similarities), similarities) is None


@given(neighbours)
def test_levels_sum_to_at_most_one_and_a_parent_has_its_children(rows: list[tuple[tuple[str, ...], float]]) -> None:
    shares = vote([path for path, _ in rows], [similarity for _, similarity in rows])
    for level in range(1, 4):
        assert sum(share for path, share in shares.items() if len(path) == level) <= 1 + 1e-9
    for path in shares:
        assert sum(share for child, share in shares.items() if child[:-1] == path) <= shares[path] + 1e-9
    tops = [share for path, share in shares.items() if len(path) == 1]
    assert not tops or sum(tops) == pytest.approx(1)


@given(neighbours, st.integers(0, 99))
def test_order_makes_no_difference(rows: list[tuple[tuple[str, ...], float]], seed: int) -> None:
    shuffled = random.Random(seed).sample(rows, len(rows))
    one, other = ([list(column) for column in zip(*r, strict=True)] or [[], []] for r in (rows, shuffled))
    assert vote(*one) == vote(*other)
    assert leaf(*one) == leaf(*other)


def test_leaf_is_the_full_path_with_the_largest_share() -> None:
    # "a" has 0.9 of the votes below it, but as a full path only 0.1.
    assert leaf([("a",), ("a", "x"), ("a", "y"), ("b",)], [0.1, 0.5, 0.3, 0.1]) == ("a", "x")


def test_equal_shares_go_to_the_nearest_then_to_the_alphabet() -> None:
    assert leaf([("a",), ("a",), ("b",)], [0.25, 0.25, 0.5]) == ("b",)
    assert leaf([("b",), ("a",)], [0.5, 0.5]) == ("a",)


def test_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="longer"):
        vote([("a",)], [0.5, 0.4])
