"""How strongly the vision tower encodes each patch of a film: Overlay-SFT's Eqs. 1-4, Fig. 6.

A patch's number is the length (L2 norm) of its hidden state, laid out where the patch lies on the film. It is an
activation, neither attention nor a gradient: it does not know what the model said. And where only the language model
is tuned, a map before and a map after are the same map; only another input (the film with the mask drawn on it) or
adapters in the tower can change it.

The paper takes "hidden representations" of MedGemma without saying which. Here they are those that enter the tower's
last LayerNorm: after it, all patches of an untrained tower are equally long. How far the gains of a trained one part
them again has not been measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.masks import Box
from lit_modules.nets.vlm_families import Family

_EPSILON = 1e-6  # Eq. 3's; the paper gives no value
_FILM: Box = (0.0, 0.0, 1.0, 1.0)


def patch_norms(
    model: Any, family: Family, inputs: Mapping[str, Tensor], film: tuple[int, int], after_norm: bool = False
) -> tuple[np.ndarray, Box]:
    """Each patch's activation (Eq. 2) on the film.

    Args:
        model: One of `vlm.build_vlm`, in eval mode, as such or under peft; the tower's adapters are in force.
        family: Its family.
        inputs: What the model reads of ONE film, as a batch of one (`pixel_values` and what goes with it); ids may be
            among it and are not read.
        film: Rows and columns of the film before the image processor.
        after_norm: Take the states that leave the last LayerNorm instead of those that enter it.

    Returns:
        `(row, column)`, float32, and the part of the film that this grid covers, as fractions; it reaches out of the
        film where the processor padded it. Rows and columns of padding alone are left out.

    Raises:
        ValueError: More than one film.
    """
    states, frame = patch_states(model, family, inputs, film, after_norm)
    return states.float().norm(dim=-1).cpu().numpy(), frame


def normalised(values: np.ndarray, percentile: float = 100.0) -> np.ndarray:
    """Eqs. 3 and 4: activations as shares of the greatest, `(row, column)`, float32 from 0 to 1.

    Args:
        values: Of `patch_norms`.
        percentile: What counts as the greatest. At 99.5 the few very long "register" patches that large transformers
            keep on background (Darcet et al., arXiv:2309.16588) are cut off at 1 instead of darkening all others.
    """
    return (values / (np.percentile(values, percentile) + _EPSILON)).clip(0, 1).astype(np.float32)


def contrast(values: np.ndarray, frame: Box, mask: np.ndarray) -> float:
    """Mean activation inside a mask over that outside: above 1, the masked part of the film is encoded more strongly.

    A cell counts with the share of its area that the mask covers, and outside with the rest of what it shows of the
    film; a mask smaller than a cell is measured, too. A common factor (Eq. 3) changes nothing.

    Args:
        values: `(row, column)`, 0 or more.
        frame: What they cover, as `patch_norms` returns it.
        mask: `(row, column)` of the film, zero and nonzero.

    Returns:
        NaN where the mask is empty or leaves nothing outside.
    """
    rows = _overlaps(frame[1], frame[3], len(values), mask.shape[0])
    columns = _overlaps(frame[0], frame[2], values.shape[1], mask.shape[1])
    inside = rows @ (mask != 0).astype(np.float64) @ columns.T
    outside = np.outer(rows.sum(1), columns.sum(1)) - inside
    if inside.sum() < 1e-9 or outside.sum() < 1e-9:
        return math.nan
    return float(np.average(values, weights=inside) / np.average(values, weights=outside))


def _overlaps(start: float, stop: float, cells: int, pixels: int) -> np.ndarray:
    """How much of each pixel each cell covers along one axis, `(cell, pixel)`, from 0 to 1."""
    edges = np.linspace(start, stop, cells + 1)[:, None] * pixels
    pixel = np.arange(pixels)
    return (np.minimum(edges[1:], pixel + 1) - np.maximum(edges[:-1], pixel)).clip(0)


@torch.inference_mode()
def patch_states(
    model: Any, family: Family, inputs: Mapping[str, Tensor], film: tuple[int, int], after_norm: bool = False
) -> tuple[Tensor, Box]:
    """The hidden states (Eq. 1) behind `patch_norms`, `(row, column, hidden)`, and the frame."""
    images = inputs["image_grid_thw" if "image_grid_thw" in inputs else "pixel_values"].shape[0]
    if images != 1:
        raise ValueError(f"a heatmap is of one film; the inputs hold {images}")
    reader = _READERS[family.model_type]
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    tower = bare.get_submodule(reader.tower)
    found: list[Tensor] = []
    hook = tower.get_submodule(reader.layers)[-1].register_forward_hook(lambda *call: found.append(call[-1]))
    try:
        tower(**{name: _fitting(value, tower) for name, value in reader.arguments(inputs).items()})
    finally:
        hook.remove()
    states = tower.get_submodule(reader.norm)(found[-1]) if after_norm else found[-1]
    return _without_padding(*reader.grid(states, tower, inputs, film))


def _fitting(value: Tensor, tower: Any) -> Tensor:
    return value.to(tower.device, tower.dtype if value.is_floating_point() else None)


def _without_padding(states: Tensor, frame: Box) -> tuple[Tensor, Box]:
    """Drops rows and columns that show nothing of the film."""
    edges = []
    for axis, (start, stop) in enumerate(((frame[1], frame[3]), (frame[0], frame[2]))):
        lines = np.linspace(start, stop, states.shape[axis] + 1)
        shown = np.flatnonzero((lines[1:] > 1e-6) & (lines[:-1] < 1 - 1e-6))
        states = states.narrow(axis, int(shown[0]), len(shown))
        edges.append((float(lines[shown[0]]), float(lines[shown[-1] + 1])))
    (y0, y1), (x0, x1) = edges
    return states, (x0, y0, x1, y1)


def _stitch(tiles: Tensor, rows: int) -> Tensor:
    """`(tile, row, column, hidden)`, row by row of tiles → `(row, column, hidden)` of the whole."""
    return tiles.unflatten(0, (rows, -1)).transpose(1, 2).flatten(2, 3).flatten(0, 1)


def _square(tokens: Tensor) -> Tensor:
    """`(…, token, hidden)`, row by row → `(…, row, column, hidden)`."""
    return tokens.unflatten(-2, (math.isqrt(tokens.shape[-2]), -1))


def _siglip(states: Tensor, tower: Any, inputs: Mapping[str, Tensor], film: tuple[int, int]) -> tuple[Tensor, Box]:
    """Gemma 3, PaliGemma: `(1, token, hidden)`; the film is squashed to a square, and there is no CLS."""
    return _square(states[0]), _FILM


def _qwen(states: Tensor, tower: Any, inputs: Mapping[str, Tensor], film: tuple[int, int]) -> tuple[Tensor, Box]:
    """`(token, hidden)`, block by block of the patches that are merged later; both sides are squashed a little."""
    merged = tower.spatial_merge_size
    blocks = states.unflatten(0, (-1, merged, merged))
    return _stitch(blocks, int(inputs["image_grid_thw"][0, 1]) // merged), _FILM


def _qwen_windows(
    states: Tensor, tower: Any, inputs: Mapping[str, Tensor], film: tuple[int, int]
) -> tuple[Tensor, Box]:
    """Qwen2.5-VL: the blocks come window by window."""
    from transformers.vision_utils import get_vision_window_index

    merged = tower.spatial_merge_size
    order, _ = get_vision_window_index(inputs["image_grid_thw"].cpu(), merged, tower.window_size, tower.patch_size)
    blocks = states.unflatten(0, (-1, merged**2))[torch.argsort(order).to(states.device)]
    return _qwen(blocks.flatten(0, 1), tower, inputs, film)


def _mllama(states: Tensor, tower: Any, inputs: Mapping[str, Tensor], film: tuple[int, int]) -> tuple[Tensor, Box]:
    """`(1, tile · token, hidden)`, each tile with CLS before and filling after its patches; padded right and below.

    A film keeps its aspect and is fitted to the tiles; one that is smaller than a tile on one side is made to reach it.
    """
    ratio_id = int(inputs["aspect_ratio_ids"].flatten()[0])
    rows, columns = tower.config.supported_aspect_ratios[ratio_id - 1]
    tiles = states[0].unflatten(0, (tower.max_num_tiles, -1))[: rows * columns, 1 : tower.num_patches]
    canvas = (rows * tower.image_size, columns * tower.image_size)
    scale = min(min(max(side, tower.image_size), most) / side for side, most in zip(film, canvas, strict=True))
    return _stitch(_square(tiles), rows), (0.0, 0.0, canvas[1] / (film[1] * scale), canvas[0] / (film[0] * scale))


def _phi(states: Tensor, tower: Any, inputs: Mapping[str, Tensor], film: tuple[int, int]) -> tuple[Tensor, Box]:
    """`(crop, token, hidden)`, CLS first; a film is as wide as its crops, and padded above and below (if higher than
    wide, as high as its crops and padded at both sides)."""
    height, width = inputs["image_sizes"][0].tolist()
    rows = height // inputs["pixel_values"].shape[-1]
    upright = film[0] > film[1]
    long, short = (height, width) if upright else (width, height)
    drawn = max(int(long / (max(film) / min(film))), 1)
    before = (short - drawn) // 2
    start, stop = -before / drawn, (short - before) / drawn
    frame: Box = (start, 0.0, stop, 1.0) if upright else (0.0, start, 1.0, stop)
    return _stitch(_square(states[:, 1:]), rows), frame


def _phi_crops(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The film's crops, without the view of the whole film before them and what fills a batch after them."""
    pixels = inputs["pixel_values"][0]
    height, width = (inputs["image_sizes"][0] // pixels.shape[-1]).tolist()
    return {"pixel_values": pixels[1 : 1 + height * width]}


@dataclass(frozen=True)
class _Reader:
    """Where a family encodes patches, and in which order.

    Attributes:
        tower: The vision tower, from the model.
        layers: Its layers, from the tower; the last one's states are taken.
        norm: The LayerNorm that they enter, from the tower.
        arguments: What the model reads of an image → what the tower is called with.
        grid: States as the last layer leaves them, tower, inputs, film → `(row, column, hidden)` and frame.
    """

    tower: str
    layers: str
    norm: str
    arguments: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    grid: Callable[[Tensor, Any, Mapping[str, Tensor], tuple[int, int]], tuple[Tensor, Box]]


def _pixels(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"pixel_values": inputs["pixel_values"]}


def _patches(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"hidden_states": inputs["pixel_values"], "grid_thw": inputs["image_grid_thw"]}


def _tiles(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: inputs[name] for name in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")}


_READERS: Mapping[str, _Reader] = {
    "gemma3": _Reader("model.vision_tower", "encoder.layers", "post_layernorm", _pixels, _siglip),
    "paligemma": _Reader("model.vision_tower", "encoder.layers", "post_layernorm", _pixels, _siglip),
    "qwen2_vl": _Reader("model.visual", "blocks", "merger.ln_q", _patches, _qwen),
    "qwen2_5_vl": _Reader("model.visual", "blocks", "merger.ln_q", _patches, _qwen_windows),
    "qwen3_vl": _Reader("model.visual", "blocks", "merger.norm", _patches, _qwen),
    # Between this LayerNorm and the language model stand the global layers, behind gates.
    "mllama": _Reader("model.vision_model", "transformer.layers", "layernorm_post", _tiles, _mllama),
    # The language model reads the states as they are; the LayerNorm is the one CLIP has for its class token.
    "phi3_v": _Reader("model.vision_tower", "encoder.layers", "post_layernorm", _phi_crops, _phi),
}
