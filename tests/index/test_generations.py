"""Which generation counts, and what becomes of the others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from index.files import BESIDE
from index.generations import CURRENT, Generations, new_generation, read_generations, remove_others, switch
from index.store import Store
from item.errors import StoreError
from tests.index.conftest import BY_HAND, about, product, random_vectors


def build(folder: Path, name: str) -> str:
    """A generation of one product."""
    with Store.create(folder, about(), [([product(name)], random_vectors(1))], upkeep=BY_HAND) as store:
        return store.generation


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("generation-*"))


def test_switching_keeps_one_to_go_back_to(tmp_path: Path) -> None:
    made = [new_generation(tmp_path) for _ in range(4)]
    assert made == sorted(set(made))
    assert switch(tmp_path, made[0]) == Generations(current=made[0])
    assert switch(tmp_path, made[1]) == Generations(current=made[1], previous=made[0])
    generations = switch(tmp_path, made[2])
    assert generations == read_generations(tmp_path) == Generations(current=made[2], previous=made[1])
    remove_others(tmp_path, generations)
    assert names(tmp_path) == made[1:3]
    assert not list(tmp_path.glob(f"*{BESIDE}"))


def test_the_generation_before_can_be_opened_again(tmp_path: Path) -> None:
    first = build(tmp_path, "a")
    second = build(tmp_path, "b")
    switch(tmp_path, first)
    with Store.open(tmp_path) as store:
        assert (store.generation, store.product("a"), store.product("b")) == (first, product("a"), None)
    third = build(tmp_path, "c")
    assert names(tmp_path) == [first, third]
    assert second not in names(tmp_path)


def test_a_reader_keeps_what_it_has_open_while_it_is_removed(tmp_path: Path) -> None:
    build(tmp_path, "a")
    with Store.open(tmp_path) as reader:
        for name in "bcd":
            build(tmp_path, name)
        assert [hit.product_id for hit in reader.search(random_vectors(1), 3)[0].hits] == ["d"]


def test_what_was_never_finished_does_not_count(tmp_path: Path) -> None:
    unfinished = new_generation(tmp_path)
    with pytest.raises(StoreError, match=r"not an index, or never finished; run: python -m index\.build"):
        Store.open(tmp_path)
    first = build(tmp_path, "a")
    assert unfinished not in names(tmp_path)
    unfinished = new_generation(tmp_path)
    with Store.open(tmp_path, writable=True, upkeep=BY_HAND) as store:
        assert store.generation == first
    build(tmp_path, "b")
    assert unfinished not in names(tmp_path)


def test_a_folder_of_an_earlier_version_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"version": 1, "count": 2}')
    (tmp_path / "products-0123.parquet").write_bytes(b"")
    before = sorted(path.name for path in tmp_path.iterdir())
    for writable in (False, True):
        with pytest.raises(StoreError, match=r"an index of an earlier version; run: python -m index\.build .*--index"):
            Store.open(tmp_path, writable=writable)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    for writable in (False, True):
        with pytest.raises(StoreError, match=r"no such index folder; build one with: python -m index\.build"):
            Store.open(tmp_path / "none", writable=writable)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"previous": "generation-1"}', '{"current": 1}', "\xff"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: str) -> None:
    build(tmp_path, "a")
    (tmp_path / CURRENT).write_text(content, encoding="latin-1")
    for writable in (False, True):
        with pytest.raises(StoreError, match=r"(?s)current\.json: damaged "):
            Store.open(tmp_path, writable=writable)


def test_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    build(tmp_path, "a")
    name = build(tmp_path, "b")
    content = (tmp_path / CURRENT).read_bytes()
    for place in range(0, 8 * len(content), 5):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        (tmp_path / CURRENT).write_bytes(damaged)
        try:  # what is still the same JSON does no harm
            assert read_generations(tmp_path).current == name
        except StoreError as error:
            assert "damaged" in str(error)  # noqa: PT017


def test_a_damaged_file_can_be_put_right_as_its_message_says(tmp_path: Path) -> None:
    """Whoever reads "name the newest folder in it" writes that name into it, by hand."""
    name = build(tmp_path, "a")
    (tmp_path / CURRENT).write_text("{")
    with pytest.raises(StoreError, match=r"name the newest folder generation-\* in it") as raised:
        Store.open(tmp_path)
    if "name the newest folder" in str(raised.value):
        (tmp_path / CURRENT).write_text(json.dumps({"current": name}))
    with Store.open(tmp_path) as store:
        assert store.product("a") == product("a")


def test_the_newest_generation_is_none_that_was_never_finished(tmp_path: Path) -> None:
    """Whoever names the newest folder by hand must not get the half of a build that failed or was killed."""
    build(tmp_path, "a")
    rows = [product(f"p{row}") for row in range(3)]
    with pytest.raises(StoreError, match="'p0' comes twice"):
        Store.create(tmp_path, about(), [(rows, random_vectors(3)), (rows[:1], random_vectors(1))])
    (tmp_path / CURRENT).write_text(json.dumps({"current": names(tmp_path)[-1]}))
    try:
        with Store.open(tmp_path) as store:
            assert store.product("a") == product("a")
    except StoreError as error:
        assert "finished" in str(error)  # noqa: PT017  # either is well


def test_building_over_a_damaged_file_removes_no_products(tmp_path: Path) -> None:
    """The truth of a generation may be all there is: none is removed while it is not known which one counts."""
    name = build(tmp_path, "a")
    (tmp_path / CURRENT).write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        Store.open(tmp_path)
    try:
        build(tmp_path, "b")
    except StoreError as error:
        assert "damaged" in str(error)  # noqa: PT017  # either is well
    assert name in names(tmp_path)


def test_a_generation_that_is_gone_is_refused(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / build(tmp_path, "a"))
    with pytest.raises(StoreError, match=r"truth\.sqlite: is not there; restore a backup"):
        Store.open(tmp_path)
