"""The sample shop's rows: sellers' listings of each product, further offers of them, and rows broken on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from random import Random
from typing import get_args

from PIL import Image

from training.sample_shop.photos import Photo, PictureFamily, plan_photo, retake, take
from training.sample_shop.products import Product, make_product, split_of
from training.sample_shop.words import SELLERS, TITLES, Seller, WordsFamily, reword, write_words

Row = dict[str, str | float | bool | None]

MIN_OFFERS, MAX_OFFERS = 3, 6  # listings of one product
FILES_A_FOLDER = 1000  # products

# What is planted in the catalogue to be refused, with the field at fault: the first four by the reader, the others when
# the picture is opened.
BROKEN_KINDS = {
    "missing_id": "product_id",
    "duplicate_id": "product_id",
    "no_content": "title",
    "bad_category": "category",
    "missing_picture": "image",
    "not_a_picture": "image",
    "truncated_picture": "image",
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row and its picture's file, to be written at row["image"]; `broken` names the kind if it is to be refused."""

    row: Row
    picture: bytes | None
    broken: str | None = None


def listings_of(seed: int, number: int, *, pictures: bool = True) -> Iterator[tuple[Entry, Entry | None]]:
    """The listings of product `number`, each with its further offer where the product is of val or test.

    Without pictures they have the same words, and those that have none otherwise have theirs.
    """
    product, split = make_product(seed, number), split_of(seed, number)
    drawing = product.drawn() if pictures else None
    rng = Random(f"{seed}/offers/{number}")
    sellers = rng.sample(SELLERS, rng.randint(MIN_OFFERS, MAX_OFFERS))
    for position, (seller, order) in enumerate(zip(sellers, rng.sample(TITLES, len(sellers)), strict=True)):
        own = Random(f"{seed}/listing/{number}/{position}")
        photo = plan_photo(own)
        words = write_words(product, seller, order, own)
        row = _row(product, seller, words, split, f"{number:06d}-{position}", photo, own)
        if not pictures:
            row |= {"image": None} | ({"title": words[0], "description": words[1]} if row["title"] is None else {})
        offer = _offer(row, product, photo, drawing, own) if split != "train" else None
        yield Entry(row=row, picture=take(photo, drawing) if drawing and row["image"] else None), offer


def _row(
    product: Product, seller: Seller, words: tuple[str, str], split: str, product_id: str, photo: Photo, rng: Random
) -> Row:
    # What is missing: mostly the description, now and then the picture, the words, or the category.
    missing = rng.choices(("", "description", "image", "words"), (83, 11, 4, 2))[0]
    return {
        "product_id": product_id,
        "group_id": product.group_id,
        "title": None if missing == "words" else words[0],
        "description": None if missing in ("words", "description") else words[1],
        "image": None if missing == "image" else _picture_path(product.number, product_id, photo),
        "category": None if rng.random() < 0.03 else product.leaf.category,
        "language": "en",
        "split": split,
        "seller": seller.name,
        "brand": product.brand if rng.random() < 0.9 else None,
        "colour": product.colour,
        "pattern": product.pattern,
        "material": product.material if rng.random() < 0.8 else None,
        "price": round(product.price * rng.uniform(0.85, 1.2), 2),
        "in_stock": rng.random() < 0.85,
    }


def _picture_path(number: int, name: str, photo: Photo) -> str:
    return f"images/{number // FILES_A_FOLDER:04d}/{name}{photo.suffix}"


def _offer(row: Row, product: Product, photo: Photo, drawing: Image.Image | None, rng: Random) -> Entry:
    """One more offer of a listing: the same words and picture, each changed in one way."""
    words_family: WordsFamily = rng.choice(get_args(WordsFamily))
    picture_family: PictureFamily = rng.choice(get_args(PictureFamily))
    other = retake(photo, picture_family, rng)
    offer_id = f"offer-{row['product_id']}"
    offer: Row = {
        "product_id": offer_id,
        "group_id": row["product_id"],
        "title": reword(str(row["title"]), words_family, rng) if row["title"] else None,
        "description": reword(str(row["description"]), words_family, rng) if row["description"] else None,
        "image": _picture_path(product.number, offer_id, other) if row["image"] else None,
        "category": row["category"],
        "language": row["language"],
        "split": row["split"],
        "picture_family": picture_family,
        "words_family": words_family,
        "held": False,
    }
    return Entry(row=offer, picture=take(other, drawing) if drawing and row["image"] else None)


def broken_entry(kind: str, like: Entry) -> Entry:
    """A row like an intact one, which has what `kind` breaks: words, a category and, where it takes one, a picture."""
    name = f"broken-{kind.replace('_', '-')}"
    row = like.row | {"product_id": name, "group_id": None, "split": "train"}
    picture = like.picture
    if picture is not None:
        row["image"] = f"images/{name}{PurePosixPath(str(like.row['image'])).suffix}"
    if kind == "missing_id":
        row["product_id"] = None
    elif kind == "duplicate_id":
        row["product_id"] = like.row["product_id"]
    elif kind == "no_content":
        row |= {"title": None, "description": None, "image": None}
    elif kind == "bad_category":
        row["category"] = "Home//Mugs"
    elif kind == "not_a_picture":
        picture = b"<html><body>404 Not Found</body></html>\n"
    elif kind == "truncated_picture" and picture is not None:
        picture = picture[: len(picture) // 2]
    return Entry(row=row, picture=None if kind in ("missing_picture", "no_content") else picture, broken=kind)
