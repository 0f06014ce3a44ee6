"""Every choice of the engine, frozen at start. Knows no tensor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Where the model is and how much of the machine it may use.

    Sizes are in tokens unless named otherwise. None means: chosen at start from the model and the
    machine, and printed.
    """

    model: str  # a local directory with config.json and safetensors
    device: str = "auto"  # auto, cpu, cuda, cuda:1 ...
    dtype: str = "auto"  # auto: fp32 on CPU, the checkpoint's own on a GPU
    predictors: str | None = None  # a folder of separate ones: they make the model approximate
    predictor_dtype: str = "auto"  # float8 rounds them, the model's own too: approximate
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512  # the token budget of one step
    page_size: int = 16  # one of models.config.PAGE_SIZES
    num_pages: int | None = None
    kv_cache_bytes: int | None = None
    prefix_caching: bool = True
    overlap: bool | None = None  # launch a step before settling the last one; None: on a GPU
    attention: str = "full"  # full, bound or gate, for requests that do not say
    page_budget: int | None = None  # context that a token may then read
    page_share: float = 1.0  # and no more pages than what is thought to get this share of attention
    attention_gates: str | None = None  # a folder of trained gates; None: the model's own, if any
    attention_from: int | None = None  # shorter contexts are read in full; None: measured
    ffn_mode: str | None = None  # token, union or dense for every step; None: measured at start
    recalibrate: bool = False  # measure the FFN modes even if an earlier start has
    num_threads: int | None = None  # CPU threads at most; None: all cores but one, but two of two
    seed: int = 0
    log_level: str = "info"
    log_format: str = "text"  # or json

    @property
    def may_choose_pages(self) -> bool:
        """Whether page summaries are kept, so that requests may read a part of their context."""
        asked = self.attention != "full" or self.page_budget is not None
        return asked or self.attention_gates is not None
