"""Learns heads and adapters: what `training.adapt` fits, on features and words that have been made ready.

    base       W, b of each head on the frozen features: convex, so that no seed decides
    adapters   one for each top level, all in one run of mixed batches: a listing's batch row names its adapter, and the
               head of its top level answers; both start at the base, so that they can only earn their way from there

Either is learned from a listing's words alone, its picture alone and both, in the shares of `training.categories`, and
adjusted for how many listings a path has. The picture's part of the features does not pass through the layers, so that
a step costs the words.

Shapes: N listings, F features, C paths, A adapters, B listings of a batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from item.adapters.head import PATTERNS, RANKS, Category, Features, Head, Novelty, patterns_of, softmax, unit
from item.adapters.method import Method
from item.errors import ConfigError
from item.model.batch import Batch, pad_words
from item.model.encoder import ITEm
from item.model.tensors import read_tensors, save_tensors
from item.model.vector import join_fields
from item.progress import Progress
from training.categories import PRIOR, SHARES, CategoryWeights, fit_regressions, frequency_of
from training.data import WordIds
from training.loop import learning_rate_share

HEAD_STEPS = 200  # of L-BFGS, about as many at most
BUCKET = 16  # batches that are sorted by length together
TEMPERATURES = np.geomspace(0.2, 5.0, 65)
FEW = 30  # held-back listings: a head with fewer takes the temperature of all of them together

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class AdaptOptions:
    """How adapters are trained (arXiv 2409.00119: AdamW without weight decay, linear decay, warm-up 0.1).

    batch_size: None: a 32nd of the listings, within 16 and 64, so that a pass over few has some steps.
    lr: of the method's parameters and of the heads. min_listings: of a top level that gets an adapter.
    patience: passes without a better held-back loss of any top level, after which training stops.
    """

    epochs: int = 12
    batch_size: int | None = None
    lr: float = 3e-3
    warmup: float = 0.1
    min_listings: int = 40
    patience: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "min_listings", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: {value} must be at least 1")
        if not 0 < self.lr < 1:
            raise ConfigError(f"lr: {self.lr} must be above 0 and below 1")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup: {self.warmup} must be in [0, 1)")


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """N listings with their categories. features: (N, F) by the model alone; word_ids: None without words."""

    categories: list[Category]
    word_ids: list[WordIds | None]
    features: Features
    words_width: int

    def __len__(self) -> int:
        return len(self.categories)

    def __getitem__(self, rows: Rows) -> Labelled:
        return replace(
            self,
            categories=[self.categories[row] for row in rows],
            word_ids=[self.word_ids[row] for row in rows],
            features=self.features[rows],
        )

    def below(self, category: Category) -> Rows:
        """The rows of a category, those of all below it among them."""
        depth = len(category)
        return np.flatnonzero([one[:depth] == category for one in self.categories])

    def seen_by(self, pattern: str) -> Features:
        """(N, F), what the other modality says taken out."""
        features = self.features.copy()
        if pattern == "words":
            features[:, self.words_width :] = 0
        if pattern == "picture":
            features[:, : self.words_width] = 0
        return features


def targets_of(categories: Sequence[Category], paths: Sequence[Category]) -> npt.NDArray[np.int64]:
    """(N,): the number of each listing's path; that of the root's heads is its top level. -1: not among them."""
    depth = max(map(len, paths)) if paths else 0
    number = {path: place for place, path in enumerate(paths)}
    return np.array([number.get(one, number.get(one[:depth], -1)) for one in categories], dtype=np.int64)


def fit_head(train: Labelled, category: Category, paths: Sequence[Category], known: Head | None = None) -> Head:
    """The head of `category` on the features of its listings: the regression of `training.categories`.

    known: a head of some of the paths, whose rows stay as they are, bit for bit; only the others are learned.
    """
    targets = targets_of(train.categories, paths)
    learned = np.flatnonzero(targets >= 0)
    if known is not None and tuple(paths[: len(known.paths)]) != known.paths:
        raise ConfigError(f"paths: the first {len(known.paths)} must be those of the known head")
    words, picture = np.split(train.features[learned, None], [train.words_width], axis=2)
    fitted = fit_regressions(
        torch.from_numpy(words),
        torch.from_numpy(picture),
        targets[learned, None],
        (len(paths),),
        HEAD_STEPS,
        known=None if known is None else weights_of(known, train.words_width),
        scale=1.0 if known is None else 1 / known.temperature,
    )
    return Head(
        category=category,
        paths=tuple(paths),
        weight=torch.cat(fitted[:2], dim=1).numpy(),
        bias=fitted.bias.numpy(),
        temperature=1.0 if known is None else known.temperature,
    )


def weights_of(head: Head, words_width: int) -> CategoryWeights:
    """A head's weights, by modality."""
    words, picture = np.split(head.weight, [words_width], axis=1)
    return CategoryWeights(*(torch.from_numpy(one.copy()) for one in (words, picture, head.bias)))


def fit_temperature(logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> float:
    """The temperature of the least loss on N held-back listings."""
    known = targets >= 0
    if not known.any():
        return 1.0
    z, target = logits[known], targets[known]
    return float(min(TEMPERATURES, key=lambda T: negative_log_likelihood(softmax(z / T), target).mean()))


def negative_log_likelihood(p: npt.NDArray[np.float64], targets: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(N,), of (N, C) probabilities."""
    return -np.log(np.maximum(p[np.arange(len(p)), targets], 1e-12))


def with_temperature(
    heads: Sequence[Head], features: Sequence[Features], categories: Sequence[Sequence[Category]]
) -> list[Head]:
    """Heads with the temperature that fits their held-back listings; those with few take that of all together."""
    z = [head.logits(x) for head, x in zip(heads, features, strict=True)]
    targets = [targets_of(one, head.paths) for one, head in zip(categories, heads, strict=True)]

    def total(T: float) -> float:
        parts = [
            negative_log_likelihood(softmax(one[target >= 0] / T), target[target >= 0]).sum()
            for one, target in zip(z, targets, strict=True)
            if (target >= 0).any()
        ]
        return float(sum(parts))

    common = float(min(TEMPERATURES, key=total)) if any((target >= 0).any() for target in targets) else 1.0
    return [
        replace(head, temperature=fit_temperature(one, target) if (target >= 0).sum() >= FEW else common)
        for head, one, target in zip(heads, z, targets, strict=True)
    ]


def fit_novelty(train: Labelled, held_back: Labelled) -> Novelty:
    """The centre of each path's listings, and how far held-back listings of the catalogue lie from the closest."""
    paths = sorted(set(train.categories))
    of_path = targets_of(train.categories, paths)
    x = unit(train.features)
    centres = unit(np.stack([x[of_path == number].mean(axis=0) for number in range(len(paths))]))
    novelty = Novelty(centres=centres.astype(np.float32), ranks=np.zeros((len(PATTERNS), RANKS), np.float32))
    others = held_back if len(held_back) else train
    ranks = []
    for pattern in PATTERNS:
        features = others.seen_by(pattern)
        features = features[features.any(axis=1)]
        novelties = novelty.novelty(features) if len(features) else np.zeros(1)
        ranks.append(np.quantile(novelties, np.linspace(0, 1, RANKS)))
    return replace(novelty, ranks=np.stack(ranks).astype(np.float32))


class Adapting(nn.Module):
    """Adapters and the heads of their top levels, in training.

    method: None where the model's own layers are trained. heads: of each top level that is adapted, at its start.
    shared: whether one adapter serves all top levels.
    """

    model: ITEm
    owner: Tensor

    def __init__(
        self, model: ITEm, method: Method | None, heads: Sequence[Head], words_width: int, shared: bool
    ) -> None:
        super().__init__()
        self.__dict__["model"] = model
        self.method, self.heads, self.words_width, self.shared = method, tuple(heads), words_width, shared
        self.weight = nn.Parameter(torch.from_numpy(np.concatenate([head.weight for head in heads])))
        self.bias = nn.Parameter(torch.from_numpy(np.concatenate([head.bias for head in heads])))
        self.first = np.cumsum([0, *(len(head.paths) for head in heads)])
        owner = np.repeat(np.arange(len(heads)), np.diff(self.first))
        self.register_buffer("owner", torch.from_numpy(owner))

    def words(self, word_ids: Sequence[WordIds | None], tops: npt.NDArray[np.int64]) -> Tensor:
        """(B, words_width): the words' part of the features, 0 where a listing has none. tops: (B,), of `heads`."""
        ids, mask = pad_words(word_ids)
        batch = Batch(word_ids=ids, word_mask=mask, picture_rows=torch.zeros(0, dtype=torch.int64))
        rows = None if self.shared else torch.from_numpy(tops)
        with nullcontext() if self.method is None else self.method.applied(rows):
            encoded = self.model(batch)
        pooled = self.model.pool_words(encoded, batch)
        part = self.model.vector.words.centred(join_fields(pooled.means, self.model.vector.title_weight))
        return torch.zeros(len(ids), self.words_width).index_copy(0, pooled.rows, part)

    def losses(
        self, features: Tensor, targets: Tensor, tops: npt.NDArray[np.int64], frequency: Tensor | None = None
    ) -> Tensor:
        """(B,): cross-entropy among the paths of each listing's top level. targets: among all paths of all heads.
        frequency: (C,), `frequency_of` them in training."""
        z = F.linear(features, self.weight, self.bias if frequency is None else self.bias + frequency)
        others = self.owner != torch.from_numpy(tops)[:, None]
        return F.cross_entropy(z.masked_fill(others, -torch.inf), targets, reduction="none")

    @torch.no_grad()
    def head(self, number: int) -> Head:
        """The head of one top level as it is now."""
        rows = slice(self.first[number], self.first[number + 1])
        return replace(self.heads[number], weight=self.weight[rows].numpy().copy(), bias=self.bias[rows].numpy().copy())


@dataclass(frozen=True, kw_only=True, eq=False)
class Assigned:
    """Listings of the top levels that are adapted: `tops` (N,) of the heads, `targets` (N,) among all their paths."""

    listings: Labelled
    tops: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]

    @classmethod
    def of(cls, listings: Labelled, heads: Sequence[Head]) -> Assigned:
        """Those of `listings` that a head knows the path of."""
        tops, targets, first = np.full(len(listings), -1), np.full(len(listings), -1), 0
        for number, head in enumerate(heads):
            rows = listings.below(head.category)
            known = targets_of([listings.categories[row] for row in rows], head.paths)
            tops[rows[known >= 0]], targets[rows[known >= 0]] = number, known[known >= 0] + first
            first += len(head.paths)
        rows = np.flatnonzero(targets >= 0)
        return cls(listings=listings[rows], tops=tops[rows], targets=targets[rows])

    def __len__(self) -> int:
        return len(self.listings)


@torch.no_grad()
def adapted_features(adapting: Adapting, listings: Labelled, tops: npt.NDArray[np.int64]) -> Features:
    """(N, F): the features of listings with the adapters of their top levels."""
    features = listings.features.copy()
    lengths = np.array([0 if one is None else len(one) for one in listings.word_ids])
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    for start in range(0, len(order), 128):
        rows = order[start : start + 128]
        part = adapting.words([listings.word_ids[row] for row in rows], tops[rows])
        features[rows, : listings.words_width] = part.numpy()
    return features


def batches(assigned: Assigned, options: AdaptOptions, epoch: int) -> Iterator[Rows]:
    """The rows of one pass, a function of seed and epoch: drawn, then of like length within some batches."""
    generator = np.random.default_rng([options.seed, epoch])
    order = generator.permutation(len(assigned))
    lengths = np.array([0 if one is None else len(one) for one in assigned.listings.word_ids])
    size = options.batch_size or min(64, max(16, len(assigned) // 32))
    cut = [order[start : start + BUCKET * size] for start in range(0, len(order), BUCKET * size)]
    made = []
    for rows in cut:
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        made += [rows[start : start + size] for start in range(0, len(rows), size)]
    for number in generator.permutation(len(made)):
        yield made[number]


@dataclass(kw_only=True)
class Best:
    """What was best for one top level on held-back listings so far."""

    loss: float
    epoch: int
    tensors: dict[str, Tensor]


def folder_of(work: Path, settings: object, train: Assigned, val: Assigned) -> Path:
    """Where the checkpoints of a run are: another folder for other settings or listings, which it cannot go on from."""
    identity = hashlib.sha256(repr(settings).encode())
    for part in (train, val):
        identity.update(repr((part.listings.categories, part.listings.word_ids)).encode())
        identity.update(np.ascontiguousarray(part.listings.features).data)
    folder = work / identity.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Run:
    """One training of adapters and heads, resumable after each pass. folder: for its checkpoint."""

    def __init__(self, adapting: Adapting, train: Assigned, val: Assigned, options: AdaptOptions, folder: Path) -> None:
        self.adapting, self.train, self.val, self.options, self.folder = adapting, train, val, options, folder
        method, model = adapting.method, adapting.model
        if method is None:
            learned = [parameter for parameter in model.layers.parameters() if parameter.requires_grad]
        else:
            learned = [parameter for parameter in method.parameters() if parameter.requires_grad]
        self.learned = learned
        parameters = [*learned, adapting.weight, adapting.bias]
        self.optimiser = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=0.0)
        self.frequency = frequency_of(train.targets, len(adapting.bias))
        self.per_epoch = sum(1 for _ in batches(train, options, 0))
        self.num_steps = self.per_epoch * options.epochs
        self.epoch = 0
        self.best: list[Best] = []
        self.history: list[dict[str, float]] = []

    def go(self) -> None:
        """Trains to the end, or until no top level gets better any more; goes on from a checkpoint."""
        self.restore()
        options = self.options
        if not self.best:
            self.judge()
        progress = Progress("adapting", self.num_steps, "batches", initial=self.epoch * self.per_epoch)
        while self.epoch < options.epochs and self.epoch - max(one.epoch for one in self.best) < options.patience:
            total = 0.0
            for number, rows in enumerate(batches(self.train, options, self.epoch)):
                loss = self.step(rows, number)
                total += loss
                progress.update(1, f"loss {loss:.3f}")
            self.epoch += 1
            self.history.append({"epoch": self.epoch, "loss": total / self.per_epoch})
            self.judge()
            self.checkpoint()
        progress.close()
        self.keep_best()

    def step(self, rows: Rows, number: int) -> float:
        """Step `number` of this pass. Raises FloatingPointError, before a change, where the loss is not finite."""
        generator = np.random.default_rng([self.options.seed, self.epoch, number])
        listings, tops = self.train.listings, self.train.tops[rows]
        part = self.adapting.words([listings.word_ids[row] for row in rows], tops)
        seen = listings.features[rows]
        pattern = patterns_of(seen, listings.words_width)
        drawn = generator.choice(len(PATTERNS), size=len(rows), p=SHARES)  # of a listing with both, one reading
        shown = np.where(pattern == 2, drawn, pattern)
        picture = torch.from_numpy(seen[:, listings.words_width :] * (shown != 0)[:, None])
        features = torch.cat([part * torch.from_numpy(shown != 1)[:, None], picture], dim=1)
        targets = torch.from_numpy(self.train.targets[rows])
        loss = self.adapting.losses(features, targets, tops, self.frequency).mean()
        loss = loss + self.adapting.weight.square().sum() / (2 * PRIOR * len(self.train))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} in pass {self.epoch + 1}; give a lower --lr")
        share = learning_rate_share(self.epoch * self.per_epoch + number, self.num_steps, self.options.warmup)
        self.optimiser.param_groups[0]["lr"] = self.options.lr * share
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.learned, 1.0)
        self.optimiser.step()
        return float(loss.item())

    def judge(self) -> None:
        """Keeps what is better than before, each top level by itself, on held-back listings (without any: on train)."""
        val = self.val if len(self.val) else self.train
        features = torch.from_numpy(adapted_features(self.adapting, val.listings, val.tops))
        with torch.no_grad():
            losses = self.adapting.losses(features, torch.from_numpy(val.targets), val.tops).numpy()
        heads = self.adapting.heads
        groups = (
            [np.arange(len(val))] * len(heads) if self.adapting.shared else [val.tops == n for n in range(len(heads))]
        )
        for number, rows in enumerate(groups):
            loss = float(losses[rows].mean()) if len(losses[rows]) else float("inf")
            if len(self.best) <= number:
                self.best.append(Best(loss=loss, epoch=self.epoch, tensors=self.tensors_of(number)))
            elif loss < self.best[number].loss:
                self.best[number] = Best(loss=loss, epoch=self.epoch, tensors=self.tensors_of(number))
        self.history.append({"epoch": self.epoch, "held_back_loss": float(losses.mean())})

    def tensors_of(self, number: int) -> dict[str, Tensor]:
        """What belongs to one top level: its head's rows and its adapter's; one for all belongs to the first."""
        rows = slice(self.adapting.first[number], self.adapting.first[number + 1])
        kept = {"weight": self.adapting.weight[rows], "bias": self.adapting.bias[rows]}
        if self.adapting.shared and number:
            return {name: tensor.detach().clone() for name, tensor in kept.items()}
        for place, parameter in enumerate(self.learned):
            kept[f"learned.{place}"] = parameter if self.adapting.shared else parameter[number]
        return {name: tensor.detach().clone() for name, tensor in kept.items()}

    @torch.no_grad()
    def keep_best(self) -> None:
        """Puts back what was best."""
        for number, best in enumerate(self.best):
            rows = slice(self.adapting.first[number], self.adapting.first[number + 1])
            self.adapting.weight[rows], self.adapting.bias[rows] = best.tensors["weight"], best.tensors["bias"]
            if self.adapting.shared and number:
                continue
            for place, parameter in enumerate(self.learned):
                target = parameter if self.adapting.shared else parameter[number]
                target.copy_(best.tensors[f"learned.{place}"])

    def checkpoint(self) -> None:
        """Tensors and a readable JSON; the JSON last."""
        tensors: dict[str, Tensor] = {
            f"now.{number}": one for number, one in enumerate([*self.learned, self.adapting.weight, self.adapting.bias])
        }
        state = self.optimiser.state_dict()["state"]
        tensors |= {f"adam.{key}.{name}": value for key, values in state.items() for name, value in values.items()}
        for number, best in enumerate(self.best):
            tensors |= {f"best.{number}.{name}": tensor for name, tensor in best.tensors.items()}
        file = f"epoch-{self.epoch}.safetensors"
        save_tensors(tensors, self.folder / file)
        saved = {
            "file": file,
            "epoch": self.epoch,
            "best": [{"loss": one.loss, "epoch": one.epoch} for one in self.best],
            "history": self.history,
        }
        beside = self.folder / "checkpoint.tmp"
        beside.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
        beside.replace(self.folder / "checkpoint.json")
        for old in self.folder.glob("epoch-*.safetensors"):
            if old.name != file:
                old.unlink()

    @torch.no_grad()
    def restore(self) -> None:
        """Goes on from the checkpoint, where there is one."""
        path = self.folder / "checkpoint.json"
        if not path.is_file():
            return
        saved = json.loads(path.read_text(encoding="utf-8"))
        tensors = read_tensors(self.folder / saved["file"])
        for number, parameter in enumerate([*self.learned, self.adapting.weight, self.adapting.bias]):
            parameter.copy_(tensors[f"now.{number}"])
        whole = self.optimiser.state_dict()
        whole["state"] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "adam":
                key, _, part = rest.partition(".")
                whole["state"].setdefault(int(key), {})[part] = tensor
        self.optimiser.load_state_dict(whole)
        self.epoch, self.history = saved["epoch"], saved["history"]
        self.best = [
            Best(
                loss=one["loss"],
                epoch=one["epoch"],
                tensors={
                    name.removeprefix(f"best.{number}."): tensor
                    for name, tensor in tensors.items()
                    if name.startswith(f"best.{number}.")
                },
            )
            for number, one in enumerate(saved["best"])
        ]
