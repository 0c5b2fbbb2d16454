"""Reports of the phantom's radiographs with and without pneumothorax, in radiologists' English.

What the picture shows is told by side, place and size; all three can be read from the pneumothorax's mask. Around it
stand what such reports hold besides: a title, headers, comparisons with an earlier film, advice and a signature, none
of which the picture shows. All phrases are the project's own.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SIDES = ("right", "left")
SIZES = {"small": 0.12, "moderate": 0.30, "large": 1.0}  # below which share of the hemithorax's area
PLACES = {"apical": "at the apex", "lateral": "along the lateral chest wall", "basal": "at the base"}


@dataclass(frozen=True)
class Lesion:
    """A pneumothorax: `right` or `left`, one of PLACES, and its share of the hemithorax's projected area."""

    side: str
    place: str
    share: float

    @property
    def size(self) -> str:
        """One of SIZES."""
        return next(name for name, limit in SIZES.items() if self.share < limit)


@dataclass(frozen=True)
class Chest:
    """What is seen on one film: pneumothoraces, one a side, and the sides of a chest tube and of a rib fracture."""

    lesions: tuple[Lesion, ...] = ()
    tube: str = ""
    fracture: str = ""


ONE = (
    "There is a {size} {side} {place} pneumothorax.",
    "{size} {side} pneumothorax {where}.",
    "A {size} pneumothorax is seen {where} on the {side}.",
)
TWO = (
    "There are bilateral pneumothoraces, {size} {where} on the {side} and {size2} {where2} on the {side2}.",
    "Bilateral pneumothoraces: {size} and {place} on the {side}, {size2} and {place2} on the {side2}.",
)
NONE = ("No pneumothorax is seen.", "There is no pneumothorax.", "No evidence of pneumothorax.")
TUBE = ("A chest tube is in place on the {side}.", "There is a {side} chest drain.")
FRACTURE = ("There is an acute fracture of a {side} rib.", "Acute {side} rib fracture.")
DENIED = {
    "": ("The heart size is normal.", "No pleural effusion.", "There is no mediastinal shift."),
    "fracture": ("No rib fracture is seen.",),
}
EXPANDED = "The lung has re-expanded."  # nothing in it needs an earlier film to be told
CONCLUSIONS = (
    "{size} {side} {place} pneumothorax.",
    "{size} {place} {side} pneumothorax with a chest tube in place.",
    "{size} {place} pneumothorax on the {side}, {size2} {place2} pneumothorax on the {side2}.",
    "No pneumothorax.",
)
TITLES = ("CHEST X-RAY", "XR CHEST PA")
HEADERS = (
    "Clinical details: Chest pain after a fall.",
    "Clinical history: Shortness of breath.",
    "Indication: Check position of the chest drain.",
)
FIRST = "Comparison: None available."
LATER = "Comparison: Previous chest X-ray."
CHANGES = {
    "larger": ("The pneumothorax has increased in size since the previous film.",),
    "smaller": ("Compared with the previous film the pneumothorax has decreased in size.",),
    "same": ("No significant change since the previous study.",),
    "gone": ("The previously seen pneumothorax has resolved.",),
    "new": (),
    "none": (),
}
ADVICE = (
    "Follow-up chest X-ray is recommended.",
    "These findings were discussed with the referring team.",
)
SIGNATURES = ("Reported by: Dr. Phantom", "Verified by: Dr. Phantom")


def word_pneumothorax(chest: Chest, seed: int, before: Chest | None = None) -> str:
    """The report of one film, as a hospital's system keeps it: several lines, with all that cleaning takes out.

    Args:
        chest: What the film shows.
        seed: Decides the phrases.
        before: What the patient's film before it showed; `None` for the first one.
    """
    rng = random.Random(f"phantom pneumothorax wording {seed}")
    findings = [_told(chest, rng)]
    if before and before.lesions and not chest.lesions:
        findings.append(EXPANDED)
    findings += [rng.choice(TUBE).format(side=chest.tube)] if chest.tube else []
    findings += [rng.choice(FRACTURE).format(side=chest.fracture)] if chest.fracture else []
    denials = [*DENIED[""], *(() if chest.fracture else DENIED["fracture"])]
    findings += rng.sample(denials, rng.choice((1, 1, 2)))
    changes = CHANGES[_change(before, chest)] if before else ()
    findings += [rng.choice(changes)] if changes else []
    lines = [rng.choice(TITLES)] if rng.random() < 0.6 else []
    lines += [rng.choice(HEADERS)] if rng.random() < 0.6 else []
    lines += [LATER if before else FIRST] if rng.random() < 0.4 else []
    labelled = rng.random() < 0.5
    lines.append(("Findings: " if labelled else "") + " ".join(_capital(sentence) for sentence in findings))
    if labelled:
        lines.append("Conclusion: " + _capital(_concluded(chest)))
    lines += [rng.choice(ADVICE)] if chest.lesions and rng.random() < 0.4 else []
    lines += [rng.choice(SIGNATURES)] if rng.random() < 0.3 else []
    return "\n".join(lines)


def _told(chest: Chest, rng: random.Random) -> str:
    phrases = (NONE, ONE, TWO)[len(chest.lesions)]
    return rng.choice(phrases).format(**_words(chest.lesions))


def _concluded(chest: Chest) -> str:
    alone, with_tube, both, none = CONCLUSIONS
    if len(chest.lesions) == 1:
        return (with_tube if chest.tube else alone).format(**_words(chest.lesions))
    return (both if chest.lesions else none).format(**_words(chest.lesions))


def _words(lesions: Sequence[Lesion]) -> dict[str, str]:
    words: dict[str, str] = {}
    for lesion, number in zip(lesions, ("", "2"), strict=False):
        words |= {f"side{number}": lesion.side, f"place{number}": lesion.place, f"size{number}": lesion.size,
                  f"where{number}": PLACES[lesion.place]}  # fmt: skip
    return words


def _change(before: Chest, now: Chest) -> str:
    earlier, later = (sum(lesion.share for lesion in chest.lesions) for chest in (before, now))
    if not earlier or not later:
        return "gone" if earlier else "new" if later else "none"
    return "larger" if later > 1.15 * earlier else "smaller" if later < earlier / 1.15 else "same"


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


LABELS = (
    "Pneumothorax", "Right pneumothorax", "Left pneumothorax", "Small pneumothorax", "Moderate pneumothorax",
    "Large pneumothorax", "Apical pneumothorax", "Lateral pneumothorax", "Basal pneumothorax", "Chest tube",
    "Rib fracture",
)  # fmt: skip
PASSED = re.compile(r"\b(no|none|without|previous\w*|has (increased|decreased|resolved)|position)\b")
WORDS = {"Apical": r"apical|apex", "Lateral": r"lateral", "Basal": r"basal|base"}
PATTERNS = {
    "Chest tube": re.compile(r"\bchest (tube|drain)\b"),
    "Rib fracture": re.compile(r"\bfracture\b.*\brib\b|\brib fracture\b"),
}
PNEUMOTHORAX = re.compile(r"\bpneumothora(x|ces)\b")


def labels_of(chest: Chest) -> frozenset[str]:
    """Those of LABELS that a film shows."""
    found = {"Chest tube"} if chest.tube else set()
    found |= {"Rib fracture"} if chest.fracture else set()
    for lesion in chest.lesions:
        found |= {f"{word} pneumothorax".capitalize() for word in (lesion.side, lesion.size, lesion.place)}
    return frozenset(found | ({"Pneumothorax"} if chest.lesions else set()))


def findings_in(text: str) -> frozenset[str]:
    """Those of LABELS that a report affirms, cleaned or not; never raises, passes over other words."""
    found: set[str] = set()
    for sentence in re.split(r"[.;\n]", text.lower()):
        if PASSED.search(sentence):
            continue
        found.update(label for label, pattern in PATTERNS.items() if pattern.search(sentence))
        if PNEUMOTHORAX.search(sentence):
            found.add("Pneumothorax")
            for label in LABELS[1:9]:
                word = label.split()[0]
                if re.search(rf"\b({WORDS.get(word, word.lower())})\b", sentence):
                    found.add(label)
    return frozenset(found)


def vocabulary() -> list[str]:
    """Every word and mark that a report can hold, before and after cleaning, sorted; case matters."""
    texts: list[str] = [EXPANDED, FIRST, LATER, "Findings: Conclusion:"]
    texts += [*SIDES, *SIZES, *PLACES, *PLACES.values()]
    groups: Iterable[Sequence[str]] = (ONE, TWO, NONE, TUBE, FRACTURE, CONCLUSIONS, TITLES, HEADERS, ADVICE, SIGNATURES)
    texts += [text for group in (*groups, *DENIED.values(), *CHANGES.values()) for text in group]
    words = {piece for text in texts for piece in re.findall(r"[^\W\d_]+|[^\w\s]", re.sub(r"\{\w+\}", " ", text))}
    return sorted(words | {_capital(word) for word in words if word in {*SIZES, *SIDES, *PLACES}})
