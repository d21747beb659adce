"""The right to write a collection: one process holds it, and the kernel takes it back when that process dies."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from types import TracebackType

from item.errors import LeaseError, StoreError

LEASE = "lease"


class Lease:
    """Held from `acquire` to `release`.

    The lock is the kernel's (flock), which knows of every process of this machine that holds it; the file's content
    only says who does. Over a network file system it is as good as that system's flock.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def acquire(cls, folder: Path) -> Lease:
        """Takes the lease of a collection's folder.

        Raises:
            LeaseError: another process holds it; says which.
            StoreError: the folder is not there or cannot be written to.
        """
        path = folder / LEASE
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreError(
                f"{folder}: cannot be written to ({error.strerror}); open it to read, or move it"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise LeaseError(
                f"{folder}: another process writes to it ({holder}); end it, or write through it"
            ) from error
        try:
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except OSError as error:  # a full disk
            os.close(descriptor)
            raise StoreError(f"{folder}: cannot be written to ({error.strerror}); make room on the disk") from error
        return cls(descriptor)

    def release(self) -> None:
        """Lets others write; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)  # the file stays: removing it would let two processes lock two files
            self._descriptor = None

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
