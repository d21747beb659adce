"""The training loop: plain torch, the same with and without Ray."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from item.errors import ItemError, ModelError
from item.model.encoder import ITEm
from item.model.objectives import MaskedBatch, Pretraining, weighted_sum
from item.model.tensors import read_tensors
from item.progress import Progress
from training.config import PretrainConfig

STATE_FILE = "state.json"
TENSORS_FILE = "tensors.pt"


def make_optimiser(module: nn.Module, config: PretrainConfig) -> torch.optim.AdamW:
    """AdamW over what is trainable: each kind of parameter at its own rate, matrices with weight decay."""
    options = config.optimiser
    rates = {"new": options.lr, "started": options.start_lr, "gates": options.gate_lr}
    groups: dict[tuple[str, bool], list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            kind = "gates" if name.endswith("model.gates") else "started" if config.starts(name) else "new"
            groups.setdefault((kind, ITEm.weight_decays(name, parameter)), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": rates[kind], "weight_decay": options.weight_decay if decays else 0.0}
            for (kind, decays), parameters in groups.items()
        ],
        fused=True,  # one pass over the tensors: 0.04 s instead of 0.27 s for MiniLM's, on a CPU
    )


def learning_rate_share(step: int, num_steps: int, warmup: float) -> float:
    """Linear warm-up to 1, then linear decay towards 0; never 0 itself."""
    rising = max(1, round(warmup * num_steps))
    return min((step + 1) / rising, (num_steps - step) / max(1, num_steps - rising))


@dataclass(kw_only=True)
class Trainer:
    """One worker's part of a run. `module` is `pretraining`, or its distributed wrapper."""

    pretraining: Pretraining
    module: nn.Module
    optimiser: torch.optim.Optimizer
    config: PretrainConfig
    num_steps: int
    rank: int = 0
    step: int = 0

    def train_step(self, masked: MaskedBatch) -> dict[str, Any]:
        """One step of the optimiser; a loss that is not finite stops before it. Returns what the log says of it."""
        options = self.config.optimiser
        torch.manual_seed(np.random.SeedSequence([self.config.run.seed, self.step, self.rank]).generate_state(1)[0])
        share = learning_rate_share(self.step, self.num_steps, options.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = share * group.setdefault("full_lr", group["lr"])
        self.module.train()
        losses = self.losses(self.module, masked)
        loss = weighted_sum(losses, self.config.objectives)
        if not math.isfinite(loss.item()):
            parts = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
            raise ItemError(f"step {self.step}: the loss is not finite ({parts}); lower optimiser.lr and start again")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.module.parameters(), options.max_grad_norm)
        self.optimiser.step()
        self.step += 1
        return {
            "step": self.step,
            "loss": loss.item(),
            **{k: v.item() for k, v in losses.items()},
            "lr": share * options.lr,
        }

    def losses(self, module: nn.Module, masked: MaskedBatch) -> dict[str, Tensor]:
        """The objectives on one batch, in the run's precision."""
        device = self.pretraining.mask_vector.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.run.precision == "bfloat16"):
            return module(masked.to(device))

    @torch.no_grad()
    def validate(self, batches: Iterable[MaskedBatch]) -> float:
        """The mean weighted loss over batches that nothing is learned from; on one worker, so never the wrapper."""
        self.pretraining.eval()
        values = [
            weighted_sum(self.losses(self.pretraining, masked), self.config.objectives).item() for masked in batches
        ]
        return float(np.mean(values))

    def save(self, folder: Path) -> None:
        """A checkpoint: tensors, and a readable state. Written beside and renamed."""
        beside = folder.with_suffix(".partial")
        beside.mkdir(parents=True, exist_ok=True)
        tensors = {"pretraining": self.pretraining.state_dict(), "optimiser": self.optimiser.state_dict()}
        torch.save(tensors, beside / TENSORS_FILE)
        state = {"step": self.step, "num_steps": self.num_steps}
        (beside / STATE_FILE).write_text(json.dumps(state) + "\n", encoding="utf-8")
        beside.rename(folder)

    def restore(self, folder: Path) -> None:
        """Goes on from a checkpoint; ModelError where it is damaged."""
        try:
            state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
            tensors = read_tensors(folder / TENSORS_FILE)
            self.pretraining.load_state_dict(tensors["pretraining"])
            self.optimiser.load_state_dict(tensors["optimiser"])
        except (ItemError, OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(
                f"{folder}: damaged checkpoint ({error}); delete it to go on from the one before"
            ) from error
        self.step = int(state["step"])


class RunLog:
    """Losses as JSON lines and for TensorBoard, and progress. Lines of steps that are done again are cut off."""

    def __init__(self, folder: Path, num_steps: int, step: int) -> None:
        self.path = folder / "losses.jsonl"
        kept = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        kept = [line for line in kept if line.endswith("}") and json.loads(line)["step"] <= step]
        self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.file = self.path.open("a", encoding="utf-8", buffering=1)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self.progress = Progress("training", num_steps, "steps", initial=step)

    def write(self, record: dict[str, Any]) -> None:
        """One step's record, or a validation's; `step` is its position."""
        self.file.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in record.items()}) + "\n")
        for name, value in record.items():
            if name != "step":
                self.board.add_scalar(f"train/{name}", value, record["step"])

    def close(self) -> None:
        """Ends the files."""
        self.progress.close()
        self.file.close()
        self.board.close()


def run(
    trainer: Trainer,
    batches: Iterable[MaskedBatch],
    validation: list[MaskedBatch],
    log: RunLog | None,
    checkpoint: Callable[[Trainer], None],
) -> None:
    """Trains over `batches`, which begin at the trainer's step. Only the worker with a log writes one.

    `checkpoint` is called every `checkpoint_every` steps and after the last.
    """
    options, since = trainer.config.run, time.perf_counter()
    for masked in batches:
        record = trainer.train_step(masked)
        at_checkpoint = trainer.step % options.checkpoint_every == 0 or trainer.step == trainer.num_steps
        if at_checkpoint and validation:
            record["validation_loss"] = trainer.validate(validation)
        if log is not None:
            record["listings_per_s"] = options.batch_size / (time.perf_counter() - since)
            if at_checkpoint or trainer.step % options.log_every == 0:
                log.write(record)
            log.progress.update(1, f"loss {record['loss']:.3f}")
        if at_checkpoint:
            checkpoint(trainer)
        since = time.perf_counter()
