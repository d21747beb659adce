"""Verifies collections, and repairs what can be repaired.

    python -m index.check --index DIR                 reads every byte of every collection
    python -m index.check --index DIR --repair        and makes damaged segments again from the truth

Segments are a cache: whatever is wrong with them, they can be made again. A damaged row of the truth cannot: it is
named, so that its product can be written again. Exit status: 0 where all is well or was repaired, 1 where damage is
left, 2 where a collection cannot be read at all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from index.generations import collection_folders, read_generations
from index.manifest import Manifest, read_manifest, stamp
from index.segment import Segment
from index.store import Store
from index.truth import Truth
from index.upkeep import Upkeep
from item.errors import ItemError, StoreError


def truth_damage(path: Path) -> Iterator[str]:
    """What is wrong with a generation's truth."""
    with closing(Truth(path, writable=False)) as truth:
        yield from truth.integrity_errors()
        yield from truth.damaged()


def segment_damage(path: Path) -> Iterator[str]:
    """What is wrong with a generation's segments: their files, or what they hold against the truth."""
    try:
        manifest = read_manifest(path)
        segments = [Segment(path, info) for info in manifest.segments]
    except StoreError as error:
        yield str(error)
        return
    with closing(Truth(path, writable=False)) as truth:
        yield from differences(path, truth, manifest, segments)


def differences(path: Path, truth: Truth, manifest: Manifest, segments: Sequence[Segment]) -> Iterator[str]:
    """Rows of segments that are not the truth's. Rows that the truth has no more are deleted, not damaged."""
    with truth.frozen() as frozen:
        for block_keys, products, vectors in frozen.blocks():
            rows_of = [segment.rows_of(block_keys) for segment in segments]
            for place, (key, product, vector) in enumerate(zip(block_keys.tolist(), products, vectors, strict=True)):
                if key > manifest.last_key:
                    continue  # fresh
                found = [(one, rows[place]) for one, rows in zip(segments, rows_of, strict=True) if rows[place] >= 0]
                if not found:
                    yield f"{path}: key {key}, product {product.product_id!r}: is in no segment"
                    continue
                segment, row = found[0]
                same = segment.ids[row] == product.product_id and (segment.alive is None or segment.alive[row])
                if not same or not np.array_equal(segment.vectors[row], vector):
                    yield f"{path}: key {key}, product {product.product_id!r}: differs from its segment"


def check(collection: Path, repair: bool) -> bool:
    """Prints what is found; returns whether all is well, or was repaired. Raises ItemError."""
    path = collection / read_generations(collection).current
    broken = list(truth_damage(path))
    stale = [] if broken else segment_damage_at_rest(path)
    for line in (*broken, *stale):
        print(line)
    if stale and repair:
        with Store.open(collection, writable=True, upkeep=Upkeep(background=False)) as store:
            store.compact()
            print(f"{collection}: segments made again of {len(store):,} products")
        stale = list(segment_damage(path))
    if not broken and not stale:
        print(f"{collection}: is well")
    return not broken and not stale


def segment_damage_at_rest(path: Path) -> list[str]:
    """What is wrong with segments that no writer has replaced while they were read."""
    while True:
        before = stamp(path)
        found = list(segment_damage(path))
        if not found or stamp(path) == before:
            return found


def main(argv: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="python -m index.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--index", required=True, type=Path, metavar="DIR", help="folder of the collections")
    parser.add_argument("--repair", action="store_true", help="make damaged segments again")
    arguments = parser.parse_args(argv)
    try:
        well = [check(collection, arguments.repair) for collection in collection_folders(arguments.index).values()]
    except (ItemError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main())
