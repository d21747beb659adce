"""The words that the encoder reads of a listing, and the WordPiece tokenisers that make them.

    word_ids = title ids, [SEP], description ids; cut at the end to `max_words`; a closing [SEP]

[CLS] is the model's affair. A special token's name within a title or a description is ordinary text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from item.catalog.listing import Listing
from item.errors import ConfigError, ListingError, ModelError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUES = "##"  # starts the pieces inside a word

# What is read of a title and of a description, per word id: a megabyte of description costs no more than this.
CHARACTERS_PER_WORD = 32


def word_ids(listing: Listing, tokenizer: Tokenizer, max_words: int) -> npt.NDArray[np.int32] | None:
    """The ids of a listing's words and the closing [SEP]: (n + 1,) int32 with n <= max_words; None without words.

    Of each text the first 32 characters per word id are read. No [SEP] stands between title and description where
    one of them has no words, or where the title leaves no room.
    """
    separator = special_id(tokenizer, "[SEP]")
    ids: list[int] = []
    for field in ("title", "description"):
        if len(ids) + 1 < max_words or not ids:
            more = _encode(tokenizer, field, getattr(listing, field)[: max_words * CHARACTERS_PER_WORD])
            ids += [separator, *more] if ids and more else more
    return np.array([*ids[:max_words], separator], dtype=np.int32) if ids else None


def load_tokenizer(path: str | Path) -> Tokenizer:
    """A tokeniser from tokenizer.json or vocab.txt, given as the file or as the folder that has it.

    A vocab.txt is read as BERT's, uncased unless tokenizer_config.json beside it says otherwise.

    Raises:
        ModelError: no such file, damaged, or special tokens missing.
    """
    path = Path(path)
    candidates = [path / "tokenizer.json", path / "vocab.txt"] if path.is_dir() else [path]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise ModelError(f"{path}: no {' or '.join(candidate.name for candidate in candidates)} there")
    try:
        loaded = _from_vocabulary(file) if file.suffix == ".txt" else Tokenizer.from_file(str(file))
    except ModelError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelError(f"{file}: damaged or no tokeniser ({error})") from error
    try:
        return bare_tokenizer(loaded)
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from error


def train_tokenizer(texts: Sequence[str], *, vocab_size: int, min_frequency: int = 2) -> Tokenizer:
    """A WordPiece tokeniser (lower case, accents off) of at most `vocab_size` pieces, trained on texts.

    The same texts in any order give the same vocabulary: the special tokens 0 to 4, then single characters (the most
    frequent, at most half of what is left), then merges. Rarer characters, and words with one, become [UNK].

    Args:
        min_frequency: how often a pair of pieces must be seen to be merged.
    """
    if vocab_size < 32:
        raise ConfigError(f"vocab_size: {vocab_size} is below 32; a catalogue needs some thousands")
    normalizer = normalizers.BertNormalizer(lowercase=True)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    del counts[" "]
    alphabet = sorted(counts, key=lambda character: (-counts[character], character))
    alphabet = alphabet[: (vocab_size - len(SPECIAL_TOKENS)) // 4]  # a character has two pieces: first, and inside
    # The trainer numbers pieces like ##a in the order of a hash table, and breaks ties between merges by number. So a
    # first run finds these pieces, and the second gets them in order.
    pieces = sorted(_train(texts, normalizer, alphabet, [*SPECIAL_TOKENS], vocab_size=0).keys() - set(SPECIAL_TOKENS))
    vocabulary = _train(texts, normalizer, alphabet, [*SPECIAL_TOKENS, *pieces], vocab_size, min_frequency)
    return bare_tokenizer(_wordpiece(models.WordPiece(vocabulary, unk_token="[UNK]"), normalizer))


def bare_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that gives a text's own ids and nothing else: no truncation, padding, or added [CLS] and [SEP].

    Raises:
        ModelError: special tokens are missing.
    """
    bare = Tokenizer.from_str(tokenizer.to_str())
    bare.no_truncation()
    bare.no_padding()
    bare.post_processor = None
    bare.encode_special_tokens = True  # a title with the word [MASK] has brackets, no mask
    missing = [token for token in SPECIAL_TOKENS if bare.token_to_id(token) is None]
    if missing:
        raise ModelError(f"the tokeniser has no {', '.join(missing)}; give one with BERT's special tokens")
    return bare


def special_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of one of SPECIAL_TOKENS in a tokeniser that has them all."""
    found = tokenizer.token_to_id(token)
    assert found is not None, token
    return found


def _encode(tokenizer: Tokenizer, field: str, text: str) -> list[int]:
    try:
        return tokenizer.encode(text, add_special_tokens=False).ids
    except (UnicodeEncodeError, TypeError) as error:
        raise ListingError(field, f"{text[:60]!r} is no text that UTF-8 can hold; remove lone surrogates") from error


def _wordpiece(model: models.WordPiece, normalizer: normalizers.BertNormalizer) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUES)
    tokenizer.add_special_tokens([token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is not None])
    return tokenizer


def _from_vocabulary(file: Path) -> Tokenizer:
    settings_file = file.with_name("tokenizer_config.json")
    settings = json.loads(settings_file.read_text("utf-8")) if settings_file.is_file() else {}
    normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    model = models.WordPiece.from_file(str(file), unk_token="[UNK]", continuing_subword_prefix=CONTINUES)
    return _wordpiece(model, normalizer)


def _train(
    texts: Sequence[str],
    normalizer: normalizers.BertNormalizer,
    alphabet: list[str],
    first: list[str],
    vocab_size: int,
    min_frequency: int = 0,
) -> dict[str, int]:
    """The vocabulary that the library's trainer makes: `first` numbered from 0, then the merges."""
    tokenizer = _wordpiece(models.WordPiece(unk_token="[UNK]"), normalizer)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=first,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=CONTINUES,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    return tokenizer.get_vocab()
