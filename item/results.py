"""What embedding, searching, predicting and writing return: dataclasses made of the contract's messages."""

from __future__ import annotations

from dataclasses import dataclass, field

import grpc
import numpy as np
import numpy.typing as npt

from item.catalog.listing import AttributeValue
from item.errors import ServiceError
from item.products import Product, attribute_of, product_fields
from item.v1 import item_pb2

Vectors = npt.NDArray[np.float32]
CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Seconds that a call spent on the server in each stage."""

    queue_s: float
    prepare_s: float
    encode_s: float
    search_s: float

    @classmethod
    def of(cls, message: item_pb2.StageTimes) -> StageTimes:
        return cls(
            queue_s=message.queue_s,
            prepare_s=message.prepare_s,
            encode_s=message.encode_s,
            search_s=message.search_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedResult:
    """Vectors of N inputs in their order: (N, D) float32 of unit norm; NaN where an input was refused.

    `errors` says by position why. D is 0 where every input was refused. `spaces` are those of the vectors, empty where
    there is none; `space` is the one of all of them, empty where adapters make them differ.
    """

    vectors: Vectors
    errors: dict[int, ServiceError]
    space: str
    spaces: list[str]
    times: StageTimes

    @classmethod
    def of(cls, message: item_pb2.EmbedResponse) -> EmbedResult:
        given = {row: result.vector for row, result in enumerate(message.results) if result.HasField("vector")}
        first = next(iter(given.values()), item_pb2.Vector())
        vectors = np.full((len(message.results), len(first.values) // 4), np.nan, dtype=np.float32)
        for row, vector in given.items():
            vectors[row] = values_of(vector)
        errors = {row: error_of(one.error) for row, one in enumerate(message.results) if one.HasField("error")}
        spaces = [result.vector.space for result in message.results]
        several = len({space for space in spaces if space}) > 1
        return cls(
            vectors=vectors,
            errors=errors,
            space="" if several else first.space,
            spaces=spaces,
            times=StageTimes.of(message.times),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit(Product):
    """A product found, and the cosine between it and the query, within [-1, 1].

    `group_size` is the number of products of its group that pass the filter, where groups are collapsed, else 1.
    """

    score: float
    group_size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FacetValue:
    """A value, or the levels of a category path, and how many of the window's hits have it."""

    value: AttributeValue | tuple[str, ...]
    count: int

    @classmethod
    def of(cls, message: item_pb2.FacetValue) -> FacetValue:
        value = attribute_of(message.value) if message.HasField("value") else tuple(message.category)
        return cls(value=value, count=message.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The hits of one query, the best first; `error` says why there are none.

    `plan` is how the products were searched, for instance ``"exact"``; `times` are those of the whole call. `facets`
    are those that were asked for, the most frequent value first. `next_page_token` says where the next page begins;
    empty: there is none.
    """

    hits: list[Hit]
    error: ServiceError | None
    plan: str
    space: str
    times: StageTimes
    facets: list[list[FacetValue]] = field(default_factory=list)
    next_page_token: str = ""

    @classmethod
    def of(cls, message: item_pb2.SearchResult, times: StageTimes) -> SearchResult:
        return cls(
            hits=[
                Hit(**product_fields(hit.product), score=hit.score, group_size=hit.group_size) for hit in message.hits
            ],
            error=error_of(message.error) if message.HasField("error") else None,
            plan=enum_name(item_pb2.SearchPlan.Name(message.plan), "SEARCH_PLAN_"),
            space=message.space,
            times=times,
            facets=[[FacetValue.of(value) for value in facet.values] for facet in message.facets],
            next_page_token=message.next_page_token,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteResult:
    """What became of a product that was to be written or deleted; `error` says why nothing changed.

    `created`: whether it was not there before.
    """

    product_id: str
    error: ServiceError | None
    created: bool = False

    @classmethod
    def of(cls, message: item_pb2.UpsertResult | item_pb2.DeleteResult) -> WriteResult:
        return cls(
            product_id=message.product_id,
            error=error_of(message.error) if message.HasField("error") else None,
            created=isinstance(message, item_pb2.UpsertResult) and message.created,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryPath:
    """A category path and the probability of each of its levels, within [0, 1]."""

    category: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The most probable categories of one input, the best first; `error` says why there are none.

    `method` is how the probabilities came about: ``"head"``, calibrated, or ``"neighbour_vote"``, which is not.
    `adapter` told the categories below the first path's top level apart; empty: the model alone. `unknown`, within
    [0, 1], is the share of listings of the catalogue that resemble what the heads learned from more than this input
    does; None: there are no heads.
    """

    paths: list[CategoryPath]
    abstained: bool
    method: str
    adapter: str
    unknown: float | None
    error: ServiceError | None
    times: StageTimes

    @classmethod
    def of(cls, message: item_pb2.CategoryPrediction, times: StageTimes) -> Prediction:
        return cls(
            paths=[
                CategoryPath(
                    category=tuple(level.name for level in path.levels),
                    probabilities=tuple(level.probability for level in path.levels),
                )
                for path in message.paths
            ],
            abstained=message.abstained,
            method=enum_name(item_pb2.PredictionMethod.Name(message.method), "PREDICTION_METHOD_"),
            adapter=message.adapter,
            unknown=message.unknown if message.HasField("unknown") else None,
            error=error_of(message.error) if message.HasField("error") else None,
            times=times,
        )


def values_of(vector: item_pb2.Vector) -> Vectors:
    """(D,) float32 out of a message."""
    return np.frombuffer(vector.values, "<f4").astype(np.float32)


def error_of(message: item_pb2.Error) -> ServiceError:
    """Why one item of a call was refused."""
    details = f"{message.field}: {message.message}" if message.field else message.message
    return ServiceError(CODE_NAMES.get(message.code, str(message.code)), details)


def enum_name(name: str, prefix: str) -> str:
    """`SEARCH_PLAN_EXACT` without its prefix, in lower case."""
    return name.removeprefix(prefix).lower()
