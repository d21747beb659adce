"""When segments are written anew, and the thread that sees to it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from index import choosing
from index.manifest import FLAT
from index.memory import Memory
from item.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upkeep:
    """When segments are written anew.

    flush_rows: fresh rows that are made into a segment. ratio: a segment is merged with newer ones once these have more
    than a `ratio`-th of its rows; attributes are written anew once those of a `ratio`-th of all rows have changed.
    max_dead: the share of a segment's rows that may be dead. background: whether a thread sees to it; without,
    `Store.maintain` does.
    """

    flush_rows: int = 20_000
    ratio: float = 8.0
    max_dead: float = 0.25
    background: bool = True

    def __post_init__(self) -> None:
        if self.flush_rows < 1:
            raise ConfigError(f"flush_rows: {self.flush_rows} is below 1")
        if not self.ratio > 0:
            raise ConfigError(f"ratio: {self.ratio} is not above 0")
        if not 0 < self.max_dead <= 1:
            raise ConfigError(f"max_dead: {self.max_dead} is not above 0 and up to 1")

    def first_due(self, memory: Memory) -> int | None:
        """The first of the segments that are due to be merged with all that is newer; None: none is.

        A segment of an earlier version, which has no words or no index, is due. The caller holds the store's lock.
        """
        sizes = memory.segment_sizes()
        first = len(sizes) if memory.num_fresh >= self.flush_rows else None
        newer = memory.num_fresh
        for number, (alive, rows) in reversed(list(enumerate(sizes))):
            segment = memory.segments[number]
            unfinished = segment.words is None or (segment.info.factory == FLAT and rows > choosing.FLAT_ROWS)
            mostly_dead = rows - alive > self.max_dead * rows
            if unfinished or mostly_dead or (first is not None and alive < self.ratio * newer):
                first = number
            newer += alive
        return first

    def is_stale(self, memory: Memory) -> bool:
        """Whether attributes of so many rows have changed that whoever opens the segments has much to read again.

        The caller holds the store's lock.
        """
        return memory.num_updated >= max(self.flush_rows, memory.num_segment_rows / self.ratio)


class UpkeepThread:
    """Writes the segments of a collection anew in the background."""

    def __init__(self, folder: Path, maintain: Callable[[], bool]) -> None:
        """Starts at once; `maintain` does the next thing that is due, and says whether anything was."""
        self.folder, self._maintain = folder, maintain
        self._stopped = False
        self._due = threading.Event()
        self._due.set()
        self._thread = threading.Thread(target=self._run, name=f"upkeep {folder.name}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Says that something may be due."""
        self._due.set()

    def stop(self) -> None:
        """Ends after what it is at."""
        self._stopped = True
        self._due.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._due.wait()
            if self._stopped:
                return
            self._due.clear()
            try:
                while not self._stopped and self._maintain():
                    pass
            except Exception:  # a full disk, too little memory: the truth is there, the next write tries again
                logger.exception("%s: segments could not be written; searches go on without", self.folder)
