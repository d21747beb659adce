"""What the sample shop's sellers write: the same product in their own words, with boilerplate and misspellings."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from training.sample_shop.leaves import COLOURS, PATTERN_WORDS
from training.sample_shop.products import Product

MISSPELT_SHARE = 0.12  # of the titles have one misspelt word
BOILERPLATE_SHARE = 0.6  # of the descriptions end in the seller's boilerplate

WordsFamily = Literal["reorder", "drop", "misspell", "shout"]


@dataclass(frozen=True, kw_only=True)
class Seller:
    """A seller of the shop, with what it writes below its descriptions and whether it shouts."""

    name: str
    boilerplate: str
    shouts: bool = False


SELLERS = (
    Seller(name="Nordwick Outlet", boilerplate="Fast dispatch from our own warehouse."),
    Seller(name="Casa Brillo", boilerplate="Free returns within 30 days."),
    Seller(name="megadealz", boilerplate="best price guaranteed!!! order today", shouts=True),
    Seller(name="Petit Comptoir", boilerplate="Carefully chosen for you by our team."),
    Seller(name="Harbour Goods", boilerplate="Sold and shipped by Harbour Goods. Two-year warranty."),
    Seller(name="Lumen & Sons", boilerplate="Questions? Our shop has been there for you for three generations."),
    Seller(name="trendbazaar", boilerplate="Follow our shop for weekly offers and vouchers."),
    Seller(
        name="Alma Trading", boilerplate="Pictures show the original item. Colours may differ slightly on your screen."
    ),
)

TITLES = (
    "{brand} {model} {noun} {colour} {pattern}",
    "{colour} {pattern} {noun} by {brand}, {material}",
    "{brand} {noun} {form} {colour} {size}",
    "{noun} {model}, {pattern} {material}, {colour} and {second}",
    "{brand} {form} {noun} - {size} - {colour}",
    "{model} {material} {noun} ({colour}, {size})",
    "{pattern} {noun} {colour} {second} {form} for {use}",
    "{brand} {model} {size} {noun} in {colour}",
    "{form} {pattern} {noun}, {colour}/{second}, {brand}",
    "{noun} {brand} {model} {pattern} {colour}",
)
SENTENCES = (
    "{colour} {noun} with {second} details.",
    "{brand} {noun}, model {model}, {colour}.",
    "{pattern} {noun}: {material}, {form}.",
    "{noun} in {colour} for {use}.",
    "{form} {noun}, {material}, size {size}.",
    "Colour {colour}, {pattern}, {second}.",
    "{model} by {brand} for {use}.",
    "{noun}, {pattern}, {colour} and {second}.",
)
SENTENCES_A_DESCRIPTION = 3


class Wording(dict[str, str]):
    """A product's words by slot; each time a slot is filled, one of its synonyms is taken."""

    def __init__(self, product: Product, rng: Random) -> None:
        super().__init__()
        self._rng = rng
        self._synonyms: dict[str, tuple[str, ...]] = {
            "brand": (product.brand,),
            "model": (product.model,),
            "noun": product.leaf.nouns,
            "colour": COLOURS[product.colour][1],
            "second": COLOURS[product.second_colour][1],
            "pattern": PATTERN_WORDS[product.pattern],
            "form": (product.form,),
            "material": (product.material,),
            "size": (product.size,),
            "use": product.leaf.uses,
        }

    def __missing__(self, slot: str) -> str:
        return self._rng.choice(self._synonyms[slot])

    def fill(self, template: str) -> str:
        """The template as a sentence of its own."""
        text = template.format_map(self)
        return text[:1].upper() + text[1:]


def write_words(product: Product, seller: Seller, order: str, rng: Random) -> tuple[str, str]:
    """(title, description) of a seller's offer; `order` is the one of TITLES that it puts its words in."""
    wording = Wording(product, rng)
    title = wording.fill(order)
    if rng.random() < MISSPELT_SHARE:
        title = misspell(title, rng)
    sentences = [wording.fill(sentence) for sentence in rng.sample(SENTENCES, SENTENCES_A_DESCRIPTION)]
    if rng.random() < BOILERPLATE_SHARE:
        sentences.append(seller.boilerplate)
    return (f"NEW {title.upper()}" if seller.shouts else title), " ".join(sentences)


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
