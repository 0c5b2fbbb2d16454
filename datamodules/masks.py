"""Masks: the ten regions of RadGenome-ChestCT, how other label schemes give them, and masks of boxes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

Box = tuple[float, float, float, float]  # x0, y0, x1, y1, as fractions of the image's width and height

# RadGenome-ChestCT's regions in their order and spelling (the last one is the dataset's own).
REGIONS = (
    "abdomen",
    "bone",
    "breast",
    "esophagus",
    "heart",
    "lung",
    "mediastinum",
    "pleura",
    "thyroid",
    "trachea and bronchie",
)

# TotalSegmentator v2, task "total": label id → region. Its classes say nothing of breast and pleura, so these stay
# absent; of the bronchi it has none, so that region is the trachea alone. Classes that lie in no single region (spinal
# cord, muscles, vessels of the neck and limbs, inferior vena cava, brain, costal cartilage) belong to none.
TOTALSEGMENTATOR: dict[int, str] = {
    **dict.fromkeys(range(1, 10), "abdomen"),  # spleen, kidneys, gallbladder, liver, stomach, pancreas, adrenal glands
    **dict.fromkeys(range(10, 15), "lung"),  # five lobes
    15: "esophagus",
    16: "trachea and bronchie",
    17: "thyroid",
    **dict.fromkeys(range(18, 25), "abdomen"),  # bowel, bladder, prostate, kidney cysts
    **dict.fromkeys(range(25, 51), "bone"),  # sacrum, vertebrae S1 to C1
    51: "heart",
    **dict.fromkeys(range(52, 55), "mediastinum"),  # aorta, pulmonary vein, brachiocephalic trunk
    **dict.fromkeys(range(59, 61), "mediastinum"),  # brachiocephalic veins
    61: "heart",  # left atrial appendage
    62: "mediastinum",  # superior vena cava
    64: "abdomen",  # portal and splenic vein
    **dict.fromkeys(range(69, 79), "bone"),  # humerus, scapula, clavicle, femur, hip
    **dict.fromkeys(range(91, 117), "bone"),  # skull, ribs, sternum
}
TOTALSEGMENTATOR_LABELS = 117


def regions_from_labels(labels: np.ndarray) -> dict[str, np.ndarray]:
    """The regions that a TotalSegmentator v2 label map gives; a region without a voxel is absent.

    Args:
        labels: Label ids 0 to 117, any shape.

    Returns:
        Region → {0, 1} uint8 of the same shape and memory order.

    Raises:
        ValueError: There is a label that the scheme does not have.
    """
    if labels.size and (labels.min() < 0 or labels.max() > TOTALSEGMENTATOR_LABELS):
        wrong = np.unique(labels[(labels < 0) | (labels > TOTALSEGMENTATOR_LABELS)])[:5].tolist()
        raise ValueError(f"labels {wrong} are not in TotalSegmentator v2's list (0 to {TOTALSEGMENTATOR_LABELS})")
    masks = {}
    for region in REGIONS:
        chosen = np.array([TOTALSEGMENTATOR.get(label) == region for label in range(TOTALSEGMENTATOR_LABELS + 1)])
        mask = chosen.view(np.uint8)[labels]
        if mask.any():
            masks[region] = mask
    return masks


def box_mask(boxes: Iterable[Box], width: int, height: int) -> np.ndarray:
    """What a set of boxes covers, as RegionFormer's code draws it.

    Edges are rounded to whole pixels, halves to the even one, and clipped to the image; the last pixel is exclusive. A
    box that keeps no pixel adds nothing.

    Args:
        boxes: As fractions of the image's width and height; they may reach out of it.
        width: Columns of the mask.
        height: Rows of the mask.

    Returns:
        {0, 1} uint8, `(row, column)`.
    """
    mask = np.zeros((height, width), np.uint8)
    for box in boxes:
        x0, x1 = (min(width, max(0, round(x * width))) for x in box[::2])
        y0, y1 = (min(height, max(0, round(y * height))) for y in box[1::2])
        mask[y0:y1, x0:x1] = 1  # empty where an edge lies behind its opposite
    return mask


def disturbed_box(box: Box, draw: tuple[float, float, float], level: int) -> Box:
    """A box that was marked carelessly (RegionFormer, §4.3 and Table 3).

    The paper says: shifted by up to ±16 % of the image and scaled by 1 ± 50 %, both times level / 5, clipped, and left
    as it was where nothing remains. That the three numbers are uniform, and the box is scaled about its centre, is our
    reading; no code of it was released.

    Args:
        box: As fractions of the image's width and height.
        draw: Three numbers in [-1, 1]: for the shifts along x and y, and for the scale.
        level: 0 (the box as it is) to 5.
    """
    if level == 0:
        return box
    x0, y0, x1, y1 = box
    share = level / 5
    x, y = (x0 + x1) / 2 + 0.16 * share * draw[0], (y0 + y1) / 2 + 0.16 * share * draw[1]
    scale = 1 + 0.5 * share * draw[2]
    half_width, half_height = scale * (x1 - x0) / 2, scale * (y1 - y0) / 2
    left, top, right, bottom = (
        min(1.0, max(0.0, edge)) for edge in (x - half_width, y - half_height, x + half_width, y + half_height)
    )
    return (left, top, right, bottom) if left < right and top < bottom else box
