"""LoRA, and RoAd on top of it: the same identities, and the equations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from item.adapters.lora import Lora, LoraConfig, RoadLora, RoadLoraConfig
from item.adapters.method import Method
from item.errors import ConfigError
from item.model.batch import Batch
from item.model.encoder import ITEm
from tests.adapters.conftest import disturb, with_tensors

KINDS: dict[str, tuple[type[Method], LoraConfig]] = {
    "lora": (Lora, LoraConfig(rank=3)),
    "road_lora": (RoadLora, RoadLoraConfig(rank=3, variant="road_2")),
}


@pytest.fixture(params=KINDS)
def fresh(request: pytest.FixtureRequest, model: ITEm) -> Method:
    kind, config = KINDS[request.param]
    return kind(model, config, 3)


def states(model: ITEm, batch: Batch, method: Method | None = None, rows: list[int] | None = None) -> Tensor:
    with torch.no_grad():
        if method is None:
            return model(batch).g
        with method.applied(None if rows is None else torch.tensor(rows)):
            return model(batch).g


def test_a_fresh_adapter_is_the_identity(model: ITEm, batch: Batch, fresh: Method) -> None:
    assert torch.equal(states(model, batch, fresh, [0, 1] * 5), states(model, batch))


def test_merged_equals_unmerged_equals_the_equation(model: ITEm, batch: Batch, fresh: Method) -> None:
    model.double()
    fresh.double()
    disturb(fresh, 0.1)
    adapted = states(model, batch, fresh, [2] * 10)
    torch.testing.assert_close(states(with_tensors(model, fresh.fold(2)), batch), adapted, atol=1e-10, rtol=0)
    lora = fresh.lora if isinstance(fresh, RoadLora) else fresh
    assert isinstance(lora, Lora)
    index = lora.names.index("layers.1.up")
    x = torch.randn(4, 32, dtype=torch.float64)
    weight, bias = (fresh.fold(2)[f"layers.1.up.{part}"] for part in ("weight", "bias"))
    base = model.get_submodule("layers.1.up")
    h = base(x) + 16 / 3 * x @ lora.A[index][2].T @ lora.B[index][2].T
    if isinstance(fresh, RoadLora):
        r1, r2 = (r[2, fresh.road.places["layers.1.up"]] for r in fresh.road.tables())
        h = h * r1 + torch.stack([-h[:, 1::2], h[:, ::2]], dim=2).flatten(1) * r2
    torch.testing.assert_close(x @ weight.T + bias, h.detach(), atol=1e-10, rtol=0)


def test_each_listing_of_a_mixed_batch_is_as_with_its_adapter_alone(model: ITEm, batch: Batch, fresh: Method) -> None:
    model.double()
    fresh.double()
    disturb(fresh, 0.1)
    alone = torch.stack([states(model, batch, fresh, [row] * 10) for row in range(3)])
    rows = [2, 0, 0, 1, 2, 1, 1, 0, 2, 2]
    torch.testing.assert_close(states(model, batch, fresh, rows), alone[rows, range(10)], atol=1e-10, rtol=0)
    torch.testing.assert_close(states(model, batch, fresh), alone[0], atol=1e-10, rtol=0)
    assert min((a - b).abs().max() for a, b in zip(alone, alone.roll(1, 0), strict=True)) > 1e-2
    assert (alone - states(model, batch)).abs().amax(dim=(1, 2)).min() > 1e-2


def test_only_the_adapters_are_trained_and_all_of_them(model: ITEm, batch: Batch, fresh: Method) -> None:
    disturb(fresh, 0.1)
    with fresh.applied(torch.tensor([0, 1, 2, 0, 1] * 2)):
        states = model(batch).states[model.present(batch)]
    (states @ torch.linspace(-1, 1, states.shape[1])).square().sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    for parameter in fresh.parameters():
        assert parameter.grad is not None
        assert (parameter.grad != 0).double().mean() > 0.99


def test_what_is_stored(model: ITEm) -> None:
    config = LoraConfig(rank=2, targets=("up",))
    assert Lora(model, config, 5).num_stored == 3 * 2 * (32 + 64)
    assert RoadLora(model, RoadLoraConfig(rank=2, targets=("up",)), 5).num_stored == 3 * 2 * (32 + 64) + 3 * 64


def test_a_rank_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="rank: 0 must be at least 1"):
        LoraConfig(rank=0)
