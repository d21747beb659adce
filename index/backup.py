"""A backup: a collection of one generation, whose segments are the same files where the file system has links."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, closing
from pathlib import Path

from index.files import BESIDE, flush, rename_durably
from index.generations import switch
from index.manifest import read_manifest, write_manifest
from index.truth import Truth
from item.errors import StoreError


def write_backup(truth: Truth, folder: Path, resting: AbstractContextManager[None]) -> int:
    """Writes the present state of a generation to a new folder, a collection; returns its products.

    resting: holds merges back, so that the segments that the manifest names stay in their place.

    Raises:
        StoreError: the folder is there already, or cannot be written; nothing is left of it then.
    """
    if folder.exists():
        raise StoreError(f"{folder}: is there already; give a new name")
    generation = truth.folder
    beside = folder.with_name(f"{folder.name}{BESIDE}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        copy = beside / generation.name
        copy.mkdir(parents=True)
        with resting:
            truth.copy_to(copy)
            manifest = read_manifest(generation)
            for name in manifest.files():
                link_or_copy(generation / name, copy / name)
        write_manifest(copy, manifest)
        switch(beside, generation.name)
        for path in copy.iterdir():
            flush(path)
        flush(copy)
        rename_durably(beside, folder)
    except (OSError, StoreError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise StoreError(f"{folder}: cannot be written ({error})") from error
    with closing(Truth(folder / generation.name, writable=False)) as written:
        return written.count()


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file that never changes, or a copy where the file system has no such thing."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
