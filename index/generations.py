"""The generations of a collection: folders of which one counts, one is kept to go back to, and one may be coming."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter

from index.files import BESIDE, SEAL, publish, sealed, unsealed
from item.errors import StoreError

CURRENT = "current.json"
PREFIX = "generation-"
NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")  # of a collection, whose folder is called so
BUILD = "python -m index.build --model M --catalog C --index"


@dataclass(frozen=True, slots=True, kw_only=True)
class Generations:
    """The names of folders: of the generation that counts, of the one before, and of one that is encoded
    anew, finished or not; empty for none."""

    current: str
    previous: str = ""
    coming: str = ""


GENERATIONS = TypeAdapter(Generations)  # readers look before each search


def read_generations(folder: Path) -> Generations:
    """Raises StoreError where the folder is no collection, or its file is damaged."""
    path = folder / CURRENT
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such index folder; build one with: {BUILD} {folder.parent}")
    try:
        text = path.read_bytes()
        content = unsealed(text) if SEAL.encode() in text else json.loads(text)  # put right by hand
        return GENERATIONS.validate_python(content)
    except FileNotFoundError as error:
        reason = (
            "an index of an earlier version"
            if (folder / "manifest.json").exists()
            else "not an index, or never finished"
        )
        raise StoreError(f"{folder}: {reason}; run: {BUILD} {folder.parent}") from error
    except (OSError, ValueError) as error:  # pydantic's errors are ValueErrors
        raise StoreError(
            f"{path}: damaged ({error}); name the newest folder {PREFIX}* in it, or build the index again"
        ) from error


def new_generation(folder: Path) -> str:
    """Makes the folder of a further generation, which does not count yet, and returns its name. Raises StoreError."""
    name = PREFIX + datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    try:
        (folder / name).mkdir(parents=True)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written to ({error.strerror}); give another folder") from error
    return name


def switch(folder: Path, name: str) -> Generations:
    """Lets a generation count from now on; the one before is kept. Raises StoreError where it is not known."""
    previous = read_generations(folder).current if (folder / CURRENT).exists() else ""
    generations = Generations(current=name, previous=previous)
    _write(folder, generations)
    return generations


def announce(folder: Path, name: str) -> Generations:
    """Says that a generation is coming, which is kept until another one is, or is switched to; empty: none is."""
    generations = replace(read_generations(folder), coming=name)
    _write(folder, generations)
    return generations


def _write(folder: Path, generations: Generations) -> None:
    text = sealed(asdict(generations))
    try:
        publish(folder / CURRENT, lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"{folder / CURRENT}: cannot be written ({error}); make room on the disk") from error


def remove_others(folder: Path, generations: Generations) -> None:
    """Removes generations that neither count nor are kept nor are coming. Only for who holds the lease."""
    for path in folder.glob(f"{PREFIX}*"):
        if path.name not in (generations.current, generations.previous, generations.coming):
            shutil.rmtree(path)
    for path in folder.glob(f"{CURRENT}.*{BESIDE}"):
        path.unlink()


def collection_folders(index: Path) -> dict[str, Path]:
    """The folders of an index's collections, by name. Raises StoreError where there are none, or a name is none."""
    build = f"{BUILD} {index}"
    if not index.is_dir():
        raise StoreError(f"{index}: no such index folder; build one with: {build}")
    if (index / CURRENT).exists():
        raise StoreError(f"{index}: is a collection; give the folder that holds it, {index.parent}")
    folders = {path.parent.name: path.parent for path in sorted(index.glob(f"*/{CURRENT}"))}
    if not folders:
        raise StoreError(f"{index}: has no collections; build one with: {build}")
    for name, folder in folders.items():
        if not NAME.fullmatch(name):
            raise StoreError(
                f"{folder}: {name!r} is no collection's name; rename the folder to 1 to 128 letters, digits, dots, "
                "dashes and underscores"
            )
    return folders
