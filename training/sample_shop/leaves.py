"""The sample shop's assortment: its leaf categories, with how each is drawn, called and priced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from training.sample_shop import household, wearables
from training.sample_shop.sketch import Colour, Sketch

TEXTILE = ("plain", "stripes", "dots", "checks")
SOLID = ("plain", "two-tone", "stripes", "dots")
FRAME = ("plain", "two-tone")


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One leaf category.

    `nouns` are synonyms, `forms` the variants that `draw(sketch, form, size)` tells apart by their position, `sizes` go
    from small to large (drawn as -1, 0, 1), `uses` complete "for ...", `price` is a range in euros.
    """

    category: str
    draw: Callable[[Sketch, int, float], None]
    nouns: tuple[str, ...]
    forms: tuple[str, ...]
    materials: tuple[str, ...]
    sizes: tuple[str, str, str]
    price: tuple[int, int]
    uses: tuple[str, ...]
    patterns: tuple[str, ...] = TEXTILE


LEAVES = (
    Leaf(
        category="Clothing/Tops/T-shirts",
        draw=wearables.t_shirt,
        nouns=("t-shirt", "tee", "tee shirt", "short top"),
        forms=("crew neck", "v-neck", "long sleeve"),
        materials=("cotton", "organic cotton", "linen", "jersey"),
        sizes=("S", "M", "L"),
        price=(9, 35),
        uses=("everyday wear", "warm days", "layering"),
    ),
    Leaf(
        category="Clothing/Tops/Hoodies",
        draw=wearables.hoodie,
        nouns=("hoodie", "hooded sweatshirt", "hooded jumper", "sweater with hood"),
        forms=("pullover", "zip-up"),
        materials=("fleece", "cotton", "brushed cotton", "wool blend"),
        sizes=("S", "M", "L"),
        price=(25, 80),
        uses=("cool evenings", "training", "lounging"),
    ),
    Leaf(
        category="Clothing/Bottoms/Trousers",
        draw=wearables.trousers,
        nouns=("trousers", "pants", "slacks", "chinos"),
        forms=("straight leg", "flared", "short"),
        materials=("cotton", "twill", "linen", "corduroy"),
        sizes=("W30", "W32", "W34"),
        price=(20, 90),
        uses=("the office", "weekends", "travelling"),
    ),
    Leaf(
        category="Clothing/Bottoms/Skirts",
        draw=wearables.skirt,
        nouns=("skirt", "midi skirt", "swing skirt"),
        forms=("a-line", "pleated"),
        materials=("viscose", "cotton", "satin", "wool blend"),
        sizes=("S", "M", "L"),
        price=(18, 70),
        uses=("summer days", "the office", "dancing"),
    ),
    Leaf(
        category="Clothing/Dresses",
        draw=wearables.dress,
        nouns=("dress", "gown", "frock", "summer dress"),
        forms=("sleeveless", "short sleeve"),
        materials=("viscose", "silk", "cotton", "chiffon"),
        sizes=("36", "38", "40"),
        price=(30, 140),
        uses=("garden parties", "evenings out", "holidays"),
    ),
    Leaf(
        category="Shoes/Sneakers",
        draw=wearables.sneaker,
        nouns=("sneakers", "trainers", "sports shoes", "gym shoes"),
        forms=("low top", "high top"),
        materials=("canvas", "suede", "mesh", "leather"),
        sizes=("EU 38", "EU 41", "EU 44"),
        price=(35, 130),
        uses=("the city", "the gym", "long walks"),
    ),
    Leaf(
        category="Bags/Backpacks",
        draw=wearables.backpack,
        nouns=("backpack", "rucksack", "daypack", "school bag"),
        forms=("round top", "flap top"),
        materials=("nylon", "canvas", "recycled polyester"),
        sizes=("15 l", "20 l", "28 l"),
        price=(25, 120),
        uses=("school", "day hikes", "commuting"),
    ),
    Leaf(
        category="Bags/Handbags",
        draw=wearables.handbag,
        nouns=("handbag", "purse", "ladies bag", "shoulder bag"),
        forms=("tote", "chain strap"),
        materials=("leather", "faux leather", "canvas"),
        sizes=("small", "medium", "large"),
        price=(30, 180),
        uses=("the office", "shopping", "evenings out"),
    ),
    Leaf(
        category="Accessories/Watches",
        draw=wearables.watch,
        nouns=("wristwatch", "watch", "timepiece"),
        forms=("round", "square"),
        materials=("leather strap", "nylon strap", "silicone strap"),
        sizes=("36 mm", "40 mm", "44 mm"),
        price=(40, 250),
        uses=("every day", "formal wear", "diving"),
    ),
    Leaf(
        category="Accessories/Sunglasses",
        draw=wearables.sunglasses,
        nouns=("sunglasses", "shades", "sun glasses"),
        forms=("round", "rectangular"),
        materials=("acetate", "bio plastic", "nylon"),
        sizes=("narrow", "medium", "wide"),
        patterns=SOLID,
        price=(15, 120),
        uses=("the beach", "driving", "cycling"),
    ),
    Leaf(
        category="Accessories/Hats",
        draw=wearables.cap,
        nouns=("hat", "headwear", "cap"),
        forms=("baseball", "bobble"),
        materials=("cotton", "wool", "acrylic"),
        sizes=("S", "M", "L"),
        price=(9, 40),
        uses=("sunny days", "cold days", "festivals"),
    ),
    Leaf(
        category="Accessories/Umbrellas",
        draw=wearables.umbrella,
        nouns=("umbrella", "rain umbrella", "parasol", "brolly"),
        forms=("crook handle", "straight handle"),
        materials=("pongee", "polyester", "nylon"),
        sizes=("90 cm", "100 cm", "120 cm"),
        price=(12, 60),
        uses=("rainy days", "windy weather", "travelling"),
    ),
    Leaf(
        category="Home/Kitchen/Mugs",
        draw=household.mug,
        nouns=("mug", "coffee mug", "coffee cup", "tea cup"),
        forms=("straight", "tapered"),
        materials=("stoneware", "porcelain", "enamel", "earthenware"),
        sizes=("250 ml", "330 ml", "450 ml"),
        price=(5, 25),
        uses=("coffee", "cocoa", "the office"),
    ),
    Leaf(
        category="Home/Kitchen/Teapots",
        draw=household.teapot,
        nouns=("teapot", "tea pot", "tea kettle"),
        forms=("round", "conical"),
        materials=("porcelain", "stoneware", "enamel"),
        sizes=("0.8 l", "1.2 l", "1.6 l"),
        price=(15, 70),
        uses=("green tea", "breakfast", "four cups"),
    ),
    Leaf(
        category="Home/Kitchen/Frying pans",
        draw=household.frying_pan,
        nouns=("frying pan", "skillet", "fry pan"),
        forms=("round", "square grill"),
        materials=("aluminium", "cast iron", "carbon steel"),
        sizes=("20 cm", "24 cm", "28 cm"),
        patterns=SOLID,
        price=(18, 90),
        uses=("pancakes", "induction hobs", "camping"),
    ),
    Leaf(
        category="Home/Lighting/Table lamps",
        draw=household.table_lamp,
        nouns=("table lamp", "desk lamp", "bedside lamp", "reading light"),
        forms=("cone shade", "drum shade"),
        materials=("linen", "paper", "ceramic"),
        sizes=("35 cm", "45 cm", "55 cm"),
        price=(20, 110),
        uses=("reading", "the bedside", "the living room"),
    ),
    Leaf(
        category="Home/Decoration/Vases",
        draw=household.vase,
        nouns=("vase", "flower vase", "decorative jar"),
        forms=("bottle", "wide neck"),
        materials=("glass", "ceramic", "terracotta"),
        sizes=("18 cm", "25 cm", "32 cm"),
        price=(10, 80),
        uses=("fresh flowers", "dried grasses", "a shelf"),
    ),
    Leaf(
        category="Furniture/Seating/Chairs",
        draw=household.chair,
        nouns=("chair", "dining chair", "kitchen chair", "side chair"),
        forms=("padded", "spindle back"),
        materials=("beech", "oak", "velvet", "birch"),
        sizes=("78 cm", "84 cm", "92 cm"),
        price=(45, 190),
        uses=("the dining room", "the kitchen", "a small flat"),
    ),
    Leaf(
        category="Furniture/Seating/Sofas",
        draw=household.sofa,
        nouns=("sofa", "couch", "settee"),
        forms=("two-seater", "three-seater"),
        materials=("velvet", "linen", "boucle", "leather"),
        sizes=("150 cm", "180 cm", "210 cm"),
        price=(290, 1400),
        uses=("the living room", "long evenings", "guests"),
    ),
    Leaf(
        category="Furniture/Tables",
        draw=household.table,
        nouns=("table", "dining table", "kitchen table"),
        forms=("rectangular", "round"),
        materials=("oak", "pine", "walnut", "lacquered wood"),
        sizes=("100 cm", "140 cm", "180 cm"),
        patterns=SOLID,
        price=(90, 700),
        uses=("four guests", "the kitchen", "board games"),
    ),
    Leaf(
        category="Furniture/Storage/Bookcases",
        draw=household.bookcase,
        nouns=("bookcase", "bookshelf", "shelving unit", "book rack"),
        forms=("three shelves", "four shelves"),
        materials=("pine", "oak veneer", "bamboo"),
        sizes=("60 cm", "80 cm", "100 cm"),
        patterns=SOLID,
        price=(60, 320),
        uses=("the study", "children's rooms", "narrow walls"),
    ),
    Leaf(
        category="Electronics/Audio/Headphones",
        draw=household.headphones,
        nouns=("headphones", "over-ear headphones", "headset"),
        forms=("oval cups", "square cups"),
        materials=("aluminium", "matt plastic", "faux leather"),
        sizes=("32 ohm", "48 ohm", "64 ohm"),
        patterns=FRAME,
        price=(30, 280),
        uses=("music", "long flights", "the office"),
    ),
    Leaf(
        category="Electronics/Photo/Cameras",
        draw=household.camera,
        nouns=("camera", "photo camera", "digital camera"),
        forms=("prism", "viewfinder"),
        materials=("aluminium", "magnesium", "matt plastic"),
        sizes=("16 MP", "20 MP", "26 MP"),
        patterns=SOLID,
        price=(120, 900),
        uses=("travelling", "beginners", "portraits"),
    ),
    Leaf(
        category="Sports/Bicycles",
        draw=household.bicycle,
        nouns=("bicycle", "bike", "cycle", "city bike"),
        forms=("diamond frame", "step-through"),
        materials=("steel", "aluminium", "chromoly"),
        sizes=("26 inch", "28 inch", "29 inch"),
        patterns=FRAME,
        price=(250, 1500),
        uses=("commuting", "Sunday rides", "gravel roads"),
    ),
    Leaf(
        category="Music/Guitars",
        draw=household.guitar,
        nouns=("guitar", "six-string", "six-string guitar"),
        forms=("acoustic", "electric"),
        materials=("spruce", "mahogany", "maple"),
        sizes=("3/4", "7/8", "4/4"),
        patterns=SOLID,
        price=(90, 800),
        uses=("beginners", "the stage", "campfires"),
    ),
    Leaf(
        category="Toys/Teddy bears",
        draw=household.teddy_bear,
        nouns=("teddy bear", "teddy", "plush bear", "stuffed bear"),
        forms=("bow tie", "belly patch"),
        materials=("plush", "organic cotton", "mohair"),
        sizes=("20 cm", "30 cm", "45 cm"),
        price=(12, 60),
        uses=("toddlers", "bedtime", "collectors"),
    ),
)

# The first word is the colour's name in the attributes, the others are what sellers call it.
COLOURS: dict[str, tuple[Colour, tuple[str, ...]]] = {
    "black": ((42, 42, 48), ("black", "jet black", "onyx")),
    "white": ((244, 243, 239), ("white", "off-white", "snow")),
    "grey": ((148, 152, 158), ("grey", "gray", "silver grey")),
    "red": ((206, 44, 48), ("red", "scarlet", "crimson")),
    "orange": ((238, 130, 38), ("orange", "tangerine", "amber")),
    "yellow": ((246, 206, 66), ("yellow", "lemon", "sunny yellow")),
    "green": ((62, 142, 76), ("green", "grass green", "emerald")),
    "teal": ((32, 146, 152), ("teal", "petrol", "turquoise")),
    "blue": ((52, 110, 214), ("blue", "cobalt", "royal blue")),
    "navy": ((34, 48, 98), ("navy", "dark blue", "midnight blue")),
    "purple": ((126, 72, 168), ("purple", "violet", "plum")),
    "pink": ((240, 138, 174), ("pink", "rose", "blush")),
    "brown": ((122, 78, 50), ("brown", "chestnut", "cocoa brown")),
    "beige": ((218, 196, 160), ("beige", "sand", "cream")),
}

PATTERN_WORDS: dict[str, tuple[str, ...]] = {
    "plain": ("plain", "solid", "unpatterned"),
    "stripes": ("striped", "stripes", "stripe print"),
    "dots": ("dotted", "polka dot", "spotted"),
    "checks": ("checked", "plaid", "gingham"),
    "two-tone": ("two-tone", "bicolour", "colour block"),
}
