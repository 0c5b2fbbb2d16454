"""The pneumothorax mask drawn onto the radiograph, and the two prompts (Jia et al., PMLR 317, "Image-Mask Fusion" and
"Prompt").

The paper says that "the transparency is set as 0.4" and not what that is a share of, nor which colour: 0.4 is read as
the colour's share here, red, and both are settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.ndimage import binary_erosion

_BEFORE = (
    "Consider that you are a professional radiologist with extensive experience and now you are treating a patient. "
)
_AFTER = (
    "Analyze the provided chest X-ray image and generate a comprehensive pneumothorax diagnostic report including "
    "findings and conclusions."
)
PROMPT_1 = f"{_BEFORE}In the image, the overlapped area is pneumothorax. {_AFTER}"
PROMPT_2 = f"{_BEFORE}{_AFTER}"

_LINES = 256  # an outline is this share of the longer side thick: 4 pixels at the paper's 1024


@dataclass(frozen=True)
class Overlay:
    """How the mask is drawn.

    Attributes:
        alpha: The paper's 0.4.
        alpha_is: What it is a share of: the colour (`opacity`), or the film below it (`transparency`).
        colour: Red, green, blue, 0 to 255.
        style: The whole area, or its border alone, drawn inwards.
    """

    alpha: float = 0.4
    alpha_is: Literal["opacity", "transparency"] = "opacity"
    colour: tuple[int, int, int] = (255, 0, 0)
    style: Literal["fill", "outline"] = "fill"

    @property
    def opacity(self) -> float:
        """The colour's share of what is seen in the mask."""
        return self.alpha if self.alpha_is == "opacity" else 1 - self.alpha


def draw_mask(grey: np.ndarray, mask: np.ndarray | None, overlay: Overlay) -> np.ndarray:
    """The radiograph in three equal channels, with `(1 - opacity) · film + opacity · colour` where the mask is, rounded
    to the nearest whole number (halves to the even one). Not a pixel outside of it changes.

    Args:
        grey: `(row, column)`, uint8.
        mask: `(row, column)`, other than 0 inside; `None` draws nothing.
        overlay: See `Overlay`.

    Returns:
        `(row, column, channel)`, uint8.

    Raises:
        ValueError: The film is no 8-bit grey image, or the mask is of another shape.
    """
    if grey.ndim != 2 or grey.dtype != np.uint8:
        raise ValueError(f"expected an 8-bit grey image (row, column), not {grey.dtype} {grey.shape}")
    picture = np.repeat(grey[..., None], 3, axis=2)
    if mask is None:
        return picture
    if mask.shape != grey.shape:
        raise ValueError(f"the mask is {mask.shape}, the film {grey.shape}")
    inside = mask != 0
    if overlay.style == "outline":
        thickness = max(1, round(max(grey.shape) / _LINES))
        inside &= ~binary_erosion(inside, iterations=thickness)  # the film's own border ends a mask too
    levels = (1 - overlay.opacity) * np.arange(256)[:, None] + overlay.opacity * np.asarray(overlay.colour, np.float64)
    picture[inside] = np.rint(levels).astype(np.uint8)[grey[inside]]
    return picture
