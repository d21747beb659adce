"""FAISS's own indexes with exact refinement, at all settings worth a try: what the store is measured against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from benchmarks.drawn_vectors import Vectors
from index.approximate import add, train
from index.choosing import GRAPH_LINKS, num_lists

PROBES = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192)
REFINED = (2, 4, 8, 16)
ALL_ROWS = 200_000  # beyond, only those that may be the fastest
EFS = (16, 20, 24, 28, 32, 36, 40, 44, 48, 56, 64, 96, 128, 192)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """An index and how it is searched; `size_bytes` beside the vectors."""

    index: Any
    name: str
    size_bytes: int
    parameters: Any
    label: str

    def search(self, batch: Vectors, k: int) -> npt.NDArray[np.int64]:
        """(Q, k) rows."""
        return np.asarray(self.index.search(batch, k, params=self.parameters)[1])


def settings(vectors: Vectors) -> Iterator[list[Setting]]:
    """One list for each index."""
    width = vectors.shape[1]
    flat: Any = faiss.IndexFlatIP(width)
    flat.add(vectors)
    yield from (graph(vectors, flat, code) for code in ("SQfp16", "SQ8", "Flat"))
    codes = ("SQ8", "Flat", f"PQ{width // 2}x4fs", "RaBitQfs")
    yield from (inverted_lists(vectors, flat, code) for code in codes[: None if len(vectors) <= ALL_ROWS else 2])


def inverted_lists(vectors: Vectors, flat: Any, code: str) -> list[Setting]:
    """IVF over one kind of code."""
    name = f"IVF{num_lists(len(vectors))},{code}"
    index = train(vectors, name)
    add(index, vectors)
    size_bytes = len(faiss.serialize_index(index))
    found = []
    for probes in PROBES:
        of_lists: Any = faiss.IVFSearchParameters
        base = of_lists(nprobe=probes)
        if code == "Flat":
            size_bytes = 8 * len(vectors)  # it holds the vectors themselves
            label = f"{name} nprobe {probes}"
            found.append(Setting(index=index, name=name, size_bytes=size_bytes, parameters=base, label=label))
            continue
        refined = faiss.IndexRefine(index, flat)
        for times in REFINED:
            refine: Any = faiss.IndexRefineSearchParameters
            parameters = refine(k_factor=times, base_index_params=base)
            label = f"{name} nprobe {probes} k_factor {times}"
            found.append(Setting(index=refined, name=name, size_bytes=size_bytes, parameters=parameters, label=label))
    return found


def graph(vectors: Vectors, flat: Any, code: str) -> list[Setting]:
    """HNSW over vectors of 8 or 16 bits a value, refined, or of 32."""
    name = f"HNSW{GRAPH_LINKS},{code}"
    index = train(vectors, name)
    add(index, vectors)
    size_bytes = len(faiss.serialize_index(index)) - (vectors.nbytes if code == "Flat" else 0)
    refined = faiss.IndexRefine(index, flat)
    found = []
    for ef in EFS:
        base: Any = faiss.SearchParametersHNSW(efSearch=ef)  # type: ignore[attr-defined]  # its stubs do not know it
        if code == "Flat":  # it holds the vectors themselves
            label = f"{name} ef {ef}"
            found.append(Setting(index=index, name=name, size_bytes=size_bytes, parameters=base, label=label))
            continue
        for times in (1.2, 1.6) if code == "SQfp16" else (1.6, 2, 3):
            refine: Any = faiss.IndexRefineSearchParameters
            parameters = refine(k_factor=times, base_index_params=base)
            label = f"{name} ef {ef} k_factor {times}"
            found.append(Setting(index=refined, name=name, size_bytes=size_bytes, parameters=parameters, label=label))
    return found
