"""What a user would run instead, in the same process on the same device: transformers' `generate`
with a static cache and a compiled step, and its continuous batching.

Both run the ordinary dense model of the same shape, random weights of the same dtype. Seconds are
those of a decode step: the median distance between two tokens once all requests are decoding.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GENERATED = 48  # tokens a request; the first half warms up, and compiles
TOGETHER, SETTLING = 18, 2  # tokens of each while all decode, and how many of them do not count
LONGEST = 4096  # tokens of a request that decodes while the others' prompts are computed


class Rival:
    """An ordinary dense model in transformers; needs the `transformers` package."""

    def __init__(self, directory: Path, device: torch.device, dtype: torch.dtype) -> None:
        import transformers

        config = json.loads((directory / "config.json").read_text())
        config = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
        with torch.device(device):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        self.model: Any = model.eval()
        self.transformers: Any = transformers
        self.device = device

    def prompts(self, batch: int, context: int, num_tokens: int) -> Tensor:
        """Random ids such that `num_tokens` after them end at `context`: [B, T]."""
        length = max(1, context - num_tokens)
        generator = torch.Generator().manual_seed(0)
        size = (batch, length)
        return torch.randint(0, self.model.config.vocab_size, size, generator=generator)

    def generation_config(self, num_tokens: int, **options: object) -> Any:
        return self.transformers.GenerationConfig(
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **options,
        )

    def generate(self, batch: int, context: int) -> float:
        """Seconds of a step of `generate`; on a GPU transformers compiles the step by itself.

        What was compiled for another batch is forgotten first: after a few of them the compiler
        would give up in silence, or make their sizes variable.
        """
        torch.compiler.reset()
        times: list[float] = []

        def tick(ids: Tensor, scores: Tensor, **_: object) -> Tensor:
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        criteria = self.transformers.StoppingCriteriaList([tick])
        ids = self.prompts(batch, context, GENERATED).to(self.device)
        self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=self.generation_config(GENERATED, cache_implementation="static"),
            stopping_criteria=criteria,
        )
        return _median_distance(times[GENERATED // 2 :])

    def continuous(self, batch: int, context: int) -> float:
        """Seconds of a step of transformers' continuous batching while all requests decode. The
        first ones' contexts are longer by then: they decode while the last prompts are computed."""
        manager = self.model.init_continuous_batching(self.generation_config(LONGEST))
        manager.warmup()
        manager.start()
        try:
            for prompt in self.prompts(batch, context, TOGETHER).tolist():
                manager.add_request(prompt, streaming=True, record_timestamps=True)
            return statistics.median(map(_median_distance, together(manager, batch)))
        finally:
            manager.stop(block=True, hard_stop=True)
            manager.destroy()


def together(manager: Any, batch: int) -> list[list[float]]:
    """When each request's tokens came while all of them decoded."""
    stamps: dict[str, list[float]] = {}
    begun, last = 0.0, ""
    while True:
        output = manager.get_result(timeout=1)
        if output is None:
            if not manager.is_running():
                raise RuntimeError("it stopped before all requests decoded")
            continue
        if output.error or output.is_finished():
            raise RuntimeError(output.error or "a request ended before all of them decoded")
        name = output.request_id
        if name not in stamps:
            begun, last = output.timestamps[0], name
        stamps[name] = output.timestamps
        if len(stamps) == batch and name == last:  # once a step
            found = [[t for t in times if t > begun] for times in stamps.values()]
            if min(map(len, found)) >= TOGETHER:
                return [times[SETTLING:] for times in found]


def _median_distance(times: Sequence[float]) -> float:
    return statistics.median(b - a for a, b in pairwise(times))
