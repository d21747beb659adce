"""A listing made ready for the encoder: one implementation for training, indexing and serving."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from item.catalog.listing import Listing
from item.errors import ConfigError, ListingError, ModelError
from item.preprocessing.config import PreprocessorConfig
from item.preprocessing.pictures import load_picture, to_square
from item.preprocessing.prepared import Prepared
from item.preprocessing.spelling import spelling
from item.preprocessing.words import SPECIAL_TOKENS, bare_tokenizer, load_tokenizer, special_id, word_ids

__all__ = ["VERSION", "Preprocessor", "PreprocessorConfig"]

VERSION = 2  # of what this package computes: raised with every change that changes ids, spelling or pixels
CONFIG_FILE, TOKENIZER_FILE = "preprocessor_config.json", "tokenizer.json"


class Preprocessor:
    """Words and picture of a listing as the encoder takes them. Immutable; shared by threads; pickled to processes.

    Args:
        config: the settings.
        tokenizer: a WordPiece tokeniser with BERT's special tokens; its truncation, padding and post-processor are
            left out.

    Raises:
        ModelError: the tokeniser lacks special tokens.
    """

    def __init__(self, config: PreprocessorConfig, tokenizer: Tokenizer) -> None:
        self.config = config
        self.tokenizer = bare_tokenizer(tokenizer)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            special_id(self.tokenizer, token) for token in SPECIAL_TOKENS
        )
        self.vocab_size = 1 + max(self.tokenizer.get_vocab().values())  # rows of the word embedding

    def __reduce__(self) -> tuple[type[Preprocessor], tuple[PreprocessorConfig, Tokenizer]]:
        return Preprocessor, (self.config, self.tokenizer)  # a pickled Tokenizer forgets encode_special_tokens

    def __call__(self, listing: Listing) -> Prepared:
        """The listing made ready.

        Raises:
            PictureError: the main picture cannot be read or is over a limit.
            ListingError: neither words nor a picture.
        """
        word_ids, pixels = self.words(listing), self.picture(listing)
        prepared = Prepared(word_ids=word_ids, spelling=None if word_ids is None else spelling(listing), pixels=pixels)
        if prepared.word_ids is None and prepared.pixels is None:
            shown = f"{(listing.title or listing.description)[:60]!r} has no words"
            raise ListingError("title", f"{shown}, and there is no image: nothing to encode; give one of them")
        return prepared

    def words(self, listing: Listing) -> npt.NDArray[np.int32] | None:
        """(n + 1,) int32: title, description and the closing [SEP], n <= max_words; None without words."""
        return word_ids(listing, self.tokenizer, self.config.max_words)

    def picture(self, listing: Listing) -> npt.NDArray[np.uint8] | None:
        """(3, S, S) uint8, RGB: the main picture, upright and padded to a square; None without pictures."""
        if not listing.images:
            return None
        return to_square(load_picture(listing.images[0], self.config), self.config)

    def digest(self) -> str:
        """sha256 (hex) of all that decides the outcome: settings, tokeniser, version of this code."""
        tokenizer = json.loads(self.tokenizer.to_str())
        parts = {
            "version": VERSION,
            "config": {
                k: v for k, v in asdict(self.config).items() if not k.startswith("max_picture_")
            },  # but for limits
            "tokenizer": {part: tokenizer[part] for part in ("normalizer", "pre_tokenizer", "model", "added_tokens")},
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes tokenizer.json and preprocessor_config.json, each beside and renamed."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = json.dumps({"version": VERSION, **asdict(self.config)}, indent=2)
        for name, text in ((TOKENIZER_FILE, self.tokenizer.to_str(pretty=True)), (CONFIG_FILE, config)):
            beside = folder / f"{name}.tmp"
            beside.write_text(text + "\n", encoding="utf-8")
            beside.replace(folder / name)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Preprocessor:
        """A preprocessor as `save_pretrained` wrote it.

        Raises:
            ModelError: a file is missing or damaged, a setting is missing or unknown, or the version is another.
        """
        file = Path(folder) / CONFIG_FILE
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ModelError(f"{file}: no such file; give a model folder") from error
        except (OSError, ValueError) as error:
            raise ModelError(f"{file}: damaged ({error})") from error
        try:
            config = _parse_config(saved)
        except (ConfigError, TypeError) as error:
            raise ModelError(f"{file}: {error}") from error
        return cls(config, load_tokenizer(Path(folder) / TOKENIZER_FILE))


def _parse_config(saved: Any) -> PreprocessorConfig:
    if not isinstance(saved, dict):
        raise ConfigError("is no JSON object")
    if (version := saved.get("version")) != VERSION:
        way_out = "make the model folder again"
        raise ConfigError(f"version: {version!r}, and this installation prepares as version {VERSION}; {way_out}")
    known = {field.name for field in fields(PreprocessorConfig)}
    settings = {name: value for name, value in saved.items() if name != "version"}
    if settings.keys() != known:
        faults = [f"{name} is missing" for name in sorted(known - settings.keys())]
        faults += [f"{name} is unknown" for name in sorted(settings.keys() - known)]
        raise ConfigError(", ".join(faults))
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
    return PreprocessorConfig(**values)
