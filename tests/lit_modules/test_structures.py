"""What a report speaks of: classes by the usual words, denials and how far they reach."""

import pytest

from datamodules.cxas_classes import PAPER, SUPERCLASSES
from datamodules.phantom.mimic_layout import CHESTX_DET
from datamodules.phantom.radiograph_wording import DENIED, TOLD
from lit_modules.nets.structures import FINDINGS, structures_in


def read(text: str) -> str:
    """The likeliest classes, findings with a sign: `+Effusion -Nodule lung`."""
    found = structures_in(text)
    signs = {True: "+", False: "-"}
    return " ".join((signs[said] if names[0] in FINDINGS else "") + names[0] for names, said in found.items())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # affirmed
        ("Small left pleural effusion.", "+Effusion"),
        ("Blunting of the right costophrenic angle.", "+Effusion"),
        ("Cardiomegaly.", "+Cardiomegaly heart"),
        ("The heart is mildly enlarged.", "+Cardiomegaly heart"),
        ("Hazy infiltrates in both lower lung fields.", "+Consolidation lung base"),
        ("Nodular opacity in the right upper lung field.", "+Nodule right upper zone lung"),
        ("Consolidation of the left lower lobe.", "+Consolidation lung lower lobe left"),
        ("Bibasilar atelectasis.", "+Atelectasis lung base"),
        ("Opacity at the left lung base.", "+Consolidation left lung base"),
        ("Old rib fracture on the left.", "+Fracture ribs"),
        ("Tracheal tube above the carina.", "+ETT - Normal tracheal bifurcation"),
        ("Right internal jugular catheter, nasogastric tube in the stomach.", "+CVC - Normal +NGT - Normal stomach"),
        ("Possible pneumonia.", "+Consolidation"),
        # denied: before, within and after
        ("No pleural effusion.", "-Effusion"),
        ("No pleural effusion, pneumothorax, or consolidation.", "-Effusion -Pneumothorax -Consolidation"),
        ("The heart size is normal.", "-Cardiomegaly heart"),
        ("Both lungs are clear.", "-Consolidation lung"),
        ("The lungs are well expanded and clear.", "-Consolidation lung"),
        ("Costophrenic angles are free.", "-Effusion"),
        ("A pneumothorax is not seen.", "-Pneumothorax"),
        ("The feeding tube has been removed.", "-NGT - Normal"),
        # the end of a denial
        ("No pneumothorax, mild cardiomegaly.", "+Cardiomegaly -Pneumothorax heart"),
        ("No pneumothorax, but a small effusion.", "+Effusion -Pneumothorax"),
        ("No pneumothorax and the heart is enlarged.", "+Cardiomegaly -Pneumothorax heart"),
        ("No pneumothorax. Effusion on the right.", "+Effusion -Pneumothorax"),
        ("No change in the small effusion.", "+Effusion"),
        ("No effusion on the left. Large effusion on the right.", "+Effusion"),
        # what sounds alike
        ("Pericardial effusion.", ""),
        ("Subcutaneous emphysema.", ""),
        ("Hiatal hernia behind the heart.", ""),
        ("Normal mediastinum, elevated right hemidiaphragm.", "cardiomediastinum right hemidiaphragm"),
        ("", ""),
        ("¿Qué? .. ,,, or", ""),
    ],
)  # fmt: skip
def test_what_is_said(text: str, expected: str) -> None:
    assert read(text) == expected


def test_the_phantoms_sentences() -> None:
    """What it affirms and has a mask of is affirmed under the mask's name; what it denies is never affirmed."""
    for label, (_, pairs) in TOLD.items():
        for english, _ in pairs:
            said = english.format(size="small", side="left", on="on the left", field="the left upper lung field")
            name = CHESTX_DET.get(label.split("/")[0])
            assert name is None or any(name in names and on for names, on in structures_in(said).items()), said
    for english, _ in (pair for pairs in DENIED.values() for pair in pairs):
        assert not any(on for names, on in structures_in(english).items() if FINDINGS & set(names)), english


def test_every_class_exists() -> None:
    """All words at once: what they stand for are classes of the paper or superclasses, spelt as there."""
    words = (
        "cardiomegaly effusion pneumothorax consolidation atelectasis nodule mass fracture emphysema fibrosis "
        "calcification pleural thickening picc feeding tube endotracheal tube swan ganz pacemaker heart mediastinum "
        "aorta right hemidiaphragm left hemidiaphragm. diaphragm trachea carina ribs spine clavicle breast stomach"
    )
    levels = [f"{side} {level} {part}" for side in ("right", "left") for level in ("upper", "mid", "middle", "lower")
              for part in ("lobe", "zone")]  # fmt: skip
    found = structures_in(f"{words}. {'. '.join(levels)}. Right apex. Left base. Bases. Apices. Left lung. Lungs.")
    assert {name for names in found for name in names} <= {*PAPER, *SUPERCLASSES}
    assert sum(bool(FINDINGS & set(names)) for names in found) == 16 and len(found) > 40


def test_findings_come_first() -> None:
    order = [bool(FINDINGS & set(names)) for names in structures_in("The lungs show a nodule. Heart and an effusion.")]
    assert order == [True, True, False, False]
