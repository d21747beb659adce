"""8-bit linear layers with static scales: unsigned activations, signed weights (W8A8).

    x_q = clamp(round(x / s / scale_x) + zero_x, 0, 255)      scale_x, zero_x: one number each; s: (in,), see below
    y   = scale_x scale_w (x_q - zero_x) W_q + b              scale_w: (out,), W_q: (in, out), sums in 32 bits

Nothing is measured on the batch at hand, so that no listing's vector depends on another's.

*No saturation.* Processors without VNNI multiply-add two adjacent products into 16 bits (vpmaddubsw), and what does
not fit is cut off in silence. Halving the weights' range is the usual way out; it gives a bit away. The products
overflow only where two adjacent weights pull the same way, so it is enough to bound, for all pairs (2i, 2i + 1) of a
column, the sum of what is positive and the sum of what is negative by `PAIR_LIMIT`: 255 * 128 = 32,640 < 32,767. Of
normally distributed weights that keeps nearly the full range, and the sums are the same to the bit on every processor.

*Smoothing* (arXiv 2211.10438). s moves the spread of the activations' channels into the weights: one channel with an
outlier would take the resolution of all others. s_d = max|x_d|^alpha / max|W_d|^(1 - alpha), scaled to a mean log of 0.

*Outliers.* What enters the MLP's layers has a few channels that are ten times the others. The `OUTLIERS` largest are
multiplied in full precision (as in arXiv 2208.07339, but always the same ones): y += x[:, outliers] W_outliers.

*Rounding.* Weights are rounded one input after the other, each making up for the errors so far (arXiv 2210.17323).

`fit_linear` chooses alpha and how far the activations' range is cut by the error of the layer's output on a sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

MAX_ACTIVATION = 255
MAX_WEIGHT = 127
PAIR_LIMIT = 128  # MAX_ACTIVATION * PAIR_LIMIT fits into 16 bits
ALPHAS = (0.0, 0.25, 0.5, 0.75)  # 0 without smoothing
TAILS = (0.0, 1e-4, 1e-3)  # the share of the activations beyond either end of the range
OUTLIERS = 4  # channels multiplied apart
OUTLIER_GAIN = 0.5  # they are where that leaves at most this share of the squared error
QUANTILE_ROWS = 512  # of the sample, for the ends of the range
DAMPING = 0.01  # of the inputs' mean square, on the diagonal
SCALE_FLOOR = 1e-30  # below it everything is 0
SPREAD_FLOOR = 1e-5  # of the largest: channels and weights below it are not made larger still


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Linear:
    """One linear layer in 8 bits; the names are those of the equations above.

    smoothing: (in,) float32, or None where s = 1. weight: (in, out) int8. weight_scale, bias: (out,) float32.
    outliers: (k,) int64, channels that are multiplied apart, by outlier_weight: (k, out) float32; k may be 0.
    """

    input_scale: np.float32
    input_zero: np.uint8
    smoothing: Floats | None
    weight: npt.NDArray[np.int8]
    weight_scale: Floats
    bias: Floats
    outliers: npt.NDArray[np.int64]
    outlier_weight: Floats

    def __call__(self, x: Floats) -> Floats:
        """(N, in) -> (N, out), as the equations say it: what an engine computes, but for rounding of the last sums."""
        smoothed = x if self.smoothing is None else x / self.smoothing
        x_q = quantise_input(smoothed, self.input_scale, self.input_zero) - np.float32(self.input_zero)
        y = (x_q @ self.weight.astype(np.float32)) * (self.input_scale * self.weight_scale) + self.bias
        return y + x[:, self.outliers] @ self.outlier_weight


def quantise_input(x: Floats, scale: np.float32, zero: np.uint8) -> npt.NDArray[np.uint8]:
    """Float to unsigned 8 bits, halves to even."""
    return np.clip(np.rint(x / scale) + np.float32(zero), 0, MAX_ACTIVATION).astype(np.uint8)


def quantise_weight(weight: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """(in, out) float -> (in, out) int8 and (out,) scales, the finest whose pairs of products fit into 16 bits."""
    padded = np.pad(weight, ((0, len(weight) % 2), (0, 0))).astype(np.float64)
    pairs = padded.reshape(-1, 2, padded.shape[1])
    same_way = np.maximum(np.maximum(pairs, 0).sum(1), np.maximum(-pairs, 0).sum(1)).max(0)
    # Rounding adds at most a half to each of two weights: PAIR_LIMIT - 1 before it is PAIR_LIMIT at most after it.
    scale = np.maximum(np.abs(padded).max(0) / MAX_WEIGHT, same_way / (PAIR_LIMIT - 1))
    scale = np.where(scale > SCALE_FLOOR, scale, 1).astype(np.float32)
    return np.clip(np.rint(weight / scale), -MAX_WEIGHT, MAX_WEIGHT).astype(np.int8), scale


def round_weight(weight: Floats, scale: Floats, x: Floats) -> npt.NDArray[np.int8]:
    """(in, out) float -> (in, out) int8 under given scales (out,): what rounding one input's weights gets wrong is made
    up for by those of the inputs after it, as far as the inputs x (N, in) go together (GPTQ, arXiv 2210.17323).

    The bounds of `quantise_weight` hold.
    """
    squares = x.T.astype(np.float64) @ x
    squares[np.diag_indices_from(squares)] += DAMPING * np.diag(squares).mean() + SCALE_FLOOR
    back = np.linalg.cholesky(np.linalg.inv(squares)).T  # upper triangular: row i says how the later ones make up for i
    left = weight.astype(np.float64) / scale
    rounded = np.zeros_like(left)
    for row in range(len(left)):
        before = rounded[row - 1] if row % 2 else np.zeros_like(left[row])
        high = np.minimum(MAX_WEIGHT, PAIR_LIMIT - np.maximum(before, 0))
        low = np.maximum(-MAX_WEIGHT, np.maximum(-before, 0) - PAIR_LIMIT)
        rounded[row] = np.clip(np.rint(left[row]), low, high)
        left[row + 1 :] -= np.outer(back[row, row + 1 :], (left[row] - rounded[row]) / back[row, row])
    return rounded.astype(np.int8)


def pair_sums(weight: npt.NDArray[np.int8]) -> int:
    """The largest sum of what is positive, or negative, in an adjacent pair: PAIR_LIMIT at most, or it may saturate."""
    padded = np.pad(weight.astype(np.int64), ((0, len(weight) % 2), (0, 0)))
    pairs = padded.reshape(-1, 2, padded.shape[1])
    return int(np.maximum(np.maximum(pairs, 0).sum(1), np.maximum(-pairs, 0).sum(1)).max(initial=0))


def fit_linear(x: Floats, weight: Floats, bias: Floats) -> Int8Linear:
    """The linear layer in 8 bits whose outputs are nearest to the layer's own: in squares, and equal on average.

    x: (N, in), inputs of calibration. weight: (out, in), as torch has it. bias: (out,).
    """
    weight = np.ascontiguousarray(weight.T)
    exact = x @ weight + bias
    together, error = best_of(candidates(x, weight, bias, np.zeros(0, np.int64)), x, exact)
    outliers = np.sort(np.argsort(-np.abs(x).max(0))[:OUTLIERS])
    apart, error_apart = best_of(candidates(x, weight, bias, outliers), x, exact)
    best = rounded_again(apart if error_apart < OUTLIER_GAIN * error else together, x, weight)
    return replace(best, bias=bias + (exact - best(x)).mean(0))


def rounded_again(linear: Int8Linear, x: Floats, weight: Floats) -> Int8Linear:
    """The same layer, its weights rounded by what enters it (`round_weight`). weight: (in, out)."""
    s = np.ones(len(weight), np.float32) if linear.smoothing is None else linear.smoothing
    rest_weight = weight * s[:, None]
    rest_weight[linear.outliers] = 0
    x_q = quantise_input(x / s, linear.input_scale, linear.input_zero) - np.float32(linear.input_zero)
    return replace(linear, weight=round_weight(rest_weight, linear.weight_scale, x_q))


def best_of(linears: Iterable[Int8Linear], x: Floats, exact: Floats) -> tuple[Int8Linear, float]:
    """The one with the least squared error, and the error."""
    scored = ((linear, float(np.square(linear(x) - exact).sum())) for linear in linears)
    return min(scored, key=lambda one: one[1])


def candidates(x: Floats, weight: Floats, bias: Floats, outliers: npt.NDArray[np.int64]) -> Iterator[Int8Linear]:
    """All choices of alpha and of the range. weight: (in, out)."""
    rest, rest_weight = x.copy(), weight.copy()
    rest[:, outliers], rest_weight[outliers] = 0, 0
    for alpha in ALPHAS:
        smoothing = smooth(rest, rest_weight, alpha) if alpha else None
        smoothed = rest if smoothing is None else rest / smoothing
        quantised, weight_scale = quantise_weight(
            rest_weight if smoothing is None else rest_weight * smoothing[:, None]
        )
        for tail in TAILS:
            scale, zero = input_range(smoothed, tail)
            yield Int8Linear(
                input_scale=scale,
                input_zero=zero,
                smoothing=smoothing,
                weight=quantised,
                weight_scale=weight_scale,
                bias=bias.astype(np.float32),
                outliers=outliers,
                outlier_weight=weight[outliers],
            )


def input_range(x: Floats, tail: float) -> tuple[np.float32, np.uint8]:
    """scale_x and zero_x for all of x but `tail` at either end; 0 is always exact."""
    low, high = np.quantile(x[:: len(x) // QUANTILE_ROWS + 1], [tail, 1 - tail]) if tail else (x.min(), x.max())
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / MAX_ACTIVATION)
    scale = scale if scale > SCALE_FLOOR else np.float32(1)
    return scale, np.uint8(np.clip(np.rint(-low / scale), 0, MAX_ACTIVATION))


def smooth(x: Floats, weight: Floats, alpha: float) -> Floats:
    """(in,) float32, s of the equations."""

    def floored(values: Floats) -> npt.NDArray[np.float64]:
        spread = values.astype(np.float64)
        return np.maximum(spread, SPREAD_FLOOR * spread.max(initial=0)) if spread.any() else np.ones_like(spread)

    s = floored(np.abs(x).max(0)) ** alpha / floored(np.abs(weight).max(1)) ** (1 - alpha)
    return np.asarray(s / np.exp(np.log(s).mean()), dtype=np.float32)
