"""Decode steps on one GPU, without HTTP: the sparse model, the same with all neurons computed, and
an ordinary dense Mistral of the same shape, in one run.

    python benchmarks/step.py                        # TurboSparse-Mistral-7B's shape, synthetic

Weights are random, built on the device from a seed, with predictors planted at the density asked
for: the figures are speed alone. Every step is a captured graph of the whole model, logits too. The
share of the roof is the bytes that a step must read over the bandwidth that one large read reached.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

from turbosparse.engine.graphs import DecodeGraphs
from turbosparse.models.attention import LayerCache
from turbosparse.models.batch import FfnMode, ForwardBatch
from turbosparse.models.config import Activation, ModelConfig
from turbosparse.models.decoder import Decoder
from turbosparse.models.kernels import gpu_sparse, ops
from turbosparse.models.sequence import random_ids
from turbosparse.models.sparsity.ffn import SparseFFN
from turbosparse.models.sparsity.policy import FfnPolicy
from turbosparse.models.tools.synthetic import planting

DEVICE, DTYPE = torch.device("cuda"), torch.bfloat16
PAGE_SIZE = 16
REPLAYS = 30
SAMPLES = 256  # requests of a step on which the predictors are planted


def config(arguments: argparse.Namespace, activation: Activation) -> ModelConfig:
    return ModelConfig(
        family="synthetic",
        vocab_size=32064,
        hidden_size=4096,
        num_layers=arguments.layers,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        num_neurons=14336,
        activation=activation,
        max_positions=32768,
        predictor=activation is Activation.DRELU,
        dtype="bfloat16",
    )


def build(arguments: argparse.Namespace, activation: Activation) -> Decoder:
    """A random model on the device; a sparse one with planted predictors."""
    shape = config(arguments, activation)
    chosen, declined = ops.select(DEVICE, DTYPE)
    assert "gpu" in chosen.chosen().values(), declined
    ranks = [[arguments.rank]] if shape.predictor else [[]]
    with torch.device("meta"):
        decoder = Decoder(shape, chosen, ranks * shape.num_layers)
    generator = torch.Generator(DEVICE).manual_seed(arguments.seed)
    for name, parameter in list(decoder.named_parameters()):
        value = torch.empty(parameter.shape, device=DEVICE, dtype=DTYPE)
        if value.dim() == 1:
            value.fill_(1.0)
        elif name == "embedding":
            value.normal_(generator=generator)
        else:
            width = value.shape[0 if name.endswith(".down") else 1]
            value.normal_(0.0, width**-0.5, generator=generator)
        owner, _, attribute = name.rpartition(".")
        parameter = nn.Parameter(value, requires_grad=False)
        setattr(decoder.get_submodule(owner), attribute, parameter)
    decoder.prepare(DEVICE, shape.max_positions)
    return decoder


class Step:
    """One token for each of `size` requests of equal length, over random K and V."""

    def __init__(self, decoder: Decoder, size: int, context: int, mode: FfnMode) -> None:
        self.decoder, self.size, self.context, self.mode = decoder, size, context, mode
        shape, width = decoder.config, -(-context // PAGE_SIZE)
        pages = (size * width, shape.num_kv_heads, PAGE_SIZE, shape.head_dim)
        self.caches = [
            LayerCache(*(torch.randn(pages, device=DEVICE, dtype=DTYPE) for _ in range(2)))
            for _ in range(shape.num_layers)
        ]
        tables = torch.randperm(size * width).view(size, width).int().to(DEVICE)
        rows = torch.arange(size, device=DEVICE)
        positions = torch.full((size,), context - 1, device=DEVICE)
        self.batch = ForwardBatch(
            token_ids=random_ids(decoder, size),
            positions=positions,
            slots=tables[rows, positions // PAGE_SIZE].long() * PAGE_SIZE + positions % PAGE_SIZE,
            request_ids=rows,
            page_tables=tables,
            query_lens=(1,) * size,
            context_lens=(context,) * size,
            sample_at=rows,
            ffn_mode=mode,
        )

    def seconds(self) -> float:
        """Median time of a replayed step."""
        graphs = DecodeGraphs(
            self.decoder,
            self.caches,
            FfnPolicy.always(self.mode),
            max_tokens=self.size,
            max_pages=self.batch.page_tables.shape[1],
        )
        graphs.capture(only=self.size)
        times: list[float] = []
        for _ in range(3 + REPLAYS):
            torch.cuda.synchronize()
            started = time.perf_counter()
            graphs.run(self.batch)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        return statistics.median(times[3:])

    def shares(self) -> tuple[float, float]:
        """Neurons that a token keeps, and that any token of the step keeps: means over layers."""
        active: list[float] = []
        union: list[float] = []

        def look(ffn: nn.Module, args: tuple[torch.Tensor, torch.Tensor]) -> None:
            assert isinstance(ffn, SparseFFN)
            assert ffn.predictor is not None
            mask = ffn.predictor.select(args[1], args[0])
            active.append(mask.float().mean().item())
            union.append(mask.any(0).float().mean().item())

        if not self.decoder.config.predictor:
            return 1.0, 1.0
        ffns = [layer.get_submodule("ffn") for layer in self.decoder.layers]
        hooks = [ffn.register_forward_pre_hook(look) for ffn in ffns]
        self.decoder(self.batch, self.caches)
        for hook in hooks:
            hook.remove()
        return statistics.mean(active), statistics.mean(union)

    def bytes(self, union: float) -> float:
        """What the step must read: weights once, of the neurons the union, and every K and V."""
        neurons = other = 0
        for name, parameter in self.decoder.named_parameters():
            size = parameter.numel() * parameter.element_size()
            if name == "embedding":
                continue  # a row a token
            if name.endswith((".gate_up", ".down", ".down.weight")):
                neurons += size
            else:
                other += size
        kv = self.size * self.context * self.decoder.config.kv_bytes_per_token * DTYPE.itemsize
        return other + union * neurons + kv


def bandwidth() -> float:
    """Bytes a second that one large read reaches here."""
    data = torch.empty(1 << 30, device=DEVICE, dtype=DTYPE).zero_()
    times: list[float] = []
    for _ in range(5):
        torch.cuda.synchronize()
        started = time.perf_counter()
        data.amax()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return data.numel() * data.element_size() / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--rank", type=int, default=1260, help="the published mean")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/step.py needs a CUDA device")
    with torch.inference_mode():
        measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    roof = bandwidth()
    torch.cuda.empty_cache()
    device = torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}, one read {roof / 1e12:.2f} TB/s")
    print(f"synthetic, {arguments}")
    print(f"{'':>14}{'batch':>6}{'active':>8}{'union':>8}{'ms/step':>9}{'tok/s':>8}{'of roof':>9}")
    sparse = build(arguments, Activation.DRELU)
    with planting(sparse, arguments.density, torch.Generator().manual_seed(arguments.seed)):
        sample = Step(sparse, SAMPLES, arguments.context, FfnMode.DENSE)
        sparse(sample.batch, sample.caches)
    del sample
    for n in arguments.batch:
        if n <= gpu_sparse.MAX_TOKENS:
            report("sparse union", Step(sparse, n, arguments.context, FfnMode.UNION), roof)
        report("sparse dense", Step(sparse, n, arguments.context, FfnMode.DENSE), roof)
    del sparse
    torch.cuda.empty_cache()
    dense = build(arguments, Activation.SILU)
    for n in arguments.batch:
        report("dense Mistral", Step(dense, n, arguments.context, FfnMode.DENSE), roof)


def report(name: str, step: Step, roof: float) -> None:
    active, union = step.shares()
    seconds = step.seconds()
    read = step.bytes(union if step.mode is FfnMode.UNION else 1.0)
    print(
        f"{name:>14}{step.size:>6}{active:>8.1%}{union:>8.1%}{seconds * 1e3:>9.3f}"
        f"{step.size / seconds:>8.0f}{read / roof / seconds:>9.1%}",
        flush=True,
    )


if __name__ == "__main__":
    main()
