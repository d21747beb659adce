"""What each kind of index would be on a collection's own vectors: recall, latency and memory, side by side.

    python -m index.compare --index INDEX
    python -m index.compare --index INDEX --collection default --recall 0.95 --rows 100000

Builds each kind over the collection's vectors, or over a sample of --rows of them, and searches it with products that
it does not hold. The mark is on the kind that the store takes for as many rows; --bytes-per-row bounds it. Writes
nothing, and may run beside a server. A million rows take some twenty minutes, and three times their vectors' memory.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import faiss
import numpy as np

from index.approximate import GRAPH, Approximate, close_together, wrapped
from index.choosing import Choice, add_choice, build, factories
from index.exact import Rows, Vectors, nearest, score
from index.generations import collection_folders
from index.gpu import GPU_KIND, find_gpu
from index.manifest import FLAT, Depth, depth_for
from index.store import Store
from item.errors import ConfigError, ItemError
from item.tables import format_table

K, BATCH, NUM_QUERIES = 10, 32, 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A kind of index: recall@10 against exact search, milliseconds of a batch of 32 queries, bytes of memory a row
    (`Choice`), seconds to build it."""

    kind: str
    recall: float
    batch_ms: float
    bytes_per_row: float
    build_s: float


def compare(vectors: Vectors, queries: Vectors, recall: float) -> Iterator[Measured]:
    """Exact search, on a GPU too if there is one, then every kind of index that the store knows.

    (n, D) and (Q, D) of unit norm, none in both.
    """
    exact = nearest(queries, vectors, K)[1]
    yield Measured(
        kind=FLAT,
        recall=1.0,
        batch_ms=median_ms(queries, lambda batch: nearest(batch, vectors, K)[1]),
        bytes_per_row=float(vectors[0].nbytes),
        build_s=0.0,
    )
    gpu = find_gpu("auto")
    since = time.perf_counter()
    if gpu is not None and (held := gpu.hold(vectors)) is not None:
        build_s = time.perf_counter() - since
        found = np.concatenate([held.nearest(batch, K)[1] for batch in batches(queries)])
        yield Measured(
            kind=GPU_KIND,
            recall=recall_of(found, exact),
            batch_ms=median_ms(queries, lambda batch: held.nearest(batch, K)[1]),
            bytes_per_row=0.0,
            build_s=build_s,
        )
    for factory in factories(*vectors.shape):
        since = time.perf_counter()
        faiss_index, depths = build(vectors, factory, recall)
        order, ordered = np.arange(len(vectors)), vectors
        if factory.startswith(GRAPH):
            order = close_together(vectors)
            faiss_index.permute_entries(order)
            ordered = vectors[order]
        build_s = time.perf_counter() - since
        search = partial(found_by, wrapped(faiss_index), ordered, depth_for(depths, K))
        found = np.concatenate([order[search(batch)] for batch in batches(queries)])
        yield Measured(
            kind=factory,
            recall=recall_of(found, exact),
            batch_ms=median_ms(queries, search),
            bytes_per_row=len(faiss.serialize_index(faiss_index)) / len(vectors),
            build_s=build_s,
        )
        del faiss_index, ordered, search  # their memory, before the next is built


def recall_of(found: Rows, exact: Rows) -> float:
    """The mean share of the exact rows, (Q, K), that were found, (Q, K)."""
    return float(np.mean([np.isin(want, have).mean() for want, have in zip(exact, found, strict=True)]))


def found_by(index: Approximate, vectors: Vectors, depth: Depth, batch: Vectors) -> Rows:
    """(Q, 10) rows, the best first."""
    rows = index.find(batch, depth)
    scores = score(batch, vectors, rows)
    return np.take_along_axis(rows, np.argsort(-scores, axis=1)[:, :K], axis=1)


def batches(queries: Vectors) -> list[Vectors]:
    """32 queries each."""
    return [queries[start : start + BATCH] for start in range(0, len(queries), BATCH)]


def median_ms(queries: Vectors, search: Callable[[Vectors], Rows]) -> float:
    """Of a batch."""
    taken = []
    for batch in batches(queries):
        since = time.perf_counter()
        search(batch)
        taken.append(time.perf_counter() - since)
    return 1e3 * statistics.median(taken)


def vectors_of(store: Store, max_rows: int | None) -> tuple[Vectors, Vectors]:
    """(n, D) of a collection, or of a sample of it, in no order, and (Q, D) others to search with. Raises ConfigError:
    too few."""
    view = store.view()
    rows = np.arange(len(view)) if view.alive is None else np.flatnonzero(view.alive)
    if len(rows) < 10 * K:
        raise ConfigError(f"{store.folder}: {len(rows)} products; at least {10 * K} are needed to compare indexes")
    rows = np.random.default_rng(0).permutation(rows)
    num_queries = min(NUM_QUERIES, len(rows) // 10)
    queries, rest = rows[:num_queries], rows[num_queries:]
    return view.vectors(rest[:max_rows]), view.vectors(queries)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m index.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--index", type=Path, required=True, metavar="DIR", help="folder of collections")
    parser.add_argument("--collection", default="default", metavar="NAME", help="(%(default)s)")
    add_choice(parser)
    parser.add_argument("--rows", type=int, metavar="N", help="a sample of so many (all)")
    return parser


def run(args: argparse.Namespace) -> None:
    """Prints the table. Raises ItemError."""
    choice = Choice(recall=args.recall, bytes_per_row=args.bytes_per_row)
    folders = collection_folders(args.index)
    if args.collection not in folders:
        raise ConfigError(f"collection: {args.collection!r} is not there; {args.index} has {', '.join(folders)}")
    if args.rows is not None and args.rows < 9 * K:
        raise ConfigError(f"rows: {args.rows} is below {9 * K}")
    with Store.open(folders[args.collection]) as store:
        vectors, queries = vectors_of(store, args.rows)
    chosen = choice.factory(*vectors.shape)
    print(f"{len(vectors):,} vectors of width {vectors.shape[1]}, {len(queries)} queries in batches of {BATCH}")
    rows = []
    for one in compare(vectors, queries, choice.recall):
        mark = "*" if one.kind == chosen else ""
        rows.append([mark, one.kind, one.recall, one.batch_ms, round(one.bytes_per_row), one.build_s])
        print(f"measured {one.kind}", file=sys.stderr, flush=True)
    print(format_table(["", "index", "recall@10", "ms a batch", "bytes a row", "s to build"], rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    args = build_parser().parse_args(argv)
    try:
        run(args)
    except ItemError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
