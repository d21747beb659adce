"""A small model whose every tensor counts, and a batch of words alone, pictures alone and both."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from item.adapters.method import Method
from item.catalog.listing import Listing
from item.model.batch import Batch, collate
from item.model.config import ItemConfig
from item.model.encoder import ITEm
from item.preprocessing.preprocessor import Preprocessor


def make_model(config: ItemConfig) -> ITEm:
    """Random weights, gates open, nothing at its start, frozen, in evaluation."""
    torch.manual_seed(0)
    model = ITEm(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.gates.copy_(torch.linspace(-2, 1, config.num_layers))
    return model.requires_grad_(False)


@pytest.fixture
def model(tiny_config: ItemConfig) -> ITEm:
    return make_model(replace(tiny_config, num_layers=3))


@pytest.fixture(scope="session")
def batch(listings: list[Listing], preprocessor: Preprocessor) -> Batch:
    made = [preprocessor(listing) for listing in listings[:10]]
    assert any(one.word_ids is None for one in made)
    assert any(one.pixels is None for one in made)
    return collate(made)


@torch.no_grad()
def disturb(method: Method, by: float = 0.3) -> None:
    """Moves every parameter of a method away from its start."""
    torch.manual_seed(1)
    for parameter in method.parameters():
        parameter.add_(by * torch.randn_like(parameter))


def with_tensors(model: ITEm, tensors: dict[str, torch.Tensor]) -> ITEm:
    """Another model of the same configuration and precision, with these tensors."""
    other = ITEm(model.config).to(model.gates.dtype)
    other.load_state_dict(tensors)
    return other.eval()
