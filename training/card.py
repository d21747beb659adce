"""The model card: README.md of a model folder."""

from __future__ import annotations

from pathlib import Path

from item.model.config import ItemConfig
from training.config import PretrainConfig

CARD = """---
library_name: item
tags: [product-embeddings, image-text, e-commerce]
---
# An ITEm product encoder

One vector of {vector_width} dimensions for a listing's words, its picture, or both (cosine similarity).

| | |
|---|---|
| layers | {num_layers} of width {width}, {num_heads} heads, {attention} attention |
| words | WordPiece, {vocab_size} pieces, the first {max_words} of title and description |
| picture | {picture_size} px, padded to a square, {stem} |
| vector | {vector_width} dimensions, {vector} |
| started from | words: {words}; picture: {stem_weights} |
| trained | {trained} |

```
python -m index.build   --model . --catalog CATALOGUE --index INDEX
python -m deploy.server --model . --index INDEX
```

How well it searches and classifies on your catalogue: `python -m training.evaluate --model . --catalog CATALOGUE`.
"""


def write_card(
    folder: Path, model: ItemConfig, config: PretrainConfig, trained: str, vector: str | None = None
) -> None:
    """Writes README.md into a model folder. Starting weights are named without their paths.

    trained: on what and how, in words. vector: what the vector is; None: the starting point.
    """
    start = "late fusion of the starting weights" if config.start.words else "whitened late fusion"
    scratch = "from scratch"
    text = CARD.format(
        **{name: getattr(model, name) for name in ("vector_width", "num_layers", "width", "num_heads", "attention")},
        **{name: getattr(model, name) for name in ("vocab_size", "max_words", "picture_size")},
        stem=f"stem {model.stem} ({model.stem_part})" if model.stem else f"patches of {model.patch_size} px",
        vector=vector or start,
        words=Path(config.start.words).name if config.start.words else scratch,
        stem_weights=Path(config.start.stem_weights).name if model.stem and config.start.stem_weights else scratch,
        trained=trained,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(text, encoding="utf-8")
