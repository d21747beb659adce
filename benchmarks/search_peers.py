"""hnswlib and Qdrant on the vectors of benchmarks.search, in an environment of their own.

    python benchmarks/search_peers.py DIR      DIR holds vectors.npy, queries.npy and exact.npy, the rows of the nearest

The last line is a JSON list of results.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

BATCH, K, RECALL = 32, 10, 0.99
M, EF_CONSTRUCTION = 16, 100
EFS = (16, 20, 24, 28, 32, 36, 40, 44, 48, 56, 64, 80, 96, 128, 192, 256, 384)
BLOCK = 5_000

Search = Callable[[Any, int], list[list[int]]]


def hnswlib_index(vectors: Any) -> Search:
    """Its graph over inner products, all cores."""
    import hnswlib  # type: ignore[import-untyped]  # in an environment of its own

    index = hnswlib.Index(space="ip", dim=vectors.shape[1])
    index.init_index(max_elements=len(vectors), ef_construction=EF_CONSTRUCTION, M=M)
    index.add_items(vectors)

    def search(batch: Any, ef: int) -> list[list[int]]:
        index.set_ef(ef)
        return index.knn_query(batch, k=K)[0].tolist()

    return search


def qdrant_index(vectors: Any) -> Search:
    """A shard whose vectors are all in its graph."""
    import qdrant_edge as qdrant  # type: ignore[import-not-found]  # likewise

    config = qdrant.EdgeConfig(
        vectors={"v": qdrant.EdgeVectorParams(size=vectors.shape[1], distance=qdrant.Distance.Dot)},
        hnsw_config=qdrant.HnswIndexConfig(m=M, ef_construct=EF_CONSTRUCTION, full_scan_threshold=1),
        optimizers=qdrant.EdgeOptimizersConfig(indexing_threshold=1, default_segment_number=1),
    )
    shard = qdrant.EdgeShard.create(tempfile.mkdtemp(), config)
    for start in range(0, len(vectors), BLOCK):
        points = [
            qdrant.Point(id=start + row, vector={"v": vector.tolist()}, payload={})
            for row, vector in enumerate(vectors[start : start + BLOCK])
        ]
        shard.update(qdrant.UpdateOperation.upsert_points(points))
    while shard.optimize():
        pass
    indexed = shard.info().indexed_vectors_count
    if indexed < len(vectors):
        print(f"qdrant: {indexed} of {len(vectors)} vectors are in the graph", file=sys.stderr)

    def search(batch: Any, ef: int) -> list[list[int]]:
        parameters = qdrant.SearchParams(hnsw_ef=ef)
        requests = [
            qdrant.QueryRequest(
                limit=K, query=qdrant.Query.Nearest(query.tolist(), using="v"), params=parameters, with_payload=False
            )
            for query in batch
        ]
        return [[hit.id for hit in hits] for hits in shard.query_batch(qdrant.QueryBatchRequest(requests))]

    return search


def measure(
    name: str, make: Callable[[Any], Search], vectors: Any, queries: Any, exact: Any
) -> Iterator[dict[str, Any]]:
    """How long its graph takes to make, and its fastest batch that has the recall."""
    since = time.perf_counter()
    search = make(vectors)
    yield {"metric": "peer_build_s", "value": time.perf_counter() - since, "unit": "s", "against": name}
    for ef in EFS:
        found, taken = [], []
        for start in range(0, len(queries), BATCH):
            since = time.perf_counter()
            found += search(queries[start : start + BATCH], ef)
            taken.append(time.perf_counter() - since)
        recall = float(np.mean([np.isin(want, got).mean() for want, got in zip(exact, found, strict=True)]))
        if recall >= RECALL or ef == EFS[-1]:
            against = f"{name} ef {ef}, recall {recall:.4f}"
            yield {"metric": "peer_ms", "value": 1e3 * statistics.median(taken), "unit": "ms", "against": against}
            return


def main() -> None:
    """Prints the results."""
    folder = Path(sys.argv[1])
    vectors, queries, exact = (np.load(folder / f"{name}.npy") for name in ("vectors", "queries", "exact"))
    results: list[dict[str, Any]] = []
    for name, make in (("hnswlib", hnswlib_index), ("qdrant-edge", qdrant_index)):
        results += measure(name, make, vectors, queries, exact)
        print(json.dumps(results[-2:]), file=sys.stderr, flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
