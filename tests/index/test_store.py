"""The exact store against brute force, and what it says about damaged folders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.manifest import MANIFEST, Manifest, read_manifest
from index.store import Block, Product, Store, Vectors, product_table, write_store
from item.catalog.listing import Listing, Picture
from item.errors import ConfigError, SpaceError, StoreError

SPACE = "5" * 64


def unit(vectors: np.ndarray) -> Vectors:
    exact = vectors.astype(np.float64)
    return (exact / np.linalg.norm(exact, axis=1, keepdims=True)).astype(np.float32)


def product(row: int) -> Product:
    return Product(
        product_id=f"p{row}",
        title=f"Mug nº {row}",
        category=("Home", "Kitchen", "Mugs")[: row % 4],
        group_id=f"g{row // 2}" if row % 3 else None,
        attributes={"price": row / 4, "in stock": row % 2 == 0, "colour": "grün", "sizes": ["S", "M"]}
        if row % 5
        else {},
        image=f"images/{row}.jpg" if row % 2 else "",
    )


def blocks(vectors: Vectors, size: int) -> Iterator[Block]:
    for start in range(0, len(vectors), size):
        part = vectors[start : start + size]
        yield Block(vectors=part, products=product_table([product(start + row) for row in range(len(part))]))


def write(folder: Path, vectors: Vectors, size: int = 7, space: str = SPACE) -> Manifest:
    return write_store(
        folder,
        blocks(vectors, size),
        space=space,
        model="M",
        engine="torch cpu float32",
        catalog="C",
        vector_width=vectors.shape[1],
    )


def random_vectors(count: int, width: int, seed: int = 0) -> Vectors:
    return unit(np.random.default_rng(seed).normal(size=(count, width)))


def brute_force(vectors: Vectors, query: Vectors, k: int, left_out: set[int]) -> list[tuple[int, float]]:
    """The oracle: every cosine in float64, given with a float32's digits, sorted by score, then by row."""
    direction = unit(query[None])[0].astype(np.float64)
    cosines = [float(np.float32(min(1.0, np.dot(row, direction)))) for row in vectors.astype(np.float64)]
    ranked = sorted((-cosine, row) for row, cosine in enumerate(cosines) if row not in left_out)
    return [(row, -negative) for negative, row in ranked[:k]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "index"
    write(folder, random_vectors(50, 8))
    return folder


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A folder of its own, for a test to damage."""
    write(tmp_path / "index", random_vectors(20, 4))
    return tmp_path / "index"


def test_everything_comes_back(folder: Path) -> None:
    store = Store.open(folder)
    vectors = random_vectors(50, 8)
    assert len(store) == 50
    assert store.manifest.space == SPACE
    for row in range(50):
        assert store.product_at(row) == store.product(f"p{row}") == product(row)
        vector = store.vector(f"p{row}")
        assert vector is not None
        np.testing.assert_array_equal(vector, vectors[row])
    assert store.product("none") is None
    assert store.vector("none") is None
    with pytest.raises(IndexError, match="row 50 of 50"):
        store.product_at(50)


def test_a_vector_handed_out_is_a_copy(folder: Path) -> None:
    store = Store.open(folder)
    vector = store.vector("p0")
    assert vector is not None
    vector[:] = 0
    assert store.search(random_vectors(50, 8)[:1], 1)[0][0].product_id == "p0"


def test_a_product_from_a_listing() -> None:
    picture = Picture(data=b"x", reference="a.png")
    listing = Listing(product_id="a", title="Mug", images=(picture,), attributes={"b": 1.0})
    expected = Product(product_id="a", title="Mug", category=(), group_id=None, attributes={"b": 1.0}, image="a.png")
    assert Product.from_listing(listing) == expected


@st.composite
def searches(draw: st.DrawFn) -> tuple[Vectors, Vectors, int, list[set[int]]]:
    """Few directions, so that ties are common; every other query is among the rows."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    directions = rng.integers(-1, 2, size=(draw(st.integers(1, 6)), draw(st.integers(1, 5))))
    directions[~directions.any(axis=1)] = 1
    vectors = unit(directions[rng.integers(0, len(directions), size=draw(st.integers(1, 60)))])
    queries = rng.normal(size=(draw(st.integers(1, 25)), vectors.shape[1])).astype(np.float32)
    queries[::2] = vectors[rng.integers(0, len(vectors), size=len(queries[::2]))]
    left_out = [set(rng.integers(0, len(vectors), size=draw(st.integers(0, 12))).tolist()) for _ in queries]
    return vectors, queries, draw(st.integers(1, 70)), left_out


@given(searches())
@settings(max_examples=80, deadline=None)
def test_search_equals_brute_force(
    tmp_path_factory: pytest.TempPathFactory, search: tuple[Vectors, Vectors, int, list[set[int]]]
) -> None:
    vectors, queries, k, left_out = search
    folder = tmp_path_factory.mktemp("search")
    write(folder, vectors)
    store = Store.open(folder)
    found = store.search(queries, k, [[f"p{row}" for row in rows] + ["unknown"] for rows in left_out])
    for query, hits, rows in zip(queries, found, left_out, strict=True):
        assert [(hit.row, hit.score) for hit in hits] == brute_force(vectors, query, k, rows)
        assert [hit.product_id for hit in hits] == [f"p{hit.row}" for hit in hits]


def test_a_tie_longer_than_the_first_look_is_in_the_order_of_rows(tmp_path: Path) -> None:
    vectors = np.repeat(unit(np.array([[1.0, 2.0, 3.0], [1.0, -1.0, 0.0]])), [200, 3], axis=0)
    write(tmp_path, vectors)
    store = Store.open(tmp_path)
    (hits,) = store.search(vectors[:1], 5, [{"p0", "p2"}])
    assert [hit.row for hit in hits] == [1, 3, 4, 5, 6]
    assert {hit.score for hit in hits} == {1.0}
    (everything,) = store.search(vectors[:1], 1000)
    assert [hit.row for hit in everything] == list(range(203))


def test_a_score_does_not_depend_on_the_queries_beside_it(folder: Path) -> None:
    store = Store.open(folder)
    queries = random_vectors(64, 8, seed=1)
    assert store.search(queries, 10) == [store.search(query[None], 10)[0] for query in queries]


def test_queries_are_cut_where_their_scores_would_not_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(folder)
    queries = random_vectors(9, 8, seed=1)
    whole = store.search(queries, 3)
    monkeypatch.setattr("index.store.MAX_SCORES", 30)
    assert store.search(queries, 3) == whole


def test_the_length_of_a_query_does_not_matter(folder: Path) -> None:
    store = Store.open(folder)
    queries = random_vectors(3, 8, seed=2)
    assert store.search(queries * 8, 5) == store.search(queries, 5)


def test_threads_may_search_at_once(folder: Path) -> None:
    store = Store.open(folder)
    queries = random_vectors(40, 8, seed=3)
    expected = [store.search(query[None], 5) for query in queries]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda query: store.search(query[None], 5), queries)) == expected


def test_an_empty_store_answers_with_nothing(tmp_path: Path) -> None:
    write(tmp_path, np.empty((0, 4), np.float32))
    store = Store.open(tmp_path)
    assert len(store) == 0
    assert store.search(random_vectors(2, 4), 3) == [[], []]


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (np.ones((2, 7), np.float32), r"shape \(2, 7\).*width 8"),
        (np.ones(8, np.float32), r"shape \(8,\)"),
        (np.stack([np.ones(8), np.zeros(8)]).astype(np.float32), "query 1: its length is 0.0"),
        (np.full((1, 8), np.nan, np.float32), "query 0: its length is nan"),
    ],
)
def test_queries_of_no_use_are_refused(folder: Path, queries: Vectors, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        Store.open(folder).search(queries, 3)


def test_search_checks_its_arguments(folder: Path) -> None:
    store = Store.open(folder)
    with pytest.raises(ConfigError, match="k: 0"):
        store.search(random_vectors(1, 8), 0)
    with pytest.raises(ConfigError, match="leave_out: 2 collections for 1 queries"):
        store.search(random_vectors(1, 8), 1, [set(), set()])


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no such index folder.*index\.build"):
        Store.open(tmp_path / "none")
    with pytest.raises(StoreError, match="never finished"):
        Store.open(tmp_path)


def test_a_damaged_manifest(damaged: Path) -> None:
    (damaged / MANIFEST).write_text("{")
    with pytest.raises(StoreError, match=r"manifest\.json: cannot be read"):
        Store.open(damaged)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 2, this program reads version 1"),
        ({"count": "many"}, "count: "),
        ({"files": {}}, r"0 of them end in '\.faiss'"),
        ({"count": 19}, "20 vectors, but the manifest says 19"),
        ({"vector_width": 5}, "vectors of width 4, but the manifest says 5"),
    ],
)
def test_a_manifest_that_does_not_fit(damaged: Path, changes: dict[str, object], message: str) -> None:
    path = damaged / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(StoreError, match=message):
        Store.open(damaged)


@pytest.mark.parametrize("suffix", [".faiss", ".parquet"])
def test_a_damaged_file_is_named(damaged: Path, suffix: str) -> None:
    path = damaged / read_manifest(damaged).file(suffix)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=f"{path.name}: damaged"):
        Store.open(damaged)
    path.write_bytes(content[:-1])
    with pytest.raises(StoreError, match=f"{path.name}: damaged"):
        Store.open(damaged)
    path.unlink()
    with pytest.raises(StoreError, match=f"{path.name}: cannot be read"):
        Store.open(damaged)


def test_product_ids_must_be_unique(tmp_path: Path) -> None:
    same = Block(vectors=random_vectors(2, 4), products=product_table([product(1), product(1)]))
    write_store(tmp_path, iter([same]), space=SPACE, model="M", engine="E", catalog="C", vector_width=4)
    with pytest.raises(StoreError, match="1 product ids appear twice"):
        Store.open(tmp_path)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (random_vectors(3, 5), r"shape \(3, 5\) from row 20, expected \(3, 4\)"),
        (random_vectors(2, 4), r"shape \(2, 4\) from row 20"),
        (np.ones((3, 4), np.float32), "row 20: a vector of length 2.0"),
        (np.full((3, 4), np.nan, np.float32), "row 20: a vector of length nan"),
    ],
)
def test_a_block_of_no_use_leaves_the_index_as_it_was(tmp_path: Path, vectors: Vectors, message: str) -> None:
    good = random_vectors(20, 4)
    before = write(tmp_path, good)
    bad = Block(vectors=vectors, products=product_table([product(20 + row) for row in range(3)]))
    mixed = iter([*blocks(good, 20), bad])
    with pytest.raises(StoreError, match=message):
        write_store(tmp_path, mixed, space=SPACE, model="M", engine="E", catalog="C", vector_width=4)
    assert Store.open(tmp_path).manifest == before


def test_replacing_leaves_only_the_files_of_the_new_index(tmp_path: Path) -> None:
    old = write(tmp_path, random_vectors(20, 4))
    (tmp_path / "vectors-000000000000.faiss").write_bytes(b"of a writer that died")
    new = write(tmp_path, random_vectors(30, 4))
    assert not old.files.keys() & new.files.keys()
    assert {path.name for path in tmp_path.iterdir()} == {MANIFEST, *new.files}
    assert len(Store.open(tmp_path)) == 30


def test_the_same_rows_give_the_same_files(tmp_path: Path) -> None:
    first = write(tmp_path / "a", random_vectors(20, 4))
    assert first.files == write(tmp_path / "b", random_vectors(20, 4)).files
    assert first.files != write(tmp_path / "c", random_vectors(20, 4, seed=1)).files


def test_a_reader_meets_the_old_index_or_the_new_one(tmp_path: Path) -> None:
    """Readers open the folder again and again while it is being replaced: none fails or sees a mixture."""
    vectors = {space: random_vectors(40 + seed, 4, seed) for seed, space in enumerate(("a" * 64, "b" * 64))}
    write(tmp_path, vectors["a" * 64], space="a" * 64)
    stop = False

    def read() -> set[str]:
        seen = set()
        while not stop:
            store = Store.open(tmp_path)
            seen.add(store.manifest.space)
            expected = vectors[store.manifest.space]
            assert len(store) == len(expected)
            np.testing.assert_array_equal(store.vector("p3"), expected[3])
        return seen

    with ThreadPoolExecutor(2) as threads:
        readers = [threads.submit(read) for _ in range(2)]
        try:
            for turn in range(40):
                space = "ab"[turn % 2] * 64
                write(tmp_path, vectors[space], space=space)
        finally:
            stop = True
        assert set.union(*(reader.result() for reader in readers)) == set(vectors)
