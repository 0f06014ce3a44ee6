"""What started, once, for the operator."""

from __future__ import annotations

from ..engine.messages import EngineInfo


def banner(name: str, info: EngineInfo, url: str) -> str:
    """Lines of a label and what it says."""
    function = "exact" if info.exact else f"APPROXIMATE: {info.approximation}"
    kernels = ", ".join(f"{op} {kernel}" for op, kernel in sorted(info.kernels.items()))
    *smaller, (_, largest) = sorted(info.ffn_modes.items())
    modes = [f"{mode} up to {num_tokens} tokens in a step" for num_tokens, mode in smaller]
    num_tokens = info.num_pages * info.page_size
    concurrency = num_tokens / info.max_model_len
    synthetic = {} if info.synthetic is None else {"SYNTHETIC": info.synthetic}
    lines = {
        "model": f"{name} ({info.num_parameters / 1e6:,.1f} M parameters, {info.model})",
        **synthetic,
        "family": info.family,
        "function": function,
        "device": f"{info.device}, {info.dtype}",
        "kernels": kernels,
        **_attention(info),
        "ffn modes": ", ".join([*modes, f"{largest} beyond" if modes else largest]),
        "pages": (
            f"{info.num_pages:,} of {info.page_size} = {num_tokens:,} tokens, "
            f"{concurrency:.1f} requests of {info.max_model_len:,}"
        ),
        "url": url,
    }
    return "\n".join(f"{label:>10}  {text}" for label, text in lines.items())


def _attention(info: EngineInfo) -> dict[str, str]:
    """What requests may ask for, where anything."""
    offered = info.attention
    if offered is None:
        return {}
    others = ", ".join(mode for mode in offered.modes if mode != offered.mode)
    from_where = f", beyond {offered.beyond:,}" if offered.beyond else ""
    says = {
        "attention": f"{offered.mode}, by request {others}; {offered.budget:,} tokens{from_where}"
    }
    if offered.gates_from is None:
        return says
    whose = "the model's own" if offered.gates_from == "model" else offered.gates_from
    return says | {"gates": f"{whose}; {offered.gates}" if offered.gates else whose}
