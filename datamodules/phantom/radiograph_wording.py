"""Puts what is seen on a phantom radiograph into sentences, one per finding, in English and in plain Spanish.

A finding that is seen is affirmed in one sentence that says the side, the third of the lung and the size where the
picture shows them; what the patient does not have may be denied. A finding that is not seen is neither affirmed nor
denied. All phrases are the project's own; the names in `labels` are PadChest's.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from datamodules.phantom.patient import Finding, Patient

Rectangle = tuple[float, float, float, float]
DIFFUSE = ("Emphysema", "Peribronchial thickening")  # seen all over the lungs: told without boxes
SILHOUETTE = Finding("Cardiomegaly", "heart")  # read from the picture, whatever widens it


@dataclass(frozen=True)
class Bounds:
    """One lesion as seen: `(x0, y0, x1, y1)` as fractions of width and height; side and third of the lung, empty for
    more than a third.

    `index` is its place among the finding's lesions, the largest of which is the first; `pixels` are its own within the
    box, bool `(row, column)`.
    """

    box: Rectangle
    side: str
    zone: str
    index: int = 0
    pixels: np.ndarray | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Sight:
    """What is seen of one finding, lesion by lesion; the first is the largest one that is seen."""

    finding: Finding
    parts: tuple[Bounds, ...]

    @property
    def label(self) -> str:
        """The finding's label."""
        return self.finding.label

    @property
    def boxes(self) -> tuple[Rectangle, ...]:
        """Boxes of the lesions; none of a diffuse finding."""
        return () if self.label in DIFFUSE else tuple(part.box for part in self.parts)


@dataclass(frozen=True)
class Sentence:
    """One sentence about one radiograph, as PadChest-GR keeps them.

    Attributes:
        english: The sentence.
        spanish: The same in Spanish.
        label: The phantom's label that it affirms; empty where it denies.
        name: PadChest's name of the label.
        locations: Sides and third of the lung, where the sentence says them.
        boxes: `(x0, y0, x1, y1)`, fractions of width and height.
    """

    english: str
    spanish: str
    label: str = ""
    name: str = ""
    locations: tuple[str, ...] = ()
    boxes: tuple[Rectangle, ...] = ()

    @property
    def abnormal(self) -> bool:
        """Whether it affirms."""
        return bool(self.label)


# Label or label/kind → PadChest's name, then pairs of English and Spanish. {field}: "the right upper lung field";
# {side}: right, left or bilateral; {size}: small, moderate, large or nothing.
TOLD: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "Lung nodule": ("nodule", (
        ("{size} nodule in {field}", "nódulo {tamaño} en {campo}"),
        ("{size} nodular opacity in {field}", "opacidad nodular {tamaña} en {campo}"),
    )),
    "Lung nodule/calcified": ("calcified granuloma", (
        ("{size} calcified granuloma in {field}", "granuloma calcificado {tamaño} en {campo}"),
        ("{size} dense calcified nodule in {field}", "nódulo denso calcificado {tamaño} en {campo}"),
    )),
    "Lung nodule/several": ("multiple nodules", (
        ("several nodules, the largest in {field}", "varios nódulos, el mayor en {campo}"),
        ("multiple nodules, the largest in {field}", "múltiples nódulos, el mayor en {campo}"),
    )),
    "Pleural effusion": ("pleural effusion", (
        ("{size} {side} pleural effusion", "derrame pleural {lado} {tamaño}"),
        ("{size} pleural effusion {on}", "derrame pleural {tamaño} {en}"),
    )),
    "Consolidation": ("consolidation", (
        ("consolidation in {field}", "consolidación en {campo}"),
        ("dense consolidation with air bronchogram in {field}", "consolidación densa con broncograma aéreo en {campo}"),
    )),
    "Lung opacity": ("infiltrates", (
        ("patchy opacities in {field}", "opacidades parcheadas en {campo}"),
        ("hazy infiltrates in {field}", "infiltrados tenues en {campo}"),
    )),
    "Atelectasis": ("laminar atelectasis", (
        ("band atelectasis in {field}", "atelectasia en banda en {campo}"),
        ("linear atelectasis in {field}", "atelectasia laminar en {campo}"),
    )),
    "Bronchiectasis": ("bronchiectasis", (
        ("bronchiectasis in {field}", "bronquiectasias en {campo}"),
        ("bronchiectasis with dilated bronchi in {field}", "bronquiectasias con bronquios dilatados en {campo}"),
    )),
    "Pulmonary fibrotic sequela": ("fibrotic band", (
        ("fibrotic changes at the apex {on}", "cambios fibrosos en el vértice {en}"),
        ("{side} apical scarring", "tractos fibrosos apicales, lado {lado}"),
    )),
    "Emphysema": ("emphysema", (
        ("signs of emphysema", "signos de enfisema"),
        ("hyperlucent lungs with bullae due to emphysema", "pulmones hiperclaros con bullas por enfisema"),
    )),
    "Peribronchial thickening": ("bronchovascular markings", (
        ("thickened bronchial walls around both hila", "paredes bronquiales engrosadas en ambos hilios"),
    )),
    "Interlobular septal thickening": ("reticular interstitial pattern", (
        ("reticular interstitial pattern in {field}", "patrón intersticial reticular en {campo}"),
        ("fine network of interstitial lines in {field}", "red fina de líneas intersticiales en {campo}"),
    )),
    "Cardiomegaly": ("cardiomegaly", (
        ("cardiomegaly", "cardiomegalia"),
        ("enlarged heart silhouette", "silueta cardíaca aumentada de tamaño"),
    )),
    "Arterial wall calcification": ("aortic atheromatosis", (
        ("calcified wall of the aorta", "pared de la aorta calcificada"),
        ("aortic calcifications", "calcificaciones aórticas"),
    )),
    "Hiatal hernia": ("hiatal hernia", (
        ("hiatal hernia behind the heart", "hernia de hiato detrás del corazón"),
        ("gas behind the heart due to a hiatal hernia", "gas detrás del corazón por hernia de hiato"),
    )),
    "Lymphadenopathy": ("mediastinal enlargement", (
        ("widened mediastinum due to enlarged lymph nodes", "mediastino ensanchado por adenopatías"),
    )),
    "Lymphadenopathy/hilar": ("hilar enlargement", (
        ("enlarged {side} hilum", "hilio {lado} aumentado de tamaño"),
        ("{side} hilar lymph node enlargement", "adenopatía hiliar, lado {lado}"),
    )),
    "Medical material/pacemaker": ("pacemaker", (
        ("pacemaker on the left with its lead in the heart", "marcapasos izquierdo con electrodo en el corazón"),
        ("left sided pacemaker", "marcapasos en el lado izquierdo"),
    )),
    "Medical material/port": ("reservoir central venous catheter", (
        ("{side} port catheter that ends in the caval vein", "catéter con reservorio {lado} con fin en la vena cava"),
    )),
    "Medical material/wires": ("sternotomy", (
        ("sternal wires after surgery", "cerclajes esternales tras cirugía"),
    )),
    "Medical material/feeding tube": ("NSG tube", (
        ("feeding tube that ends in the stomach", "sonda de alimentación con extremo en el estómago"),
    )),
    "Medical material/tracheal tube": ("endotracheal tube", (
        ("tracheal tube above the carina", "tubo traqueal por encima de la carina"),
    )),
    "rib fracture": ("callus rib fracture", (
        ("healed rib fracture {on}", "fractura costal consolidada {en}"),
        ("callus of an old rib fracture {on}", "callo de fractura costal antigua {en}"),
    )),
    "osteophytes": ("vertebral degenerative changes", (
        ("degenerative changes of the thoracic spine", "cambios degenerativos de la columna dorsal"),
    )),
    "vertebral fracture": ("vertebral compression", (
        ("collapsed vertebra in the thoracic spine", "aplastamiento vertebral en la columna dorsal"),
    )),
    "breast prosthesis": ("mammary prosthesis", (
        ("breast implants on both sides", "prótesis mamarias en ambos lados"),
    )),
    "gallstone": ("gallstone", (
        ("calcified gallstone below the diaphragm", "cálculo biliar calcificado bajo el diafragma"),
    )),
}  # fmt: skip
LABELS = tuple(dict.fromkeys(key.split("/")[0] for key in TOLD))  # the labels that a radiograph can show
# Label that must be absent (with everything that could pass for it) → denials.
DENIED: dict[tuple[str, ...], tuple[tuple[str, str], ...]] = {
    ("Pleural effusion",): (
        ("no pleural effusion", "sin derrame pleural"),
        ("costophrenic angles are free", "senos costofrénicos libres"),
    ),
    ("Cardiomegaly", "Pericardial effusion"): (
        ("heart size is normal", "silueta cardíaca de tamaño normal"),
        ("no cardiomegaly", "sin cardiomegalia"),
    ),
    ("Consolidation", "Lung opacity"): (("no consolidation", "sin consolidaciones"),),
    ("Lung nodule",): (("no lung nodule", "sin nódulos pulmonares"),),
    ("Lymphadenopathy", "Hiatal hernia", "goitre"): (("normal mediastinum", "mediastino normal"),),
    ("rib fracture",): (("no rib fracture", "sin fracturas costales"),),
    (): (("no pneumothorax", "sin neumotórax"),),
}
LUNG = ("Lung nodule", "Pleural effusion", "Consolidation", "Lung opacity", "Atelectasis", "Bronchiectasis",
        "Pulmonary fibrotic sequela", "Emphysema", "Mosaic attenuation pattern", "Peribronchial thickening",
        "Interlobular septal thickening")  # fmt: skip
CLEAR = (
    ("both lungs are clear", "pulmones sin alteraciones"),
    ("lungs without infiltrates", "pulmones sin infiltrados"),
)
AREAS = {
    **dict.fromkeys(LUNG, "Lung"), "Pleural effusion": "Pleura", "Cardiomegaly": "Heart and vessels",
    "Arterial wall calcification": "Heart and vessels", "Lymphadenopathy": "Mediastinum",
    "Hiatal hernia": "Mediastinum", "Medical material": "Devices",
}  # fmt: skip
# PadChest's name of a label → what it belongs to.
GROUPS = {name: AREAS.get(key.split("/")[0], "Bone and soft tissue") for key, (name, _) in TOLD.items()}
SIDES = {"right": ("right", "derecho"), "left": ("left", "izquierdo"), "both": ("bilateral", "bilateral")}
ON = {"right": ("on the right", "en el lado derecho"), "left": ("on the left", "en el lado izquierdo"),
      "both": ("on both sides", "en ambos lados")}  # fmt: skip
ZONES = {"upper": "superior", "middle": "medio", "lower": "inferior"}
SIZES = {"small": ("small", "pequeño", "pequeña"), "moderate": ("moderate", "moderado", "moderada"),
         "large": ("large", "grande", "grande"), "": ("", "", "")}  # fmt: skip
LIMITS = {"Lung nodule": ((8, "small"), (15, ""), (99, "large")),  # mm below which a size has a name
          "Pleural effusion": ((19, "small"), (28, "moderate"), (99, "large"))}  # fmt: skip


def finding_sentences(patient: Patient, sights: Sequence[Sight]) -> list[Sentence]:
    """What is said of a radiograph: what is seen, in the order given, then denials; about a third of all are denials.

    Args:
        patient: Whose findings must not be denied, seen or not.
        sights: What is seen of them.
    """
    rng = random.Random(f"phantom radiograph wording {patient.seed}")
    said = [_affirm(sight, rng) for sight in sights]
    count = rng.choice((0, 0, 0, 1, 1, 2)) if said else rng.choice((1, 2, 2, 3))
    present = {f.label for f in patient.findings} | {sight.label for sight in sights}
    options = [texts for labels, texts in DENIED.items() if not present & set(labels)]
    chosen = [rng.choice(texts) for texts in rng.sample(options, min(count, len(options)))]
    if not present & set(LUNG) and chosen and rng.random() < 0.5:
        chosen[0] = rng.choice(CLEAR)
    return said + [Sentence(_finish(english), _finish(spanish)) for english, spanish in chosen]


def _affirm(sight: Sight, rng: random.Random) -> Sentence:
    f, parts = sight.finding, sight.parts
    name, pairs = TOLD.get(f"{f.label}/{_kind(sight)}") or TOLD[f.label]
    english, spanish = rng.choice(pairs)
    sides = sorted({part.side for part in parts})
    side = "both" if len(sides) > 1 else sides[0]
    zones = {part.zone for part in parts}
    if f.label == "Lung nodule":  # the largest one is told
        side, sides, zones = parts[0].side, [parts[0].side], {parts[0].zone}
    zone = zones.pop() if len(zones) == 1 else ""
    field = _field(side, zone)
    size = next((named for limit, named in LIMITS.get(f.label, ()) if f.size < limit), "")
    if parts[0].index:  # the largest lesion, which `size` is of, is not among those that are seen
        size = "small"
    small = SIZES[size]
    texts = (
        english.format(field=field[0], side=SIDES[side][0], on=ON[side][0], size=small[0]),
        spanish.format(campo=field[1], lado=SIDES[side][1], en=ON[side][1], tamaño=small[1], tamaña=small[2]),
    )
    sided = any(f"{{{word}}}" in english for word in ("field", "side", "on"))  # nothing in the midline has a side
    where = (*(sides if sided else ()), *((f"{zone} lung field",) if zone and "{field}" in english else ()))
    return Sentence(_finish(texts[0]), _finish(texts[1]), f.label, name, where, sight.boxes)


def _kind(sight: Sight) -> str:
    f = sight.finding
    if f.label == "Lung nodule" and len(sight.parts) > 1:
        return "several"
    if f.label == "Lymphadenopathy" and all(abs(f.points[part.index][0]) > 35 for part in sight.parts):
        return "hilar"
    return f.kind


def _field(side: str, zone: str) -> tuple[str, str]:
    if side == "both":
        return (f"both {zone} lung fields", f"ambos campos pulmonares {ZONES[zone]}es".replace("medioes", "medios")
                ) if zone else ("both lungs", "ambos pulmones")  # fmt: skip
    if zone:
        return f"the {side} {zone} lung field", f"el campo pulmonar {ZONES[zone]} {SIDES[side][1]}"
    return f"the {side} lung", f"el pulmón {SIDES[side][1]}"


def _finish(text: str) -> str:
    text = re.sub(r" +", " ", text).replace(" ,", ",").strip()
    return f"{text[0].upper()}{text[1:]}."


DENIAL = re.compile(r"\b(no|not|without|free|clear|normal)\b")
AFFIRMED = {
    "Lung nodule": r"\bnodul|granuloma",
    "Pleural effusion": r"pleural effusion",
    "Consolidation": r"consolidation",
    "Lung opacity": r"patchy opacit|infiltrate",
    "Atelectasis": r"atelecta",
    "Bronchiectasis": r"bronchiecta",
    "Pulmonary fibrotic sequela": r"fibrotic|scarring",
    "Emphysema": r"emphysema",
    "Peribronchial thickening": r"bronchial walls",
    "Interlobular septal thickening": r"interstitial",
    "Cardiomegaly": r"cardiomegaly|enlarged heart",
    "Arterial wall calcification": r"aort",
    "Hiatal hernia": r"hernia",
    "Lymphadenopathy": r"lymph node|hilum",
    "Medical material": r"pacemaker|port catheter|wires|\btube\b",
    "rib fracture": r"rib fracture",
    "osteophytes": r"degenerative",
    "vertebral fracture": r"collapsed vertebra",
    "breast prosthesis": r"implants",
    "gallstone": r"gallstone",
}
PATTERNS = {label: re.compile(pattern) for label, pattern in AFFIRMED.items()}


def findings_in(text: str) -> frozenset[str]:
    """The labels that an English text in the radiographs' language affirms; never raises, passes over other words."""
    found: set[str] = set()
    for sentence in re.split(r"[.;\n]", text.lower()):
        if not DENIAL.search(sentence):
            found.update(label for label, pattern in PATTERNS.items() if pattern.search(sentence))
    return frozenset(found)


def vocabulary() -> list[str]:
    """Every English word and mark that a radiograph's sentences can hold, sorted; case matters."""
    pairs = [pair for _, told in TOLD.values() for pair in told] + [p for texts in DENIED.values() for p in texts]
    texts = [re.sub(r"\{\w+\}", " ", english) for english, _ in (*pairs, *CLEAR)]
    texts += [_field(side, zone)[0] for side in SIDES for zone in (*ZONES, "")]
    texts += [word[0] for table in (SIDES, ON, SIZES) for word in table.values()]
    words = {piece for text in texts for piece in re.findall(r"[^\W\d_]+|[^\w\s]", text)}
    return sorted(words | {word.capitalize() for word in words} | {".", ","})
