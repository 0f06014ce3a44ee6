"""A folder of trained gates: config.json and model.safetensors, as `train-gates` writes them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from ..attention import Attention
from ..config import ModelConfig, ModelError
from ..decoder import Decoder
from ..fields import Fields, read_object
from ..identity import Identity
from ..weights import Checkpoint, assign
from .blocks import Gate

logger = logging.getLogger(__name__)
KIND = "attention-gates"
OWN = "attention_gates"  # the folder in a checkpoint with the gates that it carries


@dataclass(frozen=True, slots=True)
class GateInfo:
    """What a folder says of itself; `measured` is for people."""

    rank: int
    page_size: int
    measured: str | None = None


def empty(config: ModelConfig, rank: int) -> Gate:
    """A layer's gate, without values yet."""
    return Gate(config.num_heads, config.num_kv_heads, config.head_dim, rank)


def own(model: Path) -> Path | None:
    """The gates that a checkpoint directory carries, if it does."""
    folder = model / OWN
    return folder if folder.is_dir() else None


def own_for(model: Path, page_size: int) -> Path | None:
    """The same, if they were trained for pages of this size: else the log says that they are left
    out. Raises ModelError for a folder that holds no gates."""
    folder = own(model)
    if folder is None:
        return None
    trained_for = _read_info(_config(folder)).page_size
    if trained_for == page_size:
        return folder
    logger.warning(
        "%s is left out: these gates were trained for pages of %d tokens, the K/V pages here "
        "have %d",
        folder,
        trained_for,
        page_size,
    )
    return None


def attention_of(layer: torch.nn.Module) -> Attention:
    """The attention of a decoder's layer."""
    attention = layer.get_submodule("attention")
    assert isinstance(attention, Attention)
    return attention


def _config(folder: Path) -> Fields:
    path = folder / "config.json"
    return Fields(read_object(path), str(path))


def _read_info(fields: Fields) -> GateInfo:
    """From config.json; raises ModelError."""
    if fields.text("kind", "") != KIND:
        raise ModelError(f"{fields.source}: kind is not {KIND}: this folder holds no gates")
    measured = fields.text("measured", "") or None
    return GateInfo(fields.integer("rank"), fields.integer("page_size"), measured)


def attach(decoder: Decoder, directory: Path, page_size: int, served: Identity) -> GateInfo:
    """Give each layer its gate; raises ModelError for gates of another model or page size."""
    fields = _config(directory)
    info = _read_info(fields)
    Identity.read(fields).check(served, directory)
    if info.page_size != page_size:
        raise ModelError(
            f"{directory}: these gates were trained for pages of {info.page_size} tokens, the K/V "
            f"pages here have {page_size}"
        )
    checkpoint, like = Checkpoint(directory), decoder.embedding
    _check_names(checkpoint, len(decoder.layers), directory)
    for i, layer in enumerate(decoder.layers):
        attention = attention_of(layer)
        with torch.device("meta"):
            gate = empty(decoder.config, info.rank)
        for name, wanted in gate.named_parameters():
            value = checkpoint.read(f"layers.{i}.{name}")
            if value.shape != wanted.shape:
                raise ModelError(
                    f"{directory}: layers.{i}.{name} has shape {list(value.shape)}, this model's "
                    f"would have {list(wanted.shape)}: these gates are another model's"
                )
            assign(gate, name, value.to(like.device, like.dtype).contiguous())
        attention.gate = gate
    return info


def _check_names(checkpoint: Checkpoint, num_layers: int, directory: Path) -> None:
    wanted = {f"layers.{i}.{name}" for i in range(num_layers) for name in ("query", "key")}
    if checkpoint.names != wanted:
        found = len({name.split(".")[1] for name in checkpoint.names if "." in name})
        raise ModelError(
            f"{directory}: gates of {found} layers, this model has {num_layers}: they are another's"
        )
