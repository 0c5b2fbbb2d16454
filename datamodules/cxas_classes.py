"""Names of segmentation classes: the 212 of ASaRG's paper, the 159 that CXAS gives out, and the superclasses of both.

CXAS is Seibold et al., arXiv:2306.03934 (package `cxas` 0.0.20). ASaRG (arXiv:2507.16623) trained it further, to 212
classes (its table of classes, in that order and spelling). Neither weights nor data of the other 53 were given out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# fmt: off
PAPER: tuple[str, ...] = (
    "spine", "cervical spine", "thoracic spine", "lumbar spine", "vertebrae C1", "vertebrae C2", "vertebrae C3",
    "vertebrae C4", "vertebrae C5", "vertebrae C6", "vertebrae C7", "vertebrae T1", "vertebrae T2", "vertebrae T3",
    "vertebrae T4", "vertebrae T5", "vertebrae T6", "vertebrae T7", "vertebrae T8", "vertebrae T9", "vertebrae T10",
    "vertebrae T11", "vertebrae T12", "vertebrae L1", "vertebrae L2", "vertebrae L3", "vertebrae L4",
    "vertebrae L5", "rib_cartilage", "sternum", "clavicles", "clavicle left", "clavicle right", "scapulas",
    "scapula left", "scapula right", "posterior 12th rib right", "posterior 12th rib left",
    "anterior 11th rib right", "posterior 11th rib right", "anterior 11th rib left", "posterior 11th rib left",
    "anterior 10th rib right", "posterior 10th rib right", "anterior 10th rib left", "posterior 10th rib left",
    "anterior 9th rib right", "posterior 9th rib right", "anterior 9th rib left", "posterior 9th rib left",
    "anterior 8th rib right", "posterior 8th rib right", "anterior 8th rib left", "posterior 8th rib left",
    "anterior 7th rib right", "posterior 7th rib right", "anterior 7th rib left", "posterior 7th rib left",
    "anterior 6th rib right", "posterior 6th rib right", "anterior 6th rib left", "posterior 6th rib left",
    "anterior 5th rib right", "posterior 5th rib right", "anterior 5th rib left", "posterior 5th rib left",
    "anterior 4th rib right", "posterior 4th rib right", "anterior 4th rib left", "posterior 4th rib left",
    "anterior 3rd rib right", "posterior 3rd rib right", "anterior 3rd rib left", "posterior 3rd rib left",
    "anterior 2nd rib right", "posterior 2nd rib right", "anterior 2nd rib left", "posterior 2nd rib left",
    "anterior 1st rib right", "posterior 1st rib right", "anterior 1st rib left", "posterior 1st rib left",
    "12th rib", "posterior 11th rib", "anterior 11th rib", "posterior 10th rib", "anterior 10th rib",
    "posterior 9th rib", "anterior 9th rib", "posterior 8th rib", "anterior 8th rib", "posterior 7th rib",
    "anterior 7th rib", "posterior 6th rib", "anterior 6th rib", "posterior 5th rib", "anterior 5th rib",
    "posterior 4th rib", "anterior 4th rib", "posterior 3rd rib", "anterior 3rd rib", "posterior 2nd rib",
    "anterior 2nd rib", "posterior 1st rib", "anterior 1st rib", "diaphragm", "left hemidiaphragm",
    "right hemidiaphragm", "stomach", "small bowel", "duodenum", "liver", "pancreas", "kidney left", "kidney right",
    "cardiomediastinum", "upper mediastinum", "lower mediastinum", "anterior mediastinum", "middle mediastinum",
    "posterior mediastinum", "heart", "heart atrium left", "heart atrium right", "heart myocardium",
    "heart ventricle left", "heart ventricle right", "aorta", "ascending aorta", "descending aorta", "aortic arch",
    "pulmonary artery", "pulmonary trunc", "left pulmonary artery", "right pulmonary artery", "inferior vena cava",
    "esophagus", "lung", "right lung", "left lung", "lung base", "mid zone lung", "upper zone lung",
    "apical zone lung", "right upper zone lung", "right mid zone lung", "right lung base", "right apical zone lung",
    "left upper zone lung", "left mid zone lung", "left lung base", "left apical zone lung", "lung lower lobe left",
    "lung upper lobe left", "lung lower lobe right", "lung middle lobe right", "lung upper lobe right",
    "less obstructed lung", "l. obs. right lung", "l. obs. left lung", "l. obs. lung base", "l. obs. mid zone lung",
    "l. obs. upper zone lung", "l. obs. apical zone lung", "l. obs. right upper zone lung",
    "l. obs. right mid zone lung", "l. obs. right lung base", "l. obs. right apical zone lung",
    "l. obs. left upper zone lung", "l. obs. left mid zone lung", "l. obs. left lung base",
    "l. obs. left apical zone lung", "trachea", "tracheal bifurcation", "breast", "breast left", "breast right",
    "Atelectasis", "Calcification", "Cardiomegaly", "Consolidation", "Diffuse Nodule", "Effusion", "Emphysema",
    "Fibrosis", "Fracture", "Mass", "Nodule", "Pleural Thickening", "Pneumothorax", "CVC - Normal",
    "CVC - Borderline", "NGT - Normal", "ETT - Normal", "NGT - Incompletely Imaged", "CVC - Abnormal",
    "ETT - Borderline", "Swan Ganz Catheter Present", "NGT - Borderline", "NGT - Abnormal", "ETT - Abnormal",
    "Fremdkörper", "Cable", "Clamp", "electronics", "Throat Pipe", "Pipe", "Letters", "Stiches", "Sensors",
    "Implant", "Foreign Object",
)
# fmt: on

# CXAS's own order, which numbers the masks in its files, leaves the others out and moves up.
CXAS: tuple[str, ...] = (*PAPER[:132], *PAPER[135:157], *PAPER[172:177])


def _members(*numbers: int | range) -> tuple[str, ...]:
    """Names by the paper's numbers."""
    flat: Iterable[int] = (n for part in numbers for n in (part if isinstance(part, range) else (part,)))
    return tuple(PAPER[number] for number in flat)


# What a superclass unites. The first 18 are those of `cxas.label_mapper`, and hold public classes alone; that file lets
# five of them overwrite a class of the same name. They overlap, and some classes lie in none. ASaRG adds the last two.
SUPERCLASSES: Mapping[str, tuple[str, ...]] = {
    "thoracic spine": _members(2, range(11, 23)),
    "all vertebrae": _members(range(4, 28)),
    "cervical spine": _members(range(4, 11)),
    "lumbar spine": _members(3, range(23, 28)),
    "clavicle set": _members(range(30, 33)),
    "scapula set": _members(range(33, 36)),
    "ribs": _members(range(36, 82)),
    "ribs super": _members(range(82, 105)),
    "diaphragm": _members(range(105, 108)),
    "mediastinum": _members(range(115, 121)),
    "abdomen": _members(range(108, 115)),
    "heart region": _members(range(121, 127)),
    "breast tissue": _members(range(175, 177)),
    "trachea": _members(range(172, 174)),
    "lung zones": _members(range(144, 152)),
    "lung halves": _members(range(138, 140)),
    "vessels": _members(121, range(128, 132), 135),
    "lung lobes": _members(range(152, 157)),
    "pathology": _members(range(177, 190)),
    "foreign objects": _members(range(190, 212)),
}
