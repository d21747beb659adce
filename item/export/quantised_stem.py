"""A convolutional stem in 8 bits: ONNX Runtime's static quantiser, with the first convolutions left as they are, and
weights that cannot saturate and are rounded by what they are multiplied with (item.quantisation.int8).

The first convolutions see the picture at its largest and have the fewest channels to average their error away. How many
of them stay in full precision is decided by the pictures at hand: the fewest with which the nearest pictures stay the
same, and none are in 8 bits where that does not help.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from item.engine.interface import Vectors
from item.engine.onnx_runner import STEM_BATCH, session_options
from item.export.graph import Array
from item.export.loss import MIN_OVERLAP, compare
from item.quantisation.int8 import PAIR_LIMIT, quantise_input, quantise_weight, round_weight

MIN_CONVOLUTIONS = 16  # with fewer it is a patch embedding, which costs little
FLOAT_SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2)  # of the convolutions, the first ones: tried in this order
MAX_BIAS = 2**30  # half of what 32 bits hold: the sums of products come on top
CALIBRATION_PICTURES = 128
MARGIN = 0.01  # above what a variant needs of the ten nearest: other pictures, and more of them, are harder
PLACES = 512  # of a batch of pictures, for what enters a convolution
OPERATORS = ["Conv", "Add", "Clip"]  # a Clip that is left out would have the quantiser keep what it cuts off


def quantise_stem(
    stem: onnx.ModelProto, pictures: Array, vectors: Callable[[Array], Vectors]
) -> tuple[onnx.ModelProto, str] | None:
    """The stem in 8 bits, and how much of it; None where it stays as it is: not convolutional, or it loses too much.

    pictures: (P, 3, S, S) uint8; scales are fitted to the first of them, and the loss is measured on the others.
    vectors: (P, F) pooled features -> (P, V) of unit norm, the vectors of the pictures alone.
    """
    num_convolutions = len(convolutions(stem))
    if num_convolutions < MIN_CONVOLUTIONS or len(pictures) < 2 * CALIBRATION_PICTURES:
        return None
    fitted, measured = pictures[:CALIBRATION_PICTURES], pictures[CALIBRATION_PICTURES:]
    expected = vectors(pooled(stem, measured))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        onnx.save(stem, folder / "stem.onnx")
        quant_pre_process(folder / "stem.onnx", folder / "prepared.onnx", skip_symbolic_shape=True)
        prepared = onnx.load(folder / "prepared.onnx")
        inputs = sample_inputs(prepared, fitted)
        for share in FLOAT_SHARES:
            first = round(share * num_convolutions)
            made = quantise(folder, prepared, first, fitted, inputs)
            if compare(vectors(pooled(made, measured)), expected).overlap_at_10 >= MIN_OVERLAP + MARGIN:
                return made, f"{num_convolutions - first} of the stem's {num_convolutions} convolutions in 8 bits"
    return None


def convolutions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """In the order of the graph."""
    return [node for node in model.graph.node if node.op_type == "Conv"]


def is_pointwise(weight: onnx.TensorProto) -> bool:
    """Whether a convolution's weight (out, in, h, w) makes it a matrix product."""
    return list(weight.dims[2:]) == [1, 1]


def sample_inputs(prepared: onnx.ModelProto, pictures: Array) -> dict[str, Array]:
    """What enters each 1 x 1 convolution, by its name: (rows, in) float32, some places of each batch of pictures."""
    weights = {tensor.name: tensor for tensor in prepared.graph.initializer}
    entering = {node.name: node.input[0] for node in convolutions(prepared) if is_pointwise(weights[node.input[1]])}
    values = sorted(set(entering.values()))
    shown = onnx.ModelProto()
    shown.CopyFrom(prepared)
    shown.graph.output.extend(onnx.ValueInfoProto(name=value) for value in values)
    generator = np.random.default_rng(0)
    kept: dict[str, list[Array]] = {value: [] for value in values}
    session = start(shown)
    for batch in batches(pictures):
        for value, x in zip(values, session.run(values, {"pixels": batch}), strict=True):
            places = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
            kept[value].append(places[generator.choice(len(places), min(len(places), PLACES), replace=False)])
    return {name: np.concatenate(kept[value]) for name, value in entering.items()}


def quantise(
    folder: Path, prepared: onnx.ModelProto, first: int, pictures: Array, inputs: Mapping[str, Array]
) -> onnx.ModelProto:
    """All after the `first` convolutions in 8 bits."""
    names = [node.name for node in prepared.graph.node]
    quantize_static(
        folder / "prepared.onnx",
        folder / "quantised.onnx",
        Pictures(pictures),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=OPERATORS,
        nodes_to_exclude=names[: names.index(convolutions(prepared)[first].name)],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    made = onnx.load(folder / "quantised.onnx")
    round_weights(made, prepared, inputs)
    return made


def round_weights(made: onnx.ModelProto, prepared: onnx.ModelProto, inputs: Mapping[str, Array]) -> None:
    """Gives convolutions in 8 bits weights that cannot saturate, and the scales and biases that go with them.

    A 1 x 1 convolution is a matrix product, pairs and all. One with a wider window may be laid out in any order, and
    gets half the range. A depthwise one is added up in 32 bits everywhere, and stays as it is.
    """
    floats = {tensor.name: tensor for tensor in prepared.graph.initializer}
    tensors = {tensor.name: tensor for tensor in made.graph.initializer}
    made_by = {node.output[0]: node for node in made.graph.node}

    def value(name: str) -> Array:
        return numpy_helper.to_array(tensors[name])

    def replace(name: str, value: Array) -> None:
        tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))

    for node in convolutions(made):
        sources = [made_by.get(name) for name in node.input]
        if any(source is None or source.op_type != "DequantizeLinear" for source in sources):
            continue
        x_source, weight_source, bias_source = (source.input for source in sources if source is not None)
        original = floats[weight_source[0].removesuffix("_quantized")]
        if is_grouped(node):
            continue
        weight = numpy_helper.to_array(original)
        bias = numpy_helper.to_array(floats[bias_source[0].removesuffix("_quantized")])
        x_scale, x_zero = value(x_source[1]), value(x_source[2])
        least = np.abs(bias) / (x_scale * MAX_BIAS)  # of a channel's scale, for its bias to fit into 32 bits
        if is_pointwise(original):
            matrix = weight.reshape(len(weight), -1).T  # (in, out)
            scale = np.maximum(quantise_weight(matrix)[1], least).astype(np.float32)
            x = inputs[node.name]
            x_q = quantise_input(x, np.float32(x_scale), np.uint8(x_zero)) - np.float32(x_zero)
            rounded = round_weight(matrix, scale, x_q)
            bias = bias + (x @ matrix - (x_q * x_scale) @ (rounded * scale)).mean(0)
            quantised = rounded.T.reshape(weight.shape)
        else:
            largest = np.abs(weight).max((1, 2, 3))
            scale = np.maximum(np.where(largest > 0, largest / (PAIR_LIMIT // 2 - 1), 1), least).astype(np.float32)
            quantised = np.rint(weight / scale[:, None, None, None]).astype(np.int8)
        replace(weight_source[0], quantised)
        replace(weight_source[1], scale)
        replace(bias_source[0], np.rint(bias / (x_scale * scale)).astype(np.int32))
        replace(bias_source[1], (x_scale * scale).astype(np.float32))


def is_grouped(convolution: onnx.NodeProto) -> bool:
    """Whether a convolution has several groups of channels, as a depthwise one."""
    return any(attribute.name == "group" and attribute.i > 1 for attribute in convolution.attribute)


def start(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session of a model in memory."""
    return onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(None), providers=["CPUExecutionProvider"]
    )


def pooled(stem: onnx.ModelProto, pictures: Array) -> Array:
    """(P, F), what the vector head reads of pictures."""
    session = start(stem)
    return np.concatenate([session.run(["pooled"], {"pixels": batch})[0] for batch in batches(pictures)])


def batches(pictures: Array) -> Iterator[Array]:
    """As many pictures as the engine gives the stem at once."""
    return (pictures[start : start + STEM_BATCH] for start in range(0, len(pictures), STEM_BATCH))


class Pictures(CalibrationDataReader):  # type: ignore[misc]  # untyped
    """Gives pictures to the quantiser."""

    def __init__(self, pictures: Array) -> None:
        self.feeds = iter([{"pixels": batch} for batch in batches(pictures)])

    def get_next(self) -> dict[str, Array] | None:
        """The next batch by input name; None at the end."""
        return next(self.feeds, None)
