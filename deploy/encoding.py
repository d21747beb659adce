"""Listings of a request through the engine: each becomes a vector or its own error, all of them in one mixed batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from deploy.adapters import find_adapter
from deploy.errors import InvalidRequestError, PreconditionError, RequestError, attempt
from deploy.messages import listing_of
from item.adapters.adapter import Adapter
from item.catalog.listing import Listing
from item.engine.interface import Engine, Vectors
from item.v1 import item_pb2

Outcome = Vectors | RequestError  # (D,) float32 of unit norm, or why there is none

INPUT_FIELDS = {"title": "text"}  # of Input, by a listing's field, where they differ


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """What became of N listings, in their order, and the seconds that it took. spaces: of their vectors."""

    outcomes: list[Outcome]
    spaces: list[str]
    prepare_s: float = 0.0
    encode_s: float = 0.0

    def times(self, search_s: float = 0.0) -> item_pb2.StageTimes:
        """The times as a message; the time in the queue is known to the server alone."""
        return item_pb2.StageTimes(prepare_s=self.prepare_s, encode_s=self.encode_s, search_s=search_s)


def encode_inputs(engine: Engine, inputs: Sequence[item_pb2.Input], fields: Sequence[str], space: str = "") -> Encoding:
    """Encodes all usable inputs in one call of the engine, each with its adapter.

    An adapter is looked up once, so that all of them get the same whatever is loaded or unloaded meanwhile.

    Args:
        inputs: N of them.
        fields: where each stands in the request.
        space: inputs whose vectors would be of another one are refused; empty: none are.
    """
    adapter_of = cache(lambda name: attempt(find_adapter, engine, name, ""))
    adapters: dict[int, Adapter] = {}

    def read(position: int, message: item_pb2.Input, field: str) -> Listing:
        listing = listing_of(message, field)
        if message.HasField("adapter"):
            adapter = adapter_of(message.adapter)
            if isinstance(adapter, RequestError):
                raise type(adapter)(f"{field}.adapter", adapter.reason)
            if space and (other := adapter.space(engine.space)) != space:
                raise PreconditionError(
                    f"{field}.adapter",
                    f"{message.adapter!r} makes vectors of space {other[:12]}, not of {space[:12]}, the space of the"
                    " collection; leave it unset",
                )
            adapters[position] = adapter
        return listing

    listings = [attempt(read, row, message, fields[row]) for row, message in enumerate(inputs)]
    return encode_listings(engine, listings, fields, INPUT_FIELDS, adapters)


def encode_listings(
    engine: Engine,
    listings: Sequence[Listing | RequestError],
    fields: Sequence[str],
    names: Mapping[str, str],
    adapters: Mapping[int, Adapter] | None = None,
) -> Encoding:
    """Encodes in one call of the engine all listings that were not refused before.

    Args:
        listings: N of them, or why there is none.
        fields: where each stands in the request.
        names: fields below these, by a listing's field, where they differ.
        adapters: by the position of a listing; the model alone encodes the others.
    """
    adapters = adapters or {}
    usable = [(position, one) for position, one in enumerate(listings) if isinstance(one, Listing)]
    outcomes: dict[int, Outcome] = {
        position: one for position, one in enumerate(listings) if isinstance(one, RequestError)
    }
    if not usable:
        return Encoding(outcomes=list(outcomes.values()), spaces=[""] * len(listings))
    encoded = engine.encode([one for _, one in usable], [adapters.get(position) for position, _ in usable])
    for row, (position, _) in enumerate(usable):
        if (refused := encoded.refused.get(row)) is None:
            outcomes[position] = encoded.vectors[row]
        else:
            name = names.get(refused.field, refused.field)
            outcomes[position] = InvalidRequestError(f"{fields[position]}.{name}", refused.reason)
    return Encoding(
        outcomes=[outcomes[position] for position in range(len(listings))],
        spaces=[
            adapters[position].space(engine.space) if position in adapters else engine.space
            for position in range(len(listings))
        ],
        prepare_s=encoded.prepare_s,
        encode_s=encoded.encode_s,
    )
