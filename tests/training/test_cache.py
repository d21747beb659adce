"""Arrays on disk: an interrupted fill goes on bit for bit, and what is there is not computed again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.cache import Arrays, fill_arrays

LAYOUT = {"values": (np.float32, (3,)), "even": (np.bool_, ())}


class Filler:
    """Writes what depends on the row alone, but for every fourth row; dies before the chunk `dies_at`."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.dies_at, self.chunks = dies_at, list[range]()

    def __call__(self, rows: range, arrays: Arrays) -> None:
        for row in rows:
            if row % 4 != 3:
                arrays["values"][row] = np.random.default_rng(row).normal(size=3)
            arrays["even"][row] = row % 2 == 0
        if len(self.chunks) == self.dies_at:  # half a chunk is written, but not counted as done
            arrays["values"][rows.start] = -1
            raise KeyboardInterrupt
        self.chunks.append(rows)


def fill(folder: Path, filler: Filler, rows: int = 23, chunk: int = 5) -> Path:
    return fill_arrays(folder, LAYOUT, rows, filler, chunk=chunk, name="values", unit="rows")


def assert_same(a: Path, b: Path) -> None:
    assert sorted(path.name for path in a.glob("*.npy")) == ["even.npy", "values.npy"]
    for name in LAYOUT:
        assert (a / f"{name}.npy").read_bytes() == (b / f"{name}.npy").read_bytes()


@settings(max_examples=15)
@given(rows=st.integers(1, 30), chunk=st.integers(1, 12), data=st.data())
def test_an_interrupted_fill_goes_on_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, rows: int, chunk: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("arrays")
    num_chunks = -(-rows // chunk)
    dies_at = data.draw(st.integers(0, num_chunks - 1))
    whole = fill(folder / "whole", Filler(), rows, chunk)
    dying, living = Filler(dies_at), Filler()
    with pytest.raises(KeyboardInterrupt):
        fill(folder / "cut", dying, rows, chunk)
    assert not (folder / "cut").exists()
    fill(folder / "cut", living, rows, chunk)
    assert [*dying.chunks, *living.chunks] == [range(i, min(i + chunk, rows)) for i in range(0, rows, chunk)]
    assert_same(folder / "cut", whole)
    assert not (folder / "cut.partial").exists()


def test_it_says_how_much_is_done(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "a", Filler(dies_at=2))
    assert json.loads((tmp_path / "a.partial" / "done.json").read_text()) == 10


def test_what_is_whole_is_not_filled_again(tmp_path: Path) -> None:
    folder, again = fill(tmp_path / "deep" / "a", Filler()), Filler()
    assert fill(folder, again) == folder
    assert again.chunks == []
    values = np.load(folder / "values.npy")
    assert values.shape == (23, 3)
    assert values.dtype == np.float32
    assert not values[3::4].any()  # rows that are not written are zeros
    assert values[0].all()
