"""Measures a model on a catalogue, beside baselines made from the same starting weights.

    python -m training.evaluate --model demo/model --catalog demo/shop --offers demo/shop/offers --report demo/report
    python -m training.evaluate --model M --catalog C --words BERT_FOLDER --stem tf_efficientnet_lite0 \\
        --stem-weights FILE.safetensors --cache DIR
    python -m training.evaluate --model M --before M0 --catalog C --report DIR --no-baselines

The first line takes about a minute on two cores. Each listing is encoded by its words, by its picture and by both,
and each way is measured: the same product (every second offer against all rows of the catalogue; without offers, every
row of the split against all others, those of its `group_id` being right), the leaf category (by five neighbours from
train, and by a linear probe), words to picture and back. The baselines need the weights that the model started
from: those that its training recorded, or those that are given. Settings are chosen on val; test is for the end.

Beside that: the same without rows that have a near twin in train, what a query loses without its words or its picture
and with wrong ones, and what is kept on fewer dimensions. --before measures another model on the same queries.

--report DIR gets report.html (is it better, and which queries does it get right and wrong), evaluation.json,
evaluation.md, queries.parquet (the values of single queries) and refused.jsonl.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from item.engine import Engine, load_engine
from item.engine.device import choose_device
from item.errors import ConfigError, ItemError, ModelError
from training.comparison import WAY_OUT, compare
from training.config import HUB, load_config
from training.frozen import FrozenEncoder, StartingWeights
from training.material import read_material


def starting_weights(arguments: argparse.Namespace) -> StartingWeights | None:
    """The weights given, or else those that the model's training recorded; None where there are none."""
    if arguments.words is not None:
        return StartingWeights(words=arguments.words, stem=arguments.stem, stem_weights=arguments.stem_weights)
    recorded = Path(arguments.model) / "run" / "config.yaml"
    if arguments.no_baselines or not recorded.is_file():
        return None
    config = load_config(recorded)
    words, stem, stem_weights = config.start.words, config.model.stem, config.start.stem_weights
    if words is None or stem is None or stem_weights is None:
        return None
    return StartingWeights(words=words, stem=stem, stem_weights=None if stem_weights == HUB else stem_weights)


def frozen_encoder(arguments: argparse.Namespace, engine: Engine) -> FrozenEncoder | None:
    """The baselines' encoder; None where they are left out."""
    start = starting_weights(arguments)
    if start is None:
        return None
    model = Path(arguments.model)
    cache = arguments.cache or (model / "run" / "frozen" if model.is_dir() else None)
    try:
        return FrozenEncoder(start, engine.preprocessor.config, torch.device(choose_device(arguments.device)), cache)
    except ModelError as error:
        raise ModelError(f"starting weights of the baselines: {error}; {WAY_OUT}") from error


def evaluate(arguments: argparse.Namespace) -> None:
    """Loads, measures, prints, writes."""
    engine = load_engine(arguments.model, arguments.device)
    before = load_engine(arguments.before, arguments.device) if arguments.before is not None else None
    material = read_material(arguments.catalog, arguments.offers, arguments.split)
    encoder = frozen_encoder(arguments, engine)
    about = {"model": arguments.model, **({} if before is None else {"before": arguments.before})}
    print(compare(engine, before, material, encoder, arguments.report, about).text())


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ConfigError for arguments that do not go together."""
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a model folder, or a hub repository as owner/name")
    parser.add_argument("--catalog", required=True, help="a catalogue file, or the folder with catalog.*")
    parser.add_argument("--offers", help="second offers: a file, or the folder with offers.*")
    parser.add_argument("--split", default="test", help="whose rows are asked about (test)")
    parser.add_argument("--before", help="another model to compare with, for instance the starting point")
    parser.add_argument("--report", type=Path, help="a folder for the report")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--no-baselines", action="store_true", help="measure the model alone")
    parser.add_argument("--words", help="baselines: a BERT checkpoint, as a folder or a hub repository")
    parser.add_argument("--stem", help="baselines: a timm model")
    parser.add_argument("--stem-weights", help="baselines: its weights as a file in timm's layout; else timm's own")
    parser.add_argument("--cache", type=Path, help="baselines: a folder for their vectors (MODEL/run/frozen)")
    arguments = parser.parse_args(argv)
    given = [name for name in ("words", "stem", "stem_weights") if getattr(arguments, name) is not None]
    if given and (arguments.no_baselines or not {"words", "stem"} <= {*given}):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"{names}: give both --words and --stem, without --no-baselines")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """The command; errors of the user's input are one line on standard error."""
    try:
        evaluate(parse_arguments(argv))
    except (ItemError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
