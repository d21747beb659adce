from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from item.evaluation import classification
from item.evaluation.classification import macro_f1, neighbour_leaves, probe_leaves

A, B, C = ("home", "lamps"), ("home", "chairs"), ("shoes",)


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def clusters(per_leaf: int, seed: int = 0) -> tuple[np.ndarray, list[tuple[str, ...]]]:
    generator = np.random.default_rng(seed)
    centres = np.repeat(np.eye(3, 8), per_leaf, axis=0)
    leaves: list[tuple[str, ...]] = [leaf for leaf in (A, B, C) for _ in range(per_leaf)]
    return unit(centres + 0.15 * generator.standard_normal(centres.shape)), leaves


def test_neighbours_and_probe_find_separate_clusters() -> None:
    (train, names), (queries, expected) = clusters(12), clusters(7, seed=1)
    assert neighbour_leaves(queries, train, names) == expected
    assert probe_leaves(queries, train, names, train, names) == expected


def test_five_neighbours_vote_by_similarity() -> None:
    train = unit(np.array([[1, 0], [1, 0.1], [1, 0.9], [1, 1], [1, 1.1], [1, 1.2]]))
    names = [A, A, B, B, B, B]
    # Four of the six are B, but of the nearest five three, and these weigh 0.74 + 0.71 + 0.67 against 1 + 0.995.
    assert neighbour_leaves(unit(np.array([[1.0, 0]])), train, names) == [B]
    assert neighbour_leaves(unit(np.array([[1.0, -0.5]])), train, names) == [A]


def test_equal_similarities_take_the_earlier_rows() -> None:
    train = np.tile(np.array([[1.0, 0]], np.float32), (9, 1))
    names = [A, A, A, B, B, B, B, B, B]
    assert neighbour_leaves(train[:1], train, names) == [A]
    assert neighbour_leaves(train[:1], train, names[::-1]) == [B]


def test_nothing_similar_is_no_leaf() -> None:
    train = np.array([[1, 0], [0, 1]], np.float32)
    assert neighbour_leaves(np.array([[-1, 0], [0, 0]], np.float32), train, [A, B]) == [None, None]


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    (train, names), (queries, _) = clusters(12), clusters(7, seed=1)
    whole = neighbour_leaves(queries, train, names)
    monkeypatch.setattr(classification, "_BLOCK_CELLS", 100)
    assert neighbour_leaves(queries, train, names) == whole


def test_a_leaf_of_one_row_and_a_leaf_that_train_lacks() -> None:
    train, names = clusters(10)
    names[-1] = ("rare",)
    queries, _ = clusters(2, seed=1)
    answers = probe_leaves(queries, train, names, queries, [("unseen",)] * len(queries))
    assert answers[:4] == [A, A, B, B]


def test_probe_reads_vectors_that_are_close_together() -> None:
    """As of an encoder whose vectors share a large common part: cosines of 0.9999 and more."""
    (train, names), (queries, expected) = clusters(12), clusters(7, seed=1)
    common = np.full(8, 100.0)
    train, queries = unit(common + train), unit(common + queries)
    assert (train @ train.T).min() > 0.9999
    assert probe_leaves(queries, train, names) == expected


def test_one_leaf_needs_no_probe() -> None:
    train, _ = clusters(2)
    assert probe_leaves(train, train, [A] * len(train), train, [A] * len(train)) == [A] * len(train)


def test_val_chooses_the_strength() -> None:
    """Against regressions that are each fitted from nothing; listings learned from want another one than new ones."""
    generator = np.random.default_rng(2)
    centres, names = clusters(60)
    train, queries = (unit(centres + generator.normal(0, 0.5, centres.shape)) for _ in range(2))
    mean = train.mean(axis=0)
    scale = np.linalg.norm(train - mean) / len(train) ** 0.5
    texts = ["/".join(name) for name in names]
    fits = [
        LogisticRegression(C=strength, max_iter=5000, tol=1e-6).fit((train - mean) / scale, texts)
        for strength in classification.PROBE_STRENGTHS
    ]

    def agreement(fit: LogisticRegression, found: list[tuple[str, ...]]) -> float:
        return float(np.mean(fit.predict((queries - mean) / scale) == ["/".join(name) for name in found]))

    for val in (train, queries):
        best = max(fits, key=lambda fit: float(np.mean(fit.predict((val - mean) / scale) == texts)))
        found = probe_leaves(queries, train, names, val, names)
        assert agreement(best, found) > 0.99
    (default,) = (fit for fit in fits if classification.DEFAULT_STRENGTH == fit.C)
    assert agreement(default, probe_leaves(queries, train, names)) > 0.99


leaves = st.sampled_from([A, B, C])


@settings(max_examples=50)
@given(st.lists(st.tuples(leaves, st.one_of(leaves, st.none()), st.integers(0, 3)), min_size=1, max_size=20))
def test_macro_f1_of_weighted_queries_is_that_of_repeated_ones(
    rows: list[tuple[tuple[str, ...], tuple[str, ...] | None, int]],
) -> None:
    rows = [*rows, (A, B, 1)]
    expected, predicted, weights = zip(*rows, strict=True)
    repeated = [(str(e), str(p)) for e, p, weight in rows for _ in range(weight)]
    truth, answers = zip(*repeated, strict=True)
    oracle = f1_score(truth, answers, labels=sorted(set(truth)), average="macro", zero_division=0)
    assert macro_f1(expected, predicted)(np.array([weights], float))[0] == pytest.approx(oracle)
