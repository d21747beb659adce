"""ITEm, the image-text encoder (arXiv 2311.02084): a BERT over words and picture cells in one stream.

    tokens   [CLS] w_1..w_n [SEP] v_1..v_m
    input    LN(content + position of its modality + type_{word|patch})
    H        = layers(input)
    g        = H[:, 0], the global representation
    e        the listing's vector, of unit norm (item.model.vector)

What differs from the paper, or is not in its abstract:
- v_j comes from timm: the feature grid of any model, a model's own patch embedding, or a patch embedding from scratch.
- A missing modality is an absent segment: it is masked out of the attention, or not in the sequence at all.
- A gate for each layer, added to the attention logits from [CLS] and words to cells. From scratch it starts at 0
  (plain attention); with pretrained words at `GATE_CLOSED`, so that words start as they were and open up by training.

Shapes: B listings, P pictures (P <= B), n words with [SEP], m cells, T = 1 + n + m, D width, H heads, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from item.model.attention import ATTENTION
from item.model.batch import Batch
from item.model.config import ItemConfig
from item.model.folder import TENSORS_FILE, resolve_folder
from item.model.stem import make_stem
from item.model.tensors import load_tensors, save_tensors
from item.model.vector import PooledWords, VectorHead
from item.preprocessing.prepared import Modality

GATE_CLOSED = -8.0  # 36 cells together then get less than 2% of one average key's weight
GATE_SHUT = -1e4  # no cell then gets any weight: exp() of it is 0, in float16 too
INITIAL_STD = 0.02  # of every linear layer, embedding and position, as in BERT; norms start at 1, biases and gates at 0


class SelfAttention(nn.Module):
    """Multi-head attention, output projection included. x: (B, T, D), bias: (B, 1, T or 1, T), added to the logits."""

    def __init__(self, config: ItemConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attend = ATTENTION[config.attention]
        self.dropout = config.dropout
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = (
            project(x).view(B, T, self.num_heads, D // self.num_heads).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        y = self.attend(q, k, v, bias, dropout)
        return self.output(y.transpose(1, 2).reshape(B, T, D))


class Layer(nn.Module):
    """One BERT layer, normalised after each residual."""

    def __init__(self, config: ItemConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.up = nn.Linear(config.width, config.mlp_width)
        self.down = nn.Linear(config.mlp_width, config.width)
        self.mlp_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, bias)))
        return self.mlp_norm(x + self.dropout(self.down(F.gelu(self.up(x)))))


class Embeddings(nn.Module):
    """Content + position of its modality + type, normalised: the layers' input."""

    WORD, PATCH = 0, 1

    def __init__(self, config: ItemConfig, cell_width: int, num_cells: int) -> None:
        super().__init__()
        self.cls_id = config.cls_id
        self.words = nn.Embedding(config.vocab_size, config.width)
        self.word_positions = nn.Embedding(config.max_words + 2, config.width)  # [CLS], words, [SEP]
        self.patches = nn.Linear(cell_width, config.width)
        self.patch_positions = nn.Embedding(num_cells, config.width)
        self.types = nn.Embedding(2, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def of_words(self, word_ids: Tensor) -> Tensor:
        """(B, n) int64 -> (B, 1 + n, D), [CLS] in front."""
        ids = F.pad(word_ids, (1, 0), value=self.cls_id)
        positions = self.word_positions.weight[: ids.shape[1]]
        return self.dropout(self.norm(self.words(ids) + positions + self.types.weight[self.WORD]))

    def of_patches(self, cells: Tensor, masked: Tensor | None, mask_vector: Tensor | None) -> Tensor:
        """(P, m, C) cells, (P, m) bool masked -> (P, m, D); a masked cell's content is the learned `mask_vector`."""
        content = self.patches(cells)
        if masked is not None and mask_vector is not None:
            content = torch.where(masked[..., None], mask_vector.to(content.dtype), content)
        return self.dropout(self.norm(content + self.patch_positions.weight + self.types.weight[self.PATCH]))


class Encoded(NamedTuple):
    """The encoder's last states.

    states: (B, T, D), [CLS], then n words, then m cells (none where no listing of the batch has a picture).
    word_mask: (B, n) bool, the words that entered the layers; picture_rows: (P,); features: the stem's output of the P
    pictures.
    """

    states: Tensor
    word_mask: Tensor
    picture_rows: Tensor
    features: Tensor | None

    @property
    def g(self) -> Tensor:
        """(B, D), the global representation."""
        return self.states[:, 0]

    @property
    def words(self) -> Tensor:
        """(B, n, D), without [CLS]."""
        return self.states[:, 1 : 1 + self.word_mask.shape[1]]

    @property
    def patches(self) -> Tensor:
        """(P, m, D), of the listings that have a picture."""
        return self.states[self.picture_rows, 1 + self.word_mask.shape[1] :]


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchMask:
    """Which cells the encoder must not see. masked: (P, m) bool; vector: (D,), what stands in their place."""

    masked: Tensor
    vector: Tensor


class ITEm(nn.Module):
    """The encoder: batch in, states or unit vectors out. Starting weights: `item.model.starting`."""

    def __init__(self, config: ItemConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = make_stem(config)
        self.embeddings = Embeddings(config, self.stem.cell_width, self.stem.num_cells)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.gates = nn.Parameter(torch.zeros(config.num_layers))
        self.apply_initialisation()
        self.vector = VectorHead(config, self.stem.pooled_width)

    def apply_initialisation(self) -> None:
        """Normal(0, 0.02) for linear layers and embeddings of ours; the stem keeps timm's own initialisation."""
        for module in (*self.embeddings.modules(), *self.layers.modules()):
            initialise(module)

    def forward(self, batch: Batch, patch_mask: PatchMask | None = None, keep: Tensor | None = None) -> Encoded:
        """Runs the layers. `patch_mask`: cells to replace by its vector; hiding their pixels is the caller's part.

        `keep`: (B, T) bool, which of the tokens that are there enter the layers (all, where it is None); [CLS] has to.
        The states of the others are what they would have entered with.
        """
        n = batch.word_ids.shape[1]
        features = self.stem_features(batch)
        x, mask = self.embed_tokens(batch, features, patch_mask), self.present(batch)
        is_text = (torch.arange(x.shape[1], device=x.device) < 1 + n)[None]
        if keep is None:
            return Encoded(self.run_layers(x, mask, is_text), batch.word_mask, batch.picture_rows, features)
        columns, kept = pack(keep)
        is_text = is_text.expand_as(keep).take_along_dim(columns, dim=1)
        packed = self.run_layers(x.take_along_dim(columns[..., None], dim=1), kept, is_text)
        states = x.masked_scatter(keep[..., None], packed[kept].to(x.dtype))
        return Encoded(states, keep[:, 1 : 1 + n], batch.picture_rows, features)

    def embed_tokens(self, batch: Batch, features: Tensor | None, patch_mask: PatchMask | None) -> Tensor:
        """(B, T, D), the layers' input; 0 where a listing has no picture."""
        x = self.embeddings.of_words(batch.word_ids)
        if features is None:
            return x
        masked, vector = (patch_mask.masked, patch_mask.vector) if patch_mask else (None, None)
        cells = self.embeddings.of_patches(self.stem.cells(features), masked, vector)
        m, D = cells.shape[1:]
        cells = cells.new_zeros(len(x), m, D).index_copy(0, batch.picture_rows, cells)
        return torch.cat([x, cells.to(x.dtype)], dim=1)

    def present(self, batch: Batch) -> Tensor:
        """(B, T) bool: False at padding, and at the cells of listings without a picture."""
        text = F.pad(batch.word_mask, (1, 0), value=True)
        if batch.pixels is None and batch.features is None:
            return text
        has_picture = torch.zeros(len(text), dtype=torch.bool, device=text.device)
        has_picture[batch.picture_rows] = True
        return torch.cat([text, has_picture[:, None].expand(-1, self.stem.num_cells)], dim=1)

    def run_layers(self, x: Tensor, mask: Tensor, is_text: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D). mask: (B, T) bool, False at padding; is_text: (B or 1, T) bool, [CLS] and words."""
        for layer, bias in zip(self.layers, self.attention_biases(mask, is_text), strict=True):
            x = layer(x, bias)
        return x

    def stem_features(self, batch: Batch) -> Tensor | None:
        """The stem's output of the batch's pictures, (P, ...) as the stem lays it out; None where there is none."""
        if batch.features is not None:
            return batch.features.to(self.gates.dtype)
        return None if batch.pixels is None else self.stem(batch.pixels)

    def attention_biases(self, mask: Tensor, is_text: Tensor) -> Iterator[Tensor]:
        """As in `run_layers` -> for each layer (B, 1, T, T), added to the attention logits."""
        padding = padding_bias(mask, self.gates.dtype)
        text_to_cell = (is_text[:, None, :, None] & ~is_text[:, None, None]).to(self.gates.dtype)
        yield from (padding + gate * text_to_cell for gate in self.gates)

    def embed(self, batch: Batch) -> Tensor:
        """(B, V) float32, unit norm: the vectors of the listings."""
        return self.vectors(self.encode(batch), batch)

    def encode(self, batch: Batch) -> Encoded:
        """As `forward`, for the vector head: cells that no text reads do not enter the layers."""
        if self.text_reads_cells:
            return self(batch)
        features = self.stem_features(batch)
        return self(replace(batch, pixels=None, features=None))._replace(features=features)

    def vectors(self, encoded: Encoded, batch: Batch, modality: Modality = "both") -> Tensor:
        """(B, V) float32, unit norm: the vectors of the listings whose last states these are, in any precision.

        By one modality they are those of the same listings without the other one where `modalities_are_apart`; of
        listings that do not have it they say nothing.
        """
        words, picture_rows, pooled = self.head_inputs(encoded, batch)
        if modality == "words":
            picture_rows, pooled = picture_rows[:0], None
        elif modality == "picture":
            words = PooledWords(words.rows[:0], words.means[:0])
        return F.normalize(self.vector(encoded.g.float(), words, picture_rows, pooled), dim=-1)

    def features(self, encoded: Encoded, batch: Batch) -> Tensor:
        """(B, 2 D + F) float32, as `vectors`: what the vector head reads of them (item.model.vector)."""
        return self.vector.features(len(batch), *self.head_inputs(encoded, batch))

    def head_inputs(self, encoded: Encoded, batch: Batch) -> tuple[PooledWords, Tensor, Tensor | None]:
        """The words' means and spelling, the rows of the pictures and their pooled features, in float32."""
        features = None if encoded.features is None else encoded.features.float()
        words = self.pool_words(encoded._replace(states=encoded.states.float()), batch)
        return words, batch.picture_rows, None if features is None else self.stem.pooled(features)

    @property
    def text_reads_cells(self) -> bool:
        """Whether any gate is open. Where none is, what the vector head reads does not depend on the cells."""
        return bool((self.gates > GATE_SHUT).any())

    @property
    def reads_state(self) -> bool:
        """Whether the vector head reads [CLS]'s state. If not, listings without words need not enter the layers."""
        return bool(self.vector.global_projection.any())

    @property
    def modalities_are_apart(self) -> bool:
        """Whether what the vector head reads of the words is the same without the picture, and the reverse."""
        return not self.text_reads_cells and not self.reads_state

    def pool_words(self, encoded: Encoded, batch: Batch) -> PooledWords:
        """Means over [CLS], words and [SEP] of the listings that have words: up to the first [SEP], and over all; and
        how they are spelled."""
        rows = encoded.word_mask.any(dim=1).nonzero().squeeze(1)
        ends = batch.word_ids[rows] == self.config.sep_id
        in_title = ends.cumsum(1) - ends.long() == 0  # the first [SEP] belongs to it
        everything = F.pad(encoded.word_mask[rows], (1, 0), value=True)
        masks = torch.stack([everything & F.pad(in_title, (1, 0), value=True), everything], dim=1)
        masks = masks.to(encoded.states.dtype)  # (W, 2, 1 + n)
        means = masks @ encoded.states[rows, : masks.shape[2]] / masks.sum(2, keepdim=True)
        return PooledWords(rows, means, None if batch.spelling is None else batch.spelling[rows])

    def train(self, mode: bool = True) -> ITEm:
        """As in torch, but the stem keeps the batch statistics of its starting weights."""
        super().train(mode)
        self.stem.eval()
        return self

    def save_pretrained(self, folder: Path) -> None:
        """Writes config.json and model.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save(folder)
        save_tensors(dict(self.state_dict()), folder / TENSORS_FILE)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> ITEm:
        """Loads a model folder, or a repository of the Hugging Face hub; ModelError says what is wrong with it."""
        folder = resolve_folder(name)
        model = cls(ItemConfig.load(folder))
        load_tensors(model, folder / TENSORS_FILE)
        return model.eval()

    @staticmethod
    def weight_decays(name: str, parameter: Tensor) -> bool:
        """Whether weight decay applies: to matrices that multiply, not to biases, norms, gates, positions and types."""
        return parameter.ndim >= 2 and "positions" not in name and "types" not in name


def pack(keep: Tensor) -> tuple[Tensor, Tensor]:
    """keep: (B, T) bool -> columns (B, K) int64, each row's kept ones in their order and then others; which they are,
    (B, K) bool. K is the most that a row keeps."""
    K = int(keep.sum(1).max())
    kept, columns = keep.byte().sort(dim=1, descending=True, stable=True)
    return columns[:, :K], kept[:, :K].bool()


def padding_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, T) bool -> (B, 1, 1, T), -inf at padding: the logits' bias that keeps every query from it."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -torch.inf)[:, None, None]


def initialise(module: nn.Module) -> None:
    """Normal(0, 0.02) for linear layers and embeddings, biases 0, norms 1."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
