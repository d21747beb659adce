"""The command `item` against a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from item.cli import main
from item.tables import display_width, format_table
from tests.deploy.serving import png


@pytest.fixture
def command(address: str, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `item` with arguments; its exit status, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main([*arguments, "--server", address])
        return (status, *capsys.readouterr())

    return run


def test_search_prints_a_table(command: Any) -> None:
    status, out, err = command("search", "--text", "red mug", "--k", "3")
    header, *rows, summary = out.splitlines()
    assert (status, err, len(rows)) == (0, "", 3)
    assert header.split() == ["rank", "score", "product_id", "title", "category", "image"]
    assert [row.split()[0] for row in rows] == ["1", "2", "3"]
    starts = {
        line.index(word)
        for line, word in zip([header, *rows], ["product_id", *(row.split()[2] for row in rows)], strict=True)
    }
    assert len(starts) == 1
    assert summary.startswith("3 hits, exact search, ")
    assert "encode" in summary


def test_search_by_picture_and_by_product(command: Any, tmp_path: Path) -> None:
    file = tmp_path / "green.png"
    file.write_bytes(png("#0a0"))
    status, out, _ = command("search", "--image", str(file), "--text", "a mug", "--json")
    assert (status, len(json.loads(out)["hits"])) == (0, 10)
    status, out, _ = command("search", "--product-id", "red-mug", "--k", "5", "--leave-out", "blue-mug", "--json")
    found = json.loads(out)
    assert {"red-mug", "blue-mug"}.isdisjoint(hit["product_id"] for hit in found["hits"])
    assert found["hits"][0]["attributes"]["sizes"] == ["S", "M"]
    assert found["plan"] == "exact"
    assert "error" not in found


def test_predict(command: Any) -> None:
    status, out, _ = command("predict", "--text", "red mug", "--under", "Home/Kitchen")
    header, row, summary = out.splitlines()
    assert (status, header.split()) == (0, ["probability", "category", "levels"])
    assert row.split() == ["1.000", "Home/Kitchen/Mugs", "1.000", "1.000", "1.000"]
    assert summary.startswith("neighbour_vote, ")
    status, out, _ = command("predict", "--text", "red mug", "--under", "Cars")
    assert (status, out.splitlines()[0]) == (0, "no prediction: no product close by has a category")
    _, out, _ = command("predict", "--text", "red mug", "--top-k", "1", "--json")
    assert len(json.loads(out)["paths"]) == 1


def test_embed(command: Any, tmp_path: Path) -> None:
    file = tmp_path / "vector.npy"
    status, out, _ = command("embed", "--text", "red mug", "--dimensions", "16", "--output", str(file))
    written = np.load(file)
    assert (status, written.shape, written.dtype) == (0, (1, 16), np.float32)
    assert str(file) in out
    assert [one.name for one in tmp_path.iterdir()] == ["vector.npy"]
    _, out, _ = command("embed", "--text", "red mug", "--dimensions", "16", "--json")
    np.testing.assert_allclose(json.loads(out)["vector"], written[0], atol=1e-6)


def test_info(command: Any) -> None:
    status, out, _ = command("info")
    assert status == 0
    assert "default: 30 products" in out
    _, out, _ = command("info", "--json")
    assert json.loads(out)["collections"][0]["num_products"] == 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search"], "give words"),
        (["search", "--text", "a", "--k", "0"], "INVALID_ARGUMENT: k: 0 is not within"),
        (["search", "--product-id", "unknown"], "NOT_FOUND: "),
        (["search", "--image", "no/such/file.jpg"], "no/such/file.jpg cannot be read: No such file"),
        (["search", "--image", __file__], "INVALID_ARGUMENT: queries[0].parts[0].input.image"),
        (["embed"], "inputs[0]: is empty"),
        (
            ["embed", "--text", "a", "--output", "no/such/folder/x.npy"],
            "output: no/such/folder/x.npy cannot be written",
        ),
        (["predict", "--text", ""], "inputs[0]: is empty"),
        (["info", "--timeout-s", "0"], "timeout_s: 0.0 is not above 0"),
    ],
)
def test_what_cannot_be_answered_is_one_line(command: Any, arguments: list[str], message: str) -> None:
    status, out, err = command(*arguments)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--server", "127.0.0.1:1"]) == 2
    assert "no server at 127.0.0.1:1; start one with python -m deploy.server" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["upsert"], ["search", "--k", "many"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: item" in capsys.readouterr().err


def test_as_a_module_and_into_a_pipe_that_closes(address: str) -> None:
    command = f"{sys.executable} -m item.cli search --product-id red-mug --server {address} | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.stdout.split()[:2], done.stderr) == (["rank", "score"], "")


def test_tables_keep_their_width() -> None:
    rows = [["a", 0.5, "x" * 100], ["long name", 12.25, "控制\x1b[31m字符\n"]]
    table = format_table(["name", "score", "title"], rows, width=40)
    lines = table.splitlines()
    assert len(lines) == 3
    assert max(map(display_width, lines)) == 40
    assert lines[1].endswith("x...")
    assert "\x1b" not in table
    assert lines[1].index("0.500") == lines[2].index("12.250") + 1
    assert format_table(["a"], []) == "a"


@given(st.lists(st.lists(st.text(max_size=12), min_size=3, max_size=3), min_size=1, max_size=4))
def test_columns_stand_below_each_other(rows: list[list[str]]) -> None:
    lines = format_table(["one", "two", "end"], [[*row[:2], "|"] for row in rows]).splitlines()
    assert len(lines) == 1 + len(rows)
    assert {display_width(line[: line.rindex("|")]) for line in lines[1:]} == {
        display_width(lines[0][: lines[0].rindex("end")])
    }
