"""Random weights, drawn on the device in the dtype wanted, sparsity planted: for speed alone.

A planted predictor keeps a set share of the neurons, some hot and some cold, so that the union over
a batch grows as it does in a trained dReLU model. Where a ReLU model has no predictor, its gates
are planted instead. Everything measured on such a model is synthetic.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from .attention import LayerCache
from .batch import FfnMode, ForwardBatch
from .config import ModelConfig, ModelError
from .decoder import Decoder
from .kernels.ops import Ops
from .layers import Norm
from .recipe import Recipe
from .sparsity.ffn import SparseFFN
from .sparsity.moe import MoE
from .sparsity.predictor import LowRankPredictor
from .weights import assign

# A predictor's thresholds are planted on so many tokens, of so many sequences: those of one have
# more in common than those of a step.
SAMPLES, SEQUENCES = 1024, 64
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
    """A decoder on the device, ready to run; peak memory is the model and one tensor.

    Raises ModelError for a density of a model that skips no neurons.
    """
    if recipe.density is not None and not config.activation.is_sparse:
        raise ModelError(
            f"density={recipe.density}: with {config.activation.value} none is skipped"
        )
    ranks = [recipe.rank] * max(1, config.num_experts) if recipe.rank else []
    with torch.device("meta"):
        decoder = Decoder(config, ops, [ranks] * config.num_layers)
    generator = torch.Generator(device).manual_seed(recipe.seed)
    for name, parameter in list(decoder.named_parameters()):
        value = torch.empty(parameter.shape, device=device, dtype=dtype)
        assign(decoder, name, _draw(name, value, config.num_layers, generator))
    if recipe.density is not None and not recipe.rank:
        decoder.embedding.add_(_shared(decoder.embedding, generator))
    decoder.prepare(device, num_positions)
    if recipe.density is not None:
        batch, caches = _sequences(decoder)
        with planting(decoder, recipe.density, recipe.seed):
            decoder.hidden(batch, caches)
    return decoder


def _draw(name: str, value: Tensor, num_layers: int, generator: torch.Generator) -> Tensor:
    """Norms are one, embeddings of unit variance, and products keep the variance of their input.

    But what attention adds shrinks with depth, as in GPT-2: attending averages, and what all tokens
    of a sequence have in common would double with every layer until nothing else is left.
    """
    if value.dim() == 1:
        return value.fill_(1.0)
    if name == "embedding":
        return value.normal_(generator=generator)
    width = value.shape[0 if name.endswith(".down") else 1]  # `down` is stored by neuron
    if name.endswith(".gate_up"):
        width //= 2
    if name.endswith("attention.out.weight"):
        width *= 2 * num_layers
    return value.normal_(0.0, width**-0.5, generator=generator)


def _shared(embedding: Tensor, generator: torch.Generator) -> Tensor:
    """What every token has in common, as large as what it has for itself: [hidden].

    A gate has no bias, so it needs something that is there for every token to be shut by. Hidden
    states of trained models have such a direction too.
    """
    return torch.empty_like(embedding[0]).normal_(generator=generator)


def _sequences(decoder: Decoder) -> tuple[ForwardBatch, list[LayerCache]]:
    """One step of SEQUENCES random ones, each on one page of its own."""
    config, like = decoder.config, decoder.embedding
    length = min(SAMPLES // SEQUENCES, decoder.num_positions)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (SEQUENCES * length,), generator=generator)
    rows, places = torch.arange(SEQUENCES), torch.arange(SEQUENCES * length)
    batch = ForwardBatch(
        token_ids=ids.to(like.device),
        positions=(places % length).to(like.device),
        slots=places.to(like.device),
        request_ids=(places // length).to(like.device),
        page_tables=rows[:, None].int().to(like.device),
        query_lens=(length,) * SEQUENCES,
        context_lens=(length,) * SEQUENCES,
        sample_at=rows.to(like.device),
        ffn_mode=FfnMode.DENSE,
        query_starts=(torch.arange(SEQUENCES + 1) * length).int().to(like.device),
    )
    shape = (SEQUENCES, config.num_kv_heads, length, config.head_dim)
    return batch, [LayerCache(like.new_empty(shape), like.new_empty(shape)) for _ in decoder.layers]


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
    """A forward pass inside sets every predictor, or gate where there is none, on what it meets.

    Layer by layer in that one pass, so that each sees what the planted masks before it leave; an
    expert is set on the tokens that were routed to it.
    """
    generator = np.random.default_rng(seed)

    def before(ffn: nn.Module, args: tuple[Tensor, Norm]) -> None:
        residual, norm = args[:2]
        x = decoder.ops.rms_norm(residual, norm.weight, norm.eps)
        for block, places in blocks(ffn, x):
            assert isinstance(block, SparseFFN)
            seen = places if len(places) else slice(None)
            predictor = block.predictor
            if predictor is None:
                gate = block.gate_up[:, : x.shape[1]]
                gate.copy_(plant_gates(x[seen], gate, density, generator))
                continue
            assert isinstance(predictor, LowRankPredictor)
            fc1, fc2 = predictor.fc1.weight, predictor.fc2.weight
            fc2.copy_(plant_thresholds(residual[seen], fc1, fc2, density, generator))

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
    return (fc2.float() - _exceeded(ratios, density, generator)[:, None]).to(fc2.dtype)


def plant_gates(x: Tensor, gate: Tensor, density: float, generator: np.random.Generator) -> Tensor:
    """gate [N, hidden] such that each neuron opens for its own share of the inputs x.

    As with the predictors, but what stands for a bias is what the inputs have in common.
    """
    x, rows = x.float(), gate.float()
    shared = torch.nn.functional.normalize(x.mean(0), dim=0)
    ratios = (x @ rows.T) / (x @ shared).clamp(min=1e-3)[:, None]  # [samples, N]
    return (rows - torch.outer(_exceeded(ratios, density, generator), shared)).to(gate.dtype)


def _exceeded(ratios: Tensor, density: float, generator: np.random.Generator) -> Tensor:
    """What each neuron's own share of the samples [samples, N] exceeds, `density` on average."""
    fires = generator.beta(SPREAD, SPREAD * (1 / density - 1), ratios.shape[1])
    rank = ((1 - torch.from_numpy(fires)) * (len(ratios) - 1)).round().long().to(ratios.device)
    return ratios.sort(0).values.gather(0, rank[None])[0]
