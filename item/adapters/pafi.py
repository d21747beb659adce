"""PaFi (arXiv 2305.16742): the parameters of smallest magnitude are trained, the same ones for all tasks.

    theta_i is trained where |theta_i| is among the `share` smallest of the layers; all others stay as they are

The mask depends on the pre-trained parameters alone, so that many tasks share it. What is trained is the vector of
those K values, not a masked gradient on whole tensors: weight decay and an optimiser's moments exist for nothing else.
On disk: the mask's indices once, and K values a task.

Shapes: N adapters (tasks), K trained values of an adapter. An index counts through all parameters of the layers, in the
order of `model.layers.named_parameters()`, each flattened.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from item.adapters.layers import layers_run_by
from item.adapters.method import Method
from item.errors import ConfigError, ModelError
from item.model.encoder import ITEm
from item.model.tensors import read_tensors, save_tensors

MASK_FILE = "mask.safetensors"


@dataclass(frozen=True, kw_only=True)
class PafiConfig:
    """share: of the layers' parameters that are trained, those of smallest magnitude."""

    share: float = 0.005

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"share: {self.share} must be above 0 and at most 1")


def smallest(parameters: Sequence[Tensor], share: float) -> Tensor:
    """The indices of the `share` smallest magnitudes of all parameters together, (K,) int64, ascending, at least one;
    of equal ones the first."""
    magnitudes = torch.cat([parameter.detach().flatten().abs() for parameter in parameters])
    K = max(1, round(share * len(magnitudes)))
    threshold = magnitudes.kthvalue(K).values
    below = (magnitudes < threshold).nonzero().squeeze(1)
    equal = (magnitudes == threshold).nonzero().squeeze(1)[: K - len(below)]
    return torch.cat([below, equal]).sort().values


def scatter(parameters: Sequence[Tensor], indices: Tensor, values: Tensor) -> list[Tensor]:
    """New tensors: the parameters with `values`, (K,), at `indices`, (K,), ascending. Gradients go to values alone."""
    bounds = torch.tensor([0, *(parameter.numel() for parameter in parameters)]).cumsum(0)
    cuts = torch.searchsorted(indices, bounds.to(indices.device)).tolist()
    made = []
    for number, parameter in enumerate(parameters):
        here = slice(cuts[number], cuts[number + 1])
        flat = parameter.detach().flatten()
        made.append(flat.index_put((indices[here] - bounds[number],), values[here].to(flat)).view_as(parameter))
    return made


class PaFi(Method):
    """N tasks' values of the trained parameters, (N, K), all starting as the model's own.

    The layers run with new tensors for each adapter of a batch, one adapter after the other (`layers_run_by`).
    """

    indices: Tensor

    def __init__(self, model: ITEm, config: PafiConfig, num_adapters: int = 1) -> None:
        super().__init__(model, config, num_adapters)
        parameters = list(model.layers.parameters())
        self.register_buffer("indices", smallest(parameters, config.share))
        everything = torch.cat([parameter.detach().flatten() for parameter in parameters])
        self.values = nn.Parameter(everything[self.indices].repeat(num_adapters, 1))

    @property
    def num_stored(self) -> int:
        """K."""
        return self.values.shape[1]

    def tensors(self, row: int) -> dict[str, Tensor]:
        """The layers' parameters with one task's values, by their names in `model.layers`."""
        names, parameters = zip(*self.model.layers.named_parameters(), strict=True)
        return dict(zip(names, scatter(parameters, self.indices, self.values[row]), strict=True))

    def run(self, row: int, x: Tensor, mask: Tensor, is_text: Tensor) -> Tensor:
        """As `ITEm.run_layers`, with one task's values."""
        tensors = self.tensors(row)
        biases = self.model.attention_biases(mask, is_text)
        for (number, layer), bias in zip(self.model.layers.named_children(), biases, strict=True):
            own = {name: tensors[f"{number}.{name}"] for name, _ in layer.named_parameters()}
            x = functional_call(layer, own, (x, bias))
        return x

    @contextmanager
    def applied(self, rows: Tensor | None = None) -> Iterator[None]:
        """Within, the layers run with the values of each listing's task. rows: (B,) int64; None: all 0."""
        with layers_run_by(self.model, self.run, rows):
            yield

    @torch.no_grad()
    def fold(self, row: int = 0) -> dict[str, Tensor]:
        """The model's tensors with one task's values: the base's names and shapes, its bits where it is frozen."""
        own = {f"layers.{name}": tensor for name, tensor in self.tensors(row).items()}
        return {name: own.get(name, tensor).clone() for name, tensor in self.model.state_dict().items()}

    def save(self, folder: Path, name: str, row: int = 0) -> None:
        """Writes one task's values, and the mask where the folder has none yet; ModelError where it has another."""
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / MASK_FILE).exists():
            self.check_mask(folder)
        else:
            save_tensors({"indices": self.indices.to(torch.int32)}, folder / MASK_FILE)
        save_tensors({"values": self.values[row]}, task_file(folder, name))

    @torch.no_grad()
    def load(self, folder: Path, name: str, row: int = 0) -> None:
        """Reads one task's values; ModelError where they are damaged or their mask is not this one."""
        self.check_mask(folder)
        values = read_tensors(task_file(folder, name)).get("values")
        if values is None or values.shape != self.values[row].shape:
            found = "nothing" if values is None else tuple(values.shape)
            raise ModelError(f"{task_file(folder, name)}: values: {found}, not {(self.num_stored,)}; restore the file")
        self.values[row] = values

    def check_mask(self, folder: Path) -> None:
        """ModelError where the folder's mask is not this one."""
        indices = read_tensors(folder / MASK_FILE).get("indices")
        if indices is None or not torch.equal(indices.to(self.indices), self.indices):
            raise ModelError(f"{folder / MASK_FILE}: of another model or share than {self.config}; take another folder")


def task_file(folder: Path, name: str) -> Path:
    """Where one task's values are."""
    return folder / f"task_{name}.safetensors"
