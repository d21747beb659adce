"""The engine around a runner: reads and prepares listings ahead of it, in threads, and batches them by length."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from item.adapters.adapter import Adapter
from item.adapters.bank import Bank, Named, Rotations
from item.adapters.head import Heads, read_heads
from item.catalog.listing import Listing
from item.engine.batching import buckets
from item.engine.interface import Encoded, Outputs, Runner, Vectors
from item.errors import ListingError
from item.preprocessing.prepared import MODALITIES, Modality, Prepared
from item.preprocessing.preprocessor import Preprocessor

WINDOW = 128  # listings encoded while the next as many are being prepared

Outcome = Prepared | ListingError


class ModelEngine:
    """A preprocessor and a runner of the same model folder; see `item.engine.interface.Engine`. For any threads."""

    def __init__(
        self, runner: Runner, preprocessor: Preprocessor, adapters: Bank, space: str, variant: str = ""
    ) -> None:
        self.runner, self.preprocessor, self.adapters = runner, preprocessor, adapters
        self.space, self.model_space = space, adapters.model_space
        self.name, self.variant = runner.name, variant
        self.vector_width, self.features_width = runner.vector_width, runner.features_width
        self._running = threading.Lock()
        self.readers = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="prepare")

    def encode(self, listings: Sequence[Listing], adapter: Named | Sequence[Named] = None) -> Encoded:
        """Vectors of listings; see `item.engine.interface.Engine`."""
        each = [adapter] * len(listings) if adapter is None or isinstance(adapter, str | Adapter) else adapter
        rotations = self._rotations(each, len(listings))
        vectors = np.full((len(listings), self.vector_width), np.nan, dtype=np.float32)
        refused: dict[int, ListingError] = {}
        prepare_s = encode_s = 0.0
        last = time.perf_counter()
        for start, outcomes in self.prepare_ahead(listings):
            ready = time.perf_counter()
            refused |= {start + row: one for row, one in enumerate(outcomes) if isinstance(one, ListingError)}
            prepared = {start + row: one for row, one in enumerate(outcomes) if isinstance(one, Prepared)}
            for rows, made in self._run(prepared, rotations):
                vectors[rows] = made.vectors
            prepare_s += ready - last
            last = time.perf_counter()
            encode_s += last - ready
        return Encoded(vectors=vectors, refused=refused, prepare_s=prepare_s, encode_s=encode_s)

    def encode_prepared(self, prepared: Sequence[Prepared], adapters: Sequence[Named] | None = None) -> Vectors:
        """(N, D) float32 of unit norm; see `item.engine.interface.Engine`."""
        vectors = np.empty((len(prepared), self.vector_width), dtype=np.float32)
        for rows, made in self._run(dict(enumerate(prepared)), self._rotations(adapters, len(prepared))):
            vectors[rows] = made.vectors
        return vectors

    def encode_modalities(
        self, prepared: Sequence[Prepared], modalities: Sequence[Modality] = MODALITIES
    ) -> dict[Modality, Vectors]:
        """(N, D) float32 by each; see `item.engine.interface.Engine`."""
        vectors = {modality: np.zeros((len(prepared), self.vector_width), np.float32) for modality in modalities}
        apart = self._run_modalities(prepared) if self.runner.modalities_are_apart else None
        for modality, rows in vectors.items():
            left = {row: kept for row, one in enumerate(prepared) if (kept := one.only(modality)) is not None}
            there = list(left)
            rows[there] = self.encode_prepared([*left.values()]) if apart is None else apart[modality][there]
        return vectors

    def features_of(self, prepared: Sequence[Prepared], adapters: Sequence[Named] | None = None) -> Vectors:
        """(N, F) float32; see `item.engine.interface.Engine`."""
        features = np.empty((len(prepared), self.features_width), dtype=np.float32)
        for rows, made in self._run(dict(enumerate(prepared)), self._rotations(adapters, len(prepared))):
            features[rows] = made.features
        return features

    def adapt_features(self, prepared: Sequence[Prepared], features: Vectors, adapters: Sequence[Named]) -> Vectors:
        """(N, F) float32; see `item.engine.interface.Engine`."""
        adapted, runner = features.copy(), self.runner
        rows = [row for row, one in enumerate(prepared) if one.word_ids is not None]
        listings = [prepared[row] if runner.text_reads_cells else replace(prepared[row], pixels=None) for row in rows]
        made = self.features_of(listings, [adapters[row] for row in rows])
        adapted[rows, : runner.words_width] = made[:, : runner.words_width]
        return adapted

    @cached_property
    def heads(self) -> Heads | None:
        """The categories' heads of the model folder; see `item.engine.interface.Engine`."""
        return read_heads(self.adapters.model, self.model_space)

    def _rotations(self, adapters: Sequence[Named] | None, count: int) -> Rotations | None:
        """What rotates `count` listings with these adapters; None where none has one."""
        if adapters is None:
            return None
        assert len(adapters) == count, "one adapter for each listing"
        return self.adapters.rotations(adapters) if any(one is not None for one in adapters) else None

    def _run(
        self, prepared: Mapping[int, Prepared], rotations: Rotations | None
    ) -> Iterator[tuple[npt.NDArray[np.int64], Outputs]]:
        """Batch by batch, the rows of its listings, by which `prepared` has them, and what the runner makes of them."""
        runner, rows = self.runner, np.fromiter(prepared, np.int64, len(prepared))
        ready = list(prepared.values())
        for bucket in buckets(ready, runner.num_cells, runner.token_budget, runner.packed):
            of_bucket = rows[bucket]
            chosen = rotations and replace(rotations, rows=rotations.rows[of_bucket])
            if chosen is not None and not chosen.rows.any():
                chosen = None
            with self._running:
                made = runner.run([ready[row] for row in bucket], chosen)
            yield of_bucket, made

    def _run_modalities(self, prepared: Sequence[Prepared]) -> dict[Modality, Vectors]:
        """(N, D) by each modality, whatever the runner gave where a listing does not have it."""
        runner = self.runner
        vectors = {modality: np.empty((len(prepared), self.vector_width), np.float32) for modality in MODALITIES}
        for bucket in buckets(prepared, runner.num_cells, runner.token_budget, runner.packed):
            with self._running:
                made = runner.run_modalities([prepared[row] for row in bucket])
            for modality, rows in vectors.items():
                rows[bucket] = made[modality]
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

    def prepare_all(self, listings: Sequence[Listing]) -> list[Outcome]:
        """Each listing made ready, or why it is refused; see `item.engine.interface.Engine`."""
        return [one.result() for one in self.submit(listings)]

    def submit(self, listings: Sequence[Listing]) -> list[Future[Outcome]]:
        """Starts preparing listings."""
        return [self.readers.submit(self.prepare, listing) for listing in listings]

    def prepare(self, listing: Listing) -> Outcome:
        """A listing made ready, or why it is refused."""
        try:
            return self.preprocessor(listing)
        except ListingError as error:
            return error
