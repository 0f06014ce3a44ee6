"""Runs schedules on the model: launch returns at once where the device is asynchronous, settle reads.

Owns everything that lives on the device: weights, K/V pages, rows.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..models import calibration
from ..models.attention import LayerCache
from ..models.batch import FfnMode
from ..models.config import ModelError
from ..models.decoder import Decoder
from ..models.kernels import ops
from ..models.load import DTYPES, LoadedModel, load, read_config
from ..models.sparsity.policy import FfnPolicy
from . import inputs, kv_cache, sampler
from .config import EngineConfig
from .messages import EngineInfo, TokenLogprobs
from .request import Request
from .rows import Rows
from .sampler import DeviceLogprobs
from .scheduler import Sampled, Schedule

MEASURE_EVERY = 16  # steps between two measurements of the active fraction


@dataclass(frozen=True, slots=True)
class Launched:
    """A step under way: its ids are on the device, or on their way to the host."""

    schedule: Schedule
    sampling: list[Request]
    token_ids: Tensor  # [S] int64, on the host once `ready` has happened
    logprobs: DeviceLogprobs | None
    ready: torch.cuda.Event | None
    ffn_mode: FfnMode
    active: Tensor | None


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
    ) -> None:
        self.decoder = decoder
        self.policy = policy
        self.caches = caches
        self.rows = rows
        self.page_size = page_size
        self.eos_token_ids = eos_token_ids
        self.num_steps = 0

    @torch.inference_mode()
    def launch(self, schedule: Schedule) -> Launched:
        """Start one step. Sampled ids are left in the rows, where the next step finds them."""
        for item in schedule.items:
            if item.request.row is None:
                self.rows.admit(item.request)
            self.rows.write_pages(item.request)
        mode = self.policy.mode_for(sum(item.num_tokens for item in schedule.items))
        active = self._measure()
        step = inputs.gather(schedule, self.rows, self.page_size, mode, active)
        if not step.sampling:
            self.decoder.hidden(step.batch, self.caches)
            nothing = torch.empty(0, dtype=torch.int64)
            return Launched(schedule, [], nothing, None, None, mode, active)
        logits = self.decoder(step.batch, self.caches)
        token_ids, logprobs = sampler.sample(logits, step.sampling, self.rows, self.eos_token_ids)
        self.rows.last_token[[request.row for request in step.sampling]] = token_ids
        host_ids, ready = _to_host(token_ids)
        return Launched(schedule, step.sampling, host_ids, logprobs, ready, mode, active)

    def settle(self, launched: Launched) -> Sampled:
        """Wait for the step and read what it sampled."""
        if launched.ready is not None:
            launched.ready.synchronize()
        logprobs = _read_logprobs(launched.logprobs, launched.sampling)
        active = launched.active
        return Sampled(
            tokens=[
                (request, token_id, logprobs.get(i))
                for i, (request, token_id) in enumerate(
                    zip(launched.sampling, launched.token_ids.tolist(), strict=True)
                )
            ],
            ffn_mode=launched.ffn_mode.value,
            active_fraction=None if active is None else active.mean().item(),
        )

    def release(self, request: Request) -> None:
        self.rows.release(request)

    def is_fatal(self, error: Exception) -> bool:
        """A CUDA error poisons the context: nothing on the device works after it."""
        return isinstance(error, torch.AcceleratorError)

    def _measure(self) -> Tensor | None:
        """Where this step writes each layer's active fraction, if it is its turn and has one."""
        self.num_steps += 1
        config = self.decoder.config
        if self.num_steps % MEASURE_EVERY or not config.activation.is_sparse:
            return None
        return torch.zeros(config.num_layers, device=self.rows.device)


def _to_host(token_ids: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    if token_ids.device.type != "cuda":
        return token_ids, None
    host = torch.empty(token_ids.shape, dtype=token_ids.dtype, pin_memory=True)
    host.copy_(token_ids, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record()
    return host, ready


def _read_logprobs(
    logprobs: DeviceLogprobs | None, requests: list[Request]
) -> dict[int, TokenLogprobs]:
    """Place among the step's sampling requests -> what it asked for."""
    if logprobs is None:
        return {}
    read: dict[int, TokenLogprobs] = {}
    top_ids, top = logprobs.top_ids.tolist(), logprobs.top.tolist()
    for i, (index, sampled) in enumerate(
        zip(logprobs.indices, logprobs.sampled.tolist(), strict=True)
    ):
        wanted = requests[index].sampling.logprobs or 0
        pairs = list(zip(top_ids[i][:wanted], top[i][:wanted], strict=True))
        read[index] = TokenLogprobs(sampled, pairs)
    return read


def build_runner(config: EngineConfig) -> tuple[ModelRunner, EngineInfo]:
    """Load the model, measure its FFN modes and take the memory; raises ModelError."""
    directory = Path(config.model)
    device, dtype = _device(config.device), _dtype(config, directory)
    max_positions = read_config(directory)[1].max_positions
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
        num_positions=max_positions,
        progress=True,
    )
    ops.set_num_threads(config.num_threads or len(os.sched_getaffinity(0)), model.decoder.ops)
    num_pages = kv_cache.choose_num_pages(config, model.config, max_model_len, device, dtype)
    runner = ModelRunner(
        model.decoder,
        _policy(config, model),
        kv_cache.allocate(model.config, num_pages, config.page_size, device, dtype),
        Rows(
            config.max_num_seqs,
            -(-max_model_len // config.page_size),
            model.config.vocab_size,
            device,
        ),
        config.page_size,
        model.eos_token_ids,
    )
    return runner, _info(config, model, runner, max_model_len, num_pages, device, dtype)


@torch.inference_mode()
def _policy(config: EngineConfig, model: LoadedModel) -> FfnPolicy:
    if config.ffn_mode is None:
        return calibration.calibrate(model.decoder, config.max_num_batched_tokens)
    return FfnPolicy.always(FfnMode(config.ffn_mode))


def _info(
    config: EngineConfig,
    model: LoadedModel,
    runner: ModelRunner,
    max_model_len: int,
    num_pages: int,
    device: torch.device,
    dtype: torch.dtype,
) -> EngineInfo:
    return EngineInfo(
        model=config.model,
        family=model.config.family,
        exact=model.exact,
        approximation=model.approximation,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        kernels=model.kernels,
        num_parameters=model.num_parameters,
        vocab_size=model.config.vocab_size,
        max_model_len=max_model_len,
        page_size=config.page_size,
        num_pages=num_pages,
        max_num_seqs=config.max_num_seqs,
        eos_token_ids=list(model.eos_token_ids),
        ffn_modes=runner.policy.table(),
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"device={name!r} is not a device: cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device={name!r}: this machine has no CUDA device that torch can use")
    return device


def _dtype(config: EngineConfig, directory: Path) -> torch.dtype:
    """fp32 on a CPU, where our kernels compute in it; the checkpoint's own on a GPU."""
    name = config.dtype
    if name == "auto":
        on_cpu = _device(config.device).type == "cpu"
        name = "float32" if on_cpu else read_config(directory)[1].dtype
    if name not in DTYPES:
        raise ModelError(f"dtype={name!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[name]
