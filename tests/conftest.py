"""What many tests share: a small catalogue with drawn pictures, and a small real model on it, with random weights."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image

from item.catalog.listing import Listing, Picture
from item.model.config import ItemConfig
from item.model.encoder import ITEm
from item.preprocessing.preprocessor import Preprocessor, PreprocessorConfig
from item.preprocessing.words import train_tokenizer

torch.set_num_threads(1)  # the models of the tests are too small for more, and machines are shared
hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "black": (20, 20, 20)}
KINDS = ("shirt", "mug", "chair")


def picture_bytes(seed: int, colour: tuple[int, int, int], size: tuple[int, int] = (90, 70)) -> bytes:
    """A PNG: a coloured rectangle on white with a little noise."""
    noise = np.random.default_rng(seed).integers(0, 40, (size[1], size[0], 3))
    pixels = np.clip(np.full((size[1], size[0], 3), 255) - noise, 0, 255)
    pixels[10:50, 20:60] = colour
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def listings() -> list[Listing]:
    """48 listings of 24 products in 3 categories: some without words, some without a picture."""
    made = []
    for i in range(48):
        kind, (name, colour) = KINDS[i % 3], list(COLOURS.items())[i // 2 % 4]
        has_words, has_picture = i % 7 != 3, i % 5 != 4 or i % 7 == 3
        made.append(
            Listing(
                product_id=f"p{i}",
                title=f"{name} {kind} number {i // 2}" if has_words else "",
                description=f"a very fine {kind} for every day, in {name}" if has_words and i % 2 else "",
                images=(Picture(data=picture_bytes(i, colour), reference=f"{i}.png"),) if has_picture else (),
                category=("shop", kind),
                group_id=f"g{i // 2}",
                split="train" if i < 36 else "val" if i < 40 else "test",
            )
        )
    return made


@pytest.fixture(scope="session")
def catalog_folder(listings: list[Listing], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The listings as catalog.jsonl with picture files."""
    folder = tmp_path_factory.mktemp("catalog")
    with (folder / "catalog.jsonl").open("w", encoding="utf-8") as file:
        for listing in listings:
            row = {name: getattr(listing, name) for name in ("product_id", "title", "description", "group_id", "split")}
            row["category"] = "/".join(listing.category)
            for picture in listing.images:
                assert picture.data is not None
                (folder / picture.reference).write_bytes(picture.data)
                row["image"] = picture.reference
            file.write(json.dumps(row) + "\n")
    return folder


@pytest.fixture(scope="session")
def preprocessor(listings: list[Listing]) -> Preprocessor:
    """12 words of a vocabulary trained on the listings, pictures of 32 px."""
    texts = [text for listing in listings for text in (listing.title, listing.description) if text]
    return Preprocessor(PreprocessorConfig(max_words=12, picture_size=32), train_tokenizer(texts, vocab_size=200))


@pytest.fixture(scope="session")
def tiny_config(preprocessor: Preprocessor) -> ItemConfig:
    """Width 32, 2 layers, 16 cells of 8 px."""
    return ItemConfig(
        vocab_size=preprocessor.vocab_size,
        cls_id=preprocessor.cls_id,
        sep_id=preprocessor.sep_id,
        width=32,
        num_layers=2,
        num_heads=4,
        mlp_width=64,
        max_words=12,
        picture_size=32,
        patch_size=8,
        vector_width=32,
    )


@pytest.fixture
def tiny_model(tiny_config: ItemConfig) -> ITEm:
    """A model with random weights, the same in every test. Weights are larger than at the start of a training, so
    that attention is far from uniform and a wrong mask or position shows."""
    torch.manual_seed(0)
    model = ITEm(tiny_config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def model_folder(tiny_config: ItemConfig, preprocessor: Preprocessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with random weights."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    ITEm(tiny_config).save_pretrained(folder)
    preprocessor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def milvus_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A file that Milvus Lite serves from this process."""
    for module in ("pymilvus", "milvus_lite"):
        pytest.importorskip(module, reason="needs Milvus Lite: pip install 'item-embeddings[milvus-lite]'")
    from milvus_lite import server_manager_instance

    path = tmp_path_factory.mktemp("milvus") / "milvus.db"
    yield str(path)
    server_manager_instance.release_server(str(path))
