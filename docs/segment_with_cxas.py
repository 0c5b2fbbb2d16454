# /// script
# requires-python = "==3.11.*"
# dependencies = [
#     "cxas==0.0.20",
#     "gdown<6",  # 6 dropped the argument `fuzzy`, with which cxas fetches its weights
# ]
# [tool.uv]
# exclude-newer = "2026-11-20T00:00:00Z"
# ///
"""Segments radiographs with CXAS in an environment of its own: `uv run --script docs/segment_with_cxas.py --help`.

Writes `<out>/<stem>.json` for each image, as `datamodules/segmentation_files.py` reads it, and in `<out>/made_by.txt`
which version of the tool made them; see docs/cxas.md.
"""

import argparse
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

MODEL = "UNet_ResNet50_default"
ENDINGS = (".jpg", ".png", ".dcm")  # those that CXAS opens


def main() -> int:
    """Runs the command; returns 1 if an image could not be segmented."""
    parser = argparse.ArgumentParser(description="Segments radiographs with CXAS. Interrupted, it goes on.")
    parser.add_argument("images", type=Path, help="folder of .jpg, .png or .dcm, with any folders in it")
    parser.add_argument("out", type=Path, help="folder for the masks, a JSON file an image")
    parser.add_argument("--device", default="0", help="number of the GPU (default 0), or cpu")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="the Kth of N processes that share the images")
    arguments = parser.parse_args()
    number, parts = map(int, arguments.part.split("/"))
    images = sorted(path for path in arguments.images.rglob("*") if path.suffix.lower() in ENDINGS)
    if len({path.stem for path in images}) < len(images):
        parser.error(f"{arguments.images}: two images have the same name, and so would their masks")
    missing = [path for path in images[number - 1 :: parts] if not (arguments.out / f"{path.stem}.json").exists()]
    return segment(missing, arguments.out, arguments.device, aside=arguments.out / f".part-{number}")


def segment(images: list[Path], out: Path, device: str, aside: Path) -> int:
    """Segments each image; a file gets its place when it is whole."""
    from cxas import CXAS
    from tqdm import tqdm

    model = CXAS(model_name=MODEL, gpus=device)
    out.mkdir(parents=True, exist_ok=True)
    (out / "made_by.txt").write_text(f"{made_by()}\n", encoding="utf-8")
    failed = 0
    for image in tqdm(images, "segmenting"):
        try:
            model.process_file(str(image), True, str(aside), create=True, storage_type="json")
            (aside / f"{image.stem}.json").replace(out / f"{image.stem}.json")
        except Exception as error:  # an image that cannot be read comes out in many ways
            failed += 1
            tqdm.write(f"{image}: not segmented ({type(error).__name__})", file=sys.stderr)
    if aside.is_dir():
        aside.rmdir()
    print(f"{len(images) - failed} segmented, {failed} failed; masks in {out}")
    return 1 if failed else 0


def made_by() -> str:
    """The tool's version and its model; the store of pooled maps keeps the line, and pools anew where it changes."""
    try:
        return f"cxas {version('cxas')}, {MODEL}"
    except PackageNotFoundError:
        return f"cxas of unknown version, {MODEL}"


if __name__ == "__main__":
    sys.exit(main())
