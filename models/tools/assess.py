"""What a trained model is worth: loss, task accuracy, and what its predictors keep and lose."""
# pyright: basic

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from . import corpus
from .grading import is_right, read
from .greedy import answers, prompt
from .tasks.exchange import Case
from .trainable import TurboSparse

UNION_BATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Scores:
    """Losses are nats per token; shares are of the neurons, means over held-out tokens."""

    text_loss: float
    text_loss_unmasked: float
    dialogue_loss: float
    dialogue_loss_unmasked: float
    kept: list[float]  # per layer
    truly_active: list[float]
    recall: list[float]
    lost: list[float]  # of the activations, what the mask drops
    union: dict[int, float]  # kept by any of that many unrelated tokens, mean over layers
    accuracy: dict[str, float]
    accuracy_unmasked: dict[str, float]

    @property
    def mean_kept(self) -> float:
        return sum(self.kept) / len(self.kept)

    def as_json(self) -> Mapping[str, object]:
        return asdict(self) | {"mean_kept": self.mean_kept}


@torch.no_grad()
def assess(
    model: TurboSparse,
    tokenizer: Tokenizer,
    texts: list[corpus.Encoded],
    chats: list[corpus.Encoded],
    cases: list[Case],
    length: int,
    answer_tokens: int,
) -> Scores:
    """Measure on held-out text in rows of `length` tokens, and by answers to the exam's cases.

    `model` should hold the weights as they are published.
    """
    model.eval()
    prose = rows_of_text(texts, length)
    ids, weights = (torch.from_numpy(a) for a in corpus.pack(chats, length, 0))
    accuracy = _accuracy(model, tokenizer, cases, answer_tokens, masked=True)
    unmasked = accuracy  # without predictors both are one function
    if model.sizes.rank:
        unmasked = _accuracy(model, tokenizer, cases, answer_tokens, masked=False)
    return Scores(
        text_loss=_loss(model, *prose, masked=True),
        text_loss_unmasked=_loss(model, *prose, masked=False),
        dialogue_loss=_loss(model, ids, weights, masked=True),
        dialogue_loss_unmasked=_loss(model, ids, weights, masked=False),
        **_sparsity(model, ids),
        accuracy=accuracy,
        accuracy_unmasked=unmasked,
    )


def rows_of_text(documents: list[corpus.Encoded], length: int) -> tuple[Tensor, Tensor]:
    """Text cut into rows that each begin with `<s>`, as in training: [rows, length + 1].

    Nothing is left out but the last piece.
    """
    ids = torch.cat([torch.from_numpy(tokens) for tokens, _ in documents])
    pieces = ids[: len(ids) // length * length].view(-1, length)
    rows = F.pad(pieces, (1, 0), value=corpus.BOS)
    return rows, torch.ones_like(rows, dtype=torch.float16)


def _loss(model: TurboSparse, ids: Tensor, weights: Tensor, *, masked: bool) -> float:
    """Mean over tokens that count fully: what the assistant says, or all of a text."""
    device = model.embed_tokens.weight.device
    total, count = 0.0, 0.0
    for i in range(0, min(len(ids), 256), 8):
        rows = ids[i : i + 8].to(device).long()
        counts = (weights[i : i + 8, 1:].to(device) == 1).float()
        logits, _ = model(rows[:, :-1], masked)
        losses = F.cross_entropy(
            logits.flatten(0, 1).float(), rows[:, 1:].flatten(), reduction="none"
        )
        total += (losses * counts.flatten()).sum().item()
        count += counts.sum().item()
    return total / count


def _sparsity(model: TurboSparse, ids: Tensor) -> dict:
    """Per layer: what is kept, truly active, found (recall) and lost; and the union over tokens."""
    seen: list[tuple[Tensor, Tensor]] = []

    def look(mlp, args) -> None:
        x, residual = args[0], args[1]
        value = mlp.values(x)
        seen.append((mlp.predictor(residual) > 0 if mlp.predictor else value != 0, value))

    hooks = [layer.get_submodule("mlp").register_forward_pre_hook(look) for layer in model.layers]
    model(ids[:32].to(model.embed_tokens.weight.device).long()[:, :-1])
    for hook in hooks:
        hook.remove()
    last = torch.stack([k[:, 100::100] for k, _ in seen])  # [layers, sequences, places, neurons]
    return {
        "kept": [_share(k) for k, _ in seen],
        "truly_active": [_share(v != 0) for _, v in seen],
        "recall": [((k & (v != 0)).sum() / (v != 0).sum()).item() for k, v in seen],
        "lost": [1 - ((v * k).abs().sum() / v.abs().sum()).item() for k, v in seen],
        "union": {n: _share(last[:, :n].any(1)) for n in UNION_BATCHES if n <= last.shape[1]},
    }


def _share(mask: Tensor) -> float:
    return mask.float().mean().item()


def _accuracy(
    model: TurboSparse, tokenizer: Tokenizer, cases: list[Case], max_tokens: int, *, masked: bool
) -> dict[str, float]:
    """Share of each task's cases whose greedy answer is right."""
    prompts = [prompt(case.messages, case.tools) for case in cases]
    said = answers(model, tokenizer, prompts, masked=masked, max_tokens=max_tokens)
    right: dict[str, list[bool]] = {}
    for case, got in zip(cases, said, strict=True):
        right.setdefault(case.task, []).append(is_right(case.grade, case.expected, read(got)))
    return {task: sum(hits) / len(hits) for task, hits in right.items()}
