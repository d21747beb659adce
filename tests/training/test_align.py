"""The program: from a catalogue to a model folder that serves, going on where it was, and saying what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from item.catalog.listing import Listing
from item.engine import load_engine
from item.model.config import ItemConfig
from item.model.encoder import GATE_CLOSED, ITEm
from item.model.vector import VectorHead
from item.preprocessing.spelling import SPELLING_WIDTH
from training import align as module
from training import pooled as pooled_module
from training.align import (
    FEW,
    NUM_FOLDS,
    Aligned,
    align_head,
    families,
    hold_out,
    main,
    product_of,
    shut_untrained_gates,
)
from training.alignment import Fit, HeadSettings
from training.config import AlignOptions
from training.guard import Values, Verdict, judge
from training.inputs import Unseen
from training.pooled import Pooled, Pooler, embed
from training.pretrain import main as pretrain
from training.towers import Recipe

SMALL = """
model: {width: 32, num_layers: 2, num_heads: 4, mlp_width: 64, vocab_size: 200, max_words: 12, picture_size: 32,
        patch_size: 8, vector_width: 48, dropout: 0}
start: {words: null, stem_weights: null}
optimiser: {lr: 1e-3}
run: {batch_size: 12, steps: 2, validation_batches: 1}
align: {views: 2, steps: 20}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def aligned(config: Path, catalog_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, aligned from scratch; not to be written to."""
    output = tmp_path_factory.mktemp("aligned") / "m"
    assert align(["--config", str(config)], catalog_folder, output) == 0
    return output


@pytest.fixture(scope="module")
def pretrained(config: Path, catalog_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of `training.pretrain`; not to be written to."""
    output = tmp_path_factory.mktemp("pretrained") / "m"
    beginning = ["--config", str(config), "--device", "cpu"]
    assert pretrain([*beginning, "--catalog", str(catalog_folder), "--output", str(output)]) == 0
    return output


def align(beginning: Sequence[str], catalog: Path, output: Path, *more: str) -> int:
    return main([*beginning, "--catalog", str(catalog), "--output", str(output), "--device", "cpu", *more])


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def different(a: Path, b: Path) -> set[str]:
    """The names of the tensors that differ."""
    first, second = tensors(a), tensors(b)
    assert first.keys() == second.keys()
    return {name for name in first if not torch.equal(first[name], second[name])}


def guard(output: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((output / "run" / "guard.json").read_text())
    return found


def write_catalog(folder: Path, rows: Sequence[dict[str, str]]) -> Path:
    folder.mkdir()
    (folder / "catalog.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_the_result_serves(aligned: Path, listings: list[Listing]) -> None:
    for folder in (aligned, aligned / "run" / "start"):
        engine = load_engine(folder, "cpu")
        assert engine.vector_width == 48
        vectors = engine.encode_prepared([engine.preprocessor(listing) for listing in listings[:5]])
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        card = (folder / "README.md").read_text()
        assert ("| trained | the starting point" in card) == (folder != aligned)
        assert ("views of" in card) == (folder == aligned)
    assert (aligned / "run" / "config.yaml").is_file()
    assert (aligned / "run" / "refused.jsonl").read_text() == ""


def test_the_guard_says_what_it_found(aligned: Path) -> None:
    found = guard(aligned)
    assert found["views"] == 2
    assert found["listings"] == 36
    assert isinstance(found["settings"], dict)
    assert set(found["settings"]) == {field.name for field in fields(HeadSettings)}
    assert isinstance(found["differences"], dict)
    tasks = {"same listing by words", "same product by both", "leaf category by picture", "words to picture across"}
    assert tasks <= set(found["differences"])
    changed = different(aligned, aligned / "run" / "start")
    assert bool(changed) == found["better"]
    assert all(name.startswith("vector.") for name in changed)


def test_starting_again_reuses_the_views(
    config: Path, catalog_folder: Path, aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "m"
    shutil.copytree(aligned, output)

    def refused(*_: object) -> None:
        raise AssertionError("the views are there")

    with monkeypatch.context() as patched:
        patched.setattr(pooled_module, "listing_view", refused)
        patched.setattr(Pooler, "draw", refused)
        assert align(["--config", str(config)], catalog_folder, output) == 0
        assert not different(output, aligned)
        assert guard(output) == guard(aligned)
        with pytest.raises(AssertionError, match="the views are there"):
            align(["--config", str(config)], catalog_folder, output, "--restart")


def test_an_interrupted_run_goes_on(
    config: Path,
    catalog_folder: Path,
    aligned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words, calls = Pooler.words, list[int]()

    def killed(self: Pooler, texts: Sequence[Sequence[Listing]]) -> object:
        calls.append(len(texts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return words(self, texts)

    monkeypatch.setattr(Pooler, "words", killed)
    assert align(["--config", str(config)], catalog_folder, tmp_path / "m") == 130
    assert "start the same command again" in capsys.readouterr().err
    assert not (tmp_path / "m" / "model.safetensors").exists()
    assert align(["--config", str(config)], catalog_folder, tmp_path / "m") == 0
    assert calls == [32, 8, 8, 4]  # 36 of train and 4 of val, the first 32 of them once; the categories' names
    assert not different(tmp_path / "m", aligned)


def test_other_seeds_give_other_models(config: Path, catalog_folder: Path, aligned: Path, tmp_path: Path) -> None:
    assert align(["--config", str(config)], catalog_folder, tmp_path / "m", "run.seed=1") == 0
    assert {"vector.words.projection", "layers.0.up.weight"} <= different(tmp_path / "m", aligned)


def test_it_goes_on_from_a_pretrained_model(
    pretrained: Path, catalog_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in pretrained.rglob("*")}
    assert align(["--model", str(pretrained)], catalog_folder, tmp_path / "m", "align.steps=5") == 0
    assert {path: path.stat().st_mtime_ns for path in pretrained.rglob("*")} == before
    assert not different(tmp_path / "m" / "run" / "start", pretrained)
    changed = different(tmp_path / "m", pretrained)
    assert all(name.startswith("vector.") for name in changed)
    found = guard(tmp_path / "m")
    assert bool(changed) == found["better"]
    kept = "aligned" if changed else "the starting point is kept"
    assert capsys.readouterr().out == f"{tmp_path / 'm'}: {kept}: {found['why']}\n"
    assert "steps: 5" in (tmp_path / "m" / "run" / "config.yaml").read_text()
    assert (tmp_path / "m" / "tokenizer.json").read_bytes() == (pretrained / "tokenizer.json").read_bytes()
    assert load_engine(tmp_path / "m", "cpu").vector_width == 48


def test_a_catalogue_without_labels_is_enough(config: Path, catalog_folder: Path, tmp_path: Path) -> None:
    """Nothing but titles and pictures, half of either; the views are kept where run.cache says."""
    rows = [json.loads(line) for line in (catalog_folder / "catalog.jsonl").read_text().splitlines()]
    bare = [{k: row[k] for k in ("product_id", "title", "split", "image") if k in row} for row in rows]
    folder = write_catalog(tmp_path / "bare", bare)
    for picture in catalog_folder.glob("*.png"):
        shutil.copy(picture, folder)
    cache = f"run.cache={tmp_path / 'cache'}"
    assert align(["--config", str(config)], folder, tmp_path / "m", cache, "align.batch_size=4") == 0
    across = {"words to picture across", "picture to words across"}
    assert set(guard(tmp_path / "m")["differences"]) == across | {  # type: ignore[call-overload]
        f"same listing by {modality}" for modality in ("words", "picture", "both")
    }
    assert ITEm.from_pretrained(tmp_path / "m").config.category_levels == ()
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert not (tmp_path / "m" / "run" / "views").exists()


def test_labels_that_are_left_out_are_not_learned_from(
    config: Path, catalog_folder: Path, aligned: Path, tmp_path: Path
) -> None:
    cache = f"run.cache={aligned / 'run' / 'views'}"  # labels are no part of the views
    views = len(list((aligned / "run" / "views").iterdir()))
    for name in ("categories", "groups"):
        assert align(["--config", str(config)], catalog_folder, tmp_path / name, cache, f"align.{name}=false") == 0
        assert not different(tmp_path / name / "run" / "start", aligned / "run" / "start")
        if guard(tmp_path / name)["better"]:
            assert different(tmp_path / name, aligned)
    assert len(list((aligned / "run" / "views").iterdir())) == views


@pytest.mark.parametrize("words", ["random", "short"])
def test_words_that_say_nothing_never_give_a_worse_model(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    """Random words; and descriptions of two letters, whose views are the listings themselves: none can be better."""
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnop")
    texts = [" ".join("".join(rng.choice(letters, 6)) for _ in range(4)) for _ in range(60)]
    if words == "short":
        texts = [f"{a}{b}" for a in letters for b in letters[:4]][:60]
    name = "title" if words == "random" else "description"
    rows = [{"product_id": f"p{i}", name: text, "split": "train"} for i, text in enumerate(texts)]
    folder, output = write_catalog(tmp_path / "catalog", rows), tmp_path / "m"
    assert align(["--config", str(config)], folder, output) == 0
    found, out = guard(output), capsys.readouterr().out
    assert out.endswith(f"{found['why']}\n")
    changed = different(output, output / "run" / "start")
    if found["better"]:
        assert found["score_after"] > found["score_before"]  # type: ignore[operator]
        assert f"{output}: aligned: better than its starting point: score " in out
    else:
        assert not changed
        assert f"{output}: the starting point is kept: " in out
    if words == "short":
        assert f"{output}: the starting point is kept: no better than its starting point: score 1.000 -> " in out


# Whatever the guard finds, its answer is yes: what is written then.


@pytest.fixture
def heads(monkeypatch: pytest.MonkeyPatch) -> list[VectorHead]:
    """Every head that is kept from now on: the aligned one, always."""
    kept = list[VectorHead]()

    def yes(before: Mapping[str, Values], after: Mapping[str, Values], products: Sequence[str]) -> Verdict:
        return replace(judge(before, after, products), better=True)

    def noted(*arguments: Any) -> Aligned:
        aligned = align_head(*arguments)
        kept.append(aligned.head)
        return aligned

    monkeypatch.setattr(module, "judge", yes)
    monkeypatch.setattr(module, "align_head", noted)
    return kept


def test_an_aligned_model_knows_its_categories(
    config: Path, catalog_folder: Path, listings: list[Listing], heads: list[VectorHead], tmp_path: Path
) -> None:
    """Three kinds below the one shop; the starting point knows none. What is loaded is what was aligned, and can be
    gone on from: without categories and spelling those that it had have no say."""
    output, more = tmp_path / "m", ("align.steps=5",)
    assert align(["--config", str(config)], catalog_folder, output, *more) == 0
    loaded = ITEm.from_pretrained(output)
    assert loaded.config.category_levels == loaded.vector.category_levels == (3,)
    assert loaded.config.vector_width == 48
    expected = heads[0].state_dict()
    assert loaded.vector.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.vector.state_dict().items())
    start = ITEm.from_pretrained(output / "run" / "start")
    assert start.config == replace(loaded.config, category_levels=())
    vectors = [
        engine.encode_prepared([engine.preprocessor(listing) for listing in listings[:5]])
        for engine in (load_engine(folder, "cpu") for folder in (output, output / "run" / "start"))
    ]
    np.testing.assert_allclose(np.linalg.norm(vectors[0], axis=1), 1, atol=1e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 0.05
    without = ("align.categories=false", "align.spelling=false")
    assert align(["--model", str(output)], catalog_folder, tmp_path / "n", *more, *without) == 0
    again = ITEm.from_pretrained(tmp_path / "n")
    assert again.config == loaded.config
    assert not again.vector.weights[:, 4].any()
    for of_head in ("category_projection", "spelling_projection"):
        assert not getattr(again.vector, of_head).any()
        assert getattr(loaded.vector, of_head).any()


@pytest.mark.parametrize("few", [FEW, 4])
def test_a_fold_is_never_learned_from_before_it_is_asked(
    listings: list[Listing], heads: list[VectorHead], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fold is asked about what was fitted without it; then all training listings are fitted as many steps. Where
    val is enough, once without it is all."""
    train, val = ([one for one in listings if one.split == split] for split in ("train", "val"))
    rng = np.random.default_rng(0)
    words, picture = (torch.from_numpy(rng.normal(size=(40, 3, width))).float() for width in (8, 6))
    there = np.ones(40, np.bool_)
    pooled = Pooled(
        words=torch.stack([words, words], dim=2),
        spelling=torch.zeros(40, 3, SPELLING_WIDTH),
        picture=picture,
        has_words=there,
        has_picture=there,
    )
    start = VectorHead(ItemConfig(vocab_size=10, cls_id=1, sep_id=2, width=8, num_heads=4, vector_width=16), 6)
    start.fit(pooled.words[:, 0], pooled.picture[:, 0], 0.5, whiten=False)
    paths = {one.category[:depth] for one in listings for depth in range(1, 1 + len(one.category))}
    names = {path: torch.from_numpy(rng.normal(size=(2, 8))).float() for path in sorted(paths)}
    learned, asked = list[tuple[Pooled, Unseen | None, Recipe | None, Recipe | None]](), list[str]()
    learn = Fit.train_towers

    def noted(fit: Fit, options: AlignOptions, seed: int, held_out: Unseen | None, recipe: Recipe | None) -> None:
        learn(fit, options, seed, held_out, recipe)
        learned.append((fit.pooled, held_out, recipe, fit.recipe))

    def agreed(before: Mapping[str, Values], after: Mapping[str, Values], products: Sequence[str]) -> Verdict:
        asked.extend(products)
        assert {len(values) for values in (*before.values(), *after.values())} == {len(products)}
        return replace(judge(before, after, products), better=True)

    monkeypatch.setattr(Fit, "train_towers", noted)
    monkeypatch.setattr(module, "judge", agreed)
    monkeypatch.setattr(module, "FEW", few)
    head = module.align_head(start, pooled, train, val, names, AlignOptions(steps=60), 0).head
    rows_of = {float(picture[row, 0, 0]): row for row in range(40)}

    def rows(some: Pooled) -> list[int]:
        return [rows_of[float(value)] for value in some.picture[:, 0, 0]]

    folds = learned if few == 4 else learned[:-1]
    told = [rows(held_out.pooled) for _, held_out, _, _ in folds if held_out is not None]
    assert told == [fold.tolist() for fold in hold_out(train, val)]
    for (known, _, recipe, _), fold in zip(folds, told, strict=True):
        assert sorted([*rows(known), *fold]) == list(range(40))
        assert recipe is None
    assert asked == [product_of([*train, *val][row]) for fold in told for row in fold]
    if few == FEW:
        known, held_out, recipe, _ = learned[-1]
        assert (len(told), rows(known), held_out) == (NUM_FOLDS, list(range(36)), None)
        assert recipe == Recipe.of_folds([found for _, _, _, found in folds if found is not None])
    else:
        assert told == [list(range(36, 40))]
    e = embed(head, pooled[np.arange(36)], "both", 0).astype(np.float64)
    covariance = np.cov(e.T)
    np.testing.assert_allclose(covariance, np.diag(covariance.diagonal()), atol=1e-6)


# What is held out.


def linked(a: Listing, b: Listing) -> bool:
    return product_of(a) == product_of(b) or any(
        one and one == other for one, other in ((a.title, b.title), (a.description, b.description))
    )


def make_listings(values: Sequence[tuple[int, int, int]]) -> list[Listing]:
    """Of (product, title, description); 0: none."""
    return [
        Listing(
            product_id=f"p{row}",
            group_id=f"g{product}" if product else None,
            title=f"text {title}" if title else "",
            description=f"text {description}" if description else "",
        )
        for row, (product, title, description) in enumerate(values)
    ]


CATALOGUES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=16)


@given(CATALOGUES)
def test_families_are_what_links_reach(values: list[tuple[int, int, int]]) -> None:
    """Link after link, until nothing changes."""
    listings = make_listings(values)
    expected = np.arange(len(listings))
    for _ in listings:
        for a, b in combinations(range(len(listings)), 2):
            if linked(listings[a], listings[b]):
                expected[expected == expected[b]] = expected[a]
    found = families(listings)
    assert ((found[:, None] == found) == (expected[:, None] == expected)).all()
    assert set(found) == set(range(len(set(found))))


def test_families_are_transitive_and_texts_of_other_kinds_are_no_links() -> None:
    """One and two share their product, two and three their title, three and four their description. A title that is
    another's description links nothing, and neither does what is missing."""
    found = families(make_listings([(1, 1, 0), (1, 2, 0), (2, 2, 3), (0, 0, 3), (0, 3, 0), (0, 0, 0), (0, 0, 0)]))
    assert len(set(found[:4])) == 1
    assert len(set(found)) == 4


@given(CATALOGUES, st.integers(0, 16))
def test_folds_hold_every_listing_out_once_and_no_family_apart(
    values: list[tuple[int, int, int]], num_train: int
) -> None:
    listings = make_listings(values)
    folds, family = hold_out(listings[:num_train], listings[num_train:]), families(listings)
    if np.bincount(family).max() > len(listings) / NUM_FOLDS:  # then products alone are kept together
        family = np.unique([product_of(listing) for listing in listings], return_inverse=True)[1]
    if len(set(family)) == 1:
        assert folds == []  # nothing is known of it
        return
    assert sorted(row for fold in folds for row in fold) == list(range(len(listings)))
    assert 2 <= len(folds) == min(NUM_FOLDS, len(set(family)))
    for one, other in combinations(folds, 2):
        assert not set(family[one]) & set(family[other])
        assert abs(len(one) - len(other)) <= np.bincount(family).max()


def test_folds_are_of_about_the_same_size(listings: list[Listing]) -> None:
    """24 products, of which some share a description."""
    train = [listing for listing in listings if listing.split == "train"]
    val = [listing for listing in listings if listing.split == "val"]
    assert [len(fold) for fold in hold_out(train, val)] == [10] * 4
    alone = make_listings([(0, 0, 0)] * 10)
    assert sorted(len(fold) for fold in hold_out(alone[:7], alone[7:])) == [2, 2, 3, 3]


def test_a_title_that_everything_has_links_nothing() -> None:
    same = [Listing(product_id=f"p{row}", title="Poster") for row in range(40)]
    assert families(same).max() == 0
    assert [len(fold) for fold in hold_out(same[:30], same[30:])] == [10] * NUM_FOLDS


def test_val_is_held_out_where_it_is_enough() -> None:
    train, val = make_listings([(0, 0, 0)] * 3), make_listings([(0, 0, 0)] * FEW)
    [fold] = hold_out(train, val)
    assert fold.tolist() == list(range(3, 3 + FEW))
    assert len(hold_out(train, val[:-1])) == NUM_FOLDS
    assert product_of(Listing(product_id="a")) == "a"
    assert product_of(Listing(product_id="a", group_id="g")) == "g"


def test_unreadable_listings_are_left_out_and_written_down(
    config: Path, catalog_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "catalog"
    shutil.copytree(catalog_folder, folder)
    (folder / "1.png").write_bytes(b"no picture")
    (folder / "36.png").write_bytes(b"no picture")
    assert align(["--config", str(config)], folder, tmp_path / "m") == 0
    refused = [json.loads(line) for line in (tmp_path / "m/run/refused.jsonl").read_text().splitlines()]
    assert [(r["product_id"], r["field"]) for r in refused] == [("p1", "image"), ("p36", "image")]
    assert "2 listings left out" in capsys.readouterr().err
    assert guard(tmp_path / "m")["listings"] == 35


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--device", "tpu"], "device: 'tpu' is none of"),
        (["align.views=0"], "align.views: 0 must be from 1 to 64"),
        (["align.views=65"], "align.views: 65 must be from 1 to 64"),
        (["align.steps=-1"], "align.steps: -1 must not be negative"),
        (["align.batch_size=1"], "align.batch_size: 1 must be at least 2"),
        (["align.dropout=1"], "align.dropout: 1.0 must be in [0, 1)"),
        (["align.view=3"], "align.view: no such setting; did you mean views?"),
        (["start.words=/no/such/folder"], "no such folder"),
    ],
)
def test_what_cannot_be_aligned_is_said(
    config: Path,
    catalog_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    assert align(["--config", str(config)], catalog_folder, tmp_path / "m", *more) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "m" / "config.json").exists()


def test_a_model_folder_that_cannot_be_begun_with_is_said(
    pretrained: Path, catalog_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert align(["--model", str(tmp_path / "none")], catalog_folder, tmp_path / "m") == 2
    assert f"error: {tmp_path / 'none'}: no run/config.yaml; give a folder" in capsys.readouterr().err
    before = {path: path.stat().st_mtime_ns for path in pretrained.rglob("*")}
    same = pretrained.parent / "." / "x" / ".." / "m"
    assert align(["--model", str(pretrained)], catalog_folder, same, "--restart") == 2
    assert "is the model folder itself; name another" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in pretrained.rglob("*")} == before


def test_too_few_listings_are_said(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = {"a": "train", "b": "val"}
    rows = [{"product_id": name, "title": f"mug {name}", "split": split} for name, split in splits.items()]
    folder = write_catalog(tmp_path / "one", rows)
    assert align(["--config", str(config)], folder, tmp_path / "m") == 2
    assert "1 listings in split 'train'; alignment needs at least 2" in capsys.readouterr().err
    assert align(["--config", str(config)], tmp_path / "nowhere", tmp_path / "m") == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("num", [2, 5])
def test_a_handful_of_listings_keeps_its_starting_point_or_is_better(config: Path, tmp_path: Path, num: int) -> None:
    """With next to nothing held out there is hardly a way to know; nothing breaks."""
    rows = [{"product_id": f"p{i}", "title": f"blue mug number {i}", "split": "train"} for i in range(num)]
    output = tmp_path / "m"
    assert align(["--config", str(config)], write_catalog(tmp_path / "few", rows), output) == 0
    assert bool(different(output, output / "run" / "start")) == guard(output)["better"]


def test_a_single_product_keeps_its_starting_point(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"product_id": f"p{i}", "group_id": "g", "title": "blue mug", "split": "train"} for i in range(5)]
    output = tmp_path / "m"
    assert align(["--config", str(config)], write_catalog(tmp_path / "few", rows), output) == 0
    assert not different(output, output / "run" / "start")
    assert "the starting point is kept: nothing to measure it on: no held-out listing" in capsys.readouterr().out


def test_a_beginning_has_to_be_given(catalog_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        align([], catalog_folder, tmp_path / "m")
    assert "--config --model" in capsys.readouterr().err


def test_only_gates_that_were_never_trained_are_shut(tiny_model: ITEm) -> None:
    with torch.no_grad():
        tiny_model.gates.fill_(GATE_CLOSED)
        tiny_model.gates[1] += 0.5
        shut_untrained_gates(tiny_model)
        assert tiny_model.text_reads_cells
        tiny_model.gates.fill_(GATE_CLOSED)
        shut_untrained_gates(tiny_model)
    assert not tiny_model.text_reads_cells
