"""The process that benchmarks.durability kills: it writes to a collection, and says what it does.

    python -m benchmarks.durability_process COLLECTION < ORDERS

Each line of its standard output is a list in JSON, which `History` takes (benchmarks.durability_finds).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import index.choosing
import index.segment_files
import index.store
from benchmarks.durability_finds import History
from benchmarks.durability_writes import ABOUT, Operation, drawn_operation, operation_of
from benchmarks.report import CHECKOUT
from index.generations import CURRENT
from index.store import Store
from index.truth import Truth
from index.upkeep import Upkeep

COLLECTION = "collection"


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a writer is told. script: operations; None: it draws them, for ever; flat_rows: above, an index is built."""

    seed: int = 0
    clock: int = 1
    state: tuple[tuple[int, int, int], ...] = ()
    flat_rows: int = 20_000
    flush_rows: int = 40
    background: bool = True
    script: tuple[Operation, ...] | None = None

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Orders:
        """The reverse of `to_json`."""
        fields = json.loads(text)
        rows = tuple(map(tuple, fields.pop("state")))
        script = fields.pop("script")
        return cls(**fields, state=rows, script=None if script is None else tuple(map(operation_of, script)))


# Functions that a writer announces, by the name of the phase. They may be called within one another.
PHASES: dict[str, tuple[Any, str]] = {
    "open": (Store, "_open_generation"),
    "write": (Truth, "write"),
    "merge": (Store, "_merge"),
    "rewrite": (Store, "_rewrite"),
    "segment": (index.segment_files, "write_segment"),
    "manifest": (index.segment_files, "write_manifest"),
    "prune": (Truth, "prune"),
    "clear": (index.store, "remove_unnamed"),
    "load": (Truth, "load"),
    "switch": (index.store, "switch"),
    "drop": (index.store, "remove_others"),
}
FLUSH = "flush"  # a merge of nothing but fresh rows

_speaking = threading.Lock()


def say(*words: object) -> None:
    """One line on the standard output, at once."""
    with _speaking:
        os.write(1, json.dumps(words).encode() + b"\n")


def announce(phase: str, owner: Any, name: str) -> None:
    """Has a function say when it is entered and left."""
    inner: Callable[..., Any] = getattr(owner, name)

    def announced(*arguments: Any, **named: Any) -> Any:
        thread, entered = threading.get_ident(), phase
        if phase == "merge" and arguments[1] == len(arguments[0]._memory.segments):
            entered = FLUSH
        say("enter", thread, entered)
        try:
            return inner(*arguments, **named)
        finally:
            say("leave", thread, entered)

    setattr(owner, name, announced)


def write(folder: Path, orders: Orders) -> None:
    """Opens the collection, or makes it if the first operation does, and writes to it."""
    index.choosing.FLAT_ROWS = orders.flat_rows
    for phase, (owner, name) in PHASES.items():
        announce(phase, owner, name)
    upkeep = Upkeep(flush_rows=orders.flush_rows, background=orders.background)
    say("start")
    if not (folder / CURRENT).exists():
        first = Operation(kind="create")
        say("begin", asdict(first))
        store = Store.create(folder, ABOUT, upkeep=upkeep)
        say("done")
    else:
        store = Store.open(folder, writable=True, upkeep=upkeep)
    for operation in operations(orders):
        say("begin", asdict(operation))
        store = operation.run(store)
        say("done")
    store.close()


def operations(orders: Orders) -> Iterator[Operation]:
    """Those of the script, or drawn ones for ever."""
    if orders.script is not None:
        yield from orders.script
        return
    rng, clock = Random(orders.seed), orders.clock
    state = {number: (version, vector) for number, version, vector in orders.state}
    while True:
        operation = drawn_operation(state, clock, rng)
        yield operation
        state, clock = operation.after(state), clock + len(operation.rows)


def writer_command(folder: Path) -> list[str]:
    """What runs this module; it reads its orders from the standard input."""
    return [sys.executable, "-m", "benchmarks.durability_process", str(folder)]


def writer_process(folder: Path, orders: Orders) -> subprocess.Popen[bytes]:
    """A writer that has been told what to do."""
    process = subprocess.Popen(
        writer_command(folder),
        cwd=CHECKOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(orders.to_json())
    process.stdin.close()
    return process


def run_until(
    process: subprocess.Popen[bytes], history: History, stop: Callable[[list[Any]], bool], wait_s: float
) -> None:
    """Listens to a writer, and kills it a while after a line."""
    assert process.stdout is not None
    for line in process.stdout:
        if stop(history.hear(line)):
            time.sleep(wait_s)
            process.kill()
            break
    said = process.stdout.read()
    for line in said.splitlines(keepends=True):
        if line.endswith(b"\n"):
            history.hear(line)
    process.stdout.close()
    if process.wait() > 0:
        raise RuntimeError(f"the writer ended with status {process.returncode}")


if __name__ == "__main__":
    write(Path(sys.argv[1]), Orders.from_json(sys.stdin.buffer.read()))
