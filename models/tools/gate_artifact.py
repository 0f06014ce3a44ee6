"""From gates that were trained, in whatever way, to a folder that says what they are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from ..config import ModelConfig
from ..decoder import Decoder
from ..sparsity.blocks import Gate
from ..sparsity.gates import KIND, attention_of, empty
from .output import filled, write_json
from .page_quality import KINDS, Quality, measure


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Windows of ids [L] that nothing was trained on."""

    text: str  # what they are, for people
    windows: list[Tensor]


def begin(config: ModelConfig, rank: int, device: torch.device, seed: int) -> list[Gate]:
    """One a layer, to be learned: each says what the bound says at first."""
    generator = torch.Generator().manual_seed(seed)
    gates = [empty(config, rank) for _ in range(config.num_layers)]
    for gate in gates:
        gate.begin(generator)
        gate.to(device).requires_grad_(True)
    return gates


def publish(
    out: Path,
    decoder: Decoder,
    gates: Sequence[Gate],
    held_out: HeldOut,
    budgets: list[int],
    page_size: int,
    config: dict[str, object],
) -> Quality:
    """Attach the gates, measure them at the budgets in tokens, and write all of it to `out`.

    `config` says how they came to be; with `rank`, `page_size` and the model's identity in it.
    Raises ModelError where `out` cannot be written.
    """
    _attach(decoder, gates)
    quality = measure(decoder, held_out.windows, held_out.text, KINDS, budgets, page_size)
    measured = {"measured": str(quality), "quality": quality.as_json()}
    with filled(out) as folder:
        save_file(_tensors(gates), folder / "model.safetensors", metadata={"format": "pt"})
        write_json(folder / "config.json", {"kind": KIND, **config, **measured})
    return quality


def _attach(decoder: Decoder, gates: Sequence[Gate]) -> None:
    like = decoder.embedding
    for layer, gate in zip(decoder.layers, gates, strict=True):
        attention_of(layer).gate = gate.requires_grad_(False).to(like.device, like.dtype)


def _tensors(gates: Sequence[Gate]) -> dict[str, Tensor]:
    return {
        f"layers.{i}.{name}": parameter.detach().cpu().contiguous()
        for i, gate in enumerate(gates)
        for name, parameter in gate.named_parameters()
    }
