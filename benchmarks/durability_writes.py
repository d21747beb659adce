"""What the processes of benchmarks.durability write: operations whose products tell their own versions."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from index.about import About
from index.exact import Vectors
from index.product import Product
from index.store import Store

WIDTH = 16
NUMBERS = 240  # products that there may be
ABOUT = About(space="0" * 64, vector_width=WIDTH, created="")
PAUSE_S = 60.0  # in which a writer is killed

Versions = tuple[int, int]  # of a product, and of its vector
State = dict[int, Versions]


def product_of(number: int, version: int, vector_version: int) -> Product:
    """It says which vector is its own."""
    return Product(
        product_id=f"p{number}",
        title=f"Product {number} in version {version}",
        category=("Shop", f"Shelf {number % 7}"),
        attributes={"version": float(version), "vector": float(vector_version)},
    )


def vector_of(number: int, version: int) -> Vectors:
    """(WIDTH,) of unit norm, another one for each product and version."""
    drawn = np.random.default_rng([number, version]).standard_normal(WIDTH)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What a writer does. rows: number, version and version of the vector of each product."""

    kind: str
    rows: tuple[tuple[int, int, int], ...] = ()

    def after(self, state: State) -> State:
        """What is there afterwards."""
        if self.kind == "delete":
            gone = {number for number, _, _ in self.rows}
            return {number: versions for number, versions in state.items() if number not in gone}
        written = {number: (version, vector) for number, version, vector in self.rows}
        return written if self.kind == "create" else state | written

    def run(self, store: Store) -> Store:
        """Does it, and returns the store that is open then."""
        products = [product_of(*row) for row in self.rows]
        vectors = np.array([vector_of(number, vector) for number, _, vector in self.rows]).reshape(-1, WIDTH)
        match self.kind:
            case "upsert":
                store.upsert(products, vectors.astype(np.float32))
            case "update":
                store.update(products)
            case "delete":
                store.delete([product.product_id for product in products])
            case "maintain":
                store.maintain()
            case "compact":
                store.compact()
            case "pause":
                time.sleep(PAUSE_S)
            case "create":
                store.close()
                blocks = [(products, vectors.astype(np.float32))] if products else []
                store = Store.create(store.folder, ABOUT, blocks, upkeep=store.upkeep)
        return store


KINDS = {  # with their weights
    "upsert": 56,
    "update": 16,
    "update all": 6,
    "delete": 14,
    "compact": 3,
    "create": 4,
    "delete all": 1,
}


def drawn_operation(state: State, clock: int, rng: Random) -> Operation:
    """Any operation; new versions count on from `clock`."""
    (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
    there = sorted(state)
    match kind:
        case "upsert":
            numbers = rng.choices(range(NUMBERS), k=rng.randint(1, 12))  # now and then one comes twice
        case "update":
            numbers = rng.choices(there, k=rng.randint(1, 6)) if there else []
        case "delete":
            numbers = rng.sample(range(NUMBERS), k=rng.randint(1, 16))
        case "create":
            numbers = rng.sample(there, k=rng.randint(0, len(there)))
        case _:
            numbers = there if kind.endswith(" all") else []
    kind = kind.removesuffix(" all")
    versions = range(clock, clock + len(numbers))
    kept = kind == "update"
    return Operation(
        kind=kind,
        rows=tuple(
            (one, version, state[one][1] if kept else version) for one, version in zip(numbers, versions, strict=True)
        ),
    )


class Script:
    """A fixed list of operations, with versions that count on."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self._state: State = {}
        self._clock = 0

    def add(self, kind: str, numbers: Iterable[int] = ()) -> None:
        """One operation on these products."""
        rows = []
        for number in numbers:
            self._clock += 1
            kept = self._state.get(number, (0, 0))[1]
            rows.append((number, self._clock, kept if kind == "update" else self._clock))
        operation = Operation(kind=kind, rows=tuple(rows))
        self._state = operation.after(self._state)
        self.operations.append(operation)


def whole_script(merges: int) -> tuple[Operation, ...]:
    """Once through everything that a store does."""
    script = Script()
    script.add("upsert", (0, 1, 2))
    script.add("upsert", range(40))
    script.add("update", (3, 4))
    script.add("delete", (5, 6, 99))
    script.add("maintain")
    script.add("update", range(7, 27))
    script.add("maintain")
    for turn in range(merges):
        first = 40 + 12 * turn
        script.add("upsert", range(first, first + 12))
        script.add("delete", (first, 7 + turn))
        script.add("maintain")
    script.add("upsert", (8, 9))
    script.add("compact")
    script.add("delete", (10,))
    script.add("create", range(10, 60, 2))
    script.add("delete", (12, 14))
    script.add("upsert", (1, 14))
    script.add("compact")
    script.add("delete", range(60))
    script.add("compact")
    script.add("upsert", (20, 21))
    script.add("maintain")
    script.add("create")
    script.add("upsert", (30, 31))
    return tuple(script.operations)


def script_to_damage(num_segments: int) -> tuple[Operation, ...]:
    """A generation before; one or two segments, the first with an index; then as many new products as deleted ones.

    Equal numbers, so that it does not show by the number of products if all that came last is forgotten.
    """
    script = Script()
    script.add("upsert", range(20))
    script.add("create", range(130))
    if num_segments == 2:
        script.add("upsert", range(130, 144))
        script.add("maintain")
        script.add("update", range(9, 39))
        script.add("maintain")
    for number in range(4):
        script.add("update", (number,))
    script.add("delete", (4, 5))
    script.add("upsert", (150, 151))
    script.add("upsert", (6, 7))
    script.add("update", (8, 150))
    script.add("pause")
    return tuple(script.operations)


def operation_of(fields: dict[str, Any]) -> Operation:
    """From `asdict`, by way of JSON."""
    return Operation(kind=fields["kind"], rows=tuple((n, version, vector) for n, version, vector in fields["rows"]))
