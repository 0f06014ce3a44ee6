"""What separate predictors find, and what they cost: every kind at several recalls, one table.

`--strip` takes a TurboSparse checkpoint's own predictors out first: what is left is a dReLU model
without a mask, which is another function, and good to try this on.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from turbosparse.models.artifact import layers_of, neurons_of
from turbosparse.models.load import choose_device, choose_dtype, load, read_config
from turbosparse.models.sparsity.kinds import PREDICTORS
from turbosparse.models.tools.fidelity import Run, compare
from turbosparse.models.tools.imitation import MAKERS, Chosen, Layer, Recipe, choose_threshold
from turbosparse.models.tools.residuals import Residuals
from turbosparse.models.tools.train_predictor import Texts

GROUP = 64


def strip(model: Path, to: Path) -> Path:
    """The checkpoint without its predictors' tensors."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, to / name)
    tensors = load_file(model / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if ".predictor." not in name}
    save_file(kept, to / "model.safetensors", metadata={"format": "pt"})
    return to


def recipes(hidden: int, base: Recipe) -> dict[str, Recipe]:
    found = {
        f"{bits}-bit sketch": replace(base, kind="sketch", bits=bits, group=GROUP)
        for bits in (4, 3)
    }
    for share in (4, 8):
        found[f"low rank hidden/{share}"] = replace(base, rank=hidden // share)
    return found


def num_bytes(predictor: torch.nn.Module, gate_up: torch.Tensor) -> float:
    """As they are served on a GPU, in 16 bits and less, over one 16-bit gate matrix."""
    tensors = predictor.tensors().values()
    size = sum(t.numel() * (4 if t.dtype is torch.int32 else 2) for t in tensors)
    return size / gate_up.numel()  # half of gate and up, two bytes a number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--holdout", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--recalls", type=float, nargs="+", default=[0.8, 0.9, 0.95, 0.99])
    parser.add_argument("--epochs", type=int, default=Recipe().epochs)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--strip", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.strip:
            arguments.model = strip(arguments.model, Path(folder))
        measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    config = read_config(arguments.model)[1]
    device = choose_device(arguments.device)
    backends = ("reference",) if device.type == "cpu" else ("gpu", "reference")
    dtype = choose_dtype("auto", device, config)
    decoder = load(arguments.model, device, dtype, backends=backends).decoder
    texts = Texts.read(
        arguments.model,
        arguments.data,
        arguments.holdout,
        arguments.tokens,
        arguments.window,
        config.vocab_size,
    )
    ffns, kinds = layers_of(decoder), recipes(config.hidden_size, Recipe(epochs=arguments.epochs))
    residuals = Residuals(decoder, torch.cat((texts.learned, texts.thresholds)))
    num_learned = len(texts.learned)
    made: dict[str, list[torch.nn.Module]] = {name: [] for name in kinds}
    chosen: dict[tuple[str, float], list[Chosen]] = {}
    seconds = dict.fromkeys(kinds, 0.0)
    for i, ffn in enumerate(ffns):
        residuals.advance(i)
        layer = Layer(i, neurons_of(ffn), decoder.layers[i].ffn_norm, decoder.ops)
        for name, recipe in kinds.items():
            started = time.perf_counter()
            tensors = MAKERS[recipe.kind](layer, residuals.read(0, num_learned), recipe)
            seconds[name] += time.perf_counter() - started
            predictor = PREDICTORS[recipe.kind].of(tensors, layer.neurons, 0.0, decoder.ops)
            made[name].append(predictor)
            for recall in arguments.recalls:
                found = choose_threshold(predictor, layer, residuals.read(num_learned), recall)
                chosen.setdefault((name, recall), []).append(found)
    print(f"{texts.learned.numel():,} tokens learned from, {texts.thresholds.numel():,} for")
    print(f"thresholds, {texts.measured.numel():,} measured on ({texts.measured_name})\n")
    (exact,) = compare([Run("exact", decoder)], texts.measured, batch_sizes=(1,))
    active = [layer.active for layer in exact.skipping.layers]
    print(f"exact: loss {exact.loss:.4f}, active {exact.skipping.active:.1%}", end=" ")
    print("by layer " + " ".join(f"{100 * share:.1f}" for share in active) + "\n")
    print("| predictor | bytes | recall asked | kept | recall | loss | KL, nats | same best |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for (name, recall), layers in chosen.items():
        for ffn, predictor, found in zip(ffns, made[name], layers, strict=True):
            predictor.threshold = found.threshold
            ffn.predictor = predictor
        runs = [Run("exact", decoder, threshold=-math.inf, skips=False), Run("this", decoder)]
        _, other = compare(runs, texts.measured, batch_sizes=(1,))
        size = num_bytes(made[name][0], ffns[0].gate_up)
        print(
            f"| {name} | {size:.3f} | {recall:g} | {other.skipping.kept:.1%} "
            f"| {other.skipping.recall:.1%} | {other.loss:.4f} ({other.loss - exact.loss:+.4f}) "
            f"| {other.agreement.nats:.4f} | {other.agreement.same_best:.1%} |",
            flush=True,
        )
    print("\n" + json.dumps({name: round(taken, 1) for name, taken in seconds.items()}))


if __name__ == "__main__":
    main()
