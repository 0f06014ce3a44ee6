"""The optimisation of the bundled model: what a step is, and how many there are.

First without the mask, the predictors learning to imitate what dReLU leaves; then, in more and more
rows, with the mask in the forward pass, learned through by the straight-through estimator. Some
rows stay without it, and predictors are pressed not to drop large activations, so that the model
with its mask and the one without stay one model. Knows no file and no text.
"""
# pyright: basic

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sparsity.blocks import Gate
from .corpus import Encoded
from .mlp import beyond
from .page_mass import sample_places
from .paging import PagedStep
from .trainable import TurboSparse


class Optimizer(StrEnum):
    """For the matrices inside the layers; the rest is always AdamW's."""

    MUON = "muon"
    ADAMW = "adamw"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long, how fast, how sparse, on how much of what."""

    minutes: float = 8.0
    max_steps: int = 1_000_000
    batch: int = 128  # rows of `length` tokens; the same tokens in long rows
    length: int = 1024
    long_length: int = 4096
    long_every: int = 8  # one step in so many is one of long rows
    optimizer: Optimizer = Optimizer.MUON
    learning_rate: float = 3e-3
    final_share: float = 0.01  # of the learning rate, at the end
    warmup: int = 100
    weight_decay: float = 0.1
    momentum: float = 0.95
    dense_share: float = 0.2  # of the steps run without the mask
    ramp_share: float = 0.15  # of the steps, in which the rows with the mask become more
    masked_share: float = 0.9  # of the rows, from then on
    target: float = 0.14  # neurons that a layer may keep
    pressure: float = 100.0  # against the square of what it keeps beyond that
    # The same for all layers together. At 0.05 and 0.06 recall fell to 35 to 40 %, and answers with
    # and without the mask came to differ by 2 points in the handbook.
    mean_target: float = 0.095
    mean_pressure: float = 500.0
    imitation: float = 1.0  # while there is no mask
    imitation_masked: float = 0.5
    positive_weight: float = 3.0  # in imitation, of a neuron that is not zero
    leak: float = 0.4  # against dropping activations, by their size
    conversations: int = 1_000_000  # generated
    short_keys: int = 60_000  # generated texts with pass keys, in ordinary rows
    long_keys: int = 10_000  # the same in long rows
    # Of each batch. The read sources are small: at these shares an eight-minute run sees them
    # about ten times; at three times the shares v1 learned them by heart and lost 1.5 nats.
    chat_share: float = 0.06
    text_share: float = 0.05
    long_key_share: float = 0.6  # of the long rows
    questions_per_task: int = 300
    long_questions: int = 100  # the same, for pass keys
    answer_tokens: int = 96
    # Long rows that read a part of their context, chosen by gates that are trained along.
    page_budget: int = 0  # tokens; 0: every row reads all of its context, and there are no gates
    page_size: int = 16
    page_rank: int = 32  # of the gates
    page_places: int = 64  # of a row, whose attention the gates learn from
    paged_from: float = 0.5  # of the steps; before, the gates learn what they will choose by
    paged_share: float = 0.5  # of the long rows, from then on: prompts are served in full
    seed: int = 0


class Data:
    """Rows on the device; each step's batch is drawn from the sources in fixed shares."""

    def __init__(self, sources: list[tuple[Encoded, float]], device: torch.device) -> None:
        self.rows = [
            (torch.from_numpy(ids).to(device), torch.from_numpy(weights).to(device))
            for (ids, weights), _ in sources
        ]
        self.shares = [share for _, share in sources]

    @property
    def num_tokens(self) -> int:
        return sum(ids.numel() for ids, _ in self.rows)

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Token ids [size, length + 1] int64 and their loss weights, float32."""
        counts = [round(size * share) for share in self.shares[:-1]]
        counts.append(size - sum(counts))
        parts = []
        for (ids, weights), count in zip(self.rows, counts, strict=True):
            chosen = torch.randint(len(ids), (count,), generator=generator).to(ids.device)
            parts.append((ids[chosen].long(), weights[chosen].float()))
        ids, weights = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return ids, weights


def learning_rate(recipe: Recipe, progress: float, step: int) -> float:
    """Linear warm-up, then a straight line down to `final_share`."""
    down = 1 - (1 - recipe.final_share) * min(1.0, progress)
    return recipe.learning_rate * down * min(1.0, (step + 1) / recipe.warmup)


def masked_share(recipe: Recipe, progress: float) -> float:
    """Of the rows: none, then more and more, then `masked_share`."""
    ramp = (progress - recipe.dense_share) / max(recipe.ramp_share, 1e-9)
    return recipe.masked_share * min(1.0, max(0.0, ramp))


@dataclass(frozen=True, slots=True)
class Step:
    """What one update saw, on the device: the loss, what each layer kept, what they lost."""

    loss: Tensor
    kept: Tensor  # [layers]
    lost: Tensor  # mean over layers
    gates_off: Tensor | None  # nats from the true attention of pages, mean over layers


class Optimization:
    """A model being trained on ordinary and long rows: `step()` is one update.

    With gates, one a layer, long rows are paged.
    """

    def __init__(
        self,
        model: TurboSparse,
        data: tuple[Data, Data],
        recipe: Recipe,
        compiled: bool,
        gates: Sequence[Gate] = (),
    ) -> None:
        self.model, self.recipe = model, recipe
        self.ordinary, self.long = data
        self.device = model.embed_tokens.weight.device
        # Two row lengths are two graphs; one that fits both would be slower.
        self.losses = torch.compile(self._losses, dynamic=False) if compiled else self._losses
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.optimizers = optimizers(model, recipe)
        self.gates = list(gates)
        if gates:
            learned = [parameter for gate in gates for parameter in gate.parameters()]
            rate = recipe.learning_rate
            self.optimizers.append(torch.optim.AdamW(learned, rate, weight_decay=0.0))

    def _losses(
        self, ids: Tensor, weights: Tensor, masked: Tensor, paged: PagedStep | None = None
    ) -> tuple[Tensor, Tensor]:
        """The weighted mean loss, and the layers' [imitation, kept, lost]."""
        weight = self.recipe.positive_weight
        logits, sparsity = self.model(ids[:, :-1], masked, weight, paged=paged)
        losses = F.cross_entropy(
            logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
        )
        weights = weights[:, 1:].flatten()
        return (losses * weights).sum() / weights.sum(), sparsity

    def step(self, i: int, progress: float, learning_rate: float) -> Step:
        """Update once, as the i-th step at that share of the whole run."""
        recipe = self.recipe
        is_long = i % recipe.long_every == recipe.long_every - 1
        data = self.long if is_long else self.ordinary
        rows = recipe.batch * recipe.length // recipe.long_length if is_long else recipe.batch
        ids, weights = data.batch(rows, self.generator)
        share = masked_share(recipe, progress)
        masked = (torch.rand(rows, 1, 1, generator=self.generator) < share).float().to(self.device)
        paged = self._paged(rows, progress) if is_long and self.gates else None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            if paged is None:
                loss, sparsity = self.losses(ids, weights, masked)
            else:  # not compiled: sorting and a dense mask have little to gain
                loss, sparsity = self._losses(ids, weights, masked, paged)
        imitation, kept, lost = sparsity.unbind(1)
        excess = beyond(kept, recipe.target)
        excess_of_all = beyond(kept.mean(), recipe.mean_target)
        # Once the mask is in the forward pass it is learned through; imitation only steadies it.
        weight = recipe.imitation_masked if share else recipe.imitation
        total = loss + weight * imitation.mean() + share * recipe.leak * lost.mean()
        if share:
            total = total + recipe.pressure * excess.sum()
            total = total + recipe.mean_pressure * excess_of_all
        gates_off = None if paged is None else torch.stack(paged.losses)
        if gates_off is not None:  # of parameters that nothing else depends on
            total = total + gates_off.sum()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        off = None if gates_off is None else gates_off.detach().mean()
        return Step(loss.detach(), kept.detach(), lost.detach().mean(), off)

    def _paged(self, num_rows: int, progress: float) -> PagedStep:
        """What the rows of a long step read, and where the gates look."""
        recipe, chosen = self.recipe, None
        if progress >= recipe.paged_from:
            draws = torch.rand(num_rows, generator=self.generator)
            chosen = (draws < recipe.paged_share).to(self.device)
        seed = (recipe.seed, int(torch.randint(1 << 31, (), generator=self.generator)))
        size = recipe.page_size
        places = sample_places(recipe.page_places, recipe.long_length, size, seed)
        budget = -(-recipe.page_budget // size)
        return PagedStep(self.gates, size, budget, chosen, places.to(self.device))

    def seconds_per_step(self) -> float:
        """Measured with a learning rate of next to nothing, once both kinds have been compiled."""
        every = self.recipe.long_every
        for i in (0, every - 1, 0, every - 1):
            self.step(i, 1.0, 1e-9).loss.item()
        started = time.perf_counter()
        for i in range(every):
            loss = self.step(i, 1.0, 1e-9).loss
        loss.item()
        return (time.perf_counter() - started) / every


def optimizers(model: TurboSparse, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon (or AdamW) for the matrices inside the layers, AdamW for the rest.

    Muon's updates are scaled to the size of AdamW's, so that one learning rate serves both
    (arXiv 2502.16982). Predictors are AdamW's: their gradients are sparse and of low rank.
    """
    hidden, other, flat = [], [], []
    for name, parameter in model.named_parameters():
        inside = name.startswith("layers.") and "predictor" not in name
        (flat if parameter.dim() != 2 else hidden if inside else other).append(parameter)
    if recipe.optimizer is Optimizer.ADAMW:
        hidden, other = [], hidden + other
    adamw = torch.optim.AdamW(
        [{"params": other}, {"params": flat, "weight_decay": 0.0}],
        recipe.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=recipe.weight_decay,
        fused=model.embed_tokens.weight.device.type == "cuda",
    )
    if not hidden:
        return [adamw]
    muon = torch.optim.Muon(
        hidden,
        recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        momentum=recipe.momentum,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, adamw]


def fit(
    model: TurboSparse,
    data: tuple[Data, Data],
    recipe: Recipe,
    *,
    compiled: bool,
    gates: Sequence[Gate] = (),
) -> dict[str, float]:
    """Train in place until the time is up or the steps are made; returns what was done."""
    model.train()
    run = Optimization(model, data, recipe, compiled, gates)
    seconds = run.seconds_per_step()
    num_steps = max(1, min(recipe.max_steps, int(recipe.minutes * 60 / seconds)))
    tokens = recipe.batch * recipe.length
    print(f"{seconds * 1e3:.0f} ms and {tokens} tokens a step: {num_steps} steps", flush=True)
    started = time.perf_counter()
    recent, off = [], None
    for i in range(num_steps):
        progress = i / num_steps
        rate = learning_rate(recipe, progress, i)
        done = run.step(i, progress, rate)
        recent = [*recent[-63:], done.loss]
        off = off if done.gates_off is None else done.gates_off
        if i % 100 == 0 or i == num_steps - 1:
            loss = torch.stack(recent).mean().item()
            print(
                f"step {i:6}/{num_steps}  loss {loss:.4f}  kept {done.kept.mean().item():6.1%}  "
                f"({done.kept.min().item():.1%} to {done.kept.max().item():.1%})  "
                f"lost {done.lost.item():6.1%}  lr {rate:.1e}  {_told(off)}"
                f"{time.perf_counter() - started:.1f} s",
                flush=True,
            )
    return {
        "steps": num_steps,
        "tokens": num_steps * tokens,
        "seconds": time.perf_counter() - started,
        "final_loss": loss,
    } | ({} if off is None else {"gates_off": off.item()})


def _told(off: Tensor | None) -> str:
    return "" if off is None else f"gates {off.item():.3f} nats off  "
