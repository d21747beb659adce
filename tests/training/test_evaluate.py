from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from item.catalog.listing import Listing, Picture
from item.engine import load_engine
from item.errors import CatalogError, ModelError
from item.evaluation.exam import BY_NEIGHBOURS, BY_PROBE, PICTURE_TO_WORDS, SAME_PRODUCT, WORDS_TO_PICTURE, Exam
from item.model.config import ItemConfig
from item.model.encoder import ITEm
from item.preprocessing.preprocessor import Preprocessor
from training import baselines
from training.config import ModelOptions, PretrainConfig, StartOptions
from training.encode import encode_modalities
from training.evaluate import main
from training.frozen import StartingWeights
from training.material import read_material
from training.view import view_again, view_of

BASELINES = {"words", "picture", "late fusion", "whitened late fusion", "two towers"}


@pytest.fixture(scope="module")
def offers_file(listings: list[Listing], catalog_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second offer of each row of val and test: the words in another order; one with a broken picture."""
    folder = tmp_path_factory.mktemp("offers")
    with (folder / "offers.jsonl").open("w", encoding="utf-8") as file:
        for i, listing in enumerate(one for one in listings if one.split != "train"):
            row: dict[str, object] = {"product_id": f"o{i}", "group_id": listing.product_id, "held": i % 2 == 0}
            row["title"] = " ".join(listing.title.split()[::-1]) or "no words there"
            row["picture_family"], row["words_family"] = "banner" if i % 2 else "crop", "reorder"
            if listing.images:
                row["image"] = str(catalog_folder / listing.images[0].reference)
            file.write(json.dumps(row) + "\n")
        broken = folder / "broken.jpg"
        broken.write_bytes(b"no picture")
        last = listings[-1].product_id
        file.write(json.dumps({"product_id": "broken", "group_id": last, "image": str(broken), "title": "a"}) + "\n")
        file.write(json.dumps({"product_id": "empty", "group_id": last}) + "\n")
    return folder


@pytest.fixture
def run(model_folder: Path, catalog_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The program on the small model and catalogue."""
    monkeypatch.setattr(baselines, "NUM_STEPS", 20)

    def with_arguments(*arguments: str | Path, model: Path = model_folder, catalog: Path = catalog_folder) -> int:
        return main(["--model", str(model), "--catalog", str(catalog), "--device", "cpu", *map(str, arguments)])

    return with_arguments


def given(weights: StartingWeights) -> list[str]:
    return ["--words", str(weights.words), "--stem", weights.stem, "--stem-weights", str(weights.stem_weights)]


def values_of(report: Path) -> dict[tuple[str, str, str, str, str], float]:
    keys = ("system", "inputs", "task", "measure", "subset")
    results = json.loads((report / "evaluation.json").read_text(encoding="utf-8"))["results"]
    return {tuple(result[key] for key in keys): result["value"] for result in results}


def test_model_and_baselines_on_offers(
    run: Callable[..., int],
    offers_file: Path,
    starting_weights: StartingWeights,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = tmp_path / "report"
    options = ["--offers", offers_file, "--report", report, "--cache", tmp_path / "cache", *given(starting_weights)]
    assert run(*options) == 0
    values = values_of(report)
    assert {system for system, *_ in values} == {"ITEm", *BASELINES}
    for inputs in ("words", "picture", "both"):
        for task, measure in ((SAME_PRODUCT, "recall@10"), (BY_NEIGHBOURS, "macro-F1"), (BY_PROBE, "accuracy")):
            assert 0 <= values["ITEm", inputs, task, measure, "all"] <= 1
    for system in ("ITEm", "two towers"):
        for task in (WORDS_TO_PICTURE, PICTURE_TO_WORDS):
            assert (system, "both", task, "recall@10", "all") in values
    subsets = {subset for *_, subset in values}
    assert subsets == {
        "all",
        "held",
        "no near twin",
        "picture_family=banner",
        "picture_family=crop",
        "words_family=reorder",
    }
    assert (
        values["picture", "picture", SAME_PRODUCT, "recall@10", "all"] > 0.5
    )  # the offers' pictures are the rows' own

    written = json.loads((report / "evaluation.json").read_text(encoding="utf-8"))
    assert {one["against"] for one in written["differences"]} == BASELINES
    removed = {(one["task"], one["measure"], one["subset"]): one for one in written["errors_removed"]}
    for task, measure in ((SAME_PRODUCT, "recall@1"), (BY_PROBE, "accuracy"), (WORDS_TO_PICTURE, "MRR")):
        (best,) = removed[task, measure, "all"]["catalogs"].values()
        rivals = {key[0]: value for key, value in values.items() if key[2:] == (task, measure, "all")} | {"ITEm": 0}
        assert best["baseline_value"] == pytest.approx(max(rivals.values()))
        assert best["value"] == pytest.approx(values["ITEm", "both", task, measure, "all"] - best["baseline_value"])
    assert (SAME_PRODUCT, "recall@1", "held") in removed
    assert "late fusion" in (report / "report.html").read_text(encoding="utf-8")
    refused = [json.loads(line) for line in (report / "refused.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {(one["product_id"], one["field"]) for one in refused} == {("broken", "image"), ("empty", "title")}
    assert "Rows and offers that were refused and left out: 2." in written["notes"]
    queries = pq.read_table(report / "queries.parquet").to_pylist()
    both = [q for q in queries if (q["system"], q["inputs"], q["task"]) == ("ITEm", "both", SAME_PRODUCT)]
    mrr = [q["value"] for q in both if q["measure"] == "MRR"]
    assert len(mrr) == 8
    assert np.mean(mrr) == values["ITEm", "both", SAME_PRODUCT, "MRR", "all"]

    shown = capsys.readouterr().out
    for line in (
        "same product (8 queries)",
        "late fusion",
        "ITEm - two towers",
        "without its picture",
        "errors removed",
    ):
        assert line in shown
    assert "late fusion" in (report / "evaluation.md").read_text(encoding="utf-8")
    first = (report / "evaluation.json").read_bytes()
    assert run(*options) == 0
    assert (report / "evaluation.json").read_bytes() == first


@pytest.mark.parametrize("with_offers", [True, False])
def test_before_and_what_parts_contribute(
    run: Callable[..., int],
    tiny_config: ItemConfig,
    preprocessor: Preprocessor,
    offers_file: Path,
    with_offers: bool,
    tmp_path: Path,
) -> None:
    torch.manual_seed(5)
    ITEm(tiny_config).save_pretrained(tmp_path / "before")
    preprocessor.save_pretrained(tmp_path / "before")
    report = tmp_path / "report"
    offers = ["--offers", offers_file] if with_offers else []
    assert run("--before", tmp_path / "before", "--report", report, *offers) == 0
    written = json.loads((report / "evaluation.json").read_text(encoding="utf-8"))
    assert {(one["system"], one["inputs"]) for one in written["results"]} == {
        (system, inputs) for system in ("ITEm", "before") for inputs in ("words", "picture", "both")
    }
    assert {one["against"] for one in written["differences"]} == {"before"}
    assert written["about"]["space of ITEm"] != written["about"]["space of before"]
    ways = {(one["system"], one["inputs"]) for one in written["contributions"] if one["task"] == SAME_PRODUCT}
    assert ways == {
        (system, inputs)
        for system in ("ITEm", "before")
        for inputs in ("both", "words", "picture", "wrong words", "wrong picture")
    }
    assert sum("goes from" in note for note in written["notes"]) == 4
    queries = pq.read_table(report / "queries.parquet").to_pylist()
    assert {tuple(one["subsets"])[:2] for one in queries} <= {("all", "held"), ("all", "no near twin")}
    page = (report / "report.html").read_text(encoding="utf-8")
    for part in ("before at finding the same product", "without its picture", "data:image/jpeg", "named wrongly"):
        assert part in page


def test_a_wrong_picture_changes_the_vector_and_an_own_one_does_not(
    model_folder: Path, listings: list[Listing], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load_engine(model_folder, "cpu")
    offers = [replace(one, product_id=f"o{one.product_id}", group_id=one.product_id) for one in listings[20:]]
    seen, offered = (encode_modalities(engine, part, "the test") for part in (listings, offers))
    view = view_of("m", engine, Exam(catalog=listings, offers=offers, split="test"), seen, offered)
    values = {one.inputs: one.value for one in view.contributions() if one.task == SAME_PRODUCT and not one.against}
    assert values["wrong picture"] < values["both"]
    assert values["wrong words"] < values["both"]
    monkeypatch.setattr("training.view.swapped", lambda own, *_: list(own))
    values = {one.inputs: one.value for one in view.contributions() if one.task == SAME_PRODUCT and not one.against}
    assert values["wrong picture"] == values["wrong words"] == values["both"] > 0.9


def test_before_must_read_what_the_model_reads(model_folder: Path, listings: list[Listing], tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "before")
    config = json.loads((tmp_path / "before" / "preprocessor_config.json").read_text(encoding="utf-8"))
    (tmp_path / "before" / "preprocessor_config.json").write_text(json.dumps({**config, "max_picture_pixels": 9}))
    exam = Exam(catalog=listings, offers=None, split="test")
    with pytest.raises(ModelError, match=r"before: refuses listing 'p0' that the model reads \(image: .* = 9"):
        view_again("before", load_engine(tmp_path / "before", "cpu"), exam)


def test_without_offers_and_starting_weights(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--report", tmp_path) == 0
    assert {system for system, *_ in values_of(tmp_path)} == {"ITEm"}
    assert "give --words, --stem and --stem-weights" in capsys.readouterr().out


def test_val_is_another_exam(run: Callable[..., int], tmp_path: Path) -> None:
    for split in ("val", "test"):
        assert run("--report", tmp_path / split, "--split", split) == 0
    queries = [
        pq.read_table(tmp_path / split / "queries.parquet")["product_id"].to_pylist() for split in ("val", "test")
    ]
    assert queries[0]
    assert not {*queries[0]} & {*queries[1]}


def test_recorded_starting_weights_are_used_unless_left_out(
    run: Callable[..., int], model_folder: Path, starting_weights: StartingWeights, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    (model / "run").mkdir()
    start = StartOptions(words=str(starting_weights.words), stem_weights=str(starting_weights.stem_weights))
    PretrainConfig(start=start, model=ModelOptions(stem=starting_weights.stem)).save(model / "run" / "config.yaml")
    assert run("--report", tmp_path / "with", model=model) == 0
    assert {system for system, *_ in values_of(tmp_path / "with")} == {"ITEm", *BASELINES}
    assert any((model / "run" / "frozen").iterdir())
    assert run("--report", tmp_path / "without", "--no-baselines", model=model) == 0
    assert {system for system, *_ in values_of(tmp_path / "without")} == {"ITEm"}


def test_gone_starting_weights_name_the_way_out(
    run: Callable[..., int], model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    (model / "run").mkdir()
    config = PretrainConfig(start=StartOptions(words="./gone"), model=ModelOptions(stem="resnet18"))
    config.save(model / "run" / "config.yaml")
    assert run(model=model) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: starting weights of the baselines: ./gone: no such folder")
    assert "--no-baselines" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "holdout"], "no rows of 'holdout'; it has train (36), test (8), val (4)"),
        (["--words", "folder"], "--words: give both --words and --stem"),
        (["--stem-weights", "file"], "--stem-weights: give both --words and --stem"),
        (["--words", "a", "--stem", "b", "--no-baselines"], "without --no-baselines"),
        (["--offers", "nowhere"], "nowhere: no such file or folder"),
        (["--device", "abacus"], "'abacus'"),
    ],
)
def test_bad_arguments(
    run: Callable[..., int], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_missing_folders(run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model=tmp_path) == 2
    assert "config.json" in capsys.readouterr().err
    assert run(catalog=tmp_path) == 2
    assert "catalog" in capsys.readouterr().err


def test_offers_of_other_products(catalog_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "offers.jsonl"
    file.write_text(json.dumps({"product_id": "o", "group_id": "elsewhere", "title": "a"}) + "\n", encoding="utf-8")
    with pytest.raises(CatalogError, match=r"none is a product_id of .*; the first is 'elsewhere'"):
        read_material(str(catalog_folder), str(file), "test")


def test_offers_without_split_have_their_listings(catalog_folder: Path, offers_file: Path) -> None:
    material = read_material(str(catalog_folder), str(offers_file), "test")
    assert [len(material.offers_of(split)) for split in ("train", "val", "test")] == [0, 4, 9]


def test_splits_by_rule(tmp_path: Path) -> None:
    lines = [json.dumps({"product_id": str(i), "title": f"number {i}"}) for i in range(60)]
    (tmp_path / "catalog.jsonl").write_text("\n".join(lines), encoding="utf-8")
    material = read_material(str(tmp_path), None, "test")
    assert 0 < sum(listing.split == "test" for listing in material.listings) < 20


def test_each_modality_is_what_the_engine_gives(model_folder: Path, listings: list[Listing]) -> None:
    engine = load_engine(model_folder, "cpu")
    bad = replace(listings[0], product_id="bad", images=(Picture(data=b"no picture"),))
    seen = encode_modalities(engine, [*listings[:10], bad, *listings[10:], listings[0]], "the test")
    assert [(one.product_id, one.field) for one in seen.refused] == [("bad", "image")]
    assert seen.listings == [*listings, listings[0]]
    words = [replace(listing, images=()) for listing in listings]
    pictures = [replace(listing, title="", description="") for listing in listings]
    for modality, views in (("both", listings), ("words", words), ("picture", pictures)):
        there = [i for i, view in enumerate(views) if view.title or view.description or view.images]
        expected = engine.encode([views[i] for i in there]).vectors
        found = seen.vectors[modality][:-1]  # type: ignore[index]
        np.testing.assert_allclose(found[there], expected, atol=1e-5)
        assert not np.delete(found, there, axis=0).any()
        assert len(there) > 30
    np.testing.assert_array_equal(seen.vectors["words"][0], seen.vectors["words"][-1])
    assert not np.allclose(seen.vectors["words"][0], seen.vectors["both"][0], atol=1e-3)
