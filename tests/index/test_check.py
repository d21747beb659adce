"""What index.check finds, says and repairs."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index.check import main
from index.files import BESIDE
from index.manifest import Manifest, read_manifest, write_manifest
from index.segment import map_vectors, name_by_content
from index.store import Store
from index.truth import TRUTH
from tests.index.conftest import BY_HAND, about, flip_byte, generation_folder, product, random_vectors


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """One collection: 20 products in a segment, of which one is deleted, and a fresh one."""
    products = [product(f"p{row}") for row in range(20)]
    with Store.create(tmp_path / "default", about(), [(products, random_vectors(20))], upkeep=BY_HAND) as store:
        store.delete(["p3"])
        store.upsert([product("fresh")], random_vectors(1, seed=1))
    return tmp_path


def check(index: Path, *more: str) -> int:
    return main(["--index", str(index), *more])


def test_all_is_well(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(index) == 0
    assert capsys.readouterr().out == f"{index / 'default'}: is well\n"


def test_a_damaged_segment_is_named_and_made_again(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (vectors,) = generation_folder(index / "default").glob("vectors-*")
    flip_byte(vectors)
    assert check(index) == 1
    assert "damaged" in capsys.readouterr().out
    assert check(index, "--repair") == 0
    assert "segments made again of 20 products" in capsys.readouterr().out
    assert check(index) == 0


def test_a_segment_that_is_whole_but_not_the_truths_is_found(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a defect of ours would leave it: every digest is right."""
    generation = generation_folder(index / "default")
    (segment,) = read_manifest(generation).segments
    vectors = map_vectors(generation / segment.file("vectors")).copy()
    vectors[7] = -vectors[7]
    with (generation / f"vectors.npy{BESIDE}").open("wb") as file:
        np.save(file, vectors)
    name, digest = name_by_content(generation / f"vectors.npy{BESIDE}")
    files = {old: found for old, found in segment.files.items() if not old.startswith("vectors")} | {name: digest}
    write_manifest(generation, Manifest(segments=(replace(segment, files=files),)))
    assert check(index) == 1
    assert "product 'p7': differs from its segment" in capsys.readouterr().out
    assert check(index, "--repair") == 0


def test_a_damaged_product_is_named_and_left(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing knows what it was: it is written again, or comes from a backup."""
    with sqlite3.connect(generation_folder(index / "default") / TRUTH) as connection:
        connection.execute("UPDATE products SET body = replace(body, 'Mug', 'Nug') WHERE product_id = 'p5'")
    connection.close()
    for more in ((), ("--repair",)):
        assert check(index, *more) == 1
        assert "product 'p5': damaged" in capsys.readouterr().out
    with Store.open(index / "default", writable=True, upkeep=BY_HAND) as store:
        store.upsert([product("p5")], random_vectors(1, seed=5))
    assert check(index) == 0


def test_what_is_no_index_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path / "none") == 2
    assert "no such index folder" in capsys.readouterr().err
    assert check(tmp_path) == 2
    assert "has no collections; build one with" in capsys.readouterr().err
