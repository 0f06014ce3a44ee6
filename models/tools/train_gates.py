"""Trains attention gates: text in, a folder for `serve --attention-gates` out.

The model is frozen and runs in our own decoder, so every family that is served can be trained
beside: what a gate learns from, a layer's queries, keys and the attention they make, is nothing
that a trainer of whole models would have to differentiate.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig, ModelError, check_page_size
from ..decoder import Decoder
from ..identity import Identity
from ..kernels import ops
from ..kernels.reference_pages import MIN_BUDGET
from ..load import DTYPES, load, read_config
from ..progress import bar
from ..sparsity.gates import own as gates_of
from .gate_artifact import HeldOut, begin, publish
from .output import check_destination
from .page_mass import divergence, look, sample_places
from .page_quality import Quality, check_budgets
from .text import bos_ids, read_tokenizer, read_windows

HELD_OUT, MOST_HELD_OUT = 0.1, 16  # of the windows, where no file is given for it
SAVE_EVERY = 20  # windows


@dataclass(frozen=True, slots=True)
class Recipe:
    """How gates are trained. Sizes in tokens."""

    rank: int = 32
    page_size: int = 16
    window: int = 1024
    tokens: int = 500_000
    places: int = 64  # of a window, whose attention is learned from
    rate: float = 2e-3
    seed: int = 0


def train_gates(
    model: Path,
    out: Path,
    data: Path,
    recipe: Recipe,
    *,
    holdout: Path | None = None,
    budgets: Sequence[int] = (),
    device: torch.device | None = None,
) -> Quality:
    """Everything from text to a folder of gates, which is whole or not there.

    A run that was killed goes on where it last saved. Raises ModelError, naming the flag.
    """
    check_destination(out, empty=True)
    config = read_config(model)[1]
    budgets = _checked(recipe, config, budgets)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = DTYPES[config.dtype] if device.type == "cuda" else torch.float32
    decoder = load(model, device, dtype, progress=True).decoder
    ops.set_num_threads(len(os.sched_getaffinity(0)), decoder.ops)
    learned, held_out = _texts(model, data, holdout, recipe)
    begun = asdict(recipe) | {"data": data.name} | Identity.of(model, decoder.config).json()
    saved = Saved(out, begun)
    run = Run(decoder, recipe, saved)
    run.train(learned)
    measured_on = HeldOut((holdout or data).name, held_out)
    size = recipe.page_size
    quality = publish(out, decoder, run.gates, measured_on, budgets, size, begun)
    saved.remove()
    return quality


def _checked(recipe: Recipe, config: ModelConfig, budgets: Sequence[int]) -> list[int]:
    """The budgets to measure at, in order; raises ModelError, naming the flag."""
    least = MIN_BUDGET * recipe.page_size
    if not 1 <= recipe.rank <= 2 * config.head_dim:
        raise ModelError(f"--rank: {recipe.rank} is not 1 to {2 * config.head_dim}, two heads")
    check_page_size("--page-size", recipe.page_size)
    if not 2 * least <= recipe.window <= config.max_positions:
        raise ModelError(
            f"--window: {recipe.window} is not {2 * least} to the model's {config.max_positions}"
        )
    wanted = budgets or [max(least, recipe.window // n) for n in (8, 4, 2)]
    return check_budgets("--budgets", wanted, recipe.page_size, recipe.window, "the window")


def _texts(
    model: Path, data: Path, holdout: Path | None, recipe: Recipe
) -> tuple[list[Tensor], list[Tensor]]:
    """Windows to learn from, and others to measure on; raises ModelError, naming the flag."""
    tokenizer = read_tokenizer(model)
    start, length = bos_ids(model, tokenizer), recipe.window
    windows = [*read_windows(data, "--data", tokenizer, length, start, recipe.tokens)]
    if holdout is not None:
        most = MOST_HELD_OUT * length
        return windows, [*read_windows(holdout, "--holdout", tokenizer, length, start, most)]
    if len(windows) < 2:
        raise ModelError(
            f"--data: {data} has one window of {length} tokens, none is left to measure on: give "
            "more text, a --holdout or a smaller --window"
        )
    count = min(MOST_HELD_OUT, max(1, round(len(windows) * HELD_OUT)))
    return windows[:-count], windows[-count:]


class Run:
    """Gates under way: one a layer, each learning for itself."""

    def __init__(self, decoder: Decoder, recipe: Recipe, saved: Saved) -> None:
        self.decoder, self.recipe, self.saved = decoder, recipe, saved
        self.gates = begin(decoder.config, recipe.rank, decoder.embedding.device, recipe.seed)
        parameters = [p for gate in self.gates for p in gate.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=0.0)

    def train(self, windows: list[Tensor]) -> None:
        """Once over the windows, from where an earlier run was."""
        first, losses = self._resume(), list[float]()
        with bar("Training gates", len(windows)) as advance:
            for number, ids in enumerate(windows):
                advance()
                if number < first:
                    continue
                losses += self._step(ids, number, len(windows))
                done = number + 1
                if done % SAVE_EVERY == 0 or done == len(windows):
                    self._save(done)
                    mean = sum(losses) / len(losses)
                    losses.clear()
                    print(f"{done} of {len(windows)} windows: {mean:.4f} nats off", flush=True)

    def _step(self, ids: Tensor, number: int, total: int) -> list[float]:
        recipe = self.recipe
        for group in self.optimizer.param_groups:  # linearly to zero
            group["lr"] = recipe.rate * (1 - number / total)
        seen = look(self.decoder, ids.to(self.decoder.embedding.device))
        seed = (recipe.seed, number)
        places = sample_places(recipe.places, len(ids), recipe.page_size, seed).to(seen[0].q.device)
        losses: list[float] = []
        self.optimizer.zero_grad()
        for gate, one in zip(self.gates, seen, strict=True):
            with torch.enable_grad():
                loss = divergence(one, gate.projections, places, recipe.page_size)
            loss.backward()
            losses.append(loss.item())
        self.optimizer.step()
        return losses

    def _save(self, done: int) -> None:
        gates = [gate.state_dict() for gate in self.gates]
        state = {"gates": gates, "optimizer": self.optimizer.state_dict(), "done": done}
        self.saved.write(state)

    def _resume(self) -> int:
        """The windows that are done with."""
        state = self.saved.read()
        if state is None:
            return 0
        for gate, values in zip(self.gates, state["gates"], strict=True):
            gate.load_state_dict(values)
        self.optimizer.load_state_dict(state["optimizer"])
        print(f"going on after {state['done']} windows", flush=True)
        return state["done"]


class Saved:
    """`OUT.state`: how far a run is that may be killed, and what it was begun with."""

    def __init__(self, out: Path, begun: dict[str, object]) -> None:
        self._path = out.with_name(out.name + ".state")
        self._begun: dict[str, object] = json.loads(json.dumps(begun))

    def write(self, state: dict[str, Any]) -> None:
        """Whole or not at all; raises ModelError where it cannot be written."""
        beside = self._path.with_name(self._path.name + ".part")
        try:
            torch.save({"begun": self._begun, **state}, beside)
            os.replace(beside, self._path)
        except (OSError, RuntimeError) as error:  # torch's own for a full disk
            raise ModelError(f"--out: {self._path} cannot be written: {error}") from error

    def read(self) -> dict[str, Any] | None:
        """What an earlier run left; raises ModelError, naming what it was begun with otherwise."""
        if not self._path.is_file():
            return None
        try:
            state = torch.load(self._path, weights_only=True)
            before = state["begun"]
        except Exception as error:  # a damaged file fails in any way
            raise ModelError(f"{self._path} is damaged: remove it to begin anew") from error
        for name, now in self._begun.items():
            if before.get(name) != now:
                raise ModelError(
                    f"{self._path} was begun with {name}={before.get(name)!r}, now it is {now!r}: "
                    "go on as it was begun, or remove it"
                )
        return state

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `turbosparse train-gates`."""
    recipe = Recipe()
    parser.add_argument("model", type=Path, metavar="MODEL", help="checkpoint directory")
    parser.add_argument("--data", type=Path, required=True, help="text to learn from, or .gz of it")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--holdout", type=Path, help="text to measure on; default: the end of DATA")
    for name, help in (
        ("rank", "of the projections of queries and keys"),
        ("page_size", "of the server's K/V pages"),
        ("window", "tokens that are read together"),
        ("tokens", "tokens to learn from, at most"),
        ("places", "of a window, whose attention is learned from"),
        ("seed", "of what is random"),
    ):
        value = getattr(recipe, name)
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=value, help=f"{help} (default: {value})")
    parser.add_argument("--rate", type=float, default=recipe.rate, help="of learning")
    parser.add_argument(
        "--budgets", type=int, nargs="+", default=[], help="tokens to measure at, one or several"
    )


def run(arguments: argparse.Namespace) -> None:
    """Train what the parsed flags ask for, and print what came out; raises ModelError."""
    recipe = Recipe(**{field.name: getattr(arguments, field.name) for field in fields(Recipe)})
    quality = train_gates(
        arguments.model,
        arguments.out,
        arguments.data,
        recipe,
        holdout=arguments.holdout,
        budgets=arguments.budgets,
    )
    print(str(quality).replace("; ", "\n"))
    carried = gates_of(arguments.model)
    is_own = carried is not None and carried.resolve() == arguments.out.resolve()
    flags = "" if is_own else f" --attention-gates {arguments.out}"
    if recipe.page_size != Recipe().page_size:
        flags += f" --page-size {recipe.page_size}"
    print(f"wrote {arguments.out}: turbosparse serve {arguments.model} --attention gate{flags}")
