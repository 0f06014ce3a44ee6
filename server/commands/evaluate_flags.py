"""What `evaluate` is asked for, and whether it goes together. Knows no model and no server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...engine.config import EngineConfig
from ...models.config import PAGE_SIZES
from ...models.tools.fidelity import BATCH_SIZES
from ...models.tools.page_quality import KINDS
from ..flags import SettingsError, flag
from .exam import Question, read_exam
from .lm_eval import find_lm_eval

PAGE_SIZE = EngineConfig(model="").page_size  # of a server that is not told


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateFlags:
    """What to measure, on what."""

    model: str | None = flag(
        None, "a checkpoint, or owner/name on the Hub; default: the bundled model", positional=True
    )
    text: str | None = flag(None, "a UTF-8 text file, or one packed as .gz, to measure on")
    tokens: int = flag(32_768, "tokens of the text, rounded up to whole windows", low=2)
    window: int | None = flag(
        None, "tokens seen together; default: the context, at most 2048", low=2
    )
    predictors: str | None = flag(None, "separate predictors, to hold against the exact model")
    thresholds: tuple[float, ...] = flag(
        (), "other thresholds of the predictors to try; default: --thresholds=-2,-1,0.5,1"
    )
    batch_sizes: tuple[int, ...] = flag(BATCH_SIZES, "tokens whose union is measured", low=1)
    page_budgets: tuple[int, ...] = flag(
        (), "sparse attention: tokens of context that a token then reads, one number or several"
    )
    page_size: int | None = flag(
        None,
        f"tokens of a K/V page then, on the text and in a server of ours; default: {PAGE_SIZE}",
        choices=PAGE_SIZES,
    )
    attention: tuple[str, ...] = flag(
        (), "and what chooses them; default: bound, and gate where there are gates", choices=KINDS
    )
    attention_gates: str | None = flag(
        None, "folder or repository of gates for it; default: the model's own, if any"
    )
    exam: tuple[str, ...] = flag(
        (), "questions with answers: JSON lines, or a folder of .jsonl files"
    )
    lm_eval: tuple[str, ...] = flag((), "tasks of lm-evaluation-harness")
    include_path: str | None = flag(None, "a folder with lm-evaluation-harness tasks of your own")
    url: str | None = flag(
        None, "ask the exam and the tasks of this server, instead of one of ours"
    )
    api_key: tuple[str, ...] = flag((), "its key", secret=True)
    out: str = flag("evaluation", "folder for evaluation.json and evaluation.html")
    device: str = flag("auto", "auto, cpu, cuda or cuda:N")
    dtype: str = flag("auto", "auto, float32, bfloat16 or float16")
    threads: int | None = flag(None, "CPU threads; default: all cores", low=1)
    seed: int = flag(0, "of the order of the text's windows")


def check(chosen: EvaluateFlags) -> list[Question]:
    """The exam, read; raises SettingsError for what cannot be done, before anything is."""
    if chosen.text is None and not chosen.exam and not chosen.lm_eval:
        raise SettingsError("nothing to measure: give --text, --exam or --lm-eval")
    if chosen.url is not None and not chosen.exam and not chosen.lm_eval:
        raise SettingsError("--url is asked for an --exam or for --lm-eval, and neither is given")
    if chosen.url is not None and chosen.model is None:
        raise SettingsError(
            "--url needs the MODEL that it serves beside it: its tokenizer and name"
        )
    if chosen.text is None and chosen.thresholds:
        raise SettingsError("--thresholds are tried on a --text, and none is given")
    _check_pages(chosen)
    if chosen.text is not None and not Path(chosen.text).is_file():
        raise SettingsError(f"--text: there is no file {chosen.text}")
    if chosen.include_path is not None and not Path(chosen.include_path).is_dir():
        raise SettingsError(f"--include-path: there is no folder {chosen.include_path}")
    if chosen.lm_eval:
        find_lm_eval()
    return [question for name in chosen.exam for question in read_exam(Path(name))]


def _check_pages(chosen: EvaluateFlags) -> None:
    """Whether the flags on sparse attention go together; raises SettingsError."""
    if not chosen.page_budgets:
        for flag, given in (
            ("--attention", chosen.attention),
            ("--attention-gates", chosen.attention_gates),
            ("--page-size", chosen.page_size),
        ):
            if given:
                raise SettingsError(f"{flag} is tried at --page-budgets, and none is given")
    elif chosen.text is None and not chosen.exam:
        raise SettingsError(
            "--page-budgets are tried on a --text or in an --exam, and neither is given"
        )
    for flag, given, has in (
        ("--attention-gates", chosen.attention_gates, "gates of its own, if any"),
        ("--page-size", chosen.page_size, "pages of its own"),
    ):
        if given and chosen.url is not None and chosen.text is None:
            raise SettingsError(f"{flag}: the server at --url has {has}, and no --text is given")
