"""What `evaluate` tries of sparse attention: held against the model, or the server to be asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ...engine.config import EngineConfig
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
from .evaluate_flags import EvaluateFlags

PAGE_SIZE = EngineConfig(model="").page_size  # of the servers that we start


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
    folder = locate_gates(chosen.attention_gates) or gates.own(located.directory)
    config = read_config(located.directory)[1]
    text = exam = None
    if chosen.text is not None:
        window = choose_window(chosen.window, config)
        text = _of_model(chosen, folder is not None, window, "the window")
    if chosen.exam and server is not None:
        exam = _of_server(chosen, server)
    elif chosen.exam:
        exam = _of_model(chosen, folder is not None, config.max_positions, "the context")
    gated = any(plan and GATE in plan.kinds for plan in (text, exam))
    return Pages(str(folder) if gated and folder else None, text, exam)


def _of_model(chosen: EvaluateFlags, has_gates: bool, most: int, what: str) -> PagePlan:
    if GATE in chosen.attention and not has_gates:
        raise SettingsError(
            "--attention=gate needs --attention-gates, a folder of trained gates: this model "
            "carries none"
        )
    kinds = chosen.attention or (KINDS if has_gates else (BOUND,))
    budgets = check_budgets("--page-budgets", chosen.page_budgets, PAGE_SIZE, most, what)
    return PagePlan(tuple(dict.fromkeys(kinds)), tuple(budgets), PAGE_SIZE)


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


def attach_gates(decoder: Decoder, folder: str, directory: Path) -> None:
    """For the model in a directory; raises ModelError for gates of another model or page size."""
    try:
        served = Identity.of(directory, decoder.config)
        gates.attach(decoder, Path(folder), PAGE_SIZE, served)
    except ModelError as error:
        raise ModelError(f"--attention-gates: {error}") from error


def server_flags(pages: Pages) -> list[str]:
    """What a server needs to be asked for all of it; it chooses in every context that it can."""
    if pages.exam is None:
        return []
    found = ["--page-budget", str(pages.exam.budgets[0]), "--attention-from", "0"]
    return [*found, *(["--attention-gates", pages.gates] if pages.gates else [])]
