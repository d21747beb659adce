"""The five pre-training objectives of ITEm (arXiv 2311.02084), none of which needs a label.

    MLM    CE(W_vocab head(H_i), w_i)                     masked words i; W_vocab is tied to the word embedding
    MIM    mean (head(H_j) - patch_j)^2                   masked cells j
    GMLM   CE(W_vocab MLP([g ; position_i]), w_i)         from the global representation and the asked position alone
    GMIM   mean (head(MLP([g ; position_j])) - patch_j)^2     likewise
    ITM    CE(linear(g), matched?)                        do these words and this picture belong together?

patch_j is the cell's pixels, normalised per cell; behind a frozen stem it is the stem's features of the whole picture,
normalised per cell. The stem must not see the pixels of masked cells: they are blanked before it. Where only features
of whole pictures are at hand (no cached masked views), neighbouring cells leak them, and the trainer says so.
Mismatched pairs, and listings without the modality, are left out of the four masked losses.

Mask more, mask later (3ML, arXiv 2211.04898): with late layers, masked tokens do not enter the encoder, which then
costs only what is left. MLM and MIM read late layers over all tokens, in which the masked ones stand as they would have
entered the encoder; these layers are thrown away with the heads. Ours: it goes for cells as for words, and GMLM, GMIM
and ITM read g, so they need no late layers at all.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from item.errors import ConfigError
from item.model.batch import Batch
from item.model.encoder import Encoded, ITEm, Layer, PatchMask, initialise, padding_bias
from item.model.stem import grid_side

OBJECTIVES = ("itm", "mlm", "mim", "gmlm", "gmim")


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedBatch:
    """A batch with its masks: what one pre-training step sees.

    batch: the encoder's input; some of its words are already replaced (80% [MASK], 10% another, 10% kept).
    masked_words: (B, n) bool, the words to predict; word_targets: (B, n) int64, the words that stood there.
    hidden_words: (B, n) bool, those of the masked words that became [MASK].
    masked_patches: (P, m) bool, the cells to predict; their pixels are already blanked in `batch.pixels`, or the
    features in `batch.features` were computed from blanked pixels.
    patch_targets: (P, ...): whole pixels (P, 3, S, S) uint8, or a frozen stem's features of them.
    matched: (B,) bool, whether words and picture belong together.
    """

    batch: Batch
    masked_words: Tensor
    word_targets: Tensor
    hidden_words: Tensor
    masked_patches: Tensor
    patch_targets: Tensor | None
    matched: Tensor

    def to(self, device: torch.device) -> MaskedBatch:
        """The same on a device."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        values = {k: v if v is None else v.to(device) for k, v in values.items()}
        return MaskedBatch(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveWeights:
    """The weight of each objective in the sum; 0 leaves it out."""

    itm: float = 1.0
    mlm: float = 1.0
    mim: float = 1.0
    gmlm: float = 1.0
    gmim: float = 1.0

    def __post_init__(self) -> None:
        for name in OBJECTIVES:
            if getattr(self, name) < 0:
                raise ConfigError(f"objectives.{name}: weight {getattr(self, name)} must not be negative")
        if not any(getattr(self, name) for name in OBJECTIVES):
            raise ConfigError("objectives: all weights are 0; there is nothing to learn")


class Head(nn.Sequential):
    """BERT's prediction head without its output layer: dense, GELU, norm."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__(nn.Linear(width_in, width), nn.GELU(), nn.LayerNorm(width))


class Pretraining(nn.Module):
    """The encoder with the heads of the five objectives; the heads are thrown away afterwards.

    late_layers: None, masked tokens enter the encoder; else over how many layers they join the others afterwards. With
    0 they never do, and MLM and MIM, which have nothing to read, are left out.
    target_ids: (W,) int64, ascending, the words that can be asked; the others need no column. None: all words.
    """

    target_ids: Tensor

    def __init__(
        self,
        model: ITEm,
        *,
        stem_is_frozen: bool,
        late_layers: int | None = None,
        target_ids: Tensor | None = None,
    ) -> None:
        super().__init__()
        D = model.config.width
        self.model = model
        self.targets_are_features = stem_is_frozen and model.stem.sees_neighbours
        self.side = grid_side(model.stem.num_cells)
        cell_pixels = 3 * (model.config.picture_size // self.side) ** 2
        self.mask_vector = nn.Parameter(torch.zeros(D))
        self.word_head = Head(D, D)
        self.register_buffer("target_ids", torch.arange(model.config.vocab_size) if target_ids is None else target_ids)
        self.word_bias = nn.Parameter(torch.zeros(len(self.target_ids)))
        self.patch_head = nn.Sequential(
            Head(D, D), nn.Linear(D, model.stem.cell_width if self.targets_are_features else cell_pixels)
        )
        self.global_word = nn.Sequential(Head(2 * D, D), nn.Linear(D, D))
        self.global_patch = nn.Sequential(Head(2 * D, D), nn.Linear(D, D))
        self.matching = nn.Linear(D, 2)
        self.late_layers = (
            None if late_layers is None else nn.ModuleList(Layer(model.config) for _ in range(late_layers))
        )
        self.asks_tokens = late_layers != 0
        for name, module in self.named_modules():
            if not name.startswith("model"):
                initialise(module)
        nn.init.normal_(self.mask_vector, std=0.02)

    def forward(self, masked: MaskedBatch) -> dict[str, Tensor]:
        """The five losses, each a scalar: means over what is asked; 0 where a batch asks nothing of an objective."""
        keep = None if self.late_layers is None else self.model.present(masked.batch) & ~self.hidden(masked)
        encoded = self.model(masked.batch, PatchMask(masked=masked.masked_patches, vector=self.mask_vector), keep)
        return self.losses(encoded, masked)

    def hidden(self, masked: MaskedBatch) -> Tensor:
        """(B, T) bool: the tokens that stay out of the encoder, words that became [MASK] and masked cells."""
        words, rows = F.pad(masked.hidden_words, (1, 0), value=False), masked.batch.picture_rows
        if not len(rows):
            return words
        cells = words.new_zeros(len(words), self.model.stem.num_cells)
        return torch.cat([words, cells.index_copy(0, rows, masked.masked_patches)], dim=1)

    def losses(self, encoded: Encoded, masked: MaskedBatch) -> dict[str, Tensor]:
        """The losses from the encoder's last states."""
        late = self.late(encoded, masked.batch)
        mlm, gmlm = self.word_losses(encoded.g, late, masked)
        mim, gmim = self.patch_losses(encoded.g, late, masked)
        return {"itm": self.matching_loss(encoded, masked), "mlm": mlm, "mim": mim, "gmlm": gmlm, "gmim": gmim}

    def late(self, encoded: Encoded, batch: Batch) -> Encoded:
        """What MLM and MIM read: the states of all tokens after the late layers, where there are any."""
        x, bias = encoded.states, padding_bias(self.model.present(batch), encoded.states.dtype)
        for layer in self.late_layers or ():
            x = layer(x, bias)
        return encoded._replace(states=x)

    def word_losses(self, g: Tensor, late: Encoded, masked: MaskedBatch) -> tuple[Tensor, Tensor]:
        """MLM and GMLM. g: (B, D), before the late layers."""
        rows, columns = (masked.masked_words & masked.matched[:, None]).nonzero(as_tuple=True)
        targets = torch.searchsorted(self.target_ids, masked.word_targets[rows, columns])
        position = self.model.embeddings.word_positions(columns + 1)  # position 0 is [CLS]
        from_global = self.global_word(torch.cat([g[rows], position.to(g.dtype)], dim=-1))
        vocabulary = self.model.embeddings.words(self.target_ids)

        def loss(predicted: Tensor) -> Tensor:
            logits = F.linear(predicted, vocabulary, self.word_bias)
            return F.cross_entropy(logits.float(), targets, reduction="sum") / max(1, len(targets))

        mlm = loss(self.word_head(late.words[rows, columns])) if self.asks_tokens else zero(g)
        return mlm, loss(from_global)

    def patch_losses(self, g: Tensor, late: Encoded, masked: MaskedBatch) -> tuple[Tensor, Tensor]:
        """MIM and GMIM. g: (B, D), before the late layers."""
        if masked.patch_targets is None:
            return zero(g), zero(g)
        owners = masked.batch.picture_rows
        pictures, cells = (masked.masked_patches & masked.matched[owners, None]).nonzero(as_tuple=True)
        targets = self.cell_targets(masked.patch_targets)[pictures, cells]
        position = self.model.embeddings.patch_positions(cells)
        from_global = self.global_patch(torch.cat([g[owners[pictures]], position.to(g.dtype)], dim=-1))
        mim = self.patch_loss(late.patches[pictures, cells], targets) if self.asks_tokens else zero(g)
        return mim, self.patch_loss(from_global, targets)

    def patch_loss(self, states: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error of the constructed cells, (N, D) against (N, C)."""
        error = F.mse_loss(self.patch_head(states).float(), targets, reduction="sum")
        return error / max(1, targets.numel())

    @torch.no_grad()
    def cell_targets(self, whole: Tensor) -> Tensor:
        """What masked cells are to be constructed as: (P, m, C) float32, zero mean and unit variance per cell."""
        if self.targets_are_features:
            cells = self.model.stem.cells(whole).float()
        else:
            cells = cut_cells(whole.float(), self.side)
        return F.layer_norm(cells, cells.shape[-1:])

    def matching_loss(self, encoded: Encoded, masked: MaskedBatch) -> Tensor:
        """ITM over the listings that have both modalities."""
        both = masked.batch.word_mask.any(dim=1)
        has_picture = torch.zeros_like(both)
        has_picture[masked.batch.picture_rows] = True
        rows = (both & has_picture).nonzero().squeeze(1)
        logits = self.matching(encoded.g[rows]).float()
        return F.cross_entropy(logits, masked.matched[rows].long(), reduction="sum") / max(1, len(rows))


def zero(like: Tensor) -> Tensor:
    """The loss of an objective that a batch asks nothing of."""
    return like.new_zeros((), dtype=torch.float32)


def cut_cells(pictures: Tensor, side: int) -> Tensor:
    """(P, 3, S, S) -> (P, side * side, 3 * (S / side)^2), row by row; what does not fill a cell is cut off."""
    P, channels, S, _ = pictures.shape
    cell = S // side
    squares = pictures[..., : side * cell, : side * cell].reshape(P, channels, side, cell, side, cell)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(P, side * side, channels * cell * cell)


def blank_cells(pixels: Tensor, masked: Tensor) -> Tensor:
    """Greys out masked cells before the stem: (P, 3, S, S) uint8, (P, m) bool -> (P, 3, S, S) uint8."""
    side, S = grid_side(masked.shape[1]), pixels.shape[-1]
    squares = masked.view(len(masked), 1, side, side).float()
    hidden = F.interpolate(squares, size=(S, S), mode="nearest").bool()
    return pixels.masked_fill(hidden, 128)


def weighted_sum(losses: dict[str, Tensor], weights: ObjectiveWeights) -> Tensor:
    """The loss that is minimised."""
    return cast(Tensor, sum(getattr(weights, name) * loss for name, loss in losses.items()))
