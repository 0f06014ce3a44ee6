"""From a checkpoint directory to a model that can run: config, weights, exactness."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from . import artifact, divergence, random_weights, recipe, rounding
from .artifact import Attached
from .config import ModelConfig, ModelError
from .decoder import Decoder
from .fields import is_list, is_object, read_object
from .identity import Identity
from .kernels import ops
from .progress import track
from .registry import Family, find_family
from .weights import Checkpoint, Layout, Source, assign, check_names

logger = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Stored by some exporters though it can be computed; not a weight.
DERIVED = ".rotary_emb.inv_freq"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A decoder with its weights in place.

    `exact` says that it computes the function that the checkpoint defines; otherwise
    `approximation` says what does not, `predictors` what it was given, and `predictor_dtype` what
    its predictors were rounded to, if they were. `synthetic` says how the weights were drawn, if
    they were.
    """

    decoder: Decoder
    config: ModelConfig
    kernels: dict[str, str]  # op -> backend
    declined: dict[str, str]  # backend -> why it was passed over
    eos_token_ids: tuple[int, ...]
    exact: bool
    approximation: str | None
    num_parameters: int
    synthetic: str | None = None
    predictors: Attached | None = None
    predictor_dtype: str | None = None


def read_config(directory: Path) -> tuple[Family, ModelConfig]:
    """The family and configuration in a directory's config.json; raises ModelError."""
    settings = read_object(directory / "config.json")
    family = find_family(settings)
    return family, family.parse(settings)


def choose_device(name: str) -> torch.device:
    """cpu, cuda or cuda:N; auto is a GPU where there is one. Raises ModelError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"device={name!r} is not a device: cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device={name!r}: this machine has no CUDA device that torch can use")
    return device


def choose_dtype(name: str, device: torch.device, config: ModelConfig) -> torch.dtype:
    """auto: fp32 on a CPU, where our kernels compute in it; the checkpoint's own on a GPU."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else config.dtype
    if name not in DTYPES:
        raise ModelError(f"dtype={name!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[name]


def load(
    directory: Path,
    device: torch.device,
    dtype: torch.dtype,
    *,
    predictors: Path | None = None,
    predictor_dtype: str = rounding.OWN,
    num_positions: int | None = None,
    progress: bool = False,
    backends: tuple[str, ...] = ops.BACKENDS,
) -> LoadedModel:
    """Build on `meta`, then stream the weights in: peak memory is the model plus one tensor.

    Where config.json holds a recipe there are no weights: they are drawn on the device.
    `predictors` is a folder of separate ones for a model that has none of its own: they make it
    approximate, and how far is measured at once where the folder does not say. So does a
    `predictor_dtype` of float8, which rounds low-rank ones, those of the checkpoint too.
    `num_positions` is the longest sequence that will come, the config's by default. Raises
    ModelError, naming what does not fit.
    """
    rounding.check(predictor_dtype, device)
    started = time.perf_counter()
    if progress:
        logger.info("Loading %s", directory)
    family, config = read_config(directory)
    chosen, declined = ops.select(device, dtype, backends)
    positions = num_positions or config.max_positions
    drawn = recipe.read(read_object(directory / "config.json"))
    if drawn is None:
        decoder = _read(directory, family, config, chosen, device, dtype, progress)
        decoder.prepare(device, positions)
    else:
        config = replace(config, predictor=drawn.rank > 0)
        decoder = random_weights.build(config, drawn, chosen, device, dtype, positions)
    if progress:
        _say_loaded(decoder, time.perf_counter() - started)
    rounded = None if predictor_dtype == rounding.OWN else predictor_dtype
    is_exact = predictors is None and rounded is None
    before = None if is_exact else divergence.baseline(decoder)
    attached = None
    if predictors is not None:
        attached = artifact.attach(decoder, predictors, Identity.of(directory, decoder.config))
        decoder.prepare(device, positions)
    num_parameters = sum(p.numel() for p in decoder.parameters())
    if rounded:
        rounding.round_predictors(decoder)
    return LoadedModel(
        decoder=decoder.eval(),
        config=decoder.config,
        kernels=chosen.chosen(),
        declined=declined,
        eos_token_ids=eos_token_ids(directory),
        exact=is_exact,
        approximation=before and _approximation(decoder, before, attached, rounded),
        num_parameters=num_parameters,
        synthetic=None if drawn is None else str(drawn),
        predictors=attached,
        predictor_dtype=rounded,
    )


def _approximation(
    decoder: Decoder, exact: divergence.Baseline, attached: Attached | None, rounded: str | None
) -> str:
    """What is approximate, and how far: as the predictors' folder says, or measured here."""
    measured = None if attached is None or rounded else attached.measured
    what = "its own predictors" if attached is None else str(attached)
    if rounded:
        what += f", rounded to {rounded}"
    return f"{what}; {measured or divergence.measure(decoder, exact)}"


def _read(
    directory: Path,
    family: Family,
    config: ModelConfig,
    chosen: ops.Ops,
    device: torch.device,
    dtype: torch.dtype,
    progress: bool,
) -> Decoder:
    checkpoint = Checkpoint(directory)
    config, sources = _resolve(family, config, checkpoint)
    ranks = _predictor_ranks(config, sources, checkpoint)
    with torch.device("meta"):
        decoder = Decoder(config, chosen, ranks)
    _fill(decoder, sources, checkpoint, device, dtype, progress)
    return decoder


def _resolve(
    family: Family, config: ModelConfig, checkpoint: Checkpoint
) -> tuple[ModelConfig, dict[str, Source]]:
    """Settle what only the tensors tell, then hold their names against the family's."""
    found = {name for name in checkpoint.names if not name.endswith(DERIVED)}
    if any(".predictor." in name for name in found) and config.family == "bamboo":
        config = replace(config, predictor=True)
    sources = family.sources(config)
    expected = {name for source in sources.values() for name in source.names}
    if config.tie_embeddings:
        found.discard("lm_head.weight")  # some exporters store the shared table twice
    check_names(expected, found, config.family)
    return config, sources


def _predictor_ranks(
    config: ModelConfig, sources: dict[str, Source], checkpoint: Checkpoint
) -> list[list[int]]:
    """Each predictor's rank, read from its tensor: published ranks differ from layer to layer."""
    ranks: list[list[int]] = [[] for _ in range(config.num_layers)]
    for name, source in sources.items():
        if name.endswith("predictor.fc1.weight"):
            ranks[int(name.split(".")[1])].append(checkpoint.shape(source.names[0])[0])
    return ranks


def _fill(
    decoder: Decoder,
    sources: dict[str, Source],
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    progress: bool,
) -> None:
    wanted = dict(decoder.named_parameters())
    assert wanted.keys() == sources.keys(), wanted.keys() ^ sources.keys()
    for name, source in track(sources.items(), "Loading weights", enabled=progress):
        value = source.assemble(checkpoint)
        if value.shape != wanted[name].shape:
            raise ModelError(
                f"{' + '.join(source.names)} has shape {_stored_shape(source, value)}, "
                f"config.json asks for {_stored_shape(source, wanted[name])}"
            )
        assign(decoder, name, value.to(device=device, dtype=dtype).contiguous())


def _say_loaded(decoder: Decoder, seconds: float) -> None:
    num_bytes = sum(p.numel() * p.element_size() for p in decoder.parameters())
    logger.info("weights loaded: %.2f GiB after %.1f s", num_bytes / 2**30, seconds)


def _stored_shape(source: Source, value: torch.Tensor) -> list[int]:
    """The shape in the checkpoint's own terms, for a message."""
    shape = list(value.shape)
    return shape[::-1] if source.layout is Layout.TRANSPOSED else shape


def eos_token_ids(directory: Path) -> tuple[int, ...]:
    """Every end-of-sequence id that config, generation_config or tokenizer names, ascending.

    Published TurboSparse-Mistral says 2 in config.json while its tokenizer ends turns with 32000.
    """
    ids: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        eos = read_object(directory / name, optional=True).get("eos_token_id")
        ids |= {i for i in (eos if is_list(eos) else [eos]) if isinstance(i, int)}
    return tuple(sorted(ids | _tokenizer_eos(directory)))


def _tokenizer_eos(directory: Path) -> set[int]:
    """The id of tokenizer_config.json's eos_token, from where new and old tokenizers list it."""
    settings = read_object(directory / "tokenizer_config.json", optional=True)
    eos = settings.get("eos_token")
    text = eos.get("content") if is_object(eos) else eos
    tokenizer = read_object(directory / "tokenizer.json", optional=True)
    added, decoder = tokenizer.get("added_tokens"), settings.get("added_tokens_decoder")
    entries: list[tuple[object, object]] = []
    if is_list(added):
        entries += [(t.get("id"), t.get("content")) for t in added if is_object(t)]
    if is_object(decoder):
        entries += [
            (int(i), t.get("content")) for i, t in decoder.items() if i.isdigit() and is_object(t)
        ]
    return {i for i, content in entries if isinstance(i, int) and content == text is not None}
