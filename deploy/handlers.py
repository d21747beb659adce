"""What the service answers: functions of (request, identity, deadline), without a word of gRPC.

A server calls them one at a time in its worker and turns the errors of `deploy.errors` into statuses.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp

import item
from deploy.categories import predict
from deploy.encoding import Encoding, Outcome, encode_inputs
from deploy.errors import Deadline, InvalidRequestError, NotFoundError, PreconditionError, RequestError
from deploy.messages import error_message, product_message, unit, vector_message
from deploy.queries import left_out, query_vectors
from index.store import Hit, Store
from item.engine.interface import Engine
from item.errors import ConfigError, SpaceError
from item.v1 import item_pb2

COLLECTION = "default"
DEFAULT_K = 10
DEFAULT_TOP_K = 5
MAX_TOP_K = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one call may ask for.

    Args:
        max_inputs: inputs or queries of a call.
        max_k: hits of a query.
        max_message_bytes: size of a request.
    """

    max_inputs: int = 256
    max_k: int = 1000
    max_message_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        for name in ("max_inputs", "max_k", "max_message_bytes"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name}: {value} is below 1")


class Handlers:
    """The rpcs over an engine and, where there is one, an index.

    `identity` says who asks. What is wrong with one input or query is in its own result; what is wrong with the call
    is raised as a RequestError.

    Raises:
        SpaceError: the index was built by another model than the engine's.
    """

    def __init__(self, engine: Engine, store: Store | None, limits: Limits) -> None:
        if store is not None:
            check_same_space(engine, store)
        self.engine = engine
        self.store = store
        self.limits = limits

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
        num_parts = sum(len(query.parts) for query in request.queries)
        if num_parts > self.limits.max_inputs:
            raise InvalidRequestError("queries", f"{num_parts} parts; give up to {self.limits.max_inputs} in one call")
        deadline.check()
        encoding = query_vectors(request.queries, store, partial(encode_inputs, self.engine))
        deadline.check()
        start = time.perf_counter()
        results = list(self._search_all(store, request.queries, encoding.outcomes, k, deadline))
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
                predictions.append(predict(store, outcome, top_k, tuple(request.start_category)))
        times = encoding.times(time.perf_counter() - start)
        return item_pb2.PredictCategoryResponse(predictions=predictions, times=times)

    def get_product(
        self, request: item_pb2.GetProductRequest, identity: str, deadline: Deadline
    ) -> item_pb2.GetProductResponse:
        """One stored product."""
        store = self._store(request.collection)
        product, vector = store.product(request.product_id), store.vector(request.product_id)
        if product is None or vector is None:
            raise NotFoundError("product_id", f"{request.product_id!r} is not in the index")
        response = item_pb2.GetProductResponse(product=product_message(product))
        if request.include_vector:
            response.vector.CopyFrom(vector_message(vector, store.manifest.space))
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
            collections=[] if self.store is None else [collection_info(self.store)],
            limits=item_pb2.Limits(
                max_inputs=self.limits.max_inputs,
                max_k=self.limits.max_k,
                max_message_bytes=self.limits.max_message_bytes,
                max_image_bytes=pictures.max_picture_bytes,
                max_image_pixels=pictures.max_picture_pixels,
            ),
        )

    def _encode_all(self, inputs: Sequence[item_pb2.Input], deadline: Deadline) -> Encoding:
        deadline.check()
        return encode_inputs(self.engine, inputs, [f"inputs[{position}]" for position in range(len(inputs))])

    def _search_all(
        self, store: Store, queries: Sequence[item_pb2.Query], outcomes: Sequence[Outcome], k: int, deadline: Deadline
    ) -> Iterator[item_pb2.SearchResult]:
        vectors = {row: outcome for row, outcome in enumerate(outcomes) if not isinstance(outcome, RequestError)}
        leave_out = [left_out(queries[row]) for row in vectors]
        found = store.search(np.stack(list(vectors.values())), k, leave_out) if vectors else []
        hits = dict(zip(vectors, found, strict=True))
        for row, outcome in enumerate(outcomes):
            deadline.check()
            if isinstance(outcome, RequestError):
                yield item_pb2.SearchResult(error=error_message(outcome))
            else:
                yield search_result(hits[row], store)

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

    def _store(self, collection: str) -> Store:
        if collection not in ("", COLLECTION):
            raise NotFoundError("collection", f"{collection!r} is not there; this server has {COLLECTION!r} alone")
        if self.store is None:
            raise PreconditionError("collection", "no index is loaded; build one with index.build, serve it by --index")
        return self.store

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


def check_same_space(engine: Engine, store: Store) -> None:
    """Raises SpaceError where an index was built by another model."""
    manifest = store.manifest
    if (manifest.space, manifest.vector_width) != (engine.space, engine.vector_width):
        raise SpaceError(
            f"the index is of space {manifest.space[:12]} (width {manifest.vector_width}), the model of space "
            f"{engine.space[:12]} (width {engine.vector_width}); build the index with this model, "
            f"or serve the model of the index, {manifest.model}"
        )


def search_result(hits: Sequence[Hit], store: Store) -> item_pb2.SearchResult:
    """The hits of one query with what the store knows of them."""
    return item_pb2.SearchResult(
        hits=[item_pb2.Hit(product=product_message(store.product_at(hit.row)), score=hit.score) for hit in hits],
        plan=item_pb2.SEARCH_PLAN_EXACT,
        space=store.manifest.space,
    )


def collection_info(store: Store) -> item_pb2.CollectionInfo:
    """The one collection there is."""
    manifest, created = store.manifest, Timestamp()
    created.FromJsonString(manifest.created)
    return item_pb2.CollectionInfo(
        name=COLLECTION,
        num_products=manifest.count,
        space=manifest.space,
        vector_width=manifest.vector_width,
        create_time=created,
    )
