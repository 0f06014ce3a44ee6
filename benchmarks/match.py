"""Whether the sparse paths say what the dense one says: greedy tokens, mode by mode, one model.

    python benchmarks/match.py                                       # the bundled model
    python benchmarks/match.py --synthetic turbosparse-mistral-7b --predictor-dtype float8

The reference is the dense mode with the mask applied; `token` and `union` differ from it by the
order of summation alone. In 16 bits that can swap two tokens whose logits are closer than rounding,
so every first divergence is told with the gap between the two in the reference and the spacing of
the dtype at that magnitude. It is a *tie* where the gap is within that spacing, or within twice the
noise: what 99.9 % of the best logits differ by when the *dense* mode itself runs with another
number of requests at once, which also changes the order of summation and nothing else. How many
texts that alone leaves the same is told beside ours. Exits 1 on a divergence that is no tie, or if
the fp32 logits are further than --must from the reference implementation's on a CPU.

--predictor-dtype float8 also tells what rounded predictors say. They are approximate: their tokens
are counted against the dense mode's of the predictors as they were, no tie is looked for, and no
count fails the run.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from decode import PAGE_SIZE, caches, decode_batch
from machine import facts
from tokenizers import Tokenizer
from torch import Tensor

from turbosparse.models import rounding
from turbosparse.models.batch import FfnMode
from turbosparse.models.decoder import Decoder
from turbosparse.models.load import DTYPES, load
from turbosparse.models.machine import processor
from turbosparse.models.sequence import observe, random_ids
from turbosparse.models.tools import shapes

ROOT = Path(__file__).parent.parent
BUNDLED = ROOT / "models" / "tiny"
TEXTS = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/*.md",
)  # what prompts of a real tokenizer are cut from
BEST = 256  # logits that are kept of every step
MODES = (FfnMode.TOKEN, FfnMode.UNION)


@dataclass(frozen=True, slots=True)
class Said:
    """What greedy decoding thought of every place, the best first: [B, places, BEST] each. The
    first `num_given` are places of the prompt, where what it thought was not what came."""

    tokens: Tensor  # int64
    logits: Tensor  # float32
    num_given: int = 0


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first place where a text parts from the reference, after `step` common tokens."""

    request: int
    step: int
    gap: float  # in the reference, from its own token to the other's; infinite beyond its best
    spacing: float  # of the dtype at that magnitude
    noise: float

    @property
    def is_tie(self) -> bool:
        return self.gap <= max(self.spacing, 2 * self.noise)


@torch.inference_mode()
def greedy(decoder: Decoder, prompts: Tensor, num_steps: int, mode: FfnMode) -> Said:
    """Decode [B, P] prompts together; they too go in token by token, in the mode that is tried."""
    length = prompts.shape[1]
    width = -(-(length + num_steps) // PAGE_SIZE)
    pages = caches(decoder, len(prompts) * width)
    tables = torch.arange(len(prompts) * width, dtype=torch.int32, device=prompts.device)
    tables = tables.view(-1, width)
    tokens, best = prompts[:, 0], []
    for place in range(length + num_steps - 1):
        logits = decoder(decode_batch(tokens, place, tables, mode), pages)
        top = logits.topk(min(BEST, logits.shape[1]))
        tokens = prompts[:, place + 1] if place + 1 < length else top.indices[:, 0]
        best.append(top)
    return Said(
        tokens=torch.stack([top.indices for top in best], 1).cpu(),
        logits=torch.stack([top.values for top in best], 1).cpu(),
        num_given=length - 1,
    )


def divergences(ours: Said, reference: Said, dtype: torch.dtype, noise: float) -> list[Divergence]:
    """Where each request parts from the reference; nothing of those that never do."""
    parted = _parted(ours, reference)
    found: list[Divergence] = []
    for request in parted.any(1).nonzero()[:, 0].tolist():
        place = int(parted[request].int().argmax())
        logits = reference.logits[request, place]
        where = (reference.tokens[request, place] == ours.tokens[request, place, 0]).nonzero()
        gap = (logits[0] - logits[int(where[0])]).item() if len(where) else math.inf
        spacing = _spacing(logits[0].item(), dtype)
        found.append(Divergence(request, place - reference.num_given, gap, spacing, noise))
    return found


def noise_between(ours: Said, reference: Said) -> float:
    """What 99.9 % of the best logits differ by, where both have read the same so far."""
    together = _parted(ours, reference).cumsum(1) == 0  # [B, places]
    same = (ours.tokens[..., 0] == reference.tokens[..., 0]) & together
    differences = (ours.logits[..., 0] - reference.logits[..., 0]).abs()[same]
    return differences.quantile(0.999).item() if len(differences) else 0.0


def _parted(ours: Said, reference: Said) -> Tensor:
    """[B, places] bool: something else is said; never within the prompt."""
    parted = ours.tokens[..., 0] != reference.tokens[..., 0]
    parted[:, : reference.num_given] = False
    return parted


def _spacing(value: float, dtype: torch.dtype) -> float:
    """The distance to the next number of this dtype."""
    here = torch.tensor(abs(value), dtype=dtype)
    return (torch.nextafter(here, here + torch.ones_like(here)) - here).item()


def prompts(directory: Path, decoder: Decoder, count: int, length: int) -> Tensor:
    """Pieces of this project's own documents; random ids where the tokenizer knows no words."""
    ids = random_ids(decoder, count * length).repeat(count * length)[: count * length]
    if directory == BUNDLED:
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        text = "".join(p.read_text() for pattern in TEXTS for p in sorted(ROOT.glob(pattern)))
        read = torch.tensor(tokenizer.encode(text).ids, device=ids.device)
        ids = read.repeat(-(-count * length // len(read)))[: count * length]
    return ids.view(count, length)


def compare(args: argparse.Namespace, directory: Path) -> Iterator[tuple[str, bool]]:
    """A line for each comparison, and whether it holds."""
    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    decoder = load(directory, device, dtype).decoder
    given = prompts(directory, decoder, args.prompts, args.length)
    references = {
        size: _greedy_all(decoder, given.split(size), args.tokens, FfnMode.DENSE)
        for size in args.batch
    }
    first, *others = references.values()
    noise = max((noise_between(other, first) for other in others), default=0.0)
    for size, other in zip(args.batch[1:], others, strict=True):
        num_same = len(given) - len(divergences(other, first, dtype, noise))
        yield (
            f"dense, {size} at once against {args.batch[0]}: {num_same} of {len(given)} texts of "
            f"{args.tokens} tokens the same; 99.9 % of the best logits within {noise:.3g}",
            True,
        )
    for size, reference in references.items():
        for mode in MODES:
            ours = _greedy_all(decoder, given.split(size), args.tokens, mode)
            found = divergences(ours, reference, dtype, noise)
            ties = sum(d.is_tie for d in found)
            yield (
                f"{mode} against dense, {size} at once: {len(given) - len(found)} of {len(given)} "
                f"texts of {args.tokens} tokens the same, {ties} of {len(found)} divergences a tie "
                f"within rounding; 99.9 % of the best logits within "
                f"{noise_between(ours, reference):.3g}",
                ties == len(found),
            )
            yield from ((f"  {'tie' if d.is_tie else 'NO TIE'}: {d}", d.is_tie) for d in found)
    if args.predictor_dtype != rounding.OWN:
        rounding.round_predictors(decoder)
        for size, reference in references.items():
            yield rounded_against(decoder, given.split(size), reference, args.tokens), True


def rounded_against(
    decoder: Decoder, parts: Sequence[Tensor], reference: Said, num_steps: int
) -> str:
    """What the approximate decoder says by itself, and after each token of the reference's text."""
    ours = _greedy_all(decoder, parts, num_steps, FfnMode.UNION)
    together = _parted(ours, reference)[:, ours.num_given :].cumsum(1) == 0
    told = reference.tokens[:, reference.num_given :, 0]  # [B, steps]
    given = torch.cat((torch.cat([*parts]), told[:, :-1].to(parts[0].device)), 1)
    after = _greedy_all(decoder, given.split(len(parts[0])), 1, FfnMode.UNION)
    next_same = after.tokens[:, reference.num_given :, 0] == told
    return (
        f"{rounding.FLOAT8} predictors (approximate) against dense, {len(parts[0])} at once: "
        f"{int(together.all(1).sum())} of {len(told)} texts of {num_steps} tokens the same, "
        f"{together.float().mean():.1%} of their tokens before the first that differs; after the "
        f"reference's own text {next_same.float().mean():.2%} of the next tokens"
    )


def _greedy_all(decoder: Decoder, parts: Sequence[Tensor], num_steps: int, mode: FfnMode) -> Said:
    said = [greedy(decoder, part, num_steps, mode) for part in parts]
    return Said(
        torch.cat([s.tokens for s in said]), torch.cat([s.logits for s in said]), said[0].num_given
    )


@torch.inference_mode()
def logit_difference(directory: Path, device: torch.device, num_tokens: int = 256) -> float:
    """Largest difference of fp32 logits on `device` from the reference's on a CPU."""
    cpu = torch.device("cpu")
    reference = load(directory, cpu, torch.float32, backends=("reference",)).decoder
    ids = prompts(directory, reference, 1, num_tokens)[0]
    ours = load(directory, device, torch.float32).decoder
    decoded = _decoded_logits(ours, ids.to(device))
    expected = observe(reference, ids).logits
    whole = observe(ours, ids.to(device)).logits.cpu()
    return max((found - expected).abs().max().item() for found in (whole, decoded))


def _decoded_logits(decoder: Decoder, ids: Tensor) -> Tensor:
    """The sequence's logits token by token, as decode steps in the sparse mode: [T, vocab]."""
    num_pages = -(-len(ids) // PAGE_SIZE)
    pages = caches(decoder, num_pages)
    table = torch.arange(num_pages, dtype=torch.int32, device=ids.device)[None]
    steps = [
        decoder(decode_batch(ids[i : i + 1], i, table, FfnMode.UNION), pages)[0].cpu()
        for i in range(len(ids))
    ]
    return torch.stack(steps)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", type=Path, default=BUNDLED, help="a checkpoint directory")
    what.add_argument("--synthetic", choices=shapes.NAMES)
    parser.add_argument("--layers", type=int, help="of the synthetic model")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument(
        "--predictor-dtype", choices=(rounding.OWN, rounding.FLOAT8), default=rounding.OWN
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 64], help="requests at once")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--length", type=int, default=16, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--must", type=float, default=1e-3, help="largest fp32 logit difference")
    parser.add_argument("--commit")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    device = torch.device(args.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else processor()
    for fact, value in facts(name, args.commit).items():
        print(f"{fact}: {value}")
    with tempfile.TemporaryDirectory() as folder:
        directory = args.model
        if args.synthetic:
            directory = Path(folder)
            shapes.describe_named(directory, args.synthetic, layers=args.layers)
        held = True
        for line, holds in compare(args, directory):
            print(line, flush=True)
            held &= holds
        if not args.synthetic:
            difference = logit_difference(directory, device)
            held &= difference <= args.must
            print(f"fp32 logits against the reference on a CPU: at most {difference:.2g} apart")
    if not held:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
