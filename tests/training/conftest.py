"""What the tests of the programs share: small starting weights in the public layouts, with random values."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from item.preprocessing.preprocessor import Preprocessor
from training.frozen import StartingWeights

STEM = "test_efficientnet.r160_in1k"


@pytest.fixture(scope="session")
def starting_weights(preprocessor: Preprocessor, tmp_path_factory: pytest.TempPathFactory) -> StartingWeights:
    """A BERT of width 32 and 2 layers with its tokenizer, as a folder, and timm's smallest model, as a file."""
    folder, file = tmp_path_factory.mktemp("bert"), tmp_path_factory.mktemp("stem") / "stem.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        config = BertConfig(vocab_size=preprocessor.vocab_size, initializer_range=0.3, **sizes)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
        save_file(timm.create_model(STEM).state_dict(), file)
    preprocessor.save_pretrained(folder)
    return StartingWeights(words=folder, stem=STEM, stem_weights=file)
