"""Log-probabilities of chosen and of most likely tokens, on the device and on their way home."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .messages import TokenLogprobs
from .transfer import HostCopy


@dataclass(frozen=True, slots=True)
class DeviceLogprobs:
    """Of R tokens: their own, and the k most likely in their place."""

    chosen: Tensor  # [R]
    top: Tensor  # [R, k]
    top_ids: Tensor  # [R, k] int64


def logprobs_of(logits: Tensor, token_ids: Tensor, k: int) -> DeviceLogprobs:
    """logits [R, vocab] and the tokens chosen there [R] int64."""
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(1, token_ids[:, None]).squeeze(1)
    return DeviceLogprobs(chosen, *logprobs.topk(k, dim=-1))


@dataclass(frozen=True, slots=True)
class HostLogprobs:
    """DeviceLogprobs on their way to the host."""

    chosen: HostCopy
    top: HostCopy
    top_ids: HostCopy

    @classmethod
    def of(cls, found: DeviceLogprobs) -> HostLogprobs:
        return cls(HostCopy(found.chosen), HostCopy(found.top), HostCopy(found.top_ids))

    def read(self, wanted: Sequence[int]) -> list[TokenLogprobs]:
        """Wait for them; `wanted[i]` alternatives of the i-th token."""
        chosen, top, top_ids = (c.array() for c in (self.chosen, self.top, self.top_ids))
        return [
            TokenLogprobs(
                float(chosen[i]), [(int(top_ids[i, k]), float(top[i, k])) for k in range(n)]
            )
            for i, n in enumerate(wanted[: len(chosen)])
        ]
