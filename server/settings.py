"""Every setting of `turbosparse serve`, once: its default and its help."""

from __future__ import annotations

from dataclasses import dataclass

from ..engine.config import EngineConfig
from ..models.config import PAGE_SIZES
from .flags import SettingsError, flag

GIB = 1 << 30
PREDICTOR_DTYPES = ("auto", "float8")
ATTENTION_MODES = ("full", "bound", "gate")
FFN_MODES = ("token", "union", "dense")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to serve which model. Sizes are in tokens, times in seconds, unless named otherwise."""

    model: str | None = flag(
        None,
        "a directory, or owner/name on the Hugging Face Hub; default: the bundled model",
        positional=True,
    )
    host: str = flag("127.0.0.1", "address to listen on")
    port: int = flag(8000, "port to listen on; 0 takes a free one", low=0)
    served_model_name: tuple[str, ...] = flag(
        (), "name of the model for clients; several, separated by commas, all mean it"
    )
    synthetic: str | None = flag(
        None,
        "instead of MODEL: a random model of a published shape, such as turbosparse-mistral-7b",
    )
    synthetic_layers: int | None = flag(None, "layers of the --synthetic model", low=1)
    synthetic_density: float | None = flag(
        None, "share of the neurons that the --synthetic model's predictors or gates keep"
    )
    device: str = flag("auto", "auto, cpu, cuda or cuda:N")
    dtype: str = flag("auto", "auto, float32, bfloat16 or float16")
    predictors: str | None = flag(
        None, "folder or repository of separate predictors: makes a ReLU model approximate"
    )
    predictor_dtype: str = flag(
        "auto",
        "float8 rounds low-rank predictors, the model's own too, to half the bytes: approximate; "
        "auto: as the model is",
        choices=PREDICTOR_DTYPES,
    )
    attention: str = flag(
        "full",
        "what generated tokens read of their context, unless a request says otherwise: all of it, "
        "or the pages that a bound or a trained gate chooses, which is approximate",
        choices=ATTENTION_MODES,
    )
    page_budget: int | None = flag(
        None,
        "tokens of context that such a token reads; given, requests may ask for it even where "
        "--attention is full; default with bound or gate: 2048",
    )
    page_share: float = flag(
        1.0, "and no more pages than are thought to get this share of the attention"
    )
    attention_gates: str | None = flag(
        None, "folder or repository of gates for --attention gate; default: the model's own, if any"
    )
    attention_from: int | None = flag(
        None, "shorter contexts are read in full; default: from where it is faster, measured", low=0
    )
    ffn_mode: str | None = flag(
        None,
        "run every step in one FFN mode, instead of the fastest measured",
        choices=FFN_MODES,
    )
    threads: int | None = flag(None, "CPU threads of the engine; default: all cores", low=1)
    max_model_len: int | None = flag(None, "context length; default: the model's", low=2)
    max_num_seqs: int = flag(64, "requests that run at once", low=1)
    max_num_batched_tokens: int = flag(512, "tokens that one step may compute", low=1)
    page_size: int = flag(
        16,
        "tokens of a K/V page: with larger ones choosing what to read is cheaper and coarser",
        choices=PAGE_SIZES,
    )
    num_pages: int | None = flag(None, "pages of the K/V cache; default: what memory allows", low=1)
    kv_cache_gib: float | None = flag(None, "memory of the K/V cache in GiB", low=0)
    no_prefix_caching: bool = flag(False, "compute every prompt anew")
    max_queued_requests: int = flag(
        512, "requests that may wait beyond those that run; the next one gets 503", low=0
    )
    request_timeout: float = flag(
        600.0, "how long one request may take, queue and all; 0 is for ever", low=0
    )
    step_timeout: float = flag(
        300.0, "a step that takes longer is stuck, and ends the server; 0 is never", low=0
    )
    shutdown_timeout: float = flag(30.0, "how long open answers may go on after SIGTERM", low=0)
    api_key: tuple[str, ...] = flag(
        (),
        "keys, one of which every request must bear, but for health, ready and metrics",
        secret=True,
    )
    cors_origins: tuple[str, ...] = flag(
        (), "origins whose pages may call this server from a browser; * for any; default: none"
    )
    ssl_certfile: str | None = flag(None, "PEM certificate, for https")
    ssl_keyfile: str | None = flag(None, "PEM key of the certificate")
    ssl_keyfile_password: str | None = flag(None, "password of the key", secret=True)
    ssl_ca_certs: str | None = flag(
        None, "PEM certificates of authorities: clients must show one that they have signed"
    )
    max_body_bytes: int = flag(4 << 20, "largest request body", low=1)
    max_header_bytes: int = flag(64 << 10, "largest request line and headers together", low=256)
    log_level: str = flag("info", "how much to log", choices=("debug", "info", "warning", "error"))
    log_format: str = flag("text", "lines for people, or JSON objects", choices=("text", "json"))
    access_log: bool = flag(False, "log every HTTP request, but for health, ready and metrics")
    otlp_traces_endpoint: str | None = flag(
        None, "send OpenTelemetry traces there, over HTTP; needs turbosparse[otel]"
    )

    def __post_init__(self) -> None:
        """Raises SettingsError for settings that need one another."""
        if self.ssl_certfile is None:
            for name in ("ssl_keyfile", "ssl_keyfile_password", "ssl_ca_certs"):
                if getattr(self, name) is not None:
                    raise SettingsError(f"--{name.replace('_', '-')} needs --ssl-certfile")

    def engine(self, model: str, predictors: str | None) -> EngineConfig:
        """The engine's share of the settings, for a model that is on this machine."""
        return EngineConfig(
            model=model,
            device=self.device,
            dtype=self.dtype,
            predictors=predictors,
            predictor_dtype=self.predictor_dtype,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            page_size=self.page_size,
            num_pages=self.num_pages,
            kv_cache_bytes=None if self.kv_cache_gib is None else int(self.kv_cache_gib * GIB),
            prefix_caching=not self.no_prefix_caching,
            attention=self.attention,
            page_budget=self.page_budget,
            page_share=self.page_share,
            attention_gates=self.attention_gates,
            attention_from=self.attention_from,
            ffn_mode=self.ffn_mode,
            num_threads=self.threads,
            log_level=self.log_level,
            log_format=self.log_format,
        )
