"""Which steps tell what share of the neurons their tokens keep, on their way."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from ..models.config import ModelConfig
from .scheduler import Schedule, ScheduledRequest

EVERY = 16  # steps between two that do
SECONDS = 10  # between them on a GPU, where one runs without its graph
REPORT_EVERY = {"cpu": 1, "cuda": 16}  # tokens of a request that asks for its own


class Measuring:
    """Every so often one step does, and where a request asks for it."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self._num_steps = 0
        self._next_at = 0.0

    def is_due(self, schedule: Schedule) -> bool:
        """Whether it is this step's turn. On a GPU no first token waits for that."""
        self._num_steps += 1
        if self.device.type == "cpu":
            return self._num_steps % EVERY == 0
        if schedule.num_tokens > len(schedule.items) or time.monotonic() < self._next_at:
            return False
        self._next_at = time.monotonic() + SECONDS
        return True

    def fractions(self, schedule: Schedule, *, is_due: bool) -> Tensor | None:
        """Where this step adds its active fractions [layers, T], if it is its turn, or a request
        asks for them, and has any."""
        if not self.config.activation.is_sparse:
            return None
        if not is_due and not any(_is_reported(item, self.device) for item in schedule.items):
            return None
        return torch.zeros(self.config.num_layers, schedule.num_tokens, device=self.device)


def _is_reported(item: ScheduledRequest, device: torch.device) -> bool:
    """Whether a request wants to know what this step keeps for it: all of it, or on a GPU, where
    measuring costs the graph, its prompt and then one token in so many."""
    request = item.request
    if not request.sampling.report_active:
        return False
    num_output = item.start - request.num_prompt_tokens
    return num_output < 0 or num_output % REPORT_EVERY[device.type] == 0
