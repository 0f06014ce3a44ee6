"""What a checkpoint's `config.json` means, in one frozen record. Knows no tensor."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

# Of a K/V page. The GPU kernels find a position's page by a shift; with more than 512 tokens the
# default page budget would leave nothing to choose, with fewer than 4 a summary is half as large as
# its page or more.
PAGE_SIZES = tuple(1 << n for n in range(2, 10))


class ModelError(Exception):
    """A checkpoint that cannot be served as it is; the message is for the operator."""


def check_page_size(setting: str, size: int) -> None:
    """Raises ModelError, naming the setting, for what not every kernel can take."""
    if size not in PAGE_SIZES:
        sizes = ", ".join(map(str, PAGE_SIZES))
        raise ModelError(f"{setting}={size} is not one of {sizes}")


class Activation(Enum):
    """How gate and up become the neuron's value; `t` is the config's threshold."""

    SILU = "silu"  # silu(gate) * up: nothing is zero, nothing can be skipped
    RELU = "relu"  # relu(gate) * up
    FATRELU = "fatrelu"  # (gate if gate >= t else 0) * up      (ProSparse)
    DRELU = "drelu"  # relu(gate) * relu(up)                    (TurboSparse, eq. 2)

    @property
    def is_sparse(self) -> bool:
        return self is not Activation.SILU


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding: base, and the published rescalings of it."""

    theta: float = 10_000.0
    kind: str = "default"  # default, linear or llama3
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder of the Llama family, with what the sparse ones add to it.

    `residual_scale`, `embed_scale` and `logit_scale` are 1 except for MiniCPM. `predictor` says
    that the checkpoint's own forward masks neurons by a predictor: the mask is part of the
    function.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_neurons: int
    activation: Activation
    max_positions: int
    threshold: float = 0.0
    rms_eps: float = 1e-5
    rope: Rope = Rope()
    sliding_window: int | None = None
    tie_embeddings: bool = False
    predictor: bool = False
    num_experts: int = 0
    experts_per_token: int = 0
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    dtype: str = "float32"  # as stored

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of K and V that one token takes, per byte of element width."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim
