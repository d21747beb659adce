"""Heads: the category of a listing from its features, in numpy alone (`item.model.vector`'s `features`).

    P(path | category) = softmax((W f + b) / T)        over the paths below a category that its head knows
    P(path)            = P(top level) P(path | top level)

The root's head tells the top levels apart, one head for each of them its paths. W and b are learned
(`training.adapt`), T is the temperature that makes held-back listings' probabilities honest (arXiv 1706.04599).

What fits nowhere: a listing is as novel as 1 minus its cosine to the closest centre of a path's listings. `unknown` is
the share of held-back listings, seen by the same modalities, that are less novel (a conformal rank).

Shapes: N listings, F features, C paths.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from item.errors import ModelError

Array = npt.NDArray[Any]
Features = npt.NDArray[np.float32]
Category = tuple[str, ...]

FORMAT = 1  # of heads.json; another one is refused
HEADS_FOLDER = "categories"  # of a model folder
HEADS_FILE, TENSORS_FILE = "heads.json", "heads.safetensors"
PATTERNS = ("words", "picture", "both")  # what a listing is seen by
RANKS = 1001  # novelties of held-back listings that are kept, from the least to the greatest
AGAIN = "train it again with training.adapt, or remove the folder"


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """The paths below `category`, which is () at the root. weight: (C, F), bias: (C,) float32."""

    category: Category
    paths: tuple[Category, ...]
    weight: Array
    bias: Array
    temperature: float = 1.0

    def logits(self, features: Features) -> Array:
        """(N, F) -> (N, C), before the temperature."""
        return features @ self.weight.T + self.bias

    def probabilities(self, features: Features) -> Array:
        """(N, F) -> (N, C), each row of sum 1."""
        return softmax(self.logits(features) / self.temperature)


@dataclass(frozen=True, kw_only=True, eq=False)
class Novelty:
    """What a listing is compared with.

    centres: (K, F) float32 of unit norm. ranks: (3, RANKS) float32, ascending: the novelties of held-back listings by
    `PATTERNS`. threshold: of `unknown`, above which a listing is called unknown.
    """

    centres: Array
    ranks: Array
    threshold: float = 0.99

    def novelty(self, features: Features) -> Array:
        """(N, F) -> (N,), within [0, 2]."""
        return 1 - (unit(features) @ self.centres.T).max(axis=1)

    def unknown(self, features: Features, words_width: int) -> Array:
        """(N, F) -> (N,), within [0, 1]. words_width: of the features, those of the words."""
        novelty, patterns = self.novelty(features), patterns_of(features, words_width)
        ranks = [np.searchsorted(self.ranks[p], one, side="left") for p, one in zip(patterns, novelty, strict=True)]
        return np.array(ranks, dtype=np.float64) / RANKS


@dataclass(frozen=True, kw_only=True, eq=False)
class Heads:
    """The heads of a model folder, the root's first; or of an adapter, one.

    model_space: of the model that they belong to. words_width: of the features, those of the words.
    """

    model_space: str
    words_width: int
    heads: tuple[Head, ...]
    novelty: Novelty | None = None

    def of(self, category: Category) -> Head | None:
        """The head of a category."""
        return next((head for head in self.heads if head.category == category), None)

    def write(self, folder: Path) -> None:
        """Writes `heads.safetensors`, and `heads.json` with the digest of both last."""
        tensors: dict[str, Array] = {}
        for number, head in enumerate(self.heads):
            tensors |= {f"{number}.weight": head.weight, f"{number}.bias": head.bias}
        if self.novelty is not None:
            tensors |= {"novelty.centres": self.novelty.centres, "novelty.ranks": self.novelty.ranks}
        content = save({name: np.ascontiguousarray(one, np.float32) for name, one in tensors.items()})
        (folder / TENSORS_FILE).write_bytes(content)
        described: dict[str, Any] = {
            "format": FORMAT,
            "model_space": self.model_space,
            "words_width": self.words_width,
            "heads": [
                {"category": head.category, "temperature": head.temperature, "paths": head.paths} for head in self.heads
            ],
            "unknown_threshold": None if self.novelty is None else self.novelty.threshold,
        }
        described["sha256"] = digest_of(described, content)
        (folder / HEADS_FILE).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path, model_space: str) -> Heads:
        """Reads both files.

        Raises:
            ModelError: they are missing, damaged, of another format or of another model.
        """
        try:
            contents = {name: (folder / name).read_bytes() for name in (HEADS_FILE, TENSORS_FILE)}
        except OSError as error:
            raise ModelError(f"{folder}: its heads cannot be read ({error}); {AGAIN}") from error
        return cls.parse(folder, contents, model_space)

    @classmethod
    def parse(cls, folder: Path, contents: Mapping[str, bytes], model_space: str) -> Heads:
        """As `read`, of files that have been read: name -> content."""
        path = folder / HEADS_FILE
        try:
            described = json.loads(contents[HEADS_FILE])
            version, digest, content = described["format"], described["sha256"], contents[TENSORS_FILE]
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path}: damaged ({error!r}); {AGAIN}") from error
        if version != FORMAT:
            raise ModelError(f"{path}: format {version!r} is not the {FORMAT} that this version reads; {AGAIN}")
        if digest_of(described, content) != digest:
            raise ModelError(f"{folder}: {HEADS_FILE} or {TENSORS_FILE} is damaged, their digest is another; {AGAIN}")
        if (space := described.get("model_space")) != model_space:
            raise ModelError(
                f"{path}: belongs to another model (space {str(space)[:12]}, not {model_space[:12]}); {AGAIN}"
            )
        try:
            return cls._of(described, load(content))
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path}: damaged ({error!r}); {AGAIN}") from error

    @classmethod
    def _of(cls, described: Mapping[str, Any], tensors: Mapping[str, Array]) -> Heads:
        heads = tuple(
            Head(
                category=tuple(one["category"]),
                paths=tuple(map(tuple, one["paths"])),
                weight=tensors[f"{number}.weight"],
                bias=tensors[f"{number}.bias"],
                temperature=float(one["temperature"]),
            )
            for number, one in enumerate(described["heads"])
        )
        for head in heads:
            if head.weight.ndim != 2 or not len(head.paths) == len(head.weight) == len(head.bias):
                raise ValueError(f"head of {'/'.join(head.category) or 'the root'}: {len(head.paths)} paths")
        novelty = None
        if "novelty.centres" in tensors:
            novelty = Novelty(
                centres=tensors["novelty.centres"],
                ranks=tensors["novelty.ranks"],
                threshold=float(described["unknown_threshold"]),
            )
        return cls(
            model_space=described["model_space"],
            words_width=int(described["words_width"]),
            heads=heads,
            novelty=novelty,
        )


def digest_of(described: Mapping[str, Any], content: bytes) -> str:
    """sha256 (hex) of what `heads.json` says apart from it, and of the tensors' file."""
    said = json.dumps({key: value for key, value in described.items() if key != "sha256"})
    return hashlib.sha256(said.encode() + content).hexdigest()


def read_heads(model: Path, model_space: str) -> Heads | None:
    """The heads of a model folder; None where it has none. Raises ModelError as `Heads.read`."""
    folder = model / HEADS_FOLDER
    if not folder.is_dir():
        return None
    heads = Heads.read(folder, model_space)
    if heads.of(()) is None:
        raise ModelError(f"{folder / HEADS_FILE}: has no head of the root, which chooses the top level; {AGAIN}")
    return heads


def patterns_of(features: Features, words_width: int) -> npt.NDArray[np.intp]:
    """(N,): the place in `PATTERNS` of what each listing is seen by."""
    has_words, has_picture = features[:, :words_width].any(axis=1), features[:, words_width:].any(axis=1)
    return np.where(has_words & has_picture, 2, np.where(has_picture, 1, 0))


def unit(x: Array) -> Array:
    """Rows of unit norm; a row of zeros stays it."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def softmax(z: Array) -> Array:
    """Over the last dimension, in float64."""
    z = np.asarray(z, dtype=np.float64)
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def levels_of(paths: Sequence[Category], probabilities: Array) -> dict[Category, float]:
    """The probability of every path and of all above it: the sum of the paths below. probabilities: (C,)."""
    of_prefix: dict[Category, float] = {}
    for path, p in zip(paths, probabilities.tolist(), strict=True):
        for depth in range(1, len(path) + 1):
            of_prefix[path[:depth]] = of_prefix.get(path[:depth], 0.0) + p
    return of_prefix
