"""The recall that is sampled beside the service."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

import index.choosing
import index.recall
from index.planner import Plan
from index.recall import RecallSample
from index.store import Store
from tests.index.conftest import BY_HAND, about, product, random_vectors


def test_one_answer_in_many_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index.recall, "ONE_IN", 10)
    sample = RecallSample()
    due = []
    for _ in range(30):
        due.append(sample.is_due(4))
        if due[-1]:
            sample.check([], list)
            sample.wait()
    assert sum(due) == 12  # of 120 answers
    sample.close()


def test_the_estimate_is_the_mean_of_shares(caplog: pytest.LogCaptureFixture) -> None:
    sample = RecallSample()
    assert sample.estimate().recall is None
    with caplog.at_level(logging.INFO):
        for found in ([1, 2, 3, 4], [1, 2, 9, 8]):
            sample.check(found, lambda: [1, 2, 3, 4])
            sample.wait()
    assert (sample.estimate().recall, sample.estimate().num_answers) == (0.75, 2)
    assert "recall 0.7500 in 2 answers" in caplog.text
    sample.close()


def test_a_store_samples_its_approximate_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it finds is what a comparison with exact search finds; exact answers are not sampled."""
    monkeypatch.setattr(index.choosing, "FLAT_ROWS", 500)
    monkeypatch.setattr(index.recall, "ONE_IN", 16)
    vectors, queries = random_vectors(2000, 32), random_vectors(160, 32, seed=1)
    products = [product(f"p{row}") for row in range(2000)]
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    shares = []
    with Store.create(tmp_path, about(32), [(products, vectors)], upkeep=BY_HAND) as store:
        store.search(queries, 10)  # so few are compared with each other
        assert store.recall().num_answers == 0
        monkeypatch.setattr("index.search.choose", lambda *_: Plan.WIDENED)
        for start in range(0, 160, 16):
            found = store.search(queries[start : start + 16], 10)
            store._sample.wait()
            wanted = {f"p{row}" for row in exact[start + 15].tolist()}
            shares.append(len(wanted & set(found[-1].product_ids)) / 10)
        assert store.recall().num_answers == 10
        assert store.recall().recall == pytest.approx(np.mean(shares))
        assert found[0].plan is Plan.APPROXIMATE
