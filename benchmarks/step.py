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
from dataclasses import dataclass

import torch
from torch import nn

from turbosparse.engine.graphs import DecodeGraphs
from turbosparse.models.attention import LayerCache
from turbosparse.models.batch import FfnMode, ForwardBatch
from turbosparse.models.config import Activation, ModelConfig
from turbosparse.models.decoder import Decoder
from turbosparse.models.kernels import ops
from turbosparse.models.sequence import observe, random_ids
from turbosparse.models.sparsity.ffn import SparseFFN
from turbosparse.models.sparsity.policy import FfnPolicy
from turbosparse.models.tools.synthetic import plant

DEVICE, DTYPE = torch.device("cuda"), torch.bfloat16
PAGE_SIZE = 16
REPLAYS = 30


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
        else:
            width = value.shape[1] if not name.endswith("down") else value.shape[0]
            value.normal_(0.0, width**-0.5, generator=generator)
        owner, _, attribute = name.rpartition(".")
        parameter = nn.Parameter(value, requires_grad=False)
        setattr(decoder.get_submodule(owner), attribute, parameter)
    decoder.prepare(DEVICE, shape.max_positions)
    if shape.predictor:
        plant(decoder, arguments.density, torch.Generator().manual_seed(arguments.seed))
    return decoder


@dataclass(frozen=True, slots=True)
class Step:
    """One token for each of `size` requests of equal length."""

    decoder: Decoder
    size: int
    context: int
    mode: FfnMode

    def seconds(self) -> float:
        """Median time of a replayed step."""
        shape, width = self.decoder.config, -(-self.context // PAGE_SIZE)
        cache_shape = (self.size * width, shape.num_kv_heads, PAGE_SIZE, shape.head_dim)
        caches = [
            LayerCache(*(torch.randn(cache_shape, device=DEVICE, dtype=DTYPE) for _ in range(2)))
            for _ in range(shape.num_layers)
        ]
        graphs = DecodeGraphs(
            self.decoder,
            caches,
            FfnPolicy.always(self.mode),
            max_tokens=self.size,
            max_pages=width,
        )
        graphs.capture(only=self.size)
        batch = self.batch(width)
        graphs.run(batch)
        torch.cuda.synchronize()
        times: list[float] = []
        for _ in range(REPLAYS):
            started = time.perf_counter()
            graphs.run(batch)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    def batch(self, width: int) -> ForwardBatch:
        n = self.size
        tables = torch.randperm(n * width).view(n, width).int().to(DEVICE)
        rows = torch.arange(n, device=DEVICE)
        positions = torch.full((n,), self.context - 1, device=DEVICE)
        return ForwardBatch(
            token_ids=random_ids(self.decoder, n),
            positions=positions,
            slots=tables[rows, positions // PAGE_SIZE].long() * PAGE_SIZE + positions % PAGE_SIZE,
            request_ids=rows,
            page_tables=tables,
            query_lens=(1,) * n,
            context_lens=(self.context,) * n,
            sample_at=rows,
            ffn_mode=self.mode,
        )

    def bytes(self, union: float) -> float:
        """What the step must read: weights once, of the neurons the union, and every K and V."""
        neurons = other = 0
        for name, parameter in self.decoder.named_parameters():
            size = parameter.numel() * parameter.element_size()
            if name == "embedding":
                continue  # a row a token
            if ".ffn." in name and "predictor" not in name and "norm" not in name:
                neurons += size
            else:
                other += size
        kv = self.size * self.context * self.decoder.config.kv_bytes_per_token * DTYPE.itemsize
        return other + union * neurons + kv


def unions(decoder: Decoder, sizes: list[int]) -> dict[int, float]:
    """Share of the neurons that any of n tokens keeps, mean over layers; n=1: one token's own."""
    observed = observe(decoder, random_ids(decoder, max(sizes)))
    shares: dict[int, list[float]] = {n: [] for n in sizes}
    for layer, (x, residual) in zip(decoder.layers, observed.ffn_inputs, strict=True):
        ffn = layer.get_submodule("ffn")
        assert isinstance(ffn, SparseFFN)
        assert ffn.predictor is not None
        mask = ffn.predictor.select(residual, x)
        for n in sizes:
            shares[n].append(mask[:n].any(0).float().mean().item())
    return {n: statistics.mean(values) for n, values in shares.items()}


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
    share = unions(sparse, arguments.batch)
    for n in arguments.batch:
        modes = [FfnMode.UNION, FfnMode.DENSE] if n <= 64 else [FfnMode.DENSE]
        for mode in modes:
            step = Step(sparse, n, arguments.context, mode)
            report(f"sparse {mode}", step, share[1], share[n], roof)
    del sparse, step
    torch.cuda.empty_cache()
    dense = build(arguments, Activation.SILU)
    for n in arguments.batch:
        report("dense Mistral", Step(dense, n, arguments.context, FfnMode.DENSE), 1.0, 1.0, roof)


def report(name: str, step: Step, active: float, union: float, roof: float) -> None:
    seconds = step.seconds()
    read = step.bytes(union if step.mode is FfnMode.UNION else 1.0)
    print(
        f"{name:>14}{step.size:>6}{active:>8.1%}{union:>8.1%}{seconds * 1e3:>9.3f}"
        f"{step.size / seconds:>8.0f}{read / roof / seconds:>9.1%}",
        flush=True,
    )


if __name__ == "__main__":
    main()
