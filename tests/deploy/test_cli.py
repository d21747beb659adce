"""The command `item` against a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.server import Server
from item.catalog.listing import Listing, Place
from item.cli import main
from item.client import Client
from item.products import product_message
from item.results import WriteResult
from item.sending import batches, write_rows
from item.tables import display_width, format_table
from item.v1 import item_pb2
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
    header, *rows, summary, page = out.splitlines()
    assert (status, err, len(rows)) == (0, "", 3)
    assert page.startswith("next page: --page-token ")
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


def test_search_counts_sorts_and_turns_pages(command: Any) -> None:
    arguments = ["search", "--text", "red mug", "--k", "4", "--window", "10", "--facet", "colour"]
    arguments += ["--facet", "category:1", "--sort=-colour", "--min-score=-0.9"]
    status, out, _ = command(*arguments)
    assert status == 0
    colours, categories, page = out.splitlines()[-3:]
    assert colours.startswith("colour: ")
    assert sum(int(one.split()[-1]) for one in colours.split(", ")) == 10
    assert categories.startswith("category:1: ")
    token = page.removeprefix("next page: --page-token ")
    _, out, _ = command(*arguments, "--page-token", token, "--json")
    assert len(json.loads(out)["hits"]) == 4
    status, _, err = command(*arguments, "--page-token", "x")
    assert (status, "queries[0].page_token" in err) == (2, True)


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


def test_search_with_filters(command: Any) -> None:
    conditions = ["--filter", "price<=9.5", "--filter", "under:Home/Kitchen", "--filter", "in_stock=true"]
    status, out, _ = command("search", "--text", "red mug", "--k", "10", *conditions)
    *rows, summary = out.splitlines()
    assert (status, len(rows)) == (0, 1 + 5)
    assert all("Home/Kitchen/Mugs" in row and "red-mug" not in row for row in rows[1:])
    assert summary.startswith("5 hits, exact search, ")


class TestWriting:
    @pytest.fixture
    def own(self, own_server: Server, capsys: pytest.CaptureFixture[str]) -> Any:
        def run(*arguments: object) -> tuple[int, str, str]:
            status = main([*map(str, arguments), "--server", f"127.0.0.1:{own_server.port}"])
            return (status, *capsys.readouterr())

        return run

    @pytest.fixture
    def client(self, own_server: Server) -> Iterator[Client]:
        with Client(f"127.0.0.1:{own_server.port}") as client:
            yield client

    def write(self, folder: Path, *rows: object) -> Path:
        file = folder / "catalog.jsonl"
        file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
        return file

    def test_a_catalogue_is_written_and_bad_rows_are_reported(self, own: Any, client: Client, tmp_path: Path) -> None:
        (tmp_path / "cup.png").write_bytes(png("blue"))
        (tmp_path / "broken.png").write_bytes(b"no picture")
        cups = [{"product_id": f"cup-{n}", "title": f"cup {n}", "image": "cup.png", "price": n} for n in range(70)]
        cups[0]["category"] = "Home/Cups"
        bad = [
            {"product_id": "no-words"},
            {"product_id": "cup-1", "title": "again"},
            {"product_id": "broken", "title": "a", "image": "broken.png"},
            {"product_id": "missing", "title": "a", "image": "missing.png"},
            {"product_id": "long", "title": "a" * 70_000},
            "{",
        ]
        file = self.write(tmp_path, *cups[:40], {"product_id": "red-mug", "title": "a red cup"}, *bad, *cups[40:])
        status, out, err = own("upsert", "--catalog", file)
        assert (status, out) == (1, "71 products written, 70 of them new; 6 rows refused\n")
        name = f"{Path(file).name}, "
        lines = sorted(line.removeprefix(name) for line in err.splitlines() if line.startswith(name))
        assert [line.split(": ")[:2] for line in lines] == [
            ["line 42, 'no-words'", "title"],
            ["line 43, 'cup-1'", "product_id"],
            ["line 44, 'broken'", "images[0].data"],
            ["line 45, 'missing'", "image"],
            ["line 46, 'long'", "title"],
            ["line 47, ''", "row"],
        ]
        assert "missing.png cannot be read: No such file" in lines[3]
        assert "sending: 77/77 rows" in err
        assert client.product("cup-69").attributes == {"price": 69.0}
        assert client.product("cup-0").category == ("Home", "Cups")
        assert client.product("red-mug").title == "a red cup"

    def test_some_fields_of_a_table_of_ids(self, own: Any, client: Client, tmp_path: Path) -> None:
        before = client.product("red-mug")
        prices = {"red-mug": 7.25, "unknown": 3, "": 4}
        file = self.write(tmp_path, *({"product_id": one, "price": price} for one, price in prices.items()))
        status, out, err = own("upsert", "--catalog", file, "--update", "attributes.price", "--json")
        report = json.loads(out)
        assert (status, report["done"], report["created"]) == (1, 1, 0)
        assert [(row["line"], row["product_id"]) for row in report["refused"]] == [(3, ""), (2, "unknown")]
        assert "line 2, 'unknown': product_id: 'unknown' is not in the collection" in err
        assert client.product("red-mug").attributes == before.attributes | {"price": 7.25}
        assert client.product("red-mug").title == "red mug"

    def test_a_new_title_comes_with_its_picture(self, own: Any, client: Client, tmp_path: Path) -> None:
        (tmp_path / "mug.png").write_bytes(png("#c00"))
        rows = [{"product_id": "red-mug", "title": "cup", "image": "mug.png"}, {"product_id": "blue-mug", "title": "b"}]
        status, out, err = own("upsert", "--catalog", self.write(tmp_path, *rows), "--update", "title")
        assert (status, out) == (1, "1 products written, 0 of them new; 1 rows refused\n")
        assert "line 2, 'blue-mug': images[0].data: is needed for the new vector" in err
        assert client.product("red-mug").title == "cup"

    def test_deleting(self, own: Any, client: Client, tmp_path: Path) -> None:
        file = self.write(tmp_path, {"product_id": "red-mug"}, {"product_id": "unknown"}, {"sku": "x"})
        status, out, err = own("delete", "--catalog", file)
        assert (status, out) == (1, "1 products deleted; 2 rows refused\n")
        assert "line 2, 'unknown': 'unknown' is not in the collection" in err
        assert "line 3, '': product_id: there is no column 'product_id'" in err
        assert own("delete", "--product-id", "blue-mug", "--product-id", "red-shoe") == (0, "2 products deleted\n", "")
        assert client.info().collections[0].num_products == 27

    def test_what_cannot_be_written_is_one_line(self, own: Any, tmp_path: Path) -> None:
        file = self.write(tmp_path, {"product_id": "a", "title": "b"})
        for arguments, message in (
            (["--catalog", tmp_path / "none.csv"], "none.csv: no such file"),
            (["--catalog", tmp_path / "none.csv", "--update", "category"], "none.csv: no such file"),
            (["--catalog", file, "--update", "titel"], "INVALID_ARGUMENT: update_mask.paths[0]: 'titel'"),
            (["--catalog", file, "--collection", "winter"], "NOT_FOUND: collection: 'winter' is not there"),
        ):
            status, out, err = own("upsert", *arguments)
            assert (status, out) == (2, "")
            assert err.splitlines()[-1].startswith("error: ")
            assert message in err.splitlines()[-1]


def test_batches_are_bounded_by_rows_and_bytes() -> None:
    rows = [
        (Place("", line), item_pb2.Product(title="a" * size))
        for line, size in enumerate([10, 10, 10, 10, 90, 10, 90, 95])
    ]
    found = [[place.line for place, _ in batch] for batch in batches(rows, max_rows=3, max_bytes=110)]
    assert found == [[0, 1, 2], [3, 4], [5, 6], [7]]


def test_a_row_that_no_request_can_hold_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        (Place("", 1), Listing(product_id="a", title="a" * 200)),
        (Place("", 2), Listing(product_id="b", title="b")),
    ]
    sent: list[list[str]] = []

    def send(products: Sequence[item_pb2.Product]) -> list[WriteResult]:
        sent.append([product.product_id for product in products])
        return [WriteResult(product_id=product.product_id, error=None) for product in products]

    report = write_rows(rows, partial(product_message, field="row"), send, max_rows=9, max_bytes=100)
    assert (sent, report.done) == ([["b"]], 1)
    assert "line 1, 'a': 206 bytes; the server takes up to 100 at once" in capsys.readouterr().err


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
        (["search", "--text", "a", "--filter", "price"], "queries[0].filter: 'price' is no condition; give name=value"),
        (["search", "--text", "a", "--collection", "winter"], "NOT_FOUND: collection: 'winter' is not there"),
        (["delete", "--product-id", "a"], "FAILED_PRECONDITION: collection: this server only reads"),
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


@pytest.mark.parametrize("arguments", [[], ["upsert"], ["delete"], ["search", "--k", "many"]])
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
