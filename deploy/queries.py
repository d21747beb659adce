"""What a search looks for: parts and examples of each query become one vector, beside what may be a hit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deploy.encoding import Encoding, Outcome
from deploy.errors import InvalidRequestError, NotFoundError, NotOfferedError, RequestError, attempt
from deploy.filters import filter_of
from deploy.messages import unit, vector_of
from deploy.paging import Page, page_of
from deploy.rankings import ranking_of
from index.filters import Filter
from index.ranking import Ranking
from index.store import Store
from index.vector_store import VectorStore
from item.engine.interface import Vectors
from item.v1 import item_pb2

MAX_PARTS = 16
MAX_EXAMPLES = 64
# Rocchio (1971), with the weights of Manning, Raghavan and Schütze (2008), section 9.1.1; there as here alpha is 1.
POSITIVE_WEIGHT = 0.75  # beta
NEGATIVE_WEIGHT = 0.15  # gamma
POINTS = ("parts", "positive_examples", "negative_examples")  # what a query's vector is made of

Encode = Callable[[Sequence[item_pb2.Input], Sequence[str]], Encoding]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What hits have to pass, and what is asked for beyond the closest ones. page: None where there are no pages."""

    filter: Filter | None = None
    ranking: Ranking | None = None
    page: Page | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sought:
    """What one query looks for: products near a vector, (D,) of unit norm, on its terms, but for those left out."""

    vector: Vectors
    terms: Terms = Terms()
    leave_out: frozenset[str] = frozenset()


def sought_by(
    request: item_pb2.SearchRequest, k: int, max_window: int, store: VectorStore, encode: Encode
) -> tuple[list[Sought | RequestError], Encoding]:
    """What each query of a request for k hits looks for, or its own error; all inputs are encoded together."""
    queries = {f"queries[{row}]": query for row, query in enumerate(request.queries)}

    def terms_of(query: item_pb2.Query, field: str) -> Terms:
        check(query, field)
        condition = filter_of(query.filter, f"{field}.filter") if query.HasField("filter") else None
        ranking, page = ranking_of(query, k, max_window, field), page_of(query, request.collection, k, field)
        if isinstance(store, Store):
            return Terms(filter=condition, ranking=ranking, page=page)
        if ranking is not None:
            raise NotOfferedError(
                field, "rankings and pages are not offered in Milvus; leave lexical_weight to page_token unset"
            )
        return Terms(filter=condition)

    terms = [attempt(terms_of, query, field) for field, query in queries.items()]
    inputs = {
        f"{place}.input": point.input
        for (field, query), one in zip(queries.items(), terms, strict=True)
        if not isinstance(one, RequestError)
        for place, point in points(query, field)
        if point.HasField("input")
    }
    encoding = encode(list(inputs.values()), list(inputs))
    encoded = dict(zip(inputs, encoding.outcomes, strict=True))
    sought = [
        one if isinstance(one, RequestError) else attempt(_sought, query, field, one, _Vectors(store, encoded))
        for (field, query), one in zip(queries.items(), terms, strict=True)
    ]
    return sought, encoding


def points(query: item_pb2.Query, field: str) -> Iterator[tuple[str, item_pb2.QueryPart]]:
    """Parts and examples, each with its field."""
    for name in POINTS:
        for number, point in enumerate(getattr(query, name)):
            yield f"{field}.{name}[{number}]", point


def check(query: item_pb2.Query, field: str) -> None:
    """Raises InvalidRequestError for too many points, none to start from, or weights that are none."""
    for name in POINTS:
        limit = MAX_PARTS if name == "parts" else MAX_EXAMPLES
        if (number := len(getattr(query, name))) > limit:
            raise InvalidRequestError(f"{field}.{name}", f"{number} of them; give up to {limit}")
    if not query.parts and not query.positive_examples:
        raise InvalidRequestError(f"{field}.parts", f"none are given; give 1 to {MAX_PARTS}, or positive_examples")
    for place, point in points(query, field):
        if point.HasField("weight") and not 0 < point.weight < math.inf:
            raise InvalidRequestError(f"{place}.weight", f"{point.weight} is not above 0 and finite")


@dataclass(frozen=True, slots=True)
class _Vectors:
    """Where the vectors of points come from; encoded: by the field of their input."""

    store: VectorStore
    encoded: Mapping[str, Outcome]

    def of(self, point: item_pb2.QueryPart, field: str) -> Vectors:
        """(D,) float32 of unit norm. Raises RequestError."""
        about = self.store.about
        match point.WhichOneof("source"):
            case "input":
                outcome = self.encoded[f"{field}.input"]
                if isinstance(outcome, RequestError):
                    raise outcome
                return outcome
            case "product_id":
                vector = self.store.vector(point.product_id)
                if vector is None:
                    raise NotFoundError(f"{field}.product_id", f"{point.product_id!r} is not in the collection")
                return vector
            case "vector":
                return vector_of(point.vector, f"{field}.vector", space=about.space, width=about.vector_width)
            case _:
                raise InvalidRequestError(field, "has no source; give input, product_id or vector")

    def mean(self, points: Sequence[item_pb2.QueryPart], field: str) -> npt.NDArray[np.float64]:
        """(D,): of several points by their weights; 0 of none."""
        if not points:
            return np.zeros(self.store.about.vector_width)
        vectors = [self.of(point, f"{field}[{number}]").astype(np.float64) for number, point in enumerate(points)]
        return np.average(
            vectors, axis=0, weights=[point.weight if point.HasField("weight") else 1 for point in points]
        )


def _sought(query: item_pb2.Query, field: str, terms: Terms, vectors: _Vectors) -> Sought:
    asked_about = (point.product_id for _, point in points(query, field) if point.HasField("product_id"))
    return Sought(
        vector=_vector(query, field, vectors),
        terms=terms,
        leave_out=frozenset((*query.leave_out_ids, *asked_about)),
    )


def _vector(query: item_pb2.Query, field: str, vectors: _Vectors) -> Vectors:
    """(D,) float32 of unit norm: unit(parts) + 0.75 mean(positive examples) - 0.15 mean(negative examples)."""
    positive, negative = query.positive_examples, query.negative_examples
    if len(query.parts) == 1 and not positive and not negative:
        return vectors.of(query.parts[0], f"{field}.parts[0]")  # as it is, to the last bit
    total = POSITIVE_WEIGHT * vectors.mean(positive, f"{field}.positive_examples")
    total -= NEGATIVE_WEIGHT * vectors.mean(negative, f"{field}.negative_examples")
    if query.parts:
        total += unit(vectors.mean(query.parts, f"{field}.parts"), f"{field}.parts")
    return unit(total, field)
