"""What one batch costs a model in floating-point operations, counted without its memory: weights and what is computed
from them have a shape alone (torch's meta device), while integers and truth values, on which the shapes depend (token
ids, labels, masks), are real. So a 7B model is counted in seconds on any machine, by the method's own code.

Matrix products, convolutions and attention are counted, forward and backward, each as often as the mathematics asks
for it: nothing that gradient checkpointing recomputes, and no gradient that no trained weight needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_map
from torch.utils.flop_counter import FlopCounterMode

from lit_modules.report_generator import ReportGenerator

aten = torch.ops.aten
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index")


@dataclass(frozen=True)
class Cost:
    """Of one forward and backward pass of one batch.

    Attributes:
        flops: Floating-point operations, a multiplication and an addition apart, counted.
        formula: The same by the usual convention, for the language model alone: (4 N + 2 n) × positions, of whose N
            weights n are trained. It is 6 N where all are, and 4 N for LoRA; attention and image encoders are not in
            it, a head is, at each position.
        positions: `study × position` that the language model reads: text, image tokens and padding.
        trainable: Weights that are trained.
        frozen: Weights that are not.
    """

    flops: int
    formula: int
    positions: int
    trainable: int
    frozen: int


def count(model: ReportGenerator, batch: Mapping[str, Any]) -> Cost:
    """Counts a training step's forward and backward pass.

    Args:
        model: The method as it was built on the meta device; its precision is changed.
        batch: What its preprocessor collated, on the CPU.
    """
    model.float().train()
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = False  # type: ignore[assignment]
    language = language_model(model)
    read: list[int] = []
    handle = language.register_forward_hook(lambda _, given, out: read.append(math.prod(out[0].shape[:2])))
    with FlopCounterMode(display=False) as counter, ShapesAlone():
        model.loss(tree_map(_as_float, batch)).backward()
    handle.remove()
    sizes = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    trainable = sum(size for size, trained in sizes if trained)
    frozen = sum(size for size, trained in sizes if not trained)
    return Cost(counter.get_total_flops(), _formula(language, model) * sum(read), sum(read), trainable, frozen)


def language_model(model: nn.Module) -> nn.Module:
    """The stack of layers that holds the largest table of embeddings, which is that of words."""
    tables = [
        (module.num_embeddings, name) for name, module in model.named_modules() if isinstance(module, nn.Embedding)
    ]
    return model.get_submodule(max(tables)[1].rpartition(".")[0])


def _formula(language: nn.Module, model: nn.Module) -> int:
    """Operations a position: 4 for each weight that is multiplied with, 2 more where it is trained; a head is one of
    them, for the table of words is as large, and is only looked up.
    """
    weights = [(weight.numel(), weight.requires_grad) for weight in language.parameters()]
    return 4 * sum(size for size, _ in weights) + 2 * sum(size for size, trained in weights if trained)


def _as_float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


class ShapesAlone(TorchDispatchMode):
    """Floating-point numbers on the meta device meet integers and truth values on the CPU.

    Whatever a meta tensor takes part in gives a meta tensor; where real truth values choose positions, as many are
    chosen. Integers that a meta tensor's device is asked for are made on the CPU, so that they are real.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), func._schema.name
        meta = tree_any(_is_meta, (args, kwargs))
        if not meta:
            if torch.device(kwargs.get("device") or "cpu").type != "meta":
                return func(*args, **kwargs)
            made = func(*args, **kwargs | {"device": "cpu"})
            return _meta(made) if made.is_floating_point() else made
        if name in INDEXED:
            args = (args[0], _positions(args[1]), *args[2:])
        elif name == "aten::masked_select":
            shape = torch.broadcast_shapes(args[0].shape, args[1].shape)
            return args[0].new_empty(int(args[1].expand(shape).sum()))
        return func(*tree_map(_meta, args), **tree_map(_meta, kwargs))


def _positions(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Truth values as the indices that they stand for, in number."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            chosen = int(index.count_nonzero())
            found += [torch.empty(chosen, dtype=torch.long, device="meta") for _ in range(index.ndim)]
        else:
            found.append(index)
    return found


def _meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) and not value.is_meta else value


def _is_meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta
