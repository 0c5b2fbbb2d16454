"""Reading CT volumes and their masks from NIfTI files, with every fault named."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from dataclasses import replace
from io import IOBase
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from datamodules.faults import Fault
from datamodules.files import unreadable
from datamodules.masks import REGIONS, regions_from_labels
from datamodules.study import DataFault, Study

SUFFIX = ".nii.gz"
MaskScheme = Literal["radgenome", "totalsegmentator"]
_HALF_VOXEL = 0.5
_PIECE = 2**20
_BROKEN = (  # what nibabel and gzip stumble with
    *(OSError, EOFError, ValueError, OverflowError, MemoryError, zlib.error),
    *(ImageFileError, HeaderDataError),
)


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """One NIfTI file.

    Returns:
        The array on the file's own grid and in its memory order, as the smallest of int16, int32 and float32 that holds
        it exactly (uint8 stays), scaled by the header's slope and intercept; and the 4×4 affine, voxel → mm.

    Raises:
        DataFault: The file is missing, cut short, does not match its checksum, is no NIfTI, not three-dimensional, or
            holds values that are no numbers.
    """
    array, slope, inter, affine = read_stored(path)
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise DataFault(f"{path}: has {array.ndim} axes of lengths {array.shape}, a volume has three")
    if (slope, inter) != (1.0, 0.0):
        array = array.astype(np.float32) * np.float32(slope) + np.float32(inter)
    return _whole_numbers(array, path), affine


def read_stored(path: Path) -> tuple[np.ndarray, float, float, np.ndarray]:
    """What a NIfTI file stores, whatever its axes: the array before scaling, slope, intercept, and the affine.

    A gzipped file is read to its end, where its checksum is compared; a plain one has none.

    Raises:
        DataFault: The file is missing, cut short, does not match its checksum, or is no NIfTI.
    """
    try:
        kind = type(nib.load(path))
        if not issubclass(kind, nib.Nifti1Image):
            raise DataFault(f"{path}: is no NIfTI file")
        with _unpacked(path) as stream:
            image = kind.from_stream(stream)
            stored = image.dataobj
            assert isinstance(stored, ArrayProxy), "nibabel reads files lazily"
            array = np.asarray(stored.get_unscaled())
            while stream.read(_PIECE):
                pass
        return array, stored.slope, stored.inter, image.affine
    except FileNotFoundError:
        raise DataFault(f"{path}: no such file") from None
    except _BROKEN as error:
        raise DataFault(unreadable(path, error)) from None


def _unpacked(path: Path) -> IOBase:
    return gzip.GzipFile(path) if path.suffix == ".gz" else path.open("rb")


def _whole_numbers(array: np.ndarray, path: Path) -> np.ndarray:
    """The same numbers in a small type; whole ones as integers, which are cheaper to work on."""
    if array.dtype in (np.uint8, np.int16):
        return array
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise DataFault(f"{path}: holds values that are no numbers (NaN or infinite)")
        if (array != np.rint(array)).any() or np.abs(array).max(initial=0) >= 2**31:
            return array.astype(np.float32, copy=False)
    limits = np.iinfo(np.int16)
    small = array.size == 0 or (array.min() >= limits.min and array.max() <= limits.max)
    return array.astype(np.int16 if small else np.int32, copy=False)


def read_ct(study: Study) -> tuple[Study, list[Fault]]:
    """Fills in volume, masks, spacing and orientation, and says everything that is wrong with the files.

    A mask that cannot be used (unreadable, of another grid, not {0, 1}) is left out. So is an empty one, which is a
    fault only where a report speaks of its region: many patients have no mask of, say, the breast.

    Args:
        study: With `files`: `volume`, and `masks/<region>` for each mask there is.
    """
    try:
        volume, affine = read_nifti(study.files["volume"])
    except DataFault as fault:
        return study, [Fault(study.id, str(fault))]
    if volume.max(initial=-1024) <= -1000:
        return study, [Fault(study.id, f"{study.files['volume']}: holds nothing but air (no voxel above -1000 HU)")]
    faults: list[Fault] = []
    masks: dict[str, np.ndarray] = {}
    for region, path in ((name.removeprefix("masks/"), path) for name, path in study.files.items() if name != "volume"):
        try:
            mask = read_mask(path, study.files["volume"], volume.shape, affine)
        except DataFault as fault:
            faults.append(Fault(study.id, str(fault), fatal=False))
            continue
        if mask.any():
            masks[region] = mask
        elif region in (study.regions or {}):
            faults.append(Fault(study.id, f"{path}: empty mask, but there is a report of the {region}", fatal=False))
    if not masks:
        faults.append(Fault(study.id, f"{study.files['volume']}: none of its masks can be used"))
    elif study.split == "train" and not masks.keys() & (study.regions or {}).keys():
        faults.append(Fault(study.id, f"{study.files['volume']}: no region has both a mask and a report"))
    return _filled(study, volume, affine, masks), faults


def read_mask(path: Path, volume_path: Path, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """One region's mask on the volume's grid, {0, 1} uint8.

    Raises:
        DataFault: It cannot be read, lies on another grid, or holds other values.
    """
    mask, place = read_nifti(path)
    _same_grid(path, mask.shape, place, volume_path, shape, affine)
    if mask.min(initial=0) < 0 or mask.max(initial=0) > 1 or mask.dtype.kind == "f":
        raise DataFault(f"{path}: a mask holds 0 and 1, this one values from {mask.min()} to {mask.max()}")
    return mask.astype(np.uint8, copy=False)


def _same_grid(
    path: Path, shape: tuple[int, ...], place: np.ndarray, volume: Path, wanted: tuple[int, ...], affine: np.ndarray
) -> None:
    if shape != wanted:
        raise DataFault(f"{path}: has shape {shape}, but its volume {volume.name} has {wanted}")
    corners = np.array([(*corner, 1) for corner in np.ndindex(2, 2, 2)]) * (*(n - 1 for n in shape), 1)
    shift = np.abs(corners @ (place - affine).T).max()  # mm; headers round, so the last digits may differ
    if shift > _HALF_VOXEL * np.linalg.norm(affine[:3, :3], axis=0).min():
        raise DataFault(f"{path}: its affine places it up to {shift:.1f} mm off its volume {volume.name}")


def _filled(study: Study, volume: np.ndarray, affine: np.ndarray, masks: Mapping[str, np.ndarray]) -> Study:
    spacing = tuple(float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    axes = tuple(str(axis) for axis in nib.aff2axcodes(affine))
    return replace(study, volume=volume, masks=dict(masks), spacing=spacing, orientation=axes)


def ct_from_files(volume: Path, masks: Path, mask_scheme: MaskScheme = "radgenome") -> Study:
    """One examination from loose files, on the volume's own grid.

    Args:
        volume: CT in HU, NIfTI.
        masks: `radgenome`: a folder with a `<region>.nii.gz` for each region there is, {0, 1}. `totalsegmentator`: one
            label map of TotalSegmentator v2 (task `total`).
        mask_scheme: Which of the two.

    Raises:
        DataFault: Anything is wrong with the files, or they hold none of the regions.
    """
    name = volume.name.removesuffix(".gz").removesuffix(".nii")
    if mask_scheme == "radgenome":
        if not masks.is_dir():
            raise DataFault(f"{masks}: is no folder of <region>{SUFFIX} files; or is its scheme totalsegmentator?")
        paths = {f"masks/{region}": masks / f"{region}{SUFFIX}" for region in REGIONS}
        files = {"volume": volume, **{key: path for key, path in paths.items() if path.is_file()}}
        if len(files) == 1:
            raise DataFault(f"{masks}: holds no mask; expected {', '.join(region + SUFFIX for region in REGIONS)}")
        study, faults = read_ct(Study(id=name, files=files))
        if faults:
            raise DataFault("\n".join(fault.what for fault in faults))
        return study
    if masks.is_dir():
        raise DataFault(f"{masks}: is a folder; the mask scheme totalsegmentator takes one label map")
    array, affine = read_nifti(volume)
    labels, place = read_nifti(masks)
    _same_grid(masks, labels.shape, place, volume, array.shape, affine)
    try:
        if labels.dtype.kind == "f":
            raise ValueError("labels are whole numbers")
        regions = regions_from_labels(labels)
    except ValueError as error:
        raise DataFault(f"{masks}: {error}") from None
    if not regions:
        raise DataFault(f"{masks}: holds none of the regions {', '.join(REGIONS)}")
    return _filled(Study(id=name, files={"volume": volume, "masks": masks}), array, affine, regions)
