from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from item.catalog.listing import Listing
from item.evaluation.bootstrap import paired_interval
from item.evaluation.exam import BY_NEIGHBOURS, BY_PROBE, SAME_PRODUCT, Contestant, Exam
from item.evaluation.report import Report
from item.evaluation.result import ALL, HELD, NO_TWIN
from item.evaluation.sitting import Sitting


@pytest.fixture(scope="module")
def sitting() -> Sitting:
    """30 listings, 10 offers of which 4 are held; `ours` is nearer to the truth than `theirs`."""
    catalog = [
        Listing(product_id=str(i), category=(f"c{i % 3}",), split="test" if i % 3 else "train") for i in range(30)
    ]
    catalog = [*catalog, *(Listing(product_id=f"t{i}", category=(f"c{i % 3}",), split="train") for i in range(9))]
    offers = [
        Listing(product_id=f"o{i}", group_id=str(i), attributes={"held": i < 4, "picture_family": "ab"[i % 2]})
        for i in range(10)
    ]
    generator = np.random.default_rng(0)
    truth = generator.standard_normal((39, 8)).astype(np.float32)

    def contestant(name: str, noise: float) -> Contestant:
        x = truth + noise * generator.standard_normal(truth.shape).astype(np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        return Contestant(name=name, inputs="both", catalog=truth, queries=x[:10], for_leaf=x)

    sitting = Sitting(Exam(catalog=catalog, offers=offers, split="test"), twins=np.array([1, 4, 29]))
    sitting.add(contestant("ours", 0.3))
    sitting.add(contestant("theirs", 3.0))
    return sitting


@pytest.fixture(scope="module")
def report(sitting: Sitting) -> Report:
    return Report(
        about={"model": "m"},
        notes=["A note."],
        results=list(sitting.results()),
        differences=list(sitting.differences()),
    )


def test_results_of_all_and_of_subsets(sitting: Sitting, report: Report) -> None:
    counts = {result.subset: result.queries for result in report.results if result.task == SAME_PRODUCT}
    assert counts == {ALL: 10, HELD: 4, NO_TWIN: 8, "picture_family=a": 5, "picture_family=b": 5}
    of_leaf = {(result.task, result.measure, result.subset) for result in report.results if "leaf" in result.task}
    assert of_leaf == {
        (task, measure, subset)
        for task in (BY_NEIGHBOURS, BY_PROBE)
        for measure in ("accuracy", "macro-F1")
        for subset in (ALL, NO_TWIN)
    }
    assert {result.queries for result in report.results if "leaf" in result.task} == {20, 17}
    held = [result for result in report.results if result.subset == HELD and result.measure == "MRR"]
    expected = [answers.values["MRR"][:4].mean() for _, answers in sitting.answers if answers.task == SAME_PRODUCT]
    assert [result.value for result in held] == expected
    assert expected[0] > expected[1]


def test_rows_with_a_near_twin_and_their_offers_are_left_out(sitting: Sitting, report: Report) -> None:
    left_out = {SAME_PRODUCT: {"o1", "o4"}, BY_NEIGHBOURS: {"1", "4", "29"}, BY_PROBE: {"1", "4", "29"}}
    for task, ids in left_out.items():
        answers = next(answers for one, answers in sitting.answers if (one.name, answers.task) == ("theirs", task))
        measure = next(iter(answers.values))
        kept = [value for name, value in zip(answers.ids, answers.values[measure], strict=True) if name not in ids]
        assert len(kept) == len(answers.ids) - len(ids)
        chosen = ("theirs", task, measure, NO_TWIN)
        found = [one for one in report.results if (one.system, one.task, one.measure, one.subset) == chosen]
        assert [one.value for one in found] == pytest.approx([np.mean(kept)])
        assert any((one.task, one.subset) == (task, NO_TWIN) for one in report.differences)
        in_subset = {
            row["product_id"]
            for row in sitting.queries().to_pylist()
            if row["task"] == task and NO_TWIN in row["subsets"]
        }
        assert in_subset == {*answers.ids} - ids
    held = {row["product_id"] for row in sitting.queries().to_pylist() if HELD in row["subsets"]}
    assert held == {"o0", "o1", "o2", "o3"}


def test_without_offers_the_rows_themselves_are_left_out() -> None:
    catalog = [Listing(product_id=str(i), group_id=str(i // 2), split="test") for i in range(6)]
    vectors = np.eye(6, dtype=np.float32)
    for twins, expected in ((np.array([0, 3]), ["1", "2", "4", "5"]), (np.array([], dtype=np.intp), [*"012345"])):
        sitting = Sitting(Exam(catalog=catalog, offers=None, split="test"), twins)
        sitting.add(Contestant(name="ours", inputs="both", catalog=vectors, queries=vectors))
        parts = dict(sitting.parts(sitting.answers[0][1]))
        assert parts[NO_TWIN].ids == expected
    assert Sitting(Exam(catalog=catalog, offers=None, split="test")).subsets == {}


def test_differences_are_paired_and_of_the_first_against_the_others(sitting: Sitting, report: Report) -> None:
    ours, theirs = (answers for _, answers in sitting.answers if answers.task == SAME_PRODUCT)
    expected = paired_interval(ours.values["MRR"], theirs.values["MRR"], ours.products)
    found = [d for d in report.differences if (d.measure, d.subset) == ("MRR", ALL)]
    assert [(d.system, d.against) for d in found] == [("ours", "theirs")]
    assert (found[0].value, found[0].low, found[0].high) == (expected.value, expected.low, expected.high)
    assert expected.value > 0


def test_tables_are_aligned(report: Report) -> None:
    text = report.text()
    assert "same product (10 queries)" in text
    assert "same product, held families alone (4 queries)" in text
    assert "same product, without near twins (8 queries)" in text
    assert "leaf category by linear probe, without near twins, paired difference (17 queries)" in text
    assert "ours - theirs" in text
    for table in report.tables():
        lines = table.text().splitlines()[1:]
        starts = {line.index(cell) for line, cell in zip(lines, ["inputs", *["both"] * len(table.rows)], strict=True)}
        assert len(starts) == 1


def test_a_subset_that_is_all_of_the_queries_has_no_table(sitting: Sitting) -> None:
    everything = Sitting(sitting.exam, twins=np.array([], dtype=np.intp))
    everything.add(sitting.answers[0][0])
    report = Report(about={}, notes=[], results=list(everything.results()), differences=[])
    assert any(result.subset == NO_TWIN for result in report.results)
    titles = [table.title for table in report.tables()]
    assert titles[:2] == ["same product (10 queries)", "same product, held families alone (4 queries)"]
    assert not any("near twins" in title for title in titles)


def test_files(sitting: Sitting, report: Report, tmp_path: Path) -> None:
    report.save(tmp_path)
    sitting.save_queries(tmp_path / "queries.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation.json", "evaluation.md", "queries.parquet"]
    values = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    first = values["results"][0]
    assert first["system"] == "ours"
    assert first["low"] <= first["value"] <= first["high"]
    assert values["notes"] == ["A note."]
    markdown = (tmp_path / "evaluation.md").read_text(encoding="utf-8")
    assert "| system | inputs | recall@1 | recall@10 | MRR |" in markdown
    rows = pq.read_table(tmp_path / "queries.parquet").to_pylist()
    mrr = [row["value"] for row in rows if (row["system"], row["measure"]) == ("theirs", "MRR")]
    assert np.mean(mrr) == next(r.value for r in report.results if (r.system, r.measure) == ("theirs", "MRR"))
    leaves = {tuple(row["predicted"]) for row in rows if row["task"] == BY_PROBE}
    assert leaves <= {("c0",), ("c1",), ("c2",)}


def test_nobody_sat() -> None:
    sitting = Sitting(Exam(catalog=[], offers=None, split="test"))
    assert list(sitting.results()) == list(sitting.differences()) == []
    assert Report(about={}, notes=[], results=[], differences=[]).tables() == []
