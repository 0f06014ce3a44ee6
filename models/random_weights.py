"""Random weights, drawn on the device in the dtype wanted, predictors planted: for speed alone.

A planted predictor keeps a set share of the neurons, some hot and some cold, so that the union over
a batch grows as it does in a trained dReLU model. Everything measured on such a model is synthetic.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from .attention import LayerCache
from .batch import FfnMode, ForwardBatch
from .config import ModelConfig
from .decoder import Decoder
from .kernels.ops import Ops
from .layers import Norm
from .recipe import Recipe
from .sparsity.ffn import SparseFFN
from .sparsity.moe import MoE
from .sparsity.predictor import LowRankPredictor
from .weights import assign

SAMPLES = 1024  # tokens on which a predictor's thresholds are planted
CONTEXT = 256  # of each of them
# Neurons fire at rates drawn from Beta(SPREAD, .) with the mean asked for. 1.8 is the best fit to
# the union over 1, 2, 4 ... 64 tokens of a dReLU model of 88 M parameters with 6.8 % active:
# 6.8 13.0 23.3 39.4 59.2 77.5 89.2 %; the fit gives 6.8 12.9 23.4 39.3 58.9 77.3 89.8 %.
SPREAD = 1.8


@torch.no_grad()
def build(
    config: ModelConfig,
    recipe: Recipe,
    ops: Ops,
    device: torch.device,
    dtype: torch.dtype,
    num_positions: int,
) -> Decoder:
    """A decoder on the device, ready to run; peak memory is the model and one tensor."""
    ranks = [recipe.rank] * max(1, config.num_experts) if recipe.rank else []
    with torch.device("meta"):
        decoder = Decoder(config, ops, [ranks] * config.num_layers)
    generator = torch.Generator(device).manual_seed(recipe.seed)
    for name, parameter in list(decoder.named_parameters()):
        value = torch.empty(parameter.shape, device=device, dtype=dtype)
        assign(decoder, name, _draw(name, value, generator))
    decoder.prepare(device, num_positions)
    if recipe.rank:
        with planting(decoder, recipe.density, recipe.seed):
            decoder.hidden(*_strangers(decoder, generator))
    return decoder


def _strangers(
    decoder: Decoder, generator: torch.Generator
) -> tuple[ForwardBatch, list[LayerCache]]:
    """A decode step of SAMPLES requests, each over random keys and values of its own: what a batch of
    unrelated texts meets. One sequence would not do: what its tokens share, a neuron would learn."""
    config, like = decoder.config, decoder.embedding
    context = min(CONTEXT, decoder.num_positions)
    shape = (SAMPLES, config.num_kv_heads, context, config.head_dim)
    k, v = (like.new_empty(shape).normal_(generator=generator) for _ in range(2))
    rows = torch.arange(SAMPLES, device=like.device)
    ids = torch.randint(
        0, config.vocab_size, (SAMPLES,), generator=torch.Generator().manual_seed(0)
    )
    batch = ForwardBatch(
        token_ids=ids.to(like.device),
        positions=torch.full_like(rows, context - 1),
        slots=rows * context + context - 1,
        request_ids=rows,
        page_tables=rows[:, None].int(),
        query_lens=(1,) * SAMPLES,
        context_lens=(context,) * SAMPLES,
        sample_at=rows,
        ffn_mode=FfnMode.DENSE,
    )
    return batch, [LayerCache(k, v)] * config.num_layers


def _draw(name: str, value: Tensor, generator: torch.Generator) -> Tensor:
    """Norms are one, embeddings of unit variance, and products keep the variance of their input."""
    if value.dim() == 1:
        return value.fill_(1.0)
    if name == "embedding":
        return value.normal_(generator=generator)
    width = value.shape[0 if name.endswith(".down") else 1]  # `down` is stored by neuron
    if name.endswith(".gate_up"):
        width //= 2
    return value.normal_(0.0, width**-0.5, generator=generator)


def blocks(ffn: nn.Module, x: Tensor) -> Iterator[tuple[nn.Module, Tensor]]:
    """The FFNs in a layer's, each with the places [n] int64 of those tokens of x that it sees."""
    if not isinstance(ffn, MoE):
        yield ffn, torch.arange(len(x), device=x.device)
        return
    routing = ffn.ops.route(x, ffn.router.weight, ffn.num_chosen)
    for i, expert in enumerate(ffn.experts):
        yield expert, routing.weights[:, i].nonzero()[:, 0]


@contextmanager
def planting(decoder: Decoder, density: float, seed: int) -> Generator[None]:
    """A forward pass inside sets every predictor on the residuals that it meets.

    Layer by layer in that one pass, so that each sees what the planted masks before it leave; an
    expert is set on the tokens that were routed to it.
    """
    generator = np.random.default_rng(seed)

    def before(ffn: nn.Module, args: tuple[Tensor, Norm]) -> None:
        residual, norm = args[:2]
        x = decoder.ops.rms_norm(residual, norm.weight, norm.eps)
        for block, places in blocks(ffn, x):
            assert isinstance(block, SparseFFN)
            predictor = block.predictor
            assert isinstance(predictor, LowRankPredictor)
            seen = residual[places] if len(places) else residual
            fc1, fc2 = predictor.fc1.weight, predictor.fc2.weight
            fc2.copy_(plant_thresholds(seen, fc1, fc2, density, generator))

    ffns = [layer.get_submodule("ffn") for layer in decoder.layers]
    hooks = [ffn.register_forward_pre_hook(before) for ffn in ffns]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def plant_thresholds(
    residual: Tensor, fc1: Tensor, fc2: Tensor, density: float, generator: np.random.Generator
) -> Tensor:
    """fc2 such that each neuron fires on its own share of the residuals, `density` on average.

    There are no biases, and the hidden units are not negative, so subtracting c from a row of fc2
    turns `score > 0` into `score / sum(hidden) > c`: a threshold that does not depend on the scale.
    """
    hidden = (residual.float() @ fc1.float().T).relu()
    ratios = (hidden / hidden.sum(1, keepdim=True)) @ fc2.float().T  # [samples, N]
    fires = generator.beta(SPREAD, SPREAD * (1 / density - 1), fc2.shape[0])
    rank = ((1 - torch.from_numpy(fires)) * (len(ratios) - 1)).round().long().to(fc2.device)
    threshold = ratios.sort(0).values.gather(0, rank[None])[0]
    return (fc2.float() - threshold[:, None]).to(fc2.dtype)
