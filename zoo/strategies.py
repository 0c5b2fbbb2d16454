"""How a fit is spread over devices: `auto`, `ddp`, `zero2` and `zero2_offload` (DeepSpeed ZeRO stage 2, on GPUs and on
CPU processes; the latter with the optimizer's state and step on the CPU).
"""

from __future__ import annotations

import argparse
import logging
import math
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy
from lightning.pytorch.strategies.ddp import DDPStrategy
from torch import Tensor

from zoo.config import ZERO

# Most elements in one communication bucket. The authors' 1e9 reserves 1.86 GiB and ran out of memory on their 24 GB
# cards; all of Reg2RG's 5.3e7 trainable weights nearly fit into one of these.
BUCKET = 50_000_000
# How long processes wait for the first, which alone scores the reports: half an hour, the default, is soon over where
# a metric is a network. A process that died is noticed by what started it, not by this.
WAIT = timedelta(hours=6)


def build_strategy(name: str, cpu: bool, processes: int) -> str | Strategy:
    """The strategy called `name` (`trainer.strategy`) on so many GPUs or CPU processes."""
    if name == "ddp" or (name == "auto" and processes > 1):
        return DDPStrategy(find_unused_parameters=False, process_group_backend="gloo" if cpu else None, timeout=WAIT)
    if name in ZERO:
        offload = name == "zero2_offload"
        return CpuZeroStrategy(offload) if cpu else ZeroStrategy(offload)
    return name


class ZeroStrategy(DeepSpeedStrategy):
    """ZeRO stage 2: every process holds the weights, and its share of the gradients and of the optimizer's state.

    Parameters and inputs are cast to the Trainer's precision as a whole, with fp32 masters in the optimizer: there is
    no autocast, whatever the precision is called.

    Args:
        offload: Gradients, fp32 masters and AdamW's moments lie in the machine's memory, and the CPU makes the step
            (ZeRO-Offload, Ren et al. 2021). It is the method's own optimizer that makes it: DeepSpeed's CPU Adam is
            several times faster, but is compiled on first use and takes other steps (1e-4 apart).
    """

    def __init__(self, offload: bool = False, **options: Any) -> None:
        super().__init__(
            stage=2, overlap_comm=True, contiguous_gradients=True, offload_optimizer=offload, pin_memory=offload,
            timeout=WAIT, logging_level=logging.ERROR, **options,
        )  # fmt: skip
        self.offload = offload
        if offload:
            config: Any = self.config
            config["zero_force_ds_cpu_optimizer"] = False  # else it refuses all optimizers but its own

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Offloaded, does what DeepSpeed 0.19.8 omits for a weight that not every batch of a step gives a gradient.

        Left to itself it takes that of the step before for it, or drops what an earlier batch of the step gave it.
        """
        # Lightning 2.6 has divided the loss by the number of batches in a step; DeepSpeed would once more, and the
        # gradient would be that much too small to be clipped.
        kwargs["scale_wrt_gas"] = False
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

    def _initialize_deepspeed_train(self, model: torch.nn.Module) -> None:
        """Sizes the buckets to the model first: room that no gradient will take is memory lost."""
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        bucket = min(BUCKET, 1000 * math.ceil(trained / 1000))  # must be even
        config: Any = self.config
        config["zero_optimization"] |= {"allgather_bucket_size": bucket, "reduce_bucket_size": bucket}
        super()._initialize_deepspeed_train(model)

    def _initialize_deepspeed_inference(self, model: torch.nn.Module) -> None:
        """Needs no engine, for every process holds all weights.

        Lightning would give it one, and before that take every hook off the model: those too with which transformers
        collects hidden states, so that a model that has been trained could not be tested.
        """
        precision: Any = self.precision_plugin
        self.model = model.to(precision._desired_dtype)

    def teardown(self) -> None:
        """Takes off what the engine of the training put on the model, which may be tested next."""
        from deepspeed import DeepSpeedEngine

        if isinstance(self.model, DeepSpeedEngine):
            self.model.module_forward_pre_hook.remove()
            self.model.module_forward_post_hook.remove()
        super().teardown()

    # A checkpoint is the one file that it is under every other strategy, not DeepSpeed's folder of shares: any number
    # of processes, and any strategy, goes on from it, and nothing is unpickled.
    save_checkpoint = DDPStrategy.save_checkpoint
    load_checkpoint = DDPStrategy.load_checkpoint

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning gives the optimizer's state to `load_optimizer_state_dict`; DeepSpeed would read its own folder."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights; on the first process, the trained ones in fp32, as the optimizer keeps them."""
        weights = super().lightning_module_state_dict()
        zero = self.deepspeed_engine.optimizer
        whole = {id(weight): self._whole(weight) for _, trained, _ in _groups(zero) for weight in trained}
        names: Any = self.lightning_module.named_parameters(remove_duplicate=False)  # type: ignore[union-attr]
        return weights | {name: whole[id(weight)] for name, weight in names if id(weight) in whole and name in weights}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Loads the weights and, in training, the fp32 ones that the optimizer makes them from."""
        super(DeepSpeedStrategy, self).load_model_state_dict(checkpoint, strict)
        from deepspeed.utils import safe_set_full_fp32_param

        module: Any = self.lightning_module
        for name, weight in module.named_parameters():
            if module.trainer.training and weight.requires_grad:
                safe_set_full_fp32_param(weight, checkpoint["state_dict"][name])

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Its state as `torch.optim` gives it, gathered from all processes; whole on the first one.

        ZeRO's optimizer holds one flat share of each group of weights, and of AdamW's moments; `step` is a number.
        """
        zero = self.deepspeed_engine.optimizer
        state: dict[int, dict[str, Any]] = {}
        groups = []
        for share, weights, group in _groups(zero):
            numbers = range(len(state), len(state) + len(weights))
            for number, weight in zip(numbers, weights, strict=True):
                state[number] = {
                    key: self._whole(weight, key) if value.shape == share.shape else value.clone()
                    for key, value in zero.state[share].items()
                }
            groups.append({**group, "params": list(numbers)})
        return {"state": state, "param_groups": groups, "loss_scale": zero.loss_scale}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Takes this process's share of what `optimizer_state`, or `torch.optim` itself, gave.

        Of weights whose steps differ (some had no gradient in some steps, which `torch.optim` skips and ZeRO does not)
        the most counts.
        """
        from deepspeed.utils import safe_set_full_optimizer_state

        zero = self.deepspeed_engine.optimizer
        (saved,) = checkpoint["optimizer_states"]
        moments = []
        for (share, weights, group), saved_group in zip(_groups(zero), saved["param_groups"], strict=True):
            group.update({name: value for name, value in saved_group.items() if name != "params"})
            for weight, number in zip(weights, saved_group["params"], strict=True):
                for key, value in saved["state"].get(number, {}).items():
                    if key == "step":
                        zero.state[share][key] = max(zero.state[share].get(key, value), value)
                    else:
                        zero.state[share].setdefault(key, torch.zeros_like(share))
                        moments.append((weight, value, key))
        if moments:
            zero._lazy_init_hp_params_optimizer_state()  # shows DeepSpeed what lies where in a share
        for weight, value, key in moments:
            safe_set_full_optimizer_state(weight, value, key)
        zero.loss_scale = saved.get("loss_scale", zero.loss_scale)

    def _whole(self, weight: Tensor, key: str | None = None) -> Tensor:
        """A trained weight in fp32, or what the optimizer keeps for it under a key, from all processes' shares.

        All must call it; only the first, which writes it, gets it in memory of its own.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        whole = safe_get_full_optimizer_state(weight, key) if key else safe_get_full_fp32_param(weight)
        return whole.cpu() if self.is_global_zero else whole.new_empty(0)


def _groups(zero: Any) -> Iterator[tuple[Tensor, list[Tensor], dict[str, Any]]]:
    """For each group of a ZeRO optimizer: this process's flat share in fp32, its trained weights, its settings."""
    return zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, zero.param_groups, strict=True)


class CpuZeroStrategy(ZeroStrategy):
    """The same on CPU processes with gloo, to test without GPUs. Replaces the parts that insist on CUDA devices."""

    def __init__(self, offload: bool = False) -> None:
        os.environ["DS_ACCELERATOR"] = "cpu"
        super().__init__(offload, process_group_backend="gloo")

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
        import deepspeed

        trained = [weight for weight in model.parameters() if weight.requires_grad]
        engine, wrapped, _, _ = deepspeed.initialize(
            args=argparse.Namespace(device_rank=self.local_rank), config=self.config, model=model,
            model_parameters=trained, optimizer=optimizer, lr_scheduler=lr_scheduler, dist_init_required=False,
        )  # fmt: skip
        return engine, wrapped
