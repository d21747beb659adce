from __future__ import annotations

import numpy as np
import pytest

from item.catalog.listing import Listing
from item.evaluation.dimensions import kept_dimensions
from item.evaluation.exam import Contestant, Exam
from item.evaluation.retrieval import unit
from item.evaluation.sitting import Sitting


def sit(catalog: np.ndarray, queries: np.ndarray) -> Sitting:
    count = len(catalog)
    listings = [Listing(product_id=str(i), split="test") for i in range(count)]
    offers = [Listing(product_id=f"o{i}", group_id=str(i), attributes={"held": i < 30}) for i in range(count)]
    sitting = Sitting(Exam(catalog=listings, offers=offers, split="test"))
    sitting.add(Contestant(name="ours", inputs="both", catalog=unit(catalog), queries=unit(queries)))
    return sitting


def recall_at_10(catalog: np.ndarray, queries: np.ndarray) -> np.ndarray:
    similarities = queries @ catalog.T / np.linalg.norm(catalog, axis=1)
    return (similarities > np.diag(similarities)[:, None]).sum(axis=1) < 10


def test_share_of_the_recall_on_all_dimensions() -> None:
    generator = np.random.default_rng(0)
    catalog = generator.standard_normal((90, 160)).astype(np.float32)
    queries = catalog + 8 * generator.standard_normal(catalog.shape).astype(np.float32)
    full, short = recall_at_10(catalog, queries), recall_at_10(catalog[:, :64], queries[:, :64])
    found = {(one.measure, one.subset): one for one in kept_dimensions(sit(catalog, queries), "ours")}
    assert {measure for measure, _ in found} == {"dims64_kept", "dims128_kept"}  # 256 is no prefix of 160
    assert found["dims64_kept", "all"].value == pytest.approx(short.sum() / full.sum())
    assert found["dims64_kept", "held"].value == pytest.approx(short[:30].sum() / full[:30].sum())
    draws = generator.integers(0, 90, (4000, 90))
    shares = short[draws].sum(axis=1) / full[draws].sum(axis=1)
    one = found["dims64_kept", "all"]
    np.testing.assert_allclose([one.low, one.high], np.quantile(shares, [0.025, 0.975]), atol=0.04)
    assert 0.3 < one.value < found["dims128_kept", "all"].value < 1


def test_all_is_kept_where_the_rest_is_empty() -> None:
    catalog = np.zeros((40, 100), np.float32)
    catalog[:, :40] = np.eye(40)
    found = [*kept_dimensions(sit(catalog, catalog), "ours")]
    assert {(one.measure, one.value, one.low, one.high) for one in found} == {("dims64_kept", 1, 1, 1)}


def test_no_share_of_nothing_and_of_nobody() -> None:
    catalog = np.eye(70, dtype=np.float32)
    assert [*kept_dimensions(sit(catalog, np.roll(-catalog, 1, axis=0)), "theirs")] == []
    catalog = np.concatenate([np.eye(12), np.zeros((12, 60))], axis=1).astype(np.float32)
    assert [*kept_dimensions(sit(catalog, -catalog), "ours")] == []
