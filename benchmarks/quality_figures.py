"""The figures of `benchmarks.quality`, from what the evaluations of aligned models leave behind."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.report import Result
from item.evaluation.bootstrap import ratio_interval
from item.evaluation.errors import errors_removed
from item.evaluation.exam import BY_NEIGHBOURS, PICTURE_TO_WORDS, SAME_PRODUCT, WORDS_TO_PICTURE
from item.evaluation.report import SUBSETS
from item.evaluation.result import ALL
from training.comparison import BEFORE, NAME

MEASURES = {SAME_PRODUCT: "recall@1", BY_NEIGHBOURS: "accuracy"}
ACROSS = (WORDS_TO_PICTURE, PICTURE_TO_WORDS)
ACROSS_MEASURES = ("recall@10", "recall@1")
TWO_TOWERS = "two towers"
COMMIT = ", commit "  # before the commit that trained, in a detail
SPREAD = "_spread"  # ends the name of a standard deviation


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a figure was measured on; what is empty is not said. seed: None where it is over several."""

    arm: str
    seed: int | None
    split: str
    catalog: str
    task: str = ""
    subset: str = ""
    detail: str = ""

    def __str__(self) -> str:
        seed = "" if self.seed is None else f"seed {self.seed}"
        said = (self.catalog, self.split, self.task, self.subset, self.arm, seed, self.detail)
        return ", ".join(part for part in said if part)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure; low, high: its 95% interval, where it has one.

    may_not_fall: a difference of which it counts whether it is below zero beyond chance.
    """

    metric: str
    value: float
    unit: str
    place: Place
    against: str = ""
    low: float | None = None
    high: float | None = None
    may_not_fall: bool = False

    def results(self) -> Iterator[Result]:
        """The figure, METRIC_low and METRIC_high, and METRIC_worse: whether it is below zero beyond chance."""
        values = {"": self.value, "_low": self.low, "_high": self.high}
        if self.may_not_fall and self.high is not None:
            values["_worse"] = float(self.high < 0)
        for ending, value in values.items():
            if value is not None:
                unit = "0 or 1" if ending == "_worse" else self.unit
                name = f"{self.metric}{ending}"
                yield Result(metric=name, value=value, unit=unit, against=self.against, where=str(self.place))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one arm with one seed left behind on one catalogue.

    queries: the values of single queries; evaluation: evaluation.json; guard: guard.json; training: how it was trained,
    {"seconds", "commit", "drew_views"}.
    """

    queries: pa.Table
    evaluation: Mapping[str, Any]
    guard: Mapping[str, Any]
    training: Mapping[str, Any]


def read_outcome(report: Path, model: Path, training: Path) -> Outcome:
    """From the report's folder, the model's folder, and the record of the training."""
    evaluation, guard, trained = (
        json.loads(path.read_text(encoding="utf-8"))
        for path in (report / "evaluation.json", model / "run" / "guard.json", training)
    )
    return Outcome(
        queries=pq.read_table(report / "queries.parquet"), evaluation=evaluation, guard=guard, training=trained
    )


def figures_of(outcomes: Mapping[str, Outcome], place: Place) -> Iterator[Figure]:
    """All figures of one arm with one seed. outcomes: by catalogue; place: with the arm, the seed and the split."""
    yield from error_figures(outcomes, place)
    yield from across_figures(outcomes, place)
    for name, outcome in outcomes.items():
        here = replace(place, catalog=name)
        yield from alone_figures(outcome, here)
        yield from kept_figures(outcome, here)
        yield from training_figures(outcome, here)
        yield from plain_figures(outcome, here)


def baseline_names(outcomes: Mapping[str, Outcome]) -> list[str]:
    """The baselines in the tables; where there are none, since there were no starting weights, the starting point."""
    systems = dict.fromkeys(name for one in outcomes.values() for name in one.queries["system"].unique().to_pylist())
    return [name for name in systems if name not in (NAME, BEFORE)] or [BEFORE]


def pooled_over(catalogs: Iterable[str]) -> str:
    """What a figure over several catalogues is said to be measured on."""
    return "pooled over " + " + ".join(catalogs)


def error_figures(outcomes: Mapping[str, Outcome], place: Place) -> Iterator[Figure]:
    """The share of the best baselines' errors removed by both, pooled; and the difference on each catalogue."""
    tables = {name: one.queries for name, one in outcomes.items()}
    for task, measure in MEASURES.items():
        for subset in SUBSETS:
            chosen = {"task": task, "measure": measure, "subset": subset}
            found = errors_removed(tables, system=NAME, baselines=baseline_names(outcomes), **chosen)
            if found is None:
                continue
            here = replace(place, task=task, subset=subset)
            best = {name: f"{one.baseline} ({one.baseline_inputs})" for name, one in found.catalogs.items()}
            if found.value is not None:
                yield Figure(
                    metric="errors_removed",
                    value=found.value,
                    low=found.low,
                    high=found.high,
                    unit="share",
                    against="; ".join(f"{name}: {one}" for name, one in best.items()),
                    place=replace(here, catalog=pooled_over(found.catalogs)),
                )
            for name, one in found.catalogs.items():
                yield Figure(
                    metric="vs_best_baseline",
                    value=one.value,
                    low=one.low,
                    high=one.high,
                    unit=f"{measure}, difference",
                    against=best[name],
                    place=replace(here, catalog=name),
                    may_not_fall=True,
                )


def alone_figures(outcome: Outcome, place: Place) -> Iterator[Figure]:
    """Words alone and picture alone against the vectors of their starting weights."""
    differences = [one for one in outcome.evaluation["differences"] if one["subset"] == ALL]
    for inputs in ("words", "picture"):
        own = [one for one in differences if one["inputs"] == inputs]
        against = inputs if any(one["against"] == inputs for one in own) else BEFORE
        for one in own:
            if one["against"] == against and one["measure"] == MEASURES.get(one["task"]):
                yield Figure(
                    metric=f"{inputs}_vs_start",
                    value=one["value"],
                    low=one["low"],
                    high=one["high"],
                    unit=f"{one['measure']}, difference",
                    against=f"{against} ({inputs})",
                    place=replace(place, task=one["task"], subset=ALL),
                    may_not_fall=True,
                )


def across_figures(outcomes: Mapping[str, Outcome], place: Place) -> Iterator[Figure]:
    """Recall of words to picture and back over the two towers', on each catalogue and pooled over their queries."""
    for task in ACROSS:
        for measure in ACROSS_MEASURES:
            pairs = {name: across_values(one.queries, task, measure) for name, one in outcomes.items()}
            pairs = {name: values for name, values in pairs.items() if values}
            parts = {name: {name: values} for name, values in pairs.items()}
            if len(pairs) > 1:
                parts[pooled_over(pairs)] = pairs
            for catalog, part in parts.items():
                named = [(name, *row) for name, values in part.items() for row in values]
                _, products, ours, theirs = zip(*named, strict=True)
                groups = list(zip((name for name, *_ in named), products, strict=True))
                ratio = ratio_interval(ours, theirs, groups)
                if np.isfinite(ratio.value):  # else the towers find nothing
                    yield Figure(
                        metric="words_to_picture_vs_two_towers",
                        value=ratio.value,
                        low=ratio.low,
                        high=ratio.high,
                        unit=f"{measure}, ratio",
                        against=TWO_TOWERS,
                        place=replace(place, catalog=catalog, task=task, subset=ALL),
                    )


def across_values(queries: pa.Table, task: str, measure: str) -> list[tuple[str, float, float]]:
    """The product of each query, the model's value and the two towers'; of the queries that both answered."""
    asked = queries.filter((pc.field("task") == task) & (pc.field("measure") == measure)).to_pylist()
    ours, theirs = (
        {one["product_id"]: one for one in asked if (one["system"], one["inputs"]) == (system, "both")}
        for system in (NAME, TWO_TOWERS)
    )
    return [(one["product"], one["value"], theirs[query]["value"]) for query, one in ours.items() if query in theirs]


def kept_figures(outcome: Outcome, place: Place) -> Iterator[Figure]:
    """What fewer dimensions keep of the recall@10."""
    for one in outcome.evaluation["dimensions"]:
        if one["system"] == NAME and one["subset"] == ALL:
            yield Figure(
                metric=one["measure"],
                value=one["value"],
                low=one["low"],
                high=one["high"],
                unit="share of recall@10",
                against="all dimensions",
                place=replace(place, task=one["task"], subset=ALL),
            )


def training_figures(outcome: Outcome, place: Place) -> Iterator[Figure]:
    """How long the training took, views included where no other arm had drawn the same, and whether it was kept."""
    views = "views drawn" if outcome.training["drew_views"] else "views were there"
    detail = f"{views}{COMMIT}{outcome.training['commit']}"
    here = replace(place, detail=detail)
    yield Figure(metric="training_seconds", value=outcome.training["seconds"], unit="s", place=here)
    aligned = float(outcome.guard["better"])
    yield Figure(metric="aligned", value=aligned, unit="0 or 1", place=place)


def plain_figures(outcome: Outcome, place: Place) -> Iterator[Figure]:
    """The values themselves, of the model and of all that it is compared with."""
    for one in outcome.evaluation["results"]:
        measures = ACROSS_MEASURES if one["task"] in ACROSS else (MEASURES.get(one["task"]),)
        if one["subset"] == ALL and one["measure"] in measures:
            detail = f"{one['system']} by {one['inputs']}"
            here = replace(place, task=one["task"], subset=ALL, detail=detail)
            yield Figure(metric=one["measure"], value=one["value"], unit="share of queries", place=here)


def over_seeds(figures: Sequence[Figure]) -> Iterator[Figure]:
    """The mean of each figure over the seeds, and METRIC_spread, its standard deviation; nothing of one seed alone."""
    found: dict[tuple[str, Place], list[Figure]] = {}
    for figure in figures:
        place = replace(figure.place, seed=None, detail=figure.place.detail.partition(COMMIT)[0])
        found.setdefault((figure.metric + figure.unit, place), []).append(figure)
    for (_, place), same in found.items():
        if len(same) == 1:
            continue
        values = [one.value for one in same]
        said = f"mean of {len(same)} seeds"
        first = replace(
            same[0],
            value=statistics.mean(values),
            place=replace(place, detail=", ".join(filter(None, (place.detail, said)))),
            against=" | ".join(dict.fromkeys(one.against for one in same)),
            low=None,
            high=None,
        )
        yield first
        yield replace(first, metric=f"{first.metric}{SPREAD}", value=statistics.stdev(values))
