"""Chooses and loads the engine of a model folder. The implementations are imported when they are chosen."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from item.adapters.bank import Bank
from item.engine.device import choose_device
from item.engine.interface import Engine, Runner
from item.engine.model_engine import ModelEngine
from item.engine.variant import check_model, find_variant, names_of
from item.errors import ModelError
from item.model.config import ItemConfig
from item.model.folder import check_agreement, resolve_folder, space_of_folder
from item.preprocessing.prepared import MODALITIES, Prepared
from item.preprocessing.preprocessor import Preprocessor

FULL_PRECISION = "fp32"  # the variant that computes what the model does


def load_engine(
    folder: str | Path, device: str = "auto", num_threads: int | None = None, variant: str | None = None
) -> Engine:
    """Loads a model folder for inference.

    Args:
        folder: a model folder, or a hub repository as owner/name.
        device: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:N".
        num_threads: threads of one encoding on the CPU; None leaves it to the runtime: one for each core.
        variant: a variant that `deploy.export` made, or "torch" for the model as it is. None chooses full precision:
            on a CPU the variant fp32 where it was exported, else torch.

    Raises:
        ModelError: the folder or the variant cannot be loaded, or they do not belong together.
        ConfigError: there is no such device.
    """
    folder = resolve_folder(folder)
    config, preprocessor = ItemConfig.load(folder), Preprocessor.from_pretrained(folder)
    check_agreement(config, preprocessor)
    device = choose_device(device)
    if variant is None:
        exported = device == "cpu" and FULL_PRECISION in names_of(folder) and find_spec("onnxruntime") is not None
        variant = FULL_PRECISION if exported else "torch"
    space = space_of_folder(folder, config, preprocessor)
    adapters = Bank(folder, config, space)
    runner: Runner
    if variant == "torch":
        from item.engine.torch_runner import TorchRunner

        runner = TorchRunner.load(folder, device, "float32", num_threads)
        return ModelEngine(runner, preprocessor, adapters, space)
    variant_folder, found = find_variant(folder, variant)
    check_model(variant_folder, found, space)
    if found.runtime == "torch":
        from item.engine.torch_runner import PRECISIONS, TorchRunner

        if found.precision not in PRECISIONS:
            raise ModelError(f"{variant_folder}: precision {found.precision!r} is none of {', '.join(PRECISIONS)}")
        runner = TorchRunner.load(folder, device, found.precision, num_threads)
    else:
        try:
            from item.engine.onnx_runner import OnnxRunner
        except ImportError as error:
            raise ModelError(f"variant: {variant!r} runs on onnxruntime, which is not installed ({error})") from error
        runner = OnnxRunner(variant_folder, found.precision, config, device, num_threads)
    return ModelEngine(runner, preprocessor, adapters, found.space, found.name)


def warm_up(engine: Engine) -> None:
    """Encodes one drawn listing by words, by picture and by both, alone and with an adapter that is in memory, so that
    the first request pays for no compilation, no allocation and no reading of weights."""
    preprocessor = engine.preprocessor
    side = preprocessor.config.picture_size
    both = Prepared(
        word_ids=np.array([preprocessor.unk_id, preprocessor.sep_id], dtype=np.int32),
        pixels=np.zeros((3, side, side), dtype=np.uint8),
    )
    for modality in MODALITIES:
        if (one := both.only(modality)) is not None:
            for adapter in (None, *engine.adapters.loaded()[-1:]):
                engine.encode_prepared([one], [adapter])
