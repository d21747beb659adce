from __future__ import annotations

import re
from html import escape

import pytest

from item.evaluation.errors import AgainstBest, ErrorsRemoved
from item.evaluation.exam import BY_NEIGHBOURS, SAME_PRODUCT
from item.evaluation.report import Report
from item.evaluation.result import Result
from item.evaluation.swap import COMPLETE
from training.galleries import Card, Example, Gallery, Ranking
from training.report_page import Page, headline, render_page, verdicts

MEASURES = {SAME_PRODUCT: "recall@1", BY_NEIGHBOURS: "accuracy"}
NASTY = "<script>alert('x')</script> & \"so\""
PIXEL = "data:image/jpeg;base64,AAAA"


def result(system: str, task: str, value: float, low: float, high: float, **values: str) -> Result:
    said = {"inputs": "both", "measure": MEASURES[task], "subset": "all", **values}
    return Result(system=system, task=task, queries=1234, value=value, low=low, high=high, **said)


def page(*differences: Result, removed: tuple[ErrorsRemoved, ...] = (), galleries: tuple[Gallery, ...] = ()) -> Page:
    results = [result(name, task, 0.8, 0.7, 0.9) for name in ("ITEm", "before") for task in MEASURES]
    ways = [
        result("ITEm", SAME_PRODUCT, value, 0, 1, inputs=inputs, subset=COMPLETE)
        for inputs, value in (("both", 0.75), ("wrong picture", 0.25))
    ]
    report = Report(
        about={"model": NASTY, "split": "val"},
        notes=["A note."],
        results=results,
        differences=differences,
        contributions=ways,
        errors_removed=removed,
    )
    return Page(report=report, system="ITEm", before="before", galleries=galleries)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.01, 0.1, "Better than before"),
        (-0.1, -0.01, "Worse than before"),
        (-0.01, 0.1, "No clear difference from before"),
    ],
)
def test_the_interval_decides_what_is_said(low: float, high: float, said: str) -> None:
    one = page(result("ITEm", SAME_PRODUCT, (low + high) / 2, low, high, against="before"))
    assert headline(one, list(verdicts(one))) == f"{said} at finding the same product"


def test_verdicts_on_before_and_on_the_best_baseline() -> None:
    best = AgainstBest(
        baseline="picture",
        baseline_inputs="picture",
        baseline_value=0.9,
        queries=1234,
        value=-0.1,
        low=-0.2,
        high=-0.05,
    )
    removed = ErrorsRemoved(
        system="ITEm",
        inputs="both",
        task=BY_NEIGHBOURS,
        measure="accuracy",
        subset="all",
        queries=1234,
        value=-1,
        low=-2,
        high=-0.5,
        catalogs={"this": best},
    )
    one = page(result("ITEm", SAME_PRODUCT, 0.05, 0.01, 0.1, against="before"), removed=(removed,))
    found = list(verdicts(one))
    assert [(verdict.kind, verdict.rival) for verdict in found] == [
        ("better", "before"),
        ("worse", "the best baseline"),
    ]
    assert found[0].sentence == (
        "For 80.0% of 1,234 queries the first hit is the same product; with before 80.0%: "
        "+5.0 points, 95% interval +1.0 to +10.0."
    )
    assert headline(one, found) == "Better than before at finding the same product"
    assert found[1].sentence.endswith(
        "with the best baseline, picture, 90.0%: -10.0 points, 95% interval -20.0 to -5.0."
    )
    alone = page(removed=(removed,))
    assert headline(alone, list(verdicts(alone))) == "Worse than the best baseline at naming the leaf category"
    twice = [result("ITEm", task, -0.05, -0.1, -0.01, against="before") for task in MEASURES]
    worse = page(*twice, removed=(removed,))
    expected = "Worse than before at finding the same product and naming the leaf category"
    assert headline(worse, list(verdicts(worse))) == expected
    assert headline(page(), []) == "ITEm, measured alone"


def test_other_inputs_measures_and_subsets_decide_nothing() -> None:
    values = ({"inputs": "words"}, {"measure": "MRR"}, {"subset": "held"}, {"against": "late fusion"})
    others = [result("ITEm", SAME_PRODUCT, 0.1, 0.05, 0.2, **{"against": "before", **one}) for one in values]
    assert [*verdicts(page(*others))] == []


def test_the_page_is_whole_and_what_shops_write_is_escaped() -> None:
    hits = [
        Card(title=NASTY, picture=PIXEL, category=NASTY, score=0.5, rank=1),
        Card(title="right one", picture=None, category="", score=0.25, rank=1037, right=True),
    ]
    example = Example(
        asked=Card(title=NASTY, picture=PIXEL, category=NASTY), rankings=[Ranking(system=NASTY, hits=hits)], said=NASTY
    )
    shown = render_page(page(galleries=(Gallery(title=NASTY, count=2000, examples=[example]),)))
    assert "<script" not in shown
    assert shown.count(escape(NASTY).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")) >= 7
    assert {address[:5] for address in re.findall(r'(?:src|href)="([^"]*)"', shown)} <= {
        "data:",
        "#part",
        "#gall",
        "#tabl",
        "#note",
    }
    assert "http" not in shown
    for part in (
        "right, rank 1,037",
        "2,000 queries, of which 1 drawn at random",
        "with a wrong picture",
        "width: 25.0%",
    ):
        assert part in shown


def test_a_page_without_anything_to_say() -> None:
    report = Report(about={}, notes=[], results=[], differences=[])
    shown = render_page(
        Page(report=report, system="ITEm", before="before", galleries=[Gallery(title="t", count=0, examples=[])])
    )
    assert "measured alone" in shown
    assert "None." in shown
