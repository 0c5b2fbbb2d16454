"""How a fit is spread over devices: `auto`, `ddp`, `zero2` and `zero2_offload` (DeepSpeed ZeRO stage 2, on GPUs and on
CPU processes; the latter with the optimizer's state and step on the CPU).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy
from lightning.pytorch.strategies.ddp import DDPStrategy
from lightning.pytorch.strategies.deepspeed import remove_module_hooks
from torch import Tensor

from zoo.command import UsageError
from zoo.config import ZERO
from zoo.run_directory import COMPLETE, atomic_write, is_complete, sync_folder

# Elements in one communication bucket. The authors' 1e9 reserves 1.86 GiB and ran out of memory on their 24 GB cards;
# all of Reg2RG's 5.3e7 trainable weights fit into one of these.
BUCKET = 50_000_000


def build_strategy(name: str, cpu: bool, bucket: int = BUCKET) -> str | Strategy:
    """The strategy called `name` (`trainer.strategy`) on GPUs or on CPU processes."""
    if name == "ddp":
        return DDPStrategy(find_unused_parameters=False, process_group_backend="gloo" if cpu else None)
    if name in ZERO:
        offload = name == "zero2_offload"
        return CpuZeroStrategy(bucket, offload) if cpu else ZeroStrategy(bucket, offload)
    return name


class ZeroStrategy(DeepSpeedStrategy):
    """ZeRO stage 2: every process holds the weights, and its share of the gradients and of the optimizer's state.

    Parameters and inputs are cast to the Trainer's precision as a whole, with fp32 masters in the optimizer: there is
    no autocast, whatever the precision is called. Frozen weights that come from files stay out of checkpoints.

    Args:
        bucket: Elements in one communication bucket.
        offload: Gradients, fp32 masters and AdamW's moments lie in the machine's memory, and the CPU makes the step
            (ZeRO-Offload, Ren et al. 2021). It is the method's own optimizer that makes it: DeepSpeed's CPU Adam is
            several times faster, but is compiled on first use and takes other steps (1e-4 apart).
    """

    def __init__(self, bucket: int = BUCKET, offload: bool = False, **options: Any) -> None:
        super().__init__(
            stage=2, allgather_bucket_size=bucket, reduce_bucket_size=bucket, overlap_comm=True,
            contiguous_gradients=True, offload_optimizer=offload, pin_memory=offload, logging_level=logging.ERROR,
            **options,
        )  # fmt: skip
        self.offload = offload
        if offload:
            config: Any = self.config
            config["zero_force_ds_cpu_optimizer"] = False  # else it refuses all optimizers but its own

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Offloaded, does what DeepSpeed 0.19.8 omits for a weight that not every batch of a step gives a gradient.

        Left to itself it takes that of the step before for it, or drops what an earlier batch of the step gave it.
        """
        if not self.offload:
            return super().backward(closure_loss, optimizer, *args, **kwargs)
        engine, zero = self.deepspeed_engine, self.deepspeed_engine.optimizer
        if engine.micro_steps % engine.gradient_accumulation_steps() == 0:
            shares = [share.grad for share in zero.single_partition_of_fp32_groups]
            for gradient in (*shares, *zero.accumulated_grads_in_cpu.values()):
                gradient.zero_()
        loss = super().backward(closure_loss, optimizer, *args, **kwargs)
        if engine.is_gradient_accumulation_boundary():
            zero._offload_accumulated_param_ids -= zero.norm_for_param_grads.keys()  # those that this batch left out
            zero._finalize_cpu_offload_gradient_accumulation()
        return loss

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Writes a folder beside the place, marks it complete, and exchanges the two by renaming."""
        place = Path(self.broadcast(str(filepath)))
        partial, previous = (place.with_name(f"{place.name}.{state}") for state in ("partial", "previous"))
        if self.is_global_zero:
            shutil.rmtree(partial, ignore_errors=True)
            place.parent.mkdir(parents=True, exist_ok=True)
        self.barrier("checkpoint folder")
        self.exclude_frozen_parameters = self._frozen_have_files()
        names = list(checkpoint["state_dict"])
        super().save_checkpoint({**checkpoint, "weight_names": names}, partial, storage_options)
        self.barrier("checkpoint written")
        if self.is_global_zero:
            atomic_write(partial / COMPLETE, json.dumps({"world_size": self.world_size}))
            if place.exists():
                shutil.rmtree(previous, ignore_errors=True)
                place.rename(previous)
            partial.rename(place)
            sync_folder(place.parent)
            shutil.rmtree(previous, ignore_errors=True)
        self.barrier("checkpoint in place")

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads what `save_checkpoint` wrote; only ever your own, for DeepSpeed unpickles it.

        Raises:
            UsageError: It is a single file, is not whole, or was made by another number of processes.
        """
        path = Path(checkpoint_path)
        if path.is_file():
            raise UsageError(f"{path} is a checkpoint of one file; it resumes with trainer.strategy=auto or ddp")
        if not is_complete(path):
            raise UsageError(f"{path} is not a whole ZeRO checkpoint")
        made_by = json.loads((path / COMPLETE).read_text())["world_size"]
        if made_by != self.world_size and self.lightning_module is not None and self.lightning_module.trainer.training:
            raise UsageError(
                f"{path} was made by {made_by} processes and there are {self.world_size}: ZeRO shares its optimizer "
                "state among them and resumes only with the same number"
            )
        state = super().load_checkpoint(path, weights_only)
        # DeepSpeed has put the weights in place and keeps them to itself; what the method checks is their names.
        state["state_dict"] = dict.fromkeys(state.pop("weight_names"))
        return state

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Does nothing: `load_checkpoint` has loaded them."""

    def _frozen_have_files(self) -> bool:
        """Whether every frozen weight can be had again from its file."""
        module = self.lightning_module
        files = tuple(getattr(module, "frozen_files", dict)())
        frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]  # type: ignore[union-attr]
        return bool(files) and all(name.startswith(files) for name in frozen)


class CpuZeroStrategy(ZeroStrategy):
    """The same on CPU processes with gloo, to test without GPUs. Replaces the parts that insist on CUDA devices."""

    def __init__(self, bucket: int = BUCKET, offload: bool = False) -> None:
        os.environ["DS_ACCELERATOR"] = "cpu"
        super().__init__(bucket, offload, process_group_backend="gloo")

    def setup_environment(self) -> None:
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        import deepspeed

        # Else its first use compiles a C++ extension.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def _setup_model_and_optimizer(self, model: Any, optimizer: Any, lr_scheduler: Any = None) -> tuple[Any, Any]:
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        return self._initialize(model, self.config, trained, optimizer, lr_scheduler)

    def _initialize_deepspeed_inference(self, model: torch.nn.Module) -> None:
        config: Any = self.config
        precision = {key: config[key] for key in ("fp16", "bf16") if key in config}
        remove_module_hooks(model)
        self.model, _ = self._initialize(model, {"train_micro_batch_size_per_gpu": 1, **precision}, [], None, None)

    def _initialize(self, model: Any, config: Any, weights: list, optimizer: Any, scheduler: Any) -> tuple[Any, Any]:
        import deepspeed

        engine, wrapped, _, _ = deepspeed.initialize(
            args=argparse.Namespace(device_rank=self.local_rank), config=config, model=model, model_parameters=weights,
            optimizer=optimizer, lr_scheduler=scheduler, dist_init_required=False,
        )  # fmt: skip
        return engine, wrapped
