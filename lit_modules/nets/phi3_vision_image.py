"""What Phi-3(.5)-vision sees of an image, and how many tokens that is.

Abdin et al., "Phi-3 Technical Report", arXiv:2404.14219, §7: an image is resized to whole crops (at most `num_crops`,
as wide as that allows), its shorter direction padded with white at both ends, cut into squares that CLIP reads one by
one, and seen once more as a whole in the size of one crop. Portrait images are laid on their side for it and put back.

Pixel for pixel what the original processor makes of a Pillow image.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lit_modules.nets.backbones import located

CROP, PATCH = 336, 14  # CLIP ViT-L/14 at 336 pixels
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
_WHITE = (255, 255, 255)
_SETTINGS = "preprocessor_config.json"


def hd_image(image: np.ndarray | Image.Image, num_crops: int, crop: int = CROP) -> np.ndarray:
    """An image at the size of whole crops, `(row, column, 3)`, uint8.

    Args:
        image: `(row, column, 3)`, uint8, or a Pillow image.
        num_crops: Crops at most: 4 for Phi-3.5-vision as published, 16 for Phi-3-vision.
        crop: Pixels of a crop's side.

    Raises:
        ValueError: The array is not 8-bit RGB, or is empty.
    """
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"expected an 8-bit image (row, column, 3), not {image.dtype} {image.shape}")
        image = Image.fromarray(image)
    image = image.convert("RGB")
    upright = image.width < image.height
    if upright:
        image = image.transpose(Image.Transpose.TRANSPOSE)
    ratio = image.width / image.height
    across = 1
    while (across + 1) * np.ceil((across + 1) / ratio) <= num_crops:
        across += 1
    width = across * crop
    height = max(int(width / ratio), 1)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    page = Image.new("RGB", (width, -(-height // crop) * crop), _WHITE)
    page.paste(image, (0, (page.height - height) // 2))
    return np.array(page.transpose(Image.Transpose.TRANSPOSE) if upright else page)


def crops_of(page: np.ndarray, crop: int = CROP) -> Tensor:
    """The whole at the size of a crop, then the crops row by row, `(1 + crop, 3, row, column)`, normalised, float32.

    Args:
        page: See `hd_image`.
        crop: Pixels of a crop's side.
    """
    pixels = torch.from_numpy(page).permute(2, 0, 1).float().div(255).sub(_MEAN).div(_STD)
    # Bicubic on the normalised page and without smoothing, as in the original.
    whole = F.interpolate(pixels[None], size=(crop, crop), mode="bicubic")
    down, across = page.shape[0] // crop, page.shape[1] // crop
    cut = pixels.reshape(3, down, crop, across, crop).permute(1, 3, 0, 2, 4).reshape(-1, 3, crop, crop)
    return torch.cat([whole, cut])


def image_tokens(rows: int, columns: int, crop: int = CROP, patch: int = PATCH) -> int:
    """Tokens of an image whose page has so many rows and columns of pixels (`image_sizes`).

    2 × 2 patches are a token; each row of tokens ends in a separator, of the crops as of the whole, and one stands
    between the two: (down · across + 1) · 144 + 1 + (down + 1) · 12 as published.
    """
    down, across, side = rows // crop, columns // crop, crop // patch // 2
    return (down * across + 1) * side**2 + 1 + (down + 1) * side


class Phi3VisionImageProcessor:
    """Images in, `pixel_values` and `image_sizes` out.

    Args:
        num_crops: Crops at most; each image's are padded with zeros to this number.
        crop: Pixels of a crop's side.
        patch: Pixels of a patch's side.
    """

    def __init__(self, num_crops: int = 4, crop: int = CROP, patch: int = PATCH) -> None:
        self.num_crops = num_crops
        self.crop = crop
        self.patch = patch

    def __call__(self, images: Any, return_tensors: str | None = None) -> Any:
        """One image or several, each a Pillow image or `(row, column, 3)`, uint8.

        Returns:
            `pixel_values` `(image, 1 + num_crops, 3, row, column)`, float32; `image_sizes` `(image, 2)`, rows and
            columns of each page in pixels; `num_img_tokens`, a list.
        """
        from transformers import BatchFeature

        images = images if isinstance(images, Sequence) else [images]
        pages = [hd_image(image, self.num_crops, self.crop) for image in images]
        pixels = torch.zeros(len(pages), 1 + self.num_crops, 3, self.crop, self.crop)
        for place, page in zip(pixels, pages, strict=True):
            crops = crops_of(page, self.crop)
            place[: len(crops)] = crops
        sizes = [page.shape[:2] for page in pages]
        tokens = [self.image_tokens(*size) for size in sizes]
        found = BatchFeature({"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}, tensor_type=return_tensors)
        found["num_img_tokens"] = tokens
        return found

    def image_tokens(self, rows: int, columns: int) -> int:
        """See `image_tokens`."""
        return image_tokens(rows, columns, self.crop, self.patch)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes its settings beside a model."""
        settings = {"num_crops": self.num_crops, "crop": self.crop, "patch": self.patch}
        (Path(folder) / _SETTINGS).write_text(json.dumps(settings, indent=2))

    @classmethod
    def from_pretrained(cls, vlm: str) -> Phi3VisionImageProcessor:
        """That of a hub id or of a local folder, in the hub's layout or as `save_pretrained` writes it.

        Raises:
            OSError: It cannot be read.
        """
        from transformers.utils import cached_file

        path: Any = cached_file(located(vlm), _SETTINGS)
        settings = json.loads(Path(path).read_text())
        return cls(**{key: settings[key] for key in ("num_crops", "crop", "patch") if key in settings})
