"""8-bit linear layers: equations, processors that would saturate, ONNX Runtime, and what the fit leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from item.export.graph import GraphBuilder
from item.export.quantised import QuantisedLinears
from item.quantisation.int8 import PAIR_LIMIT, Floats, Int8Linear, fit_linear, input_range, pair_sums, quantise_weight

MATRICES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 9), st.integers(1, 4)),
    elements=st.one_of(
        st.just(0.0),
        st.floats(-2, 2, width=32, allow_subnormal=False),
        st.sampled_from([-1e30, -1e5, -1e-20, 1e-20, 1e5, 1e30]),
    ),
)


def normal(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(weight=MATRICES)
def test_pairs_of_weights_stay_within_the_limit(weight: Floats) -> None:
    quantised, scale = quantise_weight(weight)
    assert pair_sums(quantised) <= PAIR_LIMIT
    assert (scale > 0).all()
    error = np.abs(quantised * scale.astype(np.float64) - weight)
    assert (error <= scale.astype(np.float64) * (0.5 + 1e-4)).all()


@given(
    weight=hnp.arrays(np.int8, st.tuples(st.integers(1, 7), st.integers(1, 4)), elements=st.integers(-127, 127)),
)
def test_pair_sums_equal_a_loop(weight: npt.NDArray[np.int8]) -> None:
    largest = 0
    for column in weight.T.tolist():
        for start in range(0, len(column), 2):
            pair = column[start : start + 2]
            largest = max(largest, sum(w for w in pair if w > 0), -sum(w for w in pair if w < 0))
    assert pair_sums(weight) == largest


def test_a_scale_is_no_coarser_than_it_has_to_be() -> None:
    """A column whose pairs do not pull the same way uses all 8 bits; one whose pairs do uses the whole limit."""
    apart, together = [1.0, -1.0, 0.5, 0.0], [1.0, 1.0, 0.5, 0.0]
    quantised, _ = quantise_weight(np.array([apart, together], np.float32).T)
    assert np.abs(quantised).max(0).tolist() == [127, 64]
    assert pair_sums(quantised) == PAIR_LIMIT


def vpmaddubsw(x: npt.NDArray[np.uint8], weight: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
    """(N, in) u8 times (in, out) s8 as processors without VNNI do it: pairs in 16 bits with saturation, then a sum."""
    odd = len(weight) % 2
    x, weight = np.pad(x, ((0, 0), (0, odd))), np.pad(weight, ((0, odd), (0, 0)))
    products = x.astype(np.int64)[:, :, None] * weight.astype(np.int64)
    pairs = products[:, 0::2] + products[:, 1::2]
    return np.asarray(np.clip(pairs, -(2**15), 2**15 - 1).sum(1))


def worst_inputs(weight: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """All 255, and for each column 255 where it pulls up, and where it pulls down."""
    patterns = [np.ones((1, len(weight)), bool), weight.T > 0, weight.T < 0]
    return np.where(np.concatenate(patterns), np.uint8(255), np.uint8(0))


def exact_product(x: npt.NDArray[np.uint8], weight: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
    return np.asarray(x.astype(np.int64) @ weight.astype(np.int64))


@pytest.mark.parametrize("rows", [2, 65, 256])
def test_nothing_saturates_in_16_bits(rows: int) -> None:
    quantised, _ = quantise_weight(normal(rows, rows, 24))
    x = worst_inputs(quantised)
    np.testing.assert_array_equal(vpmaddubsw(x, quantised), exact_product(x, quantised))


def test_plain_8_bits_would_saturate() -> None:
    weight = normal(256, 256, 24)
    plain = np.rint(weight / (np.abs(weight).max(0) / 127)).astype(np.int8)
    assert pair_sums(plain) > PAIR_LIMIT
    x = worst_inputs(plain)
    assert (vpmaddubsw(x, plain) != exact_product(x, plain)).any()


def some_linear(seed: int, inputs: int, outputs: int, *, smoothed: bool, outliers: Sequence[int]) -> Int8Linear:
    generator = np.random.default_rng(seed)
    weight, scale = quantise_weight(normal(seed, inputs, outputs))
    return Int8Linear(
        input_scale=np.float32(generator.uniform(0.01, 0.1)),
        input_zero=np.uint8(generator.integers(0, 256)),
        smoothing=generator.uniform(0.3, 3, inputs).astype(np.float32) if smoothed else None,
        weight=weight,
        weight_scale=scale,
        bias=normal(seed + 1, outputs),
        outliers=np.array(outliers, np.int64),
        outlier_weight=normal(seed + 2, len(outliers), outputs),
    )


def inputs_between_ties(linear: Int8Linear, seed: int, rows: int) -> Floats:
    """Inputs from below 0 to beyond 255 after quantisation, none so near to a half that rounding could turn it."""
    generator = np.random.default_rng(seed)
    steps = generator.integers(-40, 300, (rows, len(linear.weight))) - float(linear.input_zero)
    x = (steps + generator.uniform(-0.45, 0.45, steps.shape)) * float(linear.input_scale)
    return np.asarray(x if linear.smoothing is None else x * linear.smoothing, np.float32)


LINEARS = [(False, ()), (True, ()), (False, (1, 5)), (True, (0, 2, 6))]


@pytest.mark.parametrize(("smoothed", "outliers"), LINEARS)
@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_a_linear_equals_the_equations(smoothed: bool, outliers: tuple[int, ...], seed: int) -> None:
    linear = some_linear(seed, 9, 5, smoothed=smoothed, outliers=outliers)
    x = inputs_between_ties(linear, seed, 6)
    expected = np.zeros((6, 5))
    scale, zero = float(linear.input_scale), int(linear.input_zero)
    for n in range(6):
        for o in range(5):
            total = 0
            for i in range(9):
                s = 1.0 if linear.smoothing is None else float(linear.smoothing[i])
                total += (min(max(round(float(x[n, i]) / s / scale) + zero, 0), 255) - zero) * int(linear.weight[i, o])
            apart = sum(float(x[n, channel]) * float(linear.outlier_weight[k, o]) for k, channel in enumerate(outliers))
            expected[n, o] = scale * float(linear.weight_scale[o]) * total + float(linear.bias[o]) + apart
    np.testing.assert_allclose(linear(x), expected, rtol=1e-5, atol=1e-4)


def on_onnxruntime(linear: Int8Linear, x: Floats) -> Floats:
    graph = GraphBuilder()
    inputs, outputs = linear.weight.shape
    unused: Any = np.zeros(0, np.float32)
    y = QuantisedLinears({"linear": linear})(graph, graph.input("x", "float", ["N", inputs]), "linear", unused, unused)
    graph.output(y, "y", ["N", outputs])
    model = graph.model("linear", {}).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"x": x})[0])


@pytest.mark.parametrize(("smoothed", "outliers"), LINEARS)
@pytest.mark.parametrize("inputs", [8, 33, 128])
def test_onnxruntime_computes_the_same(smoothed: bool, outliers: tuple[int, ...], inputs: int) -> None:
    linear = some_linear(inputs, inputs, 24, smoothed=smoothed, outliers=outliers)
    x = inputs_between_ties(linear, inputs, 17)
    np.testing.assert_allclose(on_onnxruntime(linear, x), linear(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("zero", [0, 128, 255])
def test_onnxruntime_computes_the_same_at_worst(zero: int) -> None:
    """Activations at both ends of their range, and halves, which go to the even neighbour."""
    weight, _ = quantise_weight(normal(3, 256, 24))
    linear = Int8Linear(
        input_scale=np.float32(0.5),
        input_zero=np.uint8(zero),
        smoothing=None,
        weight=weight,
        weight_scale=np.ones(24, np.float32),
        bias=np.zeros(24, np.float32),
        outliers=np.zeros(0, np.int64),
        outlier_weight=np.zeros((0, 24), np.float32),
    )
    x = (worst_inputs(weight).astype(np.float32) - zero) * 0.5
    expected = (exact_product(worst_inputs(weight), weight) - zero * weight.astype(np.int64).sum(0)) / 2
    np.testing.assert_array_equal(linear(x), expected)
    np.testing.assert_array_equal(on_onnxruntime(linear, x), expected)
    steps = np.random.default_rng(0).integers(-zero, 255 - zero, (5, 256))
    halves = ((steps + 0.5) / 2).astype(np.float32)
    np.testing.assert_array_equal(on_onnxruntime(linear, halves), linear(halves))


def exact(x: Floats, weight: Floats, bias: Floats) -> Floats:
    return x @ weight.T + bias


def squared_error(linear: Int8Linear, x: Floats, weight: Floats, bias: Floats) -> float:
    return float(np.square(linear(x) - exact(x, weight, bias)).sum())


def plain(x: Floats, weight: Floats, bias: Floats) -> Int8Linear:
    """From the least to the largest value, neither smoothed nor with channels apart."""
    scale, zero = input_range(x, 0)
    quantised, weight_scale = quantise_weight(np.ascontiguousarray(weight.T))
    return Int8Linear(
        input_scale=scale,
        input_zero=zero,
        smoothing=None,
        weight=quantised,
        weight_scale=weight_scale,
        bias=bias,
        outliers=np.zeros(0, np.int64),
        outlier_weight=np.zeros((0, len(bias)), np.float32),
    )


@given(seed=st.integers(0, 10_000), inputs=st.integers(1, 24), spread=st.sampled_from([0.0, 1.0, 3.0]))
@settings(max_examples=30)
def test_a_fit_is_no_worse_than_the_plain_one(seed: int, inputs: int, spread: float) -> None:
    x = normal(seed, 64, inputs) * np.exp(spread * normal(seed + 1, inputs)) + normal(seed + 2, inputs)
    weight, bias = normal(seed + 3, 7, inputs), normal(seed + 4, 7)
    fitted = fit_linear(x, weight, bias)
    least = squared_error(plain(x, weight, bias), x, weight, bias)
    assert squared_error(fitted, x, weight, bias) <= least * (1 + 1e-4) + 1e-8
    size = np.abs(exact(x, weight, bias)).max()
    np.testing.assert_allclose((fitted(x) - exact(x, weight, bias)).mean(0), 0, atol=1e-6 * size)
    assert pair_sums(fitted.weight) <= PAIR_LIMIT
    assert fitted.bias.dtype == fitted.outlier_weight.dtype == fitted.weight_scale.dtype == np.float32


def test_one_huge_channel_is_multiplied_apart() -> None:
    x, weight, bias = normal(0, 512, 64), normal(1, 32, 64), normal(2, 32)
    x[:, 17] *= 50
    fitted = fit_linear(x, weight, bias)
    assert 17 in fitted.outliers
    others = np.delete(x, 17, axis=1) @ np.delete(weight, 17, axis=1).T
    assert squared_error(fitted, x, weight, bias) < 0.02**2 * np.square(others).sum()
    assert squared_error(plain(x, weight, bias), x, weight, bias) > 0.1**2 * np.square(others).sum()


def test_channels_of_like_size_stay_together() -> None:
    x, weight = np.random.default_rng(0).uniform(-1, 1, (512, 64)).astype(np.float32), normal(1, 32, 64)
    assert len(fit_linear(x, weight, np.zeros(32, np.float32)).outliers) == 0


@pytest.mark.parametrize("inputs", [1, 2, 9])
@pytest.mark.parametrize("zero", ["input", "weight", "both", "a channel", "an output"])
def test_zeros_are_no_harm(inputs: int, zero: str) -> None:
    x, weight, bias = normal(0, 20, inputs), normal(1, 5, inputs), normal(2, 5)
    if zero in ("input", "both"):
        x[:] = 0
    if zero in ("weight", "both"):
        weight[:] = 0
    if zero == "a channel":
        x[:, 0] = 0
    if zero == "an output":
        weight[0] = 0
    fitted = fit_linear(x, weight, bias)
    assert np.isfinite(fitted(x)).all()
    size = np.abs(exact(x, weight, bias)).max()
    np.testing.assert_allclose(fitted(x), exact(x, weight, bias), atol=0.03 * size)
    np.testing.assert_allclose(on_onnxruntime(fitted, x), fitted(x), atol=0.01 * size)


@given(x=hnp.arrays(np.float32, 20, elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False)))
def test_zero_is_exact_in_every_range(x: Floats) -> None:
    scale, zero = input_range(x, 0)
    assert scale > 0
    steps = x.astype(np.float64) / float(scale) + int(zero)
    assert steps.min() >= -0.5 - 1e-3
    assert steps.max() <= 255.5 + 1e-3
