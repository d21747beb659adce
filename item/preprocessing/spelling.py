"""How a listing is spelled: its character n-grams, counted in hashed cells. It knows what no word piece does.

    s = sum_n-grams sign(n-gram) unit vector of cell(n-gram)            then of unit norm

Article numbers, names and rare words decide which product it is, and a sentence encoder blurs them; a misspelt word
keeps most of its n-grams. With signs, inner products stay about what they are however many n-grams share a cell
(feature hashing, arXiv 0902.2206), and there is nothing to fit, to store or to be unknown.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from item.catalog.listing import Listing

SPELLING_WIDTH = 384  # cells
LENGTHS = (3, 4)  # of the n-grams, in characters; a word's ends are characters too
MAX_CHARACTERS = 2048  # that are read of a title, and of a description

_WORD = re.compile(r"\w+")
_FNV, _MIX_1, _MIX_2 = map(np.uint64, (0x100000001B3, 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53))
_SHIFT, _TOP = np.uint64(33), np.uint64(63)

Hashes = npt.NDArray[np.uint64]


def spelling(listing: Listing) -> npt.NDArray[np.float32]:
    """(SPELLING_WIDTH,) float32 of unit norm; zeros where title and description have neither letters nor digits."""
    hashes = ngrams(f"{listing.title[:MAX_CHARACTERS]} {listing.description[:MAX_CHARACTERS]}")
    signs = 1.0 - 2.0 * (hashes >> _TOP)
    counts = np.bincount((hashes % np.uint64(SPELLING_WIDTH)).astype(np.int64), signs, minlength=SPELLING_WIDTH)
    return (counts / max(1.0, float(np.linalg.norm(counts)))).astype(np.float32)


def stack_spelling(spellings: Sequence[npt.NDArray[np.float32] | None]) -> npt.NDArray[np.float32]:
    """Of B listings -> (B, SPELLING_WIDTH), zeros where it is not known."""
    stacked = np.zeros((len(spellings), SPELLING_WIDTH), np.float32)
    for row, one in zip(stacked, spellings, strict=True):
        if one is not None:
            row[:] = one
    return stacked


def ngrams(text: str) -> Hashes:
    """The hashes of a text's n-grams, each as often as it is there. None crosses from one word to the next."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    spaced = "".join(f" {word} " for word in words)  # two spaces in a row between words
    codes = np.frombuffer(spaced.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    is_space, found = codes == ord(" "), []
    for n in LENGTHS:
        count = max(0, len(codes) - n + 1)
        hashes, crosses = np.full(count, n, np.uint64), np.zeros(count, np.bool_)
        for place in range(n):
            hashes = (hashes * _FNV) ^ codes[place : place + count]
            if 0 < place < n - 1:
                crosses |= is_space[place : place + count]
        found.append(_mixed(hashes[~crosses]))
    return np.concatenate(found)


def _mixed(hashes: Hashes) -> Hashes:
    """Every bit depends on every bit (MurmurHash3's finaliser)."""
    for multiplier in (_MIX_1, _MIX_2):
        hashes = (hashes ^ (hashes >> _SHIFT)) * multiplier
    return hashes ^ (hashes >> _SHIFT)
