"""From one row of a catalogue to a checked `Listing`, or to the reason why it is refused.

One rule for every column: a string is stripped of surrounding white space, and None, NaN and the blank string all mean
'not there'.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np

from item.catalog.listing import AttributeValue, Listing, Picture
from item.errors import ListingError

COLUMNS = frozenset(  # any other column is an attribute
    {"product_id", "title", "description", "image", "images", "category", "group_id", "language", "split", "attributes"}
)

_LIKE_PRODUCT_ID = frozenset({"productid", "id", "itemid", "uniqid", "pid", "sku"})
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_EXACT_IN_FLOAT = 2**53

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = 60
_shortened.maxlist = 12


def parse_listing(row: Mapping[str, object], *, folder: Path, urls: bool = False) -> Listing:
    """The listing of one row.

    Args:
        row: column name to value as the file's reader gives it: Python or numpy values, None or NaN where empty.
        folder: where relative picture paths start, the catalogue file's folder. Pictures are not looked for here.
        urls: whether pictures may be URLs.

    Raises:
        ListingError: with the column at fault, the value and the way out.
    """
    cells = {name: value for name, cell in row.items() if (value := _value(cell)) is not None}
    if "product_id" not in cells:
        raise ListingError("product_id", "is blank; give a unique one" if "product_id" in row else no_product_id(row))
    listing = Listing(
        product_id=_identifier("product_id", cells["product_id"]),
        title=_text("title", cells.get("title", "")),
        description=_text("description", cells.get("description", "")),
        images=_images(cells, folder, urls),
        category=_category(cells.get("category")),
        group_id=_identifier("group_id", cells["group_id"]) if "group_id" in cells else None,
        language=_text("language", cells["language"]) if "language" in cells else None,
        split=_text("split", cells["split"]) if "split" in cells else None,
        attributes=_attributes(cells),
    )
    if not (listing.title or listing.description or listing.images):
        raise ListingError(
            "title", f"no title, description or image, and one is needed; the row's columns: {_shown(list(row))}"
        )
    return listing


def is_url(reference: str) -> bool:
    """Whether a picture's reference is a URL, not a path."""
    return _URL.match(reference) is not None


def no_product_id(columns: Iterable[str]) -> str:
    """The reason given for rows without a column product_id, with the column that may have been meant."""
    columns = list(columns)
    near = [name for name in columns if re.sub(r"[^a-z]", "", name.lower()) in _LIKE_PRODUCT_ID]
    hint = f"rename {near[0]!r}" if near else f"the columns are {_shown(columns)}"
    return f"there is no column 'product_id' (names are compared exactly); {hint}"


def unique_object(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """A JSON object's members as a dict (the `object_pairs_hook` of json.loads); a name given twice is refused."""
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ListingError(twice, "is given twice in one object; leave one")
    return members


def _value(cell: object) -> object:
    """A cell as a Python value; None where nothing is there."""
    if isinstance(cell, np.generic | np.ndarray):
        cell = cell.tolist()
    if isinstance(cell, str):
        return cell.strip() or None
    return None if isinstance(cell, float) and math.isnan(cell) else cell


def _text(column: str, value: object) -> str:
    if not isinstance(value, str):
        raise ListingError(column, f"{_shown(value)} is of type {type(value).__name__}; give a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # a lone surrogate: how the readers hand on bytes that are no UTF-8
        raise ListingError(column, f"{_shown(value)} is not valid UTF-8; save the file as UTF-8") from error
    return value


def _identifier(column: str, value: object) -> str:
    """An id as a string. Whole numbers are taken too, and 12.0, which pandas makes of 12 beside an empty cell."""
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT_IN_FLOAT:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(column, value)


def _images(cells: Mapping[str, object], folder: Path, urls: bool) -> tuple[Picture, ...]:
    """The pictures of `image`, then of `images`, each once: the first is the main one."""
    found = [
        picture
        for column in ("image", "images")
        for item in _items(cells.get(column))
        if (picture := _picture(column, item, folder, urls)) is not None
    ]
    return tuple(dict.fromkeys(found))


def _items(value: object) -> list[object]:
    """What a cell lists: a list's items, those of a JSON list in a string, or the value itself; blanks left out."""
    if isinstance(value, str) and (listed := _json_list(value)) is not None:
        value = listed
    items = value if isinstance(value, list | tuple) else [value]
    return [item for item in map(_value, items) if item is not None]


def _json_list(text: str) -> list[object] | None:
    """A list as a string writes it, for files without lists; None where a name just starts with a bracket."""
    if not text.startswith("["):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def _picture(column: str, value: object, folder: Path, urls: bool) -> Picture | None:
    if isinstance(value, Mapping):  # as Hugging Face's datasets store a picture
        name, data = _value(value.get("path")), value.get("bytes")
        if data is None:
            return None if name is None else _picture(column, name, folder, urls)
        if isinstance(data, bytes):
            return Picture(data=data, reference="" if name is None else _text(column, name))
    if isinstance(value, bytes):
        return Picture(data=value)
    if not isinstance(value, str):
        raise ListingError(column, f"{_shown(value)} is no picture; give a path, bytes, or {{'bytes', 'path'}}")
    path = _text(column, value)
    if is_url(path):
        if not urls:
            reason = "is a URL, which is not fetched; give index.build --allow-host, or download it and give its path"
            raise ListingError(column, f"{_shown(path)} {reason}")
        if not path.lower().startswith(("http://", "https://")):
            raise ListingError(column, f"{_shown(path)} is no http or https URL; download it and give its path")
        return Picture(url=path, reference=path)
    return Picture(path=folder / path, reference=path)


def _category(cell: object) -> tuple[str, ...]:
    """The levels of a list, or of a string with '/' between them; a slash at either end of a string says nothing."""
    levels = [] if cell is None else cell
    if isinstance(cell, str):
        listed = _json_list(cell)
        levels = cell.removeprefix("/").removesuffix("/").split("/") if listed is None else listed
    if not isinstance(levels, list | tuple):
        raise ListingError("category", f"{_shown(cell)} is of type {type(cell).__name__}; give levels, Home/Mugs")
    names = tuple(_text("category", level).strip() for level in levels)
    if "" in names:
        raise ListingError("category", f"{_shown(cell)} has a blank level; fill it or leave it out")
    return names


def _attributes(cells: Mapping[str, object]) -> dict[str, AttributeValue]:
    """The further columns and the unfolded members of `attributes`."""
    found = {name: value for name, value in cells.items() if name not in COLUMNS}
    for name, member in _members(cells.get("attributes", {})).items():
        value = _value(member)
        if value is not None and (name in cells or name in COLUMNS):
            raise ListingError("attributes", f"{name!r} is also a column; rename one of the two")
        if value is not None:
            found[name] = value
    parsed = {_text("attributes", name): _attribute(name, value) for name, value in found.items()}
    return {name: value for name, value in parsed.items() if value != []}


def _members(value: object) -> Mapping[str, object]:
    if isinstance(value, str):
        try:
            value = json.loads(value, object_pairs_hook=unique_object)
        except ListingError:
            raise
        except (ValueError, RecursionError) as error:
            raise ListingError("attributes", f"{_shown(value)} is broken JSON ({error})") from error
    if isinstance(value, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
        value = unique_object(value)  # Parquet's map type
    if not isinstance(value, Mapping):
        raise ListingError("attributes", f'{_shown(value)} is no JSON object; give one like {{"brand": "Acme"}}')
    return value


def _attribute(name: str, value: object) -> AttributeValue:
    if isinstance(value, ListingError):  # of the file's reader
        raise value
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float | Decimal):
        return _number(name, value)
    if isinstance(value, list | tuple):
        return [_text(name, item) for item in map(_value, value) if item is not None]
    if isinstance(value, str):
        return _text(name, value)
    raise ListingError(
        name,
        f"{_shown(value)} is of type {type(value).__name__}; "
        "an attribute is a string, a number, a boolean or a list of strings: convert it or leave the column out",
    )


def _number(name: str, value: int | float | Decimal) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or (isinstance(value, int) and int(number) != value):
        raise ListingError(name, f"{_shown(value)} does not fit a 64-bit float; give it as a string")
    return number


def _shown(value: object) -> str:
    return _shortened.repr(value)
