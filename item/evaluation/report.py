"""The outcome of an exam for people and programs: aligned tables, Markdown, JSON, and the values of each query.

`evaluation.json` holds {"about", "notes", "results", "differences"}; each of the last two is a list of {"system",
"inputs", "task", "measure", "subset", "queries", "value", "low", "high", "against"} with the 95% interval. A difference
says how much higher the measure is than that of "against", paired by query. The values of the single queries go into a
Parquet file, so that a later evaluation can be paired with this one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from item.evaluation.bootstrap import Interval, paired_interval
from item.evaluation.exam import SAME_PRODUCT, Answers, Contestant, Exam, Positions

ALL, HELD = "all", "held"
FAMILIES = ("picture_family", "words_family")  # attributes of offers: how their picture and their words were made

_QUERY_SCHEMA = pa.schema(
    {
        **dict.fromkeys(("system", "inputs", "task", "measure", "product_id", "product"), pa.string()),
        "value": pa.float64(),
        "predicted": pa.list_(pa.string()),
    }
)


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


@dataclass(frozen=True, kw_only=True)
class Table:
    """Results side by side: a row for each system and inputs, a column for each measure."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        """Aligned columns under the title."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (self.columns, *self.rows)
        ]
        return "\n  ".join([self.title, *lines])

    def markdown(self) -> str:
        """A heading and a table."""
        lines = ["| " + " | ".join(row) + " |" for row in (self.columns, ("---",) * len(self.columns), *self.rows)]
        return "\n".join([f"## {self.title}", "", *lines])


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything measured. about: the model, the catalogue, ...; notes: what else a reader must know, sentences."""

    about: dict[str, str | int]
    notes: Sequence[str]
    results: Sequence[Result]
    differences: Sequence[Result]

    def tables(self) -> list[Table]:
        """Each task, then the same product on held families alone, then the differences."""
        tasks = dict.fromkeys(result.task for result in self.results)
        tables = [_table(task, self.results, task, ALL) for task in tasks]
        tables.append(_table(f"{SAME_PRODUCT}, held families alone", self.results, SAME_PRODUCT, HELD))
        tables += [_table(f"{task}, paired difference", self.differences, task, ALL) for task in tasks]
        return [table for table in tables if table.rows]

    def text(self) -> str:
        """Aligned tables for a terminal."""
        about = "\n".join(f"{name}: {value}" for name, value in self.about.items())
        return "\n\n".join([about, *(table.text() for table in self.tables()), "\n".join(self.notes)])

    def save(self, folder: Path) -> None:
        """Writes evaluation.json and evaluation.md, each beside and renamed."""
        about = "\n".join(f"- {name}: {value}" for name, value in self.about.items())
        notes = "\n".join(f"- {note}" for note in self.notes)
        explained = "Every value with its 95% bootstrap interval."
        markdown = ["# Evaluation", about, explained, *(table.markdown() for table in self.tables()), notes]
        values = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        for name, content in (("evaluation.md", "\n\n".join(markdown)), ("evaluation.json", values)):
            beside = folder / f"{name}.tmp"
            beside.write_text(content.rstrip() + "\n", encoding="utf-8")
            beside.replace(folder / name)


class Sitting:
    """One exam and the contestants that sit it; the first is the one that the others are compared with."""

    def __init__(self, exam: Exam) -> None:
        self.exam = exam
        self.answers: list[tuple[Contestant, Answers]] = []
        families = {
            f"{family}={value}": positions for family in FAMILIES for value, positions in exam.subsets(family).items()
        }
        held = {value.lower(): positions for value, positions in exam.subsets("held").items()}.get("true")  # CSV: text
        self.subsets: dict[str, Positions] = families if held is None else {HELD: held, **families}

    def add(self, contestant: Contestant) -> None:
        """Lets a contestant sit the exam; tasks without queries are left out."""
        self.answers += [(contestant, answers) for answers in self.exam.sit(contestant) if len(answers.ids)]

    def results(self) -> Iterator[Result]:
        """Every measure of every contestant, in each task as a whole and on the subsets of its queries."""
        for contestant, answers in self.answers:
            for subset, part in self._parts(answers):
                for measure, interval in part.measures().items():
                    yield _result(contestant, part, measure, subset, interval)

    def differences(self) -> Iterator[Result]:
        """How much higher the first contestant's measures are than another's with the same inputs, query by query."""
        first = self.answers[0][0].name if self.answers else ""
        own, others = ([one for one in self.answers if (one[0].name == first) is is_own] for is_own in (True, False))
        for contestant, ours in own:
            for other, theirs in others:
                if (contestant.inputs, ours.task) != (other.inputs, theirs.task):
                    continue
                for subset, part in self._parts(ours.only(theirs.positions)):
                    against = theirs.only(part.positions)
                    for measure, values in part.values.items():
                        interval = paired_interval(values, against.values[measure], part.products)
                        yield _result(contestant, part, measure, subset, interval, other.name)

    def save_queries(self, path: Path) -> None:
        """Writes the value of each query in each measure as Parquet, beside and renamed."""
        beside = path.with_suffix(".tmp")
        with pq.ParquetWriter(beside, _QUERY_SCHEMA) as writer:
            for contestant, answers in self.answers:
                for measure, values in answers.values.items():
                    said = (contestant.name, contestant.inputs, answers.task, measure)
                    columns = [
                        *([value] * len(values) for value in said),
                        answers.ids,
                        answers.products,
                        values,
                        answers.predicted or [None] * len(values),
                    ]
                    writer.write_table(pa.table(columns, schema=_QUERY_SCHEMA))
        beside.replace(path)

    def _parts(self, answers: Answers) -> Iterator[tuple[str, Answers]]:
        """The answers as a whole, and of the same product those to each subset of the queries."""
        parts = {ALL: answers}
        if answers.task == SAME_PRODUCT:
            parts |= {name: answers.only(positions) for name, positions in self.subsets.items()}
        yield from ((name, part) for name, part in parts.items() if len(part.ids))


def _result(
    contestant: Contestant, answers: Answers, measure: str, subset: str, interval: Interval, against: str | None = None
) -> Result:
    return Result(
        system=contestant.name,
        inputs=contestant.inputs,
        task=answers.task,
        measure=measure,
        subset=subset,
        queries=len(answers.ids),
        against=against,
        **asdict(interval),
    )


def _table(title: str, results: Sequence[Result], task: str, subset: str) -> Table:
    chosen = [result for result in results if (result.task, result.subset) == (task, subset)]
    measures = tuple(dict.fromkeys(result.measure for result in chosen))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for result in chosen:
        system = result.system if result.against is None else f"{result.system} - {result.against}"
        cells.setdefault((system, result.inputs), {})[result.measure] = str(result)
    return Table(
        title=f"{title} ({chosen[0].queries:,} queries)" if chosen else title,
        columns=("system", "inputs", *measures),
        rows=tuple((*key, *(row[measure] for measure in measures)) for key, row in cells.items()),
    )
