"""Filters: recall under each, and the planner against an oracle that runs every plan.

    python -m benchmarks.filters --quick --json FILE                                     30,000 rows, a minute
    python -m benchmarks.filters --json benchmarks/results/filters.json [--rows N]       20 minutes for a million

Vectors are drawn (benchmarks.drawn_vectors), 256 wide; the answer is ids and scores of the nearest 10 of 32 queries. A
filter keeps a share of the rows, either at random or by department, which goes with the vectors: then most queries look
for what lies far from them. `filter_recall`: recall@10 against exact search; `filter_recall_min`: the least of all.
`filter_vs_oracle`: the time of the plan that was chosen over that of the fastest of all plans that the index knows,
mask building included; they take turns. `filter_hits_missing`: hits below min(k, rows that pass).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from benchmarks.drawn_vectors import Clusters, Vectors
from benchmarks.report import Result, write_report
from benchmarks.search import BATCH, WIDTH, K, batches, build, open_untouched
from index.approximate import Lists
from index.exact import nearest
from index.filters import Filter, In, Range
from index.planner import Plan
from index.store import Store

PACKAGES = ("faiss-cpu", "numpy")
SHARES = (0.5, 0.1, 0.01, 0.001)
DEEPEST = 2_000  # neighbours that an index is asked for: beyond, FAISS takes time with their square


@dataclass(frozen=True, kw_only=True)
class Case:
    """A filter, and the rows that pass it."""

    name: str
    condition: Filter
    rows: npt.NDArray[np.int64]


def cases(clusters: Clusters, count: int) -> list[Case]:
    """Shares at random, one row, none; and by department."""
    share = np.arange(count) * 7_919 % count / count
    department = np.concatenate([departments for _, departments in clusters.draw(count, seed=0)])
    found = [
        Case(name=f"{limit:.4g} at random", condition=Range("share", below=limit), rows=np.flatnonzero(share < limit))
        for limit in (*SHARES, 1 / count, 0.0)
    ]
    sizes = np.bincount(department)
    for limit in SHARES:
        order = np.random.default_rng(3).permutation(len(sizes))
        chosen = order[: max(1, int(np.searchsorted(np.cumsum(sizes[order]), limit * count)))]
        rows = np.flatnonzero(np.isin(department, chosen))
        names = tuple(f"department {number}" for number in chosen)
        found.append(Case(name=f"{len(rows) / count:.4g} by department", condition=In("department", names), rows=rows))
    return found


def measure(store: Store, case: Case, vectors: Vectors, queries: Vectors, repeats: int, where: str) -> list[Result]:
    """One filter."""
    filters = [case.condition] * BATCH
    where = f"{case.name}, {where}"
    found = [one for batch in batches(queries) for one in store.search(batch, K, filters=filters)]
    expected = min(K, len(case.rows))
    missing = sum(max(0, expected - len(one.hits)) for one in found)
    results = [Result(metric="filter_hits_missing", value=missing, unit="hits", where=where)]
    if expected:
        _, places = nearest(queries, np.ascontiguousarray(vectors[case.rows]), expected)
        got = [np.array([int(hit.product_id[1:]) for hit in one.hits]) for one in found]
        recall = np.mean([np.isin(case.rows[want], have).mean() for want, have in zip(places, got, strict=True)])
        results.append(Result(metric="filter_recall", value=float(recall), unit="share", where=where))
    index = store._memory.segments[0].index
    plans = [Plan.EXACT]
    if K * len(vectors) <= DEEPEST * len(case.rows):
        plans += [Plan.WIDENED, Plan.MASKED] if isinstance(index, Lists) else [Plan.WIDENED]
    times: dict[Plan | None, list[float]] = {plan: [] for plan in (None, *plans)}
    for batch in batches(queries)[:repeats]:
        for plan, taken in times.items():
            taken.append(seconds(store, batch, filters, plan))
    medians = {plan: 1e3 * statistics.median(taken) for plan, taken in times.items()}
    oracle = min(plans, key=lambda plan: medians[plan])
    each = ", ".join(f"{plan.value} {medians[plan]:.1f}" for plan in plans)
    return [
        *results,
        Result(metric="filter_ms", value=medians[None], unit="ms", against=found[0].plan.value, where=where),
        Result(
            metric="filter_vs_oracle",
            value=medians[None] / medians[oracle],
            unit="ratio",
            against=f"{oracle.value} ({each} ms)",
            where=where,
        ),
    ]


def seconds(store: Store, batch: Vectors, filters: Sequence[Filter], plan: Plan | None) -> float:
    """Of one search by a plan, None: by the planner's own."""
    with nullcontext() if plan is None else patch("index.search.choose", return_value=plan):
        since = time.perf_counter()
        store.search(batch, K, filters=filters)
        return time.perf_counter() - since


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.filters", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="the results file to write")
    parser.add_argument("--quick", action="store_true", help="30,000 rows")
    parser.add_argument("--rows", type=int, default=1_000_000, help="products (%(default)s)")
    parser.add_argument("--store", type=Path, help="keeps the store there, or takes the one that is there")
    arguments = parser.parse_args(argv)
    count = 30_000 if arguments.quick else arguments.rows
    clusters, repeats = Clusters(count, WIDTH), 4 if arguments.quick else 9
    queries = clusters.queries(BATCH * 16)
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.store or Path(temporary) / "store"
        if not folder.exists():
            build(folder, count).close()
        vectors = np.concatenate([block for block, _ in clusters.draw(count, seed=0)])
        with open_untouched(folder, count) as store:
            for case in cases(clusters, count):
                results += measure(store, case, vectors, queries, repeats, f"{count:,} rows of {WIDTH}")
    recalls = [one.value for one in results if one.metric == "filter_recall"]
    ratios = [one.value for one in results if one.metric == "filter_vs_oracle"]
    results += [
        Result(metric="filter_recall_min", value=min(recalls), unit="share", against="exact search"),
        Result(metric="filter_vs_oracle_max", value=max(ratios), unit="ratio", against="the fastest plan of each"),
    ]
    write_report("filters", results, PACKAGES, arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
