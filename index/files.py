"""Files that are either whole or not there: written beside, flushed to the disk, renamed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BESIDE = ".writing"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest:
    """A file's size in bytes and its sha256 in hexadecimal."""

    bytes: int
    sha256: str


def digest(path: Path) -> FileDigest:
    """Reads a file once. Raises OSError."""
    with path.open("rb") as file:
        return FileDigest(sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=file.tell())


def publish(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a file beside `path` and renames it: after a crash `path` holds all of it or what it held.

    The file beside is this process's own: the last workers of a job that was killed may outlive it for seconds.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}{BESIDE}")
    write(beside)
    rename_durably(beside, path)


def rename_durably(source: Path, target: Path) -> None:
    """Renames a file within its folder; content first, then the name, survive a power cut."""
    _flush(source)
    source.replace(target)
    _flush(target.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
