"""Kills: what benchmarks.durability finds after a writer was killed, again and again, over one collection."""

from __future__ import annotations

import shutil
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.durability_finds import (
    QUIET,
    Content,
    Faults,
    History,
    counted,
    judge,
    observe,
    promised,
    repairs,
    show,
)
from benchmarks.durability_process import COLLECTION, FLUSH, Orders, run_until, writer_process
from benchmarks.durability_writes import Operation
from benchmarks.report import Result
from index.files import BESIDE
from index.generations import CURRENT, PREFIX, read_generations
from index.manifest import read_manifest
from index.store import Store
from index.truth import Truth
from item.errors import StoreError
from item.progress import Progress

ANY, LINES = "any", (20, 500)
TARGETS = (ANY, "write", FLUSH, "segment", "manifest", "prune", "clear", "merge", "load", "switch", "drop", "open")
MANY_LINES = 5000  # after which a writer that does not come to its phase is killed all the same
DELAY_S = 0.0015  # mean, after the phase has begun


class Kills:
    """Rounds of writing, a kill, and a look at what is there."""

    def __init__(self, folder: Path, rng: Random) -> None:
        self.folder, self.rng = folder, rng
        self.history, self.faults = History(), Faults()
        self.open_s: list[float] = []
        self.phases, self.left = Counter[str](), Counter[str]()
        self.refused: list[str] = []
        self.num_kills = self.num_acknowledged = 0

    def round(self, target: str) -> None:
        """One kill, or for the target `open` one more of the writer that opens what the first has left."""
        if target == "open" and self.history.content is not None:
            self.kill("write")
            self.kill("open", script=())
        else:
            self.kill(target)
        self.look()

    def kill(self, target: str, script: tuple[Operation, ...] | None = None) -> None:
        """Has a writer work until it is in a phase for the n-th time, and kills it a moment later."""
        state = {} if self.history.content is None else self.history.content.state
        orders = Orders(
            seed=self.rng.getrandbits(32),
            clock=self.history.clock,
            state=tuple((number, *versions) for number, versions in state.items()),
            flat_rows=self.rng.choice((60, 20_000)),
            script=script,
        )
        left, lines = 1 if target == "open" else self.rng.randint(1, 4), 0
        most = self.rng.randint(*LINES) if target == ANY else MANY_LINES

        def stop(words: list[Any]) -> bool:
            nonlocal left, lines
            lines += 1
            left -= words[0] == "enter" and words[2] == target
            return left == 0 or lines >= most

        wait_s = self.rng.expovariate(1 / DELAY_S) if self.rng.random() < 0.6 else 0.0
        before = self.history.acknowledged
        try:
            run_until(writer_process(self.folder, orders), self.history, stop, wait_s)
        except RuntimeError as error:
            self.refused.append(str(error))
        self.num_kills += 1
        self.num_acknowledged += self.history.acknowledged - before
        within = {phase for stack in self.history.phases.values() for phase in stack}
        self.phases.update(within or {"between"})
        self.left.update(leftovers(self.folder))

    def look(self) -> None:
        """Opens the collection to write, and beside to read, and compares."""
        acknowledged, after = self.history.content, self.history.after()
        if acknowledged is None and not (self.folder / CURRENT).exists():
            self.history.settle(None)
            return
        assert after is not None
        try:
            since = time.perf_counter()
            with Store.open(self.folder, writable=True, upkeep=QUIET) as store:
                self.open_s.append(time.perf_counter() - since)
                observed = observe(store)
                self.faults.add(judge(observed, acknowledged or after, after))
                self.faults.torn += integrity_errors(self.folder / store.generation)
                self.read_beside(observed.content)
            self.history.settle(observed.content)
        except StoreError as error:
            self.refused.append(str(error))
            shutil.rmtree(self.folder)
            self.history = History()

    def read_beside(self, content: Content) -> None:
        """Opens the collection to read, beside who writes."""
        try:
            with Store.open(self.folder) as reader:
                self.faults.add(judge(observe(reader), content, content))
        except StoreError as error:
            self.refused.append(f"to read: {error}")


def integrity_errors(folder: Path) -> list[str]:
    """What SQLite finds wrong with a generation."""
    truth = Truth(folder, writable=False)
    try:
        return truth.integrity_errors()
    finally:
        truth.close()


def leftovers(folder: Path) -> Iterator[str]:
    """What a kill has left that somebody has to remove."""
    try:
        generations = read_generations(folder)
        named = set(read_manifest(folder / generations.current).files())
    except StoreError:
        return
    files = {
        path.name
        for path in (folder / generations.current).glob("*-*.*")
        if path.suffix in (".faiss", ".arrow", ".sqlite")
    }
    if files - named:
        yield "segment"
    if any(folder.rglob(f"*{BESIDE}")):
        yield "file_beside"
    if {path.name for path in folder.glob(f"{PREFIX}*")} - {generations.current, generations.previous}:
        yield "generation"


def kill_results(folder: Path, num_kills: int, rng: Random) -> list[Result]:
    """Kills and looks, over one collection that goes on."""
    kills = Kills(folder / COLLECTION, rng)
    targets = cycle(TARGETS)
    with repairs() as rebuilt, closing(Progress("kills", num_kills, "kills")) as progress:
        while kills.num_kills < num_kills:
            kills.round(next(targets))
            progress.update(kills.num_kills - progress.count)
    counts = {
        "lost_writes": kills.faults.lost,
        "resurrected": kills.faults.resurrected,
        "duplicates": kills.faults.duplicates,
        "torn": kills.faults.torn,
        "refused": kills.refused,
        "rebuilt": rebuilt,
        "never_removed": list(leftovers(kills.folder)),
    }
    for name, faults in counts.items():
        show(name, faults)
    where = f"{kills.num_kills} kills, {kills.num_acknowledged} operations acknowledged"
    return [
        *(promised(name, len(faults), where) for name, faults in counts.items()),
        Result(metric="open_s", value=statistics.median(kills.open_s), unit="s", against="median", where=where),
        Result(metric="open_s_max", value=max(kills.open_s), unit="s", against="maximum", where=where),
        *(counted(f"kills_in_{phase.replace(' ', '_')}", times, where) for phase, times in kills.phases.most_common()),
        *(counted(f"left_{what}", times, where) for what, times in kills.left.most_common()),
    ]
