"""What `evaluate` tries of sparse attention: held against the model, or the server to be asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ...models.config import ModelError
from ...models.decoder import Decoder
from ...models.fields import Fields, Json, is_object
from ...models.identity import Identity
from ...models.load import read_config
from ...models.sparsity import gates
from ...models.tools.evaluation import PagePlan, choose_window
from ...models.tools.page_quality import BOUND, GATE, KINDS, check_budgets
from ..checkpoint import Located, locate_gates
from ..flags import SettingsError
from .evaluate_flags import PAGE_SIZE, EvaluateFlags


@dataclass(frozen=True, slots=True)
class Pages:
    """What is to be tried on the text, and in the exam; None: nothing."""

    gates: str | None = None  # the folder
    text: PagePlan | None = None
    exam: PagePlan | None = None


def plan_pages(chosen: EvaluateFlags, located: Located, server: Json | None) -> Pages:
    """For a model, and the server that was named, by its `/health`.

    Raises SettingsError, CheckpointError and ModelError, naming the flag.
    """
    if not chosen.page_budgets:
        return Pages()
    if chosen.text is None and server is not None:
        return Pages(exam=_of_server(chosen, server))
    size = chosen.page_size or PAGE_SIZE
    folder = _gates(chosen, located.directory, size)
    config = read_config(located.directory)[1]
    text = exam = None
    if chosen.text is not None:
        window = choose_window(chosen.window, config)
        text = _of_model(chosen, size, window, "the window", has_gates=folder is not None)
    if chosen.exam and server is not None:
        exam = _of_server(chosen, server)
    elif chosen.exam:
        most = config.max_positions
        exam = _of_model(chosen, size, most, "the context", has_gates=folder is not None)
    gated = any(plan and GATE in plan.kinds for plan in (text, exam))
    return Pages(str(folder) if gated and folder else None, text, exam)


def _gates(chosen: EvaluateFlags, model: Path, page_size: int) -> Path | None:
    """The folder that was given, else the model's own, where they may be tried and are for pages
    of this size."""
    given = locate_gates(chosen.attention_gates)
    if given is not None:
        return Path(given)
    if chosen.attention and GATE not in chosen.attention:
        return None
    return gates.own_for(model, page_size)


def _of_model(
    chosen: EvaluateFlags, page_size: int, most: int, what: str, *, has_gates: bool
) -> PagePlan:
    if GATE in chosen.attention and not has_gates:
        raise SettingsError(
            "--attention=gate needs --attention-gates, a folder of trained gates: this model "
            f"carries none for pages of {page_size} tokens"
        )
    kinds = chosen.attention or (KINDS if has_gates else (BOUND,))
    budgets = check_budgets("--page-budgets", chosen.page_budgets, page_size, most, what)
    return PagePlan(tuple(dict.fromkeys(kinds)), tuple(budgets), page_size)


def _of_server(chosen: EvaluateFlags, server: Json) -> PagePlan:
    offered = server["attention"]
    if not is_object(offered):
        raise SettingsError(
            "--page-budgets: the server at --url always reads all of the context: it has to be "
            "started with --page-budget"
        )
    modes = cast("list[str]", offered["modes"])
    if GATE in chosen.attention and GATE not in modes:
        raise SettingsError("--attention=gate: the server at --url has no gates")
    kinds = chosen.attention or [kind for kind in KINDS if kind in modes]
    about = Fields(server, "/health")
    size, most = about.integer("page_size"), about.integer("max_model_len")
    budgets = check_budgets("--page-budgets", chosen.page_budgets, size, most, "the context")
    return PagePlan(tuple(dict.fromkeys(kinds)), tuple(budgets), size)


def attach_gates(decoder: Decoder, folder: str, directory: Path, page_size: int) -> None:
    """For the model in a directory; raises ModelError for gates of another model or page size."""
    try:
        served = Identity.of(directory, decoder.config)
        gates.attach(decoder, Path(folder), page_size, served)
    except ModelError as error:
        raise ModelError(f"--attention-gates: {error}") from error


def server_flags(pages: Pages) -> list[str]:
    """What a server needs to be asked for all of it; it chooses in every context that it can."""
    if pages.exam is None:
        return []
    found = ["--page-budget", str(pages.exam.budgets[0]), "--attention-from", "0"]
    found += ["--page-size", str(pages.exam.page_size)]
    return [*found, *(["--attention-gates", pages.gates] if pages.gates else [])]
