"""`turbosparse evaluate`: what a model computes, on text and on tasks, exact and otherwise.

Text goes through the decoder in this process; tasks are asked of a server, over HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import tempfile
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import torch

from ... import __version__
from ...models.fields import Json, as_object
from ...models.kernels import ops
from ...models.load import choose_device, choose_dtype, load, read_config
from ...models.machine import commit, processor, software
from ...models.neurons import predictors_of
from ...models.tools import evaluation, report, verdict
from .. import flags
from ..checkpoint import Located, locate, locate_predictors
from ..flags import SettingsError
from .bench import served
from .client import ClientError
from .evaluate_flags import EvaluateFlags, check
from .exam import Answered, Question, score, take
from .lm_eval import Scores, run_tasks
from .page_exam import ask_again
from .page_plan import Pages, attach_gates, plan_pages, server_flags

VERSION = 1  # of evaluation.json
KEEPS_ALL = -1e6  # the lowest threshold that the API takes: below every score


@dataclass(frozen=True, slots=True)
class Target:
    """A server to ask, and what it says that it is."""

    url: str
    key: str
    name: str
    info: Json

    def functions(self) -> dict[str, Json]:
        """What it can compute, by name, and a request's fields for each."""
        if not self.info["exact"]:
            return {evaluation.APPROXIMATE: {}}
        found: dict[str, Json] = {evaluation.EXACT: {}}
        if self.info["predictors"] is not None:
            keeps_all = {"mode": "approximate", "threshold": KEEPS_ALL}
            found[evaluation.MASK_OFF] = {"sparsity": keeps_all}
        return found


@dataclass(slots=True)
class OnAttention:
    """What reading a part of the context costs."""

    text: Json | None = None
    exam: Json | None = None


@dataclass(slots=True)
class Found:
    """What was measured so far, as it will be written."""

    model: Json | None = None
    text: Json | None = None
    exam: dict[str, Json] = field(default_factory=dict[str, Json])  # function -> task -> score
    tasks: dict[str, Scores] = field(default_factory=dict[str, Scores])
    attention: OnAttention = field(default_factory=OnAttention)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    flags.add_arguments(parser, EvaluateFlags)


def run(arguments: argparse.Namespace) -> int:
    """Write both files and print the verdict; returns 1 where exact and dense disagree.

    Raises SettingsError, CheckpointError, ClientError and ModelError.
    """
    chosen = flags.read(EvaluateFlags, vars(arguments))
    questions = check(chosen)
    out = _folder(chosen.out)
    located, predictors = locate(chosen.model), locate_predictors(chosen.predictors)
    named = None if chosen.url is None else _target(chosen.url, *chosen.api_key[:1])
    pages = plan_pages(chosen, located, None if named is None else named.info)
    found = Found()
    if chosen.text is not None:
        _measure_text(found, chosen, located, predictors, pages)
    if questions or chosen.lm_eval:
        for target in [named] if named else _targets(chosen, located, predictors, pages):
            _ask(found, chosen, target, located, questions, pages)
    record = _record(found, chosen)
    _write(out, record)
    print("\n".join(record["verdict"]))
    print(f"wrote {out / 'evaluation.json'} and {out / 'evaluation.html'}")
    return 1 if record["agrees"] is False else 0


def _folder(name: str) -> Path:
    """--out, made, and known to be writable."""
    out = Path(name)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            return out
    except OSError as error:
        raise SettingsError(f"--out: {name} cannot be written: {error}") from error


def _measure_text(
    found: Found, chosen: EvaluateFlags, located: Located, predictors: str | None, pages: Pages
) -> None:
    """The model is gone from memory afterwards: a server may need it."""
    assert chosen.text is not None
    config, device = read_config(located.directory)[1], choose_device(chosen.device)
    dtype = choose_dtype(chosen.dtype, device, config)
    model = load(
        located.directory,
        device,
        dtype,
        predictors=None if predictors is None else Path(predictors),
        progress=True,
    )
    if pages.gates is not None and pages.text is not None:
        attach_gates(model.decoder, pages.gates, located.directory, pages.text.page_size)
    num_threads = chosen.threads or len(os.sched_getaffinity(0))
    ops.set_num_threads(num_threads, model.decoder.ops)
    plan = evaluation.Plan(
        text=Path(chosen.text),
        num_tokens=chosen.tokens,
        window=evaluation.choose_window(chosen.window, config),
        batch_sizes=chosen.batch_sizes,
        thresholds=chosen.thresholds or None,
        seed=chosen.seed,
        pages=pages.text,
    )
    measured = evaluation.evaluate(model, located.directory, plan)
    found.text = {"file": Path(chosen.text).name, "seed": chosen.seed} | measured.as_json()
    if measured.attention is not None:
        found.attention.text = measured.attention.as_json()
    found.model = _model(
        located,
        separate=model.predictors is not None if predictors_of(model.decoder) else None,
        dtype=str(dtype).removeprefix("torch."),
        num_parameters=model.num_parameters,
        approximation=model.approximation,
    )
    del model
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _model(located: Located, *, separate: bool | None, **facts: object) -> Json:
    """What the model is, for the record; `separate` is None where it has no predictors."""
    config = read_config(located.directory)[1]
    owner = "separate" if separate else "own"
    return {
        "name": located.name,
        "family": config.family,
        "activation": config.activation.value,
        "num_layers": config.num_layers,
        "num_neurons": config.num_neurons,
        "num_experts": config.num_experts,
        "predictors": None if separate is None else owner,
    } | facts


def _targets(
    chosen: EvaluateFlags, located: Located, predictors: str | None, pages: Pages
) -> Generator[Target]:
    """A server of ours for each function, while it is asked."""
    same = ["--device", chosen.device, "--dtype", chosen.dtype, "--log-level", "warning"]
    same += ["--served-model-name", located.name]
    if chosen.threads is not None:
        same += ["--threads", str(chosen.threads)]
    for more in [server_flags(pages), *([["--predictors", predictors]] if predictors else [])]:
        with served(str(located.directory), [*same, *more]) as url:
            yield _target(url)


def _target(url: str, key: str = "") -> Target:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=url, headers=headers) as http:
            name = http.get("/v1/models").raise_for_status().json()["data"][0]["id"]
            info = http.get("/health").raise_for_status().json()["engine"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise ClientError(f"{url} does not answer as a turbosparse server: {error}") from error
    return Target(url, key, name, info)


def _ask(
    found: Found,
    chosen: EvaluateFlags,
    target: Target,
    located: Located,
    questions: list[Question],
    pages: Pages,
) -> None:
    """The exam for each function that the server can compute, the tasks for the one it serves."""
    functions = target.functions()
    if questions:
        _ask_exam(found, target, questions, pages)
    if chosen.lm_eval:
        found.tasks[next(iter(functions))] = run_tasks(
            target.url,
            target.key,
            target.name,
            located.directory,
            int(str(target.info["max_model_len"])),
            chosen.lm_eval,
            chosen.include_path,
        )
    chooses = target.info["predictors"]
    found.model = found.model or _model(
        located,
        separate=None if chooses is None else bool(as_object(chooses, "predictors")["separate"]),
        dtype=target.info["dtype"],
        num_parameters=target.info["num_parameters"],
        approximation=target.info["approximation"],
    )


def _ask_exam(found: Found, target: Target, questions: list[Question], pages: Pages) -> None:
    """With sparse attention too, beside the first function of the first server."""
    answers: dict[str, list[Answered]] = {}
    for name, fields in target.functions().items():
        answers[name] = asyncio.run(take(target.url, target.key, questions, fields))
        found.exam[name] = {task: one.as_json() for task, one in score(answers[name]).items()}
    if pages.exam is not None and found.attention.exam is None:
        first = next(iter(answers.values()))
        found.attention.exam = ask_again(target.url, target.key, target.info, first, pages.exam)


def _record(found: Found, chosen: EvaluateFlags) -> dict[str, Any]:
    """All of it, as a reader of the JSON file gets it."""
    record: dict[str, Any] = {"version": VERSION, "facts": _facts(chosen)} | asdict(found)
    record = json.loads(json.dumps(record, allow_nan=False))
    record["agrees"] = verdict.agrees(record)
    record["verdict"] = verdict.verdict(record)
    return record


def _facts(chosen: EvaluateFlags) -> dict[str, str]:
    """Where this was run, and how to run it again."""
    on_gpu = chosen.device != "cpu" and torch.cuda.is_available()
    return {
        "machine": torch.cuda.get_device_name() if on_gpu else processor(),
        "software": f"turbosparse {__version__}, " + software("torch", "triton"),
        "commit": commit(),
        "command": _command(chosen),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def _command(chosen: EvaluateFlags) -> str:
    """The flags that are not as by default; no secret."""
    words = ["turbosparse", "evaluate"]
    for name, value in flags.changed(chosen).items():
        parts = cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,)
        text = ",".join(map(str, parts))
        words += [text] if name == "model" else [f"--{name.replace('_', '-')}={text}"]
    return shlex.join(words)


def _write(out: Path, record: dict[str, Any]) -> None:
    """Both files whole, or neither."""
    texts = {
        "evaluation.json": json.dumps(record, indent=2, ensure_ascii=False) + "\n",
        "evaluation.html": report.page(record),
    }
    try:
        for name, text in texts.items():
            (out / f"{name}.part").write_text(text, "utf-8")
        for name in texts:
            os.replace(out / f"{name}.part", out / name)
    except OSError as error:
        raise SettingsError(f"--out: {out} cannot be written: {error}") from error
    finally:
        for name in texts:
            (out / f"{name}.part").unlink(missing_ok=True)
