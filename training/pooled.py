"""What the vector head reads of each listing and of views of it, computed once by the frozen encoder and kept on disk.

The words' means are those of the words alone. Where a pre-training has opened the gates from words to pictures, the
means of a listing with a picture are a little different; the report measures the whole encoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from item.catalog.listing import Listing
from item.model.batch import Batch, pad_words
from item.model.encoder import ITEm
from item.model.vector import PooledWords, VectorHead
from item.neighbours import Path as Category
from item.preprocessing.pictures import load_picture, to_square
from item.preprocessing.prepared import Modality
from item.preprocessing.preprocessor import Preprocessor
from item.preprocessing.spelling import SPELLING_WIDTH, spelling
from training.cache import Arrays, fill_arrays
from training.features import picture_identity
from training.views import listing_view, picture_view

VERSION = 3  # of the views: raised with every change of training/views.py
Vectors = npt.NDArray[np.float32]

CHUNK = 32  # listings at a time
STEM_BATCH = 64  # pictures a pass through the stem
WORDS_BATCH = 128  # texts a pass through the layers


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """N listings, each as it is (view 0) and in K views.

    words: (N, 1 + K, 2, D) float32, means of the title's and of all words' states; spelling: (N, 1 + K, SPELLING_WIDTH)
    float32; picture: (N, 1 + K, F) float32, pooled features. has_words, has_picture: (N,) bool; the rows of what is not
    there are zeros.
    """

    words: Tensor
    spelling: Tensor
    picture: Tensor
    has_words: npt.NDArray[np.bool_]
    has_picture: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, rows: npt.NDArray[np.intp]) -> Pooled:
        taken = torch.from_numpy(rows)
        return Pooled(
            words=self.words[taken],
            spelling=self.spelling[taken],
            picture=self.picture[taken],
            has_words=self.has_words[rows],
            has_picture=self.has_picture[rows],
        )


def pool_listings(
    folder: Path,
    model: ITEm,
    preprocessor: Preprocessor,
    listings: Sequence[Listing],
    num_views: int,
    seed: int,
) -> Pooled:
    """The listings' pooled states and features; what is missing in the cache `folder` is computed.

    The listings must be such that the preprocessor accepts them.
    """
    key = cache_key(model, preprocessor, listings, (VERSION, num_views, seed))
    layout = {
        "words": (np.float16, (1 + num_views, 2, model.config.width)),
        "spelling": (np.float16, (1 + num_views, SPELLING_WIDTH)),
        "picture": (np.float16, (1 + num_views, model.stem.pooled_width)),
        "has_words": (np.bool_, ()),
        "has_picture": (np.bool_, ()),
    }
    pooler = Pooler(model.eval(), preprocessor)
    with ThreadPoolExecutor() as readers:

        def fill(rows: range, arrays: Arrays) -> None:
            chunk = [[np.random.default_rng([seed, view, row]) for view in range(1 + num_views)] for row in rows]
            texts = [
                [listing_view(listings[row], rng) if view else listings[row] for view, rng in enumerate(rngs)]
                for row, rngs in zip(rows, chunk, strict=True)
            ]
            at = slice(rows.start, rows.stop)
            arrays["words"][at], arrays["spelling"][at], arrays["has_words"][at] = pooler.words(texts)
            shown = [row for row in rows if listings[row].images]
            if shown:
                rngs = [chunk[row - rows.start] for row in shown]
                pictures = readers.map(pooler.draw, [listings[row] for row in shown], rngs)
                arrays["picture"][shown] = pooler.pictures(list(pictures))
                arrays["has_picture"][shown] = True

        path = fill_arrays(folder / key, layout, len(listings), fill, chunk=CHUNK, name="views", unit="listings")
    words, spelling, picture, has_words, has_picture = (np.load(path / f"{name}.npy") for name in layout)
    return Pooled(
        words=torch.from_numpy(words).float(),
        spelling=torch.from_numpy(spelling).float(),
        picture=torch.from_numpy(picture).float(),
        has_words=has_words,
        has_picture=has_picture,
    )


def pool_names(model: ITEm, preprocessor: Preprocessor, categories: Sequence[Category]) -> dict[Category, Tensor]:
    """What the words say of the names of categories and of all above them, as of a title: (2, D) of each, zeros where a
    name has no words. A name is the path, its leaf first."""
    paths = sorted({path[:depth] for path in categories for depth in range(1, 1 + len(path))})
    if not paths:
        return {}
    names = [[Listing(title=" ".join(reversed(path)))] for path in paths]
    means = torch.from_numpy(Pooler(model.eval(), preprocessor).words(names)[0])
    return dict(zip(paths, means[:, 0], strict=True))


def cache_key(
    model: ITEm, preprocessor: Preprocessor, listings: Sequence[Listing], settings: tuple[object, ...]
) -> str:
    """A digest of everything that pooled states and features depend on: all of the model but its vector head."""
    of_head = ("vector_width", "category_levels")
    config = {name: value for name, value in asdict(model.config).items() if name not in of_head}
    digest = hashlib.sha256(repr((settings, preprocessor.digest(), config)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith("vector."):
            digest.update(name.encode() + tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for listing in listings:
        images = picture_identity(listing.images[0]) if listing.images else None
        digest.update(repr((listing.title, listing.description, images)).encode(errors="backslashreplace"))
    return digest.hexdigest()[:16]


def embed(head: VectorHead, pooled: Pooled, modality: Modality, view: int) -> Vectors:
    """(N, V) float32 of unit norm: the vectors of a view by one modality, zeros where a listing does not have it."""
    words = np.flatnonzero(pooled.has_words if modality != "picture" else [])
    picture = np.flatnonzero(pooled.has_picture if modality != "words" else [])
    in_words, in_picture = torch.from_numpy(words), torch.from_numpy(picture)
    no_states = torch.zeros(len(pooled), head.global_projection.shape[1])
    with torch.inference_mode():
        e = head(
            no_states,
            PooledWords(in_words, pooled.words[in_words, view], pooled.spelling[in_words, view]),
            in_picture,
            pooled.picture[in_picture, view] if len(picture) else None,
        )
        vectors: Vectors = F.normalize(e, dim=-1).numpy()
    return vectors


class Pooler:
    """Runs the frozen encoder over listings and their views."""

    def __init__(self, model: ITEm, preprocessor: Preprocessor) -> None:
        self.model, self.preprocessor, self.device = model, preprocessor, model.gates.device

    @torch.inference_mode()
    def words(self, texts: Sequence[Sequence[Listing]]) -> tuple[Vectors, Vectors, npt.NDArray[np.bool_]]:
        """R listings in 1 + K views -> (R, 1 + K, 2, D) means, (R, 1 + K, SPELLING_WIDTH), and (R,) which have words. A
        view without words is the listing itself."""
        ids = [[self.preprocessor.words(view) for view in views] for views in texts]
        flat = [own[0] if view is None else view for own in ids for view in own]
        spelled = [
            spelling(own[0] if view is None else one)
            for own, read in zip(texts, ids, strict=True)
            for one, view in zip(own, read, strict=True)
        ]
        there = sorted((len(one), row) for row, one in enumerate(flat) if one is not None)  # little is padded
        means = np.zeros((len(flat), 2, self.model.config.width), np.float32)
        for start in range(0, len(there), WORDS_BATCH):
            rows = [row for _, row in there[start : start + WORDS_BATCH]]
            word_ids, mask = pad_words([flat[row] for row in rows], self.preprocessor.pad_id)
            no_pictures = torch.zeros(0, dtype=torch.int64)
            batch = Batch(word_ids=word_ids, word_mask=mask, picture_rows=no_pictures).to(self.device)
            means[rows] = self.model.pool_words(self.model(batch), batch).means.cpu().numpy()
        has_words = np.array([own[0] is not None for own in ids])
        spellings = np.stack(spelled).reshape(len(ids), -1, SPELLING_WIDTH) * has_words[:, None, None]
        return means.reshape(len(ids), -1, *means.shape[1:]), spellings, has_words

    def draw(self, listing: Listing, rngs: Sequence[np.random.Generator]) -> npt.NDArray[np.uint8]:
        """(1 + K, 3, S, S) uint8: the main picture as it is, then its views."""
        image, settings = load_picture(listing.images[0], self.preprocessor.config), self.preprocessor.config
        views = [picture_view(image, rng) if view else image for view, rng in enumerate(rngs)]
        return np.stack([to_square(view, settings) for view in views])

    @torch.inference_mode()
    def pictures(self, drawn: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """P pictures in 1 + K views -> (P, 1 + K, F)."""
        flat = torch.split(torch.from_numpy(np.concatenate(drawn)), STEM_BATCH)
        pooled = [self.model.stem.pooled(self.model.stem(pixels.to(self.device))).float().cpu() for pixels in flat]
        return torch.cat(pooled).numpy().reshape(len(drawn), -1, self.model.stem.pooled_width)
