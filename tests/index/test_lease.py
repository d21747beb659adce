"""The right to write: one process has it, and gives it back even where it is killed."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from index.lease import LEASE, Lease
from item.errors import LeaseError, StoreError
from tests.index.conftest import CHECKOUT, python

HOLD = """
import sys
from pathlib import Path
from index.lease import Lease
lease = Lease.acquire(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(python(HOLD, folder), cwd=CHECKOUT, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        for _ in range(2):  # an attempt changes nothing
            with pytest.raises(LeaseError, match=f"another process writes to it .process {process.pid} on .*end it"):
                Lease.acquire(tmp_path)
        process.kill()
        process.wait()
        with Lease.acquire(tmp_path):
            assert f"process {os.getpid()} on " in (tmp_path / LEASE).read_text()


def test_a_lease_that_was_given_back_can_be_taken(tmp_path: Path) -> None:
    first = Lease.acquire(tmp_path)
    with pytest.raises(LeaseError):
        Lease.acquire(tmp_path)
    first.release()
    with Lease.acquire(tmp_path):
        first.release()  # a second call takes nothing from the next one
        with pytest.raises(LeaseError):
            Lease.acquire(tmp_path)
    Lease.acquire(tmp_path).release()


def test_a_lease_is_not_inherited_by_programs_that_are_started(tmp_path: Path) -> None:
    lease = Lease.acquire(tmp_path)
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        lease.release()
        Lease.acquire(tmp_path).release()
    finally:
        child.kill()
        child.wait()


def test_a_lease_that_could_not_be_noted_is_not_held(tmp_path: Path) -> None:
    """As on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(StoreError, match="cannot be written to"):
            Lease.acquire(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    Lease.acquire(tmp_path).release()


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="none: cannot be written to"):
        Lease.acquire(tmp_path / "none")
