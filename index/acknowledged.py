"""The note of the last write that was acknowledged, kept beside the database.

SQLite notices a damaged write-ahead log by dropping its end in silence, acknowledged or not. A database that is behind
this note has lost writes.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

from index.truth_rows import REBUILD
from item.errors import StoreError

ACKNOWLEDGED = "acknowledged"
CLOSED = -1


class Acknowledged:
    """The last revision that was acknowledged: 8 bytes and their checksum, written after each commit.

    Never flushed: it lags behind after a power cut at worst, and then refuses nothing.
    """

    LAYOUT = struct.Struct("<QI")

    def __init__(self, path: Path, writable: bool) -> None:
        """Opens a file that is there. Raises StoreError."""
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        except OSError as error:
            raise StoreError(f"{path}: cannot be opened ({error.strerror}); {REBUILD}") from error

    def read(self) -> int:
        """The revision; 0 before the first. Raises StoreError where it is damaged."""
        content = os.pread(self._descriptor, self.LAYOUT.size, 0)
        if not content:
            return 0
        revision, checksum = self.LAYOUT.unpack(content.ljust(self.LAYOUT.size, b"\0"))
        if zlib.crc32(content[:8]) != checksum:
            raise StoreError(
                f"{self.path}: damaged: nobody can tell whether acknowledged writes are missing; restore a backup, or"
                " empty the file to go on with what is there"
            )
        return int(revision)

    def write(self, revision: int) -> None:
        """Notes a revision that is durable. Raises OSError."""
        number = struct.pack("<Q", revision)
        os.pwrite(self._descriptor, number + struct.pack("<I", zlib.crc32(number)), 0)

    def close(self) -> None:
        """A second call does nothing."""
        descriptor, self._descriptor = self._descriptor, CLOSED
        if descriptor != CLOSED:
            os.close(descriptor)
