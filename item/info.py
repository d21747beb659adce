"""What a server serves: its model, its collections, its limits."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, datetime

from item.v1 import item_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionInfo:
    """A collection that can be searched; `created` says when the generation that is searched was built.

    `indexes` are its parts' as FAISS names them, with the number of products of each. `recall_estimate` is the mean
    share of the exact hits in the answers that were searched again; None: none was yet.
    """

    name: str
    num_products: int
    space: str
    vector_width: int
    generation: str
    created: datetime
    indexes: list[tuple[str, int]]
    recall_estimate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one call may ask for."""

    max_inputs: int
    max_k: int
    max_message_bytes: int
    max_image_bytes: int
    max_image_pixels: int
    max_window: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """What a server serves. `variant` is empty for the model in full precision."""

    server_version: str
    engine: str
    variant: str
    space: str
    vector_width: int
    adapters: list[str]
    collections: list[CollectionInfo]
    limits: Limits

    @classmethod
    def of(cls, message: item_pb2.GetInfoResponse) -> Info:
        return cls(
            server_version=message.server_version,
            engine=message.model.engine,
            variant=message.model.variant,
            space=message.model.space,
            vector_width=message.model.vector_width,
            adapters=[adapter.name for adapter in message.adapters],
            collections=[
                CollectionInfo(
                    name=one.name,
                    num_products=one.num_products,
                    space=one.space,
                    vector_width=one.vector_width,
                    generation=one.generation,
                    created=one.create_time.ToDatetime(UTC),
                    indexes=[(index.kind, index.num_products) for index in one.indexes],
                    recall_estimate=one.recall_estimate if one.HasField("recall_estimate") else None,
                )
                for one in message.collections
            ],
            limits=Limits(**{one.name: getattr(message.limits, one.name) for one in fields(Limits)}),
        )
