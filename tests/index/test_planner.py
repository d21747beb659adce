"""The plan that a filter gets."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.manifest import Depth, depth_for
from index.planner import Costs, Plan, Work, chance_of_few, choose, exact_cost, index_cost, neighbours_for, widened_cost

DEPTHS = tuple(
    Depth(num_neighbours=K, effort=effort, num_candidates=2 * K, recall=0.99)
    for K, effort in ((10, 8), (40, 16), (160, 40), (640, 120))
)
WORK = Work(num_rows=1_000_000, num_allowed=1_000_000, num_lists=4096, num_queries=1, width=384)
GRAPH = replace(WORK, num_lists=None)

works = st.builds(
    Work,
    num_rows=st.integers(1_000, 10_000_000),
    num_allowed=st.just(0),
    num_lists=st.sampled_from([None, 256, 4096, 16384]),
    num_queries=st.sampled_from([1, 8, 64, 1000]),
    width=st.sampled_from([32, 384, 1024]),
)
shares = st.floats(1e-6, 1.0)


@pytest.mark.parametrize("work", [WORK, GRAPH])
def test_few_rows_are_compared_and_many_are_sought(work: Work) -> None:
    for num_allowed in (0, 1, 10, 1000):
        assert choose(replace(work, num_allowed=num_allowed), DEPTHS, 10) is Plan.EXACT
    assert choose(work, DEPTHS, 10) is not Plan.EXACT
    assert choose(replace(work, num_allowed=500_000), DEPTHS, 10) is not Plan.EXACT


def test_a_graph_is_never_told_of_a_filter() -> None:
    plans = {choose(replace(GRAPH, num_allowed=n), DEPTHS, 10) for n in range(0, 1_000_001, 5_000)}
    assert plans == {Plan.EXACT, Plan.WIDENED}


def test_lists_are_told_of_a_filter_where_that_saves_work() -> None:
    many = replace(WORK, num_queries=64)
    plans = [choose(replace(many, num_allowed=n), DEPTHS, 10) for n in range(0, 1_000_001, 5_000)]
    assert {Plan.EXACT, Plan.MASKED} <= set(plans)
    assert choose(many, DEPTHS, 10) is Plan.WIDENED  # nothing fails: nothing to tell


@given(work=works, share=shares, wider=shares, k=st.integers(1, 2000))
@settings(max_examples=300)
def test_the_more_is_allowed_the_less_is_compared(work: Work, share: float, wider: float, k: int) -> None:
    """What is sought under a narrow filter is sought under a wider one."""
    narrow, wide = (replace(work, num_allowed=int(one * work.num_rows)) for one in sorted((share, wider)))
    if choose(narrow, DEPTHS, k) is not Plan.EXACT:
        assert choose(wide, DEPTHS, k) is not Plan.EXACT


@given(work=works, share=shares, k=st.integers(1, 2000))
@settings(max_examples=300)
def test_the_plan_is_the_cheapest(work: Work, share: float, k: int) -> None:
    costs = Costs()
    work = replace(work, num_allowed=int(share * work.num_rows))
    plan = choose(work, DEPTHS, k, costs)
    if work.num_allowed <= k:
        assert plan is Plan.EXACT
        return
    depth = depth_for(DEPTHS, neighbours_for(k, work.share))
    options = {
        Plan.EXACT: exact_cost(work, costs),
        Plan.WIDENED: widened_cost(work, depth, k, costs),
        Plan.MASKED: index_cost(work, depth, costs, told=True) if work.num_lists is not None else float("inf"),
    }
    assert options[plan] == pytest.approx(min(options.values()))


@given(k=st.integers(1, 100), num_neighbours=st.integers(50, 2000), share=st.floats(0.02, 0.98))
def test_the_chance_that_too_few_pass(k: int, num_neighbours: int, share: float) -> None:
    found = np.random.default_rng(0).binomial(num_neighbours, share, 4000)
    assert chance_of_few(k, num_neighbours, share) == pytest.approx((found < k).mean(), abs=0.1)
    assert chance_of_few(k, num_neighbours, 1.0) == (num_neighbours < k)


def test_a_graph_is_not_asked_where_one_of_many_queries_would_find_too_few() -> None:
    """Comparing for one query copies all rows that pass: many queries are then compared at little more."""
    depths = [replace(depth, effort=depth.effort * 14) for depth in DEPTHS]
    some = replace(GRAPH, num_allowed=100_000, width=256)
    assert choose(replace(some, num_queries=1), depths, 10) is Plan.WIDENED
    assert choose(replace(some, num_queries=64), depths, 10) is Plan.EXACT


@pytest.mark.parametrize(
    ("num_neighbours", "expected"), [(0.5, DEPTHS[0]), (10, DEPTHS[0]), (10.1, DEPTHS[1]), (640, DEPTHS[3])]
)
def test_the_shallowest_depth_that_is_deep_enough(num_neighbours: float, expected: Depth) -> None:
    assert depth_for(DEPTHS, num_neighbours) == expected


def test_beyond_the_deepest_in_proportion() -> None:
    assert depth_for(DEPTHS, 1600) == Depth(num_neighbours=1600, effort=300, num_candidates=3200, recall=0.99)
    assert depth_for(DEPTHS, 640.5) == Depth(num_neighbours=641, effort=121, num_candidates=1281, recall=0.99)
    depths = [depth_for(DEPTHS, n) for n in range(1, 5000, 7)]
    assert all(a.effort <= b.effort and a.num_candidates <= b.num_candidates for a, b in pairwise(depths))


@given(k=st.integers(1, 100), share=st.floats(0.01, 1))
def test_neighbours_for_a_filter_hold_k_that_pass_nearly_always(k: int, share: float) -> None:
    wanted = neighbours_for(k, share)
    assert wanted * share >= k
    assert neighbours_for(k, 1.0) == k
    found = np.random.default_rng(0).binomial(int(np.ceil(wanted)), share, 1000)
    assert (found >= k).mean() > 0.9
