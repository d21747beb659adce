"""The encoder after the stem as two ONNX graphs: the layers and the vector head (item.model.encoder, .vector).

The layers run on *packed* tokens: those of all listings one after another, (N, D), without padding. Only attention is
padded, B listings by T tokens, and the graph takes the indices both ways as inputs (item.engine.packing makes them).

Shapes: B listings, P pictures, n text tokens ([CLS], words, [SEP]) of all listings, m cells of a picture, N = n + P m,
T tokens of the longest listing, t of the longest text, D width, H heads, A adapters, S outputs of all linear layers, F
pooled features, V the vector's width.
"""

from __future__ import annotations

import math
from typing import Protocol, cast

import numpy as np
import onnx
from torch import Tensor, nn

from item.adapters.adapter import num_rotations
from item.export.graph import CONTRIB, Array, GraphBuilder
from item.model.attention import BETA, GAMMA, ZETA
from item.model.encoder import ITEm, Layer
from item.model.vector import Part
from item.preprocessing.spelling import SPELLING_WIDTH

INDICES = {"gather": ["B", "T"], "scatter": ["N"], "gather_text": ["B", "t"], "scatter_text": ["n"]}
NORM_FLOOR = 1e-12  # torch's normalize


class Linear(Protocol):
    """Writes y = x W^T + b for x: (N, in) into a graph: in full precision, or quantised."""

    def __call__(self, graph: GraphBuilder, x: str, name: str, weight: Array, bias: Array) -> str:
        """weight: (out, in), bias: (out,) -> the name of y: (N, out)."""
        ...


def float_linear(graph: GraphBuilder, x: str, name: str, weight: Array, bias: Array) -> str:
    """In full precision."""
    matrix, offset = graph.constant(f"{name}.weight", weight.T), graph.constant(f"{name}.bias", bias)
    return str(graph("Gemm", x, matrix, offset, name=name))


def array(tensor: Tensor) -> Array:
    """A parameter's values."""
    return tensor.detach().cpu().numpy()


def layer_linears(layer: Layer) -> dict[str, tuple[Array, Array]]:
    """The linear layers of one layer in the order of their rotations: name -> weight (out, in), bias (out,). Query, key
    and value, which read the same, are one."""
    attention = layer.attention
    projections = (attention.query, attention.key, attention.value)
    parts = {"output": attention.output, "up": layer.up, "down": layer.down}
    weight, bias = (np.concatenate([array(getattr(one, part)) for one in projections]) for part in ("weight", "bias"))
    return {"qkv": (weight, bias), **{name: (array(one.weight), array(one.bias)) for name, one in parts.items()}}


class LayersGraph:
    """Builds the layers: tokens in; [CLS]'s state and the words' means, (B, D) and (B, 2, D), out.

    adapters: whether the graph also takes RoAd adapters (arXiv 2409.00119), and `adapter`, (N,), each token's row in
        their tables. Two adjacent outputs of a linear layer are one complex number z, and every 2x2 matrix of RoAd is

            z -> t z + conj(m z)        t = 1, m = 0: the model without adapter;    m = 0: all of RoAd_1

        `turn_re` and `turn_im`, (A, S / 2), hold t; `mirror_re` and `mirror_im` hold m, or have no rows where all of it
        is 0 (item.engine.packing.complex_tables). A complex product with a table's row is ONNX Runtime's
        RotaryEmbedding: one pass over the outputs, whatever the number of adapters.

    `text_reads_cells` among the properties says whether the outputs depend on `cells`.
    """

    def __init__(self, model: ITEm, linear: Linear = float_linear, adapters: bool = False) -> None:
        self.config, self.encoder = model.config, model
        self.linear, self.adapters = linear, adapters
        self.graph = GraphBuilder()
        self.unit = math.gcd(self.config.width, self.config.mlp_width)  # outputs that one row of a table rotates
        self.rotated = 0  # outputs of linear layers that have their columns in the tables already
        self.first_rows = ""  # of each token's adapter, (N, 1), in tables of one unit a row

    def build(self, metadata: dict[str, str]) -> onnx.ModelProto:
        """The model, with `metadata` in its properties."""
        g = self.graph
        x = self.tokens()
        for name, shape in INDICES.items():
            g.input(name, "int64", shape)
        if self.adapters:
            self.tables()
        padding, text_to_cell = self.biases()
        layers = cast(list[Layer], self.encoder.layers)
        for index, (layer, gate) in enumerate(zip(layers, array(self.encoder.gates), strict=True)):
            run = self.last_layer if index == len(layers) - 1 else self.layer
            x = run(f"layers.{index}", layer, x, self.bias(padding, text_to_cell, index, gate))
        self.pool(x)
        reads_cells = "true" if self.encoder.text_reads_cells else "false"
        return g.model("layers", {"text_reads_cells": reads_cells, **metadata})

    def tables(self) -> None:
        """The adapters' inputs. The tables are laid out anew, (A S / unit, unit / 2), so that no layer has to cut its
        columns out of them."""
        g, S = self.graph, num_rotations(self.config)
        for table, rows in {"turn": "A", "mirror": "M"}.items():
            for part in ("re", "im"):
                values = g.input(f"{table}_{part}", "float", [rows, S // 2])
                g("Reshape", values, g.ints(-1, self.unit // 2), name=f"{table}.{part}")
        g("Greater", g("Size", "mirror_re"), g.constant("none", np.int64(0)), name="mirrors")
        rows = g("Mul", g.input("adapter", "int64", ["N"]), g.constant("rows_each", np.int64(S // self.unit)))
        self.first_rows = g("Unsqueeze", rows, g.ints(1))

    def tokens(self) -> str:
        """(N, D): text tokens, then cells, each content + position + type, normalised."""
        g, D, embeddings = self.graph, self.config.width, self.encoder.embeddings
        m, C = embeddings.patch_positions.num_embeddings, embeddings.patches.in_features
        types = array(embeddings.types.weight)
        ids, positions = g.input("word_ids", "int64", ["n"]), g.input("positions", "int64", ["n"])
        words = g("Gather", g.constant("words", array(embeddings.words.weight)), ids)
        places = g.constant("word_positions", array(embeddings.word_positions.weight) + types[embeddings.WORD])
        text = g("Add", words, g("Gather", places, positions))
        cells = g.input("cells", "float", ["P", m, C])
        weight, bias = array(embeddings.patches.weight), array(embeddings.patches.bias)
        content = float_linear(g, g("Reshape", cells, g.ints(-1, C)), "patches", weight, bias)
        squares = g.constant("patch_positions", array(embeddings.patch_positions.weight) + types[embeddings.PATCH])
        patches = g("Add", g("Reshape", content, g.ints(-1, m, D)), squares)
        packed = g("Concat", text, g("Reshape", patches, g.ints(-1, D)), axis=0)
        return self.normalise(packed, "embeddings.norm", embeddings.norm)

    def biases(self) -> tuple[str, str]:
        """padding: (B, 1, 1, T), -inf at padding; text_to_cell: (B, 1, T, T), 1 from [CLS] and words to cells."""
        g = self.graph
        padding = g.input("padding", "float", ["B", 1, 1, "T"])
        is_text = g.input("is_text", "float", ["B", "T"])
        is_cell = g("Sub", g.constant("one", np.float32(1)), is_text)
        pairs = g("Mul", g("Unsqueeze", is_text, g.ints(1, 3)), g("Unsqueeze", is_cell, g.ints(1, 2)))
        return padding, pairs

    def bias(self, padding: str, text_to_cell: str, index: int, gate: Array) -> str:
        """(B, 1, T, T), added to one layer's logits."""
        g = self.graph
        return str(g("Add", padding, g("Mul", text_to_cell, g.constant(f"gate.{index}", np.float32(gate)))))

    def layer(self, name: str, layer: Layer, x: str, bias: str) -> str:
        """One BERT layer on packed tokens, (N, D) -> (N, D)."""
        q, k, v = self.project(name, layer, x)
        return self.finish(name, layer, x, self.unpad(self.attend(name, q, k, v, bias), "scatter"))

    def last_layer(self, name: str, layer: Layer, x: str, bias: str) -> str:
        """The last layer, (N, D) -> (n, D): cells are attended to, but nothing reads their own states."""
        g = self.graph
        q, k, v = self.project(name, layer, x)
        longest = g("Slice", g("Shape", "gather_text"), g.ints(1), g.ints(2))
        q, bias = g("Slice", q, g.ints(0), longest, g.ints(1)), g("Slice", bias, g.ints(0), longest, g.ints(2))
        x = g("Slice", x, g.ints(0), g("Shape", "word_ids"), g.ints(0))
        if self.adapters:
            self.first_rows = g("Slice", self.first_rows, g.ints(0), g("Shape", "word_ids"), g.ints(0))
        return self.finish(name, layer, x, self.unpad(self.attend(name, q, k, v, bias), "scatter_text"))

    def project(self, name: str, layer: Layer, x: str) -> list[str]:
        """(N, D) -> queries, keys and values, (B, T, D) each."""
        qkv = self.apply(f"{name}.qkv", x, *layer_linears(layer)["qkv"])
        return list(self.graph("Split", self.graph("Gather", qkv, "gather"), outputs=3, axis=2, num_outputs=3))

    def finish(self, name: str, layer: Layer, x: str, attended: str) -> str:
        """What follows attention, on the packed tokens that go on."""
        g, linears = self.graph, layer_linears(layer)
        y = self.apply(f"{name}.output", attended, *linears["output"])
        x = self.normalise(g("Add", y, x), f"{name}.attention_norm", layer.attention_norm)
        y = g("Gelu", self.apply(f"{name}.up", x, *linears["up"]), domain=CONTRIB)
        y = self.apply(f"{name}.down", y, *linears["down"])
        return self.normalise(g("Add", y, x), f"{name}.mlp_norm", layer.mlp_norm)

    def apply(self, name: str, x: str, weight: Array, bias: Array) -> str:
        """A linear layer, and its rotation where there are adapters."""
        y = self.linear(self.graph, x, name, weight, bias)
        return self.rotate(name, y, len(bias)) if self.adapters else y

    def attend(self, name: str, q: str, k: str, v: str, bias: str) -> str:
        """(B, T, D) of each -> (B, T of the queries, D), heads side by side."""
        g, H = self.graph, self.config.num_heads
        if self.config.attention == "softmax":
            return str(
                g("MultiHeadAttention", q, k, v, "", "", bias, name=f"{name}.attend", domain=CONTRIB, num_heads=H)
            )
        heads = g.ints(0, 0, H, self.config.width // H)
        q, v = (g("Transpose", g("Reshape", one, heads), perm=[0, 2, 1, 3]) for one in (q, v))
        k = g("Transpose", g("Reshape", k, heads), perm=[0, 2, 3, 1])
        scale = g.constant("attention_scale", np.float32((H / self.config.width) ** 0.5))
        p = g("Softmax", g("Add", g("Mul", g("MatMul", q, k), scale), bias), axis=-1)
        clip = self.clipped if self.config.attention == "clipped" else self.normalised_clipped
        y = g("MatMul", g("Clip", clip(p), g.constant("zero", np.float32(0)), g.constant("one", np.float32(1))), v)
        return str(g("Reshape", g("Transpose", y, perm=[0, 2, 1, 3]), g.ints(0, 0, -1)))

    def clipped(self, p: str) -> str:
        """The probabilities stretched to [gamma, zeta] (item.model.attention)."""
        g = self.graph
        stretch, offset = g.constant("zeta_gamma", np.float32(ZETA - GAMMA)), g.constant("gamma", np.float32(GAMMA))
        return str(g("Add", g("Mul", p, stretch), offset))

    def normalised_clipped(self, p: str) -> str:
        """The probabilities stretched so that a row sums to beta; 0 at padding; one key alone is left as it is."""
        g, one = self.graph, "one"
        there = g("Cast", g("Equal", "padding", g.constant("zero", np.float32(0))), to=1)  # (B, 1, 1, T)
        count = g("ReduceSum", there, g.ints(3), keepdims=1)
        others = g("Max", g("Sub", count, one), one)
        stretch = g("Sub", g("Mul", count, g.constant("zeta", np.float32(ZETA))), g.constant("beta", np.float32(BETA)))
        stretched = g("Add", g("Mul", p, stretch), g.constant("beta_zeta", np.float32(BETA - ZETA)))
        stretched = g("Mul", g("Div", stretched, others), there)
        return str(g("Where", g("Greater", count, one), stretched, p))

    def unpad(self, x: str, scatter: str) -> str:
        """(B, T, D) -> packed, by the rows that `scatter` names."""
        g = self.graph
        return str(g("Gather", g("Reshape", x, g.ints(-1, self.config.width)), scatter))

    def rotate(self, name: str, h: str, width: int) -> str:
        """t z + conj(m z) of each pair of h, (N, width), each token with its own adapter's t and m."""
        g, start = self.graph, self.rotated // self.unit
        self.rotated += width
        units = np.arange(start, self.rotated // self.unit, dtype=np.int64)
        rows = g("Add", self.first_rows, g.constant(f"{name}.units", units[None]))
        z = g("Reshape", h, g.ints(-1, len(units), self.unit))

        def product(table: str) -> str:
            re, im, at = f"{table}.re", f"{table}.im", f"{name}.{table}"
            return str(g("RotaryEmbedding", z, rows, re, im, name=at, domain=CONTRIB, interleaved=1))

        def mirrored() -> str:
            signs = g.constant("signs", np.tile(np.array([1, -1], np.float32), self.unit // 2))
            conjugate = g("Mul", product("mirror"), signs, name=f"{name}.conjugate")
            return str(g("Add", turned, conjugate, name=f"{name}.both"))

        def alone() -> str:
            return str(g("Identity", turned, name=f"{name}.alone"))

        turned = product("turn")
        return str(g("Reshape", g.choose("mirrors", mirrored, alone, f"{name}.rotated"), g.ints(-1, width)))

    def pool(self, x: str) -> None:
        """(n, D), text alone: gives out [CLS]'s states and the words' means."""
        g, D = self.graph, self.config.width
        states = g("Gather", x, "gather_text")
        g.output(g("Squeeze", g("Slice", states, g.ints(0), g.ints(1), g.ints(1)), g.ints(1)), "g", ["B", D])
        g.output(g("MatMul", g.input("pooling", "float", ["B", 2, "t"]), states), "means", ["B", 2, D])

    def normalise(self, x: str, name: str, norm: nn.LayerNorm) -> str:
        """LayerNorm of the last dimension."""
        g = self.graph
        weight, bias = (g.constant(f"{name}.{part}", array(getattr(norm, part))) for part in ("weight", "bias"))
        return str(g("LayerNormalization", x, weight, bias, name=name, axis=-1, epsilon=self.config.layer_norm_eps))


def vector_graph(model: ITEm, metadata: dict[str, str]) -> onnx.ModelProto:
    """The vector head: g (B, D), means (B, 2, D), spelling (B, SPELLING_WIDTH), pooled (B, F), has_words and
    has_picture (B, 1), 0 or 1 -> `vectors`, (B, V) of unit norm, and `features`, (B, 2 D + F), what its parts read
    (item.model.vector.VectorHead.features). What a listing does not have is given as zeros. `reads_state` among the
    properties says whether g counts."""
    g, D, head = GraphBuilder(), model.config.width, model.vector
    state, means = g.input("g", "float", ["B", D]), g.input("means", "float", ["B", 2, D])
    spelling = g.input("spelling", "float", ["B", SPELLING_WIDTH])
    pooled = g.input("pooled", "float", ["B", head.picture.projection.shape[1]])
    has_words, has_picture = (g.input(name, "float", ["B", 1]) for name in ("has_words", "has_picture"))
    t = float(head.title_weight)
    shares = g.constant("field_shares", np.sqrt(np.array([[t], [1 - t]], dtype=np.float32)))
    fields = g("Reshape", g("Mul", unit(g, means), shares), g.ints(-1, 2 * D))
    alone, both = (g.constant(f"weights_{row}", array(head.weights)[[row]]) for row in range(2))
    has_both = g("Greater", g("Mul", has_words, has_picture), g.constant("half", np.float32(0.5)))
    weights = g("Where", has_both, both, alone)
    shares_of = g("Split", weights, g.ints(1, 1, 1, 1, 1), outputs=5, axis=1)
    a_words, a_spelling, a_picture, a_shared, a_category = shares_of
    x_words, x_picture = centred(g, "words", head.words, fields), centred(g, "picture", head.picture, pooled)
    parts = [
        (part_graph(g, "words", head.words, x_words), has_words, a_words),
        (part_graph(g, "picture", head.picture, x_picture), has_picture, a_picture),
    ]
    e = matrix_product(g, state, "global_projection", array(head.global_projection))
    for (own, _, _), there, weight in parts:
        e = g("Add", e, g("Mul", own, g("Mul", there, weight)))
    spelled = unit(g, matrix_product(g, spelling, "spelling_projection", array(head.spelling_projection)))
    e = g("Add", e, g("Mul", spelled, a_spelling))
    (_, of_words, words_say), (_, of_picture, picture_says) = (one for one, _, _ in parts)
    meeting = g("Add", g("Mul", of_words, has_words), g("Mul", of_picture, has_picture))
    e = g("Add", e, g("Mul", unit(g, meeting), a_shared))
    if head.category_levels:
        z = g("Add", g("Mul", words_say, has_words), g("Mul", picture_says, has_picture))
        z = g("Add", z, g.constant("category_bias", array(head.category_bias)))
        levels = g("Split", z, g.ints(*head.category_levels), outputs=len(head.category_levels), axis=1)
        levels = [levels] if isinstance(levels, str) else levels
        roots = g("Concat", *(g("Sqrt", g("Softmax", level, axis=-1)) for level in levels), axis=1)
        category = unit(g, matrix_product(g, roots, "category_projection", array(head.category_projection)))
        says = g("Mul", g("Max", has_words, has_picture), a_category)
        e = g("Add", e, g("Mul", category, says))
    properties = {"reads_state": "true" if model.reads_state else "false", **metadata}
    g.output(unit(g, e), "vectors", ["B", model.config.vector_width])
    features = g("Concat", g("Mul", x_words, has_words), g("Mul", x_picture, has_picture), axis=1)
    g.output(features, "features", ["B", head.features_width])
    return g.model("vector", properties)


def centred(g: GraphBuilder, name: str, part: Part, x: str) -> str:
    """What a part reads: x without its mean, of unit norm."""
    return unit(g, g("Sub", x, g.constant(f"{name}.mean", array(part.mean))))


def part_graph(g: GraphBuilder, name: str, part: Part, x: str) -> tuple[str, str, str]:
    """One modality's own share, shared share and category logits (`item.model.vector.Part`) of centred x."""
    first, last = cast(nn.Linear, part.tower[0]), cast(nn.Linear, part.tower[2])
    hidden = g("Gelu", float_linear(g, x, f"{name}.tower.0", array(first.weight), array(first.bias)), domain=CONTRIB)
    shared = unit(g, float_linear(g, hidden, f"{name}.tower.2", array(last.weight), array(last.bias)))
    own = unit(g, matrix_product(g, x, f"{name}.projection", array(part.projection)))
    return own, shared, matrix_product(g, x, f"{name}.categories", array(part.categories))


def matrix_product(g: GraphBuilder, x: str, name: str, weight: Array) -> str:
    """(N, in) -> (N, out), weight: (out, in)."""
    return str(g("MatMul", x, g.constant(f"{name}.weight", weight.T)))


def unit(g: GraphBuilder, x: str) -> str:
    """The rows of x over their norms; a row of zeros stays it."""
    norm = g("ReduceL2", x, g.ints(-1), keepdims=1)
    return str(g("Div", x, g("Max", norm, g.constant("norm_floor", np.float32(NORM_FLOOR)))))
