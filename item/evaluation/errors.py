"""How many of the best baseline's errors a system removes, over several catalogues at once.

The input is what evaluations leave behind: for each catalogue the table of its single queries (`queries.parquet`, or
`Sitting.queries()`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from item.evaluation.bootstrap import paired_interval, ratio_interval
from item.evaluation.result import ALL

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class AgainstBest:
    """A system beside the best baseline of one catalogue; value, low, high: how much higher its measure is, paired."""

    baseline: str
    baseline_inputs: str
    baseline_value: float
    queries: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True, kw_only=True)
class ErrorsRemoved:
    """The share of the best baselines' errors that a system removes: 1 - its errors / theirs, pooled over catalogues.

    Negative where it makes more errors than they; None where they make none. low, high: 95%, paired.
    """

    system: str
    inputs: str
    task: str
    measure: str
    subset: str
    queries: int
    value: float | None
    low: float | None
    high: float | None
    catalogs: Mapping[str, AgainstBest]

    def __str__(self) -> str:
        return "no errors" if self.value is None else f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def errors_removed(
    catalogs: Mapping[str, pa.Table],
    *,
    system: str,
    baselines: Sequence[str],
    task: str,
    measure: str,
    inputs: str = "both",
    subset: str = ALL,
) -> ErrorsRemoved | None:
    """Compares a system with the best baseline of each catalogue and pools the errors (1 - value) of all queries.

    The best baseline is the one with the highest mean in this task, measure and subset: among all of them for `both`,
    else among those with the same inputs. The bootstrap draws products. A catalogue where the system or every baseline
    has no such queries is left out; None where that is all of them.

    Args:
        catalogs: by name the table of single queries.
        baselines: their names.

    Raises:
        ValueError: a baseline is in none of the tables.
    """
    known = {name for table in catalogs.values() for name in table["system"].unique().to_pylist()}
    if unknown := [name for name in baselines if name not in known]:
        raise ValueError(f"baselines: {unknown[0]!r} is in none of the tables; they have {', '.join(sorted(known))}")
    compared: dict[str, AgainstBest] = {}
    pooled: list[tuple[Values, Values]] = []
    products: list[tuple[str, str]] = []
    for name, table in catalogs.items():
        answers = _answers(table, task, measure, subset)
        ours = answers.pop((system, inputs), {})
        rivals = {
            key: paired
            for key, theirs in answers.items()
            if key[0] in baselines and inputs in ("both", key[1]) and (paired := _pair(ours, theirs))
        }
        if not rivals:
            continue
        best = max(rivals, key=lambda key: float(rivals[key][1].mean()))
        own, other, asked = rivals[best]
        compared[name] = AgainstBest(
            baseline=best[0],
            baseline_inputs=best[1],
            baseline_value=float(other.mean()),
            queries=len(asked),
            **asdict(paired_interval(own, other, asked)),
        )
        pooled.append((1 - own, 1 - other))
        products += [(name, product) for product in asked]
    if not compared:
        return None
    errors, their_errors = (np.concatenate(part) for part in zip(*pooled, strict=True))
    share = ratio_interval(their_errors - errors, their_errors, products)
    return ErrorsRemoved(
        system=system,
        inputs=inputs,
        task=task,
        measure=measure,
        subset=subset,
        queries=len(products),
        catalogs=compared,
        **{name: None if np.isnan(value) else value for name, value in asdict(share).items()},
    )


def _answers(
    table: pa.Table, task: str, measure: str, subset: str
) -> dict[tuple[str, str], dict[str, tuple[float, str]]]:
    """For each (system, inputs), by the query's id, its value and its product."""
    chosen = table.filter((pc.field("task") == task) & (pc.field("measure") == measure))
    answers: dict[tuple[str, str], dict[str, tuple[float, str]]] = {}
    for row in chosen.to_pylist():
        if subset in row["subsets"]:
            of_system = answers.setdefault((row["system"], row["inputs"]), {})
            of_system[row["product_id"]] = (row["value"], row["product"])
    return answers


def _pair(
    ours: Mapping[str, tuple[float, str]], theirs: Mapping[str, tuple[float, str]]
) -> tuple[Values, Values, list[str]] | None:
    """Values of the queries that both answered, and their products; None where there are none."""
    shared = [query for query in ours if query in theirs]
    if not shared:
        return None
    own, other = (np.array([answers[query][0] for query in shared]) for answers in (ours, theirs))
    return own, other, [ours[query][1] for query in shared]
