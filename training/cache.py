"""Arrays computed once, a chunk of rows at a time, and kept on disk: an interrupted run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from item.progress import Progress

Layout = Mapping[str, tuple[npt.DTypeLike, tuple[int, ...]]]  # name -> type and shape of one row
Arrays = dict[str, np.memmap]


def fill_arrays(
    folder: Path,
    layout: Layout,
    num_rows: int,
    fill: Callable[[range, Arrays], None],
    *,
    chunk: int,
    name: str,
    unit: str,
) -> Path:
    """Makes `folder` with NAME.npy of each array, unless it is there already; returns it.

    `fill` writes the rows of a range into the arrays, which start as zeros. The folder gets its name when it is whole;
    until then it is called NAME.partial and says how many rows are done.
    """
    if folder.is_dir():
        return folder
    beside = folder.with_name(f"{folder.name}.partial")
    beside.mkdir(parents=True, exist_ok=True)
    arrays = {array: _open(beside / f"{array}.npy", kind, (num_rows, *row)) for array, (kind, row) in layout.items()}
    done_file = beside / "done.json"
    done: int = json.loads(done_file.read_text()) if done_file.is_file() else 0
    progress = Progress(name, num_rows, unit, initial=done)
    for start in range(done, num_rows, chunk):
        rows = range(start, min(start + chunk, num_rows))
        for array in arrays.values():
            array[rows.start : rows.stop] = 0  # an interrupted run may have left something
        fill(rows, arrays)
        for array in arrays.values():
            array.flush()
        temporary = beside / "done.tmp"
        temporary.write_text(json.dumps(rows.stop))
        temporary.replace(done_file)
        progress.update(len(rows))
    progress.close()
    beside.rename(folder)
    return folder


def _open(path: Path, kind: npt.DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    return np.lib.format.open_memmap(path, mode="r+" if path.is_file() else "w+", dtype=kind, shape=shape)
