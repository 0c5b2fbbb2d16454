"""Which segmentation classes a report speaks of, and whether it affirms them: rules on words.

ASaRG (arXiv:2507.16623, §6.2) checks what a report says against the maps of the structures that it names; the paper did
so by eye. A clause is what a denial reaches. A finding is denied where a denial comes before it in its clause, right
after it or within it ("heart size is normal"). What is in doubt counts as affirmed, and what is affirmed somewhere is
affirmed. The rules know the usual words of chest radiographs, and are no labeller: no figure rests on them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from datamodules.cxas_classes import PAPER

FINDINGS = frozenset(PAPER[177:201])  # what a report affirms or denies: 13 pathologies, 11 classes of lines and tubes

_SHOWN = r"(?: \w+){0,4} (?:enlarged|increased|normal|unremarkable)"
_UNSIDED = r"(?<!right )(?<!left )(?<!right lung )(?<!left lung )"
_LINE = ("CVC - Normal", "CVC - Borderline", "CVC - Abnormal")
_GASTRIC = ("NGT - Normal", "NGT - Borderline", "NGT - Abnormal", "NGT - Incompletely Imaged")
_TRACHEAL = ("ETT - Normal", "ETT - Borderline", "ETT - Abnormal")

# Words → the classes that stand for them, the likeliest first; those of the superclasses come last.
_FINDINGS: dict[str, tuple[str, ...]] = {
    rf"cardiomegaly|(?:enlarged|normal) (?:heart|cardiac)|\b(?:heart|cardiac){_SHOWN}": ("Cardiomegaly", "pathology"),
    r"(?<!pericardial )\beffusions?\b|pleural fluid|costophrenic|pleural spaces?": ("Effusion", "pathology"),
    r"pneumothora(?:x|ces)": ("Pneumothorax", "pathology"),
    r"consolidat\w+|(?<!nodular )\bopaci\w+|infiltrat\w+|pneumonia|clear lungs?|\blungs?(?: \w+){0,4} clear": (
        "Consolidation", "pathology",
    ),
    r"atelecta\w+|volume loss|loss of volume": ("Atelectasis", "pathology"),
    r"\bnodul\w+|granuloma\w*": ("Nodule", "Diffuse Nodule", "pathology"),
    r"\bmass(?:es)?\b|tumou?rs?\b": ("Mass", "pathology"),
    r"fractur\w+|collapsed vertebra\w*|compression deformit\w+": ("Fracture", "pathology"),
    r"(?<!subcutaneous )emphysema\w*|bullae?\b": ("Emphysema", "pathology"),
    r"fibro\w+|scarring|\bscars?\b": ("Fibrosis", "pathology"),
    r"calcifi\w+": ("Calcification", "pathology"),
    r"(?:pleural|apical) thickening": ("Pleural Thickening", "pathology"),
    r"(?:central|jugular|subclavian) (?:\w+ )?(?:lines?|catheters?)|\bpicc\b|\bport\b": (*_LINE, "foreign objects"),
    r"(?:nasogastric|orogastric|enteric|feeding|ng) tubes?": (*_GASTRIC, "foreign objects"),
    r"(?:endo)?tracheal tubes?|\bett\b|\bet tube": (*_TRACHEAL, "foreign objects"),
    r"swan[ -]ganz|pulmonary artery catheter": ("Swan Ganz Catheter Present", "foreign objects"),
    r"pacemakers?|\bpacer\b|defibrillator": ("electronics", "foreign objects"),
}  # fmt: skip
_ORGANS: dict[str, tuple[str, ...]] = {
    r"(?<!behind the )\bheart\b|\bcardiac\b|cardiomegaly": ("heart", "heart region"),
    r"mediastin\w+|cardiomediastin\w+|\bhil(?:um|a|ar)\b": ("cardiomediastinum", "mediastinum"),
    r"\baort\w+": ("aorta", "vessels"),
    r"\bright (?:hemi)?diaphragm": ("right hemidiaphragm", "diaphragm"),
    r"\bleft (?:hemi)?diaphragm": ("left hemidiaphragm", "diaphragm"),
    rf"{_UNSIDED}\b(?:hemi)?diaphragms?": ("diaphragm",),
    r"\btrachea\b|\btracheal\b(?! tube)": ("trachea",),
    r"\bcarina\b": ("tracheal bifurcation", "trachea"),
    r"\bribs?\b": ("ribs",),
    r"\bspine\b|vertebra\w*": ("spine", "all vertebrae"),
    r"clavic\w+": ("clavicles", "clavicle set"),
    r"\bbreasts?\b": ("breast", "breast tissue"),
    r"\bstomach\b": ("stomach", "abdomen"),
}
_LOBES = {  # the left lung has no middle lobe
    f"{side} {level}": (f"lung {level} lobe {side}", "lung lobes")
    for side, level in product(("right", "left"), ("upper", "middle", "lower"))
    if (side, level) != ("left", "middle")
}
_ZONES = {
    r"upper (?:lung )?(?:zone|field)s?|upper lung\b": "upper zone lung",
    r"(?:mid|middle) (?:lung )?(?:zone|field)s?|mid lung\b": "mid zone lung",
    r"lower (?:lung )?(?:zone|field)s?|lower lung\b|(?:lung |bi)?bas(?:e|es|al|ilar)\b": "lung base",
    r"(?:lung )?(?:apex|apices|apical)\b": "apical zone lung",
}


@dataclass(frozen=True)
class _Rule:
    words: re.Pattern[str]
    classes: tuple[str, ...]
    finding: bool


def _rules() -> Iterator[_Rule]:
    """In the order in which maps are shown: findings, then organs."""
    for words, classes in _FINDINGS.items():
        yield _Rule(re.compile(words), classes, True)
    organs = dict(_ORGANS)
    organs |= {rf"\b{place} lobe": classes for place, classes in _LOBES.items()}
    for words, zone in _ZONES.items():
        for side in ("right", "left"):
            organs[rf"\b{side} (?:{words})"] = (f"{side} {zone}", "lung zones")
        organs[rf"{_UNSIDED}\b(?:{words})"] = (zone, "lung zones")
    organs |= {rf"\b{side} lung\b(?! (?:bas|ap))": (f"{side} lung", "lung halves") for side in ("right", "left")}
    organs[r"\blungs\b|\blung volumes?"] = ("lung", "lung halves")
    for words, classes in organs.items():
        yield _Rule(re.compile(words), classes, False)


_RULES = tuple(_rules())

_NO_CHANGE = re.compile(r"\b(?:no|not|without)(?: \w+)? (?:change[ds]?|interval|increase[ds]?|worsen\w+)\b")
_DENIAL = re.compile(r"\b(?:no|not|without|neither|nor|free of|clear of|absence of|negative for|resolution of)\b")
_DENIED_WITHIN = re.compile(r"\b(?:no|not|normal|unremarkable|clear)\b")
_IS = r"(?:is|are|was|were|has|have|appears?|remains?)"
_GONE = r"(?:not|no longer|normal|clear|free|sharp|preserved|absent|resolved|removed|excluded)"
_DENIED_AFTER = re.compile(rf"^[^,]{{0,30}}?\b{_IS}(?: \w+)? {_GONE}\b")
_CUT = re.compile(r"\b(?:but|however|although|though|except)\b|,? and (?=(?:the|there|an?)\b)")


def structures_in(text: str) -> dict[tuple[str, ...], bool]:
    """What a report speaks of.

    Args:
        text: The report.

    Returns:
        Classes that stand for a finding or an organ, the likeliest first → whether the text affirms it (an organ that
        is spoken of is affirmed). Findings come first.
    """
    clauses = list(_clauses(text))
    found: dict[tuple[str, ...], bool] = {}
    for rule in _RULES:
        said = [_affirmed(clause, at) for clause in clauses for at in rule.words.finditer(clause)]
        if said:
            found[rule.classes] = any(said) or not rule.finding
    return found


def _clauses(text: str) -> Iterator[str]:
    """Lower case, white space collapsed."""
    for sentence in re.split(r"[;!?\n]|\.(?=\s|$)", text.lower()):
        for part in _CUT.split(sentence):
            # A denial goes on over the commas of a list, which an "or" or "nor" ends.
            pieces = part.split(",") if not re.search(r"\bn?or\b", part.rpartition(",")[2]) else [part]
            for clause in pieces:
                yield _NO_CHANGE.sub(" unchanged ", " ".join(clause.split()))


def _affirmed(clause: str, at: re.Match[str]) -> bool:
    before, after = clause[: at.start()], clause[at.end() :]
    return not (_DENIAL.search(before) or _DENIED_WITHIN.search(at[0]) or _DENIED_AFTER.search(after))
