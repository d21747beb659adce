"""Whether the store keeps what it has acknowledged: through kills, power cuts and damaged files.

    python -m benchmarks.durability --json FILE --quick                              under a minute on two cores
    python -m benchmarks.durability --json benchmarks/results/durability.json        some 10 minutes

*Kills*: a process writes, makes segments of it and new generations all the time, says before each operation what it is
about to do and after it that it is done, and is killed (SIGKILL) at a moment drawn at random, by turns within each of
its phases. The collection is then opened and compared with what was acknowledged; the next process goes on with it.
`lost_writes`: products that are missing, older than acknowledged, or not found by search; `resurrected`: deleted ones
that are there; `torn`: operations that are half there, vectors of another product; `refused`: what could not be opened
or gone on with; `rebuilt`: segments that had to be made again; `never_removed`: kinds of files that kills have left and
that were there in the end; `kills_in_*`: of each phase, the inner and the outer; `left_*`: kills that left such files.

*Power cuts*: the system calls of a process that goes through all phases are recorded by strace and replayed into a
model of a file system (benchmarks.crash_images). At each fsync, change of a name and acknowledgement the images that a
power cut may leave are written, opened and compared in the same way; `images_broken` of them are not as they should be.

*Damage*: one bit is flipped, or the last byte dropped, in each file of a collection in turn. It has to be repaired or
refused with a StoreError: `silent_damage` counts other products, vectors or hits than before without one,
`damage_crashes` other errors.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

from benchmarks.durability_damage import damage_results
from benchmarks.durability_kills import kill_results
from benchmarks.durability_power import power_results
from benchmarks.report import write_report

MEMORY = Path("/dev/shm")  # images and damaged copies need no disk


@contextmanager
def in_memory() -> Iterator[Path]:
    """A folder for a while, in memory where that can be."""
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        yield Path(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.durability",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, help="the results file to write")
    parser.add_argument("--quick", action="store_true", help="few kills, images and damages")
    parser.add_argument("--kills", type=int, help="how many; default: 200, with --quick 10")
    arguments = parser.parse_args(argv)
    num_kills = arguments.kills or (10 if arguments.quick else 200)
    with tempfile.TemporaryDirectory() as on_disk, in_memory() as scratch:
        folder = Path(on_disk)
        results = kill_results(folder, num_kills, Random(0))
        results += power_results(folder, scratch, arguments.quick)
        results += damage_results(folder, scratch, arguments.quick, Random(1))
    write_report("durability", results, ("faiss-cpu", "numpy", "pyarrow"), arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
