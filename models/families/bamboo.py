"""`bamboo`: dReLU. With predictor tensors it is TurboSparse-Mistral, without them Bamboo-7B."""

from __future__ import annotations

from dataclasses import replace

from ..config import Activation, ModelConfig
from ..fields import Json
from .naming import mlp_sources as sources
from .parsing import activation_of, llama_config, window

__all__ = ["parse", "sources"]


def parse(json: Json) -> ModelConfig:
    """Nothing in config.json tells the two apart: the loader sets `predictor` by the tensors."""
    activation = activation_of(json, {"relu": Activation.DRELU})
    return replace(llama_config(json, "bamboo", activation), sliding_window=window(json))
