"""The outcome of an exam for people and programs: aligned tables, Markdown, JSON.

`evaluation.json` holds {"about", "notes", "results", "differences", "contributions", "dimensions", "errors_removed"}.
The first four lists are of {"system", "inputs", "task", "measure", "subset", "queries", "value", "low", "high",
"against"} with the 95% interval: a difference says how much higher the measure is than that of the system "against",
paired by query; contributions (`swap.py`) are of the same system asked in other ways, "against" its vectors by both;
dimensions are the shares `dims64_kept`, ... (`dimensions.py`). `errors_removed` is described in `errors.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from item.evaluation.errors import ErrorsRemoved
from item.evaluation.result import ALL, HELD, NO_TWIN, Result
from item.evaluation.swap import WAYS

SUBSETS = {ALL: "", HELD: ", held families alone", NO_TWIN: ", without near twins"}  # those with tables, in titles


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
    contributions: Sequence[Result] = ()
    dimensions: Sequence[Result] = ()
    errors_removed: Sequence[ErrorsRemoved] = ()

    def tables(self) -> list[Table]:
        """Each task on all queries and on subsets; what words and picture contribute; dimensions; comparisons."""
        return [
            *self.result_tables(),
            *self.contribution_tables(),
            *self.dimension_tables(),
            *self.error_tables(),
            *self.difference_tables(),
        ]

    def result_tables(self) -> list[Table]:
        """The measures of each task, on all queries and on subsets."""
        return _tables(self.results, "")

    def difference_tables(self) -> list[Table]:
        """The paired differences, likewise."""
        return _tables(self.differences, ", paired difference")

    def contribution_tables(self) -> list[Table]:
        """For each task what becomes of a query without its picture, with a wrong one, ..."""
        tables = []
        for task in dict.fromkeys(one.task for one in self.contributions):
            chosen = [one for one in self.contributions if one.task == task]
            falls = {(one.system, one.inputs): str(one) for one in chosen if one.against is not None}
            rows = [
                (one.system, WAYS.get(one.inputs, "by both"), str(one), falls.get((one.system, one.inputs), ""))
                for one in chosen
                if one.against is None
            ]
            title = f"{task}, what words and picture contribute ({chosen[0].queries:,} queries with both)"
            columns = ("system", "query", chosen[0].measure, "change")
            tables.append(Table(title=title, columns=columns, rows=tuple(rows)))
        return tables

    def dimension_tables(self) -> list[Table]:
        """What is kept of the recall@10 on fewer dimensions."""
        return _tables(self.dimensions, ", recall@10 on fewer dimensions as a share of all")

    def error_tables(self) -> list[Table]:
        """The share of the best baseline's errors that is removed, by task and subset."""
        rows = [
            (
                f"{one.task}{SUBSETS[one.subset]} ({one.queries:,})",
                one.measure,
                f"{best.baseline} ({best.baseline_inputs}) {best.baseline_value:.3f}",
                str(best),
                str(one),
            )
            for one in self.errors_removed
            for best in one.catalogs.values()
        ]
        columns = ("task (queries)", "measure", "best baseline", "difference", "errors removed")
        return [Table(title="The best baseline's errors removed", columns=columns, rows=tuple(rows))] if rows else []

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
        write_beside(folder / "evaluation.md", "\n\n".join(markdown))
        write_beside(folder / "evaluation.json", json.dumps(asdict(self), indent=1, ensure_ascii=False))


def write_beside(path: Path, content: str) -> None:
    """Writes a text file beside and renames it."""
    beside = path.with_name(f"{path.name}.tmp")
    beside.write_text(content.rstrip() + "\n", encoding="utf-8")
    beside.replace(path)


def _tables(results: Sequence[Result], said: str) -> list[Table]:
    """A table for each task and subset; none for a subset that is all of the queries."""
    queries = {(result.task, result.subset): result.queries for result in results}
    return [
        _table(f"{task}{SUBSETS[subset]}{said}", results, task, subset)
        for task in dict.fromkeys(result.task for result in results)
        for subset in SUBSETS
        if queries.get((task, subset)) and (subset == ALL or queries[task, subset] < queries[task, ALL])
    ]


def _table(title: str, results: Sequence[Result], task: str, subset: str) -> Table:
    chosen = [result for result in results if (result.task, result.subset) == (task, subset)]
    measures = tuple(dict.fromkeys(result.measure for result in chosen))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for result in chosen:
        system = result.system if result.against is None else f"{result.system} - {result.against}"
        cells.setdefault((system, result.inputs), {})[result.measure] = str(result)
    return Table(
        title=f"{title} ({chosen[0].queries:,} queries)",
        columns=("system", "inputs", *measures),
        rows=tuple((*key, *(row.get(measure, "") for measure in measures)) for key, row in cells.items()),
    )
