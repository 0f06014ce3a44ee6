"""Writes random checkpoints of any shape in the published layouts: for measuring speed alone."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from ..load import load, read_config
from ..weights import Source
from .shapes import FAMILIES, Shape, describe, recipe_of


def make(out: Path, family: str, shape: Shape, *, density: float = 0.1, seed: int = 0) -> None:
    """Write a checkpoint directory: config, weights, tokenizer. The mask keeps `density`.

    Raises ModelError, naming the argument that cannot be.
    """
    shape = shape.of(family)
    recipe = recipe_of(family, shape, density, seed)
    with tempfile.TemporaryDirectory() as described:
        describe(Path(described), family, shape, "float32", recipe)
        model = load(Path(described), torch.device("cpu"), torch.float32)
        sources = read_config(Path(described))[0].sources(model.config)
    config = model.config
    kv = config.num_kv_heads * config.head_dim
    heads = [config.num_heads * config.head_dim, kv, kv]
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.decoder.named_parameters():
        tensors |= _apart(sources[name], parameter, heads)
    describe(out, family, shape, "float32", None)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def _apart(source: Source, value: Tensor, heads: list[int]) -> dict[str, Tensor]:
    """The published tensors that `source` assembles to a model weight; the only rows that it puts
    below each other are those of q, k and v."""
    parts = source.take_apart(value, heads)
    return {name: part.contiguous() for name, part in zip(source.names, parts, strict=True)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `turbosparse make-model`."""
    shape = Shape()
    parser.add_argument("out", type=Path, help="directory to write")
    parser.add_argument("--family", choices=sorted(FAMILIES), default="mistral")
    for field in fields(Shape):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=getattr(shape, field.name))
    parser.add_argument(
        "--density", type=float, default=0.1, help="share that predictors keep, or gates"
    )
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> None:
    """Write what the parsed flags ask for; raises ModelError."""
    shape = Shape(**{field.name: getattr(arguments, field.name) for field in fields(Shape)})
    make(arguments.out, arguments.family, shape, density=arguments.density, seed=arguments.seed)
    print(f"wrote {arguments.out}: a random {arguments.family}, for measuring speed alone")
