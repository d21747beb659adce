"""A store beside other processes, on disks that are full or cannot be written."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import pytest

from index.lease import LEASE
from index.store import Store
from item.errors import LeaseError, StoreError
from tests.index.conftest import (
    BY_HAND,
    CHECKOUT,
    about,
    generation_folder,
    product,
    python,
    random_vectors,
    run_python,
)

WRITE_ON = """
import sys
from pathlib import Path
import numpy as np
from index.store import Store
from index.upkeep import Upkeep
from tests.index.conftest import product, random_vectors
store = Store.open(Path(sys.argv[1]), writable=True, upkeep=Upkeep(flush_rows=20))
for row in range(100_000):
    store.upsert([product(f"new{row}", row=float(row))], random_vectors(1, seed=100 + row))
    store.delete([f"new{row - 5}"])
    print(row, flush=True)
    if row < 60:
        sys.stdin.readline()
"""


def test_what_was_acknowledged_survives_kill(folder: Path) -> None:
    pipe = subprocess.PIPE
    writer = subprocess.Popen(python(WRITE_ON, folder), cwd=CHECKOUT, stdin=pipe, stdout=pipe, text=True)
    assert writer.stdin is not None
    assert writer.stdout is not None
    with Store.open(folder) as reader:
        for row in range(60):
            assert int(writer.stdout.readline()) == row
            assert reader.search(random_vectors(1, seed=100 + row), 1)[0].product_ids == [f"new{row}"]
            assert reader.product(f"new{row - 5}") is None
            if row == 0:
                with pytest.raises(LeaseError, match=f"process {writer.pid} on "):
                    Store.open(folder, writable=True)
            writer.stdin.write("go on\n")
            writer.stdin.flush()
    for row in range(60, 150):
        assert int(writer.stdout.readline()) == row
    writer.send_signal(signal.SIGKILL)
    last = int([str(row), *writer.communicate()[0].split()][-1])
    with Store.open(folder, writable=True, upkeep=BY_HAND) as again:
        for row in range(last - 4, last + 1):
            there = again.product(f"new{row}")
            assert there == product(f"new{row}", row=float(row)) or (row == last - 4 and there is None)  # the next's
        assert again.product(f"new{last - 5}") is None
        assert len(again) in (25, 26)
        (found,) = again.search(random_vectors(1, seed=100 + last), 1)
        assert found.product_ids == [f"new{last}"]


FILL_THE_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from index.lease import LEASE
from index.store import Store
from index.upkeep import Upkeep
from item.errors import StoreError
from tests.index.conftest import product, random_vectors

folder = Path(sys.argv[1])
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))

store = Store.open(folder, writable=True, upkeep=Upkeep(background=False))
limit(400_000)
written = 0
try:
    while written < 10_000:
        store.upsert([product(f"new{written}", words="x" * 5000)], random_vectors(1, seed=100 + written))
        written += 1
except StoreError as error:
    print("refused:", error)

def check():
    assert len(store) == 20 + written, (len(store), written)
    assert store.product(f"new{written}") is None
    for row in range(written):
        assert store.search(random_vectors(1, seed=100 + row), 1)[0].hits[0].product_id == f"new{row}"
    assert store.product("p3") == product("p3", price=3.0)

assert 0 < written < 10_000
check()
limit(0)
try:
    store.compact()
    print("compacted")
except StoreError as error:
    print("refused:", error)
check()
try:
    store.backup(folder.with_name("backup"))
    print("backed up")
except StoreError as error:
    print("refused:", error)
left = [path.name for path in folder.parent.iterdir()]
assert left == [folder.name], left
limit(most)
store.upsert([product(f"new{written}")], random_vectors(1, seed=100 + written))
written += 1
check()
store.compact()
check()
store.close()
store = Store.open(folder)
check()
store.close()

limit(0)
try:
    Store.open(folder, writable=True)
    print("opened")
except StoreError as error:
    print("refused:", error)
try:
    Store.create(folder, store.about, [([product("a")], random_vectors(1))])
    print("created")
except StoreError as error:
    print("refused:", error)
limit(most)
store = Store.open(folder, writable=True)
check()
store.close()
"""


def test_a_full_disk_loses_nothing(folder: Path) -> None:
    """A limit of the size of files stands for it: SQLite, the segments, and the lease meet it one after another."""
    said = run_python(FILL_THE_DISK, folder)
    assert said.count("refused:") == 5


def content_of(folder: Path) -> dict[Path, bytes]:
    """All files, but for the note of who writes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != LEASE}


WRITE_TO_WHAT_IS_READ_ONLY = """
import os, sys
from pathlib import Path
from index.store import Store
from item.errors import StoreError
from tests.index.conftest import about, product, random_vectors

folder = Path(sys.argv[1])
if os.access(folder, os.W_OK):
    sys.exit("may write all the same")
with Store.open(folder) as store:
    assert len(store) == 20
    assert store.search(random_vectors(20)[7:8], 1)[0].hits[0].product_id == "p7"
    assert store.product("p7") == product("p7", price=7.0)
for open_to_write in (
    lambda: Store.open(folder, writable=True),
    lambda: Store.create(folder, about(), [([product("a")], random_vectors(1))]),
    lambda: Store.create(folder / "new" / "one", about()),
):
    try:
        open_to_write()
        print("opened")
    except StoreError as error:
        print("refused:", error)
"""


@pytest.mark.parametrize("files_too", [False, True])
def test_a_folder_that_cannot_be_written_is_read_and_left_as_it_is(
    folder: Path, unprivileged: list[str], files_too: bool
) -> None:
    (generation_folder(folder) / "index-0123.faiss").write_bytes(b"of a writer that died")
    before = content_of(folder)
    for path in [folder, *folder.rglob("*")]:
        if files_too or path.is_dir():
            path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        said = run_python(WRITE_TO_WHAT_IS_READ_ONLY, folder, wrapper=unprivileged)
    finally:
        for path in [folder, generation_folder(folder)]:
            path.chmod(0o755)
    assert said.count("refused:") == 3
    assert f"refused: {folder}" in said
    assert content_of(folder) == before


def test_a_reader_that_may_not_write_sees_who_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that was there first, as a server is that reads what another user's process writes."""
    monkeypatch.setattr("os.access", lambda *_: False)
    with Store.open(folder) as reader:
        assert len(reader) == 20
        with Store.open(folder, writable=True, upkeep=BY_HAND) as writer:
            writer.upsert([product("new")], random_vectors(1, seed=1))
            assert reader.search(random_vectors(1, seed=1), 1)[0].hits[0].product_id == "new"
            writer.compact()
            writer.delete(["new"])
            assert reader.search(random_vectors(1, seed=1), 1)[0].hits[0].product_id != "new"


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index").write_text("words")
    for refused in (Store.open, lambda folder: Store.create(folder, about())):
        with pytest.raises(StoreError, match=re.escape(str(tmp_path / "index"))):
            refused(tmp_path / "index")
