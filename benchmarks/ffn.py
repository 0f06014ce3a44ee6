"""One layer's FFN in its modes, on this machine, in one run: milliseconds per call by batch size.

The shape is TurboSparse-Mistral-7B's unless told otherwise; weights are random, the predictor is
planted at the density asked for (synthetic), and residuals are random. `dense` is the same layer
without its predictor; the other columns include the predictor. Exits 1 if --must is not reached.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from turbosparse.models.batch import FfnMode
from turbosparse.models.config import Activation, ModelConfig
from turbosparse.models.kernels import ops
from turbosparse.models.layers import Norm
from turbosparse.models.machine import processor
from turbosparse.models.random_weights import plant_thresholds
from turbosparse.models.sequence import sequence_batch
from turbosparse.models.sparsity.ffn import SparseFFN
from turbosparse.models.sparsity.predictor import LowRankPredictor

MODES = (FfnMode.DENSE, FfnMode.TOKEN, FfnMode.UNION)


def main() -> None:
    args = arguments()
    torch.set_grad_enabled(False)
    chosen, _ = ops.select(torch.device("cpu"), torch.float32)
    ops.set_num_threads(args.threads, chosen)
    generator = torch.Generator().manual_seed(0)
    ffn = build(args, chosen, generator)
    print(
        f"{processor()}, {args.threads} threads, fp32, torch {torch.__version__}; "
        f"hidden {args.hidden}, neurons {args.neurons}, predictor rank {args.rank}; "
        f"kernels: {chosen.chosen()['ffn']}; synthetic"
    )
    print("batch  active  union      dense   dense+mask        token        union   (ms, x dense)")
    ratios = [measure(ffn, num_tokens, args.repeats, generator) for num_tokens in args.batch]
    if args.must is not None and ratios[0] > args.must:
        raise SystemExit(f"batch {args.batch[0]}: {ratios[0]:.2f}x of dense, over {args.must}x")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--neurons", type=int, default=14336)
    parser.add_argument("--rank", type=int, default=1260, help="the published mean")
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--must", type=float, help="largest token/dense ratio of the first batch")
    return parser.parse_args()


def build(args: argparse.Namespace, chosen: ops.Ops, generator: torch.Generator) -> SparseFFN:
    config = ModelConfig(
        family="synthetic",
        vocab_size=1,
        hidden_size=args.hidden,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=args.hidden,
        num_neurons=args.neurons,
        activation=Activation.DRELU,
        max_positions=1,
    )
    predictor = LowRankPredictor(args.hidden, args.rank, args.neurons, chosen)
    fc1, fc2 = predictor.fc1.weight, predictor.fc2.weight
    for parameter in (fc1, fc2):
        parameter.normal_(generator=generator)
    residual = torch.randn(512, args.hidden, generator=generator)
    rates = np.random.default_rng(0)
    fc2.copy_(plant_thresholds(residual, fc1, fc2, args.density, rates))
    ffn = SparseFFN(config, chosen, predictor)
    for parameter in (ffn.gate_up, ffn.down):
        parameter.normal_(generator=generator).div_(args.hidden**0.5)
    return ffn


def measure(ffn: SparseFFN, num_tokens: int, repeats: int, generator: torch.Generator) -> float:
    """Print one row; return token's time over dense's."""
    hidden = ffn.down.shape[1]
    residual = torch.randn(num_tokens, hidden, generator=generator)
    norm = Norm(hidden, 1e-5)
    norm.weight.fill_(1.0)
    predictor = ffn.predictor
    assert predictor is not None
    mask = predictor.select(residual, residual)

    def call(mode: FfnMode, masked: bool) -> Callable[[], object]:
        step = sequence_batch(torch.arange(num_tokens), mode)

        def run() -> object:
            ffn.predictor = predictor if masked else None
            return ffn(residual, norm, step, 0)

        return run

    calls = [call(FfnMode.DENSE, False), *(call(mode, True) for mode in MODES)]
    dense, *times = medians(calls, repeats)
    ffn.predictor = predictor
    cells = "  ".join(f"{seconds * 1e3:7.2f} {seconds / dense:4.2f}" for seconds in times)
    print(
        f"{num_tokens:5}  {mask.float().mean():6.1%}  {mask.any(0).float().mean():5.1%}  "
        f"{dense * 1e3:9.2f}  {cells}"
    )
    return times[MODES.index(FfnMode.TOKEN)] / dense


def medians(calls: list[Callable[[], object]], repeats: int) -> list[float]:
    """Seconds of each; taken in turn, so that a slow moment does not fall on one of them."""
    seconds: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(repeats):
        for call, times in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return [sorted(times)[len(times) // 2] for times in seconds]


if __name__ == "__main__":
    main()
