"""The same training on Ray Train: one worker or many, on CPUs or GPUs, fed by Ray Data.

Ray appears in four places: shard the data, wrap the model, report, fit. A step's batch is a pure function of its number
and the worker's rank, so the Ray Data sets are just the steps that are left, made into batches ahead of the training.
The workers share OUTPUT/run: on several nodes it must lie on a shared file system.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.data
import ray.train
import torch
from ray.exceptions import RayError
from ray.train import TrainingFailedError
from ray.train.torch import TorchTrainer, prepare_model

from item.errors import ConfigError, ItemError
from item.model.objectives import MaskedBatch
from item.ray_settings import set_ray_defaults
from training.data import PretrainingData
from training.loop import RunLog, Trainer, run
from training.pretrain import Run
from training.ray_logging import quiet_ray

READY_AHEAD = 2  # batches that a worker takes ahead of its step


class MakeBatch:
    """Ray Data's stage: the number of a step -> one worker's batch."""

    def __init__(
        self, made_ready: ray.ObjectRef, first_step: int, batch_size: int, rank: int, num_workers: int
    ) -> None:
        self.data: PretrainingData = ray.get(made_ready).train
        self.first_step, self.batch_size, self.rank, self.num_workers = first_step, batch_size, rank, num_workers

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        step = self.first_step + int(row["id"])
        return {"step": step, "batch": self.data.batch(step, self.batch_size, self.rank, self.num_workers)}


def train_distributed(made_ready: Run, num_workers: int, device: torch.device) -> None:
    """Trains on `num_workers` workers; ItemError where one fails. The last checkpoint holds the result."""
    options, num_steps = made_ready.config.run, made_ready.num_steps
    if options.batch_size < 2 * num_workers:
        raise ConfigError(f"run.batch_size: {options.batch_size} gives {num_workers} workers less than 2 listings each")
    first_step = made_ready.trainer(made_ready.pretraining).step
    if first_step == num_steps:
        return
    start_ray(num_workers)
    shared = ray.put(made_ready)
    steps = ray.data.range(num_steps - first_step, override_num_blocks=1)
    made = {  # shard the data
        f"worker{rank}": steps.map(
            MakeBatch,
            fn_constructor_args=(shared, first_step, options.batch_size, rank, num_workers),
            compute=ray.data.ActorPoolStrategy(size=1),
        )
        for rank in range(num_workers)
    }
    use_gpu = device.type == "cuda"
    cores = os.cpu_count() or 1
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "made_ready": shared,
            "num_threads": max(1, cores // num_workers),
        },
        datasets=made,
        dataset_config=ray.train.DataConfig(datasets_to_split=[]),
        scaling_config=ray.train.ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
        run_config=ray.train.RunConfig(name="train", storage_path=str((made_ready.folder / "ray").resolve())),
    )
    try:
        trainer.fit()
    except (TrainingFailedError, RayError) as error:
        raise ItemError(f"training: a worker failed: {error}; start again to go on from the last checkpoint") from error
    finally:
        ray.shutdown()


def train_worker(arguments: dict[str, Any]) -> None:
    """One worker: the plain loop over its own Ray Data set, its module wrapped for several workers."""
    torch.set_num_threads(arguments["num_threads"])
    made_ready: Run = ray.get(arguments["made_ready"])
    rank = ray.train.get_context().get_world_rank()
    module = prepare_model(made_ready.pretraining, parallel_strategy_kwargs={"find_unused_parameters": True})
    trainer = made_ready.trainer(module, rank)
    log = RunLog(made_ready.folder, made_ready.num_steps, trainer.step) if rank == 0 else None
    validation = made_ready.validation if rank == 0 else []

    def checkpoint(trainer: Trainer) -> None:
        if rank == 0:
            made_ready.checkpoint(trainer)
        ray.train.report({"step": trainer.step})

    try:
        run(
            trainer,
            batches_from(trainer.step, ray.train.get_dataset_shard(f"worker{rank}")),
            validation,
            log,
            checkpoint,
        )
    finally:
        if log is not None:
            log.close()


def batches_from(step: int, dataset: ray.data.DataIterator) -> Iterator[MaskedBatch]:
    """The batches from `step` on; a worker that was restarted skips those before its checkpoint."""
    for columns in dataset.iter_batches(batch_size=1, prefetch_batches=READY_AHEAD, batch_format="numpy"):
        if columns["step"][0] >= step:
            yield columns["batch"][0]


def start_ray(num_workers: int) -> None:
    """Starts Ray on this machine, or joins the cluster that RAY_ADDRESS names.

    Ray's CPUs are only its count of what may run at once: each worker, each worker's data stage and its reading take
    one, so that none waits for another on a small machine. How many threads really run is set by the workers.
    """
    set_ray_defaults()
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    own: dict[str, Any] = {"num_cpus": 3 * num_workers + 1, "include_dashboard": False}
    here = {} if "RAY_ADDRESS" in os.environ else own
    checkout = str(Path(__file__).resolve().parents[1])  # where the workers find this module
    workers = {"worker_process_setup_hook": quiet_ray, "env_vars": {"PYTHONPATH": checkout}}
    ray.init(**here, runtime_env=workers, logging_level=logging.ERROR, ignore_reinit_error=True)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True  # the steps in their order
    context.target_max_block_size = 1  # hand on each batch when it is made
    context.enable_progress_bars = False
    quiet_ray()
