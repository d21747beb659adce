"""The manifest of an index folder: what the index is, and which files it consists of."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from index.files import FileDigest, digest, publish
from item.errors import StoreError

VERSION = 1
MANIFEST = "manifest.json"
BUILD = "python -m index.build --model M --catalog C --index"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """N = `count` vectors of width D = `vector_width`, all of them in `space`.

    `model` and `engine` say what made them; `catalog`, `catalog_sha256` and `splits` (empty: all) of what. `created` is
    in UTC, ISO 8601. `files` holds the names of the index's files; any other file in the folder is not part of it.
    """

    space: str
    model: str
    engine: str
    catalog: str
    catalog_sha256: str
    splits: tuple[str, ...]
    vector_width: int
    count: int
    files: dict[str, FileDigest]
    metric: str = "cosine"
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="microseconds"))
    version: int = VERSION

    def file(self, suffix: str) -> str:
        """The name of the one file with this suffix, for instance ``".faiss"``. Raises StoreError."""
        names = [name for name in self.files if name.endswith(suffix)]
        if len(names) != 1:
            raise StoreError(f"{MANIFEST}: files: {len(names)} of them end in {suffix!r}, one is expected")
        return names[0]

    def check_files(self, folder: Path) -> None:
        """Reads every file once. Raises StoreError for one that is missing or not what was written."""
        for name, written in self.files.items():
            try:
                found = digest(folder / name)
            except OSError as error:
                raise StoreError(
                    f"{folder / name}: cannot be read ({error.strerror}); build the index again"
                ) from error
            if found != written:
                raise StoreError(
                    f"{folder / name}: damaged: {found.bytes:,} bytes with sha256 {found.sha256[:12]}...;"
                    f" {MANIFEST} says {written.bytes:,} bytes with {written.sha256[:12]}...; build the index again"
                )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Publishes an index: from here on these are its files."""
    text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n"
    publish(folder / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))


def read_manifest(folder: Path) -> Manifest:
    """Raises StoreError for a missing folder and for a missing, damaged or other-version manifest."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such index folder; build one with: {BUILD} {folder}")
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise StoreError(f"{folder}: no {MANIFEST}: not an index, or never finished; run: {BUILD} {folder}") from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); build the index again") from error
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise StoreError(f"{path}: version {version!r}, this program reads version {VERSION}; build the index again")
    try:
        return TypeAdapter(Manifest).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StoreError(f"{path}: {where}: {first['msg']}; build the index again") from error
