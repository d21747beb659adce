"""What a run starts from: the preprocessing, the model with its starting weights, and the vector at late fusion."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from item.catalog.listing import Listing
from item.errors import ConfigError
from item.model.batch import Batch
from item.model.config import ItemConfig
from item.model.encoder import ITEm
from item.model.starting import Bert, load_bert, start_stem, start_words, stem_statistics
from item.preprocessing.preprocessor import Preprocessor, PreprocessorConfig
from item.preprocessing.words import load_tokenizer, train_tokenizer
from training.config import HUB, ModelOptions, PretrainConfig


def make_preprocessor(config: PretrainConfig, bert: Bert | None, listings: Sequence[Listing]) -> Preprocessor:
    """The checkpoint's own tokenizer, or one trained on the catalogue's words."""
    options = PreprocessorConfig(max_words=config.model.max_words, picture_size=config.model.picture_size)
    if bert is not None:
        return Preprocessor(options, load_tokenizer(bert.folder))
    texts = [text for listing in listings for text in (listing.title, listing.description) if text]
    return Preprocessor(options, train_tokenizer(texts, vocab_size=config.model.vocab_size))


def make_model(config: PretrainConfig, bert: Bert | None, preprocessor: Preprocessor) -> ITEm:
    """The encoder with its starting weights; what has none is drawn with the run's seed."""
    torch.manual_seed(config.run.seed)
    options, stem_starts = config.model, config.model.stem is not None and config.start.stem_weights is not None
    if bert is not None:
        check_sizes(options, bert)
    values: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("width", "num_layers", "num_heads", "mlp_width", "max_words", "picture_size", "stem", "stem_part")
    }
    model = ITEm(
        ItemConfig(
            **values,
            **(stem_statistics(options.stem) if options.stem else {}),
            vocab_size=preprocessor.vocab_size,
            cls_id=preprocessor.cls_id,
            sep_id=preprocessor.sep_id,
            patch_size=options.patch_size,
            vector_width=options.vector_width,
            attention=options.attention,
            dropout=options.dropout,
            layer_norm_eps=bert.sizes["layer_norm_eps"] if bert else ItemConfig.layer_norm_eps,
        )
    )
    if bert is not None:
        start_words(model, bert)
    if stem_starts:
        start_stem(model, None if config.start.stem_weights == HUB else config.start.stem_weights)
    return model


def check_sizes(options: ModelOptions, bert: Bert) -> None:
    """The model's sizes must be the checkpoint's."""
    different = {
        name: bert.sizes[name]
        for name in ("width", "num_layers", "num_heads", "mlp_width")
        if getattr(options, name) != bert.sizes[name]
    }
    if different:
        way_out = " ".join(f"model.{name}={size}" for name, size in different.items())
        raise ConfigError(f"start.words: {bert.folder} has other sizes than the configuration; set {way_out}")


def load_start(config: PretrainConfig) -> Bert | None:
    """The BERT checkpoint of `start.words`, where there is one."""
    return None if config.start.words is None else load_bert(config.start.words)


@torch.inference_mode()
def fit_vector(model: ITEm, batches: Iterable[Batch], picture_weight: float, *, whiten: bool) -> None:
    """Fits the vector head on a sample of the catalogue."""
    model.eval()
    device = model.gates.device
    words = [torch.zeros(0, 2, model.config.width, device=device)]
    pooled = [torch.zeros(0, model.stem.pooled_width, device=device)]
    for batch in batches:
        batch = batch.to(device)
        encoded = model(batch)
        words.append(model.pool_words(encoded, batch).means)
        if encoded.features is not None:
            pooled.append(model.stem.pooled(encoded.features))
    model.vector.fit(torch.cat(words), torch.cat(pooled), picture_weight, whiten=whiten)
