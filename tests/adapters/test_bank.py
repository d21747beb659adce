"""The bank: tables, what is in memory, hot loading and unloading, and many threads at once."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from item.adapters.adapter import num_rotations
from item.adapters.bank import Bank
from item.adapters.files import TENSORS_FILE, read_adapter, write_adapter
from item.errors import ConfigError, ModelError
from item.model.config import ItemConfig
from tests.adapters.test_files import SPACE, random_values

NAMES = [f"a{number}" for number in range(6)]


@pytest.fixture(scope="module")
def written(tiny_config: ItemConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with six adapters; the last is of RoAd_2."""
    model = tmp_path_factory.mktemp("model")
    for seed, name in enumerate(NAMES):
        method = "road_2" if name == NAMES[-1] else "road_1"
        values = random_values(tiny_config, method, seed)
        write_adapter(model, name, values, method=method, config=tiny_config, model_space=SPACE)
    return model


@pytest.fixture
def model(written: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(written, tmp_path / "model"))


def rewrite(model: Path, config: ItemConfig, name: str, seed: int) -> str:
    """Writes other values; returns the new digest."""
    values = random_values(config, "road_1", seed)
    write_adapter(model, name, values, method="road_1", config=config, model_space=SPACE)
    return read_adapter(model, name, config, SPACE).digest


@pytest.fixture(scope="module")
def shared(written: Path, tiny_config: ItemConfig) -> Bank:
    return Bank(written, tiny_config, SPACE, capacity=2)


@settings(max_examples=50)
@given(names=st.lists(st.sampled_from([None, *NAMES]), max_size=12))
def test_tables_hold_each_listings_adapter(shared: Bank, names: Sequence[str | None]) -> None:
    made = shared.rotations(names)
    S = num_rotations(shared.config)
    assert made.r1.shape == made.r2.shape
    assert made.r1.shape[1] == S
    assert len(made.r1) <= 1 + len(NAMES)
    assert made.rows.shape == (len(names),)
    assert (made.r1[0] == 1).all()
    assert not made.r2[0].any()
    assert made.paired == (NAMES[-1] not in names)
    if made.paired:
        assert np.array_equal(made.r1[:, ::2], made.r1[:, 1::2])
    for row, name in zip(made.rows, names, strict=True):
        assert (row == 0) == (name is None)
        if name is not None:
            adapter = shared.get(name)
            assert np.array_equal(made.r1[row], adapter.r1)
            assert np.array_equal(made.r2[row], adapter.r2)
            assert adapter.blocks.all()
    assert len(shared.loaded()) <= 2


def test_what_was_asked_for_longest_ago_goes_first(model: Path, tiny_config: ItemConfig) -> None:
    bank = Bank(model, tiny_config, SPACE, capacity=2)
    assert bank.loaded() == []  # read when first needed
    bank.rotations(["a0", "a1", None])
    first = bank.get("a0")
    bank.get("a2")
    assert bank.loaded() == ["a0", "a2"]
    assert bank.get("a0") is first
    assert bank.names() == NAMES  # all may still be named
    assert np.array_equal(bank.rotations(NAMES).rows, np.arange(1, 7))  # more than the capacity at once


def test_tables_of_a_call_serve_the_next(model: Path, tiny_config: ItemConfig) -> None:
    """As long as they hold its adapters, as they are by then, and all are rotations of pairs or not."""
    bank = Bank(model, tiny_config, SPACE, capacity=3)
    first = bank.rotations(["a0", "a1"])
    assert bank.rotations(["a1", None, "a1"]).r1 is first.r1
    more = bank.rotations(["a2"])
    assert more.r1 is not first.r1
    assert bank.rotations(["a1", "a0", "a2"]).r1 is more.r1  # as many stay as there is room for
    assert len(bank.rotations(["a3"]).r1) == 4
    assert bank.rotations(["a3", "a2"]).r1 is bank.rotations(["a3"]).r1
    unpaired = bank.rotations(["a0", NAMES[-1]])
    assert not unpaired.paired
    assert bank.rotations(["a0"]).paired
    rewrite(model, tiny_config, "a0", 12)
    made = bank.rotations([bank.load("a0")])
    assert np.array_equal(made.r1[made.rows[0]], bank.get("a0").r1)


def test_loading_reads_anew_and_lets_be_named(model: Path, tiny_config: ItemConfig) -> None:
    bank = Bank(model, tiny_config, SPACE)
    before, table = bank.get("a0"), bank.rotations(["a0"])
    digest = rewrite(model, tiny_config, "a0", 10)
    rewrite(model, tiny_config, "new", 11)
    assert bank.get("a0") is before
    with pytest.raises(ModelError, match=r"there is no adapter 'new' \(loaded: a0, a1.*\); load it first"):
        bank.get("new")
    assert bank.load("a0").digest == digest == bank.get("a0").digest != before.digest
    assert bank.load("new") is bank.get("new")
    assert bank.names() == [*NAMES, "new"]
    assert np.array_equal(table.r1[1], before.r1)


def test_a_failed_load_leaves_all_as_it_was(model: Path, tiny_config: ItemConfig) -> None:
    bank = Bank(model, tiny_config, SPACE)
    before = bank.get("a0")
    (model / "adapters" / "a0" / TENSORS_FILE).write_bytes(b"damaged")
    (model / "adapters" / "broken").mkdir()
    for name, said in (("a0", "damaged"), ("broken", "no such file"), ("none", "there is no adapter 'none'")):
        with pytest.raises(ModelError, match=said):
            bank.load(name)
    assert bank.names() == NAMES
    assert bank.loaded() == ["a0"]
    assert bank.get("a0") is before


def test_what_is_unloaded_may_not_be_named_until_it_is_loaded(model: Path, tiny_config: ItemConfig) -> None:
    bank = Bank(model, tiny_config, SPACE)
    table = bank.rotations(["a0"])
    bank.unload("a0")
    bank.unload("a1")  # was never read
    assert bank.names() == NAMES[2:]
    for call in (bank.get, bank.unload, lambda name: bank.rotations([None, name])):
        with pytest.raises(ModelError, match="there is no adapter 'a0'"):
            call("a0")
    assert np.array_equal(bank.load("a0").r1, table.r1[1])


def test_tables_are_read_only(shared: Bank) -> None:
    with pytest.raises(ValueError, match="read-only"):
        shared.rotations(["a0"]).r1[:] = 0


def test_an_adapter_of_another_model_is_refused(written: Path, tiny_config: ItemConfig) -> None:
    bank = Bank(written, tiny_config, "6" * 64)
    with pytest.raises(ModelError, match="made for another model"):
        bank.get("a0")
    assert bank.loaded() == []


def test_a_folder_without_adapters_has_none(tmp_path: Path, tiny_config: ItemConfig) -> None:
    bank = Bank(tmp_path, tiny_config, SPACE)
    assert bank.names() == []
    assert bank.rotations([None, None]).r1.shape == (1, num_rotations(tiny_config))
    with pytest.raises(ModelError, match="loaded: none"):
        bank.get("a0")
    with pytest.raises(ConfigError, match="capacity: 0 must be at least 1"):
        Bank(tmp_path, tiny_config, SPACE, capacity=0)


def while_reading(read: Callable[[int], None], change: Callable[[], None]) -> None:
    """Calls `read` with the seeds of five threads, again and again, while `change` runs."""
    stop, counts = threading.Event(), [0] * 5

    def loop(seed: int) -> None:
        while not stop.is_set() or not counts[seed]:
            read(seed)
            counts[seed] += 1

    with ThreadPoolExecutor(5) as threads:
        readers = [threads.submit(loop, seed) for seed in range(5)]
        try:
            change()
        finally:
            stop.set()
        for reader in readers:
            reader.result()


def test_threads_see_whole_adapters_while_others_come_and_go(written: Path, tiny_config: ItemConfig) -> None:
    bank = Bank(written, tiny_config, SPACE, capacity=2)
    expected = {name: read_adapter(written, name, tiny_config, SPACE).r1 for name in NAMES}
    rngs = [np.random.default_rng(seed) for seed in range(5)]
    refused = []

    def read(seed: int) -> None:
        names = [str(name) for name in rngs[seed].choice(NAMES, 3)]
        try:
            made = bank.rotations(names)
        except ModelError as error:
            refused.append(str(error))
            return
        for row, name in zip(made.rows, names, strict=True):
            assert np.array_equal(made.r1[row], expected[name])

    def change() -> None:
        for _ in range(50):
            bank.unload("a1")
            bank.load("a1")

    while_reading(read, change)
    assert all("'a1'" in error for error in refused)
    assert len(bank.loaded()) == 2


def test_threads_see_one_version_or_the_next(model: Path, tiny_config: ItemConfig) -> None:
    bank = Bank(model, tiny_config, SPACE)
    versions = {bank.get("a0").digest}
    rows = {bank.get("a0").r1.tobytes() + bank.get("a0").r2.tobytes()}

    def read(_: int) -> None:
        made = bank.rotations(["a0"])
        assert made.r1[made.rows[0]].tobytes() + made.r2[made.rows[0]].tobytes() in rows

    def change() -> None:
        for seed in range(20, 35):
            versions.add(rewrite(model, tiny_config, "a0", seed))
            adapter = read_adapter(model, "a0", tiny_config, SPACE)
            rows.add(adapter.r1.tobytes() + adapter.r2.tobytes())
            assert bank.load("a0").digest in versions

    while_reading(read, change)
    assert len(versions) == len(rows) == 16


def test_as_many_are_read_ahead_as_there_is_room_for(model: Path, tiny_config: ItemConfig) -> None:
    (model / "adapters" / "a1" / TENSORS_FILE).write_bytes(b"damaged")
    bank = Bank(model, tiny_config, SPACE, capacity=3)
    faults = bank.preload()
    assert bank.loaded() == ["a0", "a2"]
    assert list(faults) == ["a1"]
    assert "damaged" in str(faults["a1"])
    assert bank.names() == NAMES


def test_looking_at_an_adapter_changes_nothing(model: Path, tiny_config: ItemConfig) -> None:
    bank = Bank(model, tiny_config, SPACE, capacity=2)
    first, second = bank.get("a0"), bank.get("a1")
    rewrite(model, tiny_config, "a0", 10)
    bank.unload("a3")
    assert bank.look_at("a0") is first  # as it is in memory
    assert bank.look_at("a2").digest not in (first.digest, second.digest)
    assert bank.look_at("a3").name == "a3"
    assert bank.loaded() == ["a0", "a1"]
    assert "a3" not in bank.names()
    with pytest.raises(ModelError, match="there is no adapter 'none'"):
        bank.look_at("none")


def test_tables_of_adapters_that_the_bank_has_given_up(model: Path, tiny_config: ItemConfig) -> None:
    """A caller that holds an adapter gets its tables whatever its name stands for by now."""
    bank = Bank(model, tiny_config, SPACE, capacity=1)
    held = bank.get("a0")
    rewrite(model, tiny_config, "a0", 10)
    bank.load("a0")
    made = bank.rotations([held, "a0", None, held])
    assert list(made.rows) == [1, 2, 0, 1]
    assert np.array_equal(made.r1[1], held.r1)
    assert np.array_equal(made.r1[2], bank.get("a0").r1)
    assert not np.array_equal(made.r1[1], made.r1[2])
    bank.unload("a0")
    assert np.array_equal(bank.rotations([held]).r1[1], held.r1)
