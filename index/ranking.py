"""How the closest products of one query become its hits: a least score, one hit a group, letters beside vectors,
difference from each other, an order by an attribute, and counts of attributes' values.

The *window* are the hits that all this is done to: the closest products that may be hits, of each group the closest.

Shapes: D the vectors' width, n rows of the view, W hits of the window.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index.columns import Columns
from index.exact import Mask, Rows, Vectors
from index.filters import Value
from index.memory import View
from index.planner import Plan
from index.search import Found, Group
from item.errors import ConfigError

MAX_FACETS = 32
WIDER = 4  # times as many products are fetched where groups leave too few, before all are
RRF_K = 60  # Cormack, Clarke and Büttcher (2009)

Codes = npt.NDArray[np.int32]
Counts = list[tuple[Value | tuple[str, ...], int]]  # values, or category paths, with the hits that have them
NO_GROUPS: Codes = np.empty(0, dtype=np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sort:
    """By an attribute's value: numbers, then texts, then booleans; what has none comes last, lists count as none."""

    attribute: str
    descending: bool = False

    def __post_init__(self) -> None:
        if not self.attribute:
            raise ConfigError("sort.attribute: is empty; give the attribute's name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facet:
    """The `limit` most frequent values of an attribute, or of categories cut to `category_level` levels."""

    limit: int
    attribute: str = ""
    category_level: int | None = None

    def __post_init__(self) -> None:
        if bool(self.attribute) == (self.category_level is not None):
            raise ConfigError("facet: give either attribute or category_level")
        if self.category_level is not None and self.category_level < 1:
            raise ConfigError(f"category_level: {self.category_level} is below 1")
        if self.limit < 1:
            raise ConfigError(f"limit: {self.limit} is below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """See the module.

    min_score: the least cosine of a hit. collapse_groups: one hit of each group. lexical_weight: within [0, 1], of the
    ranks by `words` beside those by vectors, in reciprocal rank fusion. diversity: within [0, 1], of difference from
    the hits before beside closeness. window: hits that are fused, sorted, chosen from or counted.
    """

    min_score: float = -math.inf
    collapse_groups: bool = False
    words: str = ""
    lexical_weight: float = 0.0
    diversity: float = 0.0
    sort: Sort | None = None
    facets: tuple[Facet, ...] = ()
    window: int = 100

    def __post_init__(self) -> None:
        for name in ("lexical_weight", "diversity"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ConfigError(f"{name}: {value} is not within [0, 1]")
        if math.isnan(self.min_score):
            raise ConfigError(f"min_score: {self.min_score} is no number")
        if self.window < 1:
            raise ConfigError(f"window: {self.window} is below 1")
        if len(self.facets) > MAX_FACETS:
            raise ConfigError(f"facets: {len(self.facets)} of them; give up to {MAX_FACETS}")
        if self.diversity and self.sort is not None:
            raise ConfigError("diversity: beside sort, which orders hits otherwise; give one of the two")
        if self.diversity and self.lexical_weight:
            raise ConfigError("diversity: beside lexical_weight, whose ranks are no cosines; give one of the two")

    @property
    def looks_beyond(self) -> bool:
        """Whether more than the hits that are wanted is looked at."""
        return bool(self.lexical_weight or self.diversity or self.sort is not None or self.facets)

    def size(self, num_hits: int) -> int:
        """Hits of the window, of which `num_hits` are wanted."""
        return max(num_hits, self.window) if self.looks_beyond else num_hits


PLAIN = Ranking()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """The hits of one query in their order, those of the window that were wanted.

    group_sizes: of each hit, the products of its group that pass the filter, itself included; 1 without collapsing.
    facets: for each that was asked for, values with the number of the window's hits that have them; a category is a
    tuple of its levels.
    """

    found: Found
    group_sizes: list[int]
    facets: list[Counts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """(W,) rows of a view with their cosines, the best first."""

    rows: Rows
    scores: Vectors
    plan: Plan

    def take(self, order: Rows) -> Window:
        """Some of it, in another order."""
        return Window(rows=self.rows[order], scores=self.scores[order], plan=self.plan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Of a window's attributes: what was counted, and (W,) places in the order of one, None where none is asked for."""

    facets: list[Counts]
    sorted: Rows | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One query, (D,) of unit norm, over a view. mask: (n,) of living rows that pass its filter, None without filter.
    groups: (n,) codes of groups, -1 for none; not looked at without collapsing."""

    view: View
    vector: Vectors
    mask: Mask | None
    groups: Codes
    ranking: Ranking
    leave_out: Collection[str] = ()

    @property
    def allowed(self) -> Mask | None:
        """(n,) the rows that may be hits; None: all."""
        return self.view.alive if self.mask is None else self.mask

    def window(self, size: int) -> Window:
        """The closest `size` that may be hits, or all of them."""
        for fetch in self.numbers_to_fetch(size):
            near = self.nearest(fetch)
            is_all = len(near.rows) < fetch or near.scores[-1] < self.ranking.min_score
            fused = self.fused(near, fetch)
            kept = fused.take(self.kept(fused))
            if is_all or len(kept.rows) >= size:
                break
        return kept.take(np.arange(min(size, len(kept.rows))))

    def numbers_to_fetch(self, size: int) -> Iterator[int]:
        """Products to look at, more where groups leave too few, at last all."""
        first = size + len(self.leave_out)
        yield first
        yield WIDER * first
        yield len(self.view) + 1

    def nearest(self, fetch: int) -> Window:
        """The closest `fetch` of those that may be hits by their vectors."""
        if fetch > len(self.view):
            return self.everything()
        (found,) = Group(view=self.view, mask=self.mask, k=fetch).search(self.vector[None])
        rows = self.view.rows_of(np.array(found.keys, dtype=np.int64))
        return Window(rows=rows, scores=np.array(found.scores, dtype=np.float32), plan=found.plan)

    def everything(self) -> Window:
        """All rows that may be hits."""
        allowed = self.allowed
        rows = np.arange(len(self.view)) if allowed is None else np.flatnonzero(allowed)
        scores = self.view.scores(self.vector, rows)
        order = np.lexsort((self.view.keys[rows], -scores))
        return Window(rows=rows[order], scores=scores[order], plan=Plan.EXACT)

    def fused(self, near: Window, fetch: int) -> Window:
        """With what the words find, by reciprocal rank (Cormack, Clarke and Büttcher, 2009), each list by its weight;
        ties by cosine."""
        weight = self.ranking.lexical_weight
        if not weight:
            return near
        found = self.view.rows_with_words(self.ranking.words, fetch, self.allowed)
        rows = np.union1d(near.rows, found)
        scores = self.view.scores(self.vector, rows)
        fused = np.zeros(len(rows))
        for share, ranked in ((1 - weight, near.rows), (weight, found)):
            fused[np.searchsorted(rows, ranked)] += share / (RRF_K + 1 + np.arange(len(ranked)))
        order = np.lexsort((self.view.keys[rows], -scores, -fused))
        return Window(rows=rows[order], scores=scores[order], plan=near.plan)

    def kept(self, window: Window) -> Rows:
        """Places of a window that are not left out, reach the least score, and are the first of their group."""
        keep = window.scores >= self.ranking.min_score
        if self.leave_out:
            ids = self.view.product_ids(window.rows)
            keep &= np.array([one not in self.leave_out for one in ids], dtype=bool)
        places = np.flatnonzero(keep)
        if self.ranking.collapse_groups:
            groups = self.groups[window.rows[places]]
            alone = groups < 0
            _, first = np.unique(groups, return_index=True)
            alone[first] = True
            places = places[alone]
        return places

    def ranked(self, window: Window, num_hits: int, known: Known) -> Ranked:
        """The first `num_hits` of a window in their order."""
        hits = window.take(self.order(window, num_hits, known)[:num_hits])
        found = Found(
            product_ids=self.view.product_ids(hits.rows),
            scores=hits.scores.tolist(),
            keys=self.view.keys[hits.rows].tolist(),
            plan=hits.plan,
        )
        return Ranked(found=found, group_sizes=self.group_sizes(hits.rows), facets=known.facets)

    def known(self, window: Window, columns: Columns) -> Known:
        """What the columns have to say; the caller holds the store's lock."""
        sort, rows = self.ranking.sort, window.rows
        return Known(
            facets=[counted(columns, rows, facet) for facet in self.ranking.facets],
            sorted=None if sort is None else sorted_places(columns, rows, sort),
        )

    def order(self, window: Window, num_hits: int, known: Known) -> Rows:
        """Places of a window as its hits are to be shown."""
        if known.sorted is not None:
            return known.sorted
        if self.ranking.diversity:
            vectors = self.view.vectors(window.rows)
            return diverse_places(window.scores, vectors, self.ranking.diversity, num_hits)
        return np.arange(len(window.rows))

    def group_sizes(self, rows: Rows) -> list[int]:
        """Of each row's group, the products that may be hits."""
        if not self.ranking.collapse_groups:
            return [1] * len(rows)
        codes = self.groups if self.allowed is None else self.groups[self.allowed]
        sizes = np.bincount(codes[codes >= 0], minlength=int(self.groups.max(initial=-1)) + 2)
        sizes[-1] = 1  # of a row without group, whose code is -1
        return sizes[self.groups[rows]].tolist()


def diverse_places(scores: Vectors, vectors: Vectors, diversity: float, num_hits: int) -> Rows:
    """(num_hits,) places in the order of maximal marginal relevance (Carbonell and Goldstein, 1998).

    scores: (W,) cosines with the query, vectors: (W, D) of unit norm. lambda is 1 - diversity.
    """
    num_hits = min(num_hits, len(scores))
    chosen = np.empty(num_hits, dtype=np.int64)
    most_like = np.full(len(scores), -1.0)  # the largest cosine with a hit before
    left = np.ones(len(scores), dtype=bool)
    for place in range(num_hits):
        relevance = (1 - diversity) * scores - diversity * most_like
        chosen[place] = np.argmax(np.where(left, relevance, -np.inf))
        left[chosen[place]] = False
        most_like = np.maximum(most_like, vectors @ vectors[chosen[place]])
    return chosen


def sorted_places(columns: Columns, rows: Rows, sort: Sort) -> Rows:
    """Places of rows by an attribute, ties as they were."""
    by_type: dict[type, list[tuple[float | str, int]]] = {float: [], str: [], bool: []}
    without = []
    for place, row in enumerate(rows.tolist()):
        value = columns.value(row, sort.attribute)
        if isinstance(value, float | str | bool):
            by_type[type(value)].append((value, place))
        else:
            without.append(place)
    places = []
    for pairs in by_type.values():
        pairs.sort(key=lambda pair: pair[0], reverse=sort.descending)
        places += [place for _, place in pairs]
    return np.array(places + without, dtype=np.int64)


def counted(columns: Columns, rows: Rows, facet: Facet) -> Counts:
    """The most frequent values of rows."""
    if facet.category_level is not None:
        return [*columns.categories(rows, facet.category_level)[: facet.limit]]
    return [*columns.facets(rows, facet.attribute)[: facet.limit]]
