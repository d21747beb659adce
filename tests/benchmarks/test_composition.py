"""The benchmark of composition: rotations one after the other, and outputs exchanged between two runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import benchmarks.composition
from benchmarks.composition import Pair, carried, one_after_the_other, turned
from item.adapters.adapter import LINEARS, Adapter, num_rotations
from item.adapters.head import Head
from item.model.config import ItemConfig
from item.model.encoder import ITEm


def make_adapter(config: ItemConfig, seed: int) -> Adapter:
    generator = np.random.default_rng(seed)
    r1, r2 = (generator.normal(size=num_rotations(config) // 2).astype(np.float32).repeat(2) for _ in range(2))
    return Adapter(
        name=str(seed),
        method="road_1",
        model_space="",
        category=(),
        r1=r1,
        r2=r2,
        num_parameters=0,
        digest=str(seed),
    )


@given(st.integers(0, 99))
def test_the_product_of_two_adapters_is_one_after_the_other(tiny_config: ItemConfig, seed: int) -> None:
    a, b = make_adapter(tiny_config, seed), make_adapter(tiny_config, seed + 1)
    h = np.random.default_rng(seed).normal(size=num_rotations(tiny_config))

    def rotated(adapter: Adapter, x: np.ndarray) -> np.ndarray:
        turned = np.stack([-x[1::2], x[0::2]], axis=1).ravel()
        return np.asarray(adapter.r1 * x + adapter.r2 * turned)

    np.testing.assert_allclose(rotated(one_after_the_other(a, b), h), rotated(b, rotated(a, h)), rtol=1e-4, atol=1e-4)


@pytest.fixture(autouse=True)
def few_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the tiny model has blocks for."""
    monkeypatch.setattr(benchmarks.composition, "GROUPS", 8)


def test_what_a_layer_carries(tiny_model: ITEm) -> None:
    """`down` is a function of `up` at each word, so that both carry the same."""
    tiny_config, generator = tiny_model.config, np.random.default_rng(0)
    words = generator.integers(10, tiny_config.vocab_size, (4, 6)).astype(np.int32)
    words[:, -1] = tiny_config.sep_id
    others = words.copy()
    others[:, 2] = 9
    pairs = [Pair(words=one, other=other, value=0, other_value=1) for one, other in zip(words, others, strict=True)]
    width = 2 * tiny_config.width
    weight = generator.normal(size=(2, width)).astype(np.float32)
    head = Head(category=("colour",), paths=(("colour", "a"), ("colour", "b")), weight=weight, bias=np.zeros(2))
    whole, by_group = carried(tiny_model, head, pairs, width)
    assert whole.shape == (tiny_config.num_layers, len(LINEARS))
    assert by_group.shape == (*whole.shape, 8)
    up, down, value = (LINEARS.index(name) for name in ("up", "down", "value"))
    np.testing.assert_allclose(whole[:, up], whole[:, down], atol=1e-4)
    assert np.abs(whole[:, [down, value]]).min() > 1e-4
    assert np.isfinite(by_group).all()


def test_an_adapter_that_does_nothing_turns_nothing(tiny_model: ITEm) -> None:
    adapter = make_adapter(tiny_model.config, 0)
    still = replace(adapter, r1=np.ones_like(adapter.r1), r2=np.zeros_like(adapter.r2))
    assert not turned(still, tiny_model).any()
    assert turned(adapter, tiny_model).min() > 0
