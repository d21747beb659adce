"""What the tests of the index share: products, vectors of unit norm, search by brute force, other processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import index.choosing
from index.about import About
from index.exact import Vectors
from index.product import Product
from index.search import Hit
from index.store import Store
from index.upkeep import Upkeep
from item.catalog.listing import AttributeValue

SPACE = "5" * 64
WIDTH = 8
BY_HAND = Upkeep(background=False)  # segments are made where a test asks for it
APART = Upkeep(background=False, flush_rows=1, ratio=1e-6, max_dead=1.0)  # `maintain` makes one of what is fresh
ROUNDED = 2e-6  # what a cosine of two vectors in float32 may be off by
CHECKOUT = Path(__file__).parents[2]


def about(width: int = WIDTH, space: str = SPACE) -> About:
    """A generation's description."""
    return About(space=space, vector_width=width, model="M", engine="torch cpu float32", catalog="C", splits=("train",))


def product(product_id: str, **attributes: AttributeValue) -> Product:
    """A product with words, a category and a group."""
    return Product(
        product_id=product_id,
        title=f"Mug nº {product_id}",
        category=("Home", "Kitchen"),
        group_id=f"g{product_id[-1:]}",
        attributes=attributes,
        image=f"images/{product_id}.jpg",
    )


def unit(vectors: npt.NDArray[Any]) -> Vectors:
    """Scaled to length one."""
    exact = vectors.astype(np.float64)
    return (exact / np.linalg.norm(exact, axis=-1, keepdims=True)).astype(np.float32)


def random_vectors(count: int, width: int = WIDTH, seed: int = 0) -> Vectors:
    """(count, width) of unit norm, in all directions."""
    return unit(np.random.default_rng(seed).normal(size=(count, width)))


def check_hits(hits: Sequence[Hit], ids: Sequence[str], vectors: Vectors, query: Vectors, k: int) -> None:
    """Hits of exact search against brute force over `ids`, all that may be hits, in the order of writing.

    No more than rounding lies between the last hit and what is none. Of equal vectors those are hits that were written
    first.
    """
    assert recall(hits, ids, vectors, query, k) == 1
    hit_ids = {hit.product_id for hit in hits}
    last = {vectors[row].tobytes(): row for row, one in enumerate(ids) if one in hit_ids}
    assert all(last.get(vectors[row].tobytes(), row) <= row for row, one in enumerate(ids) if one not in hit_ids)


def recall(hits: Sequence[Hit], ids: Sequence[str], vectors: Vectors, query: Vectors, k: int) -> float:
    """The share of hits that are among the k nearest by brute force in float64, of `ids`, all that may be hits.

    Whatever it is: there are k, or all; scores are the cosines up to rounding; they come by score, then in the order of
    writing.
    """
    cosines = (vectors.astype(np.float64) * unit(query).astype(np.float64)).sum(axis=1)
    place = {product_id: row for row, product_id in enumerate(ids)}
    rows = [place[hit.product_id] for hit in hits]
    scores = np.array([hit.score for hit in hits])
    assert len(set(rows)) == len(hits) == min(k, len(ids))
    assert np.allclose(scores, cosines[rows], rtol=0, atol=ROUNDED)
    assert np.all(np.abs(scores) <= 1)
    assert np.array_equal(np.lexsort((np.array(rows), -scores)), np.arange(len(hits)))
    return float(np.mean(scores >= np.sort(cosines)[-len(hits)] - ROUNDED)) if hits else 1.0


def generation_folder(folder: Path) -> Path:
    """That of a collection's only generation."""
    (generation,) = folder.glob("generation-*")
    return generation


def segment_files(folder: Path) -> set[str]:
    """The names of all files in a generation's folder that may belong to segments."""
    return {
        path.name
        for path in folder.iterdir()
        if path.name.startswith(("rows", "vectors", "words", "index", "reordered"))
    }


def flip_byte(path: Path, place: float = 0.5) -> None:
    """Changes one bit of a file, at a share of its length."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)


def python(script: str, *arguments: object, wrapper: Sequence[str] = ()) -> list[str]:
    """What a process of its own makes of a script."""
    return [*wrapper, sys.executable, "-c", script, *map(str, arguments)]


def run_python(script: str, *arguments: object, wrapper: Sequence[str] = ()) -> str:
    """What a script prints; it has to succeed."""
    command = python(script, *arguments, wrapper=wrapper)
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of more than 50 rows get an approximate index."""
    monkeypatch.setattr(index.choosing, "FLAT_ROWS", 50)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A collection of 20 products p0 to p19, all in one segment."""
    products = [product(f"p{row}", price=float(row)) for row in range(20)]
    Store.create(tmp_path / "index", about(), [(products, random_vectors(20))], upkeep=BY_HAND).close()
    return tmp_path / "index"


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    """The same, open to write."""
    with Store.open(folder, writable=True, upkeep=BY_HAND) as store:
        yield store


@pytest.fixture
def unprivileged() -> list[str]:
    """Runs a command as somebody to whom the permissions of files mean something."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("root may write anywhere, and there is no setpriv to give that up")
    return [setpriv, "--bounding-set=-dac_override,-dac_read_search"]
