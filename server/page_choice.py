"""How much of its context a request reads: the `sparsity` fields on attention, checked."""

from __future__ import annotations

from ..engine.messages import AttentionInfo, EngineInfo
from ..engine.request import PageChoice
from .errors import BadRequest
from .schemas import Sparsity


def page_choice(sparsity: Sparsity | None, info: EngineInfo) -> PageChoice | None:
    """None for all of it; raises BadRequest, naming the field, for what this server cannot do."""
    asked = sparsity or Sparsity()
    mode = _mode(asked, info)
    if mode == "full":
        for name in ("page_budget", "page_share"):
            if getattr(asked, name) is not None:
                raise BadRequest(
                    f"sparsity.{name} is only allowed with attention: bound or gate",
                    f"sparsity.{name}",
                )
        return None
    offered = info.attention
    assert offered is not None
    budget, share = _budget(asked, offered, info), asked.page_share or offered.share
    beyond = offered.reads_in_full(budget, share)
    return PageChoice(budget, share, gated=mode == "gate", beyond=beyond)


def _mode(asked: Sparsity, info: EngineInfo) -> str:
    default = "full" if info.attention is None or asked.mode == "exact" else info.attention.mode
    mode = asked.attention or default
    if mode == "full":
        return mode
    if asked.mode == "exact":
        said = f"sparsity.attention={mode} is not exact: leave out sparsity.mode"
        raise BadRequest(said, "sparsity.attention")
    if info.attention is None:
        raise BadRequest(
            f"sparsity.attention={mode}: this server keeps no page summaries; it has to be started "
            "with --page-budget",
            "sparsity.attention",
        )
    if mode not in info.attention.modes:
        raise BadRequest(
            f"sparsity.attention={mode}: this server has no gates: its model carries none for "
            f"pages of {info.page_size} tokens, and it was not started with --attention-gates",
            "sparsity.attention",
        )
    return mode


def _budget(asked: Sparsity, offered: AttentionInfo, info: EngineInfo) -> int:
    budget, field = asked.page_budget, "sparsity.page_budget"
    if budget is None:
        return offered.budget
    if budget < offered.least_budget:
        raise BadRequest(
            f"{field}={budget} is less than {offered.least_budget}: the first page of "
            f"{info.page_size} tokens and the last two are always read",
            field,
        )
    if budget > info.max_model_len:
        raise BadRequest(
            f"{field}={budget} is more than the context of {info.max_model_len} tokens", field
        )
    return budget
