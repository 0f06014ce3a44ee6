"""Continued pretraining of a model made sparse, on transformers' Trainer.

What a step's loss is, where the data stands, what is said and kept on the way. Knows no layout.
"""
# pyright: basic

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel, Trainer, TrainingArguments

from ..config import ModelError
from .mix import Rows
from .mlp import IMITATION, KEPT
from .plan import Plan
from .surgery import Phase, enter, feed_forwards

POSITION = "position.json"
NO_FSDP = "--fsdp: there are not several GPUs, each with a process of torchrun"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Machine:
    """How the work is spread and watched: none of it changes what comes out."""

    micro_batch: int = 1  # rows of one forward pass on one device
    save_steps: int = 500
    log_steps: int = 10
    fsdp: bool = False
    checkpointing: bool = False


class Batches(IterableDataset):
    """This process's part of each batch, and where the stream stands after all of it."""

    def __init__(self, rows: Rows, size: int, count: int, process: int, num_processes: int) -> None:
        self.rows, self.size, self.count = rows, size, count
        self.process, self.num_processes = process, num_processes

    def __iter__(self) -> Iterator[dict]:
        return ahead(self._batches())

    def _batches(self) -> Iterator[dict]:
        """Every process reads all rows, so that they do not depend on the number of processes."""
        mine = slice(self.process * self.size, (self.process + 1) * self.size)
        for _ in range(self.count):
            rows = [next(self.rows) for _ in range(self.size * self.num_processes)]
            yield {"input_ids": torch.tensor(rows[mine]), "position": self.rows.position}


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same; each is made on a thread while the one before is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean over all tokens but the first of a row, in nats."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² KL(teacher || student) of the softened next token, mean over tokens (Hinton 2015)."""
    student, teacher = (x.flatten(0, 1).float() / temperature for x in (logits, teacher))
    return temperature**2 * F.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True
    )


class Recovery(Trainer):
    """Trainer with the plan's losses, its phases, and its data's position in each checkpoint."""

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: PreTrainedModel | None,
        plan: Plan,
        rows: Rows,
        num_done: int,
        arguments: TrainingArguments,
    ) -> None:
        """`rows` stand where the step after `num_done` begins."""
        self.plan, self.position = plan, rows.position
        super().__init__(model=model, args=arguments)
        self.model_accepts_loss_kwargs = False  # a batch's loss is its mean: no tokens are padding
        sharding = getattr(self.accelerator.state, "fsdp_plugin", None)
        if arguments.fsdp and sharding is None:
            raise ModelError(NO_FSDP)  # accelerate does without, and says nothing
        if sharding is not None and arguments.bf16:
            # accelerate would add up the processes' gradients in bf16, too.
            sharding.mixed_precision_policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
        self.teacher = teacher
        if teacher is not None:
            nn.Module.to(teacher.eval(), arguments.device)
        self.layers = feed_forwards(model)
        self.batches = Batches(
            rows,
            arguments.per_device_train_batch_size,
            (plan.num_steps - num_done) * arguments.gradient_accumulation_steps,
            arguments.process_index,
            arguments.world_size,
        )
        self._forget()

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)

    def phase(self) -> Phase:
        """What the layers are to do in the step that comes."""
        plan, share = self.plan, 1 / self.current_gradient_accumulation_steps
        if not plan.is_masked(self.state.global_step):
            return Phase(imitation=share * plan.imitation)
        # Once the mask is in the forward pass it is learned through; imitation only steadies it.
        return Phase(
            masked=True,
            target=plan.target,
            imitation=share * plan.imitation / 10,
            pressure=share * plan.pressure,
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        assert not return_outputs
        self.position = inputs["position"]
        ids = inputs["input_ids"]
        enter(model, self.phase())
        logits = model(input_ids=ids).logits
        task = next_token_loss(logits, ids)
        distance = torch.zeros_like(task)
        if self.teacher is not None:
            with torch.no_grad():
                wanted = self.teacher(input_ids=ids).logits
            distance = divergence(logits, wanted, self.plan.temperature)
        self._remember(task, distance)
        return task + self.plan.distill * distance

    def _forget(self) -> None:
        self._losses = torch.zeros(2, device=self.args.device)
        self._statistics = torch.zeros(len(self.layers), 3, device=self.args.device)
        self._num_passes = 0

    def _remember(self, task: Tensor, distance: Tensor) -> None:
        self._losses += torch.stack((task.detach(), distance.detach()))
        self._statistics += torch.stack([layer.statistics for layer in self.layers])
        self._num_passes += 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With the losses apart, and each layer's kept share: means since the last time."""
        if self._num_passes and "loss" in logs:
            losses = self._mean(self._losses)
            statistics = self._mean(self._statistics)
            self._forget()
            if not math.isfinite(logs["loss"]):
                raise ModelError(
                    f"step {self.state.global_step}: the loss is {logs['loss']}: try a lower "
                    f"--learning-rate than {self.plan.learning_rate:g}"
                )
            logs |= {"task_loss": losses[0].item()}
            if self.teacher is not None:
                logs |= {"divergence": losses[1].item()}
            logs |= {"imitation": statistics[:, IMITATION].mean().item()}
            logs |= {"density": statistics[:, KEPT].mean().item()}
            logs |= {f"density/layer_{i:02}": s.item() for i, s in enumerate(statistics[:, KEPT])}
        super().log(logs, start_time)

    def _save_checkpoint(self, *args, **kwargs) -> None:
        try:
            super()._save_checkpoint(*args, **kwargs)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"{self.args.output_dir} cannot be written: {error}; --resume goes on from the "
                "last checkpoint that is whole"
            ) from error

    def _mean(self, total: Tensor) -> Tensor:
        return torch.as_tensor(self.accelerator.reduce(total / self._num_passes, "mean")).cpu()


def last_checkpoint(work: Path) -> Path | None:
    """The newest one that is whole."""
    whole = [path.parent for path in work.glob(f"checkpoint-*/{POSITION}")]
    return max(whole, key=last_step, default=None)


def training_arguments(plan: Plan, machine: Machine, work: Path) -> TrainingArguments:
    """Raises ModelError where a step's rows cannot be shared among the devices."""
    arguments = TrainingArguments(
        fsdp="full_shard auto_wrap" if machine.fsdp else None,
        fsdp_config={"state_dict_type": "SHARDED_STATE_DICT"} if machine.fsdp else None,
        output_dir=str(work),
        max_steps=plan.num_steps,
        per_device_train_batch_size=machine.micro_batch,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": plan.final_learning_rate},
        warmup_steps=plan.warmup_steps or 0,
        weight_decay=plan.weight_decay,
        adam_beta1=0.9,
        adam_beta2=0.95,
        max_grad_norm=plan.clip,
        bf16=plan.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        logging_steps=machine.log_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_steps=machine.save_steps,
        save_total_limit=2,  # the older one stays until the newer is whole
        ignore_data_skip=True,  # the data goes on from its own position
        ddp_find_unused_parameters=False,
        report_to="none",
        disable_tqdm=True,
        seed=plan.seed,
    )
    if arguments.n_gpu > 1:
        raise ModelError(
            f"{arguments.n_gpu} GPUs are visible to one process: start one for each with torchrun, "
            "or choose one by CUDA_VISIBLE_DEVICES"
        )
    if machine.fsdp and arguments.world_size < 2:
        raise ModelError(NO_FSDP)
    together = machine.micro_batch * arguments.world_size
    if plan.rows_per_step % together:
        raise ModelError(
            f"--batch-tokens {plan.batch_tokens} is {plan.rows_per_step} rows of "
            f"{plan.sequence_length}, which --micro-batch {machine.micro_batch} on "
            f"{arguments.world_size} devices does not divide"
        )
    arguments.gradient_accumulation_steps = plan.rows_per_step // together
    return arguments


def last_step(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.name.partition("-")[2])
