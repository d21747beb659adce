"""What a power cut may leave of a folder: a program's system calls, replayed into a model of a file system.

The model keeps no more than POSIX promises: of a file's content what was there at its last fsync, of the names in a
folder (made, renamed, removed) those at the folder's. What came later is pending: it may be on the disk or not. Files
named *-shm are left out, for SQLite makes them anew.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from random import Random

READ = ("open", "openat", "creat", "close", "dup", "dup2", "dup3", "lseek")
WRITE = ("write", "pwrite64", "writev", "pwritev", "ftruncate", "truncate", "fallocate")
SYNC = ("fsync", "fdatasync")
NAME = ("rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir")
REFUSED = ("link", "linkat", "symlink", "symlinkat", "copy_file_range", "sendfile", "fork", "vfork")  # not in the model
LONGEST = 2**22  # bytes of one write that are recorded

LINE = re.compile(r"^(\d+)\s+(\w+)\((.*)\)\s+= (-?\d+)")
UNFINISHED = re.compile(r"^(\d+)\s+(\w+)\((.*?)\s*<unfinished \.\.\.>$")
RESUMED = re.compile(r"^(\d+)\s+<\.\.\. \w+ resumed>(.*)$")
STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')

VARIANTS = {"dropped": 1, "names": 1, "content": 1, "kept": 1, "mixed": 3, "reordered": 3}  # how often each is drawn


def record(command: Sequence[str], log: Path, cwd: Path, given: bytes) -> None:
    """Runs a program under strace, which writes `log`; `given` is its input. Raises CalledProcessError, OSError."""
    calls = ",".join((*READ, *WRITE, *SYNC, *NAME, *REFUSED))
    options = ["-f", "-xx", "-s", str(LONGEST), "-e", "signal=none", "-e", f"trace={calls}", "-o", str(log)]
    subprocess.run(["strace", *options, *command], cwd=cwd, input=given, stdout=subprocess.DEVNULL, check=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A system call that succeeded: its arguments as strace prints them, and what it returned."""

    name: str
    arguments: tuple[str, ...]
    result: int

    def data(self) -> bytes:
        """The bytes it wrote."""
        return b"".join(texts(", ".join(self.arguments)))[: self.result]


def texts(printed: str) -> list[bytes]:
    """All strings in what strace prints."""
    found = STRING.findall(printed)
    assert not any(cut for _, cut in found), f"a string longer than {LONGEST} bytes was cut"
    return [bytes.fromhex(text.replace("\\x", "")) for text, _ in found]


def calls_of(log: Iterable[str]) -> Iterator[Call]:
    """The calls in the order in which they returned, those that failed left out."""
    begun: dict[str, str] = {}
    for line in log:
        if match := UNFINISHED.match(line):
            begun[match[1]] = f"{match[1]} {match[2]}({match[3]}"
            continue
        if match := RESUMED.match(line):
            line = begun.pop(match[1]) + match[2]
        match = LINE.match(line)
        if match and int(match[4]) >= 0:
            yield Call(name=match[2], arguments=tuple(match[3].split(", ")), result=int(match[4]))


@dataclass(slots=True)
class File:
    """What is surely on the disk, and the writes since: a place and bytes, or None and a size."""

    durable: bytes = b""
    pending: list[tuple[int | None, bytes | int]] = field(default_factory=list)

    def write(self, place: int, data: bytes) -> None:
        self.pending.append((place, data))

    def truncate(self, size: int) -> None:
        self.pending.append((None, size))

    def content(self, num_pending: int | None = None) -> bytes:
        """With so many of the pending writes; None: all."""
        content = bytearray(self.durable)
        for place, what in self.pending[:num_pending]:
            if isinstance(what, int):
                content = content[:what].ljust(what, b"\0")
            elif place is not None:
                content = content.ljust(place, b"\0")
                content[place : place + len(what)] = what
        return bytes(content)

    def sync(self) -> None:
        self.durable = self.content()
        self.pending.clear()


@dataclass(slots=True)
class Folder:
    """Names that are surely on the disk, all names there are, and the changes since, each of one or two names."""

    durable: dict[str, File | Folder] = field(default_factory=dict)
    names: dict[str, File | Folder] = field(default_factory=dict)
    pending: list[dict[str, File | Folder | None]] = field(default_factory=list)

    def change(self, names: dict[str, File | Folder | None]) -> None:
        """None removes a name; several change together."""
        self.pending.append(names)
        self.names = with_changes(self.names, [names])

    def sync(self) -> None:
        self.durable = dict(self.names)
        self.pending.clear()


def with_changes(
    names: dict[str, File | Folder], changes: Iterable[dict[str, File | Folder | None]]
) -> dict[str, File | Folder]:
    """Names after changes."""
    changed: dict[str, File | Folder | None] = {**names}
    for one in changes:
        changed |= one
    return {name: node for name, node in changed.items() if node is not None}


@dataclass(frozen=True, slots=True)
class Image:
    """What is on the disk: content by path, None for a folder."""

    entries: dict[str, bytes | None]

    def digest(self) -> bytes:
        """Equal for equal images."""
        found = hashlib.blake2b()
        for path, content in sorted(self.entries.items()):
            found.update(f"{path}\0{-1 if content is None else len(content)}\0".encode())
            found.update(content or b"")
        return found.digest()

    def write(self, folder: Path) -> None:
        """Into a folder that is not there."""
        folder.mkdir()
        for path, content in self.entries.items():  # a folder comes before what is in it
            if content is None:
                (folder / path).mkdir()
            else:
                (folder / path).write_bytes(content)


class Disk:
    """The folder `root`, which was there and empty, under the calls of one process."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = PurePosixPath(root), Folder()
        self._open: dict[int, tuple[PurePosixPath, File | Folder | None]] = {}  # None: outside of the root
        self._place: dict[int, int] = {}

    def image(self, variant: str, rng: Random) -> Image:
        """One of `VARIANTS` of what a power cut now may leave.

        dropped: nothing that is pending is there. names: names are, content is not. content: the reverse. kept: all.
        mixed: of each file and folder the first so many changes. reordered: any of a folder's changes, all content.
        """
        entries: dict[str, bytes | None] = {}

        def visit(folder: Folder, prefix: str) -> None:
            for name, node in names_of(folder, variant, rng).items():
                if isinstance(node, Folder):
                    entries[prefix + name] = None
                    visit(node, f"{prefix}{name}/")
                elif not name.endswith("-shm"):
                    entries[prefix + name] = content_of(node, variant, rng)

        visit(self.folder, "")
        return Image(entries)

    def apply(self, call: Call) -> None:
        """What the call does."""
        if call.name in REFUSED:
            raise NotImplementedError(f"{call.name}: the model does not know it")
        if call.name in ("open", "openat", "creat"):
            self._opened(call)
        elif call.name in NAME:
            self._named(call)
        elif call.name == "truncate":
            if isinstance(node := self._node(self._paths(call)[0]), File):
                node.truncate(int(call.arguments[1]))
        elif call.arguments[0].isdigit() and int(call.arguments[0]) in self._open:
            self._descriptor(call, int(call.arguments[0]))

    def _opened(self, call: Call) -> None:
        (path,) = self._paths(call)
        node, flags = self._node(path), ", ".join(call.arguments)
        if node is None and self._inside(path) and ("O_CREAT" in flags or call.name == "creat"):
            node = File()
            self._parent(path).change({path.name: node})
        if isinstance(node, File) and ("O_TRUNC" in flags or call.name == "creat") and node.content():
            node.truncate(0)
        self._open[call.result] = (path, node)
        self._place[call.result] = 0
        assert "O_APPEND" not in flags or node is None, "the model does not append"

    def _named(self, call: Call) -> None:
        paths = self._paths(call)
        if not all(map(self._inside, paths)):
            return
        if call.name.startswith("rename"):
            source, target = paths
            assert source.parent == target.parent, f"{source}: the model renames within a folder"
            self._parent(source).change({source.name: None, target.name: self._node(source)})
        else:
            node = Folder() if call.name.startswith("mkdir") else None
            self._parent(paths[0]).change({paths[0].name: node})

    def _descriptor(self, call: Call, number: int) -> None:
        path, node = self._open[number]
        if call.name == "close":
            del self._open[number]
        elif call.name.startswith("dup"):
            self._open[call.result] = (path, node)
        elif call.name == "lseek":
            self._place[number] = call.result
        elif call.name in SYNC and node is not None:
            node.sync()
        elif isinstance(node, File):
            self._written(call, number, node)

    def _written(self, call: Call, number: int, file: File) -> None:
        if call.name == "ftruncate":
            file.truncate(int(call.arguments[1], 0))
        elif call.name == "fallocate":
            raise NotImplementedError("fallocate: the model does not know it")
        else:
            positioned = call.name.startswith("pwrite")
            place = int(call.arguments[-1]) if positioned else self._place[number]
            file.write(place, call.data())
            self._place[number] += 0 if positioned else call.result

    def _paths(self, call: Call) -> list[PurePosixPath]:
        """The paths that it names, absolute; a descriptor before one is the folder in which it is."""
        found = []
        for before, argument in zip(("", *call.arguments), call.arguments, strict=False):
            if argument.startswith('"'):
                base = self._open[int(before)][0] if before.isdigit() else PurePosixPath()
                found.append(base / texts(argument)[0].decode())
        return found

    def _inside(self, path: PurePosixPath) -> bool:
        return path != self.root and path.is_relative_to(self.root)

    def _parent(self, path: PurePosixPath) -> Folder:
        node = self._node(path.parent)
        assert isinstance(node, Folder), f"{path.parent}: is no folder in the model"
        return node

    def _node(self, path: PurePosixPath) -> File | Folder | None:
        if not path.is_relative_to(self.root):
            return None
        node: File | Folder | None = self.folder
        for name in path.relative_to(self.root).parts:
            node = node.names.get(name) if isinstance(node, Folder) else None
        return node


def names_of(folder: Folder, variant: str, rng: Random) -> dict[str, File | Folder]:
    """The names of an image's folder."""
    if variant in ("dropped", "content"):
        return folder.durable
    if variant == "mixed":
        return with_changes(folder.durable, folder.pending[: rng.randint(0, len(folder.pending))])
    if variant == "reordered":
        return with_changes(folder.durable, [one for one in folder.pending if rng.random() < 0.5])
    return folder.names


def content_of(file: File, variant: str, rng: Random) -> bytes:
    """The content of an image's file."""
    if variant in ("dropped", "names"):
        return file.durable
    return file.content(rng.randint(0, len(file.pending)) if variant == "mixed" else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A moment: before the call `before`, after the program has printed `lines`."""

    disk: Disk
    before: str
    lines: int


def replay(log: Iterable[str], root: Path, lines: list[bytes]) -> Iterator[Point]:
    """Every moment before something becomes durable or changes a name, and after each line that is printed.

    `lines` takes what the program has printed so far. The point's disk goes on changing.
    """
    disk, printed = Disk(root), b""
    for call in calls_of(log):
        if call.name == "write" and call.arguments[0] == "1":
            *whole, printed = (printed + call.data()).split(b"\n")
            lines += whole
            if whole:
                yield Point(disk=disk, before="print", lines=len(lines))
            continue
        if call.name in (*SYNC, *NAME):
            yield Point(disk=disk, before=call.name, lines=len(lines))
        disk.apply(call)
    yield Point(disk=disk, before="end", lines=len(lines))
