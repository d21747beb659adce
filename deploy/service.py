# ruff: noqa: N802  (the names are the contract's)
"""The handlers as a gRPC service: each call in its turn in the model's thread, streams window by window.

What only reads the store does not wait for the model: it has a thread of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from deploy.errors import Deadline, NotServingError
from deploy.handlers import Handlers
from deploy.streams import windows
from deploy.worker import Done, Worker
from item.v1 import item_pb2, item_pb2_grpc

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]  # generic in its stubs alone

WINDOW = 32  # requests of a stream that are encoded together
LOADING_RETRY_S = 1.0


class TimedResponse(Protocol):
    """A response that says where the time went."""

    @property
    def times(self) -> item_pb2.StageTimes: ...


Request = TypeVar("Request")
Response = TypeVar("Response")
Timed = TypeVar("Timed", bound=TimedResponse)


class ItemService(item_pb2_grpc.ItemServiceServicer):
    """Answers UNAVAILABLE until `handlers` is set."""

    def __init__(self, worker: Worker, reader: Worker) -> None:
        """worker: for what may use the model. reader: for short readings."""
        self.worker = worker
        self.reader = reader
        self.handlers: Handlers | None = None

    async def Embed(self, request: item_pb2.EmbedRequest, context: Context) -> item_pb2.EmbedResponse:
        return await self._timed(self._loaded().embed, request, context)

    async def EmbedStream(
        self, request_iterator: AsyncIterator[item_pb2.EmbedStreamRequest], context: Context
    ) -> AsyncIterator[item_pb2.EmbedStreamResponse]:
        handlers, identity, deadline = self._loaded(), context.peer(), Deadline.after(context.time_remaining())
        admitted = False
        limit = handlers.limits.max_message_bytes
        async for window in windows(request_iterator, max_requests=WINDOW, max_bytes=limit):
            encode = partial(handlers.embed_window, window, identity, deadline)
            for response in (await self.worker.run(encode, deadline, admitted=admitted)).result:
                yield response
            admitted = True

    async def Search(self, request: item_pb2.SearchRequest, context: Context) -> item_pb2.SearchResponse:
        return await self._timed(self._loaded().search, request, context)

    async def PredictCategory(
        self, request: item_pb2.PredictCategoryRequest, context: Context
    ) -> item_pb2.PredictCategoryResponse:
        return await self._timed(self._loaded().predict_category, request, context)

    async def UpsertProducts(
        self, request: item_pb2.UpsertProductsRequest, context: Context
    ) -> item_pb2.UpsertProductsResponse:
        return await self._timed(self._loaded().upsert_products, request, context)

    async def DeleteProducts(
        self, request: item_pb2.DeleteProductsRequest, context: Context
    ) -> item_pb2.DeleteProductsResponse:
        return (await self._in_turn(self._loaded().delete_products, request, context)).result

    async def GetProduct(self, request: item_pb2.GetProductRequest, context: Context) -> item_pb2.GetProductResponse:
        return await self._read(self._loaded().get_product, request, context)

    async def GetInfo(self, request: item_pb2.GetInfoRequest, context: Context) -> item_pb2.GetInfoResponse:
        return await self._read(self._loaded().get_info, request, context)

    async def _timed(
        self, handler: Callable[[Request, str, Deadline], Timed], request: Request, context: Context
    ) -> Timed:
        done = await self._in_turn(handler, request, context)
        done.result.times.queue_s = done.queue_s
        return done.result

    async def _in_turn(
        self, handler: Callable[[Request, str, Deadline], Response], request: Request, context: Context
    ) -> Done[Response]:
        identity, deadline = context.peer(), Deadline.after(context.time_remaining())
        return await self.worker.run(partial(handler, request, identity, deadline), deadline)

    async def _read(
        self, handler: Callable[[Request, str, Deadline], Response], request: Request, context: Context
    ) -> Response:
        identity, deadline = context.peer(), Deadline.after(context.time_remaining())
        call = partial(handler, request, identity, deadline)
        return (await self.reader.run(call, deadline, admitted=True)).result

    def _loaded(self) -> Handlers:
        if self.handlers is None:
            raise NotServingError("the server is loading its model; come again later", LOADING_RETRY_S)
        return self.handlers
