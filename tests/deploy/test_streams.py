"""Windows of a stream: order, bounds, and how far ahead is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.streams import windows
from item.v1 import item_pb2


def message(number: int, size: int = 10) -> item_pb2.Input:
    return item_pb2.Input(text=str(number), image=b"x" * size)


@given(
    count=st.integers(0, 60),
    max_requests=st.integers(1, 9),
    pauses=st.lists(st.booleans(), min_size=60, max_size=60),
)
@settings(max_examples=40)
def test_everything_comes_once_in_order_in_windows_within_the_bound(
    count: int, max_requests: int, pauses: list[bool]
) -> None:
    async def source() -> AsyncIterator[item_pb2.Input]:
        for number in range(count):
            if pauses[number]:
                await asyncio.sleep(0)
            yield message(number)

    async def collect() -> list[list[str]]:
        return [
            [one.text for one in window]
            async for window in windows(source(), max_requests=max_requests, max_bytes=2**20)
        ]

    seen = asyncio.run(collect())
    assert [text for window in seen for text in window] == [str(number) for number in range(count)]
    assert all(1 <= len(window) <= max_requests for window in seen)


@pytest.mark.parametrize(("size", "expected"), [(10, 8), (1000, 3), (5000, 1)])
def test_no_more_is_read_than_the_next_window(size: int, expected: int) -> None:
    read = 0

    async def source() -> AsyncIterator[item_pb2.Input]:
        nonlocal read
        for number in range(100):
            read += 1
            yield message(number, size)

    async def scenario() -> None:
        stream = windows(source(), max_requests=8, max_bytes=2500)
        first = await anext(stream)
        await asyncio.sleep(0.05)  # the first window is being worked on
        assert read == len(first) + expected
        assert len(await anext(stream)) == expected

    asyncio.run(scenario())


def test_a_broken_source_is_raised_after_what_it_gave() -> None:
    async def source() -> AsyncIterator[item_pb2.Input]:
        yield message(0)
        raise ConnectionError("broken")

    async def scenario() -> None:
        stream = windows(source(), max_requests=4, max_bytes=100)
        assert [one.text for one in await anext(stream)] == ["0"]
        with pytest.raises(ConnectionError, match="broken"):
            await anext(stream)

    asyncio.run(scenario())
