"""RoAd against its oracle, and the identities of item.adapters: fresh, merged, mixed, trained, composed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from item.adapters import adapter as on_numpy
from item.adapters.adapter import LINEARS, VALUES, linears_of
from item.adapters.road import Road, RoadConfig, Rotator, rotate, rotations
from item.errors import ConfigError
from item.model.batch import Batch
from item.model.encoder import ITEm
from tests.adapters import road_oracle
from tests.adapters.conftest import disturb, make_model, with_tensors

VARIANTS = sorted(VALUES)
quickly = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


def road(model: ITEm, variant: str = "road_1", num_adapters: int = 1, targets: tuple[str, ...] = LINEARS) -> Road:
    """Disturbed adapters."""
    method = Road(model, RoadConfig(variant=variant, targets=targets), num_adapters)
    disturb(method)
    return method


def vectors(model: ITEm, batch: Batch, method: Road | None = None, rows: list[int] | None = None) -> Tensor:
    """(B, V), without gradients."""
    with torch.no_grad():
        if method is None:
            return model.embed(batch)
        with method.applied(None if rows is None else torch.tensor(rows)):
            return model.embed(batch)


@settings(max_examples=50)
@given(variant=st.sampled_from(VARIANTS), num_blocks=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_rotations_are_the_papers_matrices(variant: str, num_blocks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    alpha, theta = rng.normal(1, 1, (2, num_blocks * VALUES[variant]))
    h = rng.normal(size=(3, 2 * num_blocks))
    expected = h @ road_oracle.matrix(variant, alpha, theta).T
    r1, r2 = rotations(variant, torch.from_numpy(alpha), torch.from_numpy(theta))
    np.testing.assert_allclose(rotate(torch.from_numpy(h), r1, r2).numpy(), expected, atol=1e-12)
    for ours, theirs in zip(on_numpy.rotations(variant, alpha, theta), (r1, r2), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-15)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_adapted_encoder_is_the_one_with_the_oracles_weights(model: ITEm, batch: Batch, variant: str) -> None:
    model.double()
    method = road(model, variant).double()
    tensors = dict(model.state_dict())
    for name, (alpha, theta) in values64(method).items():
        R = torch.from_numpy(road_oracle.matrix(variant, alpha, theta))
        for part in ("weight", "bias"):
            tensors[f"{name}.{part}"] = R @ tensors[f"{name}.{part}"]
    with torch.no_grad(), method.applied():
        states = model(batch).states
        expected = with_tensors(model, tensors)(batch).states
    torch.testing.assert_close(states, expected, atol=1e-10, rtol=0)
    assert (states - model(batch).states).abs().max() > 0.1


def values64(method: Road) -> dict[str, tuple[Any, Any]]:
    """An adapter's values in float64."""
    return {
        name: (method.alpha[0, place].detach().numpy(), method.theta[0, place].detach().numpy())
        for name, place in method.parameter_places().items()
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fresh_adapter_is_the_identity(model: ITEm, batch: Batch, variant: str) -> None:
    fresh = Road(model, RoadConfig(variant=variant), 2)
    assert torch.equal(vectors(model, batch, fresh, [0, 1] * 5), vectors(model, batch))
    folded = fresh.fold(1)
    assert all(torch.equal(tensor, folded[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_equals_unmerged(model: ITEm, batch: Batch, variant: str) -> None:
    method = road(model, variant, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = method.fold(1)
    torch.testing.assert_close(
        vectors(with_tensors(model, folded), batch), vectors(model, batch, method, [1] * 10), atol=2e-6, rtol=0
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    pointers, new = ({one.data_ptr() for one in some.values() if one.numel()} for some in (model.state_dict(), folded))
    assert not pointers & new


@quickly
@given(rows=st.lists(st.integers(0, 2), min_size=10, max_size=10), variant=st.sampled_from(VARIANTS))
def test_each_listing_of_a_mixed_batch_is_as_with_its_adapter_alone(
    model: ITEm, batch: Batch, rows: list[int], variant: str
) -> None:
    method = road(model, variant, 3)
    alone = torch.stack([vectors(model, batch, method, [row] * 10) for row in range(3)])
    mixed = vectors(model, batch, method, rows)
    torch.testing.assert_close(mixed, alone[rows, range(10)], atol=1e-6, rtol=0)
    different = [
        (a - b).norm(dim=1).min() for a, b in zip([*alone, vectors(model, batch)], alone.roll(1, 0), strict=False)
    ]
    assert min(different) > 1e-2  # the adapters and the model alone do differ


def test_rows_stay_listings_where_tokens_are_left_out(model: ITEm, batch: Batch) -> None:
    method = road(model, "road_1", 2)
    keep = model.present(batch)
    keep[::2, 2::3] = False
    rows = torch.tensor([0, 1] * 5)
    with torch.no_grad():
        with method.applied(rows):
            mixed = model(batch, keep=keep).g
        for row in (0, 1):
            with method.applied(torch.full((10,), row)):
                torch.testing.assert_close(mixed[row::2], model(batch, keep=keep).g[row::2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_adapters_are_trained_and_all_of_them(model: ITEm, batch: Batch, variant: str) -> None:
    method = road(model, variant, 2)
    with method.applied(torch.tensor([0, 1] * 5)):
        states = model(batch).states[model.present(batch)]
    (states @ torch.linspace(-1, 1, states.shape[1])).square().sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {name for name, _ in method.named_parameters()} == {"alpha", "theta"}
    for parameter in method.parameters():
        assert parameter.grad is not None
        assert (parameter.grad != 0).double().mean() > 0.99


def test_adapters_of_a_mixed_batch_learn_as_each_would_alone(model: ITEm, batch: Batch) -> None:
    model.double()
    method = road(model, "road_2", 2).double()
    rows = torch.tensor([0, 1, 1] * 3 + [0])

    def gradients(counted: Tensor) -> list[Tensor]:
        with method.applied(rows):
            loss = (model(batch).g * torch.linspace(-1, 1, 32))[counted].square().sum()
        return list(torch.autograd.grad(loss, list(method.parameters())))

    together = gradients(torch.ones(10, dtype=torch.bool))
    for row in (0, 1):
        for mixed, alone in zip(together, gradients(rows == row), strict=True):
            torch.testing.assert_close(mixed[row], alone[row], atol=1e-12, rtol=0)
            assert not alone[1 - row].any()


def test_disjoint_blocks_are_trained_apart_and_compose(model: ITEm, batch: Batch) -> None:
    model.double()
    method = road(model, "road_1", 3).double()
    method.restrict(0, 0, 0.5)
    method.restrict(1, 0.5, 1)
    assert not (method.blocks[0] & method.blocks[1]).any()
    assert (method.blocks[0] | method.blocks[1]).all()
    with torch.no_grad():
        for parameter in method.parameters():  # the third adapter is both at once
            parameter[2] = torch.where(method.blocks[0], parameter[0], parameter[1])
    r1, r2 = method.tables()
    only = [rotated_states(model, batch, r1[row], r2[row]) for row in range(3)]
    of_second = method.blocks[1].repeat_interleave(2)
    both = rotated_states(model, batch, *(torch.where(of_second, r[1], r[0]) for r in (r1, r2)))
    torch.testing.assert_close(both, only[2], atol=1e-12, rtol=0)
    assert min((both - only[0]).abs().max(), (both - only[1]).abs().max()) > 0.01
    with method.applied(torch.tensor([0, 1] * 5)):
        (model(batch).g * torch.linspace(-1, 1, 32)).square().sum().backward()
    for parameter in method.parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad[:2] != 0, method.blocks[:2])


def rotated_states(model: ITEm, batch: Batch, r1: Tensor, r2: Tensor) -> Tensor:
    """The last states with given rotations, (S,) each."""
    with torch.no_grad(), Rotator(model).applied(r1[None].detach(), r2[None].detach()):
        return model(batch).states


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_takes_float32_adapters(model: ITEm, batch: Batch, dtype: torch.dtype) -> None:
    method = road(model, "road_1", 2)
    rows = torch.tensor([0, 1] * 5)
    with torch.no_grad(), method.applied(rows):
        expected = model(batch).g
        half = model.to(dtype)(batch).g
    assert half.dtype == dtype
    assert method.alpha.dtype == torch.float32
    torch.testing.assert_close(half.float(), expected, atol=0.25, rtol=0)
    with method.applied(rows):
        model(batch).g.float().square().sum().backward()
    assert method.alpha.grad is not None
    assert method.alpha.grad.dtype == torch.float32


def test_a_scale_finer_than_bfloat16_is_not_lost() -> None:
    scale = torch.full((10_000,), 1.003)
    h = torch.rand(10_000, generator=torch.Generator().manual_seed(0)).add(1).to(torch.bfloat16)
    assert (scale.to(torch.bfloat16) == 1).all()
    scaled = rotate(h, scale, torch.zeros(10_000))
    assert scaled.dtype == torch.bfloat16
    assert float(scaled.float().mean() / h.float().mean()) == pytest.approx(1.003, abs=1e-3)


@pytest.mark.parametrize("variant", ["road_1", "road_4"])
def test_compiled_layers_run_with_any_rows(model: ITEm, variant: str) -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    method, run_layers = road(model, variant, 3), model.run_layers
    compiled = torch.compile(run_layers, backend=count, dynamic=True)
    x = torch.randn(6, 7, model.config.width)
    mask, is_text = torch.ones(6, 7, dtype=torch.bool), torch.ones(1, 7, dtype=torch.bool)
    torch._dynamo.reset()
    alone = run_layers(x, mask, is_text)
    for rows in ([], [0, 1, 2, 0, 1, 2], [2, 2, 1, 0, 0, 0], [], [1, 0, 2, 1, 0, 2]):
        with torch.no_grad():
            if not rows:
                assert torch.equal(compiled(x, mask, is_text), alone)
                continue
            with method.applied(torch.tensor(rows)):
                expected = run_layers(x, mask, is_text)
                torch.testing.assert_close(compiled(x, mask, is_text), expected)
            assert (expected - alone).abs().max() > 0.1
    assert len(graphs) == 2  # with adapters and without
    torch._dynamo.reset()


def test_nothing_remains_after_an_exception(model: ITEm, batch: Batch) -> None:
    method, before = road(model), vectors(model, batch)
    modules, names = list(model.modules()), list(model.state_dict())

    def fail() -> None:
        with method.applied():
            assert list(model.state_dict()) == names
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        fail()
    assert list(model.modules()) == modules
    assert torch.equal(vectors(model, batch), before)


def test_chosen_layers_alone_are_adapted(model: ITEm, batch: Batch) -> None:
    targets = ("value", "layers.1.up")
    method = road(model, "road_1", 1, targets)
    names = [f"layers.{i}.attention.value" for i in range(3)]
    assert sorted(method.places) == sorted([*names, "layers.1.up"])
    changed = {name for name, tensor in method.fold().items() if not torch.equal(tensor, model.state_dict()[name])}
    assert changed == {f"{name}.{part}" for name in method.places for part in ("weight", "bias")}
    assert method.num_stored == 3 * 32 + 64
    torch.testing.assert_close(
        vectors(with_tensors(model, method.fold()), batch), vectors(model, batch, method), atol=2e-6, rtol=0
    )


def test_places_and_sizes_are_those_of_the_encoders_linear_layers(model: ITEm) -> None:
    linears = {name: one for name, one in model.named_modules() if isinstance(one, nn.Linear) and "layers." in name}
    ours = linears_of(model.config)
    assert set(ours) == set(linears)
    assert all(place.stop - place.start == linears[name].out_features for name, place in ours.items())
    assert [place.start for place in ours.values()][1:] == [place.stop for place in ours.values()][:-1]
    assert max(place.stop for place in ours.values()) == on_numpy.num_rotations(model.config)
    wide = make_model(replace(model.config, mlp_width=128))
    assert Road(wide, RoadConfig()).num_stored == 9 * 32 * 3  # 9 D L


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda model: RoadConfig(variant="road_3"), "'road_3' is none of road_1, road_2, road_4"),
        (lambda model: Road(model, RoadConfig(targets=("queries",))), "'queries' is none of query, key"),
        (lambda model: Road(model, RoadConfig(targets=())), "none are named"),
        (lambda model: Road(model, RoadConfig()).restrict(0, 0.5, 0.5), "from 0.5 to 0.5 is no share"),
        (lambda model: Road(make_model(replace(model.config, mlp_width=63)), RoadConfig()), "mlp_width: 63 is odd"),
    ],
)
def test_what_cannot_be_adapted_is_refused(model: ITEm, make: Callable[[ITEm], Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make(model)
