"""Catalogue files: the same rows from every format, every kind of broken file, and rows that are refused alone."""

from __future__ import annotations

import csv
import io
import json
import os
import tracemalloc
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from item.catalog import reader
from item.catalog.files import MAX_CELL_CHARACTERS
from item.catalog.listing import Listing, Place
from item.catalog.reader import Refused, find_files, iterate_rows, read_catalog, write_refused
from item.errors import CatalogError, ListingError

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
LEVEL = st.text(st.characters(codec="utf-8", exclude_characters="/["), min_size=1, max_size=8).filter(str.strip)
VALUE = st.one_of(TEXT, st.booleans(), st.floats(allow_nan=False, allow_infinity=False), st.lists(TEXT, max_size=3))
ROW = st.fixed_dictionaries(
    {
        "product_id": TEXT,
        "title": TEXT,
        "description": TEXT,
        "image": TEXT,
        "category": st.lists(LEVEL, max_size=3).map("/".join),
        "brand": TEXT,
        "attributes": st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), VALUE, max_size=3),
    }
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROW, min_size=1, max_size=6))
def test_the_same_rows_from_every_format(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    as_text = [{**row, "attributes": json.dumps(row["attributes"])} for row in rows]
    files = [
        write_csv(tmp_path / "a.csv", as_text),
        write_jsonl(tmp_path / "a.jsonl", rows),
        write_parquet(tmp_path / "a.parquet", as_text),
    ]
    in_csv, in_jsonl, in_parquet = ([row for _, row in iterate_rows(file)] for file in files)
    assert len(in_jsonl) == len(rows)
    for one, two, three in zip(in_csv, in_jsonl, in_parquet, strict=True):
        if isinstance(one, Listing):
            assert one == two == three
        else:
            assert isinstance(two, Refused)
            assert isinstance(three, Refused)
            assert one.field == two.field == three.field


def test_lines_are_those_an_editor_shows(tmp_path: Path) -> None:
    rows = [{"product_id": "1", "title": "two\nlines"}, {"product_id": "2", "title": "mug"}]
    assert [place.line for place, _ in iterate_rows(write_csv(tmp_path / "a.csv", rows))] == [2, 4]
    assert [place.line for place, _ in iterate_rows(write_jsonl(tmp_path / "a.jsonl", rows))] == [1, 2]
    assert [place.line for place, _ in iterate_rows(write_parquet(tmp_path / "a.parquet", rows))] == [1, 2]
    (tmp_path / "b.jsonl").write_text('\n{"product_id": 1, "title": "a"}\n  \n{"product_id": 2, "title": "b"}')
    assert [place.line for place, _ in iterate_rows(tmp_path / "b.jsonl")] == [2, 4]
    (tmp_path / "b.csv").write_text("\nproduct_id,title\n\n1,a\n\n2,b")
    assert [place.line for place, _ in iterate_rows(tmp_path / "b.csv")] == [4, 6]


def outcome(path: Path) -> list[tuple[int, str, str]]:
    """(line, product_id, "" or the field at fault) of every row."""
    rows = iterate_rows(path)
    return [(place.line, row.product_id, row.field if isinstance(row, Refused) else "") for place, row in rows]


def reason(path: Path, line: int) -> str:
    found = dict(iterate_rows(path))[Place(path.name, line)]
    assert isinstance(found, Refused)
    assert found.line == line
    return found.reason


def test_bad_rows_of_jsonl_are_refused_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"product_id": 1, "title": "with a byte order mark"}\n'
        b'{"product_id": 2, "title": "cut o\n'
        b'["product_id", 3]\n'
        b'{"product_id": 4, "title": "m\xfcg"}\n'
        b'{"product_id": "\xff", "title": "mug"}\n'
        b'{"product_id": 6, "title": "a", "title": "b"}\n'
        + b'{"product_id": 7, "x": '
        + b"[" * 100_000
        + b"}\n"
        + b'{"product_id": 8, "x": '
        + b"9" * 5000
        + b"}\n"
        b'{"product_id": 9, "title": "\\ud800"}\n'
        b'{"product_id": 10, "title": "good"}\r\n'
        b'{"title": "no id"}\n'
        b'{"product_id": 1, "title": "again"}\n'
        b'"text"\n'
    )
    assert outcome(path) == [
        (1, "1", ""),
        (2, "", "row"),
        (3, "", "row"),
        (4, "4", "title"),
        (5, "\\udcff", "product_id"),
        (6, "", "title"),
        (7, "", "row"),
        (8, "", "row"),
        (9, "9", "title"),
        (10, "10", ""),
        (11, "", "product_id"),
        (12, "1", "product_id"),
        (13, "", "row"),
    ]
    assert "broken JSON" in reason(path, 2)
    assert "column 28" in reason(path, 2)
    assert "JSON list; give an object" in reason(path, 3)
    assert "not valid UTF-8" in reason(path, 4)
    assert "given twice" in reason(path, 6)
    assert "already on line 1" in reason(path, 12)


def test_bad_rows_of_csv_are_refused_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"\xef\xbb\xbfproduct_id,title,brand\r\n"
        b'1,"mug, red",Acme\r\n'
        b"2,mug\r\n"
        b"3,mug,Acme,more\r\n"
        b"4,m\xfcg,Acme\r\n"
        b'5,"mug" red,Acme\r\n'
        b'6,"never closed,Acme\r\n'
        b"7,mug,Acme\r\n"
        b'8,"two\r\nlines",Acme\r\n'
        b"1,again,Acme\r\n"
        b'10,"never closed either\r\n'
        b"11,mug,Acme"
    )
    assert outcome(path) == [
        (2, "1", ""),
        (3, "", "row"),
        (4, "", "row"),
        (5, "4", "title"),
        (6, "", "row"),
        (7, "", "row"),
        (8, "7", ""),
        (9, "8", ""),
        (11, "1", "product_id"),
        (12, "", "row"),
        (13, "11", ""),
    ]
    assert "has 2 cells where the header has 3" in reason(path, 3)
    assert "has 4 cells" in reason(path, 4)
    assert "not valid UTF-8" in reason(path, 5)
    assert "broken CSV" in reason(path, 6)
    assert "broken CSV" in reason(path, 12)


def test_columns_of_csv_may_say_their_type(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "product_id,title,title:number,price:number,new:boolean,sizes:list,ean,eu:size,:number,language:list\n"
        "1,mug,cup,19.99,true,S | M|,0123,42,x,en\n"
        "2,mug,cup, -3e2 ,FALSE,,9,,,en\n"
        "3,mug,cup,cheap,true,S,,,,en\n"
        "4,mug,cup,,maybe,S,,,,en\n"
        "5,mug,cup,1e999,true,S,,,,en\n"
        "6,mug,cup,nan,true,S,,,,en\n"
        "7,mug,cup,1_000,true,S,,,,en\n"
    )
    first, second = read_catalog(path).listings
    assert first.attributes == {
        "title:number": "cup",
        "price": 19.99,
        "new": True,
        "sizes": ["S", "M"],
        "ean": "0123",
        "eu:size": "42",
        ":number": "x",
        "language:list": "en",
    }
    assert second.attributes == {
        "title:number": "cup",
        "price": -300.0,
        "new": False,
        "ean": "9",
        "language:list": "en",
    }
    assert outcome(path)[2:] == [
        (4, "3", "price"),
        (5, "4", "new"),
        (6, "5", "price"),
        (7, "6", "price"),
        (8, "7", "price"),
    ]
    assert reason(path, 4) == "'cheap' is no number; mend it, or leave the type out of the column's name"
    path.write_text("product_id,price,price:number\n1,2,3\n")
    with pytest.raises(CatalogError, match="there are two columns 'price'"):
        read_catalog(path)


def test_a_quote_never_closed_at_the_top_of_a_long_file_loses_one_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('product_id,title\n0,"open\n' + "".join(f"{i},mug {i}\n" for i in range(1, 20_001)))
    catalog = read_catalog(path)
    assert [listing.product_id for listing in catalog.listings] == [str(i) for i in range(1, 20_001)]
    assert [place.line for place in catalog.places] == list(range(3, 20_003))
    assert [row.line for row in catalog.refused] == [2]


def test_a_long_description_is_no_broken_csv(tmp_path: Path) -> None:
    words = "mug " * 300_000
    catalog = read_catalog(write_csv(tmp_path / "a.csv", [{"product_id": "1", "description": words}]))
    assert catalog.listings[0].description == words.strip()
    rows = [{"product_id": "1", "title": "x" * (MAX_CELL_CHARACTERS + 1)}, {"product_id": "2", "title": "mug"}]
    assert outcome(write_csv(tmp_path / "b.csv", rows)) == [(2, "", "row"), (3, "2", "")]


def test_a_duplicate_of_a_refused_row_is_no_duplicate(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"product_id": "1", "title": 5},
        {"product_id": "1", "title": "mug"},
        {"product_id": 1, "title": "cup"},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    assert outcome(path) == [(1, "1", "title"), (2, "1", ""), (3, "1", "product_id")]
    assert "already on line 2" in reason(path, 3)


def test_parquet_types(tmp_path: Path) -> None:
    columns = {
        "product_id": pa.array([1, 2, 3], pa.int64()),
        "title": pa.array(["a", "b", None]).dictionary_encode(),
        "image": pa.array(
            [{"bytes": b"\xff", "path": "1.jpg"}, {"bytes": None, "path": "2.jpg"}, {"bytes": b"\xfe", "path": None}]
        ),
        "category": pa.array([["Home", "Mugs"], [], None]),
        "price": pa.array(["1.50", None, "2"]).cast(pa.decimal128(8, 2)),
        "stock": pa.array([1, 2, 3], pa.uint8()),
        "attributes": pa.array([[("k", "v")], [], None], pa.map_(pa.string(), pa.string())),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    catalog = read_catalog(tmp_path / "a.parquet")
    assert catalog.refused == []
    assert [listing.product_id for listing in catalog.listings] == ["1", "2", "3"]
    assert [listing.images[0].reference for listing in catalog.listings] == ["1.jpg", "2.jpg", ""]
    assert [listing.images[0].data for listing in catalog.listings] == [b"\xff", None, b"\xfe"]
    assert catalog.listings[1].images[0].path == tmp_path / "2.jpg"
    assert catalog.listings[0].category == ("Home", "Mugs")
    assert catalog.listings[0].attributes == {"price": 1.5, "stock": 1.0, "k": "v"}


def test_parquet_cells_that_python_cannot_hold(tmp_path: Path) -> None:
    not_utf_8 = pa.array([b"a", b"\xff", b"c", b"d"]).view(pa.string())
    columns = {
        "product_id": pa.array(["1", "2", "3", "4"]),
        "title": not_utf_8,
        "tags": pa.array([["x"], ["x"], ["x"], None]),
        "seen": pa.array([None, None, 1, None], pa.timestamp("ns")),
        "size": pa.array([None, None, None, {"w": 1}]),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert outcome(tmp_path / "a.parquet") == [(1, "1", ""), (2, "2", "title"), (3, "3", "seen"), (4, "4", "size")]
    assert "not valid UTF-8" in reason(tmp_path / "a.parquet", 2)


def test_rows_of_many_batches_are_numbered_through(tmp_path: Path) -> None:
    rows = [{"product_id": str(i), "title": f"mug {i}"} for i in range(1000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=300)
    catalog = read_catalog(tmp_path / "a.parquet")
    assert [place.line for place in catalog.places] == list(range(1, 1001))
    assert catalog.listings[-1].title == "mug 999"


def test_relative_pictures_start_at_the_files_folder(tmp_path: Path) -> None:
    for write, suffix in ((write_csv, "csv"), (write_jsonl, "jsonl"), (write_parquet, "parquet")):
        path = write(tmp_path / f"a.{suffix}", [{"product_id": "1", "image": "images/1.jpg"}])
        assert read_catalog(path).listings[0].images[0].path == tmp_path / "images/1.jpg"


def broken_file(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(CatalogError) as error:
        read_catalog(path)
    assert str(path) in str(error.value)
    return str(error.value)


def test_files_that_cannot_be_read_at_all(tmp_path: Path) -> None:
    rows = [{"product_id": str(i), "title": f"mug {i}" * 50} for i in range(500)]
    good = write_parquet(tmp_path / "good.parquet", rows).read_bytes()
    damaged = bytearray(good)
    damaged[100:3000] = b"\0" * 2900
    assert "damaged or no Parquet" in broken_file(tmp_path / "a.parquet", b"PAR1")
    assert "damaged or no Parquet" in broken_file(tmp_path / "a.parquet", good[: len(good) // 2])
    assert "damaged or no Parquet" in broken_file(tmp_path / "a.parquet", bytes(damaged))
    for suffix in ("csv", "jsonl", "parquet"):
        assert any(word in broken_file(tmp_path / f"a.{suffix}", b"") for word in ("empty", "no rows", "damaged"))
    assert "has no rows" in broken_file(tmp_path / "a.csv", b"product_id,title\n")
    assert "has no rows" in broken_file(tmp_path / "a.jsonl", b"\n\n")
    write_parquet(tmp_path / "none.parquet", [{"product_id": "1", "title": "a"}])
    pq.write_table(pq.read_table(tmp_path / "none.parquet").slice(0, 0), tmp_path / "none.parquet")
    assert "has no rows" in broken_file(tmp_path / "a.parquet", (tmp_path / "none.parquet").read_bytes())
    assert "rename 'productId'" in broken_file(tmp_path / "a.csv", b"productId,title\n1,a\n")
    assert "by commas, not by ';'" in broken_file(tmp_path / "a.csv", b"product_id;title\n1;a\n")
    assert "two columns 'title'" in broken_file(tmp_path / "a.csv", b"product_id,title,title\n1,a,b\n")
    assert "column 1 has no name" in broken_file(tmp_path / "a.csv", b",product_id,title\n0,1,a\n")
    assert "header cannot be read" in broken_file(tmp_path / "a.csv", b'product_id,"title\n1,a\n')
    assert "rename 'id'" in broken_file(tmp_path / "a.jsonl", b'{"id": 1, "title": "a"}\n')
    pq.write_table(pa.table({"sku": ["1"], "title": ["a"]}), tmp_path / "sku.parquet")
    assert "rename 'sku'" in broken_file(tmp_path / "a.parquet", (tmp_path / "sku.parquet").read_bytes())


def test_all_rows_refused_names_the_commonest_reason(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"product_id": i, "title": "a", "seen": {"a": 1}} for i in range(3)]
    path = write_jsonl(tmp_path / "a.jsonl", [*rows, {"title": "a"}])
    with pytest.raises(CatalogError, match=r"all 4 rows are refused, 3 of them for: seen: .* type dict"):
        read_catalog(path)


def test_folders(tmp_path: Path) -> None:
    rows = [{"product_id": "1", "title": "mug"}]
    (tmp_path / "images").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CatalogError, match=r"must hold catalog\{.parquet,.jsonl,.csv\}, .*; it has images, notes.txt"):
        read_catalog(tmp_path)
    write_csv(tmp_path / "catalog.csv", rows)
    write_csv(tmp_path / "offers.csv", [{"product_id": "o1", "title": "cup"}])
    assert find_files(tmp_path) == (tmp_path / "catalog.csv",)
    assert read_catalog(tmp_path).listings[0].product_id == "1"
    assert read_catalog(tmp_path, "offers").listings[0].product_id == "o1"
    assert read_catalog(str(tmp_path / "offers.csv")).path == tmp_path / "offers.csv"
    write_jsonl(tmp_path / "catalog.jsonl", rows)
    with pytest.raises(CatalogError, match=r"both catalog.jsonl and catalog.csv"):
        read_catalog(tmp_path)
    with pytest.raises(CatalogError, match=r"no such file or folder; .* has catalog.csv, catalog.jsonl, images"):
        read_catalog(tmp_path / "catalogue.csv")
    with pytest.raises(CatalogError, match="no such file or folder"):
        read_catalog(tmp_path / "no" / "such")
    with pytest.raises(CatalogError, match=r"unknown format '.txt'; a catalogue is one of .parquet, .jsonl, .csv"):
        read_catalog(tmp_path / "notes.txt")
    (tmp_path / "catalog.csv").rename(tmp_path / "SHOP.CSV")
    assert read_catalog(tmp_path / "SHOP.CSV").listings[0].product_id == "1"


def test_a_row_group_is_not_read_whole(tmp_path: Path) -> None:
    """Some writers make one of a whole file, pictures and all."""
    rows = {"product_id": [str(i) for i in range(1000)], "image": [os.urandom(40_000) for _ in range(1000)]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet", write_batch_size=16, use_dictionary=False)
    del rows["image"]
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 1
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in iterate_rows(tmp_path / "a.parquet")]
    assert len(held) == 1000
    assert 0 < max(held) < 25_000_000 < 40_000 * 1000


def test_reading_takes_the_same_memory_for_any_number_of_rows(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = write_jsonl(tmp_path / f"{count}.jsonl", [{"product_id": f"p{i}", "title": "mug"} for i in range(count)])
        tracemalloc.start()
        assert sum(isinstance(row, Listing) for _, row in iterate_rows(path)) == count
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(100)  # what is made once
    assert peak(8000) - peak(1000) < 7000 * 10  # bytes; a dict of ids takes 150 a row


def test_several_files_are_one_catalogue(tmp_path: Path) -> None:
    """In the order of their names, each with its own lines and its own folder for pictures."""
    (tmp_path / "b").mkdir()
    write_jsonl(tmp_path / "part-1.jsonl", [{"product_id": "1", "image": "1.jpg"}, {"product_id": "2", "title": ""}])
    write_csv(tmp_path / "part-0.csv", [{"product_id": "3", "title": "mug"}])
    write_parquet(tmp_path / "part-2.parquet", [{"product_id": "3", "title": "cup"}, {"product_id": "4", "title": "a"}])
    write_jsonl(
        tmp_path / "b" / "part-3.jsonl", [{"product_id": "1", "title": "a"}, {"product_id": "5", "image": "5.jpg"}]
    )
    for name in ("_SUCCESS", "_part.csv", ".part.jsonl", "notes.txt"):
        (tmp_path / name).touch()
    assert [file.name for file in find_files(tmp_path)] == ["part-0.csv", "part-1.jsonl", "part-2.parquet"]
    assert find_files(tmp_path / "part-[12]*") == (tmp_path / "part-1.jsonl", tmp_path / "part-2.parquet")
    files = find_files(tmp_path / "**" / "part-*")
    assert [file.relative_to(tmp_path).as_posix() for file in files] == sorted(
        ["part-0.csv", "part-1.jsonl", "part-2.parquet", "b/part-3.jsonl"]
    )
    assert outcome_of(files) == [
        ("b/part-3.jsonl", 1, "1", ""),
        ("b/part-3.jsonl", 2, "5", ""),
        ("part-0.csv", 2, "3", ""),
        ("part-1.jsonl", 1, "1", "product_id: '1' is already on line 1 of b/part-3.jsonl; give each listing its own"),
        ("part-1.jsonl", 2, "2", "title: no title, description or image, and one is needed; the row's columns: "),
        ("part-2.parquet", 1, "3", "product_id: '3' is already on line 2 of part-0.csv; give each listing its own"),
        ("part-2.parquet", 2, "4", ""),
    ]
    catalog = read_catalog(tmp_path / "**" / "part-*")
    pictures = {listing.product_id: listing.images[0].path for listing in catalog.listings if listing.images}
    assert pictures == {"5": tmp_path / "b" / "5.jpg"}
    assert catalog.refusal(catalog.listings[1], ListingError("image", "a")).place == ("b/part-3.jsonl", 2)
    assert read_catalog(tmp_path).files == find_files(tmp_path)
    write_csv(tmp_path / "catalog.csv", [{"product_id": "1", "title": "mug"}])
    assert find_files(tmp_path) == (tmp_path / "catalog.csv",)


def outcome_of(files: Sequence[Path]) -> list[tuple[str, int, str, str]]:
    """(file, line, product_id, "" or the column at fault and why) of every row."""
    return [
        (*place, row.product_id, f"{row.field}: {row.reason.partition('[')[0]}" if isinstance(row, Refused) else "")
        for place, row in iterate_rows(files)
    ]


def test_files_that_cannot_be_found(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"no file of .parquet, .jsonl, .csv matches this pattern"):
        find_files(tmp_path / "part-*.parquet")
    write_jsonl(tmp_path / "part-0.jsonl", [])
    write_jsonl(tmp_path / "part-1.jsonl", [])
    with pytest.raises(CatalogError, match=r"part-0.jsonl, .*part-1.jsonl: has no rows"):
        list(iterate_rows(tmp_path))
    (tmp_path / "part-[1].jsonl").write_text('{"product_id": 1, "title": "a name like a pattern"}')
    assert find_files(tmp_path / "part-[1].jsonl") == (tmp_path / "part-[1].jsonl",)


def test_a_damaged_file_is_named_with_its_last_good_row(tmp_path: Path) -> None:
    rows = [{"product_id": str(i), "title": f"mug {i}" * 50} for i in range(2000)]
    write_parquet(tmp_path / "a.parquet", rows[:3])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet", row_group_size=500, compression="none")
    damaged = bytearray((tmp_path / "b.parquet").read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 40_000] = b"\xff" * 40_000
    (tmp_path / "b.parquet").write_bytes(damaged)
    with pytest.raises(CatalogError, match=r"b\.parquet: damaged or no Parquet file .* behind row [1-9]"):
        list(iterate_rows(tmp_path))


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 7))
def test_of_many_rows_with_one_id_the_first_stays(ids: list[int], cache: int) -> None:
    """Also where the ids are more than fit into memory."""
    with closing(reader._SeenIds()) as seen:
        seen._database.execute(f"PRAGMA cache_size = {cache}")
        places = [Place(f"part-{row // 10}", row % 10 + 1) for row in range(len(ids))]
        first = [seen.first(f"{number:0500}", place) for number, place in zip(ids, places, strict=True)]
    assert first == [places[ids.index(number)] for number in ids]


def test_ids_leave_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path))
    monkeypatch.setattr(reader, "IDS_CACHE_BYTES", 64 * 1024)
    with closing(reader._SeenIds()) as seen:
        for number in range(2000):
            assert seen.first(f"{number:0200}", Place("a", number)).line == number
        assert seen.first(f"{5:0200}", Place("a", 9999)) == Place("a", 5)
    assert list(tmp_path.iterdir()) == []


def test_split(tmp_path: Path) -> None:
    named = [{"product_id": str(i), "title": "mug", "split": "train" if i % 2 else "holdout"} for i in range(6)]
    catalog = read_catalog(write_csv(tmp_path / "a.csv", named))
    assert [listing.product_id for listing in catalog.split("holdout")] == ["0", "2", "4"]
    assert catalog.split("test") == []
    unnamed = [{"product_id": str(i), "title": "mug"} for i in range(100)]
    catalog = read_catalog(write_csv(tmp_path / "b.csv", unnamed))
    parts = {name: catalog.split(name) for name in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == 100
    assert len(parts["train"]) > 60
    assert all(listing.split == name for name, part in parts.items() for listing in part)


def test_refused_rows_can_be_written_whatever_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    keys = ", ".join(f'"key {i}": 1' for i in range(5000)).encode()
    path.write_bytes(
        b'{"product_id": 1, "\xff": "a"}\n{"\xff": 1, "\xff": 2}\n{"\xff": 1}\n{"product_id": 4, "\xff": null}\n'
        b'{"product_id": 5, ' + keys + b'}\n{"product_id": 6, "title": "b"}\n'
    )
    refused = read_catalog(path).refused
    assert [row.line for row in refused] == [1, 2, 3, 4, 5]
    assert all(len(row.reason) < 500 for row in refused)
    write_refused(refused, tmp_path / "refused.jsonl")
    assert "\\udcff" in (tmp_path / "refused.jsonl").read_text(encoding="utf-8")


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    for write, suffix in ((write_csv, "csv"), (write_jsonl, "jsonl")):
        path = write(tmp_path / f"a.{suffix}", [{"product_id": "1", "title": "mug"}])
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", refuse)
            with pytest.raises(CatalogError, match="cannot be read: Permission denied"):
                read_catalog(path)


def test_refused_rows_are_written(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"product_id": "gr\xf6\xc3\xb6", "title": "a"}\n'
        b'{"product_id": "\xc3\xb6", "title": 1}\n'
        b'{"product_id": 2, "title": "b"}\n'
    )
    refused = read_catalog(path).refused
    write_refused(refused, tmp_path / "refused.jsonl")
    text = (tmp_path / "refused.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in io.StringIO(text)] == [asdict(row) for row in refused]
    assert [row.product_id for row in refused] == ["gr\\udcf6ö", "ö"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.jsonl", "refused.jsonl"]
    write_refused([], tmp_path / "refused.jsonl")
    assert (tmp_path / "refused.jsonl").read_text() == ""


@pytest.mark.data
@pytest.mark.parametrize(
    ("folder", "name", "rows", "train"),
    [
        ("fashion", "catalog", 9261, 7447),
        ("flipkart", "catalog", 1047, 515),
        ("luma", "catalog", 708, 329),
        ("offers/fashion", "offers", 1814, 0),
        ("offers/flipkart", "offers", 532, 0),
        ("offers/luma", "offers", 379, 0),
    ],
)
def test_real_catalogues(folder: str, name: str, rows: int, train: int) -> None:
    if not DATA.is_dir():
        pytest.skip(f"the real catalogues are not at {DATA}")
    catalog = read_catalog(DATA / folder, name)
    assert catalog.refused == []
    assert len(catalog.listings) == rows
    assert len(catalog.split("train")) == train
    assert all(listing.images and listing.title for listing in catalog.listings)
    assert len({listing.product_id for listing in catalog.listings}) == rows
