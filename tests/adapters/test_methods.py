"""All methods by name, and that what serves adapters needs no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from item.adapters.methods import METHODS, make_method
from item.errors import ConfigError
from item.model.batch import Batch
from item.model.encoder import ITEm
from tests.adapters.conftest import disturb


@pytest.mark.parametrize("name", METHODS)
def test_a_fresh_method_changes_nothing_by_being_there(model: ITEm, batch: Batch, name: str) -> None:
    with torch.no_grad():
        before = model(batch).g
        method = make_method(name, model, 2)
        assert 0 < method.num_stored
        assert torch.equal(model(batch).g, before)
        with method.applied(torch.tensor([0, 1] * 5)):
            inside = model(batch).g
        if name != "meft1":  # near the model, not the model itself
            torch.testing.assert_close(inside, before, atol=1e-5, rtol=0)
        assert torch.equal(model(batch).g, before)


@pytest.mark.parametrize("name", ["lora", "hiwi"])
def test_compiled_layers_see_every_method(model: ITEm, name: str) -> None:
    """What was compiled without adapters must not run in their place."""
    torch._dynamo.reset()
    method = make_method(name, model)
    disturb(method)
    compiled = torch.compile(model.run_layers, backend="eager", dynamic=True)
    layers = torch.randn(6, 7, 32), torch.ones(6, 7, dtype=torch.bool), torch.ones(1, 7, dtype=torch.bool)
    with torch.no_grad():
        alone = compiled(*layers)
        with method.applied():
            adapted, expected = compiled(*layers), model.run_layers(*layers)
        assert torch.equal(compiled(*layers), alone)
    torch.testing.assert_close(adapted, expected)
    assert (expected - alone).abs().max() > 1e-2
    torch._dynamo.reset()


def test_options_are_those_of_the_method(model: ITEm) -> None:
    assert make_method("road_1", model, targets=("value",)).num_stored == 3 * 32
    with pytest.raises(ConfigError, match="method: 'road_3' is none of road_1"):
        make_method("road_3", model)
    with pytest.raises(ConfigError, match="rank: road_1 has no such option; it has variant, targets"):
        make_method("road_1", model, rank=3)


def test_serving_adapters_needs_no_torch() -> None:
    code = "import sys, item.adapters.bank; print(*sorted({'torch', 'timm', 'onnx'} & set(sys.modules)))"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
