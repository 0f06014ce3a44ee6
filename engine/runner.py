"""Runs schedules on the model: launch returns at once on an asynchronous device, settle reads.

Owns everything that lives on the device: weights, K/V pages, rows.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..models import calibration
from ..models.attention import LayerCache
from ..models.batch import FfnMode, ForwardBatch
from ..models.config import ModelError, check_page_size
from ..models.decoder import Decoder
from ..models.kernels import ops
from ..models.load import LoadedModel, choose_device, choose_dtype, load, read_config
from ..models.sequence import random_ids, sequence_batch, sequence_cache
from ..models.sparsity.policy import FfnPolicy
from . import attention, inputs, kv_cache, sampler, scoring
from .config import EngineConfig
from .crew import Crew
from .graphs import StepGraphs, can_capture, decode_sizes
from .inputs import StepInputs
from .logprobs import HostLogprobs
from .measuring import Measuring
from .messages import (
    Activity,
    AttentionInfo,
    EngineInfo,
    FfnTiming,
    PredictorInfo,
    TokenLogprobs,
)
from .request import Request
from .rows import Rows
from .scheduler import Sampled, Schedule
from .scoring import Scored
from .transfer import HostCopy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Launched:
    """A step under way: what it sampled is on its way to the host."""

    sampling: list[Request]
    token_ids: HostCopy  # [S] int64
    logprobs: HostLogprobs | None  # of those that asked
    scored: Scored | None
    ffn_mode: FfnMode
    active: HostCopy | None  # [T], each token's active fraction
    activity: HostCopy | None  # [2, layers], active and union fractions, with `active`
    pages_read: HostCopy | None  # [], the mean share of those who have a page budget
    num_tokens: list[int]  # of each item


class ModelRunner:
    """The engine's hands: one model, its K/V pages, one row a live request."""

    def __init__(
        self,
        decoder: Decoder,
        policy: FfnPolicy,
        caches: list[LayerCache],
        rows: Rows,
        page_size: int,
        eos_token_ids: tuple[int, ...],
        crew: Crew,
        graphs: StepGraphs | None = None,
    ) -> None:
        self.decoder = decoder
        self.policy = policy
        self.caches = caches
        self.rows = rows
        self.page_size = page_size
        self.eos_token_ids = eos_token_ids
        self.crew = crew
        self.graphs = graphs
        self.measuring = Measuring(decoder.config, rows.device)

    @torch.inference_mode()
    def launch(self, schedule: Schedule) -> Launched:
        """Start one step. Sampled ids are left in the rows, where the next step finds them."""
        for item in schedule.items:
            if item.request.row is None:
                self.rows.admit(item.request)
            self.rows.write_pages(item.request)
        mode = self.policy.mode_for(sum(item.num_tokens for item in schedule.items))
        is_due = self.measuring.is_due(schedule)
        active = self.measuring.fractions(schedule, is_due=is_due)
        arguments = (schedule, self.rows, self.page_size, mode, active)
        step = inputs.gather(*arguments, measures_pages=is_due)
        with self.crew.at_work():
            logits, scored = self._forward(step, schedule)
        token_ids, logprobs = torch.empty(0, dtype=torch.int64), None
        if logits is not None:
            token_ids, logprobs = sampler.sample(
                logits, step.sampling, self.rows, self.eos_token_ids, self.decoder.ops
            )
            self.rows.store_sampled(step.sampling_rows, token_ids)
        return Launched(
            step.sampling,
            HostCopy(token_ids),
            None if logprobs is None else HostLogprobs.of(logprobs),
            scored,
            mode,
            None if active is None else HostCopy(active.mean(0)),
            _by_layer(step.batch),
            _pages_read(step.batch, len(self.caches)),
            [item.num_tokens for item in schedule.items],
        )

    def settle(self, launched: Launched) -> Sampled:
        """Wait for the step and read what it sampled."""
        token_ids = [int(t) for t in launched.token_ids.array()]
        logprobs = _read_logprobs(launched.logprobs, launched.sampling)
        active = None if launched.active is None else launched.active.array().astype(np.float64)
        return Sampled(
            tokens=[
                (request, token_id, logprobs.get(i))
                for i, (request, token_id) in enumerate(
                    zip(launched.sampling, token_ids, strict=True)
                )
            ],
            scored=scoring.read(launched.scored),
            ffn_mode=launched.ffn_mode.value,
            activity=_activity(launched.activity),
            pages_read=None if launched.pages_read is None else launched.pages_read.array().item(),
            active=None if active is None else _sums(active, launched.num_tokens),
        )

    def _forward(self, step: StepInputs, schedule: Schedule) -> tuple[Tensor | None, Scored | None]:
        """Logits of the tokens to sample [S, vocab], None where the step samples none; and the
        scores of prompt tokens, where it holds any that are to be scored."""
        batch = step.batch
        measures = batch.active is not None or (batch.budgets and batch.budgets.read is not None)
        asks_nothing = not measures and batch.thresholds is None
        if self.graphs is not None and asks_nothing and not scoring.is_asked_for(schedule):
            logits = self.graphs.run(batch)
            if logits is not None:
                return logits if step.sampling else None, None
        hidden = self.decoder.hidden(batch, self.caches)
        logits = self.decoder.logits(hidden[batch.sample_at]) if step.sampling else None
        return logits, scoring.score(self.decoder, hidden, schedule)

    def release(self, request: Request) -> None:
        self.rows.release(request)

    def is_fatal(self, error: Exception) -> bool:
        """A CUDA error poisons the context: nothing on the device works after it."""
        return isinstance(error, torch.AcceleratorError)

    def is_out_of_memory(self, error: Exception) -> bool:
        """torch has a type for it on a GPU; on a CPU it only says so."""
        found = isinstance(error, torch.OutOfMemoryError | MemoryError)
        return found or "DefaultCPUAllocator: can't allocate memory" in str(error)


def _sums(values: NDArray[np.float64], counts: list[int]) -> list[float]:
    """The sum of each run of so many values."""
    return [float(part.sum()) for part in np.split(values, np.cumsum(counts)[:-1])]


def _by_layer(batch: ForwardBatch) -> HostCopy | None:
    """Active and union fractions on their way to the host [2, layers], where they were measured."""
    if batch.active is None or batch.union is None:
        return None
    return HostCopy(torch.stack([batch.active.mean(1), batch.union]))


def _pages_read(batch: ForwardBatch, num_layers: int) -> HostCopy | None:
    """The mean share of its pages that a token with a page budget has read, where measured []."""
    if batch.budgets is None or batch.budgets.read is None:
        return None
    chosen = batch.budgets.pages > 0
    return HostCopy((batch.budgets.read * chosen).sum() / (num_layers * chosen.sum()))


def _activity(found: HostCopy | None) -> Activity | None:
    if found is None:
        return None
    active, union = found.array().tolist()
    return Activity(active, union)


def _read_logprobs(
    logprobs: HostLogprobs | None, requests: list[Request]
) -> dict[int, TokenLogprobs]:
    """Place among the step's sampling requests -> what it asked for."""
    if logprobs is None:
        return {}
    wanted = {
        i: request.sampling.logprobs
        for i, request in enumerate(requests)
        if request.sampling.logprobs is not None
    }
    return dict(zip(wanted, logprobs.read(list(wanted.values())), strict=True))


def build_runner(config: EngineConfig) -> tuple[ModelRunner, EngineInfo]:
    """Load the model, measure its FFN modes and take the memory; raises ModelError."""
    check_page_size("page_size", config.page_size)
    directory = Path(config.model)
    described = read_config(directory)[1]
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device, described)
    max_positions = described.max_positions
    max_model_len = config.max_model_len or max_positions
    if max_model_len > max_positions:
        raise ModelError(
            f"max_model_len={max_model_len} is more than the model's {max_positions} positions"
        )
    model = load(
        directory,
        device,
        dtype,
        predictors=Path(config.predictors) if config.predictors else None,
        predictor_dtype=config.predictor_dtype,
        num_positions=max_positions,
        progress=True,
    )
    _warm_up(model)
    crew = _crew(config, model)
    sparse = attention.prepare(config, model.decoder, max_model_len)
    num_pages = kv_cache.choose_num_pages(config, model.config, max_model_len, device, dtype)
    caches = kv_cache.allocate(
        model.config, num_pages, config.page_size, device, dtype, summaries=sparse is not None
    )
    if sparse is not None:
        sparse = attention.calibrated(config, sparse, model.decoder, caches, max_model_len)
    policy = _policy(config, model)
    max_pages = -(-max_model_len // config.page_size)
    runner = ModelRunner(
        model.decoder,
        policy,
        caches,
        Rows(config.max_num_seqs, max_pages, model.config.vocab_size, device),
        config.page_size,
        model.eos_token_ids,
        crew,
        _graphs(config, model, caches, policy, max_pages),
    )
    return runner, _info(config, model, runner, max_model_len, num_pages, sparse)


@torch.inference_mode()
def _graphs(
    config: EngineConfig,
    model: LoadedModel,
    caches: list[LayerCache],
    policy: FfnPolicy,
    max_pages: int,
) -> StepGraphs | None:
    """The captured steps, where they can be captured."""
    if not can_capture(model.decoder):
        return None
    graphs = StepGraphs(
        model.decoder,
        caches,
        policy,
        max_tokens=config.max_num_seqs,
        max_pages=max_pages,
        max_piece_tokens=config.max_num_batched_tokens,
    )
    graphs.capture()
    return graphs


@torch.inference_mode()
def _warm_up(model: LoadedModel) -> None:
    """One sampled token, so that no request waits for a kernel to be compiled or loaded."""
    started, decoder = time.perf_counter(), model.decoder
    ids = random_ids(decoder, 4)
    logits = decoder(sequence_batch(ids), sequence_cache(decoder, len(ids)))
    ones = torch.ones(len(ids), device=ids.device)
    decoder.ops.most_likely(logits)
    for limits in (None, (ids + 1, ones, ones)):
        decoder.ops.draw(logits, ones, ones.double() / 2, limits)
    logger.info("kernels ready after %.1f s", time.perf_counter() - started)


def _crew(config: EngineConfig, model: LoadedModel) -> Crew:
    """On a CPU all cores but one, which is the API process's; with two it gets what is left."""
    num_cores = len(os.sched_getaffinity(0))
    num_threads = config.num_threads or max(min(num_cores, 2), num_cores - 1)
    if model.decoder.embedding.device.type != "cpu":
        ops.set_num_threads(num_threads, model.decoder.ops)
        return Crew(1, lambda _: None)
    return Crew(num_threads, lambda n: ops.set_num_threads(n, model.decoder.ops))


@torch.inference_mode()
def _policy(config: EngineConfig, model: LoadedModel) -> FfnPolicy:
    if config.ffn_mode is None:
        graphs = can_capture(model.decoder)
        return calibration.calibrate(
            model.decoder,
            config.max_num_batched_tokens,
            decode_sizes(config.max_num_seqs) if graphs else (),
            graphs=graphs,
            anew=config.recalibrate,
        )
    return FfnPolicy.always(FfnMode(config.ffn_mode))


def _info(
    config: EngineConfig,
    model: LoadedModel,
    runner: ModelRunner,
    max_model_len: int,
    num_pages: int,
    sparse: AttentionInfo | None,
) -> EngineInfo:
    like = model.decoder.embedding
    approximations = [model.approximation, None if sparse is None else attention.describe(sparse)]
    approximation = "; ".join(text for text in approximations if text is not None) or None
    return EngineInfo(
        model=config.model,
        family=model.config.family,
        exact=approximation is None,
        approximation=approximation,
        device=str(like.device),
        dtype=str(like.dtype).removeprefix("torch."),
        kernels=model.kernels,
        num_parameters=model.num_parameters,
        vocab_size=model.config.vocab_size,
        max_model_len=max_model_len,
        page_size=config.page_size,
        num_pages=num_pages,
        max_num_seqs=config.max_num_seqs,
        eos_token_ids=list(model.eos_token_ids),
        sparse=model.config.activation.is_sparse,
        predictors=_predictors(model),
        ffn_modes=runner.policy.table(),
        ffn_timings=_timings(runner.policy),
        attention=sparse,
        synthetic=model.synthetic,
    )


def _predictors(model: LoadedModel) -> PredictorInfo | None:
    """Its own, or those that it was given."""
    thresholds, attached = model.decoder.thresholds, model.predictors
    rounded = model.predictor_dtype
    if not thresholds:
        return None
    if attached is None:  # thresholds are all the same
        return PredictorInfo("low_rank", thresholds[:1], rounded_to=rounded)
    known = attached.measured if rounded is None else None
    measured = None if known is None else asdict(known)
    return PredictorInfo(attached.kind, thresholds, True, measured, rounded)


def _timings(policy: FfnPolicy) -> list[FfnTiming]:
    return [
        FfnTiming(
            size,
            {mode.value: seconds * 1e6 for mode, seconds in times.items()},
            policy.mode_for(size).value,
        )
        for size, times in sorted(policy.seconds.items())
    ]
