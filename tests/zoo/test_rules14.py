"""The rule labeller on sentences of our own."""

import random

import numpy as np
import pytest

from datamodules.phantom.wording import NORMAL, SENTENCES
from zoo.metrics.chexbert import LABELS
from zoo.metrics.pairs import Pairs
from zoo.metrics.rules14 import clauses, label, rules14_metrics

SIGNS = {0: "", 1: "+", 2: "-", 3: "?"}
SHORT = {"ECM": "Enlarged Cardiomediastinum", "CM": "Cardiomegaly", "LO": "Lung Opacity", "LL": "Lung Lesion",
         "ED": "Edema", "CO": "Consolidation", "PN": "Pneumonia", "AT": "Atelectasis", "PT": "Pneumothorax",
         "EF": "Pleural Effusion", "PO": "Pleural Other", "FX": "Fracture", "SD": "Support Devices",
         "NF": "No Finding"}  # fmt: skip


def read(text: str) -> str:
    """The labels of a text, as `+CM -EF ?PN`, in the labels' order."""
    names = {long: short for short, long in SHORT.items()}
    return " ".join(SIGNS[code] + names[name] for name, code in zip(LABELS, label(text), strict=True) if code)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # plain mentions
        ("The heart is mildly enlarged.", "+CM"),
        ("There is a small left pleural effusion.", "+EF"),
        ("Blunting of the right costophrenic angle.", "+EF"),
        ("Widening of the superior mediastinum.", "+ECM"),
        ("Hazy opacities in both lower zones with air bronchograms.", "+LO +CO"),
        ("A nodule of 9 mm projects over the right upper zone.", "+LL"),
        ("Vascular congestion and Kerley lines.", "+ED"),
        ("Volume loss of the left lower lobe.", "+AT"),
        ("Pleural plaques on both sides.", "+PO"),
        ("Old rib fractures on the left.", "+FX"),
        ("An endotracheal tube ends 4.5 cm above the carina.", "+SD +NF"),
        # denials, their reach and their end
        ("No pleural effusion or pneumothorax.", "-PT -EF +NF"),
        ("No consolidation, large pleural effusion, or pneumothorax.", "-CO -PT -EF +NF"),
        ("No pneumothorax, mild cardiomegaly.", "+CM -PT"),
        ("No evidence of pneumothorax, but a small effusion is seen.", "-PT +EF"),
        ("Cardiomegaly without edema.", "+CM -ED"),
        ("Neither consolidation nor fracture is seen.", "-CO -FX +NF"),
        ("A pneumothorax is not seen.", "-PT +NF"),
        ("The effusion has resolved and pulmonary edema is new.", "+ED -EF"),
        ("The chest tube has been removed.", "-SD +NF"),
        ("No change in the moderate right effusion.", "+EF"),
        ("The atelectasis has not increased.", "+AT"),
        # doubt
        ("Opacity at the left base may represent atelectasis or pneumonia.", "+LO ?PN ?AT"),
        ("Pneumonia cannot be excluded.", "?PN"),
        ("Possible pneumonia, small effusion.", "?PN +EF"),
        ("Cardiomegaly and possible edema.", "+CM ?ED"),
        ("Nothing else. No findings to suggest pneumonia.", "-PN +NF"),
        ("Heart size is at the upper limits of normal.", "?CM"),
        # what is normal
        ("Heart size is normal. The mediastinum is unremarkable.", "-ECM -CM +NF"),
        ("The cardiomediastinal silhouette is within normal limits.", "-ECM +NF"),
        ("Heart and mediastinum are normal.", "-ECM -CM +NF"),
        ("Both lungs are clear.", "-LO +NF"),
        ("The costophrenic angles are sharp.", "-EF +NF"),
        ("Vertebral bodies and ribs are intact.", "-FX +NF"),
        ("No acute cardiopulmonary process.", "+NF"),
        # other organs' findings
        ("There is a pericardial effusion of 12 mm.", "+NF"),
        ("A thyroid nodule of 12 mm is seen.", "+NF"),
        # over a report positive beats uncertain, and uncertain beats negative
        ("No pneumonia. Possible pneumonia at the left base.", "?PN"),
        ("Possible pneumonia. There is pneumonia at the left base. No pneumonia on the right.", "+PN"),
        ("", ""),
        (" . ; \n", ""),
    ],
)
def test_sentences(text, expected):
    assert read(text) == expected


def test_the_reach_of_a_denial_is_a_clause():
    assert clauses("No effusion. A tube of 4.5 cm; heart normal, but with edema") == [
        "no effusion",
        "a tube of 4.5 cm",
        "heart normal,",
        "edema",
    ]
    assert clauses("The heart is large and the lungs are clear and dry") == [
        "the heart is large",
        "the lungs are clear and dry",
    ]


def test_the_phantoms_wording_is_read():
    """Every sentence of the phantom that names one of the fourteen labels gives it, and normal regions give none."""
    expected = {
        "Cardiomegaly": "CM", "Atelectasis": "AT", "Lung nodule/solid": "LL", "Lung nodule/several": "LL",
        "Lung opacity": "LO", "Pleural effusion": "EF", "Consolidation": "CO", "vertebral fracture": "FX",
        "rib fracture": "FX", "Medical material/pacemaker": "SD", "Medical material/port": "SD",
        "Medical material/tracheal tube": "SD", "Medical material/wires": "SD",
    }  # fmt: skip
    for name, short in expected.items():
        for sentence in SENTENCES[name]:
            text = sentence.format(place="left lower lobe", size=9, sided="left", on="on the left")
            assert f"+{short}" in read(text).split(), text
    for sentences in NORMAL.values():
        for text in sentences:
            codes = label(text)
            assert all(code in (0, 2) for code in codes[:-1]) and codes[-1] == 1, text


def test_any_text_is_read():
    rng = random.Random(0)
    words = [
        "no",
        "and",
        "or",
        ",",
        ".",
        "heart",
        "is",
        "enlarged",
        "mediastinum",
        "effusion",
        "with",
        "\x00",
        "(",
        "ß",
    ]
    for length in (1, 5, 30, 2000):
        codes = label(" ".join(rng.choices(words, k=length)))
        assert len(codes) == 14 and set(codes) <= {0, 1, 2, 3}


def test_metrics_count_uncertain_as_positive():
    pairs = Pairs(["There is pneumonia.", "Edema."], ["Possible pneumonia.", "No edema."])
    metrics = rules14_metrics()
    assert len(metrics) == 12
    score, corpus = metrics["rules14_micro_f1"]
    statistics = score(pairs).statistics
    counted = dict(zip(corpus.columns, statistics.sum(0), strict=True))
    assert {column for column, count in counted.items() if count} == {"tp Pneumonia", "fn Edema", "fp No Finding"}
    assert corpus.formula(statistics.sum(0)) == pytest.approx(0.5)
    assert np.array_equal(metrics["rules14_samples_precision"][0](pairs).values, [1, 0])
