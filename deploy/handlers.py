"""What the service answers: functions of (request, identity, deadline), without a word of gRPC.

A server calls those that may use the model one at a time in its worker, and turns the errors of `deploy.errors` into
statuses.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from google.protobuf.timestamp_pb2 import Timestamp

import item
from deploy.categories import predict
from deploy.collections import DEFAULT
from deploy.encoding import Encoding, Outcome, encode_inputs
from deploy.errors import (
    Deadline,
    InvalidRequestError,
    NotFoundError,
    NotWritableError,
    PreconditionError,
    RequestError,
)
from deploy.hits import find, search_result
from deploy.messages import error_message, product_message, unit, vector_message
from deploy.queries import POINTS, Sought, sought_by
from deploy.update_mask import UpdateMask
from deploy.writes import write
from index.manifest import SegmentInfo
from index.store import Store
from index.vector_store import VectorStore
from item.engine.interface import Engine
from item.errors import ConfigError, SpaceError
from item.v1 import item_pb2

DEFAULT_K = 10
DEFAULT_TOP_K = 5
MAX_TOP_K = 100
TAKE_OVER_RETRY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one call may ask for.

    Args:
        max_inputs: inputs, queries or products of a call.
        max_k: hits of a query.
        max_message_bytes: size of a request.
        max_window: hits of a query that are sorted or counted, and of all its pages.
    """

    max_inputs: int = 256
    max_k: int = 1000
    max_message_bytes: int = 64 * 2**20
    max_window: int = 10_000

    def __post_init__(self) -> None:
        for name in ("max_inputs", "max_k", "max_message_bytes", "max_window"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name}: {value} is below 1")
        if self.max_window < self.max_k:
            raise ConfigError(f"max_window: {self.max_window} is below max_k, {self.max_k}")


class Handlers:
    """The rpcs over an engine and collections by name, none for a server that only encodes.

    `identity` says who asks. What is wrong with one input, query or product is in its own result; what is wrong with
    the call is raised as a RequestError. `read_only`: collections will never be writable, else they may become so.

    Raises:
        SpaceError: (methods too) a collection was built by another model than the engine's.
    """

    def __init__(
        self, engine: Engine, collections: Mapping[str, VectorStore], limits: Limits, *, read_only: bool = False
    ) -> None:
        self.engine = engine
        self.collections = collections
        self.limits = limits
        self.read_only = read_only
        self._writing = threading.Lock()  # from reading what is stored to writing what was made of it
        for name, store in collections.items():
            check_same_space(engine, name, store)

    def embed(self, request: item_pb2.EmbedRequest, identity: str, deadline: Deadline) -> item_pb2.EmbedResponse:
        """Vectors of several inputs."""
        self._check_number("inputs", len(request.inputs))
        dimensions = self._dimensions(request)
        encoding = self._encode_all(request.inputs, deadline)
        results = [self._embed_result(outcome, dimensions) for outcome in encoding.outcomes]
        return item_pb2.EmbedResponse(results=results, times=encoding.times())

    def embed_window(
        self, requests: Sequence[item_pb2.EmbedStreamRequest], identity: str, deadline: Deadline
    ) -> list[item_pb2.EmbedStreamResponse]:
        """Vectors of consecutive requests of a stream, encoded together."""
        deadline.check()
        encoding = encode_inputs(self.engine, [request.input for request in requests], ["input"] * len(requests))
        return [
            item_pb2.EmbedStreamResponse(result=self._stream_result(request, outcome))
            for request, outcome in zip(requests, encoding.outcomes, strict=True)
        ]

    def search(self, request: item_pb2.SearchRequest, identity: str, deadline: Deadline) -> item_pb2.SearchResponse:
        """The products closest to each of several queries."""
        store = self._store(request.collection)
        self._check_number("queries", len(request.queries))
        k = self._between("k", request.k if request.HasField("k") else DEFAULT_K, self.limits.max_k)
        most = self.limits.max_inputs
        if (number := sum(len(getattr(query, name)) for query in request.queries for name in POINTS)) > most:
            raise InvalidRequestError("queries", f"{number} parts and examples; give up to {most} in one call")
        deadline.check()
        window = self.limits.max_window
        sought, encoding = sought_by(request, k, window, store, partial(encode_inputs, self.engine))
        start = time.perf_counter()
        found = iter(find(store, [one for one in sought if isinstance(one, Sought)], k, deadline, max_window=window))
        self._store(request.collection)  # again: meanwhile it may have followed to another model's vectors
        results = [
            search_result(next(found), self.engine.space)
            if isinstance(one, Sought)
            else item_pb2.SearchResult(error=error_message(one))
            for one in sought
        ]
        return item_pb2.SearchResponse(results=results, times=encoding.times(time.perf_counter() - start))

    def predict_category(
        self, request: item_pb2.PredictCategoryRequest, identity: str, deadline: Deadline
    ) -> item_pb2.PredictCategoryResponse:
        """The categories of several inputs, by the vote of the closest products."""
        store = self._store(request.collection)
        self._check_number("inputs", len(request.inputs))
        top_k = self._between("top_k", request.top_k if request.HasField("top_k") else DEFAULT_TOP_K, MAX_TOP_K)
        encoding = self._encode_all(request.inputs, deadline)
        start = time.perf_counter()
        predictions = []
        for outcome in encoding.outcomes:
            deadline.check()
            if isinstance(outcome, RequestError):
                predictions.append(item_pb2.CategoryPrediction(error=error_message(outcome)))
            else:
                predictions.append(predict(store, outcome, top_k, tuple(request.start_category), deadline))
        self._store(request.collection)  # again, as in `search`
        times = encoding.times(time.perf_counter() - start)
        return item_pb2.PredictCategoryResponse(predictions=predictions, times=times)

    def upsert_products(
        self, request: item_pb2.UpsertProductsRequest, identity: str, deadline: Deadline
    ) -> item_pb2.UpsertProductsResponse:
        """Writes products, whole or the fields of an update mask."""
        store = self._writable_store(request.collection)
        self._check_number("products", len(request.products))
        mask = UpdateMask.of(request.update_mask.paths) if request.HasField("update_mask") else None
        deadline.check()
        with self._writing:
            return write(store, self.engine, request.products, mask, deadline)

    def delete_products(
        self, request: item_pb2.DeleteProductsRequest, identity: str, deadline: Deadline
    ) -> item_pb2.DeleteProductsResponse:
        """Deletes products."""
        store = self._writable_store(request.collection)
        self._check_number("product_ids", len(request.product_ids))
        deadline.check()
        with self._writing:
            was_there = store.delete(list(request.product_ids))
        results = [item_pb2.DeleteResult(product_id=product_id) for product_id in request.product_ids]
        for row, result in enumerate(results):
            if not was_there[row]:
                error = NotFoundError(f"product_ids[{row}]", f"{result.product_id!r} is not in the collection")
                result.error.CopyFrom(error_message(error))
        return item_pb2.DeleteProductsResponse(results=results)

    def get_product(
        self, request: item_pb2.GetProductRequest, identity: str, deadline: Deadline
    ) -> item_pb2.GetProductResponse:
        """One stored product."""
        store = self._store(request.collection)
        if not request.product_id:
            raise InvalidRequestError("product_id", "is empty; give a product's id")
        product, vector = store.product(request.product_id), store.vector(request.product_id)
        if product is None or vector is None:
            raise NotFoundError("product_id", f"{request.product_id!r} is not in the collection")
        response = item_pb2.GetProductResponse(product=product_message(product, with_description=True))
        if request.include_vector:
            response.vector.CopyFrom(vector_message(vector, store.about.space))
        return response

    def get_info(self, request: item_pb2.GetInfoRequest, identity: str, deadline: Deadline) -> item_pb2.GetInfoResponse:
        """What is served."""
        engine, pictures = self.engine, self.engine.preprocessor.config
        return item_pb2.GetInfoResponse(
            server_version=item.__version__,
            model=item_pb2.ModelInfo(
                space=engine.space,
                vector_width=engine.vector_width,
                variant=engine.variant,
                engine=engine.name,
            ),
            collections=[collection_info(name, store) for name, store in sorted(self.collections.items())],
            limits=item_pb2.Limits(
                max_inputs=self.limits.max_inputs,
                max_k=self.limits.max_k,
                max_message_bytes=self.limits.max_message_bytes,
                max_window=self.limits.max_window,
                max_image_bytes=pictures.max_picture_bytes,
                max_image_pixels=pictures.max_picture_pixels,
            ),
        )

    def _encode_all(self, inputs: Sequence[item_pb2.Input], deadline: Deadline) -> Encoding:
        deadline.check()
        return encode_inputs(self.engine, inputs, [f"inputs[{position}]" for position in range(len(inputs))])

    def _embed_result(self, outcome: Outcome, dimensions: int) -> item_pb2.EmbedResult:
        try:
            if isinstance(outcome, RequestError):
                raise outcome
            shorter = outcome if dimensions == len(outcome) else unit(outcome[:dimensions], "dimensions")
            return item_pb2.EmbedResult(vector=vector_message(shorter, self.engine.space))
        except RequestError as error:
            return item_pb2.EmbedResult(error=error_message(error))

    def _stream_result(self, request: item_pb2.EmbedStreamRequest, outcome: Outcome) -> item_pb2.EmbedResult:
        try:
            return self._embed_result(outcome, self._dimensions(request))
        except RequestError as error:
            return item_pb2.EmbedResult(error=error_message(error))

    def _store(self, collection: str) -> VectorStore:
        """The collection's store at present; one that is only read may have followed to another model's vectors."""
        if not self.collections:
            raise PreconditionError("collection", "no index is loaded; build one with index.build, serve it by --index")
        name = collection or DEFAULT
        if name not in self.collections:
            there = ", ".join(map(repr, sorted(self.collections)))
            raise NotFoundError("collection", f"{name!r} is not there; this server has {there}")
        store = self.collections[name]
        check_same_space(self.engine, name, store)
        return store

    def _writable_store(self, collection: str) -> VectorStore:
        store = self._store(collection)
        if store.writable:
            return store
        if self.read_only:
            raise PreconditionError("collection", "this server only reads; write through one without --read-only")
        raise NotWritableError(
            f"collection: {collection or DEFAULT!r} is still written to by another process; come again later",
            TAKE_OVER_RETRY_S,
        )

    def _check_number(self, field: str, number: int) -> None:
        if not 1 <= number <= self.limits.max_inputs:
            raise InvalidRequestError(field, f"{number} of them; give 1 to {self.limits.max_inputs} in one call")

    def _between(self, field: str, value: int, highest: int) -> int:
        if not 1 <= value <= highest:
            raise InvalidRequestError(field, f"{value} is not within 1 to {highest}")
        return value

    def _dimensions(self, request: item_pb2.EmbedRequest | item_pb2.EmbedStreamRequest) -> int:
        width = self.engine.vector_width
        return self._between("dimensions", request.dimensions, width) if request.HasField("dimensions") else width


def check_same_space(engine: Engine, name: str, store: VectorStore) -> None:
    """Raises SpaceError where a collection was built by another model."""
    about = store.about
    if (about.space, about.vector_width) != (engine.space, engine.vector_width):
        raise SpaceError(
            f"the collection {name!r} is of space {about.space[:12]} (width {about.vector_width}), the model of space "
            f"{engine.space[:12]} (width {engine.vector_width}); build the collection with this model, "
            f"or serve the model of the collection, {about.model}"
        )


def collection_info(name: str, store: VectorStore) -> item_pb2.CollectionInfo:
    """A collection as it is now."""
    num_products, about, created = len(store), store.about, Timestamp()
    created.FromJsonString(about.created)
    return item_pb2.CollectionInfo(
        name=name,
        num_products=num_products,
        space=about.space,
        vector_width=about.vector_width,
        generation=store.generation,
        create_time=created,
        indexes=map(index_info, store.indexes() if isinstance(store, Store) else ()),
        recall_estimate=store.recall().recall if isinstance(store, Store) else None,
    )


def index_info(segment: SegmentInfo) -> item_pb2.IndexInfo:
    """The index of a part of a collection."""
    recall = segment.depths[0].recall if segment.depths else 1.0
    return item_pb2.IndexInfo(kind=segment.factory, num_products=segment.count, tuned_recall=recall)
