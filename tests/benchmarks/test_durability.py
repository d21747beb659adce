from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from benchmarks import durability
from benchmarks.crash_images import VARIANTS, Image, calls_of, record, replay
from benchmarks.durability import in_memory
from benchmarks.durability_damage import REFUSED, SAME, SILENT, Damage, copied, outcome
from benchmarks.durability_finds import QUIET, Content, Faults, Observed, judge, observe, repairs
from benchmarks.durability_power import PowerCuts, power_results
from benchmarks.durability_process import COLLECTION, Orders, writer_command
from benchmarks.durability_writes import ABOUT, KINDS, Operation, Script, State, drawn_operation
from benchmarks.report import CHECKOUT
from index.acknowledged import ACKNOWLEDGED
from index.store import Store

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not there: install its package")


# The model of a file system


def quoted(text: str) -> str:
    """As `strace -xx` prints a string."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in text.encode()) + '"'


def log_of(*calls: str) -> list[str]:
    """Lines of strace; what is between bars becomes a string."""
    parts = [call.split("|") for call in calls]
    return [f"7 {''.join(quoted(part) if i % 2 else part for i, part in enumerate(call))}\n" for call in parts]


def last_images(log: list[str], variant: str, draws: int = 1) -> list[dict[str, bytes | None]]:
    """What may be left at the end of a log."""
    (*_, point) = replay(log, Path("/d"), [])
    rng = Random(0)
    return [point.disk.image(variant, rng).entries for _ in range(draws)]


CREATED = ("openat(AT_FDCWD, |/d/a.writing|, O_WRONLY+O_CREAT, 0666) = 3", "write(3, |hello|, 5) = 5")
SYNCED = ("fsync(3) = 0", "close(3) = 0")
RENAMED = ("rename(|/d/a.writing|, |/d/a|) = 0",)
FOLDER_SYNCED = ("openat(AT_FDCWD, |/d|, O_RDONLY) = 4", "fsync(4) = 0", "close(4) = 0")


@pytest.mark.parametrize(
    ("calls", "dropped", "names", "kept"),
    [
        (CREATED, {}, {"a.writing": b""}, {"a.writing": b"hello"}),
        ((*CREATED, *RENAMED), {}, {"a": b""}, {"a": b"hello"}),
        ((*CREATED, *SYNCED, *RENAMED), {}, {"a": b"hello"}, {"a": b"hello"}),
        ((*CREATED, *RENAMED, *FOLDER_SYNCED), {"a": b""}, {"a": b""}, {"a": b"hello"}),
        ((*CREATED, *SYNCED, *FOLDER_SYNCED, *RENAMED), {"a.writing": b"hello"}, {"a": b"hello"}, {"a": b"hello"}),
        ((*CREATED, *SYNCED, *RENAMED, *FOLDER_SYNCED), {"a": b"hello"}, {"a": b"hello"}, {"a": b"hello"}),
        ((*CREATED, *SYNCED, *FOLDER_SYNCED, "unlink(|/d/a.writing|) = 0"), {"a.writing": b"hello"}, {}, {}),
        (("mkdir(|/d/b|, 0777) = 0",), {}, {"b": None}, {"b": None}),
        (("mkdir(|/d/b|, 0777) = -1 EEXIST (File exists)",), {}, {}, {}),
    ],
)
def test_content_needs_an_fsync_of_the_file_and_a_name_one_of_the_folder(
    calls: tuple[str, ...], dropped: dict[str, bytes], names: dict[str, bytes], kept: dict[str, bytes]
) -> None:
    log = log_of(*calls)
    assert last_images(log, "dropped") == [dropped]
    assert last_images(log, "names") == [names]
    assert last_images(log, "kept") == [kept]


def test_writes_go_where_the_calls_say() -> None:
    log = log_of(
        *CREATED,
        "lseek(3, 1, SEEK_SET) = 1",
        "write(3, |EY|, 2) = 2",
        "pwrite64(3, |!|, 1, 7) = 1",
        "fdatasync(3) = 0",
        "ftruncate(3, 6) = 0",
        "pwrite64(3, |?|, 1, 0) = 1",
    )
    assert last_images(log, "kept") == [{"a.writing": b"?EYlo\0"}]
    assert last_images(log, "content") == [{}]
    (entries,) = last_images([*log, *log_of(*FOLDER_SYNCED)], "dropped")
    assert entries == {"a.writing": b"hEYlo\0\0!"}


def test_some_changes_may_be_there_in_order_or_not() -> None:
    log = log_of("mkdir(|/d/a|, 0777) = 0", "mkdir(|/d/b|, 0777) = 0")
    mixed, reordered = (
        {tuple(sorted(one)) for one in last_images(log, variant, 50)} for variant in ("mixed", "reordered")
    )
    assert mixed == {(), ("a",), ("a", "b")}
    assert reordered == {(), ("a",), ("b",), ("a", "b")}


def test_names_are_found_through_open_folders_and_calls_that_were_interrupted() -> None:
    log = log_of(*CREATED, *SYNCED, "openat(AT_FDCWD, |/d|, O_RDONLY) = 5", "unlinkat(5, |a.writing|, 0) = 0")
    assert last_images(log, "kept") == [{}]
    begun, ended = log_of("mkdir(|/d/b|, 0777 <unfinished ...>", "<... mkdir resumed>) = 0")
    other = log_of("mkdir(|/d/c|, 0777) = 0")[0].replace("7 ", "8 ", 1)
    assert [call.arguments[0] for call in calls_of([begun, other, ended])] == [quoted("/d/c"), quoted("/d/b")]


def test_what_is_printed_is_a_moment(tmp_path: Path) -> None:
    lines: list[bytes] = []
    log = log_of("write(1, |one\ntw|, 6) = 6", "mkdir(|/d/a|, 0777) = 0", "write(1, |o\n|, 2) = 2")
    moments = [(point.before, point.lines) for point in replay(log, Path("/d"), lines)]
    assert moments == [("print", 1), ("mkdir", 1), ("print", 2), ("end", 2)]
    assert lines == [b"one", b"two"]
    image = Image({"a": None, "a/b": b"c"})
    image.write(tmp_path / "image")
    assert (tmp_path / "image/a/b").read_bytes() == b"c"
    assert image.digest() != Image({"a": None, "a/b": b"d"}).digest()


# What is found, and what should be


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / COLLECTION, ABOUT, upkeep=QUIET) as store:
        yield store


def test_drawn_operations_do_what_they_say(tmp_path: Path) -> None:
    rng, content, clock = Random(1), Content(state={}), 1
    kinds: set[str] = set()
    store = Store.create(tmp_path / COLLECTION, ABOUT, upkeep=QUIET)
    while kinds < {kind for kind in KINDS if not kind.endswith(" all")}:
        operation = drawn_operation(content.state, clock, rng)
        store = operation.run(store)
        previous = content.state if operation.kind == "create" else content.previous
        content = Content(state=operation.after(content.state), previous=previous)
        clock += len(operation.rows)
        kinds.add(operation.kind)
    assert content.state
    assert judge(observe(store), content, content).all() == []
    store.close()


def sizes(faults: Faults) -> tuple[int, int, int, int]:
    return len(faults.lost), len(faults.resurrected), len(faults.duplicates), len(faults.torn)


SEEN: State = {1: (1, 1), 2: (2, 2), 3: (5, 3)}
OBSERVED = Observed(
    content=Content(state=SEEN), torn={}, refused=frozenset(), found=("p1", "p2", "p3"), missed=(), length=3
)


@pytest.mark.parametrize(
    ("observed", "acknowledged", "after", "expected"),
    [
        (OBSERVED, SEEN, SEEN, (0, 0, 0, 0)),
        (OBSERVED, SEEN, {}, (0, 0, 0, 0)),
        (OBSERVED, {}, SEEN, (0, 0, 0, 0)),
        (OBSERVED, {**SEEN, 4: (4, 4)}, {**SEEN, 4: (4, 4)}, (1, 0, 0, 0)),
        (OBSERVED, {**SEEN, 3: (6, 3)}, {**SEEN, 3: (6, 3)}, (1, 0, 0, 0)),
        (OBSERVED, {1: (1, 1), 2: (2, 2)}, {1: (1, 1), 2: (2, 2)}, (0, 1, 0, 0)),
        (OBSERVED, {**SEEN, 4: (4, 4)}, {**SEEN, 4: (4, 4), 3: (6, 3)}, (1, 0, 0, 0)),
        (OBSERVED, {**SEEN, 3: (4, 3)}, {**SEEN, 1: (7, 7)}, (0, 0, 0, 1)),
        (OBSERVED, {1: (1, 1)}, {2: (2, 2), 3: (5, 3)}, (0, 0, 0, 1)),
        (replace(OBSERVED, found=("p1", "p2", "p3", "p3")), SEEN, SEEN, (0, 0, 1, 1)),
        (replace(OBSERVED, found=("p1", "p2")), SEEN, SEEN, (1, 0, 0, 1)),
        (replace(OBSERVED, found=("p1", "p2", "p3", "p4")), SEEN, SEEN, (0, 1, 0, 1)),
        (replace(OBSERVED, missed=("p1",)), SEEN, SEEN, (1, 0, 0, 0)),
        (replace(OBSERVED, length=4), SEEN, SEEN, (0, 0, 0, 1)),
        (replace(OBSERVED, torn={9: "of p9 half is there"}), SEEN, SEEN, (0, 0, 0, 1)),
        (replace(OBSERVED, refused=frozenset({4})), {**SEEN, 4: (4, 4)}, {**SEEN, 4: (4, 4)}, (0, 0, 0, 0)),
    ],
)
def test_every_fault_is_noticed(
    observed: Observed, acknowledged: State, after: State, expected: tuple[int, int, int, int]
) -> None:
    assert sizes(judge(observed, Content(state=acknowledged), Content(state=after))) == expected


def test_another_generation_before_is_noticed() -> None:
    kept = Content(state=SEEN, previous={1: (1, 1)})
    assert sizes(judge(OBSERVED, kept, kept)) == (1, 0, 0, 0)


def test_a_vector_of_another_product_is_noticed(store: Store) -> None:
    script = Script()
    script.add("upsert", (1, 2))
    (operation,) = script.operations
    operation.run(store)
    assert observe(store).content.state == {1: (1, 1), 2: (2, 2)}
    first, second = (store.product(name) for name in ("p1", "p2"))
    vectors = [store.vector(name) for name in ("p2", "p1")]
    assert first is not None
    assert second is not None
    store.upsert([first, second], np.stack([one for one in vectors if one is not None]))
    observed = observe(store)
    assert set(observed.torn) == {1, 2}
    assert observed.content.state == {}


# The three parts


def test_a_damaged_segment_is_repaired_and_wrong_content_noticed(store: Store, tmp_path: Path) -> None:
    script = Script()
    script.add("upsert", range(30))
    script.add("maintain")
    script.add("delete", (3,))
    for operation in (*script.operations, Operation(kind="compact")):
        operation.run(store)
    content = observe(store).content
    store.close()
    (vectors,) = (tmp_path / COLLECTION).rglob("vectors-*")
    damage = Damage(file=str(vectors.relative_to(tmp_path / COLLECTION)), place=200, bit=3)
    copy = copied(tmp_path / COLLECTION, tmp_path / "copy", damage)
    assert (copy / damage.file).read_bytes() != vectors.read_bytes()
    assert outcome(copy, content) == (SAME, [])
    (acknowledged,) = (tmp_path / COLLECTION).rglob(ACKNOWLEDGED)
    damage = Damage(file=str(acknowledged.relative_to(tmp_path / COLLECTION)), place=0, bit=0)
    assert outcome(copied(tmp_path / COLLECTION, copy, damage), content) == (REFUSED, [])
    wrong = replace(content, state=content.state | {3: (4, 4)})
    result, faults = outcome(tmp_path / COLLECTION, wrong)
    assert result == SILENT
    assert "p3: is not there, (4, 4) was acknowledged" in faults


@needs_strace
def test_a_missing_fsync_breaks_images(tmp_path: Path) -> None:
    """The log without some fsyncs is that of a store that forgets them."""
    script = Script()
    script.add("upsert", range(14))
    script.add("maintain")
    script.add("delete", (3,))
    script.add("create", range(10))
    script.add("upsert", (20,))
    orders = Orders(flush_rows=12, background=False, script=tuple(script.operations))
    (tmp_path / "disk").mkdir()
    record(writer_command(tmp_path / "disk" / COLLECTION), tmp_path / "log", CHECKOUT, orders.to_json())
    lines = (tmp_path / "log").read_text(encoding="ascii").splitlines(keepends=True)
    broken = {}
    for forgotten in ("nothing", "fsync", "fdatasync"):
        with in_memory() as scratch, repairs():
            cuts = PowerCuts(tmp_path / "disk", scratch, seed=0)
            cuts.run((line for line in lines if f" {forgotten}(" not in line), every=13)
        assert cuts.images.total() > 20
        broken[forgotten] = cuts.broken.total()
    assert broken["nothing"] == 0
    assert broken["fsync"] > 0
    assert broken["fdatasync"] > 0


def test_without_strace_power_cuts_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert power_results(tmp_path, tmp_path, quick=True) == []
    assert "install the package `strace`" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_benchmark(tmp_path: Path) -> None:
    """With strace, power cuts too; without, their figures are not there."""
    assert durability.main(["--quick", "--kills", "6", "--json", str(tmp_path / "durability.json")]) == 0
    report = json.loads((tmp_path / "durability.json").read_text())
    values = {result["metric"]: result["value"] for result in report["results"]}
    promised = [result["metric"] for result in report["results"] if result["against"] == "0"]
    assert {"lost_writes", "resurrected", "duplicates", "torn", "silent_damage", "damage_crashes"} <= set(promised)
    assert {name: values[name] for name in promised if values[name]} == {}
    assert sum(value for name, value in values.items() if name.startswith("kills_in_")) >= 6
    assert 0 < values["open_s"] <= values["open_s_max"]
    assert values["damages"] > 30
    assert ("images" in values) == (shutil.which("strace") is not None)
    if "images" in values:
        assert values["images"] > 30
        assert {f"images_broken_{variant}" for variant in VARIANTS} <= values.keys()
