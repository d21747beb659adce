"""What the sample shop's sellers write: the same product in their own words, with boilerplate and misspellings."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from training.sample_shop.leaves import COLOURS, PATTERN_WORDS
from training.sample_shop.products import Product

MISSPELT_SHARE = 0.12  # of the titles have one misspelt word

WordsFamily = Literal["reorder", "drop", "misspell", "shout"]


@dataclass(frozen=True, kw_only=True)
class Seller:
    """A seller of the shop: `title` and `sentence` are filled with a product's words, `boilerplate` stays as it is."""

    name: str
    title: str
    sentence: str
    boilerplate: str = ""
    shouts: bool = False


SELLERS = (
    Seller(
        name="Nordwick Outlet",
        title="{brand} {model} {noun} {colour} {pattern}",
        sentence="{model}: {form} {noun}, {material}, ideal for {use}.",
        boilerplate="Fast dispatch from our own warehouse.",
    ),
    Seller(
        name="Casa Brillo",
        title="{colour} {pattern} {noun} by {brand}, {material}",
        sentence="{colour} {noun} with {second} details, size {size}.",
        boilerplate="Free returns within 30 days.",
    ),
    Seller(
        name="megadealz",
        title="new {brand} {noun} {form} {colour} {size} top price",
        sentence="buy {noun} {brand} {model} {colour} online now, limited stock",
        boilerplate="best price guaranteed!!! order today",
        shouts=True,
    ),
    Seller(
        name="Petit Comptoir",
        title="{noun} {model}, {pattern} {material}, {colour} and {second}",
        sentence="Our favourite {noun} for {use}: {material}, {form}, carefully finished.",
    ),
    Seller(
        name="Harbour Goods",
        title="{brand} {form} {noun} - {size} - {colour}",
        sentence="{brand} is known for {material}: meet the {form} {noun}.",
        boilerplate="Sold and shipped by Harbour Goods. Two-year warranty.",
    ),
    Seller(
        name="Lumen & Sons",
        title="{model} {material} {noun} ({colour}, {size})",
        sentence="Colour: {colour}. Second colour: {second}. Material: {material}. Size: {size}. Style: {form}.",
    ),
    Seller(
        name="trendbazaar",
        title="{pattern} {noun} {colour} {second} {form} for {use}",
        sentence="Everybody will love the {pattern} {noun}! A perfect gift and a great choice for {use}.",
        boilerplate="Follow our shop for weekly offers and vouchers.",
    ),
    Seller(
        name="Alma Trading",
        title="{brand} {model} {size} {noun} in {colour}",
        sentence="Original {brand} {noun}, model {model}, {colour} with {second}.",
        boilerplate="All pictures show the original item. Colours may differ slightly on your screen.",
    ),
)


def write_words(product: Product, seller: Seller, rng: Random) -> tuple[str, str]:
    """(title, description) of a seller's offer."""
    words = {
        "brand": product.brand,
        "model": product.model,
        "noun": rng.choice(product.leaf.nouns),
        "colour": rng.choice(COLOURS[product.colour][1]),
        "second": rng.choice(COLOURS[product.second_colour][1]),
        "pattern": rng.choice(PATTERN_WORDS[product.pattern]),
        "form": product.form,
        "material": product.material,
        "size": product.size,
        "use": rng.choice(product.leaf.uses),
    }
    title = " ".join(seller.title.format(**words).split())
    if rng.random() < MISSPELT_SHARE:
        title = misspell(title, rng)
    other = rng.choice([other for other in SELLERS if other is not seller])
    sentences = [_sentence(seller.sentence, words), _sentence(other.sentence, words)]
    description = " ".join([*sentences, seller.boilerplate]).strip()
    return (title.upper() if seller.shouts else title[:1].upper() + title[1:]), description


def _sentence(template: str, words: dict[str, str]) -> str:
    sentence = " ".join(template.format(**words).split())
    return sentence[:1].upper() + sentence[1:]


def misspell(text: str, rng: Random) -> str:
    """The text with a slip in one of its longer words: a letter dropped, doubled, or swapped with the next one."""
    words = text.split()
    long_words = [i for i, word in enumerate(words) if len(word) >= 5]
    if not long_words:
        return text
    i = rng.choice(long_words)
    word, at = words[i], rng.randrange(1, len(words[i]) - 2)
    a, b = word[at], word[at + 1]
    words[i] = word[:at] + rng.choice([b, a + a + b, b + a]) + word[at + 2 :]
    return " ".join(words)


def reword(text: str, family: WordsFamily, rng: Random) -> str:
    """The same text as one more seller would put it."""
    words = text.split()
    if family == "reorder":
        rng.shuffle(words)
    elif family == "drop":
        kept = sorted(rng.sample(range(len(words)), max(1, round(len(words) * 0.65)))) if words else []
        words = [words[i] for i in kept]
    elif family == "misspell":
        return misspell(misspell(text, rng), rng)
    elif words:
        return text.upper() + "!!"
    return " ".join(words)
