"""Makes separate predictors for a ReLU model: text in, a folder for `serve --predictors` out."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from ..artifact import Measured, attach, layers_of, neurons_of
from ..config import ModelConfig, ModelError
from ..decoder import Decoder
from ..identity import Identity
from ..kernels import ops
from ..layers import Norm
from ..load import choose_device, choose_dtype, load, read_config
from ..progress import track
from ..sparsity.kinds import PREDICTORS
from ..sparsity.sketch import BITS, SLOTS
from .fidelity import Run, compare, continue_both
from .imitation import MAKERS, Chosen, Layer, Recipe, choose_threshold
from .layer_parts import LayerParts
from .output import check_destination
from .residuals import Residuals
from .text import bos_ids, check_ids, read_tokenizer, read_windows

HELD_OUT = 0.1  # of --data, without --holdout
LEAST_WINDOWS = 4  # one to learn from, one to set thresholds by, one to measure, and one more
RANK_MULTIPLE = 64
USELESS = 0.9  # of the neurons: who keeps so many has learned nothing
PROMPTS, PROMPT, CONTINUED = 16, 32, 64  # greedy texts, tokens of their beginnings and of them


@dataclass(frozen=True, slots=True)
class Texts:
    """Windows of token ids [W, L]: to learn from, to set thresholds by, to measure on."""

    learned: Tensor
    thresholds: Tensor
    measured: Tensor
    measured_name: str

    @classmethod
    def read(
        cls,
        model: Path,
        data: Path,
        holdout: Path | None,
        num_tokens: int,
        window: int,
        vocabulary: int,
    ) -> Texts:
        """Raises ModelError, naming the flag of what is missing, not text, or too short."""
        tokenizer = read_tokenizer(model)
        start = bos_ids(model, tokenizer)
        found = read_windows(data, "--data", tokenizer, window, start, num_tokens)
        windows = _enough([*found], "--data", data, LEAST_WINDOWS)
        if holdout is None:
            count = max(2, round(len(windows) * HELD_OUT))
            windows, held_out = windows[:-count], windows[-count:]
        else:
            most = max(2 * window, round(num_tokens * HELD_OUT))
            found = read_windows(holdout, "--holdout", tokenizer, window, start, most)
            held_out = _enough([*found], "--holdout", holdout, 2)
        check_ids((windows, held_out), vocabulary)
        half = len(held_out) // 2
        return cls(windows, held_out[:half], held_out[half:], (holdout or data).name)

    @property
    def digest(self) -> str:
        """Of all tokens."""
        digest = blake2b(digest_size=16)
        for windows in (self.learned, self.thresholds, self.measured):
            digest.update(windows.numpy().tobytes())
        return digest.hexdigest()


def _enough(windows: list[Tensor], flag: str, path: Path, least: int) -> Tensor:
    if len(windows) < least:
        size = len(windows[0])
        raise ModelError(
            f"{flag}: {path} has {len(windows)} windows of {size} tokens, {least} are needed: "
            "give more text, more --tokens or a smaller --window"
        )
    return torch.stack(windows)


def train_predictor(
    model: Path, out: Path, data: Path, recipe: Recipe, *,
    holdout: Path | None = None, num_tokens: int = 200_000, window: int = 512,
    device: str = "auto",
) -> Measured:  # fmt: skip
    """Everything from text to a folder of predictors, which is whole or not there.

    Raises ModelError, naming the flag, before anything is made where it can be known.
    """
    check_destination(out, empty=True)
    config = read_config(model)[1]
    recipe = _settled(recipe, config)
    if not 2 <= window <= config.max_positions:
        raise ModelError(f"--window: {window} is not 2 to the model's {config.max_positions}")
    where = choose_device(device)
    dtype = choose_dtype("auto", where, config)
    # On a CPU torch's products: ours are for the few tokens of decoding, and windows are long.
    backends = ("reference",) if where.type == "cpu" else ops.BACKENDS
    decoder = load(model, where, dtype, progress=True, backends=backends).decoder
    layers_of(decoder)
    texts = Texts.read(model, data, holdout, num_tokens, window, config.vocab_size)
    base = Identity.of(model, decoder.config)
    parts = LayerParts(out, _begun(recipe, texts, base))
    chosen = _make(decoder, texts, recipe, parts)
    parts.write_config(_config(recipe, texts, base, chosen, data))
    attach(decoder, parts.folder, base)
    decoder.prepare(where, decoder.num_positions)
    measured = measure(decoder, texts)
    parts.write_config(_config(recipe, texts, base, chosen, data) | {"measured": asdict(measured)})
    parts.publish(len(chosen))
    return measured


def _settled(recipe: Recipe, config: ModelConfig) -> Recipe:
    """With what follows from the model's sizes; raises ModelError, naming the flag."""
    if not 0 < recipe.recall <= 1:
        raise ModelError(f"--recall: {recipe.recall:g} is not above 0 and at most 1")
    if recipe.bits not in BITS:
        raise ModelError(f"--bits: {recipe.bits} is neither of {BITS}")
    if recipe.rank < 0 or recipe.rank > config.hidden_size:
        raise ModelError(f"--rank: {recipe.rank} is not 1 to hidden_size {config.hidden_size}")
    if not recipe.rank:
        rank = -(-config.hidden_size // 4 // RANK_MULTIPLE) * RANK_MULTIPLE
        recipe = replace(recipe, rank=min(config.hidden_size, rank))
    if not recipe.group:
        recipe = replace(recipe, group=math.gcd(config.hidden_size, 2 * SLOTS))
    return recipe


def _begun(recipe: Recipe, texts: Texts, base: Identity) -> dict[str, object]:
    return asdict(recipe) | {"text": texts.digest} | base.json()


def _make(decoder: Decoder, texts: Texts, recipe: Recipe, parts: LayerParts) -> list[Chosen]:
    """Every layer's predictor that is not finished yet; raises ModelError where they are no use."""
    residuals = Residuals(decoder, torch.cat((texts.learned, texts.thresholds)))
    num_learned = len(texts.learned)
    found: list[Chosen] = []
    for i, ffn in enumerate(track(layers_of(decoder), "Making predictors")):
        residuals.advance(i)
        chosen = parts.finished(i)
        if chosen is None:
            norm = decoder.layers[i].get_submodule("ffn_norm")
            assert isinstance(norm, Norm)
            layer = Layer(i, neurons_of(ffn), norm, decoder.ops)
            tensors = MAKERS[recipe.kind](layer, residuals.read(0, num_learned), recipe)
            made = PREDICTORS[recipe.kind].of(tensors, layer.neurons, 0.0, decoder.ops)
            chosen = choose_threshold(made, layer, residuals.read(num_learned), recipe.recall)
            parts.finish(i, made.tensors(), chosen)
        found.append(chosen)
        print(f"layer {i + 1} of {len(decoder.layers)}: {chosen}", flush=True)
    kept = sum(chosen.kept for chosen in found) / len(found)
    if kept > USELESS:
        raise ModelError(
            f"{kept:.0%} of the neurons must be kept for a recall of {recipe.recall:g}: "
            f"{recipe.described()} is too small, or --tokens are too few; nothing was written"
        )
    return found


def _config(
    recipe: Recipe, texts: Texts, base: Identity, chosen: list[Chosen], data: Path
) -> dict[str, object]:
    layers = {name: [getattr(c, name) for c in chosen] for name in ("recall", "kept", "active")}
    return {
        "type": recipe.kind,
        **recipe.described(),
        "thresholds": [c.threshold for c in chosen],
        **base.json(),
        "trained": {
            "text": data.name,
            "num_tokens": texts.learned.numel() if recipe.kind != "sketch" else 0,
            "threshold_tokens": texts.thresholds.numel(),
            **asdict(recipe),
            "layers": layers,
        },
    }


def measure(decoder: Decoder, texts: Texts) -> Measured:
    """What the attached predictors cost on text that nothing was made from."""
    exact = Run("exact", decoder, threshold=-math.inf, skips=False)
    approximate = Run("approximate", decoder)
    first, other = compare([exact, approximate], texts.measured, batch_sizes=(1,))
    length = texts.measured.shape[1]
    prompt = min(PROMPT, length)
    continued = min(CONTINUED, decoder.num_positions - prompt)
    prompts = texts.measured[:PROMPTS, :prompt]
    greedy = continue_both(exact, approximate, prompts, max(1, continued))
    assert other.agreement is not None
    assert other.skipping is not None
    return Measured(
        text=texts.measured_name,
        num_tokens=other.num_tokens,
        kept=other.skipping.kept,
        active=other.skipping.active,
        recall=other.skipping.recall,
        perplexity_exact=first.perplexity,
        perplexity=other.perplexity,
        nats=other.agreement.nats,
        greedy=greedy.common,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `turbosparse train-predictor`."""
    recipe = Recipe()
    parser.add_argument("model", type=Path, help="directory of a ReLU model")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--data", type=Path, required=True, help="UTF-8 text, .gz or not")
    parser.add_argument("--holdout", type=Path, help="text; the last tenth of --data by default")
    parser.add_argument("--kind", choices=sorted(MAKERS), default=recipe.kind)
    parser.add_argument("--rank", type=int, help="of low_rank; a quarter of hidden_size by default")
    parser.add_argument("--bits", type=int, default=recipe.bits, help="of sketch, 3 or 4")
    parser.add_argument("--group", type=int, help="of sketch: columns that share a scale; 64")
    parser.add_argument("--recall", type=float, default=recipe.recall, help="of active neurons")
    parser.add_argument("--tokens", type=int, default=200_000, help="of --data at most")
    parser.add_argument("--window", type=int, default=512, help="tokens that are read together")
    parser.add_argument("--epochs", type=int, default=recipe.epochs)
    parser.add_argument("--batch", type=int, default=recipe.batch, help="tokens of a step")
    parser.add_argument("--learning-rate", type=float, default=recipe.learning_rate)
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=int, default=recipe.seed)


def run(arguments: argparse.Namespace) -> None:
    """Make what the parsed flags ask for; raises ModelError."""
    for name in ("rank", "group", "tokens", "epochs", "batch"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ModelError(f"--{name}: {value} is not positive")
    recipe = Recipe(
        kind=arguments.kind,
        rank=arguments.rank or 0,
        bits=arguments.bits,
        group=arguments.group or 0,
        recall=arguments.recall,
        epochs=arguments.epochs,
        batch=arguments.batch,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
    )
    measured = train_predictor(
        arguments.model,
        arguments.out,
        arguments.data,
        recipe,
        holdout=arguments.holdout,
        num_tokens=arguments.tokens,
        window=arguments.window,
        device=arguments.device,
    )
    print(f"wrote {arguments.out}: {measured}")
