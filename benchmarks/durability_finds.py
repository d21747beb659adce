"""What a collection holds afterwards, against what benchmarks.durability had acknowledged, and how that is reported."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import index.segment_files
from benchmarks.durability_writes import NUMBERS, WIDTH, Operation, State, Versions, operation_of, product_of, vector_of
from benchmarks.report import Result
from index.exact import Vectors
from index.filters import Equal
from index.generations import read_generations
from index.product import Product
from index.store import Store
from index.truth import Truth
from index.upkeep import Upkeep
from item.errors import StoreError

QUIET = Upkeep(background=False)  # of a collection that is opened to be looked at
SHOWN = 20  # faults that are printed
FILTERED = 10  # products that are sought by a filter, the last that were written


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a collection has to hold; previous: what the generation before does, None: there is none."""

    state: State
    previous: State | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What a collection holds.

    torn: by number, what does not belong together. refused: numbers of products that could not be read. found: the ids
    of a search for everything. missed: ids of products that their own vectors do not find.
    """

    content: Content
    torn: dict[int, str]
    refused: frozenset[int]
    found: tuple[str, ...]
    missed: tuple[str, ...]
    length: int


def observe(store: Store) -> Observed:
    """Reads all products, all vectors, and searches for each. Raises StoreError where that is refused as a whole."""
    state: State = {}
    torn: dict[int, str] = {}
    refused: set[int] = set()
    for number in range(NUMBERS):
        try:
            product, vector = store.product(f"p{number}"), store.vector(f"p{number}")
        except StoreError:
            refused.add(number)
            continue
        if product is None and vector is None:
            continue
        if (versions := versions_of(product, vector)) is None:
            torn[number] = f"p{number}: product and vector do not belong together: {product}, {vector}"
        else:
            state[number] = versions
    (everything,) = store.search(np.ones((1, WIDTH), np.float32), 2 * NUMBERS)
    for hit in everything.hits:
        number = int(hit.product_id[1:])
        if number not in refused and not names_itself(store, hit.key, hit.product_id):
            torn[number] = f"{hit.product_id}: its key names another product"
    return Observed(
        content=Content(state=state, previous=previous_state(store.folder)),
        torn=torn,
        refused=frozenset(refused),
        found=tuple(hit.product_id for hit in everything.hits),
        missed=tuple(missed(store, state)),
        length=len(store),
    )


def versions_of(product: Product | None, vector: Vectors | None) -> Versions | None:
    """Of a product and its vector; None: they are not as they were ever written."""
    if product is None or vector is None:
        return None
    number, named = int(product.product_id[1:]), [product.attributes.get(name) for name in ("version", "vector")]
    version, vector_version = (int(one) if isinstance(one, float) else 0 for one in named)
    same = product == product_of(number, version, vector_version)
    return (version, vector_version) if same and np.array_equal(vector, vector_of(number, vector_version)) else None


def names_itself(store: Store, key: int, product_id: str) -> bool:
    """Whether a hit's key is that of its product."""
    try:
        product = store.products([key]).get(key)
    except StoreError:
        return True  # refused
    return product is not None and product.product_id == product_id


def missed(store: Store, state: State) -> Iterator[str]:
    """The ids of products that are not found first by their own vector, or, the last ones, not with a filter beside."""
    last = sorted(state, key=lambda number: state[number])[-FILTERED:]
    for numbers, filtered in ((list(state), False), (last, True)):
        if not numbers:
            continue
        queries = np.stack([vector_of(number, state[number][1]) for number in numbers])
        filters = [Equal("version", float(state[number][0])) if filtered else None for number in numbers]
        for number, answer in zip(numbers, store.search(queries, 1, filters=filters), strict=True):
            if [hit.product_id for hit in answer.hits] != [f"p{number}"] or answer.hits[0].score < 1 - 1e-5:
                yield f"p{number}"


def previous_state(folder: Path) -> State | None:
    """What the generation before holds; None: there is none. Raises StoreError where it cannot be read."""
    if not (name := read_generations(folder).previous):
        return None
    truth = Truth(folder / name, writable=False)
    try:
        with truth.frozen() as frozen:
            rows = [row for _, products, vectors in frozen.blocks() for row in zip(products, vectors, strict=True)]
    finally:
        truth.close()
    return {int(product.product_id[1:]): versions_of(product, vector) or (0, 0) for product, vector in rows}


@dataclass(slots=True, kw_only=True)
class Faults:
    """Broken promises, each in words."""

    lost: list[str] = field(default_factory=list)
    resurrected: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)

    def add(self, other: Faults) -> None:
        self.lost += other.lost
        self.resurrected += other.resurrected
        self.duplicates += other.duplicates
        self.torn += other.torn

    def all(self) -> list[str]:
        return [*self.lost, *self.resurrected, *self.duplicates, *self.torn]


def judge(observed: Observed, acknowledged: Content, after: Content) -> Faults:
    """What is wrong with a collection in which `acknowledged` was, or `after` a further operation that may be done."""
    faults = Faults(
        torn=list(observed.torn.values()), lost=[f"{one}: not found by its vector" for one in observed.missed]
    )
    state, sides = observed.content.state, set()
    unsure = observed.refused | observed.torn.keys()
    for number in set(range(NUMBERS)) - unsure:
        was, will, now = (one.get(number) for one in (acknowledged.state, after.state, state))
        if now in (was, will):
            sides |= {now == will} if was != will else set()
        elif now is None:
            faults.lost.append(f"p{number}: is not there, {was} was acknowledged")
        elif was is None:
            faults.resurrected.append(f"p{number}: {now} is there, it was deleted")
        else:
            faults.lost.append(f"p{number}: {now} is there, {was} was acknowledged")
    if len(sides) == 2:
        faults.torn.append("an operation is half there")
    if observed.content.previous not in (acknowledged.previous, after.previous):
        faults.lost.append("the generation before is not what it was")
    faults.add(judge_search(observed, {f"p{number}" for number in state}, {f"p{number}" for number in unsure}))
    return faults


def judge_search(observed: Observed, there: set[str], unsure: set[str]) -> Faults:
    """Whether searches find what is there, once, and nothing else."""
    found = set(observed.found)
    faults = Faults(
        lost=[f"{one}: is there, but no search finds it" for one in sorted(there - found)],
        resurrected=[f"{one}: is not there, but found" for one in sorted(found - there - unsure)],
        duplicates=[f"{one}: is found {times} times" for one, times in Counter(observed.found).items() if times > 1],
    )
    if observed.length != len(observed.found):
        faults.torn.append(f"{len(observed.found)} products are found, the collection says {observed.length}")
    return faults


class History:
    """What a writer has said, and what follows from it."""

    def __init__(self) -> None:
        self.content: Content | None = None  # that was acknowledged; None: no collection was
        self.running: Operation | None = None
        self.acknowledged = 0  # operations
        self.clock = 1
        self.phases: dict[int, list[str]] = {}  # by thread, those within others last

    def hear(self, line: bytes) -> list[Any]:
        """Takes a line, and returns its words."""
        words: list[Any] = json.loads(line)
        match words:
            case ["start"]:
                self.phases.clear()
            case ["begin", fields]:
                self.running = operation_of(fields)
                self.clock = max([self.clock, *(version + 1 for _, version, _ in self.running.rows)])
            case ["done"]:
                self.content, self.running = self.after(), None
                self.acknowledged += 1
            case ["enter", thread, phase]:
                self.phases.setdefault(thread, []).append(phase)
            case ["leave", thread, _]:
                self.phases[thread].pop()
        return words

    def after(self) -> Content | None:
        """What was acknowledged, and the operation that is running."""
        if self.running is None:
            return self.content
        if self.running.kind == "create":
            previous = None if self.content is None else self.content.state
            return Content(state=self.running.after({}), previous=previous)
        assert self.content is not None
        return Content(state=self.running.after(self.content.state), previous=self.content.previous)

    def settle(self, content: Content | None) -> None:
        """What the next writer starts from."""
        self.content, self.running = content, None


@contextmanager
def repairs() -> Iterator[list[str]]:
    """The warnings of a store that is opened, kept instead of printed: segments that had to be made again."""
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, entry: logging.LogRecord) -> None:
            messages.append(entry.getMessage())

    handler, watched = Keep(), index.segment_files.logger
    watched.addHandler(handler)
    propagated, watched.propagate = watched.propagate, False
    try:
        yield messages
    finally:
        watched.removeHandler(handler)
        watched.propagate = propagated


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
