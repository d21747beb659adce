"""Pre-trains ITEm on a catalogue, without labels.

    python -m training.pretrain --config training/configs/tiny.yaml --catalog demo/shop --output demo/model
    python -m training.pretrain --config training/configs/small.yaml --catalog C --output M \\
        start.words=FOLDER start.stem_weights=FILE run.epochs=10
    python -m training.pretrain ... --workers 2        # Ray Train with two workers, fed by Ray Data

The first line takes about three minutes on two cores. Started again with the same arguments, a run that was interrupted
goes on from its last checkpoint, and a finished one says so. Beside the model folder's own files, OUTPUT/run holds the
resolved configuration, losses.jsonl, the TensorBoard events, checkpoints, cached features and refused listings.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from item.catalog.listing import Listing
from item.catalog.reader import Catalog, Refused, read_catalog, write_refused
from item.engine.device import choose_device
from item.errors import CatalogError, ConfigError, ItemError, ListingError
from item.model.encoder import ITEm
from item.model.objectives import MaskedBatch, Pretraining
from item.preprocessing.preprocessor import Preprocessor
from item.progress import Progress
from training.card import write_card
from training.config import PretrainConfig, load_config
from training.data import PretrainingData, WordIds
from training.features import cache_features
from training.loop import RunLog, Trainer, make_optimiser, run
from training.start import fit_vector, load_start, make_model, make_preprocessor

FIT_ROWS = 4096  # listings that the vector is fitted on
PREFETCH = 2  # batches made ready ahead of the step


@dataclass(frozen=True, kw_only=True)
class Split:
    """The listings of one split that can be read, and their words."""

    listings: list[Listing]
    word_ids: list[WordIds | None]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run made ready: the same for one process and for many."""

    config: PretrainConfig
    folder: Path  # OUTPUT/run
    pretraining: Pretraining
    preprocessor: Preprocessor
    train: PretrainingData
    validation: list[MaskedBatch]
    num_steps: int

    def trainer(self, module: torch.nn.Module, rank: int = 0) -> Trainer:
        """A trainer at the last checkpoint, or at the start."""
        trainer = Trainer(
            pretraining=self.pretraining,
            module=module,
            optimiser=make_optimiser(self.pretraining, self.config),
            config=self.config,
            num_steps=self.num_steps,
            rank=rank,
        )
        if (folder := last_checkpoint(self.folder)) is not None:
            trainer.restore(folder)
        return trainer

    def checkpoint(self, trainer: Trainer) -> None:
        """Saves `checkpoints/STEP` and drops the one before."""
        older = last_checkpoint(self.folder)
        trainer.save(self.folder / "checkpoints" / f"{trainer.step:08d}")
        if older is not None:
            shutil.rmtree(older)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run folder."""
    return max((path for path in (folder / "checkpoints").glob("[0-9]*") if not path.suffix), default=None)


def read_split(catalog: Catalog, name: str, preprocessor: Preprocessor) -> tuple[Split, list[Refused]]:
    """Reads every listing of a split once: those that the preprocessor refuses are left out and reported."""
    listings = catalog.split(name)
    progress = Progress(f"reading {name}", len(listings), "listings")
    split, refused = Split(listings=[], word_ids=[]), []

    def words_of(listing: Listing) -> WordIds | ListingError | None:
        try:
            return preprocessor(listing).word_ids
        except ListingError as error:
            return error

    with ThreadPoolExecutor() as pool:
        for listing, words in zip(listings, pool.map(words_of, listings), strict=True):
            if isinstance(words, ListingError):
                refused.append(catalog.refusal(listing, words))
            else:
                split.listings.append(listing)
                split.word_ids.append(words)
            progress.update()
    progress.close()
    return split, refused


def prepare_run(config: PretrainConfig, catalog: Catalog, output: Path, device: torch.device) -> Run:
    """From a catalogue to everything that a training loop needs."""
    folder, run_options = output / "run", config.run
    bert = load_start(config)
    training = catalog.split("train")
    if len(training) < 2:
        raise CatalogError(f"{catalog.path}: {len(training)} listings in split 'train'; training needs at least 2")
    preprocessor = make_preprocessor(config, bert, training)
    model = make_model(config, bert, preprocessor).to(device)
    model.stem.requires_grad_(config.trains_stem)
    model.vector.requires_grad_(False)  # no masked objective reads the vector; it is fitted at the end
    train, refused = read_split(catalog, "train", preprocessor)
    val, refused_val = read_split(catalog, "val", preprocessor)
    write_refused([*catalog.refused, *refused, *refused_val], folder / "refused.jsonl")
    if left_out := len(catalog.refused) + len(refused) + len(refused_val):
        print(f"{left_out} listings left out, see {folder / 'refused.jsonl'}", file=sys.stderr)
    data = make_data(train, config, model, preprocessor, folder)
    num_batches = min(run_options.validation_batches, len(val.listings) // run_options.batch_size + 1)
    validation = []
    if len(val.listings) >= 2 and num_batches:
        val_data = make_data(val, config, model, preprocessor, folder)
        size = min(run_options.batch_size, len(val.listings))
        validation = [val_data.batch(step, size) for step in range(num_batches)]
    return Run(
        config=config,
        folder=folder,
        pretraining=Pretraining(
            model,
            stem_is_frozen=not config.trains_stem,
            late_layers=config.masking.late_layers,
            target_ids=target_ids(train, val, preprocessor),
        ).to(device),
        preprocessor=preprocessor,
        train=data,
        validation=validation,
        num_steps=run_options.num_steps(len(train.listings)),
    )


def target_ids(train: Split, val: Split, preprocessor: Preprocessor) -> torch.Tensor:
    """(W,) int64, ascending: the words of both splits. Those that only val has are asked in validation."""
    of_listings = [ids for split in (train, val) for ids in split.word_ids if ids is not None]
    return torch.from_numpy(np.unique(np.concatenate([[preprocessor.sep_id], *of_listings])).astype(np.int64))


def make_data(
    split: Split, config: PretrainConfig, model: ITEm, preprocessor: Preprocessor, folder: Path
) -> PretrainingData:
    """The batches of a split; behind a frozen stem with its features cached."""
    features, seed, masking = None, config.run.seed, config.masking
    if model.stem.sees_neighbours and not config.trains_stem:
        cache = Path(config.run.cache) if config.run.cache else folder / "features"
        rate, views = masking.patches, masking.views
        features = cache_features(cache, model, preprocessor, split.listings, rate, views, seed)
        if not views:
            print("masking.views=0: MIM and GMIM leak, cells beside masked ones have seen them", file=sys.stderr)
    cells = model.stem.num_cells
    return PretrainingData(split.listings, split.word_ids, preprocessor, cells, masking, seed, features)


def prefetched(data: PretrainingData, steps: range, batch_size: int) -> Iterator[MaskedBatch]:
    """The batches of `steps`, made ready by another thread while the step before is computed."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        waiting = deque(pool.submit(data.batch, step, batch_size) for step in steps[:PREFETCH])
        for step in [*steps[PREFETCH:], *[None] * min(PREFETCH, len(steps))]:
            ready = waiting.popleft().result()
            if step is not None:
                waiting.append(pool.submit(data.batch, step, batch_size))
            yield ready


def train_here(made_ready: Run) -> None:
    """The whole training in this process."""
    trainer = made_ready.trainer(made_ready.pretraining)
    log = RunLog(made_ready.folder, made_ready.num_steps, trainer.step)
    steps = range(trainer.step, made_ready.num_steps)
    batches = prefetched(made_ready.train, steps, made_ready.config.run.batch_size)
    try:
        run(trainer, batches, made_ready.validation, log, made_ready.checkpoint)
    finally:
        log.close()


def claim_folder(folder: Path, config: PretrainConfig, catalog: Catalog, restart: bool) -> None:
    """Makes OUTPUT/run, or makes sure that what is there was begun with the same configuration and catalogue."""
    if restart and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints").mkdir(exist_ok=True)
    beside, resolved, source = folder / "config.new.yaml", folder / "config.yaml", folder / "catalog.txt"
    states = [(file.resolve(), file.stat()) for file in catalog.files]
    identity = "\n".join(f"{path} {state.st_size} {state.st_mtime_ns}" for path, state in states)
    config.save(beside)
    begun = resolved.is_file() and last_checkpoint(folder) is not None
    if begun and (resolved.read_text() != beside.read_text() or source.read_text(encoding="utf-8") != identity):
        beside.unlink()
        raise ConfigError(
            f"{folder}: a run with another configuration or catalogue was begun there (see {resolved.name}); "
            "choose another --output, or give --restart to discard it"
        )
    beside.replace(resolved)
    source.write_text(identity, encoding="utf-8")


def save_model(made_ready: Run, output: Path) -> None:
    """Fits the vector and writes the model folder. The card tells what it is."""
    model, start = made_ready.pretraining.model, made_ready.config.start
    print("fitting the vector", file=sys.stderr)
    fit_vector(model, made_ready.train.whole_batches(FIT_ROWS), start.picture_weight, whiten=start.words is None)
    made_ready.preprocessor.save_pretrained(output)
    config, weights = made_ready.config, asdict(made_ready.config.objectives)
    objectives = ", ".join(f"{name.upper()} {weight:g}" for name, weight in weights.items() if weight)
    steps = f"{made_ready.num_steps} steps of {config.run.batch_size} listings"
    trained = f"{steps}, {len(made_ready.train)} listings in the training split; {objectives}"
    write_card(output, model.config, config, trained)
    model.save_pretrained(output)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a YAML file, see training/configs/")
    parser.add_argument("--catalog", required=True, help="a catalogue file, or the folder with catalog.*")
    parser.add_argument("--output", required=True, type=Path, help="the model folder to write")
    parser.add_argument("--workers", type=int, default=0, help="Ray Train workers; 0 (default): this process, no Ray")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--restart", action="store_true", help="discard a run that was begun in OUTPUT")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings over the configuration")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.workers < 0:
        parser.error(f"--workers: {arguments.workers} must not be negative")
    return arguments


def pretrain(arguments: argparse.Namespace) -> None:
    """Reads, prepares, trains, saves."""
    config, device = load_config(arguments.config, arguments.overrides), torch.device(choose_device(arguments.device))
    catalog = read_catalog(arguments.catalog)
    output: Path = arguments.output
    claim_folder(output / "run", config, catalog, arguments.restart)
    made_ready = prepare_run(config, catalog, output, device)
    if arguments.workers:
        from training.distributed import train_distributed

        train_distributed(made_ready, arguments.workers, device)
        made_ready.trainer(made_ready.pretraining)  # this process's module takes the last checkpoint's tensors
    else:
        train_here(made_ready)
    save_model(made_ready, output)
    print(f"{output}: trained for {made_ready.num_steps} steps on {len(made_ready.train)} listings")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; errors of the user's input are one line on standard error."""
    try:
        pretrain(parse_arguments(argv))
    except ItemError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; start the same command again to go on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
