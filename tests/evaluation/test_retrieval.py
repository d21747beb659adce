from __future__ import annotations

from itertools import permutations

import ir_measures
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ir_measures import RR, Success

from item.evaluation import retrieval
from item.evaluation.retrieval import DEPTH, same_product

MEASURES = (Success @ 1, Success @ 10, RR)


def by_all_orders(similarities: np.ndarray, relevant: np.ndarray, above: int) -> np.ndarray:
    """The mean of each measure over every order that a sort could return, behind `above` rows that do not count."""
    orders = [order for order in permutations(range(len(similarities))) if (np.diff(similarities[[*order]]) <= 0).all()]
    runs = {}
    for number, order in enumerate(orders):
        ranking = [*(f"above {i}" for i in range(above)), *map(str, order)]
        runs[str(number)] = {row: float(-place) for place, row in enumerate(ranking)}
    judged = {number: {str(row): 1 for row in np.flatnonzero(relevant)} for number in runs}
    scores: dict[object, list[float]] = {measure: [] for measure in MEASURES}
    for metric in ir_measures.iter_calc(MEASURES, judged, runs):
        scores[metric.measure].append(metric.value)
    return np.array([np.mean(scores[measure], dtype=np.float64) for measure in MEASURES])


def measures_of(found: retrieval.SameProduct) -> np.ndarray:
    return np.stack([found.recall_at_1, found.recall_at_10, found.reciprocal_rank], axis=1)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from([0.25, 0.5, 0.75]), st.booleans()), min_size=1, max_size=6),
    st.integers(0, 12),
)
def test_expected_value_over_all_orders_of_tied_rows(rows: list[tuple[float, bool]], above: int) -> None:
    """`above` rows are ahead of all, so that places around the tenth are met too."""
    similarities, relevant = (np.array(column) for column in zip(*rows, strict=True))
    assume(relevant.any())
    base = np.concatenate([np.full(above, 1.0), similarities])[:, None].astype(np.float32)
    products = ["other"] * above + ["same" if r else "other" for r in relevant]
    found = same_product(np.ones((1, 1), np.float32), base, query_products=["same"], base_products=products)
    np.testing.assert_allclose(measures_of(found)[0], by_all_orders(similarities, relevant, above), atol=1e-6)


def test_known_values() -> None:
    """Three rows tie at the top, one of them right: 1/3; (1 + 1/2 + 1/3) / 3."""
    base = np.array([[1.0], [1.0], [1.0], [0.5]], np.float32)
    found = same_product(np.ones((1, 1), np.float32), base, query_products=["a"], base_products=["b", "a", "c", "a"])
    np.testing.assert_allclose(measures_of(found)[0], [1 / 3, 1, 11 / 18])


def test_rounding_of_float32_is_a_tie() -> None:
    one = np.float32(1)
    base = np.array([[np.nextafter(one, np.float32(2))], [one], [one - np.float32(1e-5)]])
    query = np.ones((1, 1), np.float32)
    found = same_product(query, base, query_products=["a"], base_products=["b", "a", "c"])
    assert found.recall_at_1[0] == 0  # 1.19e-7 apart: one step of float32 above 1 is over the tolerance
    base[0] = np.nextafter(one, np.float32(0))
    found = same_product(query, base, query_products=["a"], base_products=["b", "a", "c"])
    assert found.recall_at_1[0] == pytest.approx(0.5)  # 6e-8 apart


def test_own_row_is_left_out_and_lonely_products_are_not_scored() -> None:
    base = np.eye(4, dtype=np.float32)
    base[1] = [0.8, 0.6, 0, 0]
    found = same_product(
        base, base, query_products=["a", "a", "b", None], base_products=["a", "a", "b", None], own_rows=[0, 1, 2, 3]
    )
    assert found.recall_at_1.tolist()[:2] == [1, 1]
    assert np.isnan(measures_of(found)[2:]).all()
    without = same_product(base, base, query_products=["b"] * 4, base_products=["a", "a", "b", None])
    assert without.recall_at_1[2] == 1


def test_zero_query_is_a_tie_of_all_rows() -> None:
    base = np.eye(20, dtype=np.float32)
    found = same_product(
        np.zeros((1, 20), np.float32), base, query_products=["7"], base_products=[str(i) for i in range(20)]
    )
    np.testing.assert_allclose(measures_of(found)[0], [1 / 20, 10 / 20, float(np.mean(1 / np.arange(1, 21)))])


def test_ranks_below_the_depth_are_not_found() -> None:
    base = np.linspace(1, 0, DEPTH + 2, dtype=np.float32)[:, None]
    products = [str(i) for i in range(len(base))]
    query = np.ones((2, 1), np.float32)
    found = same_product(query, base, query_products=[str(DEPTH - 1), str(DEPTH)], base_products=products)
    np.testing.assert_allclose(found.reciprocal_rank, [1 / DEPTH, 0])


def test_blocks_of_queries_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    queries, base = (generator.choice([-1, 0, 1], size=(n, 3)).astype(np.float32) for n in (17, 40))
    asked, known = ([str(i) for i in generator.integers(0, 9, n)] for n in (17, 40))
    whole = measures_of(same_product(queries, base, query_products=asked, base_products=known))
    monkeypatch.setattr(retrieval, "_BLOCK_CELLS", 120)
    blocks = measures_of(same_product(queries, base, query_products=asked, base_products=known))
    np.testing.assert_array_equal(whole, blocks)
    assert len(np.unique(whole[:, 2])) > 3


def test_no_queries() -> None:
    found = same_product(
        np.empty((0, 3), np.float32), np.ones((2, 3), np.float32), query_products=[], base_products=["a", "b"]
    )
    assert measures_of(found).shape == (0, 3)
