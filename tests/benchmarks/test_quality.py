from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import quality
from benchmarks.quality import Plan, Shop, parse_shop
from benchmarks.quality_figures import Figure, Outcome, Place, figures_of, over_seeds, read_outcome
from item.evaluation.exam import BY_NEIGHBOURS, PICTURE_TO_WORDS, SAME_PRODUCT, WORDS_TO_PICTURE

PLACE = Place(arm="full", seed=0, split="test", catalog="")
BASELINES = {
    ("late fusion", "both", SAME_PRODUCT, "recall@1"): [0, 0, 1, 1],
    ("words", "words", SAME_PRODUCT, "recall@1"): [0, 0, 0, 1],
    ("late fusion", "both", BY_NEIGHBOURS, "accuracy"): [0, 1, 1, 1],
    ("two towers", "both", WORDS_TO_PICTURE, "recall@10"): [1, 0, 1, 0],
    ("two towers", "both", PICTURE_TO_WORDS, "recall@10"): [0, 0, 0, 0],
}
OURS = {
    ("ITEm", "both", SAME_PRODUCT, "recall@1"): [1, 1, 1, 0],
    ("before", "both", SAME_PRODUCT, "recall@1"): [1, 1, 1, 1],
    ("ITEm", "both", BY_NEIGHBOURS, "accuracy"): [0, 1, 1, 1],
    ("ITEm", "both", WORDS_TO_PICTURE, "recall@10"): [1, 1, 1, 0],
    ("ITEm", "both", PICTURE_TO_WORDS, "recall@10"): [1, 1, 1, 0],
}
Values = dict[tuple[str, str, str, str], list[int]]


def queries_of(values: Values) -> pa.Table:
    """Four queries of four products; the first two are held in the search for the same product."""
    return pa.Table.from_pylist(
        [
            {
                **dict(zip(("system", "inputs", "task", "measure"), key, strict=True)),
                "product_id": f"q{i}",
                "product": f"p{i}",
                "value": float(value),
                "subsets": ["all", "held"] if i < 2 and key[2] == SAME_PRODUCT else ["all"],
            }
            for key, of_queries in values.items()
            for i, value in enumerate(of_queries)
        ]
    )


def result(inputs: str, measure: str, value: float, against: str | None, subset: str = "all") -> dict[str, Any]:
    """One entry of evaluation.json about the search for the same product."""
    said = {"system": "ITEm", "inputs": inputs, "task": SAME_PRODUCT, "measure": measure, "subset": subset}
    return {**said, "queries": 4, "value": value, "low": value - 0.1, "high": value + 0.1, "against": against}


def evaluation(against: Sequence[str], offers: str = "none") -> dict[str, Any]:
    """By words 0.05 below, by picture 0.3 below whatever is compared with."""
    falls = {"words": -0.05, "picture": -0.3}
    return {
        "about": {"offers": offers},
        "results": [result("both", "recall@1", 0.75, None), result("both", "MRR", 0.8, None)],
        "differences": [
            result(inputs, "recall@1", fall, inputs if other == "own" else other, subset)
            for inputs, fall in falls.items()
            for other in against
            for subset in ("all", "held")
        ],
        "dimensions": [result("both", "dims64_kept", 0.97, None), result("both", "dims64_kept", 0.9, None, "held")],
    }


def outcome_at(folder: Path, values: Values, against: Sequence[str]) -> Outcome:
    """Written and read again."""
    (folder / "model" / "run").mkdir(parents=True)
    (folder / "test").mkdir()
    (folder / "test" / "evaluation.json").write_text(json.dumps(evaluation(against)), encoding="utf-8")
    (folder / "test" / "report.html").write_text("", encoding="utf-8")
    pq.write_table(queries_of(values), folder / "test" / "queries.parquet")
    (folder / "model" / "run" / "guard.json").write_text('{"better": true}', encoding="utf-8")
    trained = {"seconds": 12.5, "commit": "abc", "drew_views": True}
    (folder / "training.json").write_text(json.dumps(trained), encoding="utf-8")
    return read_outcome(folder / "test", folder / "model", folder / "training.json")


def find(figures: Sequence[Figure], metric: str, **where: str) -> Figure:
    """The only figure of a metric at a place."""
    same = [one for one in figures if one.metric == metric]
    [found] = [one for one in same if all(getattr(one.place, name) == value for name, value in where.items())]
    return found


@pytest.fixture
def figures(tmp_path: Path) -> list[Figure]:
    """Of two catalogues; on the second we make the errors of late fusion and one more."""
    second = {**OURS, ("ITEm", "both", SAME_PRODUCT, "recall@1"): [0, 0, 0, 1], **BASELINES}
    outcomes = {
        "one": outcome_at(tmp_path / "one", {**OURS, **BASELINES}, ["before", "own"]),
        "two": outcome_at(tmp_path / "two", second, ["before", "own"]),
    }
    return list(figures_of(outcomes, PLACE))


def test_errors_are_pooled_against_the_best_baseline_of_each_catalogue(figures: list[Figure]) -> None:
    pooled = find(figures, "errors_removed", task=SAME_PRODUCT, subset="all")
    assert pooled.value == pytest.approx(1 - (1 + 3) / (2 + 2))
    assert pooled.against == "one: late fusion (both); two: late fusion (both)"
    assert pooled.place.catalog == "pooled over one + two"
    held = find(figures, "errors_removed", task=SAME_PRODUCT, subset="held")
    assert held.value == pytest.approx(1 - (0 + 2) / (2 + 2))
    assert held.low is not None
    assert held.high is not None
    assert held.low <= held.value <= held.high
    assert find(figures, "errors_removed", task=BY_NEIGHBOURS).value == 0
    chosen = {"task": SAME_PRODUCT, "subset": "all"}
    differences = [find(figures, "vs_best_baseline", catalog=name, **chosen).value for name in ("one", "two")]
    assert differences == [0.25, -0.25]


def test_one_modality_is_compared_with_its_starting_weights(figures: list[Figure]) -> None:
    words, picture = (find(figures, f"{inputs}_vs_start", catalog="one") for inputs in ("words", "picture"))
    assert (words.value, words.against) == (-0.05, "words (words)")
    assert (picture.value, picture.against) == (-0.3, "picture (picture)")
    worse = {one.metric: one.value for figure in (words, picture) for one in figure.results() if "worse" in one.metric}
    assert worse == {"words_vs_start_worse": 0, "picture_vs_start_worse": 1}


def test_words_to_picture_is_a_ratio_of_recalls(figures: list[Figure]) -> None:
    one = find(figures, "words_to_picture_vs_two_towers", task=WORDS_TO_PICTURE, catalog="one")
    assert (one.value, one.unit) == (1.5, "recall@10, ratio")
    pooled = find(figures, "words_to_picture_vs_two_towers", task=WORDS_TO_PICTURE, catalog="pooled over one + two")
    assert pooled.value == 1.5
    assert not [one for one in figures if one.place.task == PICTURE_TO_WORDS], "the towers find nothing: no ratio"


def test_what_else_is_reported(figures: list[Figure]) -> None:
    assert find(figures, "dims64_kept", catalog="two").value == 0.97
    seconds = find(figures, "training_seconds", catalog="one")
    [told] = seconds.results()
    assert (told.value, told.where) == (12.5, "one, test, full, seed 0, views drawn, commit abc")
    assert find(figures, "aligned", catalog="one").value == 1
    assert find(figures, "recall@1", catalog="one").place.detail == "ITEm by both"


def test_without_baselines_the_starting_point_is_compared_with(tmp_path: Path) -> None:
    figures = list(figures_of({"shop": outcome_at(tmp_path, OURS, ["before"])}, PLACE))
    assert find(figures, "vs_best_baseline", task=SAME_PRODUCT, subset="all").against == "before (both)"
    assert find(figures, "vs_best_baseline", task=SAME_PRODUCT, subset="all").value == -0.25
    assert find(figures, "words_vs_start").against == "before (words)"
    assert not [one for one in figures if one.metric == "words_to_picture_vs_two_towers"]


def test_mean_and_spread_over_seeds() -> None:
    def figure(seed: int | None, value: float, metric: str = "errors_removed") -> Figure:
        place = Place(arm="full", seed=seed, split="val", catalog="one")
        return Figure(metric=metric, value=value, unit="share", place=place, against=f"best of {seed}", low=0.0)

    mean, spread = over_seeds([figure(0, 0.1), figure(1, 0.2), figure(2, 0.6), figure(0, 9, "alone")])
    assert (mean.value, spread.value) == pytest.approx((0.3, 0.07**0.5))
    assert (mean.metric, spread.metric) == ("errors_removed", "errors_removed_spread")
    assert mean.against == "best of 0 | best of 1 | best of 2"
    [told] = mean.results()
    assert told.where == "one, val, full, mean of 3 seeds"


def test_times_with_and_without_drawing_views_are_not_averaged(tmp_path: Path) -> None:
    seconds = find(list(figures_of({"one": outcome_at(tmp_path, OURS, [])}, PLACE)), "training_seconds")

    def figure(seed: int, detail: str) -> Figure:
        return replace(seconds, place=replace(seconds.place, seed=seed, detail=detail))

    there = seconds.place.detail.replace("drawn", "were there")
    same = [figure(0, seconds.place.detail), figure(1, seconds.place.detail.replace("abc", "def"))]
    means = [str(one.place) for one in over_seeds([*same, figure(2, there)]) if one.metric == "training_seconds"]
    assert means == ["one, test, full, views drawn, mean of 2 seeds"]


def test_what_is_there_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, ...]] = []

    def run_program(module: str, *arguments: str) -> None:
        ran.append((module, *arguments))
        if module == "training.evaluate":
            raise SystemExit("no picture")

    monkeypatch.setattr(quality, "run_program", run_program)
    plan = Plan(config="tiny", overrides=("align.steps=3",), split="test", work=tmp_path)
    shop = Shop(name="one", catalog=tmp_path / "c", offers=None)
    with pytest.raises(SystemExit, match="no picture"):
        plan.outcome(shop, "one_view", 1)
    assert [arguments[0] for arguments in ran] == ["training.align", "training.evaluate"]
    assert {"align.steps=3", "align.views=1", "run.seed=1"} <= {*ran[0]}
    record = json.loads((tmp_path / "one" / "one_view-1" / "training.json").read_text(encoding="utf-8"))
    outcome_at(tmp_path / "one" / "again", OURS, [])
    for name in ("model", "test"):
        (tmp_path / "one" / "again" / name).rename(tmp_path / "one" / "one_view-1" / name)
    assert plan.outcome(shop, "one_view", 1).training == record
    assert len(ran) == 2
    other = Plan(config="tiny", overrides=(), split="test", work=tmp_path)
    with pytest.raises(SystemExit, match="trained in another way"):
        other.outcome(shop, "one_view", 1)
    with pytest.raises(SystemExit, match="evaluated on the offers none"):
        plan.outcome(Shop(name="one", catalog=tmp_path / "c", offers=tmp_path / "o"), "one_view", 1)


def test_catalogues_are_named() -> None:
    shop = parse_shop("luma=a/luma,a/offers")
    assert (shop.name, shop.catalog, shop.offers) == ("luma", Path("a/luma").resolve(), Path("a/offers").resolve())
    assert parse_shop("luma=a/luma").offers is None


@pytest.mark.parametrize(
    "arguments",
    [["--catalog", "luma"], ["--catalog", "a/b=c"], ["--catalog", "luma=c"], ["--words", "w"], ["--seeds", "0"]],
)
def test_arguments_that_do_not_go_together(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        quality.parse_arguments(arguments)
