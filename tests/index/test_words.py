"""Search by words against BM25 as FTS5 documents it, in float64."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import index.words
from index.files import digest
from index.manifest import Manifest, read_manifest, write_manifest
from index.product import Product
from index.store import Store
from index.words import MAX_WORDS, WEIGHTS, FreshWords, Words, WordsWriter, phrases, searched_text
from item.errors import StoreError
from tests.index.conftest import BY_HAND, about, flip_byte, generation_folder, product, random_vectors

K1, B = 1.2, 0.75
EITHER = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def tokens(text: str) -> list[str]:
    """Of ASCII, as unicode61 does."""
    return re.findall(r"[a-z0-9]+", text.lower())


def occurrences(phrase: Sequence[str], words: Sequence[str]) -> int:
    return sum(list(words[at : at + len(phrase)]) == list(phrase) for at in range(len(words)))


def bm25(products: Sequence[Product], text: str) -> dict[int, float]:
    """The score of each row that has a word: https://www.sqlite.org/fts5.html#the_bm25_function, its sign turned."""
    rows = [[tokens(column) for column in searched_text(one)] for one in products]
    lengths = [sum(map(len, columns)) for columns in rows]
    mean = sum(lengths) / len(rows)
    distinct = dict.fromkeys(word for word in text.lower().split() if tokens(word))
    scores: dict[int, float] = {}
    for phrase in map(tokens, distinct):
        having = [row for row, columns in enumerate(rows) if any(occurrences(phrase, one) for one in columns)]
        idf = max(math.log((len(rows) - len(having) + 0.5) / (len(having) + 0.5)), 1e-6)
        for row in having:
            f = sum(weight * occurrences(phrase, c) for weight, c in zip(WEIGHTS.values(), rows[row], strict=True))
            part = idf * f * (K1 + 1) / (f + K1 * (1 - B + B * lengths[row] / mean))
            scores[row] = scores.get(row, 0) + part
    return scores


def write(path: Path, products: Sequence[Product]) -> Words:
    with WordsWriter(path) as writer:
        for start in range(0, len(products), 3):
            writer.append(products[start : start + 3])
        writer.finish()
    return Words(path, len(products))


def fresh(products: Sequence[Product]) -> FreshWords:
    words = FreshWords()
    for row, one in enumerate(products):
        words.add(row, one)
    return words


def check(found: tuple[np.ndarray, np.ndarray], expected: dict[int, float], count: int) -> None:
    """The best `count` of the expected rows, by score, then by row."""
    rows, scores = found[0].tolist(), found[1].tolist()
    assert len(rows) == len(set(rows)) == min(count, len(expected))
    assert scores == pytest.approx([expected[row] for row in rows], rel=1e-9)
    assert scores == pytest.approx(sorted(expected.values(), reverse=True)[:count], rel=1e-9)
    assert [*zip((-score for score in scores), rows, strict=True)] == sorted(
        zip((-s for s in scores), rows, strict=True)
    )


VOCABULARY = ["sony", "WH-1000XM4", "1000XM4", "mug", "Mug", "red", "usb-c", "a", "x2"]
TEXTS = st.lists(st.sampled_from(VOCABULARY), max_size=6).map(" ".join)
PRODUCTS = st.builds(
    Product,
    product_id=st.sampled_from(["p-1", "sony", "77"]),
    title=TEXTS,
    description=TEXTS,
    attributes=st.dictionaries(
        st.sampled_from(["brand", "size", "colours"]),
        st.one_of(TEXTS, st.lists(TEXTS, max_size=2), st.booleans(), st.floats(0, 9)),
    ),
)


@EITHER
@given(st.lists(PRODUCTS, min_size=1, max_size=8), TEXTS, st.integers(1, 9), st.data())
def test_scores_are_bm25(tmp_path: Path, products: list[Product], text: str, count: int, data: st.DataObject) -> None:
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=len(products), max_size=len(products))))
    expected = bm25(products, text)
    for words in (write(tmp_path / "words.sqlite", products), fresh(products)):
        check(words.search(text, count), expected, count)
        passing = {row: score for row, score in expected.items() if allowed[row]}
        check(words.search(text, count, allowed), passing, count)


@EITHER
@given(
    st.lists(PRODUCTS, min_size=1, max_size=12),
    st.lists(st.sampled_from(VOCABULARY), min_size=1, unique_by=str.lower).map(" ".join),
    st.integers(1, 12),
    st.integers(1, 6),
)
def test_common_words_add_to_the_scores_of_rows_with_rarer_ones(
    tmp_path: Path, products: list[Product], text: str, count: int, max_rows: int
) -> None:
    """As in a large segment: no score is above the whole one, and as many rows come back as have the rarest word."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index.words, "COMMON_ROWS", 0)
        patch.setattr(index.words, "MAX_ROWS", max_rows)
        words = write(tmp_path / "words.sqlite", products)
        rows, scores = words.search(text, count)
    expected = bm25(products, text)
    having = {word: set(bm25(products, word)) for word in text.lower().split()}
    rarest = min(map(len, having.values()))
    if all(map(having.get, having)) and rarest <= max_rows:
        assert len(rows) >= min(count, min(rarest, max_rows))
    if sum(map(len, having.values())) <= max_rows:
        check((rows, scores), expected, count)
    assert set(rows.tolist()) <= set(expected)
    assert all(score <= expected[row] * (1 + 1e-9) for row, score in zip(rows.tolist(), scores.tolist(), strict=True))
    assert np.array_equal(np.lexsort((rows, -scores)), np.arange(len(rows)))


def test_a_rare_word_leads_and_a_common_one_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third row is a black one; three are of nike, of which two are black, the last the shorter."""
    titles = [f"thing {'black' if row % 3 == 1 else 'white'} number" for row in range(40)]
    titles[4], titles[7], titles[10] = "nike thing white", "nike thing number black", "nike black thing"
    products = [Product(product_id=f"p{row}", title=title) for row, title in enumerate(titles)]
    monkeypatch.setattr(index.words, "COMMON_ROWS", 5)
    monkeypatch.setattr(index.words, "MAX_ROWS", 10)
    words = write(tmp_path / "words.sqlite", products)
    expected = bm25(products, "black nike")
    rows, scores = words.search("black nike", 3)
    assert rows.tolist() == [10, 7, 4]
    assert scores == pytest.approx([expected[row] for row in rows.tolist()], rel=1e-9)
    rows, scores = words.search("black nike", 8)  # more than have the rare word: filled with black ones
    assert rows.tolist() == [10, 7, 4, 1, 13, 16, 19, 22]
    assert scores == pytest.approx([expected[row] for row in rows.tolist()], rel=1e-9)
    late = np.arange(40) >= 30
    assert words.search("black nike", 8, late)[0].tolist() == [31, 34, 37]  # a filter does not starve


# What is typed


@settings(max_examples=300)
@given(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.lists(st.sampled_from(['"', "AND", "NOT", "NEAR(", "*", "^", ":", "title:", "-", "\0", "(", "}", "mug"])).map(
        " ".join
    )
)
def test_whatever_is_typed_is_searched(text: str) -> None:
    found = SOME.search(text, 5)
    assert set(found[0].tolist()) <= {0, 1}
    if not any(map(str.isalnum, text)):
        assert phrases(text) == []
        assert len(found[0]) == 0


SOME = fresh([Product(product_id="p", title="Mug AND saucer"), Product(product_id="q", title="a near b")])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("wh-1000xm4", [0]),
        ("WH 1000xm4", [0, 1]),
        ('"WH-1000XM4"', [0]),
        ("cafe", [2]),
        ("CAFÉ", [2]),
        ("1000XM", []),
        ("77-1", [3]),
        ("teal", [2]),
        ("!? -", []),
        ("", []),
    ],
)
def test_what_is_found(tmp_path: Path, text: str, found: list[int]) -> None:
    products = [
        Product(product_id="a", title="Sony WH-1000XM4 headphones"),
        Product(product_id="b", title="Case", description="goes with 1000XM4 by Sony"),
        Product(product_id="c", title="Café sign", attributes={"colours": ["red", "Teal"], "size": 4.0}),
        Product(product_id="77-1"),
    ]
    for words in (write(tmp_path / "words.sqlite", products), fresh(products)):
        assert words.search(text, 4)[0].tolist() == found


def test_words_are_searched_once_and_only_so_many() -> None:
    assert phrases('Mug mug 5"x7" ?') == ['"Mug"', '"5""x7"""']
    assert len(phrases(" ".join(f"w{i}" for i in range(2 * MAX_WORDS)))) == MAX_WORDS


# Fresh rows


def test_a_changed_product_is_found_by_its_new_words_alone() -> None:
    words = fresh([Product(product_id="a", attributes={"brand": "Sony"}), Product(product_id="b")])
    assert words.search("sony", 2)[0].tolist() == [0]
    words.add(0, Product(product_id="a", attributes={"brand": "Bose"}))
    assert words.search("sony", 2)[0].tolist() == []
    assert words.search("bose", 2)[0].tolist() == [0]


def test_rows_that_came_after_the_mask_do_not_come_back() -> None:
    words = fresh([product("1"), product("2"), product("3")])
    assert words.search("mug", 3)[0].tolist() == [0, 1, 2]
    assert words.search("mug", 3, np.ones(2, bool))[0].tolist() == [0, 1]


@pytest.mark.parametrize("kind", ["segment", "fresh"])
def test_threads_find_the_same(tmp_path: Path, kind: str) -> None:
    products = [Product(product_id=f"p{row}", title=f"mug n{row % 7} x{row % 3}") for row in range(300)]
    words = write(tmp_path / "words.sqlite", products) if kind == "segment" else fresh(products)
    texts = [f"n{row % 7} x{row % 3} mug" for row in range(80)]
    masks = [np.arange(300) % 5 == row % 5 for row in range(80)]
    alone = [words.search(text, 20, mask) for text, mask in zip(texts, masks, strict=True)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda one: words.search(one[0], 20, one[1]), zip(texts, masks, strict=True)))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_fresh_rows_are_added_while_others_search() -> None:
    words = fresh([product("0")])

    def add() -> None:
        for row in range(1, 300):
            words.add(row, product(str(row)))

    thread = threading.Thread(target=add)
    thread.start()
    counts = [len(words.search("mug", 1000)[0]) for _ in range(30)]
    thread.join()
    assert counts == sorted(counts)
    assert len(words.search("mug", 1000)[0]) == 300


# Files


def test_a_file_stays_as_it_was_and_is_searched_when_its_name_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "words.sqlite"
    words = write(path, [product("1"), product("2")])
    before = digest(path)
    words.search("mug", 2)
    assert digest(path) == before
    assert [one.name for one in tmp_path.iterdir()] == ["words.sqlite"]
    path.unlink()
    with ThreadPoolExecutor(8) as pool:
        assert all(len(one[0]) == 2 for one in pool.map(lambda _: words.search("mug", 2), range(40)))
    assert not list(tmp_path.iterdir())


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "words.sqlite"
    with pytest.raises(StoreError, match=r"words\.sqlite: cannot be read"):
        Words(path, 1)
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError, match=r"words\.sqlite: cannot be read"):
        Words(path, 1)
    write(path, [product("1")])
    with pytest.raises(StoreError, match="holds rows up to 0, its segment has 2"):
        Words(path, 2)


def test_a_segment_has_its_words(folder: Path) -> None:
    with Store.open(folder) as store:
        (segment,) = store._memory.segments
        assert segment.words is not None
        rows, _ = segment.words.search("p7", 5)
        assert segment.ids[rows].tolist() == ["p7"]
    flip_byte(next(generation_folder(folder).glob("words-*.sqlite")))
    with pytest.raises(StoreError, match=r"words-.*\.sqlite: damaged"):
        Store.open(folder)


def test_a_store_of_an_earlier_version_opens_and_gets_words(folder: Path) -> None:
    generation = generation_folder(folder)
    (info,) = read_manifest(generation).segments
    (generation / info.file("words")).unlink()
    del info.files[info.file("words")]
    write_manifest(generation, Manifest(segments=(info,)))
    with Store.open(folder) as reader, Store.open(folder, writable=True, upkeep=BY_HAND) as store:
        for one in (reader, store):
            assert len(one) == 20
            assert one._memory.segments[0].words is None
        found = reader.search(random_vectors(1), 5)
        assert store.maintain()
        assert not store.maintain()
        assert store._memory.segments[0].words is not None
        assert reader.search(random_vectors(1), 5) == found
        assert reader._memory.segments[0].words is not None


def test_the_words_of_a_full_disk_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that may not grow raises what a full disk does."""
    small = "max_page_count = 3"
    monkeypatch.setattr(index.words, "WRITE_PRAGMAS", (*index.words.WRITE_PRAGMAS, small))
    with Store.create(tmp_path / "index", about(), upkeep=BY_HAND) as store:
        store.upsert([product(f"p{row}") for row in range(200)], random_vectors(200))
        with pytest.raises(StoreError, match=r"segments cannot be written .*words.sqlite.*full"):
            store.compact()
        assert len(store.search(random_vectors(1), 5)[0].hits) == 5
        assert not list(generation_folder(tmp_path / "index").glob("words*"))
