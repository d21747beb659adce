"""The sample shop holds what it says, draws the same for the same seed, and is read as it was planted."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from item.catalog.listing import Listing
from item.catalog.reader import Catalog, read_catalog
from item.errors import ConfigError
from training.sample_shop.__main__ import main
from training.sample_shop.leaves import LEAVES
from training.sample_shop.listings import BROKEN_KINDS, MAX_OFFERS, MIN_OFFERS
from training.sample_shop.photos import UNTURN, Photo, plan_photo, retake, take
from training.sample_shop.products import Product, make_product, twin_of
from training.sample_shop.shop import SUMMARY_FILE, FileFormat, ShopConfig, write_shop
from training.sample_shop.words import misspell, reword

SMALL = ShopConfig(products=len(LEAVES))
READ_BY_PICTURE = {"missing_picture", "not_a_picture", "truncated_picture"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample shop of the default size: ten seconds of one core, so all tests share it."""
    folder = tmp_path_factory.mktemp("sample") / "shop"
    assert main(["--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def small_shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "small"
    write_shop(folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def planted(shop: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((shop / SUMMARY_FILE).read_text())
    return summary


@pytest.fixture(scope="module")
def catalog(shop: Path) -> Catalog:
    return read_catalog(shop)


def intact(catalog: Catalog) -> list[Listing]:
    return [listing for listing in catalog.listings if not listing.product_id.startswith("broken")]


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_is_large_enough_for_the_demo(catalog: Catalog) -> None:
    listings = intact(catalog)
    offers = Counter(listing.group_id for listing in listings)
    assert len(listings) >= 1000
    assert len(offers) >= 200
    assert len({listing.category for listing in listings if listing.category}) == len(LEAVES) >= 20
    assert {len(listing.category) for listing in listings} == {0, 2, 3}
    assert (min(offers.values()), max(offers.values())) == (MIN_OFFERS, MAX_OFFERS)
    assert all({"colour", "price", "in_stock"} <= listing.attributes.keys() for listing in listings)


def test_says_what_was_planted(catalog: Catalog, planted: dict[str, Any]) -> None:
    listings = intact(catalog)
    assert planted["listings"] == len(listings)
    assert planted["rows"] == len(listings) + len(planted["broken"]) == pq.read_metadata(catalog.path).num_rows
    assert planted["products"] == len({listing.group_id for listing in listings})
    assert planted["splits"] == Counter(listing.split for listing in listings)
    missing = {
        "title": sum(not listing.title for listing in listings),
        "description": sum(not listing.description for listing in listings),
        "image": sum(not listing.images for listing in listings),
        "category": sum(not listing.category for listing in listings),
    }
    assert planted["missing"] == missing
    assert min(missing.values()) > 0


def test_reader_refuses_the_planted_rows_and_no_others(catalog: Catalog, planted: dict[str, Any]) -> None:
    assert {row["kind"] for row in planted["broken"]} == set(BROKEN_KINDS)
    expected = {
        (row["line"], row["product_id"], row["field"])
        for row in planted["broken"]
        if row["kind"] not in READ_BY_PICTURE
    }
    assert {(row.line, row.product_id, row.field) for row in catalog.refused} == expected


def test_pictures_open_except_the_planted_ones(catalog: Catalog, planted: dict[str, Any]) -> None:
    unreadable, formats, sizes = set(), Counter[str | None](), []
    for listing in catalog.listings:
        for picture in listing.images:
            assert picture.path is not None
            try:
                with Image.open(picture.path) as image:
                    image.load()
                    formats[image.format] += 1
                    sizes.append(image.size)
            except OSError:
                unreadable.add(listing.product_id)
    assert unreadable == {row["product_id"] for row in planted["broken"] if row["kind"] in READ_BY_PICTURE}
    assert set(formats) == {"JPEG", "PNG"}
    assert 96 <= np.min(sizes) < 120
    assert 380 < np.max(sizes) <= 400


def test_splits_are_by_product(catalog: Catalog) -> None:
    splits: dict[str | None, set[str | None]] = {}
    for listing in intact(catalog):
        splits.setdefault(listing.group_id, set()).add(listing.split)
    assert all(len(names) == 1 for names in splits.values())
    assert {name for names in splits.values() for name in names} == {"train", "val", "test"}


def test_offers_answer_the_val_and_test_listings(shop: Path, catalog: Catalog) -> None:
    offers = read_catalog(shop / "offers", name="offers")
    asked = {row.product_id: row for row in intact(catalog) if row.split != "train"}
    assert not offers.refused
    assert sorted(str(offer.group_id) for offer in offers.listings) == sorted(asked)
    pictures = 0
    for offer in offers.listings:
        original = asked[str(offer.group_id)]
        assert (offer.category, offer.split) == (original.category, original.split)
        assert bool(offer.images) == bool(original.images)
        assert offer.attributes["held"] is False
        if offer.images and offer.images[0].path and original.images[0].path:
            assert offer.images[0].path.read_bytes() != original.images[0].path.read_bytes()
            pictures += 1
    assert pictures > 200
    assert sum(offer.title != asked[str(offer.group_id)].title for offer in offers.listings) > 0.9 * len(asked)


def test_near_twins_differ_in_one_attribute(planted: dict[str, Any]) -> None:
    differences: Counter[str] = Counter()
    for number in range(260):
        original = twin_of(number)
        if original is None:
            continue
        a, b = make_product(0, original), make_product(0, number)
        names = [field.name for field in fields(Product) if field.name != "number"]
        differing = [name for name in names if getattr(a, name) != getattr(b, name)]
        assert len(differing) == 1
        assert number > 100 or a.drawn().tobytes() != b.drawn().tobytes()
        differences.update(differing)
    assert planted["near_twins"] == differences
    assert set(differences) == {"colour", "pattern"}


def test_offers_of_a_product_have_their_own_words_and_pictures(catalog: Catalog) -> None:
    by_product: dict[str | None, list[Listing]] = {}
    for listing in intact(catalog):
        by_product.setdefault(listing.group_id, []).append(listing)
    for listings in by_product.values():
        titles = [listing.title for listing in listings if listing.title]
        pictures = [picture.path.read_bytes() for row in listings for picture in row.images if picture.path]
        assert len(set(titles)) == len(titles)
        assert len(set(pictures)) == len(pictures)
        assert len({listing.attributes["seller"] for listing in listings}) == len(listings)


def test_every_leaf_has_a_drawing_of_its_own() -> None:
    outlines = set()
    for number, leaf in enumerate(LEAVES):
        product = make_product(0, number)
        assert product.leaf is leaf
        for form in leaf.forms:
            outlines.add(replace(product, form=form).drawn().getchannel("A").resize((32, 32)).tobytes())
    assert len(outlines) >= len(LEAVES) * 3 // 2  # some forms differ inside the outline only


def test_same_seed_same_bytes_whatever_the_hash_seed(small_shop: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training.sample_shop", "--products", str(SMALL.products), "--output"]
    subprocess.run([*command, tmp_path / "again"], check=True, env=os.environ | {"PYTHONHASHSEED": "1"})
    assert digests(tmp_path / "again") == digests(small_shop)


def test_another_seed_is_another_shop_and_replaces_the_old_one(small_shop: Path, tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / SUMMARY_FILE).touch()
    (shop / "leftover").touch()
    write_shop(shop, replace(SMALL, seed=1))
    assert not (shop / "leftover").exists()
    ours, others = set(digests(small_shop).values()), set(digests(shop).values())
    assert len(ours & others) <= 1  # the file that is no picture, whatever the seed


def test_keeps_a_folder_that_is_no_sample_shop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").touch()
    assert main(["--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: output: ")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("file_format", ["jsonl", "csv"])
def test_other_formats_read_the_same(small_shop: Path, tmp_path: Path, file_format: FileFormat) -> None:
    planted = write_shop(tmp_path / "other", replace(SMALL, format=file_format))
    expected, read = read_catalog(small_shop), read_catalog(tmp_path / "other")

    def facts(listing: Listing) -> tuple[object, ...]:
        attributes = {name: str(value).lower() for name, value in listing.attributes.items()}
        references = [picture.reference for picture in listing.images]
        return listing.product_id, listing.title, listing.description, references, listing.category, attributes

    assert list(map(facts, read.listings)) == list(map(facts, expected.listings))
    lines = {(row["line"], row["field"]) for row in planted["broken"] if row["kind"] not in READ_BY_PICTURE}
    assert {(row.line, row.field) for row in read.refused} == lines


@pytest.mark.parametrize(("field", "value"), [("products", 25), ("products", -1), ("format", "xlsx")])
def test_bad_configuration_is_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{field}: .*{value}"):
        ShopConfig(**{field: value})


def test_turned_pictures_stand_upright_for_readers_of_the_tag() -> None:
    drawing = make_product(0, 3).drawn()
    base = replace(plan_photo(Random(1)), background="plain", noise=0, quality=95, orientation=1, width=300, height=200)
    upright = _pixels(base, drawing)
    for orientation in UNTURN:
        turned = Image.open(io.BytesIO(take(replace(base, orientation=orientation), drawing)))
        assert turned.size == ((300, 200) if orientation == 3 else (200, 300))
        assert np.abs(_pixels(replace(base, orientation=orientation), drawing) - upright).mean() < 3
        assert np.abs(np.asarray(turned.resize((300, 200)), np.float32) - upright).mean() > 10


def _pixels(photo: Photo, drawing: Image.Image) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(take(photo, drawing)))), np.float32)


def test_each_retake_changes_the_picture() -> None:
    drawing = make_product(0, 0).drawn()
    photo = replace(plan_photo(Random(2)), background="transparent")
    files = {take(photo, drawing)} | {
        take(retake(photo, family, Random(0)), drawing)
        for family in ("crop", "flip_light", "background", "small_on_canvas", "jpeg_blur")
    }
    assert len(files) == 6


def test_rewording_keeps_what_it_promises() -> None:
    title = "Varnello Kalomi teapot emerald striped porcelain"
    assert sorted(reword(title, "reorder", Random(0)).split()) == sorted(title.split())
    assert reword(title, "shout", Random(0)) == title.upper() + "!!"
    assert set(reword(title, "drop", Random(0)).split()) < set(title.split())
    misspelt = {misspell(title, Random(seed)) for seed in range(20)}
    assert all(len(text.split()) == len(title.split()) for text in misspelt)
    assert len(misspelt) > 10
    assert misspell("a mug", Random(0)) == "a mug"


def test_without_pictures_in_several_files(small_shop: Path, tmp_path: Path) -> None:
    """The words are the same, and the planted rows are refused where they are said to be."""
    with_pictures = {one.product_id: one for one in read_catalog(small_shop).listings}
    large = tmp_path / "large"
    planted = write_shop(large, replace(SMALL, pictures=False, rows_a_file=40))
    catalog = read_catalog(large)
    assert [file.name for file in catalog.files] == [f"catalog-{i:05}.parquet" for i in range(len(catalog.files))]
    assert len(catalog.files) > 2
    counts = [pq.read_metadata(file).num_rows for file in catalog.files]
    assert set(counts[:-1]) == {40}
    assert sum(counts) == planted["rows"]
    assert not (large / "images").exists()
    for listing in catalog.listings:
        other = with_pictures[listing.product_id]
        assert not listing.images
        assert listing.title
        assert (listing.title, listing.description) == (other.title, other.description) or not other.title
    expected = {(row["file"], row["line"], row["product_id"], row["field"]) for row in planted["broken"]}
    assert {(row.file, row.line, row.product_id, row.field) for row in catalog.refused} == expected
    assert len(expected) == len(set(BROKEN_KINDS) - READ_BY_PICTURE)
    offers = Counter(listing.group_id for listing in catalog.listings)
    assert planted["offers_a_product"] == {str(n): count for n, count in sorted(Counter(offers.values()).items())}
    assert planted["products"] == len(offers)
