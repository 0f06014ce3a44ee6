"""Which runs of a model are compared on text: as served, dense, without its mask, approximate,
reading a part of the context."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..batch import FfnMode
from ..config import ModelConfig, ModelError
from ..decoder import Decoder
from ..load import LoadedModel
from ..neurons import predictors_of
from ..progress import track
from ..sparsity.predictor import LowRankPredictor, NeuronPredictor
from . import page_quality
from .fidelity import Continuations, Measured, Run, compare, continue_both
from .page_quality import Quality
from .text import bos_ids, check_ids, read_tokenizer, read_windows

STEP = 64  # tokens: the largest step whose neurons are skipped on a GPU too
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 16, 32, 64  # of the greedy texts
LARGEST_WINDOW = 2048
THRESHOLDS = (-2.0, -1.0, 0.5, 1.0)
EXACT, DENSE, MASK_OFF, APPROXIMATE = "exact", "dense", "mask off", "approximate"


@dataclass(frozen=True, slots=True)
class PagePlan:
    """At which budgets attention is to read a part of the context, and what chooses it."""

    kinds: tuple[str, ...]
    budgets: tuple[int, ...]  # tokens
    page_size: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. `thresholds` None: `THRESHOLDS`, where the model's predictors tell
    log-odds. `pages` None: every token reads all of its context."""

    text: Path
    num_tokens: int
    window: int
    batch_sizes: tuple[int, ...]
    thresholds: tuple[float, ...] | None
    seed: int
    pages: PagePlan | None = None


@dataclass(frozen=True, slots=True)
class OnText:
    """What was measured, and on how much."""

    window: int
    num_windows: int
    runs: list[Measured]
    continuations: dict[str, Continuations]  # of the run with this name, and the first one
    attention: Quality | None  # where a part of the context is read

    def as_json(self) -> dict[str, Any]:
        """Without `attention`."""
        return {
            "window": self.window,
            "num_windows": self.num_windows,
            "num_tokens": self.runs[0].num_tokens,
            "runs": [run.as_json() for run in self.runs],
            "continuations": {name: asdict(c) for name, c in self.continuations.items()},
        }


def evaluate(model: LoadedModel, directory: Path, plan: Plan) -> OnText:
    """Measure a loaded model on a text; raises ModelError, naming what cannot be."""
    windows = read(model.decoder, directory, plan)
    runs = runs_of(model, plan.thresholds)
    shuffled = list(windows)  # so that neighbours are of different articles
    random.Random(plan.seed).shuffle(shuffled)
    measured = compare(
        runs, track(shuffled, "Measuring"), batch_sizes=plan.batch_sizes, seed=plan.seed
    )
    continuations = _continuations(runs, shuffled)
    attention = _attention(runs[0], shuffled, plan)
    return OnText(len(windows[0]), len(windows), measured, continuations, attention)


def _attention(exact: Run, windows: list[Tensor], plan: Plan) -> Quality | None:
    """What a part of the context costs, beside all the neurons that the first run computes."""
    if plan.pages is None:
        return None
    return page_quality.measure(
        exact.decoder,
        windows,
        plan.text.name,
        plan.pages.kinds,
        plan.pages.budgets,
        plan.pages.page_size,
        exact.threshold,
    )


def choose_window(asked: int | None, config: ModelConfig) -> int:
    """The context, at most `LARGEST_WINDOW`, where nothing is asked; raises ModelError."""
    window = asked or min(config.max_positions, LARGEST_WINDOW)
    if window > config.max_positions:
        raise ModelError(
            f"--window={window} is more than the model's {config.max_positions} positions"
        )
    return window


def read(decoder: Decoder, directory: Path, plan: Plan) -> list[Tensor]:
    """The windows of the plan's text: token ids alone, at most as many as it says."""
    tokenizer = read_tokenizer(directory)
    start = bos_ids(directory, tokenizer)
    found = list(read_windows(plan.text, "--text", tokenizer, plan.window, start, plan.num_tokens))
    check_ids(found, decoder.config.vocab_size)
    return found


def runs_of(model: LoadedModel, thresholds: Sequence[float] | None) -> list[Run]:
    """The first one is exact; the others are held against it."""
    decoder = model.decoder
    if not decoder.config.activation.is_sparse:
        if thresholds:
            activation = decoder.config.activation.value
            raise ModelError(f"--thresholds: nothing can be skipped in a {activation} model")
        return [Run(EXACT, decoder)]
    predictors = predictors_of(decoder)
    if thresholds and not predictors:
        raise ModelError("--thresholds: this model has no predictors; --predictors adds some")
    # beside separate predictors an exact request keeps every neuron: what is zero is zero by itself
    own = None if model.exact else -math.inf
    runs = [
        Run(EXACT, decoder, FfnMode.UNION, own, STEP),
        Run(DENSE, decoder, FfnMode.DENSE, own, skips=False),
    ]
    if not model.exact:
        runs.append(Run(APPROXIMATE, decoder, FfnMode.UNION, None, STEP))
    elif predictors:
        runs.append(Run(MASK_OFF, decoder, threshold=-math.inf))
    sweep = _default_thresholds(predictors) if thresholds is None else thresholds
    runs += [Run(f"threshold {t:g}", decoder, threshold=t) for t in sorted(set(sweep))]
    return runs


def _default_thresholds(predictors: Sequence[NeuronPredictor]) -> tuple[float, ...]:
    """For scores that are log-odds; others have a scale that nothing here knows."""
    are_odds = all(isinstance(predictor, LowRankPredictor) for predictor in predictors)
    return THRESHOLDS if predictors and are_odds else ()


def _continuations(runs: Sequence[Run], windows: Sequence[Tensor]) -> dict[str, Continuations]:
    """Greedy texts of all runs but the thresholds', from the beginnings of windows."""
    length = min(PROMPT_TOKENS, len(windows[0]))
    room = runs[0].decoder.num_positions - length
    prompts = torch.stack([ids[:length] for ids in windows[:PROMPTS]])
    if room < 1:
        return {}
    return {
        run.name: continue_both(runs[0], run, prompts, min(NEW_TOKENS, room))
        for run in track(runs[1:], "Continuing")
        if run.name in (DENSE, MASK_OFF, APPROXIMATE)
    }
