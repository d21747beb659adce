"""Listings side by side without padding: the indices that the layers' graph takes (item.export.encoder).

Tokens are packed as text first and then cells: [CLS] w_1..w_n [SEP] of listing 0, of listing 1, ..., and the m cells of
each picture in turn. Attention alone sees them as B rows of T tokens, text before cells, padded at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from item.adapters.adapter import Array
from item.adapters.bank import Rotations
from item.preprocessing.prepared import Prepared

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """B listings' tokens, n of text and N in all; T of the longest listing, t of the longest text.

    word_ids, positions: (n,), of the text tokens, [CLS] included.
    listing: (N,), the listing of each token.
    gather: (B, T), the packed row of each padded place (any, at padding). scatter: (N,), the reverse, into B T.
    gather_text: (B, t), scatter_text: (n,), the same of text alone, which is what the last layer gives out.
    padding: (B, 1, 1, T), 0 or -inf. is_text: (B, T), 1 at [CLS] and words.
    pooling: (B, 2, t), each token's weight in the mean up to the first [SEP] and in that over all text.
    """

    word_ids: Ints
    positions: Ints
    listing: Ints
    gather: Ints
    scatter: Ints
    gather_text: Ints
    scatter_text: Ints
    padding: Floats
    is_text: Floats
    pooling: Floats

    def inputs(self) -> dict[str, npt.NDArray[np.generic]]:
        """The graph's inputs, by name."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "listing"}


def pack(prepared: Sequence[Prepared], num_cells: int, cls_id: int, sep_id: int) -> Packed:
    """The indices of B listings, at least one."""
    texts = [np.empty(0, np.int32) if one.word_ids is None else one.word_ids for one in prepared]
    num_text = np.array([1 + len(ids) for ids in texts])
    cells = np.array([0 if one.pixels is None else num_cells for one in prepared])
    place = np.arange((num_text + cells).max())
    is_text = place < num_text[:, None]
    present = place < (num_text + cells)[:, None]
    first_text, first_cell = np.cumsum(num_text) - num_text, num_text.sum() + np.cumsum(cells) - cells
    gather = np.where(is_text, first_text[:, None] + place, first_cell[:, None] + place - num_text[:, None])
    gather = np.where(present, gather, 0)
    scatter = np.empty(present.sum(), dtype=np.int64)
    scatter[gather[present]] = np.flatnonzero(present)
    of_text = is_text[:, : num_text.max()]
    titles = np.array([1 + title_length(ids, sep_id) for ids in texts])
    in_title = place[: num_text.max()] < titles[:, None]
    pooling = np.stack([in_title, of_text], axis=1) / np.stack([titles, num_text], axis=1)[..., None]
    pooling[num_text == 1] = 0
    return Packed(
        word_ids=np.concatenate([part for ids in texts for part in ([cls_id], ids)]).astype(np.int64),
        positions=np.broadcast_to(place, is_text.shape)[is_text],
        listing=np.concatenate([np.repeat(np.arange(len(texts)), counts) for counts in (num_text, cells)]),
        gather=gather,
        scatter=scatter,
        gather_text=np.where(of_text, gather[:, : num_text.max()], 0),
        scatter_text=np.flatnonzero(of_text),
        padding=np.where(present, 0, -np.inf).astype(np.float32)[:, None, None],
        is_text=is_text.astype(np.float32),
        pooling=pooling.astype(np.float32),
    )


def title_length(ids: npt.NDArray[np.int32], sep_id: int) -> int:
    """Tokens up to the first [SEP], it included; 0 without words."""
    return int(np.argmax(ids == sep_id)) + 1 if len(ids) else 0


def complex_tables(rotations: Rotations) -> dict[str, Array]:
    """The adapters' tables as the layers' graph takes them: R h = t z + conj(m z) for each pair z = h_1 + i h_2.

    R h = (R1_1 h_1 - R2_1 h_2, R1_2 h_2 + R2_2 h_1), so that t + m = R1_1 + i R2_1 and t - m = R1_2 + i R2_2.
    t: (A, S / 2). m: likewise, or (0, S / 2) where all of it is 0.
    """
    tables: dict[str, Array] = {}
    for part, r in (("re", rotations.r1), ("im", rotations.r2)):
        first, second = r[:, 0::2], r[:, 1::2]
        if rotations.paired:
            tables |= {f"turn_{part}": np.ascontiguousarray(first), f"mirror_{part}": np.empty_like(first[:0])}
        else:
            tables |= {f"turn_{part}": (first + second) / 2, f"mirror_{part}": (first - second) / 2}
    return tables
