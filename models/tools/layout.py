"""Which checkpoints `sparsify` takes, and the published layouts that it writes."""
# pyright: basic

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..config import Activation, ModelConfig, ModelError
from ..fields import Json, read_object
from ..load import DTYPES, eos_token_ids
from ..registry import find_family

FAMILIES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
# What the two families leave to defaults, which are not the same ones.
STATED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
)
# Beside the weights, taken over as they are: tokenizer, generation, the source's licence.
KEPT = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)


def read_source(directory: Path) -> tuple[Json, ModelConfig]:
    """The config.json of a dense Llama or Mistral, and its meaning; raises ModelError."""
    config = read_object(directory / "config.json")
    family, act = config.get("model_type"), config.get("hidden_act", "silu")
    if not any((family, config.get("architectures")) == (f, [n]) for f, n in FAMILIES.items()):
        raise ModelError(
            f"config.json: model_type={family!r} with architectures="
            f"{config.get('architectures')!r} cannot be made sparse: only "
            f"{' and '.join(FAMILIES.values())} can"
        )
    if act != "silu":
        raise ModelError(f"config.json: hidden_act={act!r}: only 'silu' models are made sparse")
    meaning = find_family(config).parse(config)
    if meaning.dtype not in DTYPES:
        raise ModelError(f"config.json: dtype={meaning.dtype!r} is none of {', '.join(DTYPES)}")
    return config, meaning


def end_of_document(directory: Path, config: Json) -> int:
    """The id that ends a text: the config's, the tokenizer's where it has none."""
    eos = config.get("eos_token_id")
    named = eos if isinstance(eos, list) else [eos]
    for token in (*named, *eos_token_ids(directory)):
        if isinstance(token, int):
            return token
    raise ModelError(f"{directory}: neither config.json nor the tokenizer names an eos token")


def published_config(source: Json, trained: object, activation: Activation) -> dict[str, object]:
    """config.json of what comes out: dReLU is Bamboo's layout, a ReLU gate ReluLLaMA's.

    `trained` is transformers' configuration, whose defaults are written out. Raises ModelError,
    naming the field that the layout cannot express.
    """
    window = getattr(trained, "sliding_window", None)
    stated = {name: getattr(trained, name, None) for name in STATED}
    config = {k: v for k, v in source.items() if k not in ("auto_map", "dtype")}
    config |= {name: value for name, value in stated.items() if value is not None}
    config |= {"hidden_act": "relu", "torch_dtype": find_family(source).parse(source).dtype}
    if activation is Activation.DRELU:
        config |= {"model_type": "bamboo", "architectures": ["BambooForCausalLM"]}
        config |= {"sliding_window": window}
    elif window is not None:
        raise ModelError(
            f"config.json: sliding_window={window!r} has no place in a LlamaForCausalLM, "
            "the layout of --activation relu"
        )
    else:
        config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    find_family(config).parse(config)
    return config


def published_tensors(
    state: Mapping[str, Tensor], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """The trained weights under their published names."""
    for name, tensor in state.items():
        name = name.replace(".mlp.norm.", ".post_attention_layernorm.")
        yield name.replace(".mlp.mlp.", ".mlp."), tensor.detach().to("cpu", dtype).contiguous()


def copy_kept(source: Path, out: Path) -> None:
    for pattern in KEPT:
        for file in sorted(source.glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, out / file.name)
