"""The scatter within listings, and the whitening, beside numpy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.pooled_views import POOLED, alone, categorised, make_pooled
from training.inputs import Inputs, within_scatter


def scatter_oracle(x: np.ndarray, products: np.ndarray) -> np.ndarray:
    """float64, one difference after the other."""
    own = np.zeros((x.shape[2], x.shape[2]))
    for listing in x:
        for view in listing[1:]:
            own += np.outer(view - listing[0], view - listing[0])
    groups = np.zeros_like(own)
    for product in np.unique(products):
        members = x[products == product, 0]
        if len(members) > 1:
            for one in members:
                groups += np.outer(one - members.mean(0), one - members.mean(0))
    own /= np.trace(own)
    return (own + groups / np.trace(groups)) / 2 if groups.any() else own


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), num=st.integers(1, 12), views=st.integers(1, 3), products=st.integers(1, 14))
def test_the_scatter_equals_its_definition(seed: int, num: int, views: int, products: int) -> None:
    rng = np.random.default_rng(seed)
    x, of = rng.normal(size=(num, 1 + views, 5)).astype(np.float32), rng.integers(products, size=num)
    found = within_scatter(torch.from_numpy(x), of)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), scatter_oracle(x.astype(np.float64), of), atol=1e-5)
    assert found.trace().item() == pytest.approx(1)


def test_equal_views_have_no_scatter() -> None:
    x = torch.randn(4, 1, 5).expand(4, 3, 5)
    assert not within_scatter(x, np.arange(4)).any()
    assert not within_scatter(x[:0], np.arange(0)).any()
    inputs = Inputs(x, np.ones(4, np.bool_), alone(4))
    torch.testing.assert_close(inputs.whitening(3.0), torch.eye(5), atol=1e-6, rtol=0)  # nothing is known to be noise


@pytest.mark.parametrize("shrinkage", [0.1, 3.0, 50.0])
def test_whitening_equals_its_definition(shrinkage: float) -> None:
    """sqrt(lambda) (S / mean eigenvalue + lambda I)^(-1/2), of the unit inputs that are there, about the mean of the
    listings as they are."""
    pooled, labels = make_pooled(), categorised(120)
    shifted, present = pooled.picture + 3.0, np.arange(120) % 5 != 0
    inputs = Inputs(shifted, present, labels)
    mean = shifted.double().numpy()[present, 0].mean(0)
    np.testing.assert_allclose(inputs.mean.numpy(), mean, atol=1e-5)
    x = shifted.double().numpy() - mean
    x /= np.linalg.norm(x, axis=2, keepdims=True)
    S = scatter_oracle(x[present], labels.products[present])
    values, axes = np.linalg.eigh(S / (np.trace(S) / POOLED) + shrinkage * np.eye(POOLED))
    A = shrinkage**0.5 * (axes * values**-0.5) @ axes.T
    np.testing.assert_allclose(inputs.whitening(shrinkage).numpy(), A, atol=1e-5)
    assert np.linalg.eigvalsh(A).max() <= 1
    np.testing.assert_allclose(inputs.x.numpy(), x * present[:, None, None], atol=1e-5)
    assert not inputs.x[torch.from_numpy(~present)].any()
    nothing = Inputs(shifted, np.zeros(120, np.bool_), labels)
    assert not nothing.mean.any()
    assert not nothing.x.any()
