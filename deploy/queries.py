"""What a search looks for: the parts of each query become one vector."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from deploy.encoding import Encoding, Outcome
from deploy.errors import InvalidRequestError, NotFoundError, NotOfferedError, RequestError
from deploy.messages import unit, vector_of
from index.store import Store
from item.engine.interface import Vectors
from item.v1 import item_pb2

MAX_PARTS = 16
LATER = ("positive_examples", "negative_examples", "filter", "lexical_weight")

Encode = Callable[[Sequence[item_pb2.Input], Sequence[str]], Encoding]


def query_vectors(queries: Sequence[item_pb2.Query], store: Store, encode: Encode) -> Encoding:
    """One vector, or its own error, for each query; the inputs of all queries are encoded together."""
    refused: dict[int, RequestError] = {}
    for query, message in enumerate(queries):
        try:
            check_query(message, f"queries[{query}]")
        except RequestError as error:
            refused[query] = error
    places = [
        (query, part)
        for query, message in enumerate(queries)
        for part, source in enumerate(message.parts)
        if query not in refused and source.HasField("input")
    ]
    encoding = encode(
        [queries[query].parts[part].input for query, part in places],
        [f"queries[{query}].parts[{part}].input" for query, part in places],
    )
    encoded = dict(zip(places, encoding.outcomes, strict=True))
    outcomes: list[Outcome] = []
    for query, message in enumerate(queries):
        try:
            outcomes.append(refused[query] if query in refused else _combine(message, query, store, encoded))
        except RequestError as error:
            outcomes.append(error)
    return Encoding(outcomes=outcomes, prepare_s=encoding.prepare_s, encode_s=encoding.encode_s)


def left_out(query: item_pb2.Query) -> set[str]:
    """Ids that are no hits of a query: those it leaves out, and the products that it asks about."""
    return {*query.leave_out_ids, *(part.product_id for part in query.parts if part.HasField("product_id"))}


def check_query(query: item_pb2.Query, field: str) -> None:
    """Raises NotOfferedError for what comes later, InvalidRequestError for parts that make no query."""
    for name in LATER:
        given = query.HasField(name) if name in ("filter", "lexical_weight") else bool(getattr(query, name))
        if given:
            raise NotOfferedError(f"{field}.{name}", "is not offered in this version; leave it unset")
    if not 1 <= len(query.parts) <= MAX_PARTS:
        raise InvalidRequestError(f"{field}.parts", f"{len(query.parts)} parts; give 1 to {MAX_PARTS}")
    for number, part in enumerate(query.parts):
        if part.HasField("weight") and not 0 < part.weight < math.inf:
            raise InvalidRequestError(f"{field}.parts[{number}].weight", f"{part.weight} is not above 0 and finite")


def _combine(message: item_pb2.Query, query: int, store: Store, encoded: dict[tuple[int, int], Outcome]) -> Vectors:
    """(D,) float32: the parts' sum of weight times unit vector, scaled to unit norm."""
    total = np.zeros(store.manifest.vector_width)
    for number, part in enumerate(message.parts):
        outcome = encoded.get((query, number))
        if outcome is None:
            outcome = _stored_or_given(part, f"queries[{query}].parts[{number}]", store)
        if isinstance(outcome, RequestError):
            raise outcome
        if len(message.parts) == 1:
            return outcome
        total += (part.weight if part.HasField("weight") else 1.0) * outcome.astype(np.float64)
    return unit(total.astype(np.float32), f"queries[{query}].parts")


def _stored_or_given(part: item_pb2.QueryPart, field: str, store: Store) -> Vectors:
    """(D,) float32: the vector of a stored product, or the one in the message."""
    match part.WhichOneof("source"):
        case "product_id":
            vector = store.vector(part.product_id)
            if vector is None:
                raise NotFoundError(f"{field}.product_id", f"{part.product_id!r} is not in the index")
            return vector
        case "vector":
            manifest = store.manifest
            return vector_of(part.vector, f"{field}.vector", space=manifest.space, width=manifest.vector_width)
        case _:
            raise InvalidRequestError(field, "has no source; give input, product_id or vector")
