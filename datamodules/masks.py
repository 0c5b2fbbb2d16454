"""Region masks: the ten regions of RadGenome-ChestCT, and how other label schemes give them."""

from __future__ import annotations

import numpy as np

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
