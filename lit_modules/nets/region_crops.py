"""Reg2RG's region crops (paper §III-A, "local feature decoupling"): from a CT and its masks to what the encoders read.

Bit for bit what the authors' MONAI pipeline gives, at a fraction of its cost: boxes come from axis-wise `any`, a region
is cut out before it is filled, the volume keeps one channel, and the area resize works on whole numbers. `pack` is the
compact form that a store keeps and a loader's worker sends; `unpack` undoes it on any device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

AIR = -1000  # HU; voxels at or below it extend no box
OUTSIDE = -1024  # HU; what a region's surroundings are filled with
GLOBAL = "image"  # the whole volume's name among the volumes

Box = tuple[slice, slice, slice]
_EXACT = 2**24  # below it every sum of whole numbers is exact in float32, whatever the order


@dataclass(frozen=True, eq=False)
class RegionCrops:
    """What the encoders read, float32, `(height, width, depth)` each.

    Attributes:
        volumes: `image` (the volume without the air around it) and each region that has a voxel, in [-1, 1].
        masks: Each region's mask within the volume's box, in [0, 1]: resizing makes it fractional.
    """

    volumes: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]


def region_crops(
    volume: np.ndarray,
    masks: Mapping[str, np.ndarray],
    size: Sequence[int],
    decouple: bool = True,
    geometry: bool = True,
    texture: bool = True,
) -> RegionCrops:
    """Cuts a CT into the whole and its regions.

    A region whose mask is empty, or lies wholly in air, has no volume; its mask is still given, as in the reference.

    Args:
        volume: `(height, width, depth)`, HU.
        masks: Region → {0, 1} of the volume's shape.
        size: Height, width and depth of every output, voxels.
        decouple: Cut each region to its own box (LFD). Without (Table V), a region is the whole volume with everything
            outside the mask filled.
        geometry: Give masks.
        texture: Give the regions' volumes.

    Raises:
        ValueError: No voxel of the volume is above -1000 HU.
    """
    body = volume > AIR
    whole = box_of(body)
    if whole is None:
        raise ValueError("no voxel of the volume is above -1000 HU")
    volumes = {GLOBAL: _to_window(resize_area(volume[whole], size))}
    resized: dict[str, np.ndarray] = {}
    for region, mask in masks.items():
        around = box_of(mask)
        box = _grow(around, box_of((mask[around] != 0) & body[around])) if around is not None else None
        if box is not None and texture:
            cut = box if decouple else whole
            filled = np.where(mask[cut] != 0, volume[cut], volume.dtype.type(OUTSIDE))
            volumes[region] = _to_window(resize_area(filled, size))
        if geometry:
            resized[region] = _resize_mask(mask, around, whole, size)
    return RegionCrops(volumes, resized)


def box_of(mask: np.ndarray) -> Box | None:
    """The smallest box around what is not zero; `None` where all is."""
    flags = mask if mask.dtype == bool else mask.view(bool) if mask.dtype == np.uint8 else mask != 0
    box: list[slice] = [slice(None)] * 3
    for axis in sorted(range(3), key=lambda axis: -flags.strides[axis]):  # slowest first: later axes see less
        others = tuple(other for other in range(3) if other != axis)
        hit = np.flatnonzero(flags.any(axis=others))
        if not hit.size:
            return None
        box[axis] = slice(int(hit[0]), int(hit[-1]) + 1)
        cut = [slice(None)] * 3
        cut[axis] = box[axis]
        flags = flags[tuple(cut)]
    return box[0], box[1], box[2]


def _grow(around: Box, within: Box | None) -> Box | None:
    """`within`, counted from the corner of `around`, counted from the volume's."""
    if within is None:
        return None
    a, b, c = (slice(o.start + i.start, o.start + i.stop) for o, i in zip(around, within, strict=True))
    return a, b, c


def _to_window(volume: np.ndarray) -> np.ndarray:
    """HU → [-1, 1] over [-1000, 200] HU; changes `volume` in place."""
    np.clip(volume, -1000, 200, out=volume)
    volume += 400
    volume /= 600
    return volume


# Area resize: each output voxel is the mean of the input voxels that its window touches.


def resize_area(array: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """`adaptive_avg_pool3d`, to the last bit.

    Whole numbers are summed axis by axis, which is exact as long as float32 holds the sums; then the three divisions
    follow in the order of torch's kernel. Other input goes through torch itself.

    Args:
        array: `(height, width, depth)`.
        size: The output's height, width and depth.

    Returns:
        float32, C order.
    """
    windows = [_windows(length, out) for length, out in zip(array.shape, size, strict=True)]
    if array.dtype.kind in "iu":
        bound = max(int(array.max()), -int(array.min()))
        if bound * _voxels(windows) < _EXACT:
            return _mean(array, windows, bound)
    dense = torch.from_numpy(np.ascontiguousarray(array, np.float32))
    return F.adaptive_avg_pool3d(dense[None, None], (size[0], size[1], size[2]))[0, 0].numpy()


def _windows(length: int, out: int) -> tuple[np.ndarray, np.ndarray]:
    """First and one-past-last input index of each output index."""
    index = np.arange(out)
    return index * length // out, -(-(index + 1) * length // out)


def _voxels(windows: list[tuple[np.ndarray, np.ndarray]]) -> int:
    """How many voxels the largest window holds."""
    return int(np.prod([int((stop - start).max()) for start, stop in windows]))


def _mean(array: np.ndarray, windows: list[tuple[np.ndarray, np.ndarray]], bound: int) -> np.ndarray:
    """Means over windows along every axis. Input indices count from `array`'s corner; no |value| is above `bound`."""
    outer, middle, inner = sorted(range(3), key=lambda axis: -array.strides[axis])
    sums = array.transpose(outer, middle, inner)
    for place, axis in ((0, outer), (1, middle), (1, inner)):
        if axis == inner:  # dear to gather from; moved off the end, it is not
            sums = np.ascontiguousarray(sums.transpose(1, 2, 0))
        bound *= _voxels([windows[axis]])
        sums = _sum_windows(sums.astype(_smallest(sums.dtype, bound), copy=False), place, *windows[axis])
    mean = np.ascontiguousarray(sums.transpose(np.argsort((middle, inner, outer))), np.float32)
    for axis, (start, stop) in enumerate(windows):
        mean /= (stop - start).astype(np.float32).reshape([-1 if axis == other else 1 for other in range(3)])
    return mean


def _smallest(dtype: np.dtype, bound: int) -> np.dtype:
    """The smallest type no smaller than `dtype` that holds sums up to `bound`: less memory to move."""
    for wider in (np.uint8, np.int16, np.int32):
        if np.can_cast(dtype, wider) and bound <= np.iinfo(wider).max:
            return np.dtype(wider)
    return np.dtype(np.int64)


def _sum_windows(array: np.ndarray, axis: int, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    total = np.take(array, start, axis)
    for step in range(1, int((stop - start).max())):
        inside = start + step < stop
        if inside.all():
            total += np.take(array, start + step, axis)
        else:
            total[(slice(None),) * axis + (inside,)] += np.take(array, (start + step)[inside], axis)
    return total


def _resize_mask(mask: np.ndarray, around: Box | None, whole: Box, size: Sequence[int]) -> np.ndarray:
    """The mask within `whole`, resized. Only the windows that touch the mask's own box are computed."""
    out = np.zeros(tuple(size), np.float32)
    if around is None:
        return out
    source, target, windows = [], [], []
    for outer, inner, length in zip(whole, around, size, strict=True):
        start, stop = _windows(outer.stop - outer.start, length)
        touched = np.flatnonzero((stop > inner.start - outer.start) & (start < inner.stop - outer.start))
        if not touched.size:
            return out
        first, last = int(touched[0]), int(touched[-1]) + 1
        begin = int(start[first])
        source.append(slice(outer.start + begin, outer.start + int(stop[last - 1])))
        target.append(slice(first, last))
        windows.append((start[first:last] - begin, stop[first:last] - begin))
    out[tuple(target)] = _mean(mask[tuple(source)], windows, 1)
    return out


# The compact form: volumes as bfloat16 bits, masks as runs of codes into a table of their values.


def pack(crops: RegionCrops, dtype: str = "float32") -> dict[str, np.ndarray]:
    """The compact form of the whole and of every region that has a volume or a mask that is not all zero.

    Keys: `volume/<name>` (`(height, width, depth)`, float32 or bfloat16 bits as uint16), and of each mask
    `mask/<region>/table` (its distinct values, float32), `…/codes` (of each run of equal voxels, uint8, or uint16 for
    more than 256 values) and `…/lengths` (of each run, uint16).

    Args:
        crops: What to pack.
        dtype: `float32` keeps the volumes exactly; `bfloat16` rounds them, as bf16 training does anyway.
    """
    half = dtype == "bfloat16"
    packed = {f"volume/{name}": _bits(volume) if half else volume for name, volume in crops.volumes.items()}
    for region, mask in crops.masks.items():
        if mask.any():
            parts = zip(("table", "codes", "lengths"), _encode(mask), strict=True)
            packed |= {f"mask/{region}/{part}": array for part, array in parts}
    return packed


def regions_of(packed: Mapping[str, object]) -> list[str]:
    """The regions in a packed sample, in the order in which they were packed."""
    names = dict.fromkeys(key.split("/")[1] for key in packed)
    return [name for name in names if name != GLOBAL]


def unpack(
    packed: Mapping[str, Tensor], regions: Sequence[str], size: Sequence[int]
) -> tuple[Tensor | None, Tensor | None]:
    """What `pack` took, on the device on which the parts lie.

    Args:
        packed: What `pack` gave, as tensors; the parts of other regions may be left out.
        regions: Which regions, in which order.
        size: Height, width and depth.

    Returns:
        Volumes `(1 + region, 1, height, width, depth)`, the whole one first, and masks
        `(region, 1, height, width, depth)`, float32; `None` for what was not packed.
    """
    volumes = [packed[f"volume/{name}"] for name in (GLOBAL, *regions) if f"volume/{name}" in packed]
    masks = [_decode(packed, f"mask/{name}", size) for name in regions if f"mask/{name}/table" in packed]
    volumes = [part.view(torch.bfloat16) if part.dtype == torch.uint16 else part for part in volumes]
    return torch.stack(volumes)[:, None] if volumes else None, torch.stack(masks)[:, None] if masks else None


def _bits(volume: np.ndarray) -> np.ndarray:
    return torch.from_numpy(volume).to(torch.bfloat16).view(torch.uint16).numpy()


def _encode(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    flat = mask.ravel()
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    lengths = np.diff(starts, append=flat.size)
    longest = np.iinfo(np.uint16).max
    pieces = -(-lengths // longest)  # a run too long for a length becomes several
    values, lengths = np.repeat(flat[starts], pieces), np.repeat(lengths, pieces)
    last = np.cumsum(pieces) - 1
    lengths[last] -= (pieces - 1) * longest
    lengths[np.setdiff1d(np.flatnonzero(lengths > longest), last)] = longest
    table = np.unique(values)
    codes = np.searchsorted(table, values).astype(np.uint8 if table.size <= 256 else np.uint16)
    return table, codes, lengths.astype(np.uint16)


def _decode(packed: Mapping[str, Tensor], key: str, size: Sequence[int]) -> Tensor:
    values = packed[f"{key}/table"][_whole(packed[f"{key}/codes"])]
    voxels = size[0] * size[1] * size[2]  # given, so that a GPU need not be asked for the sum
    return torch.repeat_interleave(values, _whole(packed[f"{key}/lengths"]), output_size=voxels).reshape(tuple(size))


def _whole(numbers: Tensor) -> Tensor:
    """int64; by way of int16, because torch does little with uint16 on some devices."""
    return numbers.view(torch.int16).long() & 0xFFFF if numbers.dtype == torch.uint16 else numbers.long()
