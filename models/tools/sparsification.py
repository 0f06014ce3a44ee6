"""One run of `sparsify`: surgery, recovery, and the checkpoint that comes out."""
# pyright: basic

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any

import torch
import transformers
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import AutoConfig, PrinterCallback, TrainingArguments

from ... import __version__
from ..config import Activation, ModelError
from ..fields import Json, as_object, read_object
from ..load import DTYPES
from .layout import copy_kept, published_config, published_tensors
from .mix import Encoder, Rows, Source
from .output import filled, write_json
from .plan import ACTIVATIONS, Plan, check_same
from .recovery import (
    POSITION,
    Machine,
    Recovery,
    last_checkpoint,
    last_step,
    training_arguments,
)
from .sparse_card import model_card
from .surgery import checkpoint_activations, load_dense, make_sparse
from .watching import Interruption, Keeper, Measuring, Report

RUN, CURVES = "run.json", "tensorboard"


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be made of what; `work` keeps the checkpoints on the way."""

    source: Path
    settings: Json  # the source's config.json
    plan: Plan
    machine: Machine
    sources: tuple[Source, ...]
    encoder: Encoder
    held_out: list[list[int]]
    work: Path
    out: Path

    @property
    def activation(self) -> Activation:
        return ACTIVATIONS[self.plan.activation]

    def identity(self) -> Json:
        """What must be the same for an interrupted run to go on."""
        data = [{**text.as_json(), "bytes": text.path.stat().st_size} for text in self.sources]
        others = {"model": str(self.source.resolve()), "data": data, "fsdp": self.machine.fsdp}
        return as_object(json.loads(json.dumps(self.plan.as_json() | others)), "run")


def sparsify(job: Job, *, resume: bool) -> int:
    """Returns the exit status, 128 + the signal where one ended it; raises ModelError."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    described = AutoConfig.from_pretrained(job.source, local_files_only=True)
    config = published_config(job.settings, described, job.activation)
    arguments = training_arguments(job.plan, job.machine, job.work)
    if arguments.process_index == 0:
        begin(job)
    checkpoint = last_checkpoint(job.work) if resume else None
    trainer = make_trainer(job, arguments, checkpoint)
    interruption = Interruption()
    measuring = Measuring(job.held_out, DTYPES[str(config["torch_dtype"])], job.work)
    trainer.remove_callback(PrinterCallback)
    for callback in (Report(job.work / CURVES), Keeper(trainer, job.work), interruption, measuring):
        trainer.add_callback(callback)
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    seconds = time.perf_counter() - started
    if interruption.signal is not None:
        say_interrupted(trainer, interruption.signal)
        return 128 + interruption.signal
    assert trainer.model is not None
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: Any = get_model_state_dict(trainer.model, options=whole)
    if arguments.process_index == 0:
        record = record_of(job, trainer, measuring.measured, seconds, last_step(checkpoint))
        write(job, config, state, record)
        print(f"wrote {job.out}: {record['mean_density']:.1%} of the neurons kept")
    trainer.accelerator.end_training()
    return 0


def begin(job: Job) -> None:
    """Note what this run is, or raise ModelError where the one to go on with was another."""
    noted = job.work / RUN
    if noted.is_file():
        check_same(read_object(noted), job.identity())
        return
    shutil.rmtree(job.work, ignore_errors=True)
    job.work.mkdir(parents=True)
    write_json(noted, job.identity())


def make_trainer(job: Job, arguments: TrainingArguments, checkpoint: Path | None) -> Recovery:
    plan = job.plan
    model = load_dense(job.source)
    torch.manual_seed(plan.seed)
    make_sparse(model, job.activation, plan.rank or 0)
    check_room(job, sum(p.numel() for p in model.parameters()))
    if job.machine.checkpointing:
        checkpoint_activations(model)
    teacher = None
    if plan.distill:
        teacher = load_dense(
            job.source, torch.bfloat16 if plan.precision == "bf16" else torch.float32
        )
    position = None if checkpoint is None else read_object(checkpoint / POSITION)
    rows = Rows(job.sources, job.encoder, plan.sequence_length or 0, plan.seed, position)
    return Recovery(model, teacher, plan, rows, last_step(checkpoint), arguments)


def check_room(job: Job, num_parameters: int) -> None:
    """Raise ModelError where two checkpoints with AdamW's moments and the result do not fit."""
    held = sum(path.stat().st_size for path in job.work.rglob("*") if path.is_file())
    needed = num_parameters * 4 * (2 * 3 + 1) - held
    free = shutil.disk_usage(job.out.parent).free
    if free < needed:
        raise ModelError(
            f"--out: {job.out.parent} has {free / 1e9:.1f} GB free; the checkpoints on the way "
            f"and the result take up to {needed / 1e9:.1f} GB"
        )


def say_interrupted(trainer: Recovery, ended_by: Signals) -> None:
    if trainer.args.process_index == 0:
        print(
            f"{ended_by.name}: stopped after step {trainer.state.global_step} of "
            f"{trainer.state.max_steps}, which is kept: --resume goes on from there",
            flush=True,
        )
    trainer.accelerator.end_training()


def record_of(
    job: Job, trainer: Recovery, measured: dict[str, Any], seconds: float, resumed_from: int
) -> dict[str, Any]:
    """What sparsify.json says."""
    last = next(logs for logs in reversed(trainer.state.log_history) if "task_loss" in logs)
    layers = [last[f"density/layer_{i:02}"] for i in range(len(trainer.layers))]
    density = list(measured["recovered"]["kept"]) if "recovered" in measured else layers
    device = trainer.args.device
    return {
        "source": job.source.resolve().name,
        "plan": job.plan.as_json(),
        "data": [text.as_json() for text in job.sources],
        "steps": job.plan.num_steps,
        "tokens": job.plan.num_steps * job.plan.batch_tokens,
        "seconds": round(seconds, 1),  # from `resumed_from` on
        "resumed_from": resumed_from,
        "measured": measured,
        "last": {k: v for k, v in last.items() if not k.startswith("density/")},
        "density": density,
        "mean_density": sum(density) / len(density),
        "devices": trainer.args.world_size,
        "hardware": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "versions": {
            "turbosparse": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def write(job: Job, config: Json, state: Mapping[str, Tensor], record: dict[str, Any]) -> None:
    """The checkpoint directory, whole; then the checkpoints on the way are not needed any more."""
    tensors = dict(published_tensors(state, DTYPES[str(config["torch_dtype"])]))
    if config["tie_word_embeddings"]:
        tensors.pop("lm_head.weight", None)
    with filled(job.out) as folder:
        save_torch_state_dict(tensors, folder)
        copy_kept(job.source, folder)
        write_json(folder / "config.json", config)
        write_json(folder / "sparsify.json", record)
        (folder / "README.md").write_text(model_card(record), encoding="utf-8")
    (job.work / RUN).unlink()
    for checkpoint in job.work.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
