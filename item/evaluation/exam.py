"""What a catalogue asks of vectors: find the same product, name the leaf category, find the picture to the words.

An exam knows the listings, never the encoder: whatever makes one vector a listing can sit it, and two that sat the same
exam are compared query by query. A listing that an encoder cannot see (no picture, for a picture encoder) has a zero
vector, as similar to everything: as a query it is answered at random, as a row it is found by chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from item.catalog.listing import Listing
from item.evaluation.bootstrap import Interval, mean_interval, statistic_interval
from item.evaluation.classification import macro_f1, neighbour_leaves, probe_leaves
from item.evaluation.retrieval import SameProduct, same_product
from item.neighbours import Path
from item.preprocessing.prepared import Modality

Vectors = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]
Positions = npt.NDArray[np.intp]

SAME_PRODUCT = "same product"
BY_NEIGHBOURS = "leaf category by 5 neighbours"
BY_PROBE = "leaf category by linear probe"
WORDS_TO_PICTURE = "words to picture"
PICTURE_TO_WORDS = "picture to words"
TASKS = (SAME_PRODUCT, BY_NEIGHBOURS, BY_PROBE, WORDS_TO_PICTURE, PICTURE_TO_WORDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """The vectors of one encoder for one exam, (rows, D) float32 of unit norm or zero.

    catalog: of the catalogue's N listings; queries: of the exam's Q queries.
    for_leaf: of the catalogue, where the category tasks have vectors of their own.
    halves: by words alone and by picture alone, of the catalogue, where both are in one space.
    note: what else a reader of its figures should know.
    """

    name: str
    inputs: Modality
    catalog: Vectors
    queries: Vectors
    for_leaf: Vectors | None = None
    halves: tuple[Vectors, Vectors] | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """How one contestant answered the Q queries of one task.

    positions: (Q,) of what was asked, among the exam's queries (same product) or the catalogue; ids: product ids.
    products: what each is about; the bootstrap draws these.
    values: for each measure (Q,) float64 in [0, 1]. expected, predicted: leaves, in the category tasks only.
    """

    task: str
    positions: Positions
    ids: Sequence[str]
    products: Sequence[str]
    values: Mapping[str, Values]
    expected: Sequence[Path] = ()
    predicted: Sequence[Path | None] = ()

    def measures(self) -> dict[str, Interval]:
        """Each measure with its 95% interval; macro-F1 too where there are leaves."""
        measured = {name: mean_interval(values, self.products) for name, values in self.values.items()}
        if self.expected:
            statistic = macro_f1(self.expected, self.predicted)
            shifted = statistic_interval(statistic, len(self.expected), self.products)
            measured["macro-F1"] = replace(shifted, low=max(shifted.low, 0.0), high=min(shifted.high, 1.0))
        return measured

    def only(self, positions: Positions) -> Answers:
        """The answers to the queries at these positions."""
        kept = np.flatnonzero(np.isin(self.positions, positions)).tolist()
        return Answers(
            task=self.task,
            positions=self.positions[kept],
            ids=[self.ids[i] for i in kept],
            products=[self.products[i] for i in kept],
            values={name: values[kept] for name, values in self.values.items()},
            expected=[self.expected[i] for i in kept if self.expected],
            predicted=[self.predicted[i] for i in kept if self.predicted],
        )


@dataclass(frozen=True, kw_only=True)
class Exam:
    """The tasks of one split of a catalogue.

    Args:
        catalog: N listings, each with its split; those of "train" are what the category tasks may learn from, those of
            "val" choose the strength of the probe.
        offers: M second offers whose `group_id` is the product_id of the listing that they offer again. None: the rows
            of the split are the queries, and `group_id` says which are of the same product.
        split: whose rows are asked about.
    """

    catalog: Sequence[Listing]
    offers: Sequence[Listing] | None
    split: str

    @cached_property
    def rows(self) -> Positions:
        """Positions of the catalogue's rows of the split."""
        return self._rows_of(self.split)

    @cached_property
    def queries(self) -> Sequence[Listing]:
        """What is asked in the same-product task: the offers, or the rows of the split."""
        return [self.catalog[i] for i in self.rows] if self.offers is None else self.offers

    @cached_property
    def base_names(self) -> Sequence[str | None]:
        """For each row of the catalogue what a query's group_id must be for the row to be right."""
        return [listing.group_id if self.offers is None else listing.product_id for listing in self.catalog]

    @cached_property
    def asked_ids(self) -> Sequence[str]:
        """For each query the product_id of the row that it is, or that it offers again; empty: unknown."""
        return [query.product_id if self.offers is None else query.group_id or "" for query in self.queries]

    @cached_property
    def query_products(self) -> Sequence[str]:
        """For each query the product that it is about; empty: unknown."""
        return [self._products.get(asked, "") for asked in self.asked_ids]

    @cached_property
    def row_products(self) -> Sequence[str]:
        """For each of `rows` the product that it is about."""
        return [self._products[self.catalog[i].product_id] for i in self.rows]

    def sit(self, contestant: Contestant) -> Iterator[Answers]:
        """The contestant's answers to all tasks that it can answer; a task without queries has none."""
        yield self.same_product(contestant.catalog, contestant.queries)
        for_leaf = contestant.catalog if contestant.for_leaf is None else contestant.for_leaf
        yield self.leaf_by_neighbours(for_leaf)
        yield self.leaf_by_probe(for_leaf)
        if contestant.halves is not None:
            words, picture = contestant.halves
            yield self.across(WORDS_TO_PICTURE, words, picture)
            yield self.across(PICTURE_TO_WORDS, picture, words)

    def same_product(self, base: Vectors, queries: Vectors) -> Answers:
        """Each query against all rows of the catalogue, its own excepted.

        base: (N, D), queries: (Q, D). A query without a listing of its product is left out.
        """
        found = same_product(
            queries,
            base,
            query_products=[query.group_id for query in self.queries],
            base_products=self.base_names,
            own_rows=self.rows.tolist() if self.offers is None else None,
        )
        return _found(SAME_PRODUCT, np.arange(len(self.queries)), self.queries, self.query_products, found)

    def across(self, task: str, queries: Vectors, base: Vectors) -> Answers:
        """Each row of the split by one modality against those rows by the other; only its own other half counts.

        queries, base: (N, D), of the catalogue. Rows that lack a modality are left out.
        """
        rows = np.array([i for i in self.rows if queries[i].any() and base[i].any()], dtype=np.intp)
        ids = [self.catalog[i].product_id for i in rows]
        found = same_product(queries[rows], base[rows], query_products=ids, base_products=ids)
        asked = [self.catalog[i] for i in rows]
        return _found(task, rows, asked, [self._products[product_id] for product_id in ids], found)

    def leaf_by_neighbours(self, vectors: Vectors) -> Answers:
        """The leaves of the split's rows by the vote of the five nearest rows of train. vectors: (N, D)."""
        train, asked = self.leaf_rows()
        predicted = neighbour_leaves(vectors[asked], vectors[train], self._categories(train))
        return self._named(BY_NEIGHBOURS, asked, predicted)

    def leaf_by_probe(self, vectors: Vectors) -> Answers:
        """The leaves of the split's rows by a linear probe trained on train, its strength chosen on val."""
        train, asked = self.leaf_rows()
        if not len(asked):
            return self._named(BY_PROBE, asked, [])
        val = self._with_category("val") if self.split != "val" else asked[:0]
        predicted = probe_leaves(
            vectors[asked], vectors[train], self._categories(train), vectors[val], self._categories(val)
        )
        return self._named(BY_PROBE, asked, predicted)

    def leaf_rows(self) -> tuple[Positions, Positions]:
        """Rows to learn from and rows to ask about; nothing is asked where there is nothing to learn from."""
        train, asked = self._with_category("train"), self._with_category(self.split)
        return train, asked if len(train) else asked[:0]

    def subsets(self, attribute: str) -> dict[str, Positions]:
        """For each value of an attribute of the queries, as text, the positions of those that have it."""
        values = [query.attributes.get(attribute) for query in self.queries]
        present = sorted({str(value) for value in values if value is not None})
        return {value: np.flatnonzero([str(v) == value for v in values]) for value in present}

    def _rows_of(self, split: str) -> Positions:
        return np.array([i for i, listing in enumerate(self.catalog) if listing.split == split], dtype=np.intp)

    def _with_category(self, split: str) -> Positions:
        return np.array([i for i in self._rows_of(split) if self.catalog[i].category], dtype=np.intp)

    def _categories(self, positions: Positions) -> list[Path]:
        return [self.catalog[i].category for i in positions]

    @cached_property
    def _products(self) -> Mapping[str, str]:
        """product_id -> the product: what the catalogue groups it under."""
        return {listing.product_id: listing.group_id or listing.product_id for listing in self.catalog}

    def _named(self, task: str, asked: Positions, predicted: Sequence[Path | None]) -> Answers:
        expected = self._categories(asked)
        correct = [answer == truth for answer, truth in zip(predicted, expected, strict=True)]
        ids = [self.catalog[i].product_id for i in asked]
        return Answers(
            task=task,
            positions=asked,
            ids=ids,
            products=[self._products[product_id] for product_id in ids],
            values={"accuracy": np.array(correct, dtype=np.float64)},
            expected=expected,
            predicted=predicted,
        )


def _found(
    task: str,
    positions: Positions,
    queries: Sequence[Listing],
    products: Sequence[str],
    found: SameProduct,
) -> Answers:
    answered = np.flatnonzero(~np.isnan(found.reciprocal_rank)).tolist()
    return Answers(
        task=task,
        positions=positions[answered],
        ids=[queries[i].product_id for i in answered],
        products=[products[i] for i in answered],
        values={
            "recall@1": found.recall_at_1[answered],
            "recall@10": found.recall_at_10[answered],
            "MRR": found.reciprocal_rank[answered],
        },
    )
