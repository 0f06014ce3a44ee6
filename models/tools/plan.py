"""How a model is made sparse: everything that shapes what comes out, in one frozen record.

The defaults are the paper's (arXiv 2406.05955, section 4) where it says: 150 B tokens in batches of
2048 rows of 4096, cosine from 5e-5 to 5e-6. It leaves open how predictors are trained. Knows no
tensor.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ..config import Activation, ModelConfig, ModelError
from ..fields import Json

ACTIVATIONS = {"drelu": Activation.DRELU, "relu": Activation.RELU}
PRECISIONS = ("bf16", "fp32")


def said(default: object, help: str) -> Any:
    """A field of the plan that is a flag; `help` is what --help says."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, slots=True)
class Plan:
    """None is what the model decides: see `complete`."""

    tokens: int = said(None, "to train on; the paper's run took 150e9")
    activation: str = said("drelu", "drelu (TurboSparse) or relu (the gate alone: ReluLLaMA)")
    rank: int | None = said(
        None, "of each predictor; 0: none [a quarter of hidden_size, a multiple of 64; relu: 0]"
    )
    batch_tokens: int = said(524_288, "of one step; the paper's took 8388608")
    sequence_length: int | None = said(None, "tokens of a row [4096, or the model's positions]")
    learning_rate: float = said(5e-5, "at its peak")
    final_learning_rate: float = said(5e-6, "at the end of the cosine")
    warmup_steps: int | None = said(None, "of rising learning rate [a twentieth of all]")
    weight_decay: float = said(0.01, "of AdamW")
    clip: float = said(1.0, "largest norm of a gradient")
    dense_share: float = said(0.4, "of the steps, before the mask enters the forward pass")
    target: float = said(0.1, "share of a layer's neurons that may be kept for nothing")
    imitation: float = said(1.0, "weight of the predictors' cross-entropy; a tenth with the mask")
    pressure: float = said(100.0, "weight of the squared excess over the target, with the mask")
    distill: float = said(0.0, "weight of the divergence from the original; keeps it in memory")
    temperature: float = said(2.0, "of that divergence")
    precision: str | None = said(None, "bf16 (mixed) or fp32 [bf16 on a GPU]")
    seed: int = said(0, "of the data's order and the predictors' first weights")

    @property
    def num_steps(self) -> int:
        return math.ceil(self.tokens / self.batch_tokens)

    @property
    def rows_per_step(self) -> int:
        return self.batch_tokens // (self.sequence_length or 1)

    def is_masked(self, step: int) -> bool:
        """Whether the predictor's mask stands in the forward pass of a step, counted from 0."""
        return bool(self.rank) and step >= round(self.dense_share * self.num_steps)

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def complete(given: dict[str, Any], config: ModelConfig, *, gpu: bool) -> Plan:
    """The plan that flags ask for, what is None decided; raises ModelError, naming a flag."""
    relu = given["activation"] == "relu"
    chosen: dict[str, Any] = {
        "rank": 0 if relu else max(64, round(config.hidden_size / 4 / 64) * 64),
        "sequence_length": min(4096, config.max_positions),
        "precision": "bf16" if gpu else "fp32",
    }
    plan = Plan(**given | {k: v for k, v in chosen.items() if given[k] is None})
    _check(plan, config)
    if plan.warmup_steps is None:
        return replace(plan, warmup_steps=plan.num_steps // 20)
    return plan


def _check(plan: Plan, config: ModelConfig) -> None:
    for name in ("tokens", "batch_tokens", "sequence_length", "clip", "temperature"):
        _hold(plan, name, lambda value: value > 0, "is not positive")
    for name in ("rank", "warmup_steps", "weight_decay", "imitation", "pressure", "distill"):
        _hold(plan, name, lambda value: value is None or value >= 0, "is negative")
    for name in ("dense_share", "target"):
        _hold(plan, name, lambda value: 0 <= value <= 1, "is not a share: between 0 and 1")
    peak, length = plan.learning_rate, plan.sequence_length or 0
    _hold(plan, "learning_rate", lambda value: value > 0, "is not positive")
    _hold(plan, "final_learning_rate", lambda v: 0 <= v <= peak, f"is not between 0 and {peak:g}")
    _hold(plan, "activation", lambda value: value in ACTIVATIONS, "is none of drelu, relu")
    _hold(plan, "precision", lambda value: value in PRECISIONS, "is none of bf16, fp32")
    positions = config.max_positions
    _hold(plan, "sequence_length", lambda v: 1 < v <= positions, f"is not in 2 .. {positions}")
    _hold(plan, "batch_tokens", lambda v: v % length == 0, f"is no multiple of rows of {length}")
    steps = plan.num_steps
    _hold(plan, "warmup_steps", lambda v: (v or 0) <= steps, f"is more than all {steps} steps")
    if plan.activation == "relu" and plan.rank:
        raise ModelError(
            f"--rank {plan.rank}: no published layout has a predictor behind --activation relu. "
            "Leave it out; train-predictor makes a separate one afterwards"
        )


def _hold(plan: Plan, name: str, is_right: Callable[[Any], bool], problem: str) -> None:
    value = getattr(plan, name)
    if not is_right(value):
        shown = f"{value:g}" if isinstance(value, float) else value
        raise ModelError(f"--{name.replace('_', '-')} {shown} {problem}")


def check_same(before: Json, now: Json) -> None:
    """Raise ModelError with the first field in which an interrupted run was another one."""
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise ModelError(
                f"--resume: {name} was {before.get(name)!r} and is now {now.get(name)!r}"
            )


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for each field of the plan."""
    for entry in fields(Plan):
        shown = "" if entry.default is None else f" [{entry.default}]"
        parser.add_argument(
            f"--{entry.name.replace('_', '-')}",
            type=PARSERS[str(entry.type).removesuffix(" | None")],
            default=entry.default,
            required=entry.name == "tokens",
            help=entry.metadata["help"] + shown,
        )


def plan_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    return {entry.name: getattr(arguments, entry.name) for entry in fields(Plan)}


def _whole(text: str) -> int:
    """A count, which may be written as 1e9."""
    value = float(text)
    if not value.is_integer():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number")
    return int(value)


PARSERS = {"int": _whole, "float": float, "str": str}
