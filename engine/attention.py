"""What a server offers of sparse attention: its flags held against the model, the gates attached.

Knows no request and no step.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from ..models.attention import LayerCache
from ..models.attention_calibration import full_up_to
from ..models.config import ModelError
from ..models.decoder import Decoder
from ..models.identity import Identity
from ..models.sparsity import gates
from ..models.sparsity.blocks import MIN_BUDGET, AttentionMode
from .config import EngineConfig
from .graphs import can_capture
from .messages import AttentionInfo

logger = logging.getLogger(__name__)
DEFAULT_BUDGET = 2048  # tokens


def prepare(config: EngineConfig, decoder: Decoder, max_model_len: int) -> AttentionInfo | None:
    """Attach the gates that were asked for; None where every token reads all of its context.

    Raises ModelError, naming the setting.
    """
    if config.attention not in list(AttentionMode):
        raise ModelError(f"attention={config.attention!r} is not one of {', '.join(AttentionMode)}")
    if not config.may_choose_pages:
        for name, value in (
            ("page_share", config.page_share < 1),
            ("attention_from", config.attention_from),
        ):
            if value:
                raise ModelError(f"{name} needs attention bound or gate, or a page_budget")
        return None
    modes, measured = [AttentionMode.FULL, AttentionMode.BOUND], None
    folder, given_by = _gates(config)
    if folder is not None:
        modes.append(AttentionMode.GATE)
        served = Identity.of(Path(config.model), decoder.config)
        measured = gates.attach(decoder, folder, config.page_size, served).measured
    return AttentionInfo(
        mode=config.attention,
        modes=[mode.value for mode in modes],
        budget=_budget(config, max_model_len),
        share=_share(config.page_share),
        least_budget=MIN_BUDGET * config.page_size,
        beyond=config.attention_from or 0,
        gates=measured,
        gates_from=given_by,
    )


def _gates(config: EngineConfig) -> tuple[Path | None, str | None]:
    """The folder of gates that was given, else the model's own, and what is said of where it is
    from; raises ModelError where gates are asked for and there are none.

    A model's own that are for pages of another size stand in nobody's way who has not asked for
    them.
    """
    if config.attention_gates is not None:
        return Path(config.attention_gates), config.attention_gates
    model, is_asked_for = Path(config.model), config.attention == AttentionMode.GATE
    own = gates.own(model) if is_asked_for else gates.own_for(model, config.page_size)
    if own is None and is_asked_for:
        raise ModelError(
            "attention=gate needs attention_gates, a folder of trained gates, or a model that "
            f"carries its own: {config.model} has no folder {gates.OWN}"
        )
    return own, None if own is None else "model"


def calibrated(
    config: EngineConfig,
    info: AttentionInfo,
    decoder: Decoder,
    caches: list[LayerCache],
    max_model_len: int,
) -> AttentionInfo:
    """With the context up to which reading all of it is as fast, where it was not given.

    On a CPU choosing takes so little that it pays as soon as there is anything to choose.
    """
    if config.attention_from is not None or decoder.embedding.device.type != "cuda":
        return info
    graphs = can_capture(decoder)
    beyond = full_up_to(decoder, caches, info.budget, max_model_len, graphs=graphs)
    logger.info("contexts up to %d tokens are read in full: it is as fast", beyond)
    return replace(info, beyond=beyond)


def _budget(config: EngineConfig, max_model_len: int) -> int:
    least = MIN_BUDGET * config.page_size
    budget = config.page_budget
    if budget is None:
        return max(least, min(DEFAULT_BUDGET, max_model_len))
    if budget < least:
        raise ModelError(
            f"page_budget={budget} is less than {least}: the first page of {config.page_size} "
            "tokens and the last two are always read"
        )
    if budget > max_model_len:
        raise ModelError(f"page_budget={budget} is more than the context of {max_model_len} tokens")
    return budget


def _share(share: float) -> float:
    if not 0 < share <= 1:
        raise ModelError(f"page_share={share} is not above 0 and at most 1")
    return share


def describe(info: AttentionInfo) -> str | None:
    """What is approximate about a request that does not say otherwise; None: nothing."""
    if info.mode == AttentionMode.FULL:
        return None
    gated = info.mode == AttentionMode.GATE
    share = f", or less that gets {info.share:.0%} of the attention" if info.share < 1 else ""
    own = " of its own" if gated and info.gates_from == "model" else ""
    measured = f"; {info.gates}" if gated and info.gates else ""
    by = f"{info.mode}{own}{share}{measured}"
    return f"attention reads {info.budget} tokens of the context by {by}"
