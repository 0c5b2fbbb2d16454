"""Puts a phantom patient into words, region by region, and reads such words back.

Every drawn finding of FINDINGS is worded, in exactly one region (`Finding.region`); a sentence either affirms or
denies, never both. Regions without a finding are described as normal or, sometimes, left out. All phrases are the
project's own.
"""

from __future__ import annotations

import random
import re

from datamodules.phantom.patient import FINDINGS, LOBES, NODES, Finding, Patient

__all__ = ["FINDINGS", "findings_in", "vocabulary", "word_report"]

# (label, kind) or label → sentences. {place}, {size}, {on} and {sided} are filled from the finding.
SENTENCES: dict[str, tuple[str, ...]] = {
    "Medical material/pacemaker": (
        "a pacemaker lead ends in the right ventricle",
        "leads of a left sided pacemaker are seen in the heart",
    ),
    "Medical material/port": (
        "a {sided} port catheter ends in the superior vena cava",
        "the tip of a {sided} port catheter lies in the superior vena cava",
    ),
    "Medical material/wires": (
        "sternal wires after surgery are seen",
        "there are metal wires in the sternum after surgery",
    ),
    "Medical material/feeding tube": (
        "a feeding tube runs through the esophagus",
        "the esophagus contains a feeding tube",
    ),
    "Medical material/tracheal tube": (
        "a tracheal tube lies above the carina",
        "the trachea contains a breathing tube",
    ),
    "Arterial wall calcification": (
        "calcified plaques are seen in the wall of the {place}",
        "the {place} shows wall calcifications",
        "there are calcifications along the wall of the {place}",
    ),
    "Cardiomegaly": ("the heart is enlarged", "there is cardiomegaly", "heart size is increased"),
    "Pericardial effusion": (
        "there is a pericardial effusion of {size} mm",
        "pericardial fluid measures {size} mm in depth",
    ),
    "Coronary artery wall calcification": (
        "calcified plaques are seen in the {place} coronary artery",
        "the {place} coronary artery shows calcifications",
    ),
    "Hiatal hernia": (
        "there is a hiatal hernia of {size} mm",
        "a hiatal hernia measuring {size} mm is seen above the diaphragm",
    ),
    "Lymphadenopathy": (
        "an enlarged {place} lymph node measures {size} mm",
        "there is {place} lymphadenopathy with a short axis of {size} mm",
    ),
    "Lymphadenopathy/several": (
        "several enlarged lymph nodes are seen, the largest {place} with {size} mm",
        "there is lymphadenopathy, the largest node is {place} and measures {size} mm",
    ),
    "Emphysema": ("emphysema is seen in {place}", "there are emphysematous areas in {place}", "{place} show emphysema"),
    "Atelectasis": (
        "linear atelectasis is seen in the {place}",
        "there are bands of atelectasis in the {place}",
        "the {place} shows band atelectasis",
    ),
    "Lung nodule/solid": (
        "a solid nodule of {size} mm is seen in the {place}",
        "there is a {size} mm solid nodule in the {place}",
        "the {place} contains a solid nodule measuring {size} mm",
    ),
    "Lung nodule/calcified": (
        "a calcified nodule of {size} mm is seen in the {place}",
        "there is a {size} mm calcified nodule in the {place}",
        "the {place} contains a calcified nodule measuring {size} mm",
    ),
    "Lung nodule/several": (
        "several lung nodules are seen, the largest in the {place} with {size} mm",
        "there are several lung nodules, the largest measures {size} mm in the {place}",
    ),
    "Lung opacity": ("patchy ground glass opacities are seen in {place}", "there are ground glass areas in {place}"),
    "Pulmonary fibrotic sequela": (
        "fibrotic sequelae are seen at the apex {on}",
        "there are fibrotic bands at the apex {on}",
    ),
    "Pleural effusion": (
        "there is a pleural effusion {on} with a depth of {size} mm",
        "a {sided} pleural effusion measures {size} mm",
        "{sided} pleural effusion of {size} mm is seen",
    ),
    "Mosaic attenuation pattern": (
        "a mosaic attenuation pattern is seen in {place}",
        "{place} show mosaic attenuation",
    ),
    "Peribronchial thickening": (
        "peribronchial thickening is seen in {place}",
        "there is thickening of the bronchial walls in {place}",
    ),
    "Consolidation": (
        "a consolidation is seen in the {place}",
        "there is consolidation with air bronchograms in the {place}",
        "the {place} shows a consolidation",
    ),
    "Bronchiectasis": (
        "bronchiectasis is seen in the {place}",
        "there are dilated bronchi due to bronchiectasis in the {place}",
    ),
    "Interlobular septal thickening": (
        "interlobular septal thickening is seen in {place}",
        "the interlobular septa are thickened in {place}",
    ),
    "thyroid nodule": (
        "a hypodense thyroid nodule of {size} mm is seen {on}",
        "there is a {size} mm nodule in the {sided} thyroid lobe",
    ),
    "goitre": ("the thyroid gland is enlarged", "both thyroid lobes are increased in size"),
    "gynaecomastia": ("there is gynecomastia {on} measuring {size} mm", "gynecomastia of {size} mm is seen {on}"),
    "breast nodule": ("a nodule of {size} mm is seen in the {sided} breast", "there is a {size} mm breast nodule {on}"),
    "breast prosthesis": ("breast implants are seen on both sides", "there are breast implants on both sides"),
    "osteophytes": ("osteophytes are seen along the spine", "there are degenerative osteophytes of the spine"),
    "vertebral fracture": (
        "a vertebral body of the {place} thoracic spine is reduced in height",
        "there is a compression fracture in the {place} thoracic spine",
    ),
    "rib fracture": ("a healed rib fracture is seen {on}", "there is an old rib fracture {on}"),
    "lytic lesion": (
        "a lytic lesion of {size} mm is seen in the {place} thoracic spine",
        "the {place} thoracic spine contains a {size} mm lytic lesion",
    ),
    "liver cyst": ("a liver cyst of {size} mm is seen", "the liver contains a {size} mm cyst"),
    "splenic cyst": ("a splenic cyst of {size} mm is seen", "the spleen contains a {size} mm cyst"),
    "gallstone": ("a gallstone of {size} mm is seen", "the gallbladder contains a {size} mm stone"),
    "hepatic steatosis": ("liver density is decreased due to steatosis", "there is hepatic steatosis"),
}
# Said of a region in which nothing was drawn.
NORMAL: dict[str, tuple[str, ...]] = {
    "abdomen": (
        "the visible upper abdominal organs are normal",
        "liver, spleen and stomach are normal",
        "no lesion is seen in the upper abdomen",
    ),
    "bone": ("the bones are normal", "no bone lesion or fracture is seen", "vertebral bodies and ribs are intact"),
    "breast": ("both breasts are normal", "no breast lesion is seen"),
    "esophagus": (
        "the esophagus is normal",
        "esophageal wall and caliber are normal",
        "no hiatal hernia is seen and the esophagus is normal",
    ),
    "heart": (
        "heart size is normal",
        "heart size is normal and there is no pericardial effusion",
        "the heart is normal in size and shape",
    ),
    "lung": (
        "both lungs are clear",
        "the lungs are well aerated without any focal lesion",
        "no nodule or consolidation is seen in the lungs",
    ),
    "mediastinum": (
        "the mediastinum is normal",
        "mediastinal vessels are normal in caliber",
        "no lymphadenopathy is seen in the mediastinum",
    ),
    "pleura": (
        "no pleural effusion is seen",
        "there is no pleural effusion or thickening",
        "the pleural spaces are free of fluid",
    ),
    "thyroid": ("the thyroid gland is normal", "no thyroid nodule is seen"),
    "trachea and bronchie": (
        "trachea and main bronchi are open",
        "the trachea is central and the main bronchi are patent",
        "no airway obstruction is seen",
    ),
}
# Denied beside what was found: label that must be absent → sentences.
DENIALS: dict[str, dict[str, tuple[str, ...]]] = {
    "lung": {
        "Lung nodule": ("no lung nodule is seen",),
        "Consolidation": ("there is no consolidation",),
        "Lung opacity": ("no ground glass opacity is seen",),
        "Emphysema": ("there is no emphysema",),
        "Atelectasis": ("no atelectasis is seen",),
        "Bronchiectasis": ("there is no bronchiectasis",),
    },
    "heart": {
        "Cardiomegaly": ("heart size is normal",),
        "Pericardial effusion": ("no pericardial effusion is seen", "there is no pericardial effusion"),
    },
    "mediastinum": {
        "Lymphadenopathy": ("no enlarged lymph node is seen", "there is no lymphadenopathy"),
        "Arterial wall calcification": ("aortic caliber is normal",),
    },
    "esophagus": {"Hiatal hernia": ("there is no hiatal hernia",)},
    "bone": {"": ("no other bone lesion is seen",)},
    "abdomen": {"": ("the other upper abdominal organs are normal",)},
    "trachea and bronchie": {"": ("trachea and main bronchi are open",)},
}
LEFT_OUT = {
    "abdomen": 0.05,
    "bone": 0.04,
    "breast": 0.68,
    "esophagus": 0.12,
    "heart": 0.05,
    "lung": 0.03,
    "mediastinum": 0.05,
    "pleura": 0.12,
    "thyroid": 0.68,
    "trachea and bronchie": 0.08,
}
SIDED = {"right": "right", "left": "left", "both": "bilateral", "": ""}
ON = {"right": "on the right", "left": "on the left", "both": "on both sides", "": ""}
# What the prompts around the reports say, as words; `zoo`'s small tokenizers must know them.
PROMPT_WORDS = (
    "The the global Global information is provided as context region Region regions regional Given from this CT scan "
    "please Please generate a comprehensive medical report reports for each First identify anatomical area "
    "corresponding to then provide detailed about these structures and any abnormalities that are essential You can "
    "refer take it supplement when generating For those have no specific associated with them an other at end of "
    "abdomen bone breast esophagus heart lung mediastinum pleura thyroid trachea bronchie image"
)


def word_report(patient: Patient) -> dict[str, str]:
    """Region → its sentences, in the order of the region names; a region that is left out is absent."""
    rng = random.Random(f"phantom wording {patient.seed}")
    report = {}
    for region, left_out in LEFT_OUT.items():
        findings = patient.of(region)
        if findings:
            said = [_say(finding, rng) for finding in findings]
            report[region] = _join(said + _denials(region, patient, rng))
        elif rng.random() >= left_out:
            report[region] = _join([rng.choice(NORMAL[region])])
    return report


def _say(finding: Finding, rng: random.Random) -> str:
    kind = "several" if finding.label == "Lung nodule" and len(finding.points) > 1 else finding.kind
    sentences = SENTENCES.get(f"{finding.label}/{kind}") or SENTENCES[finding.label]
    place = finding.place
    if finding.label == "Lung opacity" and place in LOBES:
        place = f"the {place}"
    said = rng.choice(sentences).format(place=place, size=finding.size, sided=SIDED[finding.side], on=ON[finding.side])
    return re.sub(r"\ba (?=(8|11|18)\b)", "an ", said)


def _denials(region: str, patient: Patient, rng: random.Random) -> list[str]:
    options = [texts for label, texts in DENIALS.get(region, {}).items() if label not in patient.labels]
    count = min(len(options), rng.choice((0, 1, 1, 2) if region == "lung" else (0, 1)))
    return [rng.choice(texts) for texts in rng.sample(options, count)]


def _join(sentences: list[str]) -> str:
    return " ".join(f"{text[0].upper()}{text[1:]}." for text in sentences)


DENIAL = re.compile(r"\b(no|not|without|neither|nor|free|absent)\b")
AFFIRMED = {
    "Medical material": r"\b(pacemaker|port|wires|tube)\b",
    "Arterial wall calcification": r"^(?!.*coronary)(?=.*\baort)(?=.*calcifi)",
    "Cardiomegaly": r"cardiomegaly|heart is enlarged|heart size is increased|enlarged heart",
    "Pericardial effusion": r"pericardial (effusion|fluid)",
    "Coronary artery wall calcification": r"(?=.*coronary)(?=.*calcifi)",
    "Hiatal hernia": r"hernia",
    "Lymphadenopathy": r"lymphadenopathy|enlarged[\w ]*lymph node",
    "Emphysema": r"emphysema",
    "Atelectasis": r"atelecta",
    "Lung nodule": r"^(?!.*\b(thyroid|breast)\b)(?=.*\bnodules?\b)",
    "Lung opacity": r"ground glass",
    "Pulmonary fibrotic sequela": r"fibrotic",
    "Pleural effusion": r"pleural (effusion|fluid)",
    "Mosaic attenuation pattern": r"mosaic",
    "Peribronchial thickening": r"peribronchial|(?=.*bronchial walls)(?=.*thick)",
    "Consolidation": r"consolidation",
    "Bronchiectasis": r"bronchiecta",
    "Interlobular septal thickening": r"interlobular",
}
PATTERNS = {label: re.compile(pattern) for label, pattern in AFFIRMED.items()}


def findings_in(text: str) -> frozenset[str]:
    """The labels that a text in the phantom's language affirms.

    Reads sentence by sentence; a sentence with a word of denial affirms nothing. Never raises, whatever the text: words
    that are not the phantom's own are passed over.
    """
    found: set[str] = set()
    for sentence in re.split(r"[.;\n]", text.lower()):
        if not DENIAL.search(sentence):
            found.update(label for label, pattern in PATTERNS.items() if pattern.search(sentence))
    return frozenset(found)


def _pieces(text: str) -> list[str]:
    return re.findall(r"\d+|[^\W\d_]+|[^\w\s]", text)


def vocabulary() -> list[str]:
    """Every word, number and mark that a phantom report or the prompts around it can hold, sorted; case matters."""
    tables = [SENTENCES.values(), NORMAL.values(), *(part.values() for part in DENIALS.values())]
    sentences = [text for table in tables for texts in table for text in texts]
    places = (
        *LOBES,
        *NODES,
        "both lungs",
        "both upper lobes",
        "both lower lobes",
        "left anterior descending",
        "right",
        "left main",
        "aortic arch",
        "ascending aorta",
        "descending aorta",
        "upper",
        "middle",
        "lower",
        *SIDED.values(),
        *ON.values(),
    )
    texts = [re.sub(r"\{\w+\}", " ", text) for text in sentences] + list(places)
    words = {piece for text in texts for piece in _pieces(text)}
    words |= {piece.capitalize() for text in (*sentences, *places) for piece in _pieces(text)[:1] if piece.isalpha()}
    words |= {str(number) for number in range(61)}
    return sorted(words | set(PROMPT_WORDS.split()) | set(".,:;{}<>/'-"))
