"""ITEm and its objectives in numpy float64, one listing at a time, written from the equations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

Array = npt.NDArray[np.float64]
erf = np.vectorize(math.erf)


def weights_of(module: nn.Module) -> dict[str, Array]:
    return {name: tensor.detach().double().numpy() for name, tensor in module.state_dict().items()}


def linear(w: dict[str, Array], name: str, x: Array) -> Array:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(w: dict[str, Array], name: str, x: Array, eps: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(x: Array, kind: str) -> Array:
    """Weights of one query over its n unmasked keys, x: (n,) logits; arXiv 2402.12102 with zeta 1.03, gamma -0.025."""
    p, n = softmax(x), len(x)
    if kind == "clipped":
        return np.clip((1.03 + 0.025) * p - 0.025, 0, 1)
    if kind == "normalised_clipped" and n > 1:
        return np.clip(p * (n * 1.03 - 1) / (n - 1) + (1 - 1.03) / (n - 1), 0, 1)
    return p


def patches_of(pixels: npt.NDArray[np.uint8], patch: int) -> Array:
    """(3, S, S) -> (m, 3 * patch^2), normalised with mean and std 0.5, row by row."""
    x, side = (pixels / 255 - 0.5) / 0.5, pixels.shape[1] // patch
    return np.stack(
        [
            x[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch].ravel()
            for r in range(side)
            for c in range(side)
        ]
    )


def embed(
    w: dict[str, Array],
    config: Any,
    word_ids: list[int] | None,
    pixels: npt.NDArray[np.uint8] | None,
    masked: npt.NDArray[np.bool_] | None = None,
    mask_vector: Array | None = None,
) -> Array:
    """The layers' input, (T, D): [CLS], the words where there are any, the cells where there are any."""
    ids = [config.cls_id, *(word_ids or [])]
    tokens = [
        w["embeddings.words.weight"][i] + w["embeddings.word_positions.weight"][t] + w["embeddings.types.weight"][0]
        for t, i in enumerate(ids)
    ]
    if pixels is not None:
        cells = patches_of(pixels, config.patch_size) @ w["stem.embedding.proj.weight"].reshape(config.width, -1).T
        content = linear(w, "embeddings.patches", cells + w["stem.embedding.proj.bias"])
        for j, row in enumerate(content):
            seen = mask_vector if masked is not None and masked[j] else row
            tokens.append(seen + w["embeddings.patch_positions.weight"][j] + w["embeddings.types.weight"][1])
    return layer_norm(w, "embeddings.norm", np.stack(tokens), config.layer_norm_eps)


def attended(w: dict[str, Array], config: Any, name: str, x: Array, bias: Array) -> Array:
    """The first half of a layer over (T, D) with a (T, T) bias."""
    head = config.width // config.num_heads
    q, k, v = (linear(w, f"{name}.attention.{part}", x) for part in ("query", "key", "value"))
    outputs = []
    for h in range(config.num_heads):
        s = slice(h * head, (h + 1) * head)
        scores = q[:, s] @ k[:, s].T / math.sqrt(head) + bias
        outputs.append(np.stack([attention(row, config.attention) for row in scores]) @ v[:, s])
    projected = linear(w, f"{name}.attention.output", np.concatenate(outputs, -1))
    return layer_norm(w, f"{name}.attention_norm", x + projected, config.layer_norm_eps)


def feed_forward(w: dict[str, Array], name: str, x: Array) -> Array:
    return linear(w, f"{name}.down", gelu(linear(w, f"{name}.up", x)))


def layer(w: dict[str, Array], config: Any, name: str, x: Array, bias: Array) -> Array:
    x = attended(w, config, name, x, bias)
    return layer_norm(w, f"{name}.mlp_norm", x + feed_forward(w, name, x), config.layer_norm_eps)


def encode(w: dict[str, Array], config: Any, x: Array, num_text: int, hidden: Sequence[int] = ()) -> Array:
    """H, (T, D), from the layers' input; `hidden` tokens stay out of all layers and keep their input."""
    kept = [t for t in range(len(x)) if t not in hidden]
    is_text = np.array(kept) < num_text
    states = x[kept]
    for i in range(config.num_layers):
        states = layer(w, config, f"layers.{i}", states, w["gates"][i] * np.outer(is_text, ~is_text))
    H = x.copy()
    H[kept] = states
    return H


def prediction_head(w: dict[str, Array], name: str, x: Array) -> Array:
    return layer_norm(w, f"{name}.2", gelu(linear(w, f"{name}.0", x)), 1e-5)


def cross_entropy(logits: Array, target: int) -> float:
    return float(-np.log(softmax(logits)[target]))
