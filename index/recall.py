"""The recall that users get: one approximate answer in many is searched again, exactly, beside the service."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from index.exact import Mask, Vectors
from index.memory import View
from index.planner import Plan
from index.search import Found, Group

logger = logging.getLogger(__name__)

ONE_IN = 20_000  # approximate answers: searching one of a million rows exactly costs as much as 20 of them
REMEMBERED = 200  # of the answers that were searched again


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallEstimate:
    """The mean share of the exact hits in the last `num_answers` that were searched again; None before the first."""

    recall: float | None
    num_answers: int


class RecallSample:
    """Counts answers, and searches again those whose turn it is, one at a time; a turn is missed while one runs."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recall")
        self._lock = threading.Lock()
        self._seen, self._busy = 0, False
        self._shares: deque[float] = deque(maxlen=REMEMBERED)

    def draw(self, view: View, queries: Vectors, k: int, masks: Sequence[Mask | None], found: Sequence[Found]) -> None:
        """Has one in many of the approximate answers to queries, (Q, D), searched again."""
        approximate = [query for query, one in enumerate(found) if one.plan is not Plan.EXACT]
        if approximate and self.is_due(len(approximate)):
            query = approximate[-1]
            group = Group(view=view, mask=masks[query], k=k, exactly=True)
            exactly = partial(group.search, queries[query : query + 1])
            self.check(found[query].keys[:k], lambda: exactly()[0].keys)

    def is_due(self, num_answers: int) -> bool:
        """Counts further approximate answers; whether one of them is to be searched again."""
        with self._lock:
            before, self._seen = self._seen, self._seen + num_answers
            due = before // ONE_IN != self._seen // ONE_IN and not self._busy
            self._busy |= due
        return due

    def check(self, found: list[int], exactly: Callable[[], list[int]]) -> None:
        """Compares keys that were found with those of an exact search, in the background."""

        def compare() -> None:
            try:
                expected = exactly()
                if expected:
                    self._shares.append(len(set(found) & set(expected)) / len(expected))
                    known = self.estimate()
                    logger.info("recall %.4f in %d answers that were searched again", known.recall, known.num_answers)
            finally:
                self._busy = False

        try:
            self._executor.submit(compare)
        except RuntimeError:  # it was closed meanwhile
            self._busy = False

    def estimate(self) -> RecallEstimate:
        """What is known."""
        shares = list(self._shares)
        return RecallEstimate(recall=sum(shares) / len(shares) if shares else None, num_answers=len(shares))

    def wait(self) -> None:
        """Until the search that runs, if any, is over."""
        self._executor.submit(lambda: None).result()

    def close(self) -> None:
        """Waits for the search that runs, if any."""
        self._executor.shutdown(wait=True, cancel_futures=True)
