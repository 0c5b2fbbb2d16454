"""What is asked before each optimizer step: are its numbers finite, and does the run end after it?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from zoo.command import TERMINATED, Diverged, end_at_once, on_sigterm
from zoo.run_directory import RunDirectory

_NAMED = 8  # studies in the message


class StepGuard(Callback):
    """Ends a run, on all processes together, before a step that would spoil the weights, or after one when told to.

    One sum over the processes a step tells each of them the same: whether every loss of the effective batch and every
    gradient is a number, and whether one of them was sent SIGTERM (SLURM's preemption). Without the latter they would
    end at different steps, and wait for each other for ever. With fp16 a gradient may overflow, which the loss scaling
    heals: there only the loss is judged.

    Args:
        run: The run's folder.

    Attributes:
        ending: Whether SIGTERM came: the run ends as soon as `last` is written.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.ending = self._told = False
        self._ids: list[str] = []
        self._losses: list[tuple[list[str], Tensor]] = []  # of the micro-batches since the last step

    # SIGTERM. Lightning's own handler speaks to the other processes from within the signal, in the middle of whatever
    # they are saying to each other.

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._losses = []
        on_sigterm(self._tell)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        on_sigterm(end_at_once)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        on_sigterm(end_at_once)

    def _tell(self, *_: Any) -> None:
        self._told = True

    def leave(self) -> None:
        """Ends the run where it was told to; called when `last` is written."""
        if self.ending:
            raise SystemExit(TERMINATED)

    # Numbers.

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any) -> None:
        self._ids = list(batch["ids"])

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._losses.append((self._ids, loss.detach().float()))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Raises `Diverged`, on every process, where a loss or a gradient of any of them is no number."""
        if len(self._losses) < trainer.accumulate_grad_batches:
            return  # DeepSpeed counts the micro-batches itself, and is called at each
        losses, self._losses = self._losses, []
        total = torch.stack([loss for _, loss in losses]).sum()
        if not str(trainer.precision).startswith("16"):
            total = total + _norm(_gradients(trainer, pl_module), total)
        told = torch.full_like(total, self._told)
        agreed: Any = trainer.strategy.reduce(torch.stack([total, told]), reduce_op="sum")
        number, terminated = agreed.tolist()
        self.ending = terminated > 0
        if not math.isfinite(number):
            raise Diverged(self._what(trainer, losses))

    def _what(self, trainer: L.Trainer, losses: list[tuple[list[str], Tensor]]) -> str:
        spoilt = [name for names, loss in losses if not loss.isfinite() for name in names]
        everyone = [name for names, _ in losses for name in names]
        all_spoilt, all_names = (_of_all(names) for names in (spoilt, everyone))
        what = "the loss is no number" if all_spoilt else "the loss is a number, but a gradient is none"
        names = all_spoilt or all_names
        told = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        kept = self.run.resumable()
        return (
            f"step {trainer.global_step + 1} (epoch {trainer.current_epoch + 1}), studies {told}: {what} (NaN or "
            f"infinite), so the step was not made; last good checkpoint: {kept or 'none yet'}. To go on from there "
            "comes to the same again: look at these studies, or begin a new run with a lower learning rate"
        )


def _gradients(trainer: L.Trainer, pl_module: L.LightningModule) -> Iterable[Tensor]:
    """The gradients of this step that lie in this process: under ZeRO its share of their mean."""
    zero = getattr(getattr(trainer.strategy, "deepspeed_engine", None), "optimizer", None)
    if zero is None:
        return (weight.grad for weight in pl_module.parameters() if weight.grad is not None)
    if zero.cpu_offload:
        return (share.grad for share in zero.single_partition_of_fp32_groups if share.grad is not None)
    return (gradient for share in zero.averaged_gradients.values() for gradient in share or ())


def _norm(gradients: Iterable[Tensor], like: Tensor) -> Tensor:
    """Finite just where all gradients are, unless their squares overflow."""
    return torch.nn.utils.get_total_norm(list(gradients)).to(like)


def _of_all(names: list[str]) -> list[str]:
    """The names of all processes, in the order of their ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return names
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, names)
    return [name for part in parts for name in part]
