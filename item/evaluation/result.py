"""One measured value: of which system, in which task, on which of its queries, with its interval."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from item.evaluation.bootstrap import Interval
from item.evaluation.exam import Answers

ALL, HELD, NO_TWIN = "all", "held", "no near twin"  # subsets of the queries


@dataclass(frozen=True, kw_only=True)
class Result:
    """One measure of one system in one task, on a subset of its queries; with `against`, a paired difference."""

    system: str
    inputs: str
    task: str
    measure: str
    subset: str
    queries: int
    value: float
    low: float
    high: float
    against: str | None = None

    def __str__(self) -> str:
        sign = "" if self.against is None else "+"
        return f"{self.value:{sign}.3f} [{self.low:{sign}.3f}, {self.high:{sign}.3f}]"


def result_of(
    answers: Answers,
    measure: str,
    interval: Interval,
    *,
    system: str,
    inputs: str,
    subset: str = ALL,
    against: str | None = None,
) -> Result:
    """The result of one measure of these answers."""
    return Result(
        system=system,
        inputs=inputs,
        task=answers.task,
        measure=measure,
        subset=subset,
        queries=len(answers.ids),
        against=against,
        **asdict(interval),
    )
