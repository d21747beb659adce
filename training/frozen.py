"""Vectors of the starting weights alone, frozen: the mean-pooled words of a BERT, the pooled features of a timm model.

Equal words and equal pictures are encoded once. With a cache folder the vectors are kept on disk in blocks, each under
the digest of the weights and of its content: an interrupted run goes on where it was, changed content is encoded anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from item.catalog.listing import Listing
from item.model.batch import Batch, pad_words
from item.model.config import ItemConfig
from item.model.encoder import ITEm
from item.model.starting import load_bert, start_stem, start_words, stem_statistics, tensor_of
from item.model.tensors import space_of
from item.preprocessing.pictures import read_picture
from item.preprocessing.preprocessor import Preprocessor, PreprocessorConfig
from item.preprocessing.words import load_tokenizer
from item.progress import Progress

Vectors = npt.NDArray[np.float32]

MAX_WORDS = 254  # with [CLS] and [SEP] 256 tokens, MiniLM's own limit
DESCRIPTION_CHARACTERS = 200
PICTURE_SIZE = 192  # pixels
_BLOCK = 256  # contents in one file of the cache
_BATCH = 64  # contents in one run of the encoder


@dataclass(frozen=True, kw_only=True)
class StartingWeights:
    """words: a BERT checkpoint, as a folder or a hub repository; stem: a timm model; stem_weights: its weights as a
    file in timm's layout, None: timm fetches them."""

    words: str | Path
    stem: str
    stem_weights: str | Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """Vectors of N listings as the starting weights give them, not normalised; a zero row: there is no such part.

    words: (N, Dw) float32; picture: (N, Dp) float32.
    """

    words: Vectors
    picture: Vectors

    def __getitem__(self, rows: slice | npt.NDArray[np.intp]) -> Frozen:
        return Frozen(words=self.words[rows], picture=self.picture[rows])


class FrozenEncoder:
    """The starting weights as two encoders, beside each other and untrained.

    Args:
        start: where the weights are.
        limits: its limits on pictures and its background hold here too.
        cache: a folder for the vectors; None: they are computed each time.

    Raises:
        ModelError: the weights cannot be loaded.
    """

    def __init__(
        self, start: StartingWeights, limits: PreprocessorConfig, device: torch.device, cache: Path | None = None
    ) -> None:
        bert = load_bert(start.words)
        positions = len(tensor_of(bert, "embeddings.position_embeddings.weight"))
        settings = replace(limits, max_words=min(MAX_WORDS, positions - 2), picture_size=PICTURE_SIZE)
        self.preprocessor = Preprocessor(settings, load_tokenizer(bert.folder))
        values: dict[str, Any] = {
            **bert.sizes,
            **stem_statistics(start.stem),
            "max_words": settings.max_words,
            "picture_size": PICTURE_SIZE,
            "vocab_size": self.preprocessor.vocab_size,
            "cls_id": self.preprocessor.cls_id,
            "sep_id": self.preprocessor.sep_id,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # what has no starting weights is never used, but it is part of the digest
            model = ITEm(ItemConfig(**values, stem=start.stem))
        start_words(model, bert)
        start_stem(model, start.stem_weights)
        self.digest = space_of(model, self.preprocessor)
        self.model, self.device, self.cache = model.to(device).eval(), device, cache

    def encode(self, listings: Sequence[Listing], name: str) -> Frozen:
        """The frozen vectors of N listings; `name` is shown with the progress.

        Raises:
            PictureError: a picture cannot be read or is over a limit.
        """
        texts = [words_of(listing) for listing in listings]
        with ThreadPoolExecutor() as readers:
            return Frozen(
                words=self._vectors(
                    f"words of {name}",
                    [text and hashlib.sha256(text.encode()).hexdigest() for text in texts],
                    lambda rows: self._words([texts[row] for row in rows]),
                ),
                picture=self._vectors(
                    f"pictures of {name}",
                    list(readers.map(self._picture_key, listings)),
                    lambda rows: self._pictures(readers.map(self.preprocessor.picture, [listings[i] for i in rows])),
                ),
            )

    def _picture_key(self, listing: Listing) -> str:
        if not listing.images:
            return ""
        return hashlib.sha256(read_picture(listing.images[0], self.preprocessor.config)).hexdigest()

    def _vectors(self, name: str, keys: Sequence[str], encode: Callable[[Sequence[int]], Vectors]) -> Vectors:
        """keys: the digest of each listing's content, empty for none -> (N, D), each content encoded once."""
        first: dict[str, int] = {}
        for row, key in enumerate(keys):
            if key:
                first.setdefault(key, row)
        contents, blocks = list(first), []
        progress = Progress(name, len(contents), "contents")
        for start in range(0, len(contents), _BLOCK):
            block = contents[start : start + _BLOCK]
            blocks.append(self._cached(block, partial(encode, [first[key] for key in block])))
            progress.update(len(block))
        progress.close()
        found = np.concatenate(blocks) if blocks else encode([])
        vectors = np.zeros((len(keys), found.shape[1]), np.float32)
        place = {key: position for position, key in enumerate(contents)}
        has_content = [row for row, key in enumerate(keys) if key]
        vectors[has_content] = found[[place[keys[row]] for row in has_content]]
        return vectors

    def _cached(self, block: Sequence[str], encode: Callable[[], Vectors]) -> Vectors:
        if self.cache is None:
            return encode()
        key = hashlib.sha256("\n".join([self.digest, *block]).encode()).hexdigest()[:32]
        file = self.cache / f"frozen-{key}.npy"
        if not file.is_file():
            self.cache.mkdir(parents=True, exist_ok=True)
            beside = file.with_suffix(".tmp")
            with beside.open("wb") as stream:
                np.save(stream, encode())
            beside.replace(file)
        vectors: Vectors = np.load(file)
        return vectors

    @torch.inference_mode()
    def _words(self, texts: Sequence[str]) -> Vectors:
        ids = [self.preprocessor.words(Listing(title=text)) for text in texts]
        rows = sorted((len(one), row) for row, one in enumerate(ids) if one is not None)  # little is padded
        vectors = np.zeros((len(texts), self.model.config.width), np.float32)
        for start in range(0, len(rows), _BATCH):
            taken = [row for _, row in rows[start : start + _BATCH]]
            word_ids, mask = pad_words([ids[row] for row in taken], self.preprocessor.pad_id)
            no_pictures = torch.zeros(0, dtype=torch.int64)
            batch = Batch(word_ids=word_ids, word_mask=mask, picture_rows=no_pictures).to(self.device)
            vectors[taken] = self.model.pool_words(self.model(batch), batch).means[:, 1].cpu().numpy()
        return vectors

    @torch.inference_mode()
    def _pictures(self, pixels: Iterator[npt.NDArray[np.uint8] | None]) -> Vectors:
        pooled = [np.zeros((0, self.model.stem.pooled_width), np.float32)]
        while batch := [one for one in islice(pixels, _BATCH) if one is not None]:
            features = self.model.stem(torch.from_numpy(np.stack(batch)).to(self.device))
            pooled.append(self.model.stem.pooled(features).cpu().numpy())
        return np.concatenate(pooled)


def words_of(listing: Listing) -> str:
    """Title and the beginning of the description, as one text; empty where there is neither."""
    if not listing.title and not listing.description:
        return ""
    return f"{listing.title}. {listing.description[:DESCRIPTION_CHARACTERS]}"
