"""Listings of a request through the engine: each becomes a vector or its own error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploy.errors import InvalidRequestError, RequestError, attempt
from deploy.messages import listing_of
from item.catalog.listing import Listing
from item.engine.interface import Engine, Vectors
from item.v1 import item_pb2

Outcome = Vectors | RequestError  # (D,) float32 of unit norm, or why there is none

INPUT_FIELDS = {"title": "text"}  # of Input, by a listing's field, where they differ


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """What became of N listings, in their order, and the seconds that it took."""

    outcomes: list[Outcome]
    prepare_s: float = 0.0
    encode_s: float = 0.0

    def times(self, search_s: float = 0.0) -> item_pb2.StageTimes:
        """The times as a message; the time in the queue is known to the server alone."""
        return item_pb2.StageTimes(prepare_s=self.prepare_s, encode_s=self.encode_s, search_s=search_s)


def encode_inputs(engine: Engine, inputs: Sequence[item_pb2.Input], fields: Sequence[str]) -> Encoding:
    """Encodes all usable inputs in one call of the engine; `fields` says where each stands in the request."""
    listings = [attempt(listing_of, message, field) for message, field in zip(inputs, fields, strict=True)]
    return encode_listings(engine, listings, fields, INPUT_FIELDS)


def encode_listings(
    engine: Engine, listings: Sequence[Listing | RequestError], fields: Sequence[str], names: Mapping[str, str]
) -> Encoding:
    """Encodes in one call of the engine all listings that were not refused before.

    Args:
        listings: N of them, or why there is none.
        fields: where each stands in the request.
        names: fields below these, by a listing's field, where they differ.
    """
    usable = [(position, one) for position, one in enumerate(listings) if isinstance(one, Listing)]
    outcomes: dict[int, Outcome] = {
        position: one for position, one in enumerate(listings) if isinstance(one, RequestError)
    }
    if not usable:
        return Encoding(outcomes=list(outcomes.values()))
    encoded = engine.encode([one for _, one in usable])
    for row, (position, _) in enumerate(usable):
        if (refused := encoded.refused.get(row)) is None:
            outcomes[position] = encoded.vectors[row]
        else:
            name = names.get(refused.field, refused.field)
            outcomes[position] = InvalidRequestError(f"{fields[position]}.{name}", refused.reason)
    return Encoding(
        outcomes=[outcomes[position] for position in range(len(listings))],
        prepare_s=encoded.prepare_s,
        encode_s=encoded.encode_s,
    )
