"""The evaluation's page for people: is the model better, what does each part contribute, which queries does it miss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from item.evaluation.exam import BY_NEIGHBOURS, SAME_PRODUCT
from item.evaluation.report import Report, Table
from item.evaluation.result import ALL, Result
from item.evaluation.swap import WAYS
from training.galleries import Gallery, system_name

TEMPLATE = "report_page.html.j2"
ASKED = {  # task -> its leading measure, what is done, and how it is said of the queries
    SAME_PRODUCT: ("recall@1", "finding the same product", "the first hit is the same product"),
    BY_NEIGHBOURS: ("accuracy", "naming the leaf category", "the neighbours name the right leaf category"),
}
COMPARED = {"better": "than", "worse": "than", "no clear difference": "from"}
BEST = "the best baseline"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The model beside before or the best baseline in one task, by words and picture. kind: one of `COMPARED`."""

    kind: str
    doing: str
    rival: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A value in [0, 1] with what it is of."""

    label: str
    value: float
    interval: str


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the page shows. system: the model's name in the report; before: the name of what it was before."""

    report: Report
    system: str
    before: str
    galleries: Sequence[Gallery]


def render_page(page: Page) -> str:
    """The page as one HTML file that needs no other."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    said = list(verdicts(page))
    return environment.get_template(TEMPLATE).render(
        page=page,
        report=page.report,
        headline=headline(page, said),
        verdicts=said,
        bars=contribution_bars(page),
        tables=folded_tables(page.report),
    )


def headline(page: Page, said: Sequence[Verdict]) -> str:
    """The verdicts on the first rival in a sentence: before where it was measured, else the best baseline."""
    if not said:
        return f"{page.system}, measured alone"
    rival = said[0].rival
    doing: dict[str, list[str]] = {}
    for one in said:
        if one.rival == rival:
            doing.setdefault(one.kind, []).append(one.doing)
    parts = [f"{kind} {COMPARED[kind]} {rival} at {' and '.join(tasks)}" for kind, tasks in doing.items()]
    return "; ".join([parts[0].capitalize(), *parts[1:]])


def verdicts(page: Page) -> Iterator[Verdict]:
    """Beside before and beside the best baseline, in the tasks that are `ASKED`."""
    report = page.report
    values = {(one.system, one.inputs, one.task, one.measure, one.subset): one for one in report.results}
    changes = {(one.against, one.inputs, one.task, one.measure, one.subset): one for one in report.differences}
    for task, (measure, _, _) in ASKED.items():
        asked = ("both", task, measure, ALL)
        ours = values.get((page.system, *asked))
        if ours is None:
            continue
        if change := changes.get((page.before, *asked)):
            then = values[(page.before, *asked)].value
            yield _verdict(ours, page.before, page.before, then, (change.value, change.low, change.high))
        for removed in report.errors_removed:
            if (removed.task, removed.measure, removed.subset) == (task, measure, ALL):
                for best in removed.catalogs.values():
                    name = f"{BEST}, {system_name(best.baseline, best.baseline_inputs)},"
                    yield _verdict(ours, BEST, name, best.baseline_value, (best.value, best.low, best.high))


def _verdict(ours: Result, rival: str, name: str, theirs: float, difference: tuple[float, float, float]) -> Verdict:
    """name: the rival as the sentence has it; difference: value, low, high."""
    _, doing, said = ASKED[ours.task]
    value, low, high = (100 * one for one in difference)
    kind = "better" if low > 0 else "worse" if high < 0 else "no clear difference"
    return Verdict(
        kind=kind,
        doing=doing,
        rival=rival,
        sentence=f"For {100 * ours.value:.1f}% of {ours.queries:,} queries {said}; with {name} {100 * theirs:.1f}%: "
        f"{value:+.1f} points, 95% interval {low:+.1f} to {high:+.1f}.",
    )


def contribution_bars(page: Page) -> dict[str, list[Bar]]:
    """By task: the model by words and picture, without one of them, and with a wrong one."""
    bars: dict[str, list[Bar]] = {}
    for one in page.report.contributions:
        if one.system == page.system and one.against is None:
            label = WAYS.get(one.inputs, "words and picture")
            interval = f"{one.low:.3f} to {one.high:.3f}"
            title = f"{one.task}, {one.measure} ({one.queries:,} queries with both)"
            bars.setdefault(title, []).append(Bar(label=label, value=one.value, interval=interval))
    return bars


def folded_tables(report: Report) -> dict[str, list[Table]]:
    """All tables by section."""
    sections = {
        "All measures": report.result_tables(),
        "Differences, query by query": report.difference_tables(),
        "The best baseline's errors": report.error_tables(),
        "What words and picture contribute": report.contribution_tables(),
        "Fewer dimensions": report.dimension_tables(),
    }
    return {title: tables for title, tables in sections.items() if tables}
