"""Makes the variants of a model folder: fp32 and int8 for ONNX Runtime, bf16 and fp16 for torch on a GPU."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn.functional as F

from item.adapters.bank import Bank
from item.engine.interface import Engine, Vectors
from item.engine.loading import load_engine
from item.engine.model_engine import ModelEngine
from item.engine.onnx_runner import OnnxRunner
from item.engine.torch_runner import PRECISIONS, TorchRunner
from item.engine.variant import ADAPTED_FILE, LAYERS_FILE, STEM_FILE, VECTOR_FILE, Variant
from item.errors import ConfigError, ModelError
from item.export.calibration import collect_inputs, shown_by
from item.export.encoder import LayersGraph, Linear, float_linear, layer_linears, vector_graph
from item.export.files import digests, publish, write_graphs
from item.export.graph import OPSET, Array
from item.export.loss import Loss, keeps_space, measure_loss
from item.export.quantised import QuantisedLinears
from item.export.quantised_stem import quantise_stem
from item.export.stem import stem_graph
from item.model.config import ItemConfig
from item.model.encoder import ITEm, Layer
from item.model.folder import check_agreement, space_of_folder
from item.model.vector import PooledWords
from item.preprocessing.prepared import MODALITIES, Modality, Prepared
from item.preprocessing.preprocessor import Preprocessor
from item.preprocessing.spelling import SPELLING_WIDTH
from item.progress import Progress
from item.quantisation.int8 import Int8Linear, fit_linear

NAMES = ("fp32", "int8", "bf16", "fp16")
MAX_DIFFERENCE = 1e-4  # of any element of a unit vector, fp32 against torch: rounding, added up in another order
PICTURES = 1280  # of the listings, to fit a stem in 8 bits to and to measure it on
PARITY = 64  # listings that parity is measured on, drawn at random where none are given


class Exporter:
    """A model folder, and the listings that its variants are fitted to and measured on.

    Args:
        folder: of the model.
        calibration: listings for the scales of int8.
        measured: listings for the loss; may be empty for fp32.

    Raises:
        ModelError: the folder cannot be loaded.
    """

    def __init__(self, folder: Path, calibration: Sequence[Prepared] = (), measured: Sequence[Prepared] = ()) -> None:
        self.folder, self.calibration, self.measured = folder, calibration, measured
        self.preprocessor = Preprocessor.from_pretrained(folder)
        self.config = ItemConfig.load(folder)
        check_agreement(self.config, self.preprocessor)
        self.model = ITEm.from_pretrained(folder)
        self.space = space_of_folder(folder, self.config, self.preprocessor)

    def export(self, name: str) -> tuple[Path, Variant]:
        """Makes one variant and puts it into the folder, in place of an older one.

        Raises:
            ConfigError: there is no such variant, or no listings for one that needs them.
            ModelError: the variant does not compute what the model does.
        """
        if name not in NAMES:
            raise ConfigError(f"variant: {name!r} is none of {', '.join(NAMES)}")
        if name != "fp32" and not self.measured:
            raise ConfigError(f"catalog: {name} is measured on listings, and none can be read; give --catalog")
        if name == "int8" and not self.calibration:
            raise ConfigError(f"catalog: {name} is fitted to listings, and none can be read; give --catalog")
        write = {"fp32": self.write_fp32, "int8": self.write_int8}.get(name, self.write_half)
        return publish(self.folder, name, partial(write, name=name))

    def write_fp32(self, folder: Path, *, name: str) -> Variant:
        """The model as it is."""
        self.write_graphs(folder, self.stem(), float_linear)
        some = self.measured[:PARITY] or drawn_inputs(self.config)
        kinds = [kind for modality in MODALITIES for kind in shown_by(some, modality)]
        engine = self.engine(OnnxRunner(folder, "float32", self.config))
        reference = load_engine(self.folder, "cpu", variant="torch")
        difference = float(np.abs(engine.encode_prepared(kinds) - reference.encode_prepared(kinds)).max())
        if not difference <= MAX_DIFFERENCE:
            raise ModelError(f"{self.folder}: the exported graphs differ from torch by {difference:.2g}; report this")
        measured = {"inputs": len(kinds), "max_difference": difference}
        return self.variant(folder, name, "float32", "ONNX graphs in full precision", measured, same_space=True)

    def write_int8(self, folder: Path, *, name: str) -> Variant:
        """Layers, and as much of the stem as keeps its vectors, in 8 bits; the vector head as it is."""
        entering: list[Modality] = ["words", "both"] if self.model.text_reads_cells else ["words"]
        entering += ["picture"] if self.model.text_reads_cells and self.model.reads_state else []
        kinds = [kind for modality in entering for kind in shown_by(self.calibration, modality)]
        kinds = kinds or list(self.calibration)  # a catalogue without words never enters them
        stem, of_stem = self.quantised_stem()
        self.write_graphs(folder, stem, QuantisedLinears(fit_layers(self.model, kinds)))
        losses, beside = self.losses(OnnxRunner(folder, "int8", self.config))
        measured = {"calibrated_on": len(self.calibration), "beside": beside, **of_losses(losses)}
        method = f"W8A8 of the layers, static scales, smoothed, outliers apart; {of_stem}; the vector head in float32"
        return self.variant(folder, name, "int8", method, measured, same_space=keeps_space(losses))

    def write_half(self, folder: Path, *, name: str) -> Variant:
        """The model under torch's autocast: no files of its own."""
        assert name in PRECISIONS
        losses, beside = self.losses(TorchRunner.load(self.folder, "cpu", name, None))
        method = f"torch, {name} in stem and layers; the vector head in float32"
        measured = {"beside": beside, **of_losses(losses)}
        return self.variant(folder, name, name, method, measured, same_space=keeps_space(losses))

    def losses(self, runner: OnnxRunner | TorchRunner) -> tuple[dict[Modality, Loss], str]:
        """What a runner of this model loses against full precision, and the name of the engine of that."""
        try:
            full = load_engine(self.folder, "cpu")
        except ModelError:  # an fp32 variant of another model, or damaged
            full = load_engine(self.folder, "cpu", variant="torch")
        return measure_loss(self.engine(runner), full, self.measured), full.name

    def engine(self, runner: OnnxRunner | TorchRunner) -> Engine:
        """An engine of this model around a runner."""
        return ModelEngine(runner, self.preprocessor, Bank(self.folder, self.config, self.space), self.space)

    def stem(self) -> onnx.ModelProto:
        """The stem as it is."""
        return stem_graph(self.model, {})

    def quantised_stem(self) -> tuple[onnx.ModelProto, str]:
        """The stem in 8 bits as far as it goes, and how far, in words."""
        stem, shown = self.stem(), [*self.calibration, *self.measured][:PICTURES]
        pictures = [one.pixels for one in shown if one.pixels is not None]
        if pictures:
            quantised = quantise_stem(stem, np.stack(pictures), partial(picture_vectors, self.model))
            if quantised is not None:
                return quantised
        return stem, "the stem in float32"

    def write_graphs(self, folder: Path, stem: onnx.ModelProto, linear: Linear) -> None:
        """All graphs; the layers with and without adapters."""
        metadata = {"space": self.space, "producer": "item"}
        onnx.helper.set_model_props(stem, metadata)
        graphs = {
            STEM_FILE: stem,
            LAYERS_FILE: LayersGraph(self.model, linear).build(metadata),
            ADAPTED_FILE: LayersGraph(self.model, linear, adapters=True).build(metadata),
            VECTOR_FILE: vector_graph(self.model, metadata),
        }
        write_graphs(folder, graphs)

    def variant(
        self, folder: Path, name: str, precision: str, method: str, measured: dict[str, Any], *, same_space: bool
    ) -> Variant:
        """What `variant.json` says. A variant whose results are not the model's has a space of its own."""
        files = digests(folder)
        own = hashlib.sha256(f"{self.space} {name} {sorted(files.items())}".encode()).hexdigest()
        return Variant(
            name=name,
            runtime="torch" if name in PRECISIONS else "onnxruntime",
            precision=precision,
            model_space=self.space,
            space=self.space if same_space else own,
            opset=0 if name in PRECISIONS else OPSET,
            files=files,
            method=method,
            measured=measured,
        )


@torch.inference_mode()
def picture_vectors(model: ITEm, pooled: Array) -> Vectors:
    """(P, F) pooled features -> (P, V) of unit norm, as far as they alone decide them: g is left out."""
    count, D = len(pooled), model.config.width
    no_words = PooledWords(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, D))
    e = model.vector(torch.zeros(count, D), no_words, torch.arange(count), torch.from_numpy(pooled))
    return np.asarray(F.normalize(e, dim=-1).numpy())


def fit_layers(model: ITEm, prepared: Sequence[Prepared]) -> dict[str, Int8Linear]:
    """Each linear layer of the graph in 8 bits, fitted to what enters it."""
    inputs = collect_inputs(model, prepared)
    parameters = {
        f"layers.{index}.{name}": parameters
        for index, layer in enumerate(model.layers)
        for name, parameters in layer_linears(cast(Layer, layer)).items()
    }
    progress = Progress("fitting scales", len(parameters), "linear layers")
    fitted = {}
    for name, (weight, bias) in parameters.items():
        fitted[name] = fit_linear(inputs.pop(name), weight, bias)
        progress.update()
    progress.close()
    return fitted


def drawn_inputs(config: ItemConfig) -> list[Prepared]:
    """Words and pictures drawn at random, of all lengths, for parity alone."""
    generator = np.random.default_rng(0)
    shape = (3, config.picture_size, config.picture_size)

    def words(count: int) -> npt.NDArray[np.int32]:
        return np.append(generator.integers(0, config.vocab_size, count), config.sep_id).astype(np.int32)

    return [
        Prepared(
            word_ids=words(1 + i % config.max_words),
            spelling=generator.standard_normal(SPELLING_WIDTH, dtype=np.float32),
            pixels=generator.integers(0, 256, shape, dtype=np.uint8),
        )
        for i in range(PARITY)
    ]


def of_losses(losses: dict[Modality, Loss]) -> dict[str, Any]:
    """Losses as `variant.json` holds them."""
    return {modality: asdict(loss) for modality, loss in losses.items()}
