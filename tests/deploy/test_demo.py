"""The demo's stages: a failed one stops it, the check is compared with what was planted, and searches become cards."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from deploy import demo
from deploy.demo import DemoError, Stages, category_table, claim_folder, compare_check, evaluation_tables, free_port
from deploy.demo_searches import NUM_HITS, NUM_OFFERS, WORDS, ask, choose_offers
from item.catalog.reader import read_catalog
from item.client import Client
from item.engine.loading import load_engine
from item.errors import ConfigError
from item.evaluation.bootstrap import Interval
from tests.deploy.serving import Hosting, write_index
from training import check
from training.adapt_report import Row
from training.sample_shop.leaves import LEAVES
from training.sample_shop.shop import ShopConfig, write_shop


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo's folder up to the check, with a small shop."""
    folder = tmp_path_factory.mktemp("demo")
    write_shop(folder / "shop", ShopConfig(products=3 * len(LEAVES) // 2))
    reports = ["--refused", str(folder / "refused.jsonl"), "--json", str(folder / "check.json")]
    assert check.main(["--catalog", str(folder / "shop"), *reports]) == 0
    return folder


@pytest.fixture(scope="module")
def client(output: Path, model_folder: Path, hosting: Hosting) -> Iterator[Client]:
    """A client of a server over the shop, by a model with random weights."""
    engine = load_engine(model_folder, "cpu")
    write_index(output / "index", engine, read_catalog(output / "shop").listings[:60])
    server = hosting.serve(engine, output / "index")
    with Client(f"127.0.0.1:{server.port}") as client:
        yield client


def test_a_command_is_shown_run_and_timed(capfd: pytest.CaptureFixture[str]) -> None:
    stages = Stages()
    stages.run("python", "-c", "print('made', 1 + 1)")
    shown = capfd.readouterr().out.splitlines()
    assert shown[1:3] == ["$ python -c 'print('\"'\"'made'\"'\"', 1 + 1)'", "made 2"]
    assert [stage.command for stage in stages.done] == [shown[1].removeprefix("$ ")]
    assert 0 < stages.done[0].seconds < 30


def test_a_failed_command_stops_the_demo() -> None:
    stages = Stages()
    with pytest.raises(DemoError, match=r"`python -c 'raise SystemExit\(3\)'` ended with status 3"):
        stages.run("python", "-c", "raise SystemExit(3)")
    assert stages.done == []


def test_item_is_run_from_the_checkout(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DemoError, match="`item info --server localhost:1` ended with status 2"):
        Stages().run("item", "info", "--server", "localhost:1")
    assert "error: UNAVAILABLE" in capfd.readouterr().err


def test_a_server_is_started_asked_and_stopped(output: Path, client: Client, model_folder: Path) -> None:
    port, stages, log = free_port(), Stages(), output / "server.log"
    words = ("python", "-m", "deploy.server", "--model", model_folder, "--index", output / "index", "--port", port)
    with stages.serve(*words, address=f"127.0.0.1:{port}", log=log) as own:
        assert own.info().space == client.info().space
    assert "stopped" in log.read_text()
    assert [stage.command.split()[-2:] for stage in stages.done] == [[str(port), "&"]]
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_server_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    port = free_port()
    words = ("python", "-m", "deploy.server", "--model", tmp_path / "nothing", "--port", port)
    with (
        pytest.raises(DemoError, match=r"(?s)did not come up.*it said:.*error: .*nothing"),
        Stages().serve(*words, address=f"127.0.0.1:{port}", log=tmp_path / "server.log"),
    ):
        pytest.fail("the server came up without a model")


def test_check_is_compared_with_what_was_planted(output: Path) -> None:
    counts, refused = compare_check(output)
    assert all(planted == counted for _, planted, counted in counts.rows)
    assert len(refused.rows) == 7
    assert all(reason for *_, reason in refused.rows)


def test_a_check_that_misses_something_stops_the_demo(output: Path, tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    for name in ("shop/sample_shop.json", "check.json", "refused.jsonl"):
        (tmp_path / name).write_bytes((output / name).read_bytes())
    lines = (tmp_path / "refused.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "refused.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(DemoError, match="other than was planted: refused rows"):
        compare_check(tmp_path)


def test_searches_and_predictions_become_cards(output: Path, client: Client) -> None:
    catalog, offers = read_catalog(output / "shop"), read_catalog(output / "shop" / "offers", "offers")
    searches, predictions = ask(client, catalog, offers, "shop")
    assert [len(queries) for queries in searches.values()] == [len(WORDS) + NUM_OFFERS, NUM_OFFERS, NUM_OFFERS]
    for name, queries in searches.items():
        for query in queries:
            assert len(query.hits) == NUM_HITS
            scores = [hit.score or 0 for hit in query.hits]
            assert scores == sorted(scores, reverse=True)
            assert bool(query.asked.picture) == ("picture" in name)
            assert bool(query.asked.title) == ("words" in name)
            pictures = [card.picture for card in (query.asked, *query.hits) if card.picture]
            assert all((output / picture).is_file() for picture in pictures)
    assert len(predictions) == NUM_OFFERS
    categories = {"/".join(listing.category) for listing in catalog.listings}
    for prediction in predictions:
        assert {path for path, _ in prediction.paths} <= categories
        assert 1 <= len(prediction.paths) <= 3


def test_hits_of_the_offered_product_are_marked(output: Path, client: Client) -> None:
    catalog, offers = read_catalog(output / "shop"), read_catalog(output / "shop" / "offers", "offers")
    indexed = [listing for listing in catalog.listings[:60] if listing.title and listing.images and listing.category]
    # An "offer" that is a listing of the index itself finds at least itself.
    twins = [replace(listing, group_id=listing.product_id, split="test") for listing in indexed]
    searches, _ = ask(client, catalog, replace(offers, listings=twins[: 4 * NUM_OFFERS]), "shop")
    for query in searches["By words and picture"]:
        assert query.has_answer
        assert any(hit.same for hit in query.hits)
        assert not all(hit.same for hit in query.hits)
    assert not any(hit.same for query in searches["By words"][: len(WORDS)] for hit in query.hits)


def test_offers_are_chosen_whole_and_from_many_categories(output: Path) -> None:
    offers = read_catalog(output / "shop" / "offers", "offers").listings
    chosen = choose_offers(offers)
    assert [len(part) for part in chosen] == [NUM_OFFERS] * 4
    flat = [offer for part in chosen for offer in part]
    assert len({offer.product_id for offer in flat}) == 4 * NUM_OFFERS
    assert all(offer.title and offer.images and offer.category for offer in flat)
    possible = len({offer.category for offer in offers if offer.category})
    assert len({offer.category for offer in flat}) >= min(possible, 4 * NUM_OFFERS) - 1


def test_evaluation_is_a_table_for_each_task(tmp_path: Path) -> None:
    def result(task: str, inputs: str, measure: str, value: float, subset: str = "all") -> dict[str, Any]:
        interval = {"value": value, "low": value - 0.1, "high": value + 0.1}
        return {"system": "ITEm", "inputs": inputs, "task": task, "measure": measure, "subset": subset, **interval}

    results = [
        result("same product", "words", "recall@1", 0.5),
        result("same product", "words", "MRR", 0.6),
        result("same product", "both", "recall@1", 0.7),
        result("same product", "both", "MRR", 0.8),
        result("same product", "both", "MRR", 0.1, subset="held"),
        result("leaf category", "both", "accuracy", 0.9),
    ]
    (tmp_path / "evaluation.json").write_text(json.dumps({"results": results}))
    tables = evaluation_tables(tmp_path)
    assert list(tables) == ["same product", "leaf category"]
    assert tables["same product"].columns == ["inputs", "recall@1", "MRR"]
    assert tables["same product"].rows[1] == ["both", "0.700 [0.600, 0.800]", "0.800 [0.700, 0.900]"]


def test_categories_are_a_row_for_each_system_and_input(tmp_path: Path) -> None:
    row = Row(
        system="adapters",
        modality="both",
        accuracy=Interval(value=0.9, low=0.85, high=0.95),
        gain=None,
        macro_f1=0.8,
        top_accuracy=1.0,
        calibration_error=0.0123,
        abstained=0.0,
        count=40,
    )
    (tmp_path / "adaptation.json").write_text(json.dumps({"rows": [asdict(row)]}))
    (table,) = category_table(tmp_path).values()
    assert table.rows == [["adapters", "both", "0.900 [0.850, 0.950]", "0.800", "0.012"]]
    assert len(table.columns) == 5


def test_an_older_demo_is_replaced_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    claim_folder(folder)
    (folder / "leftover").touch()
    claim_folder(folder)
    assert [path.name for path in folder.iterdir()] == [demo.MARKER]
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ConfigError, match=r"output: .* was not made by the demo"):
        claim_folder(tmp_path)
    assert demo.main(["--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: output: ")
    assert (tmp_path / "thesis.txt").exists()
