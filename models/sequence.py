"""One whole sequence through a decoder, for whoever measures a model. Knows no engine."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import LayerCache
from .batch import FfnMode, ForwardBatch
from .decoder import Decoder


def sequence_batch(
    ids: Tensor, mode: FfnMode = FfnMode.DENSE, active: Tensor | None = None
) -> ForwardBatch:
    """All T tokens of one sequence as one step, on one page; the logits of every one are wanted.

    ids [T] int64; `active` as in `ForwardBatch`.
    """
    places = torch.arange(len(ids), device=ids.device)
    return ForwardBatch(
        token_ids=ids,
        positions=places,
        slots=places,
        request_ids=torch.zeros_like(places),
        page_tables=torch.zeros(1, 1, dtype=torch.int32, device=ids.device),
        query_lens=(len(ids),),
        context_lens=(len(ids),),
        sample_at=places,
        ffn_mode=mode,
        active=active,
    )


def sequence_cache(decoder: Decoder, num_tokens: int) -> list[LayerCache]:
    """One page a layer that holds `num_tokens` tokens, where and as the decoder computes."""
    config, like = decoder.config, decoder.embedding
    shape = (1, config.num_kv_heads, num_tokens, config.head_dim)
    return [LayerCache(like.new_empty(shape), like.new_empty(shape)) for _ in decoder.layers]
