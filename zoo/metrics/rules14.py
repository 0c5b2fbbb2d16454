"""`rules14`: CheXpert's fourteen labels read out of sentences by a few rules, so that drawn patients can be scored.

It is a stand-in where no weights are at hand, for reports worded by this project. It is not CheXbert, agrees with it
only roughly on real reports, and its figures never enter the leaderboard. All phrases are the project's own.

A report is cut into clauses. A mention counts as negative if a denial comes before it in its clause (or right after it,
as in "has resolved"), as uncertain near a word of doubt, else as positive; a normal heart or mediastinum counts as a
negative mention. Over a report positive wins over uncertain, and uncertain over negative.
"""

from __future__ import annotations

import re

import numpy as np

from zoo.metrics.chexbert import BLANK, LABELS, NEGATIVE, POSITIVE, UNCERTAIN, stated
from zoo.metrics.labels import Scored, by_study, label_metrics
from zoo.metrics.pairs import Pairs

_IS = r"(?:is|are|was|were|appears?|remains?|looks?|has been|have been)"
_BIG = r"(?:enlarged|increased|widened|prominent|big|large)"
_DEGREE = r"(?:\w+ly |more |slightly |again )*"
_HEART = r"(?:heart|cardiac)(?: and mediastinal)?(?: size| silhouette| shadow| contours?| diameter)?"
_MEDIASTINUM = r"(?:cardio)?mediastin(?:um|al)(?: and hilar)?(?: silhouette| contours?| width| vessels)?"
_FINE = r"(?:normal|unremarkable|within (?:the )?normal (?:limits|range)|not (?:enlarged|widened|increased))"
_ELSEWHERE = r"(?<!pericardial )(?<!joint )(?<!ear )"

# Label → what mentions it.
MENTIONS = {
    "Enlarged Cardiomediastinum": rf"{_MEDIASTINUM} {_IS} {_DEGREE}{_BIG}"
    rf"|(?:{_BIG}|widening of(?: the)?|enlargement of(?: the)?) (?:superior |upper )?{_MEDIASTINUM}",
    "Cardiomegaly": rf"cardiomegaly|{_HEART} {_IS} {_DEGREE}{_BIG}"
    rf"|(?:{_BIG}|enlargement of(?: the)?) (?:heart|cardiac (?:silhouette|shadow))|cardiac enlargement",
    "Lung Opacity": r"opaci\w+|infiltrat\w+|haz(?:e|iness|y areas?)|ground[ -]glass|air ?space disease|white[ -]?out"
    r"|(?:reticular|interstitial) (?:pattern|markings|changes|thickening)|septal thickening|mosaic attenuation",
    "Lung Lesion": r"(?<!thyroid )(?<!breast )\bnodul\w+\b(?!.*\b(?:thyroid|breast)\b)|\bmass(?:es)?\b|granuloma\w*"
    r"|(?:lung|pulmonary) (?:lesion|tumou?r|cancer|metasta\w+)s?|cavitat\w+|lungs?\b.*\bfocal lesions?",
    "Edema": r"(?<!subcutaneous )(?<!tissue )\bo?edema\b|(?:vascular|venous|pulmonary) (?:congestion|engorgement)"
    r"|heart failure|kerley|cephali[sz]ation",
    "Consolidation": r"consolidat\w+|air bronchograms?",
    "Pneumonia": r"(?:broncho)?pneumonias?\b|\binfecti(?:on|ous)\b",
    "Atelectasis": r"atelecta\w+|(?:lobar|lobe|lung|segmental) collapse|collapse of|volume loss|loss of volume",
    "Pneumothorax": r"(?:hydro)?pneumothora(?:x|ces)\b",
    "Pleural Effusion": rf"{_ELSEWHERE}\beffusions?\b|pleural fluid|fluid in the pleural|h(?:a?em|ydr)othorax|empyema"
    r"|blunt(?:ed|ing)\b.*\bcostophrenic|costophrenic\b.*\bblunted",
    "Pleural Other": r"pleural (?:\w+ (?:or|and) )?(?:thickening|plaques?|scar\w*|calcifications?|mass)"
    r"|thicken(?:ed|ing)(?: of)?(?: the)? pleura|fibrothorax",
    "Fracture": r"fractur\w+|compression deformit\w+|vertebra\w*\b.*\breduced in height|broken ribs?",
    "Support Devices": r"\b(?:tubes?|catheters?|picc|pacemakers?|(?:pacer|pacing) \w+|wires?|leads|stents?|clips)\b"
    r"|\bdrains?\b|(?:central|venous|arterial) (?:\w+ )?lines?\b|\bport\b|defibrillator"
    r"|prosthe(?:tic|sis)|\bhardware\b|devices?\b",
}
# Label → what says outright that there is nothing of the kind.
NORMAL = {
    "Enlarged Cardiomediastinum": rf"\b{_MEDIASTINUM}(?: (?:size|caliber))?(?: and .*)? {_IS} {_DEGREE}{_FINE}"
    rf"|\bmediastin(?:um|al)\b.* {_IS} {_FINE}|normal {_MEDIASTINUM}",
    "Cardiomegaly": rf"\b{_HEART}(?: and .*)? {_IS} {_DEGREE}{_FINE}|normal (?:size of the heart|{_HEART})",
    "Lung Opacity": rf"\blungs? (?:fields? )?{_IS} (?:\w+ )?clear|clear lungs?",
    "Pleural Effusion": rf"costophrenic \w+ {_IS} (?:sharp|clear|free)|pleural spaces? {_IS} (?:clear|free|normal)",
    "Fracture": rf"\b(?:bones?|bony \w+|osse\w+ \w+|ribs|vertebra\w*)\b.* {_IS} (?:normal|intact)",
}
# Denials that deny something else: what they leave is a mention like any other.
_NO_CHANGE = re.compile(
    r"\b(?:no|not|without)(?: \w+)? (?:change[ds]?|interval|increased?|worsen\w+|progress\w+)(?: change)?\b"
)
_DENIAL = re.compile(
    r"\b(?:no|not|without|neither|nor|never|free of|clear of|absence of|negative for|resolved|resolution of)\b"
)
_DENIED_AFTER = re.compile(
    rf"^[^,]*?\b{_IS} (?:now |again )?(?:not|no longer|absent|gone|unlikely|removed|excluded|ruled out)\b"
    r"|^[^,]*?\b(?:has|have)(?: been| now| completely)? (?:resolved|cleared|disappeared|removed)\b"
)
_NOT_EXCLUDED = r"\b(?:cannot|can ?not|could not|not|difficult to|hard to)\b[^,]{0,25}\b(?:exclude|rule)\w*"
_DOUBT = re.compile(
    rf"{_NOT_EXCLUDED}|\b(?:possibl[ey]|probabl[ey]|likely|may|might|could|suspect\w*|suspicious|concern\w*|question\w*"
    r"|suggest\w*|borderline|perhaps|versus|vs|if)\b"
)
_DOUBT_AFTER = re.compile(
    rf"^[^,]*?(?:{_NOT_EXCLUDED}|\b{_IS} (?:\w+ )?(?:possible|probable|likely|suspected|questionable|borderline)\b)"
)
_LIMIT = re.compile(
    rf"\b(?:{_HEART}|{_MEDIASTINUM})\b.*(?:borderline|upper limits? of normal|top normal)|borderline {_HEART}"
)
_VERB = rf"\b(?:{_IS}|has|have|shows?|contains?|lies|measures?)\b"
_FRESH = r"(?:there|the|an?|mild|moderate|severe|small|stable|unchanged|new|left|right|bilateral|but|possible|likely)\b"

_MENTIONS = {label: re.compile(pattern) for label, pattern in MENTIONS.items()}
_NORMAL = {label: re.compile(pattern) for label, pattern in NORMAL.items()}


def clauses(text: str) -> list[str]:
    """A report's clauses, lower case: what a denial or a doubt reaches."""
    found = []
    for sentence in re.split(r"[;!?\n]|\.(?=\s|$)|:\s", text.lower()):
        for part in re.split(r"\b(?:but|however|although|though|except|with|which)\b", sentence):
            found += [clause for half in _halves(part) for clause in _list_or_not(half)]
    return [" ".join(clause.split()) for clause in found if clause.strip()]


def _halves(part: str) -> list[str]:
    """Cut at an `and` between two statements; one between two things holds them together."""
    found, start = [], 0
    for match in re.finditer(r",? and\b", part):
        if re.search(_VERB, part[start : match.start()]) and re.search(_VERB, part[match.end() :]):
            found.append(part[start : match.start()])
            start = match.end()
    return [*found, part[start:]]


def _list_or_not(part: str) -> list[str]:
    """Cut at a comma behind which something new begins, unless an `or` shows that a list goes on."""
    found, start = [], 0
    for match in re.finditer(rf",(?= {_FRESH})", part):
        if not re.search(r"\bn?or\b", part[match.end() :]):
            found.append(part[start : match.start()])
            start = match.end()
    return [*found, part[start:]]


def label(text: str) -> tuple[int, ...]:
    """CheXbert's codes (0 blank, 1 positive, 2 negative, 3 uncertain) in its labels' order, `(14,)`.

    Never raises, whatever the text. An empty text has no label; another has No Finding if nothing but Support Devices
    is positive or uncertain in it.
    """
    said: dict[str, set[int]] = {name: set() for name in _MENTIONS}
    parts = clauses(text)
    for clause in (_NO_CHANGE.sub(" unchanged ", part) for part in parts):
        for name, pattern in _MENTIONS.items():
            said[name].update(_status(clause, match) for match in pattern.finditer(clause))
        for name, pattern in _NORMAL.items():
            if pattern.search(clause):
                said[name].add(NEGATIVE)
        if limit := _LIMIT.search(clause):
            said["Enlarged Cardiomediastinum" if "mediastin" in limit[0] else "Cardiomegaly"].add(UNCERTAIN)
    codes = {
        name: next((code for code in (POSITIVE, UNCERTAIN, NEGATIVE) if code in found), BLANK)
        for name, found in said.items()
    }
    ill = any(code in (POSITIVE, UNCERTAIN) for name, code in codes.items() if name != "Support Devices")
    codes["No Finding"] = POSITIVE if parts and not ill else BLANK
    return tuple(codes[name] for name in LABELS)


def _status(clause: str, mention: re.Match[str]) -> int:
    before, within, after = clause[: mention.start()], mention[0], clause[mention.end() :]
    if re.search(_NOT_EXCLUDED, before) or _DOUBT_AFTER.search(after):
        return UNCERTAIN
    if _DENIAL.search(before) or _DENIAL.search(within) or _DENIED_AFTER.search(after):
        return NEGATIVE
    doubt = _DOUBT.search(before.rsplit(",", 1)[-1]) or _DOUBT.search(within)
    return UNCERTAIN if doubt else POSITIVE


def rules14_metrics() -> dict[str, Scored]:
    """`rules14_<average>_<figure>` → how to score it (see `label_metrics`); uncertain counts as positive."""
    return label_metrics("rules14", LABELS, _matrices)


def _matrices(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    rows = np.array([label(text) for text in pairs.texts], dtype=np.int64).reshape(-1, len(LABELS))
    return by_study(pairs, stated(rows, "positive"))
