"""One whole sequence through a decoder, for whoever measures a model. Knows no engine."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .attention import LayerCache
from .batch import FfnMode, ForwardBatch
from .decoder import Decoder
from .layers import Norm


@dataclass(frozen=True, slots=True)
class Observed:
    """What T tokens of one sequence did."""

    logits: Tensor  # [T, vocab] float32
    ffn_inputs: list[tuple[Tensor, Tensor]]  # per layer: x and the residual, [T, hidden] each
    active: Tensor  # [layers] float32, the active fraction; zero where no neuron can be skipped
    union: Tensor  # [layers] float32, the share that any of the T tokens computes


@torch.inference_mode()
def observe(decoder: Decoder, ids: Tensor) -> Observed:
    """Run ids [T] int64 through the decoder over a cache of their own."""
    inputs: list[tuple[Tensor, Tensor]] = []

    def look(_: nn.Module, args: tuple[Tensor, Norm]) -> None:
        residual, norm = args[:2]
        inputs.append((decoder.ops.rms_norm(residual, norm.weight, norm.eps), residual))

    active = torch.zeros(len(decoder.layers), len(ids), device=ids.device)
    union = torch.zeros(len(decoder.layers), device=ids.device)
    batch = replace(sequence_batch(ids), active=active, union=union)
    hooks = [layer.get_submodule("ffn").register_forward_pre_hook(look) for layer in decoder.layers]
    try:
        logits = decoder(batch, sequence_cache(decoder, len(ids)))
    finally:
        for hook in hooks:
            hook.remove()
    return Observed(logits, inputs, active.mean(-1), union)


def random_ids(decoder: Decoder, num_tokens: int) -> Tensor:
    """The same tokens at every call, on the decoder's device, within its context: [T] int64."""
    generator = torch.Generator().manual_seed(0)
    size = (min(num_tokens, decoder.num_positions),)
    ids = torch.randint(0, decoder.config.vocab_size, size, generator=generator)
    return ids.to(decoder.embedding.device)


def sequence_batch(ids: Tensor, mode: FfnMode = FfnMode.DENSE) -> ForwardBatch:
    """All T tokens of one sequence as one step, on one page; every one's logits are wanted."""
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
        query_starts=torch.tensor([0, len(ids)], dtype=torch.int32, device=ids.device),
    )


def sequence_cache(decoder: Decoder, num_tokens: int) -> list[LayerCache]:
    """One page a layer that holds `num_tokens` tokens, where and as the decoder computes."""
    config, like = decoder.config, decoder.embedding
    shape = (1, config.num_kv_heads, num_tokens, config.head_dim)
    return [LayerCache(like.new_empty(shape), like.new_empty(shape)) for _ in decoder.layers]
