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
from index.filters import Filter
from index.store import Store
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
class Sought:
    """What one query looks for: products near a vector, (D,) of unit norm, that pass a filter and are not left out."""

    vector: Vectors
    filter: Filter | None = None
    leave_out: frozenset[str] = frozenset()


def sought_by(
    queries: Sequence[item_pb2.Query], store: Store, encode: Encode
) -> tuple[list[Sought | RequestError], Encoding]:
    """What each query looks for, or its own error; the inputs of all queries are encoded together."""
    fields = [f"queries[{row}]" for row in range(len(queries))]
    filters = [attempt(checked, message, field) for message, field in zip(queries, fields, strict=True)]
    inputs = {
        f"{place}.input": point.input
        for message, field, condition in zip(queries, fields, filters, strict=True)
        if not isinstance(condition, RequestError)
        for place, point in points(message, field)
        if point.HasField("input")
    }
    encoding = encode(list(inputs.values()), list(inputs))
    encoded = dict(zip(inputs, encoding.outcomes, strict=True))
    sought = [
        condition
        if isinstance(condition, RequestError)
        else attempt(_sought, message, field, condition, _Vectors(store, encoded))
        for message, field, condition in zip(queries, fields, filters, strict=True)
    ]
    return sought, encoding


def points(query: item_pb2.Query, field: str) -> Iterator[tuple[str, item_pb2.QueryPart]]:
    """Parts and examples, each with its field."""
    for name in POINTS:
        for number, point in enumerate(getattr(query, name)):
            yield f"{field}.{name}[{number}]", point


def checked(query: item_pb2.Query, field: str) -> Filter | None:
    """A query's filter, once the rest is found to be a query; positive examples alone are one as well.

    Raises:
        NotOfferedError: what comes later.
        InvalidRequestError: too many points or none to start from, weights that are none, a filter that is none.
    """
    if query.HasField("lexical_weight"):
        raise NotOfferedError(f"{field}.lexical_weight", "is not offered in this version; leave it unset")
    for name in POINTS:
        limit = MAX_PARTS if name == "parts" else MAX_EXAMPLES
        if (number := len(getattr(query, name))) > limit:
            raise InvalidRequestError(f"{field}.{name}", f"{number} of them; give up to {limit}")
    if not query.parts and not query.positive_examples:
        raise InvalidRequestError(f"{field}.parts", f"none are given; give 1 to {MAX_PARTS}, or positive_examples")
    for place, point in points(query, field):
        if point.HasField("weight") and not 0 < point.weight < math.inf:
            raise InvalidRequestError(f"{place}.weight", f"{point.weight} is not above 0 and finite")
    return filter_of(query.filter, f"{field}.filter") if query.HasField("filter") else None


@dataclass(frozen=True, slots=True)
class _Vectors:
    """Where the vectors of points come from; encoded: by the field of their input."""

    store: Store
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


def _sought(query: item_pb2.Query, field: str, condition: Filter | None, vectors: _Vectors) -> Sought:
    asked_about = (point.product_id for _, point in points(query, field) if point.HasField("product_id"))
    return Sought(
        vector=_vector(query, field, vectors),
        filter=condition,
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
