"""The engine around a runner: reads and prepares listings ahead of it, in threads, and batches them by length."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from item.catalog.listing import Listing
from item.engine.batching import buckets
from item.engine.interface import Encoded, Runner, Vectors
from item.errors import ListingError, ModelError
from item.preprocessing.prepared import Prepared
from item.preprocessing.preprocessor import Preprocessor

WINDOW = 128  # listings encoded while the next as many are being prepared

Outcome = Prepared | ListingError


class ModelEngine:
    """A preprocessor and a runner of the same model folder; see `item.engine.interface.Engine`. For any threads."""

    def __init__(self, runner: Runner, preprocessor: Preprocessor, space: str, variant: str = "") -> None:
        self.runner, self.preprocessor, self.space = runner, preprocessor, space
        self.name, self.variant, self.vector_width = runner.name, variant, runner.vector_width
        self._running = threading.Lock()
        self.readers = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="prepare")

    def encode(self, listings: Sequence[Listing], adapter: str | None = None) -> Encoded:
        """Vectors of listings; see `item.engine.interface.Engine`."""
        if adapter is not None:
            raise ModelError(f"adapter: there is no adapter {adapter!r}; this model has none")
        vectors = np.full((len(listings), self.vector_width), np.nan, dtype=np.float32)
        refused: dict[int, ListingError] = {}
        prepare_s = encode_s = 0.0
        last = time.perf_counter()
        for start, outcomes in self.prepare_ahead(listings):
            ready = time.perf_counter()
            refused |= {start + row: one for row, one in enumerate(outcomes) if isinstance(one, ListingError)}
            prepared = {start + row: one for row, one in enumerate(outcomes) if isinstance(one, Prepared)}
            if prepared:
                vectors[list(prepared)] = self.encode_prepared(list(prepared.values()))
            prepare_s += ready - last
            last = time.perf_counter()
            encode_s += last - ready
        return Encoded(vectors=vectors, refused=refused, prepare_s=prepare_s, encode_s=encode_s)

    def encode_prepared(self, prepared: Sequence[Prepared]) -> Vectors:
        """(N, D) float32 of unit norm; see `item.engine.interface.Engine`."""
        runner = self.runner
        vectors = np.empty((len(prepared), self.vector_width), dtype=np.float32)
        for rows in buckets(prepared, runner.num_cells, runner.token_budget, runner.packed):
            with self._running:
                vectors[rows] = runner.run([prepared[row] for row in rows])
        return vectors

    def prepare_ahead(self, listings: Sequence[Listing]) -> Iterator[tuple[int, list[Outcome]]]:
        """Windows of prepared listings and where each begins; the next one is under way when a window is given out."""
        if len(listings) == 1:
            yield 0, [self.prepare(listings[0])]  # not worth a thread
            return
        ahead: list[Future[Outcome]] = []
        for start in range(0, len(listings), WINDOW):
            under_way = ahead or self.submit(listings[start : start + WINDOW])
            ahead = self.submit(listings[start + WINDOW : start + 2 * WINDOW])
            yield start, [one.result() for one in under_way]

    def submit(self, listings: Sequence[Listing]) -> list[Future[Outcome]]:
        """Starts preparing listings."""
        return [self.readers.submit(self.prepare, listing) for listing in listings]

    def prepare(self, listing: Listing) -> Outcome:
        """A listing made ready, or why it is refused."""
        try:
            return self.preprocessor(listing)
        except ListingError as error:
            return error
