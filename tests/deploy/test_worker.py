"""The queue before the model's thread."""

from __future__ import annotations

import asyncio
import threading

import pytest

from deploy.errors import Deadline, DeadlineError, QueueFullError
from deploy.worker import Worker


def test_calls_run_one_at_a_time_in_order_off_the_loop() -> None:
    seen: list[int] = []
    running = threading.Lock()

    def call(number: int) -> int:
        assert running.acquire(blocking=False)
        assert threading.current_thread() is not threading.main_thread()
        seen.append(number)
        running.release()
        return number * number

    async def scenario() -> None:
        worker = Worker("test", max_waiting=100)
        calls = [worker.run(lambda number=number: call(number), Deadline()) for number in range(50)]  # type: ignore[misc]
        done = await asyncio.gather(*calls)
        assert [one.result for one in done] == [number * number for number in range(50)]
        assert all(one.queue_s >= 0 for one in done)
        worker.close()

    asyncio.run(scenario())
    assert seen == list(range(50))


def test_the_bound_counts_what_waits_and_frees_its_places() -> None:
    async def scenario() -> None:
        worker = Worker("test", max_waiting=1)
        gate = threading.Event()
        waiting = [asyncio.create_task(worker.run(gate.wait, Deadline())) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="2 calls are waiting") as caught:
            await worker.run(gate.wait, Deadline())
        assert caught.value.retry_delay_s > 0
        admitted = asyncio.create_task(worker.run(gate.wait, Deadline(), admitted=True))
        await asyncio.sleep(0)
        gate.set()
        assert all(one.result for one in await asyncio.gather(*waiting, admitted))
        assert (await worker.run(gate.wait, Deadline())).result
        worker.close()

    asyncio.run(scenario())


def test_the_retry_delay_follows_the_time_that_calls_take() -> None:
    async def delay_after(calls_s: float) -> float:
        worker = Worker("test", max_waiting=0)
        for _ in range(20):
            await worker.run(lambda: threading.Event().wait(calls_s), Deadline())
        gate = threading.Event()
        running = asyncio.create_task(worker.run(gate.wait, Deadline()))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError) as caught:
            await worker.run(gate.wait, Deadline())
        gate.set()
        await running
        worker.close()
        return caught.value.retry_delay_s

    fast, slow = asyncio.run(delay_after(0)), asyncio.run(delay_after(0.03))
    assert 0 < fast < 0.02 < slow < 0.2


def test_what_a_call_raises_is_raised_and_the_place_is_free_again() -> None:
    def fail() -> None:
        raise KeyError("inside")

    async def scenario() -> None:
        worker = Worker("test", max_waiting=0)
        for _ in range(3):
            with pytest.raises(KeyError, match="inside"):
                await worker.run(fail, Deadline())
        with pytest.raises(DeadlineError):
            await worker.run(lambda: pytest.fail("begun after the deadline"), Deadline.after(-1))
        worker.close()

    asyncio.run(scenario())
