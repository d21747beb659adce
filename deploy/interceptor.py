"""The one place where exceptions become gRPC statuses."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from deploy.errors import BusyError, Status, status_of

logger = logging.getLogger(__name__)

OURS = "/item.v1."
PUSHBACK = "grpc-retry-pushback-ms"  # the trailing metadata by which gRPC's retries know when to come again
CODES = {code.value[0]: code for code in grpc.StatusCode}

if TYPE_CHECKING:  # generic in their stubs alone
    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = grpc.aio.ServicerContext[Any, Any]
    Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    Interceptor = grpc.aio.ServerInterceptor


class StatusInterceptor(Interceptor):
    """Ends a call whose handler raised with the status of the exception, and logs one line about it."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wraps the handler of one call of our own services, unary or streaming."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(OURS):  # no such rpc, or health and reflection
            return handler
        make: Callable[..., Any] = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        wrap = answer_stream if handler.response_streaming else answer_once
        wrapped = wrap(behaviour, method)
        return make(wrapped, handler.request_deserializer, handler.response_serializer)


def answer_once(behaviour: Any, method: str) -> Callable[[Any, Context], Awaitable[Any]]:
    """A handler with one response."""

    async def answer(request: Any, context: Context) -> Any:
        start = time.monotonic()
        try:
            return await behaviour(request, context)
        except Exception as error:
            await abort(context, method, error, time.monotonic() - start)

    return answer


def answer_stream(behaviour: Any, method: str) -> Callable[[Any, Context], AsyncIterator[Any]]:
    """A handler with a stream of responses."""

    async def answer(request: Any, context: Context) -> AsyncIterator[Any]:
        start = time.monotonic()
        try:
            async for response in behaviour(request, context):
                yield response
        except Exception as error:
            await abort(context, method, error, time.monotonic() - start)

    return answer


async def abort(context: Context, method: str, error: Exception, seconds: float) -> NoReturn:
    """Ends a call with the status of an error."""
    status = status_of(error)
    details = describe(error, status, method)
    logger.warning(
        "request failed: method=%s status=%s peer=%s seconds=%.3f details=%r",
        *(method, status.name, context.peer(), seconds, details),
        exc_info=error if status is Status.INTERNAL else None,
    )
    delay = [(PUSHBACK, str(math.ceil(1000 * error.retry_delay_s)))] if isinstance(error, BusyError) else []
    await context.abort(CODES[status], details, tuple(delay))
    raise AssertionError("abort raises")


def describe(error: Exception, status: Status, method: str) -> str:
    """What the caller is told. Of what went wrong inside, nothing but the kind: the log has it."""
    if isinstance(error, NotImplementedError):
        return f"{method.rpartition('/')[2]} is not offered in this version"
    if status is Status.INTERNAL:
        return f"the server failed ({type(error).__name__}); its log says why"
    return str(error)
