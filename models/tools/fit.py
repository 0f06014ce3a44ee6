"""The optimisation of the bundled model: what a step is, and how many there are.

First without the mask, the predictors learning to imitate what dReLU leaves; then with the mask in
the forward pass, learned through by the straight-through estimator. Knows no file and no text.
"""
# pyright: basic

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .corpus import Encoded
from .trainable import TurboSparse


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long, how fast, how sparse, on how much of what."""

    minutes: float = 6.0
    max_steps: int = 1_000_000
    batch: int = 128  # rows of `context` tokens
    learning_rate: float = 3e-3
    final_share: float = 0.05  # of the learning rate, at the end of the cosine
    warmup: int = 100
    weight_decay: float = 0.1
    dense_share: float = 0.4  # of the steps run without the mask
    target: float = 0.11  # neurons that a layer may keep
    imitation: float = 1.0
    pressure: float = 100.0
    conversations: int = 1_000_000  # generated
    # Of each batch. The read sources are small: at these shares a six-minute run sees them about
    # ten times; at three times the shares it learned them by heart and lost 1.5 nats on others.
    chat_share: float = 0.07
    text_share: float = 0.05
    questions_per_task: int = 200
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
        """Token ids [size, context + 1] int64 and their loss weights, float32."""
        counts = [round(size * share) for share in self.shares[:-1]]
        counts.append(size - sum(counts))
        parts = []
        for (ids, weights), count in zip(self.rows, counts, strict=True):
            chosen = torch.randint(len(ids), (count,), generator=generator).to(ids.device)
            parts.append((ids[chosen].long(), weights[chosen].float()))
        ids, weights = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return ids, weights


def learning_rate(recipe: Recipe, step: int, num_steps: int) -> float:
    """Linear warm-up, then a cosine down to `final_share`."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    progress = min(1.0, (step - recipe.warmup) / max(1, num_steps - recipe.warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return recipe.learning_rate * (recipe.final_share + (1 - recipe.final_share) * cosine)


class Optimization:
    """A model being trained on some data: `step()` is one update."""

    def __init__(self, model: TurboSparse, data: Data, recipe: Recipe, compiled: bool) -> None:
        self.model, self.data, self.recipe = model, data, recipe
        self.device = model.embed_tokens.weight.device
        self.forward = torch.compile(model) if compiled else model
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in model.parameters() if p.dim() == 2]},
                {"params": [p for p in model.parameters() if p.dim() != 2], "weight_decay": 0.0},
            ],
            recipe.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=recipe.weight_decay,
            fused=self.device.type == "cuda",
        )

    def step(self, learning_rate: float, *, masked: bool) -> tuple[Tensor, Tensor]:
        """Update once; returns the loss and the kept share of the neurons, on the device."""
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        ids, weights = self.data.batch(recipe.batch, self.generator)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits, sparsity = self.forward(ids[:, :-1], masked, recipe.target)
            losses = F.cross_entropy(
                logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
            )
        weights = weights[:, 1:].flatten()
        loss = (losses * weights).sum() / weights.sum()
        imitation, excess, kept = sparsity.unbind(1)
        # Once the mask is in the forward pass it is learned through; imitation only steadies it.
        total = loss + recipe.imitation * (0.1 if masked else 1.0) * imitation.mean()
        if masked:
            total = total + recipe.pressure * excess.sum()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach(), kept.detach().mean()

    def seconds_per_step(self) -> float:
        """Measured with a learning rate of next to nothing, once both kinds have been compiled."""
        for masked in (False, True):
            for _ in range(2):
                self.step(1e-6, masked=masked)[0].item()
        started = time.perf_counter()
        for _ in range(5):
            loss, _ = self.step(1e-6, masked=True)
        loss.item()
        return (time.perf_counter() - started) / 5


def fit(model: TurboSparse, data: Data, recipe: Recipe, *, compiled: bool) -> dict[str, float]:
    """Train in place until the time is up or the steps are made; returns what was done."""
    model.train()
    run = Optimization(model, data, recipe, compiled)
    seconds = run.seconds_per_step()
    num_steps = max(1, min(recipe.max_steps, int(recipe.minutes * 60 / seconds)))
    tokens = recipe.batch * model.sizes.context
    print(f"{seconds * 1e3:.0f} ms and {tokens} tokens a step: {num_steps} steps", flush=True)
    started = time.perf_counter()
    final_loss = math.nan
    for i in range(num_steps):
        rate = learning_rate(recipe, i, num_steps)
        loss, kept = run.step(rate, masked=i >= recipe.dense_share * num_steps)
        if i % 100 == 0 or i == num_steps - 1:
            final_loss = loss.item()
            print(
                f"step {i:6}/{num_steps}  loss {final_loss:.4f}  kept {kept.item():6.1%}  "
                f"lr {rate:.1e}  {time.perf_counter() - started:.1f} s",
                flush=True,
            )
    return {
        "steps": num_steps,
        "tokens": num_steps * tokens,
        "seconds": time.perf_counter() - started,
        "final_loss": final_loss,
    }
