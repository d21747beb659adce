from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from item.evaluation.errors import ErrorsRemoved, errors_removed

SYSTEMS = {("ours", "both"): 0.9, ("ours", "words"): 0.7, ("late", "both"): 0.8, ("words", "words"): 0.75}
LETTERS = "abcdefghijklmnop"


def table(values: dict[tuple[str, str], list[float]], held: int = 0, products: Sequence[str] = LETTERS) -> pa.Table:
    """The values of each system's queries; the first `held` of them are of that subset."""
    rows = [
        {
            "system": system,
            "inputs": inputs,
            "task": "find",
            "measure": "recall@1",
            "product_id": f"q{i}",
            "product": products[i],
            "value": float(value),
            "subsets": ["all", "held"] if i < held else ["all"],
        }
        for (system, inputs), of_queries in values.items()
        for i, value in enumerate(of_queries)
    ]
    return pa.Table.from_pylist(rows)


def random_tables(seed: int) -> dict[str, pa.Table]:
    """80 products of 1 to 8 queries, which rise and fall together."""
    generator = np.random.default_rng(seed)
    tables = {}
    for name in ("one", "two"):
        products = [f"p{i}" for i in range(80) for _ in range(1 + i % 8)]
        values = {
            key: np.repeat(generator.random(80) < rate, [1 + i % 8 for i in range(80)]) for key, rate in SYSTEMS.items()
        }
        tables[name] = table(
            {key: [float(value) for value in of] for key, of in values.items()}, held=180, products=products
        )
    return tables


def ask(tables: dict[str, pa.Table], task: str = "find", inputs: str = "both", subset: str = "all") -> ErrorsRemoved:
    chosen = {"task": task, "inputs": inputs, "subset": subset, "measure": "recall@1"}
    found = errors_removed(tables, system="ours", baselines=["late", "words"], **chosen)
    assert found is not None
    return found


def test_pooled_by_hand() -> None:
    """The words are best in one catalogue (2 errors), late fusion in the other (3): ours makes 1 + 1 of 5."""
    one = table({("ours", "both"): [1, 1, 1, 0], ("late", "both"): [0, 0, 0, 1], ("words", "words"): [1, 0, 1, 0]})
    two = table({("ours", "both"): [1, 0, 1, 1], ("late", "both"): [0, 0, 0, 1], ("words", "words"): [0, 0, 0, 0]})
    found = ask({"one": one, "two": two})
    assert found.value == pytest.approx(1 - 2 / 5)
    assert found.queries == 8
    best = {name: (one.baseline, one.baseline_inputs) for name, one in found.catalogs.items()}
    assert best == {"one": ("words", "words"), "two": ("late", "both")}
    assert {name: one.baseline_value for name, one in found.catalogs.items()} == {"one": 0.5, "two": 0.25}
    assert {name: one.value for name, one in found.catalogs.items()} == {"one": 0.25, "two": 0.5}


@pytest.mark.parametrize("subset", ["all", "held"])
def test_interval_is_that_of_a_bootstrap_over_products(subset: str) -> None:
    tables = random_tables(0)
    found = ask(tables, subset=subset)
    clusters: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for name, rows in ((name, one.to_pylist()) for name, one in tables.items()):
        values = {(row["system"], row["product_id"]): row["value"] for row in rows if row["inputs"] == "both"}
        values |= {(row["system"], row["product_id"]): row["value"] for row in rows if row["system"] == "words"}
        best = found.catalogs[name].baseline
        for row in rows:
            if (row["system"], row["inputs"]) == ("ours", "both") and subset in row["subsets"]:
                errors = 1 - row["value"], 1 - values[best, row["product_id"]]
                clusters.setdefault((name, row["product"]), []).append(errors)
    sums = np.array([np.sum(errors, axis=0) for errors in clusters.values()])
    drawn = sums[np.random.default_rng(1).integers(0, len(sums), (4000, len(sums)))].sum(axis=1)
    shares = 1 - drawn[:, 0] / drawn[:, 1]
    value = 1 - sums[:, 0].sum() / sums[:, 1].sum()
    assert found.value == pytest.approx(value)
    assert found.low is not None
    assert found.high is not None
    np.testing.assert_allclose([found.low, found.high], np.quantile(shares, [0.025, 0.975]), atol=0.05)
    assert found.queries == (720 if subset == "all" else 360)


def test_pooling_is_of_errors_not_of_shares() -> None:
    """A large catalogue counts for more than a small one."""
    small = table({("ours", "both"): [1, 1], ("late", "both"): [0, 1], ("words", "words"): [0, 0]})
    large = table({("ours", "both"): [0] * 8, ("late", "both"): [0] * 8, ("words", "words"): [0] * 8})
    assert ask({"small": small, "large": large}).value == pytest.approx(1 / 9)


def test_single_inputs_are_compared_with_the_same() -> None:
    found = ask(random_tables(2), inputs="words")
    assert {one.baseline for one in found.catalogs.values()} == {"words"}


def test_only_queries_that_both_answered() -> None:
    one = table({("ours", "both"): [1, 0, 1], ("late", "both"): [0, 0], ("words", "words"): [0]})
    best = ask({"one": one}).catalogs["one"]
    assert (best.baseline, best.queries, best.value) == ("late", 2, 0.5)


def test_no_errors_to_remove_have_no_share() -> None:
    perfect = table({("ours", "both"): [1, 0], ("late", "both"): [1, 1], ("words", "words"): [0, 0]})
    found = ask({"one": perfect})
    assert (found.value, found.low, found.high, str(found)) == (None, None, None, "no errors")
    assert found.catalogs["one"].value == -0.5


def test_resamples_without_errors_are_left_out() -> None:
    rare = table({("ours", "both"): [1] * 9, ("late", "both"): [0, *[1] * 8], ("words", "words"): [0] * 9})
    found = ask({"one": rare})
    assert (found.value, found.low, found.high) == (1, 1, 1)


def test_nothing_to_compare_and_unknown_baselines() -> None:
    tables = random_tables(3)
    settings = {"system": "ours", "measure": "recall@1"}
    assert errors_removed(tables, baselines=["late"], task="sort", **settings) is None
    with pytest.raises(ValueError, match=r"baselines: 'early' is in none of the tables; they have late, ours, words"):
        errors_removed(tables, baselines=["late", "early"], task="find", **settings)
