"""`mixtral`: SwiGLU experts. `turbosparsemixtral`: dReLU experts, each with its own predictor."""

from __future__ import annotations

from dataclasses import replace

from ..config import Activation, ModelConfig, ModelError
from ..fields import Fields, Json
from .naming import moe_sources as sources
from .parsing import activation_of, llama_config, window

__all__ = ["parse", "parse_turbosparse", "sources"]


def parse(json: Json) -> ModelConfig:
    return _mixtral(json, "mixtral", activation_of(json, {"silu": Activation.SILU}))


def parse_turbosparse(json: Json) -> ModelConfig:
    """The predictor is not optional: a checkpoint without it is refused by its missing tensors."""
    activation = activation_of(json, {"relu": Activation.DRELU})
    return replace(_mixtral(json, "turbosparsemixtral", activation), predictor=True)


def _mixtral(json: Json, family: str, activation: Activation) -> ModelConfig:
    fields = Fields(json)
    num_experts = fields.integer("num_local_experts", 8)
    chosen = fields.integer("num_experts_per_tok", 2)
    if chosen > num_experts:
        raise ModelError(
            f"config.json: num_experts_per_tok={chosen} of num_local_experts={num_experts}"
        )
    return replace(
        llama_config(json, family, activation),
        sliding_window=window(json),
        num_experts=num_experts,
        experts_per_token=chosen,
    )
