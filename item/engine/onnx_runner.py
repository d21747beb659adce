"""Runs a variant's graphs on ONNX Runtime: stem, layers, vector head, each only for the listings that need it.

Nothing here imports torch, so that a server is ready in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from item.adapters.bank import Rotations
from item.engine.interface import Outputs, Vectors
from item.engine.packing import complex_tables, pack
from item.engine.variant import ADAPTED_FILE, LAYERS_FILE, STEM_FILE, VECTOR_FILE, again
from item.errors import ConfigError, ModelError
from item.model.config import ItemConfig
from item.preprocessing.prepared import Modality, Prepared
from item.preprocessing.spelling import stack_spelling

STEM_BATCH = 8  # pictures of one run through the stem: its feature maps stay in the caches
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

Array = npt.NDArray[Any]


class OnnxRunner:
    """Stem, layers and vector head of one variant; see `item.engine.interface.Runner`.

    Args:
        folder: of the variant, checked before (item.engine.variant).
        precision: for the name.
        device: "cpu", "cuda" or "cuda:N".
        num_threads: of one run on the CPU; None: one for each core.
    """

    packed = True
    token_budget = 1024  # fills two cores and stays in their caches; 2048 is a tenth slower on them

    def __init__(
        self, folder: Path, precision: str, config: ItemConfig, device: str = "cpu", num_threads: int | None = None
    ) -> None:
        self.config = config
        self.stem, self.layers, self.head = (
            start_session(folder, file, device, num_threads) for file in (STEM_FILE, LAYERS_FILE, VECTOR_FILE)
        )
        self.start_adapted = partial(start_session, folder, ADAPTED_FILE, device, num_threads)
        self.tables: tuple[Rotations | None, dict[str, Array]] = None, {}  # of the latest run with adapters
        self.reads_state = is_true(self.head, "reads_state")
        self.text_reads_cells = is_true(self.layers, "text_reads_cells")
        self.modalities_are_apart = not self.reads_state and not self.text_reads_cells
        self.num_cells, self.cell_width = self.shape_of(self.layers, "cells")[1:]
        self.pooled_width = self.shape_of(self.head, "pooled")[1]
        self.vector_width, self.words_width = config.vector_width, 2 * config.width
        self.features_width = self.words_width + self.pooled_width
        self.name = f"onnxruntime {device.partition(':')[0]} {precision}"

    @staticmethod
    def shape_of(session: onnxruntime.InferenceSession, name: str) -> list[Any]:
        """The shape of an input."""
        return next(one.shape for one in session.get_inputs() if one.name == name)

    @cached_property
    def adapted_layers(self) -> onnxruntime.InferenceSession:
        """The layers with adapters, loaded when they are first needed."""
        return self.start_adapted()

    def run(self, prepared: Sequence[Prepared], rotations: Rotations | None = None) -> Outputs:
        """See `item.engine.interface.Runner`."""
        return Outputs(*self.head.run(Outputs._fields, self.head_inputs(prepared, rotations)))

    def run_modalities(self, prepared: Sequence[Prepared]) -> dict[Modality, Vectors]:
        """See `item.engine.interface.Runner`."""
        inputs = self.head_inputs(prepared, None)
        without: dict[Modality, tuple[str, ...]] = {
            "words": ("pooled", "has_picture"),
            "picture": ("means", "spelling", "has_words"),
            "both": (),
        }
        return {
            modality: self.head.run(["vectors"], inputs | {name: np.zeros_like(inputs[name]) for name in left_out})[0]
            for modality, left_out in without.items()
        }

    def head_inputs(self, prepared: Sequence[Prepared], rotations: Rotations | None) -> dict[str, Array]:
        """What the vector head reads of listings, by the names of its graph's inputs."""
        has_words = np.array([[one.word_ids is not None] for one in prepared])
        has_picture = np.array([[one.pixels is not None] for one in prepared])
        cells, pooled = self.run_stem([one.pixels for one in prepared if one.pixels is not None])
        of_pictures = np.zeros((len(prepared), self.pooled_width), np.float32)
        of_pictures[has_picture[:, 0]] = pooled
        g, means = self.run_layers(prepared, cells, has_words[:, 0], has_picture[:, 0], rotations)
        return {
            "g": g,
            "means": means,
            "spelling": stack_spelling([one.spelling for one in prepared]),
            "pooled": of_pictures,
            "has_words": has_words.astype(np.float32),
            "has_picture": has_picture.astype(np.float32),
        }

    def run_stem(self, pictures: Sequence[npt.NDArray[np.uint8]]) -> tuple[Array, Array]:
        """P pictures -> (P, m, C) cells, none where no text reads them, and (P, F) pooled."""
        names = ["cells", "pooled"] if self.text_reads_cells else ["pooled"]
        parts = [
            self.stem.run(names, {"pixels": np.stack(pictures[start : start + STEM_BATCH])})
            for start in range(0, len(pictures), STEM_BATCH)
        ]
        none = np.zeros((0, self.num_cells, self.cell_width), np.float32)
        if not parts:
            return none, np.zeros((0, self.pooled_width), np.float32)
        *cells, pooled = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        return (cells[0] if cells else none), pooled

    def run_layers(
        self,
        prepared: Sequence[Prepared],
        cells: Array,
        has_words: Array,
        has_picture: Array,
        rotations: Rotations | None,
    ) -> tuple[Array, Array]:
        """[CLS]'s state and the words' means, (N, D) and (N, 2, D).

        What the vector does not depend on does not enter them: cells, where all gates are shut; a listing without
        words, where the head's P_g is 0.
        """
        enters = np.ones(len(prepared), bool) if self.reads_state else has_words
        if not self.text_reads_cells:
            prepared = [replace(one, pixels=None) for one in prepared]
            has_picture = np.zeros(len(prepared), bool)
        width = self.config.width
        if not enters.any():
            return np.zeros((len(prepared), width), np.float32), np.zeros((len(prepared), 2, width), np.float32)
        packed = pack(
            [one for one, does in zip(prepared, enters, strict=True) if does],
            self.num_cells,
            self.config.cls_id,
            self.config.sep_id,
        )
        inputs = {**packed.inputs(), "cells": cells[enters[has_picture]]}
        if rotations is None:
            g, means = self.layers.run(["g", "means"], inputs)
        else:
            inputs |= {**self.tables_of(rotations), "adapter": rotations.rows[enters][packed.listing]}
            g, means = self.adapted_layers.run(["g", "means"], inputs)
        if enters.all():
            return g, means
        all_g, all_means = np.zeros((len(prepared), width), np.float32), np.zeros((len(prepared), 2, width), np.float32)
        all_g[enters], all_means[enters] = g, means
        return all_g, all_means

    def tables_of(self, rotations: Rotations) -> dict[str, Array]:
        """The adapters' inputs; those of a further run of the same call are the same."""
        known, tables = self.tables
        if known is None or known.r1 is not rotations.r1 or known.paired != rotations.paired:
            tables = complex_tables(rotations)
            self.tables = rotations, tables
        return tables


def is_true(session: onnxruntime.InferenceSession, name: str) -> bool:
    """A property of a graph."""
    return bool(session.get_modelmeta().custom_metadata_map[name] == "true")


def session_options(num_threads: int | None) -> onnxruntime.SessionOptions:
    """How all graphs run."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; warnings are about optimisations
    options.enable_mem_pattern = False  # shapes vary from run to run
    options.intra_op_num_threads = num_threads or 0
    # Threads spin between two nodes, microseconds apart, and never after a run: three sessions and the readers share
    # the cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", "200")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def start_session(folder: Path, file: str, device: str, num_threads: int | None) -> onnxruntime.InferenceSession:
    """A session of one graph.

    Raises:
        ModelError: the file is no graph that this ONNX Runtime can run.
        ConfigError: this ONNX Runtime does not run on the device.
    """
    kind, _, index = device.partition(":")
    if PROVIDERS[kind] not in onnxruntime.get_available_providers():
        raise ConfigError(f"device: this ONNX Runtime does not run on {kind!r}; install the extra gpu, or use cpu")
    provider = (PROVIDERS[kind], {"device_id": index}) if index else PROVIDERS[kind]
    try:
        return onnxruntime.InferenceSession(folder / file, session_options(num_threads), providers=[provider])
    except Exception as error:  # its errors have no public base
        raise ModelError(f"{folder / file}: ONNX Runtime cannot run it ({error}); {again(folder)}") from error
