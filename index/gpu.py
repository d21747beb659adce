"""Exact search of a segment on a GPU, where FAISS has one (the extra `gpu`).

There all rows are compared faster than a graph finds the nearest: a million rows of 256 dimensions are 1 GB, which a
data-centre GPU reads in less than a millisecond. So nothing is tuned there, and what is found is exact. FAISS's traps:
its indexes on a GPU know no selectors, find 2,048 neighbours at most, and two threads must not use one GPU's resources
at once, not even to search.
"""

from __future__ import annotations

import logging
import threading
import weakref
from typing import Any

import faiss
import numpy as np

from index.exact import Rows, Vectors
from item.engine.device import gpu_number
from item.errors import ConfigError

logger = logging.getLogger(__name__)

GPU_KIND = "GpuIndexFlatIP"  # FAISS's class
MAX_NEIGHBOURS = 2048
TEMPORARY_BYTES = 256 * 2**20  # FAISS takes 1.5 GiB by itself, which the encoder may need


class GpuFlat:
    """All vectors of a segment, (n, D), on a GPU."""

    def __init__(self, faiss_index: Any, using: threading.RLock) -> None:
        """using: held by whoever uses the GPU, also to free the index, whatever thread lets go of it last."""
        self._held, self._using = [faiss_index], using
        weakref.finalize(self, _release, self._held, using)

    def nearest(self, queries: Vectors, count: int) -> tuple[Vectors, Rows]:
        """(Q, count) scores and rows of the nearest, the best first, as `index.exact.nearest`; at most 2,048."""
        with self._using:
            scores, rows = self._held[0].search(queries, count)
        return np.asarray(scores), np.asarray(rows)


def _release(held: list[Any], using: threading.RLock) -> None:
    with using:
        held.clear()


class Gpu:
    """FAISS's resources on one GPU. Any thread may use it: one at a time does."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._using = threading.RLock()  # garbage may be collected by who holds it
        self._resources = faiss.StandardGpuResources()  # of faiss-gpu alone
        self._resources.setTempMemory(TEMPORARY_BYTES)

    def hold(self, vectors: Vectors) -> GpuFlat | None:
        """(n, D) float32 on the GPU; None, and a line in the log, where they do not fit beside what is there."""
        config = faiss.GpuIndexFlatConfig()
        config.device = self.number
        try:
            with self._using:
                index = faiss.GpuIndexFlatIP(self._resources, vectors.shape[1], config)
                index.add(np.ascontiguousarray(vectors))
        except RuntimeError as error:
            size = vectors.nbytes / 2**20
            logger.warning("%d MiB of vectors do not fit on GPU %d; they are searched on the CPU", size, self.number)
            logger.debug("%s", error)
            return None
        return GpuFlat(index, self._using)


def find_gpu(device: str) -> Gpu | None:
    """The GPU for "auto", "cuda" or "cuda:N"; None for "cpu" and where this FAISS has none.

    Raises ConfigError for another name, and for a number that is not there.
    """
    number = gpu_number(device)
    count = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
    if device == "cpu" or count == 0:
        return None
    if number >= count:
        raise ConfigError(f"device: {device!r} is not there; FAISS sees {count} GPUs")
    return Gpu(number)
