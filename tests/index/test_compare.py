"""The table of indexes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index.compare import compare, main
from index.store import Store
from tests.index.conftest import about, product, random_vectors

WIDTH = 16


def test_each_kind_with_its_recall_and_size() -> None:
    vectors = random_vectors(3000, WIDTH)
    flat, *others = compare(vectors[:-64], vectors[-64:], 0.9)
    assert (flat.kind, flat.recall, flat.bytes_per_row) == ("Flat", 1.0, 4 * WIDTH)
    assert [one.kind.split(",")[-1] for one in others] == ["SQfp16", "SQ8", "SQ8", "RaBitQfs"]
    assert all(one.recall >= 0.85 for one in others[:3])
    sizes = [one.bytes_per_row for one in others]
    assert sizes[0] - sizes[1] == pytest.approx(WIDTH, rel=0.1)
    assert sizes[1] > max(sizes[2:])
    assert all(one.batch_ms > 0 for one in [flat, *others])


def test_the_command_marks_what_the_store_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = random_vectors(600, WIDTH)
    blocks = [([product(f"p{row}") for row in range(600)], vectors)]
    with Store.create(tmp_path / "default", about(WIDTH), blocks) as store:
        store.delete(["p7"])
        assert main(["--index", str(tmp_path), "--rows", "400", "--recall", "0.8"]) == 0  # beside who writes
    first, header, flat, *others = capsys.readouterr().out.splitlines()
    assert first == "400 vectors of width 16, 59 queries in batches of 32"
    assert header.split()[:2] == ["index", "recall@10"]
    assert flat.split()[:2] == ["*", "Flat"]
    assert len(others) == 4
    assert not any(line.startswith("*") for line in others)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--collection", "x"], "collection: 'x' is not there"),
        (["--recall", "1.5"], "recall: 1.5"),
        (["--rows", "5"], "rows: 5 is below 90"),
        (["--bytes-per-row", "0"], "bytes_per_row: 0 is below 1"),
        ([], "30 products; at least 100 are needed"),
    ],
)
def test_what_cannot_be_compared(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    products, vectors = [product(f"p{row}") for row in range(30)], np.asarray(random_vectors(30))
    Store.create(tmp_path / "default", about(), [(products, vectors)]).close()
    assert main(["--index", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err
