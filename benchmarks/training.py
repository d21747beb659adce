"""What Ray costs: training fed by Ray against the plain loop, and the indexing job against the encoder alone.

    python -m benchmarks.training --json benchmarks/results/training.json            about ten minutes on two cores
    python -m benchmarks.training --json FILE --quick                                about two minutes

`ray_vs_plain_loop`: listings a second of one Ray Train worker fed by Ray Data, over the plain loop's. The limit is the
same step on a batch that is already in memory.
`job_vs_encoder`: listings a second of `index.build` between its first finished shard and its last, over
`engine.encode` on the same listings. The limit is the encoder on listings that are already made ready.

Both run on a sample shop: `small` with its own patches for training, so that every step decodes pictures; `small` with
random weights for the job, whose speed does not depend on them. With --quick both are `tiny`. The runs alternate, and
the figures are medians, because machines are shared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.report import CHECKOUT, Result, write_report
from index.build import BuildConfig, build
from index.pipeline import num_cores
from item.catalog.reader import read_catalog
from item.engine import load_engine
from item.model.config import ItemConfig
from item.model.encoder import ITEm
from item.preprocessing.prepared import Prepared
from training import pretrain
from training.config import PretrainConfig, load_config
from training.start import make_preprocessor

WARM_UP = 3  # steps that are not counted
ENCODER_CHUNKS = 5  # of listings, the size of a shard each; the first is not counted


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured: `repeats` of each run, `steps` of training, `products` of the sample shops.

    The job's shop is the larger: its stages take some seconds to start, and those are not its rate.
    """

    config: str
    overrides: tuple[str, ...]
    products: int
    job_products: int
    steps: int
    repeats: int
    stem: str | None


FULL = Size(
    config="small",
    overrides=(
        *("start.words=null", "start.stem_weights=null", "model.stem=null", "model.patch_size=32"),
        "run.batch_size=32",
    ),
    products=260,
    job_products=700,
    steps=15,
    repeats=2,
    stem="tf_efficientnet_lite0",
)
QUICK = Size(config="tiny", overrides=(), products=200, job_products=1000, steps=40, repeats=1, stem=None)


def run_program(module: str, *arguments: str) -> None:
    """Runs one of our programs in a process of its own; its output is shown where it fails."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def draw_shop(folder: Path, products: int) -> Path:
    """A sample shop."""
    run_program("training.sample_shop", "--output", str(folder), "--products", str(products))
    return folder


def training_rate(size: Size, shop: Path, output: Path, workers: int) -> list[float]:
    """Listings a second of each step after the warm-up."""
    run_program(
        "training.pretrain",
        *("--config", f"training/configs/{size.config}.yaml", "--catalog", str(shop), "--output", str(output)),
        *("--workers", str(workers), *size.overrides),
        *(f"run.steps={size.steps}", f"run.checkpoint_every={size.steps}", "run.validation_batches=0"),
    )
    lines = (output / "run" / "losses.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["listings_per_s"] for line in lines[WARM_UP:]]


def step_rate(size: Size, shop: Path, folder: Path) -> list[float]:
    """The limit: the same steps on one batch in memory."""
    config = load_config(CHECKOUT / f"training/configs/{size.config}.yaml", size.overrides)
    (folder / "run").mkdir(parents=True)
    made_ready = pretrain.prepare_run(config, read_catalog(shop), folder, torch.device("cpu"))
    trainer = made_ready.trainer(made_ready.pretraining)
    batch, rates = made_ready.train.batch(0, config.run.batch_size), []
    for _ in range(size.steps):
        since = time.perf_counter()
        trainer.train_step(batch)
        rates.append(config.run.batch_size / (time.perf_counter() - since))
    return rates[WARM_UP:]


def measure_training(size: Size, shop: Path, folder: Path) -> list[Result]:
    """Plain loop, Ray and limit, alternating."""
    plain, ray, limit = [], [], []
    for repeat in range(size.repeats):
        plain += training_rate(size, shop, folder / f"plain{repeat}", 0)
        ray += training_rate(size, shop, folder / f"ray{repeat}", 1)
        limit += step_rate(size, shop, folder / f"limit{repeat}")
    rates = {name: statistics.median(values) for name, values in (("plain", plain), ("ray", ray), ("limit", limit))}
    where = f"{size.config}, sample shop, one worker"
    per_s = "listings/s"
    return [
        Result(metric="training_plain_loop", value=rates["plain"], unit=per_s, where=where),
        Result(metric="training_ray", value=rates["ray"], unit=per_s, where=where),
        Result(metric="training_limit", value=rates["limit"], unit=per_s, where="the same step, batch in memory"),
        Result(metric="plain_vs_limit", value=rates["plain"] / rates["limit"], unit="ratio", against="training_limit"),
        Result(metric="ray_vs_plain_loop", value=rates["ray"] / rates["plain"], unit="ratio", against="plain loop"),
    ]


def random_model(size: Size, config: PretrainConfig, shop: Path, folder: Path) -> None:
    """A model of the measured shape with random weights."""
    preprocessor = make_preprocessor(config, None, read_catalog(shop).split("train"))
    options = config.model
    shape = ItemConfig(
        vocab_size=preprocessor.vocab_size,
        cls_id=preprocessor.cls_id,
        sep_id=preprocessor.sep_id,
        width=options.width,
        num_layers=options.num_layers,
        num_heads=options.num_heads,
        mlp_width=options.mlp_width,
        max_words=options.max_words,
        picture_size=options.picture_size,
        patch_size=options.patch_size,
        vector_width=options.vector_width,
    )
    torch.manual_seed(0)
    ITEm(replace(shape, stem=size.stem)).save_pretrained(folder)
    preprocessor.save_pretrained(folder)


def encoder_rates(model: Path, shop: Path, shard_rows: int) -> tuple[float, float]:
    """Listings a second of `engine.encode`, and of the encoder on listings that are already made ready."""
    engine = load_engine(model, "cpu", num_threads=num_cores())
    listings = read_catalog(shop).listings[: ENCODER_CHUNKS * shard_rows]
    whole, bare = [], []
    for start in range(0, len(listings), shard_rows):
        chunk = listings[start : start + shard_rows]
        since = time.perf_counter()
        engine.encode(chunk)
        whole.append(len(chunk) / (time.perf_counter() - since))
        ready = [one for one in map(engine.prepare, chunk) if isinstance(one, Prepared)]  # type: ignore[attr-defined]
        since = time.perf_counter()
        engine.encode_prepared(ready)
        bare.append(len(ready) / (time.perf_counter() - since))
    return statistics.median(whole[1:]), statistics.median(bare[1:])


def measure_job(size: Size, shop: Path, folder: Path) -> list[Result]:
    """The job and the encoder, alternating."""
    model, shard_rows = folder / "model", BuildConfig.shard_rows
    config = load_config(CHECKOUT / f"training/configs/{size.config}.yaml", size.overrides)
    random_model(size, config, shop, model)
    job, started, encoder, limit = [], [], [], []
    for repeat in range(size.repeats):
        rates = encoder_rates(model, shop, shard_rows)
        encoder.append(rates[0])
        limit.append(rates[1])
        summary = build(
            BuildConfig(model=str(model), catalog=shop, index=folder / f"index{repeat}", shard_rows=shard_rows)
        )
        assert summary is not None
        started.append(summary.num_embedded / summary.embed_s)
        job.append(summary.steady_rate)
    where, per_s = f"{size.config}, stem {size.stem}, sample shop", "listings/s"
    rate, of_encoder = statistics.median(job), statistics.median(encoder)
    return [
        Result(metric="job", value=rate, unit=per_s, where=where),
        Result(metric="job_with_start", value=statistics.median(started), unit=per_s, where="Ray's start counted in"),
        Result(metric="encoder", value=of_encoder, unit=per_s, where=where),
        Result(metric="encoder_limit", value=statistics.median(limit), unit=per_s, where="listings made ready before"),
        Result(metric="job_vs_encoder", value=rate / of_encoder, unit="ratio", against="engine.encode"),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="the results file to write")
    parser.add_argument("--quick", action="store_true", help="the same on `tiny`")
    parser.add_argument("--only", choices=("training", "job"), help="one half alone")
    arguments = parser.parse_args(argv)
    size, results = QUICK if arguments.quick else FULL, []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments.only != "job":
            results += measure_training(size, draw_shop(folder / "shop", size.products), folder)
        if arguments.only != "training":
            results += measure_job(size, draw_shop(folder / "job_shop", size.job_products), folder)
    write_report("training", results, ("torch", "ray", "timm"), arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
