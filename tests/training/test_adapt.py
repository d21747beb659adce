"""The program: heads and adapters into a model folder, judged, resumable, and saying what is wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from item.adapters.adapter import VALUES
from item.adapters.files import names_of, read_adapter
from item.adapters.head import Head, read_heads, softmax
from item.adapters.methods import make_method
from item.catalog.listing import Listing
from item.engine import load_engine
from item.model.config import ItemConfig
from item.model.encoder import GATE_SHUT, ITEm
from item.preprocessing.preprocessor import Preprocessor
from training.adapt import adapter_name, judge, main
from training.adapt_report import calibration_error
from training.adapting import (
    Adapting,
    AdaptOptions,
    Assigned,
    Labelled,
    Run,
    adapted_features,
    batches,
    fit_head,
    fit_novelty,
    fit_temperature,
    with_temperature,
)
from training.categories import ADJUSTED, PRIOR, SHARES

TOPS = {"Clothing": ("shirt", "coat"), "Kitchen": ("mug", "pan"), "Garden": ("hose",)}
COLOURS = ("red", "green", "blue", "black", "white", "brown")


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Listings of words: two top levels of two leaves, one of a single leaf; every seventh title is of another leaf."""
    path = tmp_path_factory.mktemp("shop") / "catalog.jsonl"
    leaves = [(top, leaf) for top, below in TOPS.items() for leaf in below]
    with path.open("w", encoding="utf-8") as file:
        for number in range(150):
            top, leaf = leaves[number % len(leaves)]
            word = leaf if number % 7 else TOPS[top][0]
            split = "train" if number < 100 else "val" if number < 125 else "test"
            title = f"{COLOURS[number % 6]} {word} number {number}"
            row = {"product_id": f"p{number}", "title": title, "category": [top, leaf], "split": split}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def trained_from(tiny_config: ItemConfig, preprocessor: Preprocessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose words read no cells and whose biases are not 0."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(3)
    model = ITEm(tiny_config)
    with torch.no_grad():
        for parameter in model.layers.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.gates.fill_(GATE_SHUT)
        model.vector.fit(torch.randn(40, 2, 32), torch.randn(40, model.stem.pooled_width), 0.5, whiten=False)
    model.save_pretrained(folder)
    preprocessor.save_pretrained(folder)
    (folder / "README.md").write_text("# A model\n")
    return folder


@pytest.fixture
def folder(trained_from: Path, tmp_path: Path) -> Path:
    """A copy to write into."""
    return Path(shutil.copytree(trained_from, tmp_path / "model"))


def run(folder: Path, catalog: Path, *more: str) -> int:
    return main(["--model", str(folder), "--catalog", str(catalog), "--min-listings", "10", "--epochs", "3", *more])


def test_it_makes_heads_and_adapters_that_the_engine_serves(
    folder: Path, catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, catalog, "--batch-size", "8", "--lr", "2e-2", "--report", str(tmp_path / "report")) == 0
    engine = load_engine(folder)
    heads = engine.heads
    assert heads is not None
    assert [head.category for head in heads.heads] == [(), ("Clothing",), ("Garden",), ("Kitchen",)]
    said = capsys.readouterr().out
    for name in names_of(folder):
        adapter = engine.adapters.get(name)
        assert adapter.heads is not None
        assert adapter.heads.heads[0].category == adapter.category
        assert f"{adapter.category[0]}: adapter kept" in said
    assert names_of(folder), "no adapter was kept: nothing was shown"
    figures = json.loads((tmp_path / "report" / "adaptation.json").read_text())
    assert {row["system"] for row in figures["rows"]} == {"alone", "adapters"}
    assert all(row["count"] == 25 for row in figures["rows"])
    assert "adapter kept" in (tmp_path / "report" / "adaptation.html").read_text()


def test_an_adapter_that_does_not_help_is_not_kept() -> None:
    paths = (("a", "x"), ("a", "y"))
    good = Head(category=("a",), paths=paths, weight=np.eye(2, dtype=np.float32), bias=np.zeros(2, np.float32))
    features = np.array([[3, 0], [0, 3], [3, 0]], dtype=np.float32)
    seen = Labelled(categories=[paths[0], paths[1], paths[0]], word_ids=[None] * 3, features=features, words_width=1)
    worse = judge(good, replace(good, weight=-good.weight), seen, features, "a")
    assert not worse.kept
    assert (worse.right_before, worse.right_after) == (3, 0)
    better = judge(replace(good, weight=-good.weight), good, seen, features, "a")
    assert better.kept
    assert not judge(good, good, seen, features, "a").kept  # no better is not better


def test_an_interrupted_run_ends_bit_for_bit_where_a_whole_one_does(
    tiny_config: ItemConfig, trained_from: Path, catalog: Path, tmp_path: Path
) -> None:
    def make(place: Path) -> Run:
        from training.adapt import fit_base, read_material

        material = read_material(trained_from, str(catalog), tmp_path / "work")
        train, val = material.labelled["train"], material.labelled["val"]
        heads = [head for head in fit_base(train, val) if len(head.paths) > 1 and head.category]
        torch.manual_seed(0)
        adapting = Adapting(material.model, make_method("road_1", material.model, len(heads)), heads, 64, shared=False)
        options = AdaptOptions(epochs=4, batch_size=8, lr=1e-2, patience=4)
        place.mkdir(exist_ok=True)
        return Run(adapting, Assigned.of(train, heads), Assigned.of(val, heads), options, place)

    whole = make(tmp_path / "whole")
    whole.go()
    begun = make(tmp_path / "cut")
    judged = begun.judge

    def cut() -> None:
        judged()
        if begun.epoch == 2:
            begun.checkpoint()
            raise KeyboardInterrupt

    begun.judge = cut  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        begun.go()
    resumed = make(tmp_path / "cut")
    resumed.go()
    assert resumed.epoch == whole.epoch
    for one, other in zip(whole.adapting.parameters(), resumed.adapting.parameters(), strict=True):
        assert torch.equal(one, other)
    start = make(tmp_path / "start").adapting
    assert not all(torch.equal(a, b) for a, b in zip(start.parameters(), whole.adapting.parameters(), strict=True))


@pytest.mark.parametrize("method", ["road_2", "lora", "hiwi", "pafi", "full"])
def test_every_parameter_of_a_method_learns(method: str, tiny_model: ITEm) -> None:
    for parameter in tiny_model.parameters():
        parameter.requires_grad_(False)
    heads = [
        Head(
            category=(top,),
            paths=((top, "x"), (top, "y")),
            weight=np.zeros((2, 384), np.float32) + 0.1,
            bias=np.zeros(2, np.float32),
        )
        for top in ("a", "b")
    ]
    width = tiny_model.vector.features_width
    generator = np.random.default_rng(0)
    heads = [replace(one, weight=generator.normal(size=(2, width)).astype(np.float32)) for one in heads]
    shared = method not in VALUES
    if method == "full":
        for parameter in tiny_model.layers.parameters():
            parameter.requires_grad_(True)
    made = None if method == "full" else make_method(method, tiny_model, 1 if shared else 2)
    if made is not None:  # what starts at 0 keeps its partner from learning in the first step
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
    adapting = Adapting(tiny_model, made, heads, 64, shared)
    ids = [np.array([7, 8, 9 + row, 2], dtype=np.int32) for row in range(4)]
    tops = np.array([0, 1, 0, 1])
    features = torch.zeros(4, width)
    features[:, :64] = adapting.words(ids, tops)
    adapting.losses(features, torch.tensor([0, 2, 1, 3]), tops).sum().backward()  # type: ignore[no-untyped-call]
    learned = made.parameters() if made is not None else tiny_model.layers.parameters()
    for parameter in [*learned, adapting.weight, adapting.bias]:
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0 or "key.bias" in name_of(tiny_model, parameter)
    others = [one for name, one in tiny_model.named_parameters() if not name.startswith("layers.")]
    assert all(one.grad is None for one in others)


def name_of(model: ITEm, parameter: torch.Tensor) -> str:
    return next((name for name, one in model.named_parameters() if one is parameter), "")


def test_a_mixed_batch_is_as_its_listings_alone(tiny_model: ITEm) -> None:
    method = make_method("road_1", tiny_model, 3)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    width = tiny_model.vector.features_width
    head = Head(
        category=("a",), paths=(("a", "x"),), weight=np.zeros((1, width), np.float32), bias=np.zeros(1, np.float32)
    )
    adapting = Adapting(tiny_model, method, [head] * 3, 64, shared=False)
    ids = [np.array([*range(7, 8 + row), 2], dtype=np.int32) for row in range(6)]
    listings = Labelled(
        categories=[("a", "x")] * 6, word_ids=[*ids], features=np.zeros((6, width), np.float32), words_width=64
    )
    tops = np.array([0, 1, 2, 2, 1, 0])
    mixed = adapted_features(adapting, listings, tops)
    for row in range(6):
        alone = adapted_features(adapting, listings[np.array([row])], tops[[row]])
        np.testing.assert_allclose(mixed[[row]], alone, atol=1e-6)
    assert np.abs(mixed - adapted_features(adapting, listings, (tops + 1) % 3)).max() > 1e-3


def test_growing_adds_rows_and_leaves_all_else_bit_for_bit(
    folder: Path, catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, catalog, "--batch-size", "8", "--lr", "2e-2") == 0
    model = load_engine(folder)
    before = read_heads(folder, model.model_space)
    adapters = {
        name: read_adapter(folder, name, ItemConfig.load(folder), model.model_space) for name in names_of(folder)
    }
    assert adapters
    grown = tmp_path / "grown.jsonl"
    lines = catalog.read_text().splitlines()
    for number in range(12):
        row = {"product_id": f"n{number}", "title": f"blue pan lid number {number}", "split": "train"}
        lines += [json.dumps({**row, "category": ["Kitchen", "lid"]})]
        lines += [
            json.dumps(
                {
                    **row,
                    "product_id": f"s{number}",
                    "title": f"red shirt scarf {number}",
                    "category": ["Clothing", "scarf"],
                }
            )
        ]
    grown.write_text("\n".join(lines) + "\n")
    capsys.readouterr()
    assert run(folder, grown, "--grow") == 0
    assert "2 paths added: Clothing/scarf, Kitchen/lid" in capsys.readouterr().out
    after = read_heads(folder, model.model_space)
    assert before is not None
    assert after is not None
    for old, new in zip(before.heads, after.heads, strict=True):
        assert new.paths[: len(old.paths)] == old.paths
        assert np.array_equal(new.weight[: len(old.paths)], old.weight)
        assert new.temperature == old.temperature
    for name, old_adapter in adapters.items():
        new_adapter = read_adapter(folder, name, ItemConfig.load(folder), model.model_space)
        assert new_adapter.digest == old_adapter.digest
        assert new_adapter.heads is not None
        assert old_adapter.heads is not None
        assert len(new_adapter.heads.heads[0].paths) == len(old_adapter.heads.heads[0].paths) + 1
    assert run(folder, grown, "--grow") == 0
    assert "no new paths" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["full", "hiwi", "lora"])
def test_a_method_for_the_whole_makes_a_model_of_its_own(
    method: str, folder: Path, catalog: Path, tmp_path: Path
) -> None:
    before = (folder / "model.safetensors").read_bytes()
    output = tmp_path / "whole"
    more = ("--method", method, "--lr", "3e-3", "--batch-size", "8", "--output", str(output))
    assert run(folder, catalog, *more) == 0
    made, base = load_engine(output), load_engine(folder)
    assert made.space != base.space
    listing = Listing(product_id="", title="red shirt number 3")
    assert np.abs(made.encode([listing]).vectors - base.encode([listing]).vectors).max() > 1e-5
    assert made.heads is not None
    assert base.heads is None
    assert (folder / "model.safetensors").read_bytes() == before


def test_holding_a_category_back_writes_nothing(
    folder: Path, catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, catalog, "--hold-back", "Kitchen") == 0
    assert "Kitchen: AUROC of unknown" in capsys.readouterr().out
    assert not (folder / "categories").exists()
    assert not (folder / "adapters").exists()


def test_what_is_wrong_is_named(
    folder: Path, catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(text: str, *more: str, of: Path = catalog, model: Path = folder) -> None:
        assert run(model, of, *more) == 2
        assert text in capsys.readouterr().err

    fails("method: full needs --output", "--method", "full")
    fails("method: road_1 takes no --output", "--output", str(tmp_path / "x"))
    fails(
        "categories: 'Boats' is no top level of the catalogue; it has Clothing, Garden, Kitchen",
        "--categories",
        "Boats",
    )
    fails("hold_back: 'Boats' is no top level", "--hold-back", "Boats")
    fails("no such folder", model=tmp_path / "nowhere")
    fails("has no heads yet", "--grow")
    fails("epochs: 0 must be at least 1", "--epochs", "0")
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"product_id": "1", "title": "red shirt", "split": "train"}\n')
    fails("has no listings of split 'train' with one", of=bare)


def test_a_head_is_the_minimum_of_its_loss() -> None:
    """The gradient of the loss, in float64 and written from its definition, vanishes."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(60, 6)).astype(np.float32)
    features[:10, :4], features[10:20, 4:] = 0, 0
    paths: list[tuple[str, ...]] = [("a", "x"), ("a", "y"), ("a", "z")]
    train = Labelled(
        categories=[paths[one] for one in generator.choice(3, size=60, p=(0.6, 0.3, 0.1))],
        word_ids=[None] * 60,
        features=features,
        words_width=4,
    )
    head = fit_head(train, ("a",), paths)
    W, b = head.weight.astype(np.float64), head.bias.astype(np.float64)
    counts = np.array([train.categories.count(path) for path in paths])
    of_w, of_b = W / PRIOR, np.zeros(3)
    for row in range(60):
        x = features[row].astype(np.float64)
        readings = [(x, 1.0)]
        if x[:4].any() and x[4:].any():
            readings = list(zip([x * (np.arange(6) < 4), x * (np.arange(6) >= 4), x], SHARES, strict=True))
        for one, share in readings:
            adjusted = W @ one + b + ADJUSTED * np.log(counts)
            error = softmax(adjusted) - (np.arange(3) == paths.index(train.categories[row]))
            of_w, of_b = of_w + share * np.outer(error, one), of_b + share * error
    assert np.abs(W).max() > 0.1
    assert max(np.abs(of_w).max(), np.abs(of_b).max()) < 0.05


def test_the_temperature_of_a_head_that_is_too_sure_is_found() -> None:
    generator = np.random.default_rng(1)
    z = generator.normal(size=(4000, 5)) * 2
    target = np.array([generator.choice(5, p=p) for p in softmax(z)])
    assert fit_temperature((3 * z).astype(np.float32), target) == pytest.approx(3, rel=0.15)
    assert fit_temperature(z.astype(np.float32), np.full(4000, -1)) == 1


def test_heads_with_few_held_back_listings_share_a_temperature() -> None:
    weight = np.eye(2, dtype=np.float32) * 4
    heads = [
        Head(category=(top,), paths=((top, "x"), (top, "y")), weight=weight, bias=np.zeros(2, np.float32))
        for top in ("a", "b")
    ]
    features = [np.eye(2, dtype=np.float32)] * 2
    wrong = with_temperature(heads, features, [[("a", "x"), ("a", "x")], [("b", "x"), ("b", "y")]])
    assert wrong[0].temperature == wrong[1].temperature > 1


@given(st.integers(1, 40), st.none() | st.integers(1, 9), st.integers(0, 3))
def test_a_pass_takes_every_listing_once(count: int, size: int | None, epoch: int) -> None:
    ids = [np.arange(row % 5, dtype=np.int32) if row % 5 else None for row in range(count)]
    listings = Labelled(
        categories=[("a",)] * count, word_ids=ids, features=np.zeros((count, 1), np.float32), words_width=1
    )
    assigned = Assigned(listings=listings, tops=np.zeros(count, int), targets=np.zeros(count, int))
    options = AdaptOptions(batch_size=size)
    drawn = list(batches(assigned, options, epoch))
    assert sorted(np.concatenate(drawn).tolist()) == list(range(count))
    assert [rows.tolist() for rows in drawn] == [rows.tolist() for rows in batches(assigned, options, epoch)]


def test_held_back_listings_are_as_unknown_as_a_rank_says() -> None:
    generator = np.random.default_rng(2)
    features = generator.normal(size=(600, 8)).astype(np.float32)
    whole = Labelled(categories=[("a", "x")] * 600, word_ids=[None] * 600, features=features, words_width=4)
    novelty = fit_novelty(whole[np.arange(200)], whole[np.arange(200, 400)])
    unknown = novelty.unknown(features[400:], 4)
    assert unknown.mean() == pytest.approx(0.5, abs=0.08)


def test_calibration_error_is_nothing_where_confidence_is_honest() -> None:
    generator = np.random.default_rng(3)
    honest = generator.uniform(0.2, 1, 3000)
    right = (generator.uniform(size=3000) < honest).astype(float)
    assert calibration_error(honest, right) < 0.02
    assert calibration_error(np.minimum(1, honest + 0.2), right) > 0.1


def test_names_are_plain_and_differ() -> None:
    assert adapter_name(("Home & Kitchen",), []) == "home-kitchen"
    assert adapter_name(("Home / Kitchen",), ["home-kitchen"]) == "home-kitchen-2"
    assert adapter_name(("電子",), []) == "category"


def test_a_run_on_other_listings_does_not_go_on_from_an_old_checkpoint(
    folder: Path, catalog: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(catalog.read_text().replace("number 1", "numeral 1"))
    work = tmp_path / "work"
    for listings in (catalog, catalog, other):
        assert run(folder, listings, "--batch-size", "8", "--work", str(work)) == 0
    assert len(list(work.glob("*/checkpoint.json"))) == 2  # the second went on from the first
