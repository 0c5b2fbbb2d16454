"""Segmentation maps for ASaRG: decoding and pooling them for each sample, beside ours and beside reading a store.

`python -m benchmarks.asarg` prints two tables. One synthetic radiograph of 1024 × 1024 has 212 masks, 182 of them not
empty: ellipses of the size of organs, ribs and vertebrae, with uneven edges. Figures are taken on one thread, with the
files in the page cache, each way of working in a process of its own; seconds are processor seconds, which a busy
machine changes little. The plain way is what a loader without a store does: pycocotools decodes each mask, torch pools
it in float32. Memory is the peak above what the imports take; the store's is mapped, and shared by all workers.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 1024
GRID = 32
EMPTY = 30  # of the 212 classes
STORED = 512  # studies in the store that is read


def synthetic_masks(size: int = SIZE) -> dict[str, np.ndarray]:
    """Class name → `{0, 1}` `(row, column)`, uint8."""
    from datamodules.cxas_classes import PAPER

    random = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    masks = {}
    for number, name in enumerate(PAPER):
        mask = np.zeros((size, size), np.uint8)
        if number < len(PAPER) - EMPTY:
            cy, cx = random.uniform(0.15, 0.85, 2)
            ry, rx = np.exp(random.uniform(np.log(0.02), np.log(0.25), 2))
            waves, phase = random.integers(5, 30), random.uniform(0, 6)
            edge = 1 + 0.1 * np.sin(waves * np.arctan2(y - cy, x - cx) + phase)
            mask[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < edge] = 1
        masks[name] = mask
    return masks


def write_files(folder: Path) -> dict[str, Any]:
    """`a.json` as CXAS writes it for one radiograph, and a folder `a` of PNGs of one bit; says what was drawn."""
    from PIL import Image
    from pycocotools import mask as coco

    masks = synthetic_masks()
    annotations = []
    (folder / "a").mkdir()
    for number, mask in enumerate(masks.values()):
        Image.fromarray(mask.astype(bool)).save(folder / "a" / f"{number}.png")
        if mask.any():
            rle = coco.encode(np.asfortranarray(mask))
            segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
            box = coco.toBbox(rle).tolist()
            row = {"id": number, "image_id": 1, "category_id": number, "segmentation": segmentation, "bbox": box}
            annotations.append({**row, "area": int(mask.sum()), "iscrowd": 0})
    categories = [{"supercategory": name, "id": number, "name": name} for number, name in enumerate(masks)]
    whole = {"info": {}, "licenses": [], "images": [[{"id": 1, "file_name": "a.jpg"}]], "categories": categories}
    (folder / "a.json").write_text(json.dumps({**whole, "annotations": annotations}))
    areas = [mask.mean() for mask in masks.values() if mask.any()]
    pixels = sum(mask.size for mask in masks.values())
    return {"classes": len(masks), "shown": len(areas), "area": np.mean(areas), "pixels": pixels}


def plain(folder: Path) -> dict[str, Any]:
    """Decodes every mask, stacks them, pools the stack in float32."""
    import torch
    from pycocotools import mask as coco
    from torch.nn.functional import adaptive_avg_pool2d

    torch.set_num_threads(1)

    def sample() -> np.ndarray:
        whole = json.loads((folder / "a.json").read_text())
        maps = np.zeros((len(whole["categories"]), SIZE, SIZE), np.uint8)
        for annotation in whole["annotations"]:
            maps[annotation["category_id"]] = coco.decode(annotation["segmentation"])
        return adaptive_avg_pool2d(torch.from_numpy(maps).float(), GRID).numpy()

    return _timed(sample, 2)


def ours(folder: Path) -> dict[str, Any]:
    """What building the store does for each study, without the superclasses."""
    from datamodules.cxas_classes import PAPER
    from datamodules.segmentation_files import open_masks
    from lit_modules.nets.pooled_maps import pooled_maps

    return _timed(lambda: pooled_maps(open_masks(folder, "a"), PAPER, GRID)["maps"] / np.float32(255), 3)


def build_store(folder: Path) -> dict[str, Any]:
    """Builds the store, which packs itself."""
    from datamodules.cxas_classes import PAPER
    from datamodules.segmentation_files import open_masks
    from lit_modules.nets.pooled_maps import pooled_maps

    ready: Any = _Ready(pooled_maps(open_masks(folder, "a"), PAPER, GRID))
    store, studies = _store(folder)
    store.build(studies, ready, lambda study: (study, []), progress=False)
    shards = list((store.folder / "shards").glob("shard-*"))
    assert shards and not list(store.folder.glob("*.safetensors"))
    return {"bytes": sum(shard.stat().st_size for shard in shards) / STORED}


def from_store(folder: Path) -> dict[str, Any]:
    """Reads each study of a packed store once, in a random order, and copies the maps as a worker does."""
    import torch

    torch.set_num_threads(1)
    store, studies = _store(folder)
    order = np.random.default_rng(0).permutation(STORED)
    before = _peak()
    store.load(studies[0])  # opens the shard, once in each worker
    start = time.process_time()
    for number in order:
        maps = torch.from_numpy(store.load(studies[number])["maps"].copy())
    seconds = (time.process_time() - start) / STORED
    return {"seconds": seconds, "maps": maps.numpy() / np.float32(255), "memory": _peak() - before}


def _store(folder: Path) -> tuple[Any, list[Any]]:
    from datamodules.store import Store
    from datamodules.study import Study

    return Store(folder / "store", {"grid": GRID}), [Study(id=str(number)) for number in range(STORED)]


class _Ready:
    """A preprocessor that made its arrays before."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.made = arrays

    def arrays(self, study: Any) -> dict[str, np.ndarray]:
        return self.made


def _timed(sample: Callable[[], np.ndarray], times: int) -> dict[str, Any]:
    seconds, before = [], _peak()
    for _ in range(times):
        start = time.process_time()
        maps = sample()
        seconds.append(time.process_time() - start)
    return {"seconds": min(seconds), "maps": maps, "memory": _peak() - before}


def _peak() -> float:
    """Megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _apart(run: Callable[[Path], dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Runs it in a process of its own, so that its memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(run, (folder,))


def main() -> None:
    """Prints the tables."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        drawn = _apart(write_files, folder)
        stored = _apart(build_store, folder)["bytes"]
        ways = {
            "plain: pycocotools, float pooling": _apart(plain, folder),
            "ours: RLE and pooling in whole numbers": _apart(ours, folder),
            "read from the packed store": _apart(from_store, folder),
        }
        pictures = [path.stat() for path in (folder / "a").iterdir()]
        sizes = {
            "COCO RLE, JSON": (folder / "a.json").stat().st_size,
            f"{drawn['classes']} PNGs of one bit": sum(picture.st_size for picture in pictures),
            "the same, in whole blocks of the disk": sum(512 * picture.st_blocks for picture in pictures),
            "store: uint8, packed": stored,
            "bool array, as .npy": drawn["pixels"],
        }
    shown = f"{drawn['shown']} not empty, {100 * drawn['area']:.1f} % of the image on average"
    print(f"{drawn['classes']} masks of {SIZE} × {SIZE}, {shown}\n")
    print(f"{f'maps of {GRID} × {GRID} for one study':<44}{'ms':>10}{'factor':>10}{'MB':>10}{'largest error':>16}")
    reference = next(iter(ways.values()))
    for title, figures in ways.items():
        factor = reference["seconds"] / figures["seconds"]
        error = np.abs(figures["maps"] - reference["maps"]).max()
        print(f"{title:<44}{1e3 * figures['seconds']:>10.3f}{factor:>10,.0f}{figures['memory']:>10.0f}{error:>16.5f}")
    print(f"\n{'one study on disk':<44}{'kB':>10}{'of store':>10}")
    for title, size in sizes.items():
        print(f"{title:<44}{size / 1e3:>10,.0f}{size / stored:>10.2f}")


if __name__ == "__main__":
    main()
