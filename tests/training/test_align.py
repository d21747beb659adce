"""The program: from a catalogue to a model folder that serves, going on where it was, and saying what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from item.catalog.listing import Listing
from item.catalog.reader import read_catalog
from item.engine import load_engine
from training.align import hold_out, main, product_of
from training.pooled import Pooler
from training.pretrain import main as pretrain

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
    assert set(found["settings"]) == {"words", "picture", "picture_weight", "shared_weight"}
    assert isinstance(found["differences"], dict)
    assert {"same listing by words", "same product by both", "leaf category by picture"} <= set(found["differences"])
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
        patched.setattr(Pooler, "words", refused)
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
    assert calls == [32, 8, 8]  # 36 of train and 4 of val, the first 32 of them once
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
    assert set(guard(tmp_path / "m")["differences"]) == {  # type: ignore[call-overload]
        f"same listing by {modality}" for modality in ("words", "picture", "both")
    }
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


def test_listings_are_held_out_by_product(listings: list[Listing]) -> None:
    train = [listing for listing in listings if listing.split == "train"]
    apart = hold_out(train, [])
    products = {product_of(listing) for listing in apart}
    assert 0 < len(apart) < len(train)
    assert len(apart) == sum(product_of(listing) in products for listing in train)
    assert hold_out(train, train * 3) == []  # val has enough
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
        (["align.steps=0"], "align.steps: 0 must be at least 1"),
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
def test_a_handful_of_listings_keeps_its_starting_point_or_is_better(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], num: int
) -> None:
    """With nothing or next to nothing held out there is no way to know; nothing breaks."""
    rows = [{"product_id": f"p{i}", "title": f"blue mug number {i}", "split": "train"} for i in range(num)]
    output = tmp_path / "m"
    assert align(["--config", str(config)], write_catalog(tmp_path / "few", rows), output) == 0
    assert bool(different(output, output / "run" / "start")) == guard(output)["better"]
    if not hold_out(read_catalog(tmp_path / "few").split("train"), []):
        assert "nothing to measure it on: no held-out listing" in capsys.readouterr().out


def test_a_beginning_has_to_be_given(catalog_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        align([], catalog_folder, tmp_path / "m")
    assert "--config --model" in capsys.readouterr().err
