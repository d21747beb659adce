"""A collection's next generation: what it is made of, and what is left where that fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index.exact import Vectors
from index.store import Store
from item.errors import StoreError
from tests.index.conftest import BY_HAND, about, generation_folder, product, random_vectors, segment_files


def test_keys_of_the_generation_before_name_no_other_products(folder: Path) -> None:
    """Hits are looked up after the search: between the two a reader may have followed to another generation."""
    with Store.open(folder) as reader:
        (found,) = reader.search(random_vectors(1), 5)
        others = [product(f"other{row}") for row in range(20)]
        Store.create(folder, about(), [(others, random_vectors(20))], upkeep=BY_HAND).close()
        assert len(reader) == 20
        products = reader.products([hit.key for hit in found.hits])
        assert all(products[hit.key].product_id == hit.product_id for hit in found.hits if hit.key in products)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (random_vectors(3, 5), r"shape \(3, 5\) from row 20, expected \(3, 8\)"),
        (random_vectors(2, 8), r"shape \(2, 8\) from row 20"),
        (np.ones((3, 8), np.float32), r"row 20: a vector of length 2\.8"),
        (np.full((3, 8), np.nan, np.float32), "row 20: a vector of length nan"),
    ],
)
def test_a_block_of_no_use_leaves_the_collection_as_it_was(folder: Path, vectors: Vectors, message: str) -> None:
    query, before = random_vectors(1), (folder / "current.json").read_bytes()
    products = [product(f"new{row}") for row in range(20)]
    blocks = [(products, random_vectors(20)), ([product(f"more{row}") for row in range(3)], vectors)]
    with pytest.raises(StoreError, match=message):
        Store.create(folder, about(), blocks)
    with pytest.raises(StoreError, match="'new1' comes twice"):
        Store.create(folder, about(), [(products, random_vectors(20)), ([product("new1")], query)])
    assert (folder / "current.json").read_bytes() == before
    with Store.open(folder, writable=True) as again:
        assert len(again) == 20


def test_the_same_products_give_the_same_files(tmp_path: Path) -> None:
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        rows = [([product(f"p{row}") for row in range(20)], random_vectors(20, seed=seed))]
        Store.create(tmp_path / name, about(), rows, upkeep=BY_HAND).close()
        files.append(segment_files(generation_folder(tmp_path / name)))
    assert files[0] == files[1]
    assert len(files[0]) == 3
    assert not any(name.startswith("vectors") for name in files[0] & files[2])


def test_a_generation_that_counts_survives_what_goes_wrong_after_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "index"
    Store.create(folder, about(8), [([product("old")], random_vectors(1))], upkeep=BY_HAND).close()

    before = (folder / "current.json").read_text()

    def fail_once_it_counts(path: Path) -> None:
        if path == folder and (folder / "current.json").read_text() != before:
            raise KeyboardInterrupt

    monkeypatch.setattr("index.files.flush", fail_once_it_counts)
    monkeypatch.setattr("index.creation.flush", fail_once_it_counts)
    with pytest.raises(KeyboardInterrupt):
        Store.create(folder, about(8), [([product("new")], random_vectors(1))], upkeep=BY_HAND)
    monkeypatch.undo()
    with Store.open(folder) as store:
        assert store.product("new") is not None
