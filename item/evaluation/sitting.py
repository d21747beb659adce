"""One exam and those who sit it: their results, how they differ, and the values of the single queries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from item.evaluation.bootstrap import paired_interval
from item.evaluation.exam import SAME_PRODUCT, Answers, Contestant, Exam, Positions
from item.evaluation.result import ALL, HELD, NO_TWIN, Result, result_of

FAMILIES = ("picture_family", "words_family")  # attributes of offers: how their picture and their words were made

_QUERY_SCHEMA = pa.schema(
    {
        **dict.fromkeys(("system", "inputs", "task", "measure", "product_id", "product"), pa.string()),
        "value": pa.float64(),
        "predicted": pa.list_(pa.string()),
        "subsets": pa.list_(pa.string()),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """Positions among the exam's queries (same product) and among the catalogue's rows (all other tasks)."""

    queries: Positions
    rows: Positions

    def of(self, task: str) -> Positions:
        """The positions that the answers to a task have."""
        return self.queries if task == SAME_PRODUCT else self.rows


class Sitting:
    """One exam and the contestants that sit it; the first is the one that the others are compared with.

    twins: positions of the catalogue's rows that have a near twin in train; the subset `no near twin` is without them
    and without their offers. None: there is no such subset.
    """

    def __init__(self, exam: Exam, twins: Positions | None = None) -> None:
        self.exam = exam
        self.answers: list[tuple[Contestant, Answers]] = []
        no_rows = exam.rows[:0]
        held = {value.lower(): positions for value, positions in exam.subsets("held").items()}.get("true")  # CSV: text
        self.subsets = {} if held is None else {HELD: Subset(queries=held, rows=no_rows)}
        if twins is not None:
            left_out = {exam.catalog[row].product_id for row in twins}
            queries = np.flatnonzero([asked not in left_out for asked in exam.asked_ids])
            self.subsets[NO_TWIN] = Subset(queries=queries, rows=np.setdiff1d(exam.rows, twins))
        for family in FAMILIES:
            for value, positions in exam.subsets(family).items():
                self.subsets[f"{family}={value}"] = Subset(queries=positions, rows=no_rows)

    def add(self, contestant: Contestant) -> None:
        """Lets a contestant sit the exam; tasks without queries are left out."""
        self.answers += [(contestant, answers) for answers in self.exam.sit(contestant) if len(answers.ids)]

    def find(self, name: str, inputs: str, task: str) -> tuple[Contestant, Answers] | None:
        """A contestant and its answers to a task; None where it gave none."""
        wanted = (name, inputs, task)
        return next((one for one in self.answers if (one[0].name, one[0].inputs, one[1].task) == wanted), None)

    def parts(self, answers: Answers) -> Iterator[tuple[str, Answers]]:
        """The answers as a whole, and to each subset of the queries that is not empty."""
        parts = {ALL: answers, **{name: answers.only(subset.of(answers.task)) for name, subset in self.subsets.items()}}
        yield from ((name, part) for name, part in parts.items() if len(part.ids))

    def results(self) -> Iterator[Result]:
        """Every measure of every contestant, in each task as a whole and on the subsets of its queries."""
        for one, answers in self.answers:
            for subset, part in self.parts(answers):
                for measure, interval in part.measures().items():
                    yield result_of(part, measure, interval, system=one.name, inputs=one.inputs, subset=subset)

    def differences(self) -> Iterator[Result]:
        """How much higher the first contestant's measures are than another's with the same inputs, query by query."""
        first = self.answers[0][0].name if self.answers else ""
        own, others = ([one for one in self.answers if (one[0].name == first) is is_own] for is_own in (True, False))
        for one, ours in own:
            for other, theirs in others:
                if (one.inputs, ours.task) != (other.inputs, theirs.task):
                    continue
                said = {"system": one.name, "inputs": one.inputs, "against": other.name}
                for subset, part in self.parts(ours.only(theirs.positions)):
                    against = theirs.only(part.positions)
                    for measure, values in part.values.items():
                        interval = paired_interval(values, against.values[measure], part.products)
                        yield result_of(part, measure, interval, subset=subset, **said)

    def queries(self) -> pa.Table:
        """The value of each query in each measure, with the names of the subsets that it belongs to."""
        tables = [_QUERY_SCHEMA.empty_table()]
        for contestant, answers in self.answers:
            subsets = [[ALL] for _ in answers.ids]
            for name, subset in self.subsets.items():
                for i in np.flatnonzero(np.isin(answers.positions, subset.of(answers.task))):
                    subsets[i].append(name)
            for measure, values in answers.values.items():
                said = (contestant.name, contestant.inputs, answers.task, measure)
                columns = [
                    *([value] * len(values) for value in said),
                    answers.ids,
                    answers.products,
                    values,
                    answers.predicted or [None] * len(values),
                    subsets,
                ]
                tables.append(pa.table(columns, schema=_QUERY_SCHEMA))
        return pa.concat_tables(tables)

    def save_queries(self, path: Path) -> None:
        """Writes `queries` as Parquet, beside and renamed."""
        beside = path.with_suffix(".tmp")
        pq.write_table(self.queries(), beside)
        beside.replace(path)
