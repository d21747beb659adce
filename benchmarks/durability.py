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
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

import index.choosing
import index.segment_files
import index.store
from benchmarks.crash_images import VARIANTS, Image, record, replay
from benchmarks.durability_finds import Content, Faults, History, Observed, judge, observe, repairs
from benchmarks.durability_writes import (
    ABOUT,
    NUMBERS,
    Operation,
    drawn_operation,
    operation_of,
    script_to_damage,
    whole_script,
)
from benchmarks.report import CHECKOUT, Result, write_report
from index.files import BESIDE
from index.generations import CURRENT, PREFIX, read_generations
from index.manifest import read_manifest
from index.store import Store
from index.truth import Truth
from index.upkeep import Upkeep
from item.errors import StoreError
from item.progress import Progress

QUIET = Upkeep(background=False)
MEMORY = Path("/dev/shm")  # images and damaged copies need no disk
COLLECTION = "collection"
SHOWN = 20  # faults that are printed


# The process that writes


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


# Kills

ANY, LINES = "any", (20, 500)
TARGETS = (ANY, "write", FLUSH, "segment", "manifest", "prune", "clear", "merge", "load", "switch", "drop", "open")
MANY_LINES = 5000  # after which a writer that does not come to its phase is killed all the same
DELAY_S = 0.0015  # mean, after the phase has begun


def writer_process(folder: Path, orders: Orders) -> subprocess.Popen[bytes]:
    """This module, writing."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.durability", "--writer", str(folder)],
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


def promised(metric: str, value: int, where: str) -> Result:
    """A number that has to be 0."""
    return Result(metric=metric, value=value, unit="count", against="0", where=where)


def counted(metric: str, value: int, where: str) -> Result:
    """A number of things that happened."""
    return Result(metric=metric, value=value, unit="count", where=where)


def show(name: str, faults: Sequence[str]) -> None:
    """The different ones, with how often they came, on the standard error."""
    for text, times in Counter(faults).most_common(SHOWN):
        print(f"{name}: {times} times: {text}", file=sys.stderr)


# Power cuts

INSTALL = "strace is not there: install the package `strace`; power cuts are left out"


class PowerCuts:
    """What becomes of the images of a log of system calls."""

    def __init__(self, root: Path, scratch: Path, seed: int) -> None:
        """root: the folder in which the writer made its collection; scratch: takes the images."""
        self.root, self.scratch, self.rng = root, scratch, Random(seed)
        self.history = History()
        self.num_points = 0
        self.images, self.broken = Counter[str](), Counter[str]()
        self.faults: list[str] = []
        self._known: dict[bytes, Observed | StoreError] = {}
        self._judged: set[tuple[bytes, int, bool]] = set()

    def run(self, log: Iterable[str], every: int) -> None:
        """Judges the images of every so many-th moment."""
        lines: list[bytes] = []
        for number, point in enumerate(replay(log, self.root, lines)):
            for line in lines:
                self.history.hear(line)
            lines.clear()
            if number % every == 0:
                self.num_points += 1
                for variant, times in VARIANTS.items():
                    for _ in range(times):
                        self.judge(variant, point.disk.image(variant, self.rng), point.before)

    def judge(self, variant: str, image: Image, before: str) -> None:
        """Opens an image, unless it is known, and compares it with what was acknowledged at this moment."""
        digest, history = image.digest(), self.history
        if (key := (digest, history.acknowledged, history.running is None)) in self._judged:
            return
        self._judged.add(key)
        self.images[variant] += 1
        if digest not in self._known:
            self._known[digest] = self.open(image)
        if faults := self.faults_of(self._known[digest], image):
            self.broken[variant] += 1
            what = "nothing" if history.running is None else history.running.kind
            self.faults += [f"{variant}: before {before}, while {what} runs: {text}" for text in faults[:1]]

    def open(self, image: Image) -> Observed | StoreError:
        """What is found in an image."""
        folder = self.scratch / "image"
        image.write(folder)
        try:
            with Store.open(folder / COLLECTION, writable=True, upkeep=QUIET) as store:
                return observe(store)
        except StoreError as error:
            return error
        finally:
            shutil.rmtree(folder)

    def faults_of(self, found: Observed | StoreError, image: Image) -> list[str]:
        """What is wrong with it; before a collection was first acknowledged, there may be none."""
        acknowledged, after = self.history.content, self.history.after()
        if isinstance(found, StoreError):
            nothing = acknowledged is None and f"{COLLECTION}/{CURRENT}" not in image.entries
            return [] if nothing else [str(found).replace(str(self.scratch), "")]
        if after is None:
            return ["a collection that nobody has made"]
        return judge(found, acknowledged or after, after).all()


def power_results(folder: Path, scratch: Path, quick: bool) -> list[Result]:
    """The writer's script under strace, and the images of its log; nothing where strace is not there."""
    if shutil.which("strace") is None:
        print(INSTALL, file=sys.stderr)
        return []
    root, log = folder / "disk", folder / "strace.log"
    root.mkdir()
    orders = Orders(flush_rows=12, flat_rows=30, background=False, script=whole_script(1 if quick else 6))
    command = [sys.executable, "-m", "benchmarks.durability", "--writer", str(root / COLLECTION)]
    record(command, log, CHECKOUT, orders.to_json())
    cuts = PowerCuts(root, scratch, seed=0)
    lines = log.read_text(encoding="ascii").splitlines(keepends=True)
    with repairs() as rebuilt, closing(Progress("power cuts", len(lines), "calls")) as progress:
        cuts.run(counting(lines, progress), every=40 if quick else 1)
    show("image", cuts.faults)
    show("image rebuilt", [without_names(text) for text in rebuilt])
    where = f"{cuts.num_points} moments, {cuts.history.acknowledged} operations acknowledged"
    return [
        counted("images", cuts.images.total(), where),
        promised("images_broken", cuts.broken.total(), where),
        *(promised(f"images_broken_{one}", cuts.broken[one], f"{cuts.images[one]} images") for one in VARIANTS),
        promised("images_rebuilt", len(rebuilt), where),
    ]


def counting(lines: Iterable[str], progress: Progress) -> Iterator[str]:
    """The same lines."""
    for line in lines:
        progress.update()
        yield line


def without_names(text: str) -> str:
    """A message without what differs from one run to the next."""
    return re.sub(r"\S*/generation-[-0-9]+|[0-9a-f]{12,}", "*", text)


# Damage

# Bits that are flipped; of the other files:
PLACES = {"truth.sqlite": 400, "truth.sqlite-wal": 120, "manifest.json": 120, "current.json": 200}
FEW_PLACES = 12
NUMBER = re.compile(rb"(?<=: )[0-9]+")  # in a file of JSON: every bit of it is flipped


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One bit of a file, or, bit: None, its last byte."""

    file: str
    place: int
    bit: int | None = None

    def inflict(self, folder: Path) -> None:
        path = folder / self.file
        content = bytearray(path.read_bytes())
        if self.bit is None:
            content.pop()
        else:
            content[self.place] ^= 1 << self.bit
        path.write_bytes(content)


def damages(folder: Path, quick: bool, rng: Random) -> Iterator[Damage]:
    """For every file of a collection but those of the generation before."""
    previous, share = read_generations(folder).previous, 40 if quick else 1
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size):
        file = str(path.relative_to(folder))
        if file.startswith(previous) or file.endswith("-shm"):
            continue
        content, places = path.read_bytes(), PLACES.get(path.name, FEW_PLACES)
        yield Damage(file=file, place=len(content) - 1)
        bits = [(rng.randrange(len(content)), rng.randrange(8)) for _ in range(max(1, places // share))]
        if path.suffix == ".json":
            digits = [place for number in NUMBER.finditer(content) for place in range(*number.span())]
            bits += [(place, bit) for place in digits for bit in range(8)][::share]
        yield from (Damage(file=file, place=place, bit=bit) for place, bit in bits)


SAME, REFUSED, SILENT, CRASH = "repaired or harmless", "refused", "silent", "crash"
GROWING = Upkeep(flush_rows=1, ratio=1e-6, max_dead=1.0, background=False)  # a segment of each write, no merges
AFTER_DAMAGE = (
    Operation(kind="look"),
    Operation(kind="compact"),
    Operation(kind="upsert", rows=((NUMBERS - 1, 10**6, 10**6),)),
    Operation(kind="maintain"),
)


def outcome(folder: Path, content: Content) -> tuple[str, list[str]]:
    """What becomes of a damaged collection that is opened to read, then to write, and written to."""
    faults = Faults()
    try:
        with repairs(), Store.open(folder, upkeep=GROWING) as store:
            faults.add(judge(observe(store), content, content))
    except StoreError:
        pass  # refused; opening it to write may repair it
    except Exception as error:
        return CRASH, [f"to read: {type(error).__name__}: {error}"]
    refused = False
    try:
        with repairs(), Store.open(folder, writable=True, upkeep=GROWING) as store:
            if store.about != ABOUT:
                faults.torn.append(f"{store.about} is not what was written")
            for operation in AFTER_DAMAGE:
                operation.run(store)
                content = replace(content, state=operation.after(content.state))
                observed = observe(store)
                refused |= bool(observed.refused)
                faults.add(judge(observed, content, content))
    except StoreError:
        refused = True
    except Exception as error:  # whatever it is, it should have been a StoreError
        return CRASH, [f"{type(error).__name__}: {error}"]
    return (SILENT, faults.all()) if faults.all() else (REFUSED if refused else SAME, [])


def collection_to_damage(folder: Path, killed: bool) -> Content:
    """Writes one, closed or as a kill leaves it, and returns what is in it."""
    script = script_to_damage(1 if killed else 2)
    orders = Orders(flush_rows=12, flat_rows=30, background=False, script=script if killed else script[:-1])
    history = History()

    def stop(words: list[Any]) -> bool:
        return bool(words[0] == "begin" and words[1]["kind"] == "pause")

    run_until(writer_process(folder, orders), history, stop, 0.0)
    assert history.content is not None
    return history.content


def damage_results(folder: Path, scratch: Path, quick: bool, rng: Random) -> list[Result]:
    """Each damage on a copy of its own."""
    outcomes, files, shown = Counter[str](), Counter[str](), []
    for killed in (False, True):
        source = folder / ("killed" if killed else "closed")
        content = collection_to_damage(source, killed)
        some = [one for one in damages(source, quick, rng) if not killed or Path(one.file).name in PLACES]
        with closing(Progress(f"damage, {source.name}", len(some), "times")) as progress:
            for damage in some:
                result, faults = outcome(copied(source, scratch / "damaged", damage), content)
                outcomes[result] += 1
                files[kind_of(damage.file)] += 1
                shown += [f"{source.name}: {damage}: {len(faults)} faults: {text}" for text in faults[:1]]
                progress.update()
    show("damage", shown)
    where = ", ".join(f"{name} {times}" for name, times in sorted(files.items()))
    return [
        counted("damages", outcomes.total(), where),
        promised("silent_damage", outcomes[SILENT], where),
        promised("damage_crashes", outcomes[CRASH], where),
        counted("damage_refused", outcomes[REFUSED], where),
        counted("damage_repaired", outcomes[SAME], where),
    ]


def copied(source: Path, target: Path, damage: Damage) -> Path:
    """A damaged copy; what was there is removed."""
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target)
    damage.inflict(target)
    return target


def kind_of(file: str) -> str:
    """A file's name without its hash."""
    return re.sub(r"-[0-9a-f]{16}", "", Path(file).name)


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
    parser.add_argument("--writer", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.writer is not None:
        write(arguments.writer, Orders.from_json(sys.stdin.buffer.read()))
        return 0
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
