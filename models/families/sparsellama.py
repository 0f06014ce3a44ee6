"""`sparsellama`: ProSparse, a Llama whose gate passes a thresholded ReLU."""

from __future__ import annotations

from ..config import Activation, ModelConfig
from .common import Fields, Json, activation_of, llama_config
from .common import mlp_sources as sources

__all__ = ["parse", "sources"]


def parse(json: Json) -> ModelConfig:
    activation = activation_of(json, {"fatrelu": Activation.FATRELU, "relu": Activation.RELU})
    threshold = Fields(json).number("hidden_act_param", 0.0)
    return llama_config(json, "sparsellama", activation, threshold=threshold)
