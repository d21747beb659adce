"""Search against brute force: exact where it is exact, near where it is not, and k hits always."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from itertools import product as product_of
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import index.choosing
import index.search
from index.choosing import Choice
from index.exact import ROUNDING, SPARE, Vectors
from index.filters import Equal, Filter, In, Not, Range
from index.manifest import Depth
from index.planner import Plan, Work
from index.search import Found
from index.store import Store
from item.errors import ConfigError, SpaceError
from tests.index.conftest import (
    APART,
    BY_HAND,
    ROUNDED,
    about,
    check_hits,
    product,
    random_vectors,
    recall,
    unit,
)

Mask = npt.NDArray[np.bool_]


def fill(folder: Path, vectors: Vectors, parts: Sequence[int] = (), fresh: int = 0) -> Store:
    """A store of products p0, p1, ..., the last `fresh` of them in no segment, a segment up to each row of `parts`."""
    products = [product(f"p{row}", row=float(row), odd=bool(row % 2)) for row in range(len(vectors))]
    store = Store.create(folder, about(vectors.shape[1]), upkeep=APART)
    starts = sorted({0, *parts, len(vectors) - fresh, len(vectors)})
    for start, end in pairwise(starts):
        store.upsert(products[start:end], vectors[start:end])
        if end <= len(vectors) - fresh:
            assert store.maintain()
    return store


def allowed_ones(vectors: Vectors, allowed: Mask) -> tuple[list[str], Vectors]:
    """The ids and vectors of allowed rows."""
    rows = np.flatnonzero(allowed)
    return [f"p{row}" for row in rows], vectors[rows]


# Exact


@st.composite
def cases(draw: st.DrawFn) -> tuple[Vectors, Vectors, int, list[int], int, list[int], list[set[int]]]:
    """Vectors of few directions, so that ties are long and common, in some segments; every other query is one."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    directions = rng.integers(-1, 2, size=(draw(st.integers(1, 6)), draw(st.integers(1, 5))))
    directions[~directions.any(axis=1)] = 1
    vectors = unit(directions[rng.integers(0, len(directions), size=draw(st.integers(1, 80)))])
    queries = rng.normal(size=(draw(st.integers(1, 9)), vectors.shape[1])).astype(np.float32)
    queries[::2] = vectors[rng.integers(0, len(vectors), size=len(queries[::2]))]
    parts = draw(st.lists(st.integers(0, len(vectors)), max_size=3))
    dead = draw(st.lists(st.integers(0, len(vectors) - 1), max_size=12))
    left_out = [set(rng.integers(0, len(vectors), size=draw(st.integers(0, 12))).tolist()) for _ in queries]
    fresh = draw(st.integers(0, len(vectors)))
    parts = [one for one in parts if one <= len(vectors) - fresh]
    return vectors, queries, draw(st.integers(1, 90)), parts, fresh, dead, left_out


@given(cases())
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_exact_search_equals_brute_force(
    tmp_path_factory: pytest.TempPathFactory,
    case: tuple[Vectors, Vectors, int, list[int], int, list[int], list[set[int]]],
) -> None:
    vectors, queries, k, parts, fresh, dead, left_out = case
    n = len(vectors)
    alive = np.ones(n, np.bool_)
    alive[dead] = False
    with fill(tmp_path_factory.mktemp("search") / "index", vectors, parts, fresh) as store:
        store.delete([f"p{row}" for row in dead])
        wanted = [{f"p{row}" for row in rows} | {"unknown"} for rows in left_out]
        filters = [
            (None, Equal("odd", True), Range("row", at_least=n / 3))[number % 3] for number in range(len(queries))
        ]
        passes = [np.ones(n, np.bool_), np.arange(n) % 2 == 1, np.arange(n) >= n / 3]
        answers = store.search(queries, k, wanted, filters)
    for number, (query, found) in enumerate(zip(queries, answers, strict=True)):
        allowed = alive & passes[number % 3]
        allowed[list(left_out[number])] = False
        check_hits(found.hits, *allowed_ones(vectors, allowed), query, k)
        assert found.plan is Plan.EXACT


@pytest.mark.parametrize("parts", [(), (70,), (60, 130)])
@pytest.mark.parametrize("seed", range(3))
def test_ties_longer_than_the_first_look_are_in_the_order_of_writing(
    tmp_path: Path, parts: Sequence[int], seed: int
) -> None:
    """Half of 200 products have the same vector, as the variants of a product do, here and there among others."""
    vectors = random_vectors(200, 3, seed)
    vectors[np.random.default_rng(seed).permutation(200)[:100]] = unit(np.array([1.0, 2.0, 3.0]))
    query = unit(np.array([[1.0, 2.0, 3.0]]))
    with fill(tmp_path / "index", vectors, parts, fresh=20) as store:
        for k in (1, 5, 50, 99, 100, 150, 1000):
            (found,) = store.search(query, k, [{"p0", "p2"}])
            allowed = ~np.isin(np.arange(200), [0, 2])
            check_hits(found.hits, *allowed_ones(vectors, allowed), query[0], k)


def test_cosines_closer_than_those_of_matrix_products_are_in_their_order(tmp_path: Path) -> None:
    """300 vectors, of which many have cosines with the query that a matrix product could exchange."""
    rng = np.random.default_rng(0)
    query = unit(rng.normal(size=(1, 32)))
    vectors = unit(query + 1e-3 * rng.normal(size=(300, 32)))
    cosines = np.sort(vectors.astype(np.float64) @ query[0].astype(np.float64))
    assert 3 * ROUNDED < cosines[-1] - cosines[-100] < 2 * ROUNDING
    with fill(tmp_path / "index", vectors, parts=(100,), fresh=50) as store:
        for k in (1, 3, 10, 30, 100):
            (found,) = store.search(query, k)
            check_hits(found.hits, *allowed_ones(vectors, np.ones(300, np.bool_)), query[0], k)
            assert found.hits == store.search(query, 300)[0].hits[:k]


def test_hits_alone_are_those_in_a_batch(tmp_path: Path) -> None:
    """Bit for bit: ids, scores and keys, with segments, fresh rows, dead ones and filters."""
    vectors = random_vectors(400, 24)
    queries = random_vectors(65, 24, seed=1)
    with fill(tmp_path / "index", vectors, parts=(150, 300), fresh=50) as store:
        store.delete([f"p{row}" for row in range(0, 400, 7)])
        for condition in (None, Equal("odd", True)):
            together = store.search(queries, 10, filters=[condition] * len(queries))
            assert together == [store.search(query[None], 10, filters=[condition])[0] for query in queries]
            assert len({hit.product_id for found in together for hit in found.hits}) > 100
        mixed = store.search(queries, 10, filters=[None, Equal("odd", True)] * 32 + [None])
        assert [found.hits for found in mixed[1::2]] == [found.hits for found in together[1::2]]


def test_queries_are_cut_where_their_scores_would_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = random_vectors(9, 8, seed=1)
    with fill(tmp_path / "index", random_vectors(50), fresh=10) as store:
        whole = store.search(queries, 3)
        monkeypatch.setattr("index.exact.MAX_SCORES", 30)
        assert store.search(queries, 3) == whole


def test_a_filter_is_cut_where_its_rows_would_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = random_vectors(9, 8, seed=1)
    condition = [Range("row", at_least=20)] * 9
    with fill(tmp_path / "index", random_vectors(90)) as store:
        whole = store.search(queries, 12, filters=condition)
        monkeypatch.setattr("index.exact.COPIED", 16)
        assert store.search(queries, 12, filters=condition) == whole


def test_the_length_of_a_query_does_not_matter(store: Store) -> None:
    queries = random_vectors(3, seed=2)
    assert store.search(queries * 8, 5) == store.search(queries, 5) == store.search(queries * 2.0**-60, 5)


def test_queries_may_lie_in_memory_as_they_like(tmp_path: Path) -> None:
    queries = random_vectors(12, seed=2)
    with fill(tmp_path / "index", random_vectors(60), fresh=10) as store:
        expected = store.search(queries, 5)
        assert store.search(np.asfortranarray(queries), 5) == expected
        assert store.search(np.repeat(queries, 2, axis=0)[::2], 5) == expected
        assert store.search(np.hstack([queries, queries])[:, :8], 5) == expected
        assert store.search(queries[::-1], 5) == expected[::-1]
        read_only = queries.copy()
        read_only.flags.writeable = False
        assert store.search(read_only, 5) == expected


def test_scores_are_cosines_where_lengths_are_not_quite_one(tmp_path: Path) -> None:
    direction = unit(np.ones((1, 8)))
    with fill(tmp_path / "index", np.concatenate([1.0005 * direction, -1.0005 * direction]), fresh=1) as store:
        (found,) = store.search(direction, 2)
        assert (found.product_ids, found.scores) == (["p0", "p1"], [1.0, -1.0])


def test_threads_may_search_at_once(tmp_path: Path) -> None:
    queries = random_vectors(60, seed=3)
    with fill(tmp_path / "index", random_vectors(300), parts=(100,), fresh=50) as store:
        alone = [store.search(query[None], 5) for query in queries]
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(lambda query: store.search(query[None], 5), queries)) == alone


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (np.ones((2, 7), np.float32), r"shape \(2, 7\).*width 8"),
        (np.ones(8, np.float32), r"shape \(8,\)"),
        (np.stack([np.ones(8), np.zeros(8)]).astype(np.float32), r"query 1: its length is 0\.0"),
        (np.full((1, 8), np.nan, np.float32), "query 0: its length is nan"),
        (np.full((1, 8), np.inf, np.float32), "query 0: its length is inf"),
    ],
)
def test_queries_of_no_use_are_refused(store: Store, queries: Vectors, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        store.search(queries, 3)


def test_search_checks_its_arguments(store: Store) -> None:
    query = random_vectors(1)
    with pytest.raises(ConfigError, match="k: 0"):
        store.search(query, 0)
    with pytest.raises(ConfigError, match="leave_out: 2 entries for 1 queries"):
        store.search(query, 1, [set(), set()])
    with pytest.raises(ConfigError, match="filters: 0 entries for 1 queries"):
        store.search(query, 1, filters=[])


def test_no_queries_get_no_answers(store: Store) -> None:
    assert store.search(np.empty((0, 8), np.float32), 3) == []


# Approximate

N, D, QUERIES = 3000, 32, 32
DEAD, FRESH = 300, 200  # of the rows: deleted, the last ones of no segment


class Clusters:
    """3,000 products around 60 directions, some dead, some fresh; attributes that filters keep shares of.

    random: a rank that has nothing to do with vectors. far: a rank by how far a product lies from `pole`, the furthest
    first. Half of the queries lie near the pole.
    """

    def __init__(self, folder: Path, bytes_per_row: int | None) -> None:
        rng = np.random.default_rng(5)
        centres = rng.normal(size=(60, D))
        self.vectors = unit(centres[rng.integers(0, 60, N)] + 0.5 * rng.normal(size=(N, D)))
        self.pole = self.vectors[17]
        self.queries = unit(centres[rng.integers(0, 60, QUERIES)] + 0.5 * rng.normal(size=(QUERIES, D)))
        self.queries[::2] = unit(self.pole + 0.05 * rng.normal(size=(QUERIES // 2, D)))
        self.ranks = {"random": rng.permutation(N), "far": np.argsort(np.argsort(self.vectors @ self.pole))}
        products = [
            product(f"p{row}", **{name: float(ranks[row]) for name, ranks in self.ranks.items()}) for row in range(N)
        ]
        old = N - FRESH
        choice = Choice(bytes_per_row=bytes_per_row)
        blocks = [(products[:old], self.vectors[:old])]
        self.store = Store.create(folder, about(D), blocks, choice=choice, upkeep=BY_HAND)
        self.store.upsert(products[old:], self.vectors[old:])
        self.alive = np.ones(N, np.bool_)
        self.delete(rng.permutation(N)[:DEAD].tolist())

    def delete(self, rows: Sequence[int]) -> None:
        assert all(self.store.delete([f"p{row}" for row in rows]))
        self.alive[rows] = False

    def recall(self, answers: Sequence[Found], k: int, allowed: Mask, left_out: Sequence[Sequence[str]] = ()) -> float:
        """The mean recall of answers to `queries`, see the function `recall`."""
        shares = []
        for number, (query, found) in enumerate(zip(self.queries, answers, strict=True)):
            wanted = allowed.copy()
            if left_out:
                wanted[[int(one[1:]) for one in left_out[number]]] = False
            shares.append(recall(found.hits, *allowed_ones(self.vectors, wanted), query, k))
        return float(np.mean(shares))

    def nearest(self, query: Vectors, count: int, allowed: Mask) -> list[str]:
        """The ids of the nearest allowed products."""
        ids, vectors = allowed_ones(self.vectors, allowed)
        return [ids[place] for place in np.argsort(-(vectors @ query), kind="stable")[:count]]


KINDS = [
    pytest.param(None, id="graph"),
    pytest.param(D + 136, id="graph of compressed vectors"),
    pytest.param(D + 8, id="lists"),
]


@pytest.fixture(scope="module", params=KINDS)
def clusters(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clusters]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index.choosing, "FLAT_ROWS", 500)
        made = Clusters(tmp_path_factory.mktemp("clusters") / "index", request.param)
    with made.store:
        yield made


PLANS = (None, Plan.WIDENED, Plan.MASKED)


@contextmanager
def always(plan: Plan | None) -> Iterator[None]:
    """One plan wherever it can be: what is found must not depend on how clever the choice is. None: the planner's."""

    def choose(work: Work, depths: tuple[Depth, ...], k: int) -> Plan:
        if work.num_allowed <= k:
            return Plan.EXACT
        return Plan.WIDENED if plan is None or work.num_lists is None else plan  # a graph cannot be told of a filter

    with pytest.MonkeyPatch.context() as patch:
        if plan is not None:
            patch.setattr(index.search, "choose", choose)
        yield


@pytest.fixture(params=PLANS)
def plan(request: pytest.FixtureRequest) -> Iterator[Plan | None]:
    with always(request.param):
        yield request.param


def test_an_approximate_segment_finds_nearly_all(clusters: Clusters, plan: Plan | None) -> None:
    for k in (1, 10, 100):
        answers = clusters.store.search(clusters.queries, k)
        assert clusters.recall(answers, k, clusters.alive) >= 0.95
        assert plan is None or {found.plan for found in answers} == {Plan.APPROXIMATE}


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 1 / N, 0.0])
@pytest.mark.parametrize("rank", ["random", "far"])
def test_filters_keep_recall_and_k_hits(clusters: Clusters, plan: Plan | None, rank: str, share: float) -> None:
    condition = Range(rank, below=round(share * N))
    answers = clusters.store.search(clusters.queries, 10, filters=[condition] * QUERIES)
    allowed = clusters.alive & (clusters.ranks[rank] < round(share * N))
    assert clusters.recall(answers, 10, allowed) >= 0.95


def test_a_plan_that_was_taken_is_named(clusters: Clusters, plan: Plan | None) -> None:
    answers = clusters.store.search(clusters.queries, 10, filters=[Range("random", below=N / 2)] * QUERIES)
    if plan is not None:
        assert {found.plan for found in answers} <= {Plan.WIDENED, Plan.MASKED}
    answers = clusters.store.search(clusters.queries, 10, filters=[Range("random", below=9)] * QUERIES)
    assert {found.plan for found in answers} == {Plan.EXACT}


@pytest.mark.parametrize("k", [1, 400, N, 10 * N])
def test_any_k_gets_as_many_hits_as_there_are(clusters: Clusters, plan: Plan | None, k: int) -> None:
    answers = clusters.store.search(clusters.queries, k, filters=[Range("far", below=500)] * QUERIES)
    assert clusters.recall(answers, k, clusters.alive & (clusters.ranks["far"] < 500)) >= 0.95


def test_each_query_has_its_own_filter(clusters: Clusters, plan: Plan | None) -> None:
    many = tuple(float(rank) for rank in range(0, N, 2))
    conditions: list[tuple[Filter | None, Mask]] = [
        (None, clusters.alive),
        (In("random", many), clusters.alive & (clusters.ranks["random"] % 2 == 0)),
        (Not(Range("far", below=1500)), clusters.alive & (clusters.ranks["far"] >= 1500)),
    ]
    given_ones = [conditions[number % 3] for number in range(QUERIES)]
    answers = clusters.store.search(clusters.queries, 7, filters=[condition for condition, _ in given_ones])
    shares = [
        recall(found.hits, *allowed_ones(clusters.vectors, allowed), query, 7)
        for query, found, (_, allowed) in zip(clusters.queries, answers, given_ones, strict=True)
    ]
    assert np.mean(shares) >= 0.95


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_what_is_left_out_makes_room_for_others(clusters: Clusters, plan: Plan | None, share: float) -> None:
    """Left out are the nearest 50, unlike numbers for each query, and each is named twice."""
    condition = Range("random", below=share * N)
    allowed = clusters.alive & (clusters.ranks["random"] < share * N)
    left_out = [clusters.nearest(query, 50 + number, allowed) for number, query in enumerate(clusters.queries)]
    answers = clusters.store.search(clusters.queries, 10, [2 * ids for ids in left_out], [condition] * QUERIES)
    assert clusters.recall(answers, 10, allowed, left_out) >= 0.95


def test_ids_named_twice_are_left_out_once(clusters: Clusters, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that found too little is searched exactly; how many are missing must not be counted twice."""
    least = Depth(num_neighbours=1, effort=1, num_candidates=1, recall=0.0)
    monkeypatch.setattr(index.search, "choose", lambda *_: Plan.WIDENED)
    monkeypatch.setattr(index.search, "depth_for", lambda *_: least)
    condition, allowed = Range("random", below=600), clusters.alive & (clusters.ranks["random"] < 600)
    ids = [f"p{row}" for row in np.flatnonzero(allowed)[:200]]
    answers = clusters.store.search(clusters.queries, 400, [3 * ids] * QUERIES, [condition] * QUERIES)
    clusters.recall(answers, 400, allowed, [ids] * QUERIES)


@pytest.mark.parametrize("bytes_per_row", KINDS)
def test_products_near_the_query_may_all_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_per_row: int | None
) -> None:
    monkeypatch.setattr(index.choosing, "FLAT_ROWS", 500)
    clusters = Clusters(tmp_path / "index", bytes_per_row)
    with clusters.store as store:
        near = np.argsort(-clusters.vectors @ clusters.pole)[:1500]
        clusters.delete([row for row in near.tolist() if clusters.alive[row]])
        for plan, k in product_of(PLANS, (10, 200)):
            with always(plan):
                assert clusters.recall(store.search(clusters.queries, k), k, clusters.alive) >= 0.95, (plan, k)
        clusters.delete(np.flatnonzero(clusters.alive)[SPARE:].tolist())
        assert clusters.recall(store.search(clusters.queries, 10), 10, clusters.alive) == 1.0


WIDE_KINDS = [(None, "HNSW16,SQfp16"), (264, "HNSW16,SQ8"), (136, "IVF128,SQ8"), (40, "IVF128,RaBitQ")]


@pytest.mark.parametrize(("bytes_per_row", "kind"), WIDE_KINDS)
@pytest.mark.parametrize("spread", [0.7, 3.0])
def test_every_kind_of_index_reaches_the_recall_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_per_row: int | None, kind: str, spread: float
) -> None:
    """1,000 vectors in a cone, with cosines of 0.67 (as those of many models have) or of 0.1, also under a filter."""
    monkeypatch.setattr(index.choosing, "FLAT_ROWS", 500)
    vectors, queries = (unit(128**-0.5 + spread * random_vectors(count, 128, seed=count)) for count in (1000, 40))
    products = [product(f"p{row}", odd=bool(row % 2)) for row in range(1000)]
    choice = Choice(bytes_per_row=bytes_per_row, recall=0.95)
    Store.create(tmp_path, about(128), [(products, vectors)], choice=choice, upkeep=BY_HAND).close()
    with Store.open(tmp_path) as store:
        assert store._memory.segments[0].info.factory.startswith(kind)
        for plan, condition in product_of(PLANS, (None, Equal("odd", True))):
            allowed = np.ones(1000, np.bool_) if condition is None else np.arange(1000) % 2 == 1
            ids, some = allowed_ones(vectors, allowed)
            with always(plan):
                answers = store.search(queries, 10, filters=[condition] * 40)
            shares = [recall(one.hits, ids, some, query, 10) for one, query in zip(answers, queries, strict=True)]
            assert np.mean(shares) >= 0.9, (plan, condition)
