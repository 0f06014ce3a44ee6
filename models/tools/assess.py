"""What a trained model is worth: loss, task accuracy, and what its predictors keep and lose."""
# pyright: basic

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from . import corpus, dialogues
from .trainable import TurboSparse

UNION_BATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Scores:
    """Losses are nats per token; shares are of the neurons, means over held-out tokens."""

    text_loss: float
    dialogue_loss: float
    dialogue_loss_unmasked: float
    kept: list[float]  # per layer
    truly_active: list[float]
    recall: list[float]
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
    per_task: int,
) -> Scores:
    """Measure on held-out text; `model` should hold the weights as they are published.

    `per_task` is the number of questions that each task of the exam asks.
    """
    model.eval()
    ids, weights = (torch.from_numpy(a) for a in corpus.pack(chats, model.sizes.context, 0))
    kept, active, recall, union = _sparsity(model, ids)
    return Scores(
        text_loss=_loss(model, *_rows(texts, model.sizes.context), masked=True),
        dialogue_loss=_loss(model, ids, weights, masked=True),
        dialogue_loss_unmasked=_loss(model, ids, weights, masked=False),
        kept=kept,
        truly_active=active,
        recall=recall,
        union=union,
        accuracy=_accuracy(model, tokenizer, per_task, masked=True),
        accuracy_unmasked=_accuracy(model, tokenizer, per_task, masked=False),
    )


def _rows(documents: list[corpus.Encoded], length: int) -> tuple[Tensor, Tensor]:
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


def _sparsity(
    model: TurboSparse, ids: Tensor
) -> tuple[list[float], list[float], list[float], dict[int, float]]:
    """Per layer: share kept, share truly active, recall; and the union over unrelated tokens."""
    seen: list[tuple[Tensor, Tensor]] = []

    def look(mlp, args) -> None:
        x, residual = args[0], args[1]
        seen.append((mlp.predictor(residual) > 0, mlp.values(x) > 0))

    hooks = [layer.get_submodule("mlp").register_forward_pre_hook(look) for layer in model.layers]
    model(ids[:32].to(model.embed_tokens.weight.device).long()[:, :-1])
    for hook in hooks:
        hook.remove()
    kept = [k.float().mean().item() for k, _ in seen]
    active = [a.float().mean().item() for _, a in seen]
    recall = [((k & a).sum() / a.sum()).item() for k, a in seen]
    last = torch.stack([k[:, 100::100] for k, _ in seen])  # [layers, sequences, places, neurons]
    union = {
        n: last[:, :n].any(1).float().mean().item() for n in UNION_BATCHES if n <= last.shape[1]
    }
    return kept, active, recall, union


def _accuracy(
    model: TurboSparse, tokenizer: Tokenizer, per_task: int, *, masked: bool
) -> dict[str, float]:
    """Share of the exam's questions whose greedy answer holds what is expected."""
    cases = list(dialogues.exam(0, per_task))
    answers = answer(model, tokenizer, [e.question for _, e in cases], masked=masked)
    right: dict[str, list[bool]] = {}
    for (task, exchange), got in zip(cases, answers, strict=True):
        right.setdefault(task, []).append(_is_right(exchange.expected, got))
    return {task: sum(hits) / len(hits) for task, hits in right.items()}


def _is_right(expected: str, got: str) -> bool:
    """A number must stand as the last one; anything else must occur."""
    if expected.isdigit():
        numbers = "".join(c if c.isdigit() else " " for c in got).split()
        return bool(numbers) and numbers[-1] == expected
    return expected.lower() in got.lower()


def answer(
    model: TurboSparse,
    tokenizer: Tokenizer,
    questions: list[str],
    *,
    masked: bool = True,
    max_tokens: int = 48,
) -> list[str]:
    """Greedy answers, all questions at once: rows grow together, each from its own length."""
    device = model.embed_tokens.weight.device
    prompts = [
        tokenizer.encode(f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n").ids
        for q in questions
    ]
    width = max(len(p) for p in prompts) + max_tokens
    rows = torch.full((len(prompts), width), corpus.EOS, device=device)
    for i, prompt in enumerate(prompts):
        rows[i, : len(prompt)] = torch.tensor(prompt, device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    places = torch.arange(len(prompts), device=device)
    for step in range(max_tokens):
        at = lengths + step
        logits, _ = model(rows[:, : int(at.max())], masked)
        rows[places, at] = logits[places, at - 1].argmax(-1)
    texts: list[str] = []
    for prompt, row in zip(prompts, rows.tolist(), strict=True):
        said = row[len(prompt) : len(prompt) + max_tokens]
        ends = [said.index(t) for t in (corpus.IM_END, corpus.EOS) if t in said]
        texts.append(tokenizer.decode(said[: min(ends, default=max_tokens)]))
    return texts
