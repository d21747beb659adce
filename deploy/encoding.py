"""Inputs of a request through the engine: each becomes a vector or its own error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.errors import RequestError
from deploy.messages import listing_error, listing_of
from item.catalog.listing import Listing
from item.engine.interface import Engine, Vectors
from item.v1 import item_pb2

Outcome = Vectors | RequestError  # (D,) float32 of unit norm, or why there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """What became of N inputs, in their order, and the seconds that it took."""

    outcomes: list[Outcome]
    prepare_s: float = 0.0
    encode_s: float = 0.0

    def times(self, search_s: float = 0.0) -> item_pb2.StageTimes:
        """The times as a message; the time in the queue is known to the server alone."""
        return item_pb2.StageTimes(prepare_s=self.prepare_s, encode_s=self.encode_s, search_s=search_s)


def encode_inputs(engine: Engine, inputs: Sequence[item_pb2.Input], fields: Sequence[str]) -> Encoding:
    """Encodes all usable inputs in one call of the engine; `fields` says where each stands in the request."""
    listings: dict[int, Listing] = {}
    outcomes: dict[int, Outcome] = {}
    for position, (message, field) in enumerate(zip(inputs, fields, strict=True)):
        try:
            listings[position] = listing_of(message, field)
        except RequestError as error:
            outcomes[position] = error
    if not listings:
        return Encoding(outcomes=[outcomes[position] for position in range(len(inputs))])
    encoded = engine.encode(list(listings.values()))
    for row, position in enumerate(listings):
        refused = encoded.refused.get(row)
        outcomes[position] = listing_error(refused, fields[position]) if refused else encoded.vectors[row]
    return Encoding(
        outcomes=[outcomes[position] for position in range(len(inputs))],
        prepare_s=encoded.prepare_s,
        encode_s=encoded.encode_s,
    )
