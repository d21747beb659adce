"""What an operator's calls return: adapters, the model, generations, backups."""

from __future__ import annotations

from dataclasses import dataclass

from item.v1 import item_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInfo:
    """An adapter of the server's model folder; `loaded`: whether inputs may name it.

    `space` is that of vectors made with it, `category` the path that it is for; empty: any. `fault` says why it cannot
    be used; empty: it can.
    """

    name: str
    method: str
    space: str
    category: tuple[str, ...]
    num_parameters: int
    loaded: bool
    fault: str

    @classmethod
    def of(cls, message: item_pb2.AdapterInfo) -> AdapterInfo:
        return cls(
            name=message.name,
            method=message.method,
            space=message.space,
            category=tuple(message.category),
            num_parameters=message.num_parameters,
            loaded=message.loaded,
            fault=message.fault,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """The model that encodes. `variant` is empty for the model in full precision."""

    space: str
    vector_width: int
    variant: str
    engine: str

    @classmethod
    def of(cls, message: item_pb2.ModelInfo) -> ModelInfo:
        return cls(
            space=message.space, vector_width=message.vector_width, variant=message.variant, engine=message.engine
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedProduct:
    """A product by id and title."""

    product_id: str
    title: str

    @classmethod
    def of(cls, message: item_pb2.Product) -> NamedProduct:
        return cls(product_id=message.product_id, title=message.title)


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapSample:
    """A product with its nearest in the generation that is searched and in the new one, the best first.

    `overlap` is the share of them that both find, within [0, 1].
    """

    product: NamedProduct
    overlap: float
    before: list[NamedProduct]
    after: list[NamedProduct]

    @classmethod
    def of(cls, message: item_pb2.OverlapSample) -> OverlapSample:
        return cls(
            product=NamedProduct.of(message.product),
            overlap=message.overlap,
            before=[NamedProduct.of(one) for one in message.before],
            after=[NamedProduct.of(one) for one in message.after],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reembedding:
    """How far encoding a collection anew has come; the last one is `done`, or says what keeps it from being done.

    `num_encoded` of `num_products` are in the generation, `num_words_alone` of them, encoded in this call, without
    their picture. `refused` says by id why a product could not be encoded, of the first 100 of `num_refused`.
    `overlap_at_10` and `samples` compare the new generation with the one that is searched.
    """

    generation: str
    num_encoded: int
    num_products: int
    elapsed_s: float
    done: bool
    num_refused: int
    refused: dict[str, str]
    num_words_alone: int
    overlap_at_10: float | None
    samples: list[OverlapSample]

    @classmethod
    def of(cls, message: item_pb2.ReembedResponse) -> Reembedding:
        return cls(
            generation=message.generation,
            num_encoded=message.num_encoded,
            num_products=message.num_products,
            elapsed_s=message.elapsed_s,
            done=message.done,
            num_refused=message.num_refused,
            refused={one.product_id: one.reason for one in message.refused},
            num_words_alone=message.num_words_alone,
            overlap_at_10=message.overlap_at_10 if message.HasField("overlap_at_10") else None,
            samples=[OverlapSample.of(one) for one in message.samples],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Switched:
    """The generation that is searched now, and the one before.

    `num_encoded` products were written meanwhile and encoded anew for it.
    """

    generation: str
    previous_generation: str
    num_encoded: int

    @classmethod
    def of(cls, message: item_pb2.SwitchGenerationResponse | item_pb2.RollbackResponse) -> Switched:
        return cls(
            generation=message.generation,
            previous_generation=message.previous_generation,
            num_encoded=message.num_encoded,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A copy of a collection: its folder on the server, its products, its size."""

    path: str
    num_products: int
    size_bytes: int

    @classmethod
    def of(cls, message: item_pb2.BackupResponse) -> Backup:
        return cls(path=message.path, num_products=message.num_products, size_bytes=message.size_bytes)
