"""Attention of a decode step alone, all of the context against a page budget, by batch and context.

    python benchmarks/attention.py                                    # a 7B's layer on a GPU
    python benchmarks/attention.py --device cpu --dtype float32 --batch 1 4 --context 4096

Keys and values are random, so the time is that of any model of the shape, and the choice means
nothing. The bytes of `full` are every key and value; those of `budget` the summaries of all pages,
and the keys and values of those that are read. The share of the roof is of what a kernel that only
reads has reached in the same run. On a GPU each run is a captured graph over as many layers as no
cache holds.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from decode import PAGE_SIZE, median_seconds
from machine import facts
from roof import bandwidth

from turbosparse.models.attention import LayerCache
from turbosparse.models.batch import FfnMode, ForwardBatch, PageBudgets
from turbosparse.models.capture import captured
from turbosparse.models.kernels import ops
from turbosparse.models.load import DTYPES
from turbosparse.models.machine import processor

CACHED = 64 << 20  # bytes that a cache may hold: less than that is read from several layers
LEAST_LAYERS = 4  # on a GPU: launching a graph takes some microseconds, and a model has many layers


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--context", type=int, nargs="+", default=[4096, 16384, 32768])
    parser.add_argument("--budget", type=int, default=2048, help="tokens that a token reads")
    parser.add_argument("--share", type=float, default=1.0, help="of the estimated attention")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--page-size", type=int, default=PAGE_SIZE)
    parser.add_argument("--gate-rank", type=int, default=0, help="0: the bound alone")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--commit", help="what is measured; default: as git says")
    return parser.parse_args()


class Layers:
    """The K/V of some layers for `batch` requests of `context` tokens each."""

    def __init__(self, args: argparse.Namespace, batch: int, context: int) -> None:
        self.args, self.size, self.context = args, batch, context
        self.device, self.dtype = torch.device(args.device), DTYPES[args.dtype]
        self.ops, _ = ops.select(self.device, self.dtype)
        page_size = args.page_size
        width = -(-context // page_size)
        least = LEAST_LAYERS if self.device.type == "cuda" else 1
        num_layers = max(least, min(8, CACHED // self.bytes(None)))
        shape = (batch * width, args.kv_heads, page_size, args.head_dim)
        self.caches = [self._cache(shape) for _ in range(num_layers)]
        tables = torch.randperm(batch * width).view(batch, width).int().to(self.device)
        rows = torch.arange(batch, device=self.device)
        page, offset = divmod(context - 1, page_size)
        self.batch = ForwardBatch(
            token_ids=rows,
            positions=torch.full_like(rows, context - 1),
            slots=tables[:, page].long() * page_size + offset,
            request_ids=rows,
            page_tables=tables,
            query_lens=(1,) * batch,
            context_lens=(context,) * batch,
            sample_at=None,
            ffn_mode=FfnMode.TOKEN,
        )
        self.qkv = self._random(batch, (args.heads + 2 * args.kv_heads) * args.head_dim)
        angles = torch.rand(context, args.head_dim // 2, device=self.device)
        self.rope = angles.cos(), angles.sin()
        rank, two = args.gate_rank, 2 * args.head_dim
        shapes = (args.heads, rank, two), (args.kv_heads, two, rank)
        self.gate = (self._random(*shapes[0]), self._random(*shapes[1])) if rank else None

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=self.dtype, device=self.device)

    def _cache(self, shape: tuple[int, ...]) -> LayerCache:
        k, v = self._random(*shape), self._random(*shape)
        summary = torch.stack((k.amin(2), k.amax(2)), 2)
        return LayerCache(k, v, summary)

    def bytes(self, budget: int | None) -> int:
        """What one layer must read: for all of the context, or for a budget."""
        args, width = self.args, self.dtype.itemsize
        token = 2 * args.kv_heads * args.head_dim * width  # a key and a value of each head
        if budget is None or budget >= self.context:
            return self.size * self.context * token
        return self.size * (self.context // args.page_size + budget) * token

    def seconds(self, budget: int | None) -> float:
        """Of one layer."""
        batch = self.batch
        if budget is not None:
            like = torch.ones(self.size, device=self.device)
            pages = (-(-budget // self.args.page_size) * like).int()
            shares, gated = self.args.share * like, like * (self.gate is not None)
            batch = replace(batch, budgets=PageBudgets(pages, shares, gated))
        scale = self.args.head_dim**-0.5

        def run() -> None:
            for cache in self.caches:
                caches = (cache.k, cache.v, cache.summary, self.gate)
                self.ops.sparse_attention(self.qkv, *self.rope, *caches, batch, scale, None)

        once = captured(run)[0].replay if self.device.type == "cuda" else run
        return median_seconds(once, self.device) / len(self.caches)


@torch.inference_mode()
def main() -> None:
    args = arguments()
    device = torch.device(args.device)
    ops.set_num_threads(args.threads, ops.select(device, DTYPES[args.dtype])[0])
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    roof = bandwidth(device)
    for label, value in facts(name, args.commit).items():
        print(f"{label}: {value}")
    print(f"roof: {roof / 1e12:.3f} TB/s; microseconds of one layer, share of the roof\n")
    print("| batch | context | full | roof | budget | roof | budget / full |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for context in args.context:
        for batch in args.batch:
            layers = Layers(args, batch, context)
            cells: list[str] = []
            times = [layers.seconds(budget) for budget in (None, args.budget)]
            for budget, seconds in zip((None, args.budget), times, strict=True):
                share = layers.bytes(budget) / roof / seconds
                cells += [f"{seconds * 1e6:.1f}", f"{share:.0%}"]
            ratio = f"{times[1] / times[0]:.2f}"
            print("| " + " | ".join([str(batch), str(context), *cells, ratio]) + " |", flush=True)


if __name__ == "__main__":
    main()
