"""Damage: what benchmarks.durability finds in a collection after one of its files was changed."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.durability_finds import Content, Faults, History, counted, judge, observe, promised, repairs, show
from benchmarks.durability_process import Orders, run_until, writer_process
from benchmarks.durability_writes import ABOUT, NUMBERS, Operation, script_to_damage
from benchmarks.report import Result
from index.generations import read_generations
from index.store import Store
from index.upkeep import Upkeep
from item.errors import StoreError
from item.progress import Progress

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
