"""What the service answers: functions of (request, identity, deadline), without a word of gRPC.

A server calls those that may use the model one at a time in its worker, and turns the errors of `deploy.errors` into
statuses.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp

import item
from deploy.adapters import loaded_adapters
from deploy.categories import predict
from deploy.collections import DEFAULT, Collections
from deploy.encoding import Encoding, Outcome, encode_inputs
from deploy.errors import (
    Deadline,
    InvalidRequestError,
    NotFoundError,
    NotWritableError,
    PreconditionError,
    RequestError,
)
from deploy.heads import predict_by_heads
from deploy.hits import find, search_result
from deploy.messages import error_message, product_message, unit, vector_message
from deploy.queries import POINTS, Sought, sought_by
from deploy.update_mask import UpdateMask
from deploy.writes import write
from index.about import About
from index.segment import Segment
from index.store import Store
from index.vector_store import VectorStore
from item.engine.interface import Engine
from item.engine.loading import load_engine
from item.errors import ConfigError, ModelError, SpaceError
from item.v1 import item_pb2

DEFAULT_K = 10
DEFAULT_TOP_K = 5
MAX_TOP_K = 100
TAKE_OVER_RETRY_S = 1.0

logger = logging.getLogger(__name__)

LoadEngine = Callable[[Path, str | None], Engine]  # of a model folder and the name of a variant, None: full precision


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

    A collection is searched by the engine of its space. `engine` is that of inputs without a collection: that of the
    collection `default`, or of the only one. One that was switched to another model is served by it whatever `engine`
    is; `load` loads it.

    Raises:
        SpaceError: (methods too) there is no engine of a collection's space.
    """

    def __init__(
        self,
        engine: Engine,
        collections: Mapping[str, VectorStore],
        limits: Limits,
        *,
        read_only: bool = False,
        load: LoadEngine | None = None,
    ) -> None:
        self.engine = engine
        self.collections = collections
        self.limits = limits
        self.read_only = read_only
        self.load: LoadEngine = load or (lambda folder, variant: load_engine(folder, variant=variant))
        self.writing = threading.Lock()  # from reading what is stored to writing what was made of it
        self._engines = {engine.space: engine}
        for name, store in collections.items():
            about = store.about
            was_switched = isinstance(store, Store) and store.truth.level() is not None
            if about.space not in self._engines and was_switched and Path(about.model).is_dir():
                logger.warning("collection %r was switched to the model %s, which serves it", name, about.model)
                self._engines[about.space] = self.engine_of(about)
            self._engine_of(name, store)
            if name == DEFAULT or len(collections) == 1:
                self.engine = self._engines[store.about.space]

    def engine_of(self, about: About, model: str = "") -> Engine:
        """The engine that made a generation; loaded, where it is not there, from where its model lay, or lies now.

        Raises:
            PreconditionError: the folder is not there, or holds another model by now.
        """
        if about.space in self._engines:
            return self._engines[about.space]
        engine = self.load_model(model or about.model, about.variant)
        if engine.space != about.space:
            raise PreconditionError(
                "model",
                f"{model or about.model} is of space {engine.space[:12]} by now, the generation of space"
                f" {about.space[:12]}; give the folder of the model that made it",
            )
        return engine

    def load_model(self, model: str, variant: str) -> Engine:
        """The engine of a folder on this machine. Raises PreconditionError."""
        if not Path(model).is_dir():  # nothing is fetched because a caller asks for it
            raise PreconditionError("model", f"{model!r} is no folder on the server; give a model folder")
        try:
            return self.load(Path(model), variant or None)
        except ModelError as error:
            raise PreconditionError("model", str(error)) from error

    def change(self, name: str, engine: Engine, finish: Callable[[], Store]) -> Store:
        """Serves a collection from another store, that `finish` returns, by its engine; no write comes in between.

        Calls that have begun keep store and engine of before. Returns the store of before, for the caller to close when
        they have ended. Raises what `finish` raises, and nothing has changed.
        """
        assert isinstance(self.collections, Collections)
        with self.writing:
            leaving = self.collections[name].about.space
            after = finish()
            self._engines = {**self._engines, engine.space: engine}
            before = self.collections.replace(name, after)
            if name == DEFAULT or len(self.collections) == 1:
                self.engine = engine
        spaces = {leaving, self.engine.space, *(store.about.space for store in self.collections.values())}
        self._engines = {space: one for space, one in self._engines.items() if space in spaces}
        return before

    def replace_engine(self, before: Engine, after: Engine) -> None:
        """Encodes with `after` from now on wherever `before` did. Calls that have begun keep the one of before.

        Raises:
            PreconditionError: a collection would be left without the engine of its space, or `before` encodes no more.
        """
        with self.writing:
            if self.engine is not before:
                raise PreconditionError("", "another model has come to serve meanwhile; call again")
            self.check_replaceable(before, after)
            others = {space: one for space, one in self._engines.items() if one is not before}
            self._engines = {**others, after.space: after}
            self.engine = after

    def check_replaceable(self, before: Engine, after: Engine) -> None:
        """Raises PreconditionError where a collection that `before` encodes for is not of the space of `after`."""
        for name, store in sorted(self.collections.items()):
            if store.about.space == before.space != after.space:
                raise PreconditionError(
                    "variant",
                    f"the collection {name!r} is of space {before.space[:12]}, and {after.adapters.model} with the"
                    f" variant {after.variant!r} of space {after.space[:12]}; encode the collection anew with it"
                    " (Reembed, SwitchGeneration)",
                )

    def embed(self, request: item_pb2.EmbedRequest, identity: str, deadline: Deadline) -> item_pb2.EmbedResponse:
        """Vectors of several inputs."""
        self._check_number("inputs", len(request.inputs))
        engine = self.engine
        dimensions = self._dimensions(request, engine)
        encoding = encode_all(engine, request.inputs, deadline)
        made = zip(encoding.outcomes, encoding.spaces, strict=True)
        results = [embed_result(outcome, space, dimensions) for outcome, space in made]
        return item_pb2.EmbedResponse(results=results, times=encoding.times())

    def embed_window(
        self, requests: Sequence[item_pb2.EmbedStreamRequest], identity: str, deadline: Deadline
    ) -> list[item_pb2.EmbedStreamResponse]:
        """Vectors of consecutive requests of a stream, encoded together."""
        deadline.check()
        engine = self.engine
        encoding = encode_inputs(engine, [request.input for request in requests], ["input"] * len(requests))
        return [
            item_pb2.EmbedStreamResponse(result=self._stream_result(request, outcome, space, engine))
            for request, outcome, space in zip(requests, encoding.outcomes, encoding.spaces, strict=True)
        ]

    def search(self, request: item_pb2.SearchRequest, identity: str, deadline: Deadline) -> item_pb2.SearchResponse:
        """The products closest to each of several queries."""
        store, engine = self._served(request.collection)
        self._check_number("queries", len(request.queries))
        k = self._between("k", request.k if request.HasField("k") else DEFAULT_K, self.limits.max_k)
        most = self.limits.max_inputs
        if (number := sum(len(getattr(query, name)) for query in request.queries for name in POINTS)) > most:
            raise InvalidRequestError("queries", f"{number} parts and examples; give up to {most} in one call")
        deadline.check()
        window = self.limits.max_window
        sought, encoding = sought_by(request, k, window, store, partial(encode_inputs, engine, space=engine.space))
        start = time.perf_counter()
        found = iter(find(store, [one for one in sought if isinstance(one, Sought)], k, deadline, max_window=window))
        check_same_space(engine, request.collection or DEFAULT, store)  # one that is read may have followed another
        results = [
            search_result(next(found), engine.space)
            if isinstance(one, Sought)
            else item_pb2.SearchResult(error=error_message(one))
            for one in sought
        ]
        return item_pb2.SearchResponse(results=results, times=encoding.times(time.perf_counter() - start))

    def predict_category(
        self, request: item_pb2.PredictCategoryRequest, identity: str, deadline: Deadline
    ) -> item_pb2.PredictCategoryResponse:
        """The categories of several inputs, by the model's heads or, without any, by the closest products."""
        engine = self.engine
        if request.collection or engine.heads is None:
            store, engine = self._served(request.collection)
        self._check_number("inputs", len(request.inputs))
        top_k = self._between("top_k", request.top_k if request.HasField("top_k") else DEFAULT_TOP_K, MAX_TOP_K)
        deadline.check()
        if engine.heads is not None:
            return predict_by_heads(
                engine, engine.heads, request.inputs, top_k, tuple(request.start_category), deadline
            )
        encoding = encode_all(engine, request.inputs, deadline, space=engine.space)
        start = time.perf_counter()
        predictions = []
        for outcome in encoding.outcomes:
            deadline.check()
            if isinstance(outcome, RequestError):
                predictions.append(item_pb2.CategoryPrediction(error=error_message(outcome)))
            else:
                predictions.append(predict(store, outcome, top_k, tuple(request.start_category), deadline))
        check_same_space(engine, request.collection or DEFAULT, store)  # as in `search`
        times = encoding.times(time.perf_counter() - start)
        return item_pb2.PredictCategoryResponse(predictions=predictions, times=times)

    def upsert_products(
        self, request: item_pb2.UpsertProductsRequest, identity: str, deadline: Deadline
    ) -> item_pb2.UpsertProductsResponse:
        """Writes products, whole or the fields of an update mask."""
        self.writable(request.collection)
        self._check_number("products", len(request.products))
        mask = UpdateMask.of(request.update_mask.paths) if request.HasField("update_mask") else None
        deadline.check()
        with self.writing:
            store, engine = self.writable(request.collection)  # of now: it may have been changed before it was our turn
            return write(store, engine, request.products, mask, deadline)

    def delete_products(
        self, request: item_pb2.DeleteProductsRequest, identity: str, deadline: Deadline
    ) -> item_pb2.DeleteProductsResponse:
        """Deletes products."""
        self.writable(request.collection)
        self._check_number("product_ids", len(request.product_ids))
        deadline.check()
        with self.writing:
            store, _ = self.writable(request.collection)
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
        store, _ = self._served(request.collection)
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
            model=model_info(engine),
            adapters=loaded_adapters(engine),
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

    def _stream_result(
        self, request: item_pb2.EmbedStreamRequest, outcome: Outcome, space: str, engine: Engine
    ) -> item_pb2.EmbedResult:
        try:
            return embed_result(outcome, space, self._dimensions(request, engine))
        except RequestError as error:
            return item_pb2.EmbedResult(error=error_message(error))

    def _served(self, collection: str) -> tuple[VectorStore, Engine]:
        """The collection's store and engine at present, for all of one call."""
        if not self.collections:
            raise PreconditionError("collection", "no index is loaded; build one with index.build, serve it by --index")
        name = collection or DEFAULT
        if name not in self.collections:
            there = ", ".join(map(repr, sorted(self.collections)))
            raise NotFoundError("collection", f"{name!r} is not there; this server has {there}")
        store = self.collections[name]
        return store, self._engine_of(name, store)

    def _engine_of(self, name: str, store: VectorStore) -> Engine:
        """The engine of a store's space; one that is only read may have followed to one that nobody has loaded."""
        engine = self._engines.get(store.about.space, self.engine)
        check_same_space(engine, name, store)
        return engine

    def writable(self, collection: str) -> tuple[VectorStore, Engine]:
        """The collection's store and engine, to write. Raises RequestError where it can only be read."""
        store, engine = self._served(collection)
        if store.writable:
            return store, engine
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

    def _dimensions(self, request: item_pb2.EmbedRequest | item_pb2.EmbedStreamRequest, engine: Engine) -> int:
        width = engine.vector_width
        return self._between("dimensions", request.dimensions, width) if request.HasField("dimensions") else width


def encode_all(engine: Engine, inputs: Sequence[item_pb2.Input], deadline: Deadline, space: str = "") -> Encoding:
    """The vectors of a call's inputs; `space` as in `encode_inputs`."""
    deadline.check()
    return encode_inputs(engine, inputs, [f"inputs[{position}]" for position in range(len(inputs))], space)


def embed_result(outcome: Outcome, space: str, dimensions: int) -> item_pb2.EmbedResult:
    """The vector of an input, its leading dimensions, or why there is none."""
    try:
        if isinstance(outcome, RequestError):
            raise outcome
        shorter = outcome if dimensions == len(outcome) else unit(outcome[:dimensions], "dimensions")
        return item_pb2.EmbedResult(vector=vector_message(shorter, space))
    except RequestError as error:
        return item_pb2.EmbedResult(error=error_message(error))


def check_same_space(engine: Engine, name: str, store: VectorStore) -> None:
    """Raises SpaceError where a collection was built by another model."""
    about = store.about
    if (about.space, about.vector_width) != (engine.space, engine.vector_width):
        raise SpaceError(
            f"the collection {name!r} is of space {about.space[:12]} (width {about.vector_width}), the model of space "
            f"{engine.space[:12]} (width {engine.vector_width}); build the collection with this model, "
            f"or serve the model of the collection, {about.model}"
        )


def model_info(engine: Engine) -> item_pb2.ModelInfo:
    """The model that encodes."""
    return item_pb2.ModelInfo(
        space=engine.space, vector_width=engine.vector_width, variant=engine.variant, engine=engine.name
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
        indexes=map(index_info, store.segments() if isinstance(store, Store) else ()),
        recall_estimate=store.recall().recall if isinstance(store, Store) else None,
    )


def index_info(segment: Segment) -> item_pb2.IndexInfo:
    """The index of a part of a collection."""
    return item_pb2.IndexInfo(kind=segment.kind, num_products=len(segment), tuned_recall=segment.tuned_recall)
