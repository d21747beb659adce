"""The adapters of a model folder while it is served: which may be named, which are in memory, and their tables."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from item.adapters.adapter import Adapter, Array, num_rotations
from item.adapters.files import names_of, read_adapter, specialty_of
from item.adapters.head import Category
from item.errors import ConfigError, ModelError
from item.model.config import ItemConfig

logger = logging.getLogger(__name__)

Named = str | Adapter | None  # an adapter by name, as it is in the bank then; or as `get` gave it out; None: none


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rotations:
    """What rotates N listings.

    r1, r2: (A, S) float32, read-only; row 0 is the model alone. rows: (N,) int64, each listing's row.
    paired: whether all are of RoAd_1, whose R1 and R2 are equal within each pair.
    """

    r1: Array
    r2: Array
    rows: Array
    paired: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tables:
    """R1 and R2 of some adapters, (1 + A, S) float32, read-only; row 0 is the model alone. row_of: by what they do, the
    latest first. paired: as in `Rotations`."""

    r1: Array
    r2: Array
    row_of: dict[str, int]
    paired: bool


class Bank:
    """The adapters of a model folder. For any threads.

    All that are in the folder may be named at first, and are read when they are first asked for. At most `capacity`
    stay in memory: the one that was asked for longest ago goes first, and may still be named.
    """

    def __init__(self, model: Path, config: ItemConfig, model_space: str, capacity: int = 64) -> None:
        if capacity < 1:
            raise ConfigError(f"capacity: {capacity} must be at least 1")
        self.model, self.config, self.model_space, self.capacity = model, config, model_space, capacity
        self._named = set(names_of(model))
        found = {name: specialty_of(model, name) for name in sorted(self._named)}
        self._specialties = {name: category for name, category in found.items() if category is not None}
        self._memory: OrderedDict[str, Adapter] = OrderedDict()  # the one asked for longest ago first
        one = np.ones((1, num_rotations(config)), dtype=np.float32)
        self._tables = Tables(r1=one, r2=np.zeros_like(one), row_of={}, paired=True)  # of the latest call
        self._state = threading.Lock()  # of the first three above; held for moments
        self._changing = threading.Lock()  # held while a folder is read: one change after another

    def names(self) -> list[str]:
        """Those that may be named."""
        with self._state:
            return sorted(self._named)

    def loaded(self) -> list[str]:
        """Those in memory, the one that was asked for longest ago first."""
        with self._state:
            return list(self._memory)

    def get(self, name: str) -> Adapter:
        """An adapter that may be named, read where it is not in memory.

        Raises:
            ModelError: it may not be named, or cannot be read (see `item.adapters.files.read_adapter`).
        """
        if (adapter := self._recall(name)) is not None:
            return adapter
        with self._changing:
            if (adapter := self._recall(name)) is not None:  # another thread has read it meanwhile
                return adapter
            return self._read(name)

    def look_at(self, name: str) -> Adapter:
        """An adapter as it is in memory, or else in the folder, whether it may be named or not; changes nothing.

        Raises:
            ModelError: see `item.adapters.files.read_adapter`.
        """
        with self._state:
            adapter = self._memory.get(name)
        return adapter or read_adapter(self.model, name, self.config, self.model_space)

    def preload(self) -> dict[str, ModelError]:
        """Reads those that may be named into memory, as many as it takes. Returns why some cannot be read."""
        faults: dict[str, ModelError] = {}
        for name in self.names()[: self.capacity]:
            try:
                self.get(name)
            except ModelError as error:
                faults[name] = error
        return faults

    def specialists(self) -> dict[Category, Adapter]:
        """By category, the adapters that may be named and have its head; of several the first by name. One that cannot
        be read is left out, until it is loaded."""
        with self._state:
            specialties = sorted(self._specialties.items())
        of_category: dict[Category, Adapter] = {}
        for name, category in specialties:
            if category in of_category:
                continue
            try:
                of_category[category] = self.get(name)
            except ModelError as error:
                logger.error("adapter %r does not help to predict categories: %s", name, error)
                with self._state:
                    self._specialties.pop(name, None)
        return of_category

    def load(self, name: str) -> Adapter:
        """Reads an adapter anew from the folder and lets it be named. Where it cannot be read, all stays as it was.

        Raises:
            ModelError: see `item.adapters.files.read_adapter`.
        """
        with self._changing:
            return self._read(name)

    def unload(self, name: str) -> None:
        """Lets an adapter no longer be named. Calls that have begun keep what they have.

        Raises:
            ModelError: it may not be named.
        """
        with self._changing, self._state:
            self._check(name)
            self._named.discard(name)
            self._memory.pop(name, None)
            self._specialties.pop(name, None)

    def rotations(self, named: Sequence[Named]) -> Rotations:
        """What rotates N listings with these adapters (None: the model alone). Later changes of the bank do not reach
        it.

        Raises:
            ModelError: as `get`.
        """
        used = {one: self.get(one) if isinstance(one, str) else one for one in dict.fromkeys(named) if one is not None}
        tables = self._tables_of({adapter.digest: adapter for adapter in used.values()})
        row_of: dict[Named, int] = {one: tables.row_of[adapter.digest] for one, adapter in used.items()} | {None: 0}
        rows = np.array([row_of[one] for one in named], dtype=np.int64)
        rows.setflags(write=False)
        return Rotations(r1=tables.r1, r2=tables.r2, rows=rows, paired=tables.paired)

    def _tables_of(self, adapters: Mapping[str, Adapter]) -> Tables:
        """Tables that hold adapters, by their digests: those of the latest call, which an engine has laid out already,
        where they do; else new ones, in which those of the latest call stay as long as there is room."""
        latest, paired = self._tables, all(adapter.method == "road_1" for adapter in adapters.values())
        if paired == latest.paired and adapters.keys() <= latest.row_of.keys():
            return latest
        stay = [digest for digest in latest.row_of if digest not in adapters] if paired == latest.paired else []
        stay = stay[: max(0, self.capacity - len(adapters))]
        old = [latest.row_of[digest] for digest in stay]
        one = np.ones((1, num_rotations(self.config)), dtype=np.float32)
        r1 = np.concatenate([one, *(adapter.r1[None] for adapter in adapters.values()), latest.r1[old]])
        r2 = np.concatenate([0 * one, *(adapter.r2[None] for adapter in adapters.values()), latest.r2[old]])
        for array in (r1, r2):
            array.setflags(write=False)
        row_of = {digest: row for row, digest in enumerate([*adapters, *stay], start=1)}
        self._tables = made = Tables(r1=r1, r2=r2, row_of=row_of, paired=paired)
        return made

    def _recall(self, name: str) -> Adapter | None:
        """An adapter from memory; None where it has to be read."""
        with self._state:
            self._check(name)
            if name in self._memory:
                self._memory.move_to_end(name)
            return self._memory.get(name)

    def _read(self, name: str) -> Adapter:
        """Reads an adapter into memory, within `_changing`."""
        adapter = read_adapter(self.model, name, self.config, self.model_space)
        with self._state:
            self._named.add(name)
            self._specialties.pop(name, None)
            if adapter.heads is not None:
                self._specialties[name] = adapter.category
            self._memory[name] = adapter
            self._memory.move_to_end(name)
            while len(self._memory) > self.capacity:
                self._memory.popitem(last=False)
        return adapter

    def _check(self, name: str) -> None:
        """ModelError where an adapter may not be named."""
        if name not in self._named:
            there = ", ".join(sorted(self._named)) or "none"
            raise ModelError(f"adapter: there is no adapter {name!r} (loaded: {there}); load it first")
