"""The client of a running server: vectors, search, categories, writing.

from item import Client

with Client("localhost:50051") as client:
    (result,) = client.search(text="red canvas shoe", filter=["price<=20"], k=5)
    for hit in result.hits:
        print(f"{hit.score:.3f}", hit.product_id, hit.title)
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar, Unpack

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from item.admin import AdapterInfo, Backup, ModelInfo, Reembedding, Switched
from item.catalog.listing import Listing
from item.errors import ConfigError, ServiceError
from item.info import Info
from item.products import Product, product_message
from item.queries import Input, Part, Query, Terms
from item.results import EmbedResult, Prediction, SearchResult, StageTimes, Vectors, WriteResult, error_of, values_of
from item.v1 import item_pb2, item_pb2_grpc

Request = TypeVar("Request")
Response = TypeVar("Response")

PUSHBACK = "grpc-retry-pushback-ms"
CONNECT_ATTEMPTS = 5
SLOW_S = 3600.0  # for an operator's calls, which read or write all of a collection
FIRST_BACKOFF_S = 0.1
ENCODED = frozenset({"title", "description", "images"})  # fields of a product that its vector is made of
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),  # the server knows its limit
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
]


class Client:
    """A connection to one server, shared safely by threads; a context manager.

    A call that finds the server busy, loading or waiting to write comes again when the server says so, until its time
    is up; one that finds no server tries a few times, ever more slowly. Inputs are strings (words) or `Input`. An empty
    `collection` is the one named default.

    Args:
        address: host and port.
        timeout_s: how long a call may take, repetitions included.

    Raises:
        ServiceError: (all methods) what the server answered, or that there is none.
        ConfigError: (all methods) an argument that cannot be sent, for instance a picture that cannot be read.
    """

    def __init__(self, address: str = "localhost:50051", *, timeout_s: float = 30.0) -> None:
        if not timeout_s > 0:
            raise ConfigError(f"timeout_s: {timeout_s} is not above 0")
        self.address = address
        self.timeout_s = timeout_s
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = item_pb2_grpc.ItemServiceStub(self._channel)
        self._admin = item_pb2_grpc.AdminServiceStub(self._channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and the calls on it."""
        self._channel.close()

    def wait_until_ready(self, timeout_s: float | None = None) -> Info:
        """Waits until the server is up and has loaded its model; what it serves."""
        return Info.of(self._call(self._stub.GetInfo, item_pb2.GetInfoRequest(), timeout_s, wait=True))

    def info(self) -> Info:
        """What the server serves: model, space, collections, limits."""
        return Info.of(self._call(self._stub.GetInfo, item_pb2.GetInfoRequest()))

    def embed(self, inputs: Sequence[str | Input], *, dimensions: int | None = None) -> EmbedResult:
        """Vectors of up to `Info.limits.max_inputs` inputs; `dimensions` keeps that many, of unit norm again."""
        request = item_pb2.EmbedRequest(inputs=input_messages(inputs), dimensions=dimensions)
        return EmbedResult.of(self._call(self._stub.Embed, request))

    def embed_stream(
        self, inputs: Iterable[str | Input], *, dimensions: int | None = None
    ) -> Iterator[Vectors | ServiceError]:
        """For each of any number of inputs, in order, its (D,) vector or why it was refused.

        Inputs are taken from the iterable only as fast as they are encoded and the answers are used. There is no
        time limit and nothing is repeated: a broken stream raises ServiceError.
        """
        requests = (
            item_pb2.EmbedStreamRequest(input=input_message(one, f"inputs[{position}]"), dimensions=dimensions)
            for position, one in enumerate(inputs)
        )
        failed: list[Exception] = []
        call = self._stub.EmbedStream(keep_error(requests, failed))
        try:
            for response in call:
                result = response.result
                yield values_of(result.vector) if result.HasField("vector") else error_of(result.error)
        except grpc.RpcError as error:
            if failed:  # not the server's fault: the caller's iterable raised
                raise failed[0] from None
            raise self._error(error) from error
        finally:
            call.cancel()  # type: ignore[no-untyped-call]

    def search(
        self,
        queries: Sequence[str | Part | Query] = (),
        *,
        text: str = "",
        image: bytes | str | Path | None = None,
        product_id: str = "",
        vector: Vectors | None = None,
        space: str = "",
        k: int = 10,
        collection: str = "",
        **terms: Unpack[Terms],
    ) -> list[SearchResult]:
        """The `k` products closest to each query, one result for each.

        One query is given by keyword: words and/or a picture, or a stored product, or a (D,) vector with its space, on
        the terms of `item.Query`, for instance ``filter=["price<=20"], sort="price"``. If it is refused, that is
        raised. Several are given as `queries`, each with its own terms; a refused one has its `error` set.
        """
        if queries and (text or image is not None or product_id or vector is not None or terms):
            raise ConfigError("queries: give queries, or one query by keyword, not both")
        one = Part(text=text, image=image, product_id=product_id, vector=vector, space=space)
        asked = as_queries(queries) if queries else [Query(parts=[one], **terms)]
        messages = [query.query_message(f"queries[{row}]") for row, query in enumerate(asked)]
        request = item_pb2.SearchRequest(collection=collection, queries=messages, k=k)
        response = self._call(self._stub.Search, request)
        times = StageTimes.of(response.times)
        results = [SearchResult.of(result, times) for result in response.results]
        if not queries and results[0].error is not None:
            raise results[0].error
        return results

    def predict(
        self,
        inputs: Sequence[str | Input],
        *,
        top_k: int = 5,
        start_category: Sequence[str] = (),
        collection: str = "",
    ) -> list[Prediction]:
        """The `top_k` most probable category paths of each input, among those under `start_category`.

        The server's model predicts them where it has heads; otherwise the closest products of a collection vote.
        """
        request = item_pb2.PredictCategoryRequest(
            collection=collection, inputs=input_messages(inputs), top_k=top_k, start_category=start_category
        )
        response = self._call(self._stub.PredictCategory, request)
        times = StageTimes.of(response.times)
        return [Prediction.of(prediction, times) for prediction in response.predictions]

    def upsert(
        self,
        products: Sequence[Listing | item_pb2.Product],
        *,
        update: Sequence[str] | None = None,
        collection: str = "",
    ) -> list[WriteResult]:
        """Writes up to `Info.limits.max_inputs` products: new ones are added, known ones replaced.

        A result without error means that the product is stored durably. With `update` only these fields are written,
        for instance ``["title", "attributes.price"]``, and the products must be there; pictures are sent only where a
        vector is made anew.
        """
        if isinstance(update, str):
            raise ConfigError(f"update: {update!r} is one string; give a list: [{update!r}]")
        with_picture = update is None or not ENCODED.isdisjoint(update)
        request = item_pb2.UpsertProductsRequest(
            collection=collection,
            products=[
                product_message(one, f"products[{row}]", with_picture=with_picture) for row, one in enumerate(products)
            ],
            update_mask=None if update is None else FieldMask(paths=update),
        )
        return [WriteResult.of(one) for one in self._call(self._stub.UpsertProducts, request).results]

    def delete(self, product_ids: Sequence[str], *, collection: str = "") -> list[WriteResult]:
        """Deletes up to `Info.limits.max_inputs` products; a result without error means that it is gone durably.

        Where the connection was lost and the call was repeated, what the first one deleted is NOT_FOUND.
        """
        if isinstance(product_ids, str):
            raise ConfigError(f"product_ids: {product_ids!r} is one string; give a list: [{product_ids!r}]")
        request = item_pb2.DeleteProductsRequest(collection=collection, product_ids=product_ids)
        return [WriteResult.of(one) for one in self._call(self._stub.DeleteProducts, request).results]

    def product(self, product_id: str, *, collection: str = "") -> Product:
        """A stored product."""
        request = item_pb2.GetProductRequest(collection=collection, product_id=product_id)
        return Product.of(self._call(self._stub.GetProduct, request).product)

    def adapters(self) -> list[AdapterInfo]:
        """The adapters of the server's model folder, by name, loaded or not."""
        response = self._call(self._admin.ListAdapters, item_pb2.ListAdaptersRequest())
        return [AdapterInfo.of(one) for one in response.adapters]

    def load_adapter(self, name: str) -> AdapterInfo:
        """Lets inputs name an adapter, as the model folder has it now; one that was loaded before is read anew."""
        return AdapterInfo.of(self._call(self._admin.LoadAdapter, item_pb2.LoadAdapterRequest(name=name)).adapter)

    def unload_adapter(self, name: str) -> AdapterInfo:
        """Lets inputs no longer name an adapter; returns when the calls that use it have ended."""
        request = item_pb2.UnloadAdapterRequest(name=name)
        return AdapterInfo.of(self._call(self._admin.UnloadAdapter, request, repeat=False).adapter)

    def reload(self, variant: str | None = None, *, timeout_s: float = SLOW_S) -> ModelInfo:
        """Loads the server's model folder anew, with adapters and heads; `variant`: another one, empty: full precision.

        Calls that have begun keep the model of before.
        """
        request = item_pb2.ReloadRequest(variant=variant)
        return ModelInfo.of(self._call(self._admin.Reload, request, timeout_s, repeat=False).model)

    def reembed(
        self,
        model: str = "",
        *,
        variant: str = "",
        max_rate: float | None = None,
        catalog: str = "",
        words_alone: bool = False,
        collection: str = "",
    ) -> Iterator[Reembedding]:
        """Encodes a collection anew into a generation that `switch_generation` lets be searched; says how far it is.

        `model`, its `variant` and the `catalog` to read pictures in are on the server; empty: those of the present
        generation. `max_rate` is in products a second. Leaving the iteration cancels it; called again it goes on where
        it was. There is no time limit and nothing is repeated.
        """
        request = item_pb2.ReembedRequest(
            collection=collection,
            model=model,
            variant=variant,
            max_rate=max_rate,
            catalog=catalog,
            words_alone=words_alone,
        )
        call = self._admin.Reembed(request)
        try:
            for response in call:
                yield Reembedding.of(response)
        except grpc.RpcError as error:
            raise self._error(error) from error
        finally:
            call.cancel()  # type: ignore[no-untyped-call]

    def switch_generation(
        self, generation: str = "", *, words_alone: bool = False, collection: str = "", timeout_s: float = SLOW_S
    ) -> Switched:
        """Searches a generation that `reembed` has finished; empty: the latest. The server ends what it has begun."""
        request = item_pb2.SwitchGenerationRequest(
            collection=collection, generation=generation, words_alone=words_alone
        )
        return Switched.of(self._call(self._admin.SwitchGeneration, request, timeout_s, repeat=False))

    def rollback(
        self,
        *,
        model: str = "",
        words_alone: bool = False,
        discard_writes: bool = False,
        collection: str = "",
        timeout_s: float = SLOW_S,
    ) -> Switched:
        """Searches the generation before the present one again. The server ends what it has begun.

        `model` is the folder on the server of its model, where it is not where it was.
        """
        request = item_pb2.RollbackRequest(
            collection=collection, model=model, words_alone=words_alone, discard_writes=discard_writes
        )
        return Switched.of(self._call(self._admin.Rollback, request, timeout_s, repeat=False))

    def backup(self, name: str, *, collection: str = "", timeout_s: float = SLOW_S) -> Backup:
        """Writes a copy of a collection under the server's folder for backups."""
        request = item_pb2.BackupRequest(collection=collection, name=name)
        return Backup.of(self._call(self._admin.Backup, request, timeout_s, repeat=False))

    def _call(
        self,
        rpc: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout_s: float | None = None,
        wait: bool = False,
        repeat: bool = True,
    ) -> Response:
        """Calls and, where that may help, calls again, all within the time limit.

        repeat: whether it may be called again where it is not known what the first call has done.
        """
        deadline = time.monotonic() + (timeout_s or self.timeout_s)
        for attempt in itertools.count():
            try:
                return rpc(request, timeout=max(deadline - time.monotonic(), 0.001), wait_for_ready=wait)
            except grpc.RpcError as error:
                delay_s = retry_delay_s(error, attempt) if repeat or pushback_s(error) is not None else None
                if delay_s is None or time.monotonic() + delay_s >= deadline:
                    raise self._error(error) from error
            time.sleep(delay_s)
        raise AssertionError("the loop ends by returning or raising")

    def _error(self, error: grpc.RpcError) -> ServiceError:
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.UNAVAILABLE and pushback_s(error) is None:
            start = "python -m deploy.server --model M --index DIR"
            details = f"no server at {self.address}; start one with {start} ({details})"
        elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
            details = f"no answer from {self.address} in time; allow more with timeout_s ({details})"
        return ServiceError(code.name, details)


def pushback_s(error: grpc.RpcError) -> float | None:
    """After how many seconds the server wants to be called again, if it says so."""
    trailing = {one.key: one.value for one in error.trailing_metadata() or ()}
    return int(trailing[PUSHBACK]) / 1000 if PUSHBACK in trailing else None


def retry_delay_s(error: grpc.RpcError, attempt: int) -> float | None:
    """Seconds until the call comes again: as the server says, or ever longer while there is none; None: never."""
    delay_s = pushback_s(error)
    if delay_s is None and error.code() is grpc.StatusCode.UNAVAILABLE and attempt + 1 < CONNECT_ATTEMPTS:
        delay_s = FIRST_BACKOFF_S * 2**attempt
    # A little later than asked, each caller differently, so that callers do not come back all at once.
    return None if delay_s is None else delay_s * random.uniform(1, 1.25)


def input_messages(inputs: Sequence[str | Input]) -> list[item_pb2.Input]:
    """Inputs as messages. Raises ConfigError for a bare string in place of a list."""
    if isinstance(inputs, str):
        raise ConfigError(f"inputs: {inputs!r} is one string; give a list: [{inputs!r}]")
    return [input_message(one, f"inputs[{position}]") for position, one in enumerate(inputs)]


def input_message(one: str | Input, field: str) -> item_pb2.Input:
    """Words or an `Input` as a message."""
    return (Input(text=one) if isinstance(one, str) else one).message(field)


def as_queries(queries: Sequence[str | Part | Query]) -> list[Query]:
    """Words and single parts as queries."""
    if isinstance(queries, str):
        raise ConfigError(f"queries: {queries!r} is one string; give a list, or text=")
    parts = [Part(text=one) if isinstance(one, str) else one for one in queries]
    return [one if isinstance(one, Query) else Query(parts=[one]) for one in parts]


def keep_error(requests: Iterator[Request], failed: list[Exception]) -> Iterator[Request]:
    """Passes requests on; what making them raises is kept, for gRPC would only say that it failed."""
    try:
        yield from requests
    except Exception as error:
        failed.append(error)
        raise
