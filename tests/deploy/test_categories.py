"""Votes over an index of given vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.categories import closest_voters, predict, ranked_paths
from deploy.errors import Deadline
from index.about import About
from index.product import Product
from index.store import Store
from item.neighbours import leaf

PATHS = st.lists(st.sampled_from("ABC"), min_size=1, max_size=3).map(tuple)


def store_of(folder: Path, categories: list[tuple[str, ...]]) -> Store:
    """Products at growing angles to the first axis, the closest first."""
    angles = np.linspace(0.01, 1.4, len(categories))
    products = [Product(product_id=str(row), category=path) for row, path in enumerate(categories)]
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    return Store.create(folder, About(space="0" * 64, vector_width=2), [(products, vectors)])


FIRST_AXIS = np.array([1, 0], np.float32)
FOREVER = Deadline()


def test_the_five_closest_with_a_category_vote(tmp_path: Path) -> None:
    store = store_of(tmp_path, [(), ("A", "x"), ("A", "x"), (), ("A", "y"), ("B",), ("A", "x"), ("C",), ("C",)])
    voters = closest_voters(store, FIRST_AXIS, (), FOREVER)
    assert [path for path, _ in voters] == [("A", "x"), ("A", "x"), ("A", "y"), ("B",), ("A", "x")]
    cosines = [similarity for _, similarity in voters]
    assert cosines == sorted(cosines, reverse=True)
    prediction = predict(store, FIRST_AXIS, 2, (), FOREVER)
    best, second = prediction.paths
    assert [level.name for level in best.levels] == ["A", "x"]
    share = sum(cosines[row] for row in (0, 1, 4)) / sum(cosines)
    assert best.levels[1].probability == pytest.approx(share)
    assert best.levels[0].probability == pytest.approx(share + cosines[2] / sum(cosines))
    assert [level.name for level in second.levels] == ["A", "y"]


def test_voters_far_away_are_found_when_none_is_close(tmp_path: Path) -> None:
    store = store_of(tmp_path, [()] * 5000 + [("A",)] * 100 + [()] * 50 + [("B", "z")])
    assert [path for path, _ in closest_voters(store, FIRST_AXIS, (), FOREVER)] == [("A",)] * 5
    assert [path for path, _ in closest_voters(store, FIRST_AXIS, ("B",), FOREVER)] == [("B", "z")]
    assert closest_voters(store, FIRST_AXIS, ("C",), FOREVER) == []
    assert predict(store, FIRST_AXIS, 5, ("C",), FOREVER).abstained


def test_an_empty_index_abstains(tmp_path: Path) -> None:
    assert predict(store_of(tmp_path, []), FIRST_AXIS, 5, (), FOREVER).abstained


@given(st.lists(st.tuples(PATHS, st.sampled_from([-0.5, 0.0, 0.25, 0.5, 0.75, 1.0])), max_size=6))
def test_the_first_path_is_the_leaf_that_evaluation_scores(voters: list[tuple[tuple[str, ...], float]]) -> None:
    ranked = ranked_paths(voters)
    assert (ranked[0] if ranked else None) == leaf([path for path, _ in voters], [score for _, score in voters])
    assert len(set(ranked)) == len(ranked)
