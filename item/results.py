"""What the client takes and gives back: plain dataclasses around the messages of the contract."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

import grpc
import numpy as np
import numpy.typing as npt

from item.catalog.listing import AttributeValue, Listing
from item.errors import ConfigError, ServiceError
from item.v1 import item_pb2

Vectors = npt.NDArray[np.float32]
Conditions = Sequence[str] | item_pb2.Filter  # see `filter_message`
CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}

CONDITION = re.compile(r"\s*(?P<name>[^<>=]*[^<>=\s])\s*(?P<sign><=|>=|<|>|=)\s*(?P<value>[^<>=\s].*?)\s*", re.DOTALL)
BOUNDS = {"<=": "at_most", "<": "below", ">=": "at_least", ">": "above"}
UNDER = "under:"
BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What is encoded: words, a picture, or both. `text` is a query or a title; `image` a file or its bytes.

    `adapter` is the name of one that is loaded (`Client.adapters`); empty: the model alone. Its vectors are of a
    space of their own.
    """

    text: str = ""
    description: str = ""
    image: bytes | str | Path | None = None
    adapter: str = ""

    def message(self, field: str) -> item_pb2.Input:
        """As a message. Raises ConfigError, naming the field, for text or a picture that cannot be read."""
        try:
            image = read_image(self.image)
            return item_pb2.Input(
                text=self.text, description=self.description, image=image, adapter=self.adapter or None
            )
        except OSError as error:
            raise ConfigError(f"{field}.image: {self.image!s} cannot be read: {error.strerror}") from error
        except (TypeError, ValueError) as error:  # no str, or one that UTF-8 cannot hold
            raise ConfigError(f"{field}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Part(Input):
    """One point of the space that a query is made of: an input, a stored product, or a vector with its space.

    `vector` is (D,); `weight` counts where a query has several parts.
    """

    product_id: str = ""
    vector: Vectors | None = None
    space: str = ""
    weight: float = 1.0

    def part_message(self, field: str) -> item_pb2.QueryPart:
        """As a message. Raises ConfigError, naming the field, unless exactly one source is given."""
        has_input = bool(self.text or self.description or self.image is not None)
        if has_input + bool(self.product_id) + (self.vector is not None) != 1:
            raise ConfigError(f"{field}: give words and/or a picture, or product_id, or vector; parts can be combined")
        if has_input:
            return item_pb2.QueryPart(input=self.message(f"{field}.input"), weight=self.weight)
        if self.vector is None:
            return item_pb2.QueryPart(product_id=self.product_id, weight=self.weight)
        if not self.space:
            raise ConfigError(f"{field}.space: a vector comes with its space, for instance EmbedResult.space")
        values = np.asarray(self.vector, "<f4").tobytes()
        return item_pb2.QueryPart(vector=item_pb2.Vector(values=values, space=self.space), weight=self.weight)


class Terms(TypedDict, total=False):
    """The fields of `Query` that say what may be a hit, and in which order; by keyword to `Client.search`."""

    filter: Conditions
    leave_out: Collection[str]
    lexical_weight: float | None
    min_score: float | None
    collapse_groups: bool
    diversity: float | None
    sort: str
    facets: Sequence[str]
    window: int | None
    page_token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What to look for: the weighted sum of its parts, drawn to positive examples and away from negative ones.

    Positive examples need no parts.

    Args:
        filter: what hits have to pass: all conditions of a list, for instance ``["price<=20", "under:Home"]``
            (`filter_message`), or a message of the contract.
        leave_out: ids that are never hits.
        lexical_weight: within [0, 1], of full-text search beside vectors in the order of hits.
        min_score: the least score of a hit.
        collapse_groups: one hit of each `group_id`.
        diversity: within [0, 1], how much hits should differ from those before them.
        sort: an attribute by which the window's hits come, ``"price"``, or ``"-price"`` for the largest first.
        facets: what to count over the window's hits: attributes, or ``"category:2"`` for paths of up to two levels.
        window: how many of the closest products are sorted, chosen from, fused with words' and counted (100).
        page_token: `SearchResult.next_page_token` of the page before.
    """

    parts: Sequence[Part] = ()
    positive_examples: Sequence[Part] = ()
    negative_examples: Sequence[Part] = ()
    filter: Conditions = ()
    leave_out: Collection[str] = ()
    lexical_weight: float | None = None
    min_score: float | None = None
    collapse_groups: bool = False
    diversity: float | None = None
    sort: str = ""
    facets: Sequence[str] = ()
    window: int | None = None
    page_token: str = ""

    def query_message(self, field: str) -> item_pb2.Query:
        """As a message. Raises ConfigError as its parts and `filter_message` do."""

        def messages(name: str) -> list[item_pb2.QueryPart]:
            return [part.part_message(f"{field}.{name}[{number}]") for number, part in enumerate(getattr(self, name))]

        return item_pb2.Query(
            parts=messages("parts"),
            positive_examples=messages("positive_examples"),
            negative_examples=messages("negative_examples"),
            filter=filter_message(self.filter, f"{field}.filter"),
            leave_out_ids=self.leave_out,
            lexical_weight=self.lexical_weight,
            min_score=self.min_score,
            collapse_groups=self.collapse_groups,
            diversity=self.diversity,
            sort=sort_message(self.sort) if self.sort else None,
            facets=map(facet_request, self.facets),
            window=self.window,
            page_token=self.page_token,
        )


def sort_message(text: str) -> item_pb2.Sort:
    """``"price"`` as a message, ``"-price"`` for the largest first."""
    return item_pb2.Sort(attribute=text.removeprefix("-"), descending=text.startswith("-"))


def facet_request(text: str) -> item_pb2.FacetRequest:
    """An attribute's name, or ``"category:2"``, as a message."""
    name, _, level = text.partition(":")
    if name == "category" and level.isdecimal():
        return item_pb2.FacetRequest(category_level=int(level))
    return item_pb2.FacetRequest(attribute=text)


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
class Product:
    """A stored product; `image` is the catalogue's reference to its main picture, empty without one.

    Hits come without description.
    """

    product_id: str
    title: str
    description: str
    category: tuple[str, ...]
    group_id: str | None
    language: str | None
    attributes: dict[str, AttributeValue]
    image: str

    @classmethod
    def of(cls, message: item_pb2.Product) -> Product:
        return cls(**product_fields(message))


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


def values_of(vector: item_pb2.Vector) -> Vectors:
    """(D,) float32 out of a message."""
    return np.frombuffer(vector.values, "<f4").astype(np.float32)


def error_of(message: item_pb2.Error) -> ServiceError:
    """Why one item of a call was refused."""
    details = f"{message.field}: {message.message}" if message.field else message.message
    return ServiceError(CODE_NAMES.get(message.code, str(message.code)), details)


def product_fields(message: item_pb2.Product) -> dict[str, Any]:
    """The fields of `Product` out of a message."""
    return {
        "product_id": message.product_id,
        "title": message.title,
        "description": message.description,
        "category": tuple(message.category),
        "group_id": message.group_id if message.HasField("group_id") else None,
        "language": message.language if message.HasField("language") else None,
        "attributes": {name: attribute_of(value) for name, value in message.attributes.items()},
        "image": message.images[0].reference if message.images else "",
    }


def attribute_of(message: item_pb2.AttributeValue) -> AttributeValue:
    """An attribute's value by its kind."""
    match message.WhichOneof("kind"):
        case "string_list":
            return list(message.string_list.values)
        case "number_value":
            return message.number_value
        case "bool_value":
            return message.bool_value
        case _:
            return message.string_value


def attribute_message(value: AttributeValue) -> item_pb2.AttributeValue:
    """An attribute's value by its type."""
    match value:
        case bool():
            return item_pb2.AttributeValue(bool_value=value)
        case str():
            return item_pb2.AttributeValue(string_value=value)
        case list():
            return item_pb2.AttributeValue(string_list=item_pb2.StringList(values=value))
        case _:
            return item_pb2.AttributeValue(number_value=value)


def product_message(listing: Listing | item_pb2.Product, field: str, *, with_picture: bool = True) -> item_pb2.Product:
    """A listing with its main picture as a message; a message as it is.

    Raises:
        ConfigError: with the field: a picture that cannot be read, or a value that is none of the contract's.
    """
    if isinstance(listing, item_pb2.Product):
        return listing
    picture = listing.images[0] if listing.images and with_picture else None
    try:
        return item_pb2.Product(
            product_id=listing.product_id,
            title=listing.title,
            description=listing.description,
            category=listing.category,
            group_id=listing.group_id,
            language=listing.language,
            attributes={name: attribute_message(value) for name, value in listing.attributes.items()},
            images=[item_pb2.Picture(data=read_image(picture.path or picture.data), reference=picture.reference)]
            if picture
            else [],
        )
    except OSError as error:
        raise ConfigError(f"{field}.image: {error.filename} cannot be read: {error.strerror}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{field}: {error}") from error


def filter_message(conditions: Conditions, field: str) -> item_pb2.Filter | None:
    """Conditions that all have to hold, as a message; None for none. Raises ConfigError for what is no condition.

    `colour=red`, `size=42`, `new=true`: an attribute equals a text, or the number or boolean that it reads as, or is a
    list that contains the text. `price<=20`, `price<20`, `price>=5`, `price>5`: a number lies within a range.
    `under:Home/Mugs`: the category is this one or lies under it.
    """
    if isinstance(conditions, item_pb2.Filter):
        return conditions
    if isinstance(conditions, str):
        raise ConfigError(f"{field}: {conditions!r} is one string; give a list: [{conditions!r}]")
    filters = [condition_message(one, field) for one in conditions]
    if len(filters) > 1:
        return item_pb2.Filter(all=item_pb2.FilterList(filters=filters))
    return filters[0] if filters else None


def condition_message(text: str, field: str) -> item_pb2.Filter:
    """One condition of `filter_message`."""
    if text.startswith(UNDER) and (category := category_of(text.removeprefix(UNDER))):
        return item_pb2.Filter(under=item_pb2.UnderFilter(category=category))
    found = CONDITION.fullmatch(text)
    if found is None or text.startswith(UNDER):
        raise ConfigError(
            f"{field}: {text!r} is no condition; give name=value, name<=number, name<number, name>=number, name>number "
            f"or {UNDER}A/B"
        )
    name, sign, value = found["name"], found["sign"], found["value"]
    number = finite_number(value)
    if sign == "=":
        readings = [value, number, BOOLEANS.get(value.lower())]
        values = [attribute_message(one) for one in readings if one is not None]
        kind: dict[str, Any] = {"in": item_pb2.InFilter(attribute=name, values=values)}  # a keyword of Python's
        return item_pb2.Filter(**kind)
    if number is None:
        raise ConfigError(f"{field}: {text!r}: {value!r} is no finite number; {sign} compares numbers")
    return item_pb2.Filter(range=item_pb2.RangeFilter(attribute=name, **{BOUNDS[sign]: number}))


def category_of(text: str) -> list[str]:
    """The levels of `A/B`; a slash at either end says nothing."""
    return [level for level in text.split("/") if level]


def finite_number(text: str) -> float | None:
    """The number that a text is, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def enum_name(name: str, prefix: str) -> str:
    """`SEARCH_PLAN_EXACT` without its prefix, in lower case."""
    return name.removeprefix(prefix).lower()


def read_image(image: bytes | str | Path | None) -> bytes | None:
    """The encoded picture."""
    return Path(image).read_bytes() if isinstance(image, str | Path) else image
