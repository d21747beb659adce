"""The partial work of an indexing job: shards and their done-marks, so that a job that was killed goes on.

    COLLECTION/partial/
      lock                  held by the job that runs
      plan.json             what the work is for; a job with another plan does not mix its shards with these
      shard-000012.arrow    vectors and products of the catalogue's rows [12 S, 13 S), S rows a shard
      shard-000012.json     its done-mark, written after it: rows, refused rows, size and sha256 of the shard

A shard counts when its mark is there and its content is what the mark says.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from index.exact import Vectors
from index.files import FileDigest, digest, publish
from index.product import Product, product_table, products_of
from item.catalog.reader import Refused
from item.errors import StoreError

PARTIAL, PLAN = "partial", "plan.json"
REFUSED = "refused"  # of a mark's file


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What decides every shard: shards of one plan belong together.

    `splits` are the splits of the catalogue that are indexed; empty for all of it. Pictures are fetched from `hosts`.
    """

    space: str
    catalog_sha256: str
    splits: tuple[str, ...]
    hosts: tuple[str, ...] = ()
    shard_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Rows [first_row, end_row) of the catalogue; `last`: no rows come after them."""

    number: int
    first_row: int
    end_row: int
    last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A shard that is done: `count` of its rows are in its file, `num_refused` are not, the rest is of other splits.

    The refused rows themselves stay in the mark's file: there may be many.
    """

    shard: Shard
    count: int
    num_refused: int
    engine: str
    file: FileDigest


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard in the folder of the partial work."""
    return folder / f"shard-{number:06}.arrow"


def write_shard(
    folder: Path,
    shard: Shard,
    vectors: Vectors,
    products: Sequence[Product],
    refused: Sequence[Refused],
    engine: str,
) -> Mark:
    """Writes vectors (n, D) and their n products, then the done-mark with the refused rows."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    table = product_table(products).append_column("vector", column)
    path = shard_path(folder, shard.number)
    publish(path, lambda beside: _write_arrow(table, beside))
    mark = Mark(shard=shard, count=len(vectors), num_refused=len(refused), engine=engine, file=digest(path))
    _publish_json(path.with_suffix(".json"), asdict(mark) | {REFUSED: [asdict(row) for row in refused]})
    return mark


def read_marks(folder: Path) -> dict[int, Mark]:
    """The shards that are done, by number. A mark that is damaged, or whose shard is, does not count."""
    marks = {}
    for path in sorted(folder.glob("shard-*.json")):
        try:
            mark = TypeAdapter(Mark).validate_json(path.read_bytes())
            if digest(shard_path(folder, mark.shard.number)) == mark.file:
                marks[mark.shard.number] = mark
        except (ValidationError, FileNotFoundError):
            continue
    return marks


def read_refused(folder: Path, marks: Mapping[int, Mark]) -> Iterator[Refused]:
    """The refused rows of shards that are done, in the catalogue's order."""
    for number, mark in sorted(marks.items()):
        if mark.num_refused:
            content = json.loads(shard_path(folder, number).with_suffix(".json").read_bytes())
            yield from (Refused(**row) for row in content[REFUSED])


def is_complete(marks: Mapping[int, Mark]) -> bool:
    """Whether these shards are all there are."""
    return any(mark.shard.last and len(marks) == mark.shard.number + 1 for mark in marks.values())


def read_blocks(folder: Path, marks: Mapping[int, Mark]) -> Iterator[tuple[list[Product], Vectors]]:
    """The shards' n products and (n, D) vectors in the catalogue's order."""
    for number, mark in sorted(marks.items()):
        if mark.count:
            table = read_shard(folder, number)
            yield products_of(table.drop_columns("vector")), np.ascontiguousarray(vectors_of(table))


def read_shard(folder: Path, number: int) -> pa.Table:
    """A shard's products and their vectors (n, D), in a file that is mapped into memory."""
    with pa.memory_map(str(shard_path(folder, number))) as file:
        return pa.ipc.open_file(file).read_all()


def vectors_of(shard: pa.Table) -> Vectors:
    """(n, D) of a shard."""
    return np.asarray(shard["vector"].combine_chunks().flatten().to_numpy().reshape(shard.num_rows, -1))


@contextmanager
def lock_partial_work(collection: Path) -> Iterator[Path]:
    """The folder of a collection's partial work, held by this job alone.

    Raises:
        StoreError: another job holds it, or the folder cannot be made.
    """
    folder = collection / PARTIAL
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{collection}: cannot be made into an index folder ({error.strerror}); give another"
        ) from error
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(f"{collection}: another job is building it; wait for it or end it") from error
        yield folder


def read_plan(folder: Path) -> Plan | None:
    """The plan of the partial work in a folder; None where there is none. Raises StoreError where it is damaged."""
    path = folder / PLAN
    try:
        return TypeAdapter(Plan).validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise StoreError(f"{path}: damaged; add --restart to discard the partial work") from error


def agree_on_plan(folder: Path, plan: Plan) -> None:
    """Writes the plan where there is none. Raises StoreError where the partial work is of another."""
    found = read_plan(folder)
    if found is None:
        _publish_json(folder / PLAN, asdict(plan))
        return
    for name in (field.name for field in fields(Plan)):
        there, here = getattr(found, name), getattr(plan, name)
        if there != here:
            raise StoreError(
                f"{folder}: partial work with another {name}: {there}, now {here};"
                " start the job with the former to finish it, or add --restart to discard it"
            )


def discard_partial_work(folder: Path) -> None:
    """Removes plan, shards and marks, whole or half written; the lock stays where it is."""
    for path in folder.iterdir():
        if path.name != "lock":
            path.unlink()


def remove_partial_work(folder: Path) -> None:
    """Removes the folder that an index no longer needs."""
    shutil.rmtree(folder)


def _publish_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, ensure_ascii=False) + "\n"
    publish(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def _write_arrow(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
