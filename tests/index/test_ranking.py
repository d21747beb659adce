"""Rankings against slow ones over all products: least score, groups, words beside vectors, diversity, sort, facets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import index.choosing
import index.search
from index.filters import Equal, Filter
from index.planner import Plan
from index.product import Product
from index.ranking import Facet, Ranking, Sort, diverse_places
from index.store import Store
from item.catalog.listing import AttributeValue
from item.errors import ConfigError
from tests.index.conftest import APART, ROUNDED, about, random_vectors, unit

COUNT, FRESH = 300, 40
VECTORS = random_vectors(COUNT, seed=1)
VECTORS[50:60] = VECTORS[40:50]  # ties
BRANDS: Sequence[AttributeValue | None] = ("acme", "zeta", None, 7.0, True, ["acme", "koko"])


def made(row: int) -> Product:
    brand = BRANDS[row % len(BRANDS)]
    attributes: dict[str, AttributeValue] = {"price": float(row * 37 % 101)} if row % 5 else {}
    return Product(
        product_id=f"p{row}",
        title=f"Mug {row}",
        group_id=None if row % 4 == 0 else f"g{row % 13}",
        category=("Home", f"shelf {row % 3}", f"board {row % 7}")[: row % 4],
        attributes=attributes | ({} if brand is None else {"brand": brand}),
    )


PRODUCTS = [made(row) for row in range(COUNT)]
DEAD = {"p7", "p41", "p290"}


@pytest.fixture(scope="module", params=[pytest.param(True, id="flat"), pytest.param(False, id="graph")])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Two segments, fresh rows, and some that were deleted. With graphs rows are in another order than keys; what is
    found is compared with slow rankings, so that they are not searched."""
    folder = tmp_path_factory.mktemp("ranking") / "c"
    with pytest.MonkeyPatch.context() as patch, Store.create(folder, about(), upkeep=APART) as store:
        if not request.param:
            patch.setattr(index.choosing, "FLAT_ROWS", 50)
            patch.setattr(index.search, "choose", lambda work, depths, k: Plan.EXACT)
        for start, end in ((0, 100), (100, COUNT - FRESH), (COUNT - FRESH, COUNT)):
            store.upsert(PRODUCTS[start:end], VECTORS[start:end])
            if end < COUNT:
                assert store.maintain()
        store.delete(sorted(DEAD))
        yield store


def slow_window(query: np.ndarray, ranking: Ranking, leave_out: set[str], condition: Filter | None) -> list[int]:
    """All rows that may be hits, the best first."""
    cosines = VECTORS.astype(np.float64) @ unit(query).astype(np.float64)
    seen: set[str] = set()
    rows = []
    for row in sorted(range(COUNT), key=lambda row: (-cosines[row], row)):
        product = PRODUCTS[row]
        passes = condition is None or product.attributes.get("brand") == "acme"
        if product.product_id in DEAD | leave_out or not passes or cosines[row] < ranking.min_score:
            continue
        if ranking.collapse_groups and product.group_id is not None:
            if product.group_id in seen:
                continue
            seen.add(product.group_id)
        rows.append(row)
    return rows


def ids(rows: Sequence[int]) -> list[str]:
    return [f"p{row}" for row in rows]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_hits=st.integers(1, 320),
    min_score=st.sampled_from([-1.0, -0.1, 0.3, 0.9]),
    collapse=st.booleans(),
    leave_out=st.sets(st.integers(0, COUNT - 1).map(lambda row: f"p{row}"), max_size=9),
    condition=st.sampled_from([None, Equal("brand", "acme")]),
)
def test_a_window_is_that_of_a_slow_search(
    store: Store, seed: int, num_hits: int, min_score: float, collapse: bool, leave_out: set[str], condition: Filter
) -> None:
    if condition is not None:
        leave_out = leave_out | {one.product_id for one in PRODUCTS if one.attributes.get("brand") == ["acme", "koko"]}
    query = np.random.default_rng(seed).normal(size=8).astype(np.float32)
    ranking = Ranking(min_score=min_score, collapse_groups=collapse)
    ranked = store.rank(query, num_hits, ranking, leave_out, condition)
    expected = slow_window(query, ranking, leave_out, condition)[:num_hits]
    assert ranked.found.product_ids == ids(expected)
    np.testing.assert_allclose(ranked.found.scores, VECTORS[expected] @ unit(query), atol=ROUNDED)
    if collapse:
        sizes = Counter(one.group_id for one in PRODUCTS if one.product_id not in DEAD)
        if condition is None:
            groups = [PRODUCTS[row].group_id for row in expected]
            assert ranked.group_sizes == [1 if group is None else sizes[group] for group in groups]
    else:
        assert ranked.group_sizes == [1] * len(expected)


def test_groups_are_found_behind_many_offers_of_one(tmp_path: Path) -> None:
    """However many products of one group are closest, k groups come back."""
    vectors = unit(np.array([1.0, *[0.0] * 7]) + 0.01 * np.random.default_rng(0).normal(size=(600, 8)))
    vectors[-9:] = random_vectors(9)
    products = [Product(product_id=f"p{row}", group_id="same" if row < 591 else f"g{row}") for row in range(600)]
    with Store.create(tmp_path / "c", about(), [(products, vectors)]) as store:
        ranked = store.rank(vectors[0], 10, Ranking(collapse_groups=True))
    assert len(ranked.found.product_ids) == 10
    assert ranked.group_sizes == [591, *[1] * 9]


@pytest.mark.parametrize("descending", [False, True])
def test_hits_of_the_window_come_by_an_attribute(store: Store, descending: bool) -> None:
    query = VECTORS[3]
    ranking = Ranking(sort=Sort(attribute="price", descending=descending), window=50)
    window = slow_window(query, ranking, set(), None)[:50]
    sign = -1 if descending else 1

    def key(row: int) -> tuple[bool, float]:
        price = PRODUCTS[row].attributes.get("price")
        return price is None, 0 if price is None else sign * float(price)  # type: ignore[arg-type]

    expected = sorted(window, key=key)
    assert expected != window
    assert store.rank(query, 12, ranking).found.product_ids == ids(expected[:12])
    assert store.rank(query, 60, ranking).found.product_ids[:50] != ids(expected)  # 60 hits make a wider window


def test_numbers_come_before_texts_and_lists_last(store: Store) -> None:
    found = store.rank(VECTORS[3], 60, Ranking(sort=Sort(attribute="brand"), window=60)).found.product_ids
    kinds = [type(PRODUCTS[int(one[1:])].attributes.get("brand")) for one in found]
    order = [float, str, bool]
    ranks = [order.index(kind) if kind in order else 3 for kind in kinds]
    assert ranks == sorted(ranks)
    assert set(ranks) == {0, 1, 2, 3}


def test_facets_count_the_window(store: Store) -> None:
    facets = (
        Facet(attribute="brand", limit=10),
        Facet(category_level=2, limit=2),
        Facet(category_level=1, limit=5),
        Facet(attribute="x", limit=1),
    )
    ranking = Ranking(facets=facets, window=80, min_score=-0.2)
    window = slow_window(VECTORS[9], ranking, set(), None)[:80]
    brands, levels = Counter[object](), Counter[tuple[str, ...]]()
    for row in window:
        brand = PRODUCTS[row].attributes.get("brand")
        for value in brand if isinstance(brand, list) else [brand]:
            if value is not None:
                brands[type(value), value] += 1
        if PRODUCTS[row].category:
            levels[PRODUCTS[row].category[:2]] += 1
    brand_counts, level_counts, tops, unknown = store.rank(VECTORS[9], 5, ranking).facets
    assert {(type(value), value): count for value, count in brand_counts} == brands
    assert level_counts == sorted(levels.items(), key=lambda pair: (-pair[1], pair[0]))[:2]
    assert tops == [(("Home",), levels.total())]
    assert unknown == []


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), diversity=st.floats(0, 1), num_hits=st.integers(1, 30))
def test_diverse_hits_are_those_of_the_papers_formula(seed: int, diversity: float, num_hits: int) -> None:
    """Carbonell and Goldstein (1998): argmax over what is left of lambda Sim1 - (1 - lambda) max Sim2."""
    rng = np.random.default_rng(seed)
    vectors = unit(rng.normal(size=(20, 6)))
    scores = (vectors @ unit(rng.normal(size=6))).astype(np.float32)
    order = np.argsort(-scores)
    vectors, scores = vectors[order], scores[order]
    exact, relevance = vectors.astype(np.float64), scores.astype(np.float64)
    chosen = diverse_places(scores, vectors, diversity, num_hits).tolist()
    assert len(set(chosen)) == len(chosen) == min(num_hits, 20)
    for place, one in enumerate(chosen):
        left = [row for row in range(20) if row not in chosen[:place]]
        gain = {
            row: (1 - diversity) * relevance[row]
            - diversity * max((exact[row] @ exact[hit] for hit in chosen[:place]), default=0.0)
            for row in left
        }
        assert gain[one] >= max(gain.values()) - 1e-5


def test_more_diversity_makes_hits_differ_more(store: Store) -> None:
    def likeness(diversity: float) -> float:
        found = store.rank(VECTORS[3], 10, Ranking(diversity=diversity)).found.product_ids
        vectors = VECTORS[[int(one[1:]) for one in found]]
        return float((vectors @ vectors.T).mean())

    assert likeness(0.0) > likeness(0.4) > likeness(0.9)


def test_words_and_vectors_are_fused_by_reciprocal_rank(store: Store) -> None:
    query, words, weight = VECTORS[3], "123", 0.6
    near = store.rank(query, 100, Ranking()).found.product_ids
    letters = store.rank(query, 1, Ranking(words=words, lexical_weight=1.0)).found.product_ids
    assert letters[0] == "p123"
    fused = store.rank(query, 20, Ranking(words=words, lexical_weight=weight)).found
    gains = {
        one: sum(
            share / (60 + ranks.index(one) + 1)
            for share, ranks in ((1 - weight, near), (weight, letters))
            if one in ranks
        )
        for one in fused.product_ids
    }
    assert list(gains.values()) == sorted(gains.values(), reverse=True)
    assert fused.product_ids[0] == "p123"
    at = fused.product_ids.index("p123")
    assert fused.scores[at] == pytest.approx(float(VECTORS[123] @ query), abs=ROUNDED)
    only = store.rank(query, 5, Ranking(words="123", lexical_weight=1.0, min_score=0.999)).found
    assert "p123" not in only.product_ids


def test_what_no_ranking_can_be(store: Store) -> None:
    for wrong, message in (
        (lambda: Ranking(lexical_weight=1.5), "lexical_weight: 1.5"),
        (lambda: Ranking(diversity=-0.1), "diversity: -0.1"),
        (lambda: Ranking(diversity=0.5, sort=Sort(attribute="a")), "diversity: beside sort"),
        (lambda: Ranking(diversity=0.5, lexical_weight=0.5), "diversity: beside lexical_weight"),
        (lambda: Ranking(min_score=float("nan")), "min_score"),
        (lambda: Ranking(window=0), "window: 0"),
        (lambda: Ranking(facets=(Facet(attribute="a", limit=1),) * 33), "facets: 33"),
        (lambda: Sort(attribute=""), r"sort\.attribute"),
        (lambda: Facet(limit=1), "either"),
        (lambda: Facet(attribute="a", category_level=1, limit=1), "either"),
        (lambda: Facet(category_level=0, limit=1), "category_level: 0"),
        (lambda: Facet(attribute="a", limit=0), "limit: 0"),
        (lambda: store.rank(VECTORS[0], 0, Ranking()), "num_hits: 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            wrong()


def test_words_of_changed_attributes_are_found_at_once(tmp_path: Path) -> None:
    """In a segment and among fresh rows; what was there before is found no more, and prices change nothing."""
    vectors = random_vectors(40)
    products = [Product(product_id=f"p{row}", title="mug", attributes={"brand": "acme"}) for row in range(40)]

    def found(store: Store, words: str, condition: Filter | None = None) -> set[str]:
        ranking = Ranking(words=words, lexical_weight=1.0)
        ids = store.rank(vectors[0], 3, ranking, condition=condition).found.product_ids
        return {one for one in ids if words in store.product(one).attributes.values()}  # type: ignore[union-attr]

    with Store.create(tmp_path / "c", about(), [(products[:30], vectors[:30])], upkeep=APART) as store:
        store.upsert(products[30:], vectors[30:])
        for name in ("p25", "p35"):
            store.update([Product(product_id=name, title="mug", attributes={"brand": "zyx", "price": 2.0})])
        assert found(store, "zyx") == {"p25", "p35"}
        assert found(store, "zyx", Equal("brand", "acme")) == set()
        store.update([Product(product_id="p25", title="mug", attributes={"brand": "koko"})])
        assert found(store, "zyx") == {"p35"}
        assert found(store, "koko") == {"p25"}
        store.delete(["p35"])
        assert found(store, "zyx") == set()
        with Store.open(tmp_path / "c") as reader:
            assert found(reader, "koko") == {"p25"}
        store.compact()
        assert found(store, "koko") == {"p25"}
