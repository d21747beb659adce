"""Files that are either whole or not there: written beside, flushed to the disk, renamed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BESIDE = ".writing"
SEAL = "sha256"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest:
    """A file's size in bytes and its sha256 in hexadecimal."""

    bytes: int
    sha256: str


def digest(path: Path) -> FileDigest:
    """Reads a file once. Raises OSError."""
    with path.open("rb") as file:
        return FileDigest(sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=file.tell())


def sealed(content: dict[str, Any]) -> str:
    """A JSON object with a checksum of what it says."""
    return json.dumps({**content, SEAL: seal(content)}, indent=1, ensure_ascii=False) + "\n"


def unsealed(text: bytes) -> dict[str, Any]:
    """What `sealed` was given. Raises ValueError where it is not JSON, or says something else than it did."""
    content = json.loads(text)
    if not isinstance(content, dict) or content.pop(SEAL, None) != seal(content):
        raise ValueError("its content is not what was written")
    return content


def seal(content: dict[str, Any]) -> str:
    """The sha256 of a JSON object."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def publish(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a file beside `path` and renames it: after a crash `path` holds all of it or what it held.

    The file beside is this process's own: the last workers of a job that was killed may outlive it for seconds.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}{BESIDE}")
    write(beside)
    rename_durably(beside, path)


def rename_durably(source: Path, target: Path) -> None:
    """Renames a file within its folder; content first, then the name, survive a power cut."""
    flush(source)
    source.replace(target)
    flush(target.parent)


def flush(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
