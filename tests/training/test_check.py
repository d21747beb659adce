"""The check program on a small shop with every kind of fault, through its command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from training.check import main

GOOD_ROWS = [
    {
        "product_id": "1",
        "title": "red mug",
        "image": "red.png",
        "category": "Home/Mugs",
        "group_id": "m",
        "split": "train",
    },
    {"product_id": "2", "title": "red mug", "image": "red2.png", "category": "Home/Mugs", "split": "train"},
    {"product_id": "3", "title": "blue mug", "image": "blue.png", "category": "Home", "split": "val"},
    {"product_id": "4", "description": "words alone"},
]
BAD_ROWS = [
    {"product_id": "5", "title": "broken", "image": "broken.jpg"},
    {"product_id": "6", "title": "missing", "image": "missing.jpg"},
    {"product_id": "7", "title": "also missing", "image": "gone.jpg"},
    {"product_id": "1", "title": "again"},
    {"product_id": "8", "title": "blank level", "category": "Home//Mugs"},
    {"product_id": "9"},
]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    for name, colour in (("red", (255, 0, 0)), ("red2", (255, 0, 0)), ("blue", (0, 0, 255))):
        Image.new("RGB", (20, 10), colour).save(folder / f"{name}.png")
    (folder / "broken.jpg").write_bytes(b"<html>")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def write(shop: Path, rows: list[dict[str, Any]]) -> Path:
    (shop / "catalog.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return shop


def run(shop: Path, *options: str) -> int:
    return main(["--catalog", str(shop), "--workers", "1", *options])


def test_the_report_counts_everything(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(write(shop, [*GOOD_ROWS, *BAD_ROWS]), "--json", "report.json") == 0
    report = json.loads(Path("report.json").read_text())
    assert report == {
        "catalog": str(shop / "catalog.jsonl"),
        "rows": 10,
        "kept": 4,
        "refused": {
            "image: …: no such file": 2,
            "image: …: is none of JPEG, PNG, WEBP, GIF, BMP, TIFF, or its header is damaged": 1,
            "product_id: … is already on line …": 1,
            "category: … has a blank level": 1,
            "title: no title, description or image, and one is needed": 1,
        },
        "duplicate_ids": 1,
        "unreadable_pictures": 3,
        "missing": {
            "title": 1,
            "description": 3,
            "images": 1,
            "category": 1,
            "group_id": 3,
            "language": 4,
            "split": 1,
        },
        "splits": {"train": 2, "val": 1, "none": 1},
        "splits_by_rule": False,
        "levels": {"1": 1, "2": 2},
        "leaves": {"Home": 1, "Home/Mugs": 2},
        "attributes": {},
        "numbers_as_text": [],
        "repeated_titles": {"values": 1, "rows": 2},
        "repeated_pictures": {"values": 1, "rows": 2},
    }
    printed = capsys.readouterr().out
    for line in (
        "  10  rows",
        "   4  kept",
        "   6  refused",
        "   2  image: …: no such file",
        "   3  description   75.0%",
        "   2  train",
        "   1  Home",
        "   1  titles, on 2 rows",
    ):
        assert line in printed.splitlines()


def test_refused_rows_are_written_where_one_stands(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(write(shop, [*GOOD_ROWS, *BAD_ROWS])) == 0
    assert "refused rows written to catalog.refused.jsonl" in capsys.readouterr().out
    refused = [json.loads(line) for line in Path("catalog.refused.jsonl").read_text().splitlines()]
    assert [(row["line"], row["product_id"], row["field"]) for row in refused] == [
        (5, "5", "image"),
        (6, "6", "image"),
        (7, "7", "image"),
        (8, "1", "product_id"),
        (9, "8", "category"),
        (10, "9", "title"),
    ]
    assert "'missing.jpg': no such file" in refused[1]["reason"]
    assert not list(shop.glob("*refused*"))
    assert run(shop, "--refused", "there.jsonl") == 0
    assert Path("there.jsonl").read_text() == Path("catalog.refused.jsonl").read_text()


def test_a_catalogue_without_faults_leaves_no_file_unless_asked(shop: Path) -> None:
    assert run(write(shop, GOOD_ROWS)) == 0
    assert not list(Path().iterdir())
    assert run(shop, "--refused", "refused.jsonl") == 0
    assert Path("refused.jsonl").read_text() == ""


def test_a_catalogue_without_splits_shows_those_of_the_rule(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"product_id": str(i), "title": f"mug {i}"} for i in range(60)]
    assert run(write(shop, rows), "--json", "report.json") == 0
    report = json.loads(Path("report.json").read_text())
    assert report["splits_by_rule"] is True
    assert report["splits"].keys() == {"train", "val", "test"}
    assert sum(report["splits"].values()) == 60
    assert "Splits by the rule" in capsys.readouterr().out


@pytest.mark.parametrize("rows", [BAD_ROWS[:3], BAD_ROWS[4:]])
def test_nothing_usable_is_status_2_with_the_reasons(
    shop: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]]
) -> None:
    assert run(write(shop, rows)) == 2
    captured = capsys.readouterr()
    assert f"   {len(rows)}  refused".strip() in captured.out
    assert "error: " in captured.err
    assert "no row can be used; the reasons are in catalog.refused.jsonl" in captured.err
    assert len(Path("catalog.refused.jsonl").read_text().splitlines()) == len(rows)


def test_errors_are_one_line_and_status_2(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shop / "nowhere") == 2
    write(shop, GOOD_ROWS)
    assert run(shop, "--json", "no/such/folder/report.json") == 2
    assert main(["--catalog", str(shop), "--workers", "0"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3
    assert "nowhere: no such file or folder" in errors[0]
    assert "no/such/folder" in errors[1]
    assert "--workers: 0" in errors[2]


def test_several_processes_give_the_same_report(shop: Path) -> None:
    write(shop, [*GOOD_ROWS, *BAD_ROWS])
    assert run(shop, "--json", "one.json") == 0
    assert main(["--catalog", str(shop), "--workers", "2", "--json", "two.json"]) == 0
    assert Path("one.json").read_text() == Path("two.json").read_text()


def test_attributes_are_counted_and_numbers_as_text_are_pointed_out(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shop / "catalog.csv").write_text(
        "product_id,title,price,ean,sku,stock:number,brand\n"
        "1,mug,19.90,4006381333931,7,3,Acme\n"
        "2,mug,-5,4006381333932,007,,\n"
        "3,mug,0.5,4006381333933,8,4,Acme\n"
    )
    assert run(shop, "--json", "report.json") == 0
    report = json.loads(Path("report.json").read_text())
    assert report["attributes"] == {
        "brand (string)": 2,
        "ean (string)": 3,
        "price (string)": 3,
        "sku (string)": 3,
        "stock (number)": 2,
    }
    assert report["numbers_as_text"] == ["price"]  # no identifiers, which have many digits or begin with 0
    assert "name the column NAME:number\n  3  price\n" in capsys.readouterr().out
