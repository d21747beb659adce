"""Requests of a stream in windows, read no further ahead than the next window."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol, TypeVar


class Sized(Protocol):
    """A message that knows its size on the wire."""

    def ByteSize(self) -> int: ...  # noqa: N802


Message = TypeVar("Message", bound=Sized)


async def windows(
    requests: AsyncIterator[Message], *, max_requests: int, max_bytes: int
) -> AsyncIterator[list[Message]]:
    """Yields what has arrived since the window before, at least one request, in order.

    While a window is being worked on the next one is read, up to `max_requests` requests or until `max_bytes` bytes
    are reached. Then nothing more is read, and gRPC's flow control holds the sender back.
    """
    arrived: list[Message] = []
    ended = False
    changed = asyncio.Condition()

    def has_room() -> bool:
        return len(arrived) < max_requests and sum(request.ByteSize() for request in arrived) < max_bytes

    async def read() -> None:
        nonlocal ended
        try:
            async for request in requests:
                async with changed:
                    arrived.append(request)
                    changed.notify_all()
                    await changed.wait_for(has_room)
        finally:
            ended = True
            async with changed:
                changed.notify_all()

    reader = asyncio.create_task(read())
    try:
        while True:
            async with changed:
                await changed.wait_for(lambda: arrived or ended)
                window = arrived.copy()
                arrived.clear()
                changed.notify_all()
            if not window:
                await reader  # raises what broke the stream
                return
            yield window
    finally:
        reader.cancel()
