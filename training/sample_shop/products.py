"""The sample shop's products: product k of a seed is always the same, whatever else is drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from PIL import Image

from training.sample_shop.leaves import COLOURS, LEAVES, Leaf
from training.sample_shop.sketch import Sketch

BRANDS = (
    *("Varnello", "Okturi", "Plimsen", "Draskova", "Quillmere", "Tembrava", "Hollisk", "Yarnwyck"),
    *("Brindolo", "Sefterra", "Kavimont", "Luntara", "Ostrevik", "Pellandra", "Rumbaret", "Zindelle"),
)
SYLLABLES = ("ka", "lo", "mi", "ra", "ven", "tor", "sil", "bo", "nu", "fen", "dra", "el", "zo", "pim", "qua", "ry")
SPLITS = {"train": 0.7, "val": 0.1, "test": 0.2}


@dataclass(frozen=True, kw_only=True)
class Product:
    """What all offers of one product have in common; `price` in euros is what sellers start from."""

    number: int
    leaf: Leaf
    brand: str
    model: str
    colour: str
    second_colour: str
    pattern: str
    form: str
    material: str
    size: str
    price: float

    @property
    def group_id(self) -> str:
        return f"P{self.number:06d}"

    def drawn(self) -> Image.Image:
        """The product alone, RGBA, cropped to its outline."""
        sketch = Sketch(COLOURS[self.colour][0], COLOURS[self.second_colour][0], self.pattern)
        self.leaf.draw(sketch, self.leaf.forms.index(self.form), self.leaf.sizes.index(self.size) - 1)
        return sketch.finished()


def twin_of(number: int) -> int | None:
    """The product that `number` differs from in one thing only: every third one of a leaf is such a near twin."""
    return number - len(LEAVES) if number // len(LEAVES) % 3 == 2 else None


def make_product(seed: int, number: int) -> Product:
    """Product `number` (from 0) of the shop of `seed`; the leaves take turns."""
    rng = Random(f"{seed}/product/{number}")
    original = twin_of(number)
    if original is not None:
        return _near_twin(make_product(seed, original), number, rng)
    leaf = LEAVES[number % len(LEAVES)]
    colour, second_colour = rng.sample(sorted(COLOURS), 2)
    return Product(
        number=number,
        leaf=leaf,
        brand=rng.choice(BRANDS),
        model="".join(rng.sample(SYLLABLES, rng.choice((2, 3)))).capitalize(),
        colour=colour,
        second_colour=second_colour,
        pattern=rng.choice(leaf.patterns),
        form=rng.choice(leaf.forms),
        material=rng.choice(leaf.materials),
        size=rng.choice(leaf.sizes),
        price=rng.randint(*leaf.price) - 0.01,
    )


def _near_twin(original: Product, number: int, rng: Random) -> Product:
    if rng.random() < 0.5:
        others = [name for name in sorted(COLOURS) if name not in (original.colour, original.second_colour)]
        return replace(original, number=number, colour=rng.choice(others))
    others = [name for name in original.leaf.patterns if name != original.pattern]
    return replace(original, number=number, pattern=rng.choice(others))


def split_of(seed: int, number: int) -> str:
    """train, val or test: all offers of a product fall into the same one."""
    return Random(f"{seed}/split/{number}").choices(list(SPLITS), list(SPLITS.values()))[0]
