"""The whole way on a small catalogue: trained, indexed, served and searched, with one vector a listing throughout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deploy.server import main as serve
from index.build import main as build
from index.store import Store
from item import Client, Input
from item.catalog.listing import Listing
from item.catalog.reader import read_catalog
from item.engine import Engine, load_engine
from tests.deploy.serving import Hosting
from training.evaluate import main as evaluate
from training.pretrain import main as pretrain

CONFIG = """
model: {width: 32, num_layers: 2, num_heads: 4, mlp_width: 64, vocab_size: 200, max_words: 12, picture_size: 32,
        patch_size: 8, vector_width: 32}
start: {words: null, stem_weights: null}
run: {batch_size: 12, steps: 10}
"""
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folders(catalog_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A trained model and its index."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "config.yaml").write_text(CONFIG)
    catalog, model, index = str(catalog_folder), folder / "model", folder / "index"
    assert pretrain(["--config", str(folder / "config.yaml"), "--catalog", catalog, "--output", str(model)]) == 0
    assert build(["--model", str(model), "--catalog", catalog, "--index", str(index), "--shard-rows", "7"]) == 0
    return model, index


@pytest.fixture(scope="module")
def engine(folders: tuple[Path, Path]) -> Engine:
    return load_engine(folders[0], "cpu")


@pytest.fixture(scope="module")
def client(folders: tuple[Path, Path], engine: Engine) -> Iterator[Client]:
    hosting = Hosting()
    server = hosting.serve(engine, folders[1], read_only=True)
    with Client(f"127.0.0.1:{server.port}") as client:
        yield client
    hosting.close()


def as_input(listing: Listing) -> Input:
    """A listing as a caller of the service gives it."""
    image = listing.images[0].path if listing.images else None
    return Input(text=listing.title, description=listing.description, image=image)


@pytest.mark.slow
def test_library_job_and_service_agree(
    folders: tuple[Path, Path], engine: Engine, client: Client, catalog_folder: Path
) -> None:
    listings = read_catalog(catalog_folder).listings
    library = engine.encode(listings).vectors
    store = Store.open(folders[1] / "default")
    stored = [store.vector(listing.product_id) for listing in listings]
    assert len(store) == len(listings)
    np.testing.assert_allclose(np.array(stored), library, atol=TOLERANCE)
    served = client.embed([as_input(listing) for listing in reversed(listings)])
    assert served.space == engine.space == store.about.space
    np.testing.assert_allclose(served.vectors[::-1], library, atol=TOLERANCE)
    assert np.abs(np.diff(library, axis=0)).max(axis=1).min() > TOLERANCE  # neighbours do differ


@pytest.mark.slow
def test_each_listing_finds_itself(client: Client, catalog_folder: Path) -> None:
    listings = read_catalog(catalog_folder).listings
    for listing in listings[:6]:
        embedded = client.embed([as_input(listing)])
        [result] = client.search(vector=embedded.vectors[0], space=embedded.space, k=3)
        assert result.hits[0].product_id == listing.product_id
        assert result.hits[0].score == pytest.approx(1, abs=1e-4)
    [prediction] = client.predict([as_input(listings[0])], top_k=1)
    assert prediction.paths[0].category[0] == "shop"


@pytest.mark.slow
def test_the_model_is_evaluated(folders: tuple[Path, Path], catalog_folder: Path, tmp_path: Path) -> None:
    arguments = ["--model", str(folders[0]), "--catalog", str(catalog_folder), "--report", str(tmp_path)]
    assert evaluate([*arguments, "--no-baselines"]) == 0
    assert (tmp_path / "evaluation.json").is_file()
    assert (tmp_path / "evaluation.md").is_file()


def test_the_server_refuses_an_index_of_another_model(
    folders: tuple[Path, Path], model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve(["--model", str(model_folder), "--index", str(folders[1]), "--port", "0"]) == 2
    assert "space" in capsys.readouterr().err
