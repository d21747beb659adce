"""The index: how fast against bare FAISS, hnswlib and Qdrant at equal recall, and what writes and sizes cost.

    python -m benchmarks.search --quick --json FILE                           30,000 rows, a minute
    python -m benchmarks.search --json benchmarks/results/search.json \\
        [--rows 1000000] [--peers PYTHON]                                     an hour

Vectors are drawn (benchmarks.drawn_vectors), 256 wide. A timed answer is ids and scores of the nearest 10 of 32
queries. `search_vs_bare_faiss`: how many times faster the store is than the fastest bare FAISS index that has recall@10
of at least 0.99 on the same queries; runs alternate. Each bare index is (recall, latency, memory) in the table. There
are 4,096 queries: of 512, one index reached the recall with an ef of 24 that took 44 on 2,048.
`--peers` is the Python of an environment with hnswlib and qdrant-edge-py (pip install hnswlib qdrant-edge-py numpy),
where benchmarks/search_peers.py runs on the same files.

`upsert_ms`, `delete_ms`: a row, in batches of 100, each visible to the next search. `open_s`: a store that was closed.
`build_s` and `memory_vs_limit`, the peak of a fresh process over (vectors in float32 + index), at growing sizes; the
benchmark of a store that is there leaves them out, so that they have a results file of their own
(`--sizes --json benchmarks/results/search-sizes.json`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.bare_faiss import Setting, settings
from benchmarks.drawn_vectors import Clusters, Vectors, attributes
from benchmarks.report import CHECKOUT, Result, write_report
from index.about import About
from index.exact import nearest
from index.product import Product
from index.store import Store
from index.upkeep import Upkeep

Rows = npt.NDArray[np.int64]

WIDTH, BATCH, K, RECALL = 256, 32, 10, 0.99
AT_ONCE = 4096  # products that are handed over together
PACKAGES = ("faiss-cpu", "numpy")


def products(count: int, clusters: Clusters) -> Iterator[tuple[list[Product], Vectors]]:
    """Blocks of products and their vectors."""
    row = 0
    for drawn, drawn_departments in clusters.draw(count, seed=0):
        for start in range(0, len(drawn), AT_ONCE):
            vectors, departments = drawn[start : start + AT_ONCE], drawn_departments[start : start + AT_ONCE].tolist()
            yield [product(number, one, count) for number, one in enumerate(departments, start=row)], vectors
            row += len(vectors)


def product(row: int, department: int, count: int) -> Product:
    """What a row is called."""
    return Product(
        product_id=f"p{row}",
        title=f"Product {row}",
        category=("Shop", f"department {department}"),
        attributes=attributes(row, department, count),
    )


def build(folder: Path, count: int) -> Store:
    """A store of so many products."""
    clusters = Clusters(count, WIDTH)
    return Store.create(folder, About(space="5" * 64, vector_width=WIDTH), products(count, clusters))


def open_untouched(folder: Path, count: int) -> Store:
    """A store that `build` made and that nobody has written to since: its rows are those that are compared with it."""
    store = Store.open(folder, writable=True, upkeep=Upkeep(background=False))
    view = store._memory.view()
    if not (view.alive is None and len(view) == view.num_segment_rows == count):
        store.close()
        raise SystemExit(
            f"--store: {folder} was written to (writes are measured in it last) or has not {count:,} rows;"
            " remove it, and benchmarks.filters makes it again"
        )
    return store


def batches(queries: Vectors) -> list[Vectors]:
    """32 queries each."""
    return [queries[start : start + BATCH] for start in range(0, len(queries), BATCH)]


def recall(found: Sequence[Rows], exact: Rows) -> float:
    """The share of the exact nearest that was found."""
    return float(np.mean([np.isin(want, got).mean() for want, got in zip(exact, found, strict=True)]))


def median_ms(search: Callable[[Vectors], object], queries: Vectors) -> float:
    """Of one batch."""
    taken = []
    for batch in batches(queries):
        since = time.perf_counter()
        search(batch)
        taken.append(time.perf_counter() - since)
    return 1e3 * statistics.median(taken)


def best_bare(vectors: Vectors, queries: Vectors, exact: Rows, where: str) -> tuple[Setting, list[Result]]:
    """The fastest setting of any index that reaches the recall, and what each index takes."""
    results, best = [], []
    for tried in settings(vectors):
        fastest: tuple[float, float, Setting] | None = None
        for setting in tried:
            reached = recall([row for batch in batches(queries) for row in setting.search(batch, K)], exact)
            if reached >= RECALL:
                taken = median_ms(partial(setting.search, k=K), queries)
                if fastest is None or taken < fastest[0]:
                    fastest = (taken, reached, setting)
        name, size = tried[0].name, tried[0].size_bytes / len(vectors)
        results.append(Result(metric="bare_bytes_per_row", value=size, unit="bytes", against=name, where=where))
        if fastest is not None:
            taken, reached, setting = fastest
            against = f"{setting.label}, recall {reached:.4f}"
            results.append(Result(metric="bare_ms", value=taken, unit="ms", against=against, where=where))
            best.append((taken, setting))
    return min(best, key=lambda one: one[0])[1], results


def against_bare(store: Store, vectors: Vectors, queries: Vectors, repeats: int, where: str) -> list[Result]:
    """Ours and the best bare index, in turns."""
    _, exact = nearest(queries, vectors, K)
    bare, results = best_bare(vectors, queries, exact, where)

    def ours(batch: Vectors) -> list[Rows]:
        return [np.array([int(hit.product_id[1:]) for hit in one.hits]) for one in store.search(batch, K)]

    reached = recall([row for batch in batches(queries) for row in ours(batch)], exact)
    times: list[tuple[float, float]] = []
    for _ in range(repeats):
        of_store, of_faiss = partial(store.search, k=K), partial(bare.search, k=K)
        times.append((median_ms(of_store, queries), median_ms(of_faiss, queries)))
    of_ours, of_bare = (statistics.median(column) for column in zip(*times, strict=True))
    (segment, *_) = store._memory.segments
    return [
        *results,
        Result(metric="search_ms", value=of_ours, unit="ms", against=segment.info.factory, where=where),
        Result(metric="recall_at_10", value=reached, unit="share", against="exact search", where=where),
        Result(metric="search_vs_bare_faiss", value=of_bare / of_ours, unit="ratio", against=bare.label, where=where),
    ]


def writes(store: Store, clusters: Clusters, count: int, rounds: int, where: str) -> list[Result]:
    """Batches of 100, each followed by a search that has to see it.

    The truth is read once before: that of a store in use is in the disk's cache.
    """
    for path in store.folder.glob("generation-*/truth.sqlite"):
        with path.open("rb") as file:
            while file.read(2**24):
                pass
    generator = np.random.default_rng(2)
    upserts, deletes = [], []
    fresh = clusters.queries(100 * rounds)
    for number in range(rounds):
        rows = generator.choice(count, 100, replace=False)
        vectors = fresh[100 * number : 100 * number + 100]
        batch = [product(int(row), 0, count) for row in rows]
        since = time.perf_counter()
        store.upsert(batch, vectors)
        upserts.append(time.perf_counter() - since)
        assert store.search(vectors[:1], 1)[0].hits[0].product_id == batch[0].product_id
        ids = [one.product_id for one in batch[:50]] + [f"p{row}" for row in generator.integers(0, count, 50)]
        since = time.perf_counter()
        store.delete(ids)
        deletes.append(time.perf_counter() - since)
        assert store.search(vectors[:1], 1)[0].hits[0].product_id != batch[0].product_id
    return [
        Result(metric="upsert_ms", value=10 * statistics.median(upserts), unit="ms a row", where=where),
        Result(metric="upsert_ms_p99", value=10 * float(np.quantile(upserts, 0.99)), unit="ms a row", where=where),
        Result(metric="delete_ms", value=10 * statistics.median(deletes), unit="ms a row", where=where),
    ]


def sizes(counts: Sequence[int], folder: Path) -> list[Result]:
    """Building in a fresh process: time, and memory at its peak."""
    results = []
    for count in counts:
        command = [sys.executable, "-m", "benchmarks.search", "--build", str(count), str(folder / str(count))]
        measured = json.loads(subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout)
        where = f"{count:,} rows"
        limit = measured["limit_bytes"]
        results += [
            Result(metric="build_s", value=measured["build_s"], unit="s", where=where),
            Result(metric="build_us_per_row", value=1e6 * measured["build_s"] / count, unit="us", where=where),
            Result(metric="open_s", value=measured["open_s"], unit="s", where=where),
            Result(
                metric="memory_vs_limit",
                value=measured["peak_bytes"] / limit,
                unit="ratio",
                against=f"vectors and index, {limit / 2**20:.0f} MiB",
                where=where,
            ),
        ]
    return results


def build_and_measure(count: int, folder: Path) -> dict[str, float]:
    """In a fresh process."""
    since = time.perf_counter()
    with build(folder, count) as store:
        build_s = time.perf_counter() - since
        files = [file for one in store._memory.segments for name, file in one.info.files.items() if "index" in name]
        limit = 4 * WIDTH * count + sum(file.bytes for file in files)
    peak = peak_bytes()
    since = time.perf_counter()
    with Store.open(folder, writable=True):
        open_s = time.perf_counter() - since
    return {"build_s": build_s, "open_s": open_s, "peak_bytes": peak, "limit_bytes": limit}


def peak_bytes() -> int:
    """Of this process, pages of mapped files included."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmHWM")


def peers(python: str, vectors: Vectors, queries: Vectors, folder: Path, where: str) -> list[Result]:
    """hnswlib and Qdrant on the same vectors and queries, in their own environment."""
    _, exact = nearest(queries, vectors, K)
    for name, array in (("vectors", vectors), ("queries", queries), ("exact", exact)):
        np.save(folder / f"{name}.npy", array)
    script = CHECKOUT / "benchmarks" / "search_peers.py"
    done = subprocess.run([python, str(script), str(folder)], check=True, stdout=subprocess.PIPE, text=True)
    return [Result(where=where, **one) for one in json.loads(done.stdout.splitlines()[-1])]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="the results file to write")
    parser.add_argument("--quick", action="store_true", help="30,000 rows")
    parser.add_argument("--rows", type=int, default=1_000_000, help="products (%(default)s)")
    parser.add_argument("--peers", metavar="PYTHON", help="of an environment with hnswlib and qdrant-edge-py")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument(
        "--store", type=Path, help="one that benchmarks.filters has left; it is written to, sizes are not measured"
    )
    parts.add_argument("--sizes", action="store_true", help="only how building grows with the rows")
    parser.add_argument("--build", nargs=2, metavar=("ROWS", "DIR"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.build:
        count, folder = arguments.build
        print(json.dumps(build_and_measure(int(count), Path(folder))))
        return 0
    count = 30_000 if arguments.quick else arguments.rows
    clusters, queries = Clusters(count, WIDTH), Clusters(count, WIDTH).queries(256 if arguments.quick else 4096)
    where = f"{count:,} rows of {WIDTH}"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        results: list[Result] = []
        store_folder = arguments.store or folder / str(count)
        if arguments.store is None:
            results = sizes([count] if arguments.quick else [count // 10, count // 3, count], folder)
        if arguments.sizes:
            write_report("search", results, PACKAGES, arguments.json)
            return 0
        vectors = np.concatenate([block for block, _ in clusters.draw(count, seed=0)])
        write_report("search", results, PACKAGES, arguments.json)  # the rest takes long
        with open_untouched(store_folder, count) as store:
            results += against_bare(store, vectors, queries, 3 if arguments.quick else 9, where)
            results += writes(store, clusters, count, 10 if arguments.quick else 50, where)
        write_report("search", results, PACKAGES, arguments.json)  # peers take longest
        if arguments.peers:
            results += peers(arguments.peers, vectors, queries, folder, where)
            write_report("search", results, PACKAGES, arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
