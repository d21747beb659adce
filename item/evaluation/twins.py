"""Near twins: rows of a split that train all but shows already, so that what is found there may only be remembered.

Two listings are near twins where they have the same title, case, punctuation and whitespace aside, or pictures whose
difference hashes (256 bits: is a cell brighter than the one to its left?) differ in at most `MAX_BITS`. In a
fashion catalogue pictures 0 to 2 bits apart were always the same photograph, those 3 or 4 apart that or the same kind
of article in the same pose; from 5 on they were also quite different ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from PIL import Image

from item.catalog.listing import Listing
from item.preprocessing.config import PreprocessorConfig
from item.preprocessing.pictures import load_picture

HASH_SIDE = 16
MAX_BITS = 4  # of HASH_SIDE ** 2


def near_twins(
    listings: Sequence[Listing], train: Sequence[Listing], limits: PreprocessorConfig
) -> npt.NDArray[np.bool_]:
    """(N,): which of the N listings have a near twin in train. limits: those of the pictures.

    Raises:
        PictureError: a picture cannot be read or is over a limit.
    """
    titles = {folded_title(listing) for listing in train} - {""}
    same_title = np.array([folded_title(listing) in titles for listing in listings], dtype=bool)
    with ThreadPoolExecutor() as readers:
        hashes, others = (
            list(readers.map(lambda listing: picture_hash(listing, limits), part)) for part in (listings, train)
        )
    known = np.array([other for other in others if other is not None], dtype=bool).reshape(-1, HASH_SIDE**2)
    return same_title | np.array(
        [own is not None and bool(((known ^ own).sum(axis=1) <= MAX_BITS).any()) for own in hashes], dtype=bool
    )


def folded_title(listing: Listing) -> str:
    """The title without case and punctuation, its words one space apart; empty where nothing is left."""
    return re.sub(r"[\W_]+", " ", listing.title.casefold()).strip()


def picture_hash(listing: Listing, limits: PreprocessorConfig) -> npt.NDArray[np.bool_] | None:
    """(HASH_SIDE ** 2,) difference hash of the main picture, stretched to a square; None: there is no picture."""
    return difference_hash(load_picture(listing.images[0], limits)) if listing.images else None


def difference_hash(image: Image.Image) -> npt.NDArray[np.bool_]:
    """(HASH_SIDE ** 2,): of a picture stretched to a square, whether each cell is brighter than the one to its left."""
    cells = np.asarray(image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX), dtype=np.int16)
    return np.asarray(cells[:, 1:] > cells[:, :-1]).ravel()
