"""Greedy answers of the trainable model to many prompts, with a K/V cache."""
# pyright: basic

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import Tensor

from . import corpus
from .tasks.exchange import Message, Tool
from .tasks.tool_text import plain_turns
from .trainable import LayerCache, TurboSparse

TOKENS_AT_ONCE = 1 << 16  # of prompts in one batch: with them grow the logits
ENDS = (corpus.IM_END, corpus.EOS)


def prompt(messages: list[Message], tools: list[Tool]) -> str:
    """The text that the chat template and the server make of a request."""
    turns = plain_turns(messages, tools)
    told = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    return f"{told}<|im_start|>assistant\n"


@torch.no_grad()
def answers(
    model: TurboSparse,
    tokenizer: Tokenizer,
    prompts: list[str],
    *,
    masked: bool = True,
    max_tokens: int,
) -> list[str]:
    """What the model says to each prompt, up to its end token, without special tokens."""
    encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast(prompts)]
    said: list[str] = [""] * len(prompts)
    for batch in _batches([len(ids) for ids in encoded]):
        rows = _continue(model, [encoded[i] for i in batch], masked, max_tokens)
        for i, row in zip(batch, rows, strict=True):
            ends = [row.index(token) for token in ENDS if token in row]
            said[i] = tokenizer.decode(row[: min(ends, default=len(row))])
    return said


def _batches(lengths: list[int]) -> list[list[int]]:
    """Indices of prompts of about the same length, as many as fit at once."""
    batches: list[list[int]] = [[]]
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if (len(batches[-1]) + 1) * lengths[i] > TOKENS_AT_ONCE and batches[-1]:
            batches.append([])
        batches[-1].append(i)
    return batches


def _continue(
    model: TurboSparse, prompts: list[list[int]], masked: bool, max_tokens: int
) -> list[list[int]]:
    """The next tokens of each prompt; rows that have ended go on until all have."""
    like = model.embed_tokens.weight
    lengths = torch.tensor([len(ids) for ids in prompts], device=like.device)
    width = int(lengths.max())
    max_tokens = min(max_tokens, model.sizes.context - width)
    ids = torch.full((len(prompts), width), corpus.EOS)
    for row, tokens in zip(ids, prompts, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    size = width + max_tokens
    caches = [LayerCache(len(prompts), model.sizes, size, like) for _ in model.layers]
    logits, _ = model(ids.to(like.device), masked, caches=caches)
    token = logits[torch.arange(len(prompts), device=like.device), lengths - 1].argmax(-1)
    del logits
    made: list[Tensor] = [token]
    ended = is_end(token)
    for step in range(max_tokens - 1):
        if bool(ended.all()):
            break
        logits, _ = model(token[:, None], masked, caches=caches, at=lengths + step)
        token = logits[:, 0].argmax(-1)
        made.append(token)
        ended |= is_end(token)
    return torch.stack(made, 1).tolist()


def is_end(token: Tensor) -> Tensor:
    return (token == ENDS[0]) | (token == ENDS[1])
