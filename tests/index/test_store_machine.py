"""A store against a dict, whatever is done to it in whatever order: writes, merges, reopening, backups, builds."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import rule

from index.store import Store
from index.upkeep import Upkeep
from tests.index.conformance import IDS, SETTINGS, VectorStoreMachine
from tests.index.conftest import about

SMALL = Upkeep(background=False, flush_rows=6, ratio=2.0, max_dead=0.4)


class StoreMachine(VectorStoreMachine):
    """What every store has to do, and what is done to files beside."""

    store: Store

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory(prefix="item-store-")
        self.folder = Path(self.temporary.name) / "index"
        self.store = Store.create(self.folder, about(4), upkeep=SMALL)
        self.readers = [Store.open(self.folder)]

    def teardown(self) -> None:
        self.readers[0].close()
        self.store.close()
        self.temporary.cleanup()

    @rule()
    def maintain(self) -> None:
        self.store.maintain()

    @rule()
    def compact(self) -> None:
        self.store.compact()
        assert not self.store.maintain()

    @rule()
    def rewrite(self) -> None:
        with self.store.resting():
            self.store._rewrite()

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store.open(self.folder, writable=True, upkeep=SMALL)

    @rule()
    def reopen_to_read(self) -> None:
        self.readers[0].close()
        self.readers = [Store.open(self.folder)]

    @rule()
    def look_at_what_kill_would_leave(self) -> None:
        copy = shutil.copytree(self.folder, Path(self.temporary.name) / "copy")
        with Store.open(copy, writable=True, upkeep=SMALL) as store:
            self.model.check(store)
        shutil.rmtree(copy)

    @rule()
    def restore_a_backup(self) -> None:
        backup, rows = Path(self.temporary.name) / "backup", len(self.model.rows)
        assert self.store.backup(backup) == rows
        with Store.open(backup) as reader, Store.open(backup, writable=True, upkeep=SMALL) as store:
            self.model.check(reader)
            self.model.check(store)
            store.delete(IDS)
            store.compact()
        shutil.rmtree(backup)

    @rule(size=st.integers(1, 12), seed=st.integers(0, 99))
    def build_again(self, size: int, seed: int) -> None:
        self.store.close()
        rows = list(self.model.rows.values())
        np.random.default_rng(seed).shuffle(rows)
        self.model.rows = {one.product_id: (one, vector) for one, vector in rows}
        blocks = [rows[start : start + size] for start in range(0, len(rows), size)]
        self.store = Store.create(
            self.folder,
            about(4),
            (([one for one, _ in block], np.stack([vector for _, vector in block])) for block in blocks),
            upkeep=SMALL,
        )


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = SETTINGS
