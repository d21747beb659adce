"""A thread that runs calls one after another, and the bounded queue before it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from deploy.errors import Deadline, QueueFullError

T = TypeVar("T")

SMOOTHING = 0.2  # weight of the latest call in the mean duration
FIRST_GUESS_S = 0.1


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """What a call returned, and the seconds that it waited for its turn."""

    result: T
    queue_s: float


class Worker:
    """Runs calls one after another in a thread, so that the event loop stays free meanwhile.

    A call whose caller has gone or whose deadline has passed is dropped before it begins.

    Args:
        name: of the thread.
        max_waiting: calls that may wait behind the running one; a further one is refused with QueueFullError.
    """

    def __init__(self, name: str, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._unfinished = 0
        self._mean_s = FIRST_GUESS_S

    async def run(self, call: Callable[[], T], deadline: Deadline, *, admitted: bool = False) -> Done[T]:
        """Runs a call in its turn; `admitted` skips the bound: the rest of a stream that has begun, a short reading.

        Raises:
            QueueFullError: too many calls are waiting.
            DeadlineError: the deadline passed while it waited.
        """
        if not admitted and self._unfinished > self.max_waiting:
            raise QueueFullError(
                f"{self._unfinished} calls are waiting; come again later", retry_delay_s=self._unfinished * self._mean_s
            )
        self._unfinished += 1
        try:
            return await asyncio.wrap_future(self._executor.submit(self._begin, call, deadline, time.perf_counter()))
        finally:
            self._unfinished -= 1

    async def drain(self) -> None:
        """Waits until the calls that are here now have been answered."""
        await self.run(lambda: None, Deadline(), admitted=True)

    def close(self) -> None:
        """Drops what waits and lets what runs finish."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _begin(self, call: Callable[[], T], deadline: Deadline, queued: float) -> Done[T]:
        deadline.check()
        start = time.perf_counter()
        result = call()
        self._mean_s += SMOOTHING * (time.perf_counter() - start - self._mean_s)
        return Done(result, start - queued)
