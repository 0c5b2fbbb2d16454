"""Loading and preprocessing one CT for Reg2RG: the reference's way, written out plainly with MONAI, beside ours.

`python -m benchmarks.reg2rg_data` prints the table. Every figure is taken in a process of its own, on one thread, from
a synthetic study of 360 × 360 × 110 voxels (int16, ten uint8 masks, gzip), the size of a chest CT at 1 × 1 × 3 mm.
Seconds are processor seconds with the files in the page cache, so that a busy machine changes them little.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

SHAPE = (360, 360, 110)
SIZE = (256, 256, 64)
_AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])


def rows(shape: tuple[int, int, int] = SHAPE, size: tuple[int, int, int] = SIZE) -> list[dict[str, Any]]:
    """Each figure: `name`, `unit`, `reference`, `ours`, `factor` (how many times less is ours), `identical`.

    `identical` says whether all outputs agree to the last bit, and is `None` where there is nothing to compare.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        synthetic_study(path, shape)
        theirs, ours, stored = (_apart(run, path, size) for run in (reference, optimised, from_store))
    same = theirs["outputs"] == ours["outputs"]
    figures = [
        ("load and preprocess a study", "s", theirs["seconds"], ours["seconds"], same),
        ("the same from the store", "s", theirs["seconds"], stored["seconds"], None),
        ("sample sent by a worker", "MB", theirs["sample"], ours["sample"], None),
        ("worker's memory at its peak", "MB", theirs["memory"], ours["memory"], None),
    ]
    keys = ("name", "unit", "reference", "ours", "factor", "identical")
    return [dict(zip(keys, (n, u, r, o, r / o, same), strict=True)) for n, u, r, o, same in figures]


def synthetic_study(folder: Path, shape: tuple[int, int, int]) -> None:
    """`volume.nii.gz` and `<region>.nii.gz`: ellipsoids of plausible place, size and HU, with noise."""
    axes = [np.linspace(-1, 1, length, dtype=np.float32) for length in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)

    def ball(cx: float, cy: float, cz: float, rx: float, ry: float, rz: float) -> np.ndarray:
        return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2 < 1

    def pair(cx: float, *rest: float) -> np.ndarray:
        return ball(-cx, *rest) | ball(cx, *rest)

    body, lungs = ball(0, 0, 0, 0.9, 0.62, 1.6), pair(0.42, 0, 0.1, 0.32, 0.42, 0.85)
    ribs = ball(0, 0, 0, 0.85, 0.58, 1.5) & ~ball(0, 0, 0, 0.8, 0.53, 1.4)
    masks = {
        "abdomen": ball(0, 0, -1, 0.8, 0.55, 0.5),
        "bone": ribs | ball(0, 0.45, 0, 0.12, 0.12, 2),
        "breast": pair(0.4, -0.55, 0, 0.2, 0.12, 0.3),
        "esophagus": ball(0, 0.2, 0, 0.04, 0.04, 1),
        "heart": ball(0.1, -0.15, -0.2, 0.25, 0.25, 0.35),
        "lung": lungs,
        "mediastinum": ball(0, 0, 0.2, 0.18, 0.35, 0.8),
        "pleura": pair(0.42, 0, 0.1, 0.34, 0.45, 0.88),
        "thyroid": ball(0, -0.2, 0.9, 0.1, 0.06, 0.1),
        "trachea and bronchie": ball(0, 0.05, 0.6, 0.04, 0.04, 0.5),
    }
    noise = np.random.default_rng(0).normal(0, 25, shape)
    volume = np.where(lungs, noise - 850, np.where(body, noise + 40, -1024)).astype(np.int16)
    for name, array in {"volume": volume, **{region: mask.astype(np.uint8) for region, mask in masks.items()}}.items():
        nib.save(nib.Nifti1Image(np.asfortranarray(array), _AFFINE), folder / f"{name}.nii.gz")


def reference(folder: Path, size: tuple[int, int, int]) -> dict[str, Any]:
    """What the reference does, step for step: float64 throughout, every region at full size until it is cropped, masks
    and image cropped together, MONAI transforms, three equal channels."""
    import torch
    from monai.transforms import CropForeground, CropForegroundd, Resize, Resized

    torch.set_num_threads(1)

    def normalise(volume: torch.Tensor) -> torch.Tensor:
        return ((torch.clamp(volume, -1000, 200) + 400) / 600).repeat(3, 1, 1, 1)

    start = time.process_time()
    image = nib.Nifti1Image.from_filename(folder / "volume.nii.gz").get_fdata()
    masks = {p.name[:-7]: p for p in sorted(folder.glob("*.nii.gz")) if p.name != "volume.nii.gz"}
    loaded = {region: nib.Nifti1Image.from_filename(path).get_fdata() for region, path in masks.items()}
    stacked = np.stack(list(loaded.values()))
    volumes = {}
    for index, region in enumerate(loaded):
        masked = image * stacked[index]
        masked[stacked[index] == 0] = -1024
        cropped = CropForeground(select_fn=lambda x: x > -1000, margin=0)(masked[None])
        volumes[region] = normalise(Resize(size, mode="area")(cropped))
    sample: dict[Any, Any] = {"image": image[None], **{region: mask[None] for region, mask in loaded.items()}}
    keys = ["image", *loaded]
    sample = CropForegroundd(keys, source_key="image", select_fn=lambda x: x > -1000, margin=0)(sample)
    sample = Resized(keys, size, mode="area")(sample)
    volumes["image"] = normalise(sample["image"])
    shapes = {region: sample[region] for region in loaded}
    seconds = time.process_time() - start
    outputs = {f"volume/{name}": np.asarray(volume[0]) for name, volume in volumes.items()}
    outputs |= {f"mask/{region}": np.asarray(mask[0]) for region, mask in shapes.items()}
    sent = sum(np.asarray(array).nbytes for array in (*volumes.values(), *shapes.values()))
    return {"seconds": seconds, "sample": sent / 1e6, "outputs": _digests(outputs)}


def optimised(folder: Path, size: tuple[int, int, int]) -> dict[str, Any]:
    """Our reading, cropping and packing."""
    import torch

    import datamodules.ct_volume  # noqa: F401  # not on the clock
    from lit_modules.nets.region_crops import pack, region_crops

    torch.set_num_threads(1)
    start = time.process_time()
    study = _read(folder)
    crops = region_crops(study.volume, study.masks, size)
    packed = pack(crops, "bfloat16")
    seconds = time.process_time() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outputs = {f"volume/{name}": array for name, array in crops.volumes.items()}
    outputs |= {f"mask/{region}": array for region, array in crops.masks.items()}
    sent = sum(array.nbytes for array in packed.values())
    return {"seconds": seconds, "sample": sent / 1e6, "outputs": _digests(outputs), "memory": memory / 1e3}


def from_store(folder: Path, size: tuple[int, int, int]) -> dict[str, Any]:
    """Reading the packed sample from a store whose file lies in the page cache, and copying it as a worker does."""
    import torch

    from datamodules.store import Store
    from lit_modules.nets.region_crops import pack, region_crops

    torch.set_num_threads(1)
    study, store = _read(folder), Store(folder / "store", {})
    store.folder.mkdir(parents=True)
    store.write(study, pack(region_crops(study.volume, study.masks, size), "bfloat16"), [])
    seconds = []
    for _ in range(3):
        start = time.process_time()
        sample = {name: torch.from_numpy(array).clone() for name, array in store.load(study).items()}
        seconds.append(time.process_time() - start)
    return {"seconds": min(seconds), "sample": sum(part.nbytes for part in sample.values()) / 1e6}


def _read(folder: Path) -> Any:
    from datamodules.ct_volume import read_ct
    from datamodules.study import Study

    files = {f"masks/{p.name[:-7]}": p for p in sorted(folder.glob("*.nii.gz"))}
    files["volume"] = files.pop("masks/volume")
    study, faults = read_ct(Study(id="synthetic", files=files))
    assert not faults, faults
    return study


def _digests(outputs: dict[str, np.ndarray]) -> dict[str, str]:
    contiguous = {name: np.ascontiguousarray(array, np.float32) + 0.0 for name, array in outputs.items()}
    return {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in contiguous.items()}


def _apart(run: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Runs it in a process of its own, so that its memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (run, *arguments))


def _measured(run: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    figures = run(*arguments)
    return {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, **figures}


def main() -> None:
    """Prints the table."""
    print(f"{'':32}{'reference':>12}{'ours':>10}{'factor':>10}   identical")
    for row in rows():
        same = {True: "to the last bit", False: "NO", None: ""}[row["identical"]]
        figures = f"{row['reference']:>9.2f} {row['unit']:<2}{row['ours']:>7.2f} {row['unit']:<2}{row['factor']:>9.1f}"
        print(f"{row['name']:<32}{figures}   {same}")


if __name__ == "__main__":
    main()
