"""What is seen, measured and kept while a model recovers: the Trainer's callbacks.

Knows what a training step says about itself, not what it does.
"""
# pyright: basic

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import TrainerCallback, TrainingArguments

from ..config import Activation
from ..fields import read_object
from .mlp import KEPT
from .output import write_json
from .recovery import POSITION, Recovery, next_token_loss
from .surgery import Phase, activate, enter, feed_forwards


@dataclass(frozen=True, slots=True)
class Measured:
    """A model on text that it was not trained on."""

    loss: float  # nats a token
    kept: tuple[float, ...]  # share of each layer's neurons


@torch.no_grad()
def measure(
    model: nn.Module, rows: list[list[int]], device: torch.device, masked: bool
) -> Measured:
    """Loss and kept shares over some rows, one at a time."""
    was_training = model.training
    model.eval()
    enter(model, Phase(masked=masked))
    losses, kept = [], []
    for row in rows:
        ids = torch.tensor([row], device=device)
        losses.append(next_token_loss(model(input_ids=ids).logits, ids).double())
        kept.append(torch.stack([layer.statistics[KEPT] for layer in feed_forwards(model)]))
    model.train(was_training)
    return Measured(torch.stack(losses).mean().item(), tuple(torch.stack(kept).mean(0).tolist()))


class Measuring(TrainerCallback):
    """The source, the source after surgery and what was recovered, on the same held-out rows.

    What comes out is measured as it will be stored: its weights are rounded first.
    """

    def __init__(self, rows: list[list[int]], dtype: torch.dtype, work: Path) -> None:
        self.rows, self.dtype = rows, dtype
        self.file = work / "measured.json"
        self.measured = dict(read_object(self.file, optional=True))

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        assert model is not None
        if state.global_step == 0:
            own = feed_forwards(model)[0].mlp.activation
            activate(model, Activation.SILU)
            self._measure("source", model, args)
            activate(model, own)
            self._measure("surgery", model, args)

    def on_train_end(self, args, state, control, model=None, **kwargs) -> None:
        assert model is not None
        if state.global_step >= state.max_steps:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.copy_(parameter.to(self.dtype))
            self._measure("recovered", model, args, masked=True)

    def _measure(
        self, name: str, model: nn.Module, args: TrainingArguments, *, masked: bool = False
    ) -> None:
        if not self.rows:
            return
        found = measure(model, self.rows, args.device, masked)
        # Before training the predictors know nothing: what they keep says nothing.
        kept = {"kept": list(found.kept)} if name == "recovered" else {}
        self.measured[name] = {"loss": found.loss, **kept}
        if args.process_index == 0:
            write_json(self.file, self.measured)
            print(f"held-out loss, {name}: {found.loss:.4f}", flush=True)


class Report(TrainerCallback):
    """A line each time that something is measured, a bar on a terminal, curves for TensorBoard."""

    def __init__(self, curves: Path) -> None:
        self.curves = curves
        self.bar = self.writer = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if state.is_world_process_zero:
            self.writer = SummaryWriter(str(self.curves))
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, unit="step", disable=None
            )

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n if not self.bar.disable else 0)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        logs = logs or {}
        if self.writer is None or self.bar is None or "task_loss" not in logs:
            return
        for name, value in logs.items():
            self.writer.add_scalar(name, value, state.global_step)
        self.writer.flush()
        apart = f"  divergence {logs['divergence']:.4f}" if "divergence" in logs else ""
        self.bar.write(
            f"step {state.global_step:6}/{state.max_steps}  loss {logs['task_loss']:.4f}{apart}  "
            f"imitation {logs['imitation']:.4f}  kept {logs['density']:6.1%}  "
            f"lr {logs['learning_rate']:.1e}"
        )

    def on_train_end(self, args, state, control, **kwargs) -> None:
        if self.writer is not None and self.bar is not None:
            self.bar.close()
            self.writer.close()


class Interruption(TrainerCallback):
    """SIGTERM or Ctrl-C: the step is finished and kept, then training ends, on all processes."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before = {}

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one does not wait
        self.signal = signal.Signals(number)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if args.world_size > 1:
            heard = torch.tensor(self.signal or 0, device=args.device)
            torch.distributed.all_reduce(heard, torch.distributed.ReduceOp.MAX)
            self.signal = signal.Signals(int(heard)) if heard else None
        if self.signal is not None:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Keeper(TrainerCallback):
    """The data's position, written last: a checkpoint without it was cut short."""

    def __init__(self, trainer: Recovery, work: Path) -> None:
        self.trainer, self.work = trainer, work

    def on_save(self, args, state, control, **kwargs) -> None:
        if args.world_size > 1:
            torch.distributed.barrier()
        if state.is_world_process_zero:
            folder = self.work / f"checkpoint-{state.global_step}"
            write_json(folder / POSITION, self.trainer.position)
