"""One layer's FFN in its modes, on this machine, in one run: seconds per call by batch size.

The shape is TurboSparse-Mistral-7B's unless told otherwise; weights are random, the predictor is
planted at the density asked for (synthetic), and residuals are random. `dense` is the same layer
without its predictor; the other columns include the predictor. Exits 1 if --must is not reached.
"""

import argparse
import platform
import time

import torch

from turbosparse.models.batch import FfnMode, ForwardBatch
from turbosparse.models.config import Activation, ModelConfig
from turbosparse.models.kernels import ops
from turbosparse.models.layers import weight
from turbosparse.models.sparsity.ffn import SparseFFN
from turbosparse.models.sparsity.predictor import LowRankPredictor
from turbosparse.models.tools.synthetic import plant_thresholds


def main() -> None:
    args = arguments()
    torch.set_grad_enabled(False)
    chosen, _ = ops.select(torch.device("cpu"), torch.float32)
    ops.set_num_threads(args.threads, chosen)
    generator = torch.Generator().manual_seed(0)
    ffn = build(args, chosen, generator)
    print(
        f"{platform.processor() or platform.machine()}, {args.threads} threads, fp32, "
        f"torch {torch.__version__}; hidden {args.hidden}, neurons {args.neurons}, "
        f"predictor rank {args.rank}; kernels: {chosen.chosen()['ffn']}; synthetic"
    )
    print("batch  active  union      dense   dense+mask        token        union   (ms, x dense)")
    ratios = [measure(ffn, num_tokens, args, generator) for num_tokens in args.batch]
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
    for parameter in (predictor.fc1.weight, predictor.fc2.weight):
        parameter.normal_(generator=generator)
    residual = torch.randn(512, args.hidden, generator=generator)
    predictor.fc2.weight.copy_(
        plant_thresholds(
            residual, predictor.fc1.weight, predictor.fc2.weight, args.density, generator
        )
    )
    ffn = SparseFFN(config, chosen, predictor)
    for parameter in (ffn.gate_up, ffn.down):
        parameter.normal_(generator=generator).div_(args.hidden**0.5)
    return ffn


def measure(
    ffn: SparseFFN, num_tokens: int, args: argparse.Namespace, generator: torch.Generator
) -> float:
    """Print one row; return token's time over dense's."""
    residual = torch.randn(num_tokens, args.hidden, generator=generator)
    x = torch.randn(num_tokens, args.hidden, generator=generator)
    predictor, ffn.predictor = ffn.predictor, None
    dense = median(lambda: ffn(x, residual, batch(num_tokens, FfnMode.DENSE), 0), args.repeats)
    ffn.predictor = predictor
    mask = predictor.select(residual, x)
    modes = (FfnMode.DENSE, FfnMode.TOKEN, FfnMode.UNION)
    # In turn, so that a slow moment of the machine does not fall on one mode.
    times = {
        mode: median(lambda mode=mode: ffn(x, residual, batch(num_tokens, mode), 0), args.repeats)
        for mode in modes
    }
    cells = "  ".join(f"{times[m] * 1e3:7.2f} {times[m] / dense:4.2f}" for m in modes)
    print(
        f"{num_tokens:5}  {mask.float().mean():6.1%}  {mask.any(0).float().mean():5.1%}  "
        f"{dense * 1e3:9.2f}  {cells}"
    )
    return times[FfnMode.TOKEN] / dense


def batch(num_tokens: int, mode: FfnMode) -> ForwardBatch:
    places = torch.arange(num_tokens)
    return ForwardBatch(
        places, places, places, places, weight(1, 1), (num_tokens,), (num_tokens,), places, mode
    )


def median(call, repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


if __name__ == "__main__":
    main()
