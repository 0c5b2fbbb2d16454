"""Names of classes: counts and shifts of the numbers between the paper's table and the public tool."""

from __future__ import annotations

from datamodules.cxas_classes import CXAS, PAPER, SUPERCLASSES


def test_counts():
    assert (len(PAPER), len(CXAS), len(SUPERCLASSES)) == (212, 159, 20)
    assert len(set(PAPER)) == 212 and set(CXAS) < set(PAPER)


def test_names_by_the_papers_numbers():
    known = {0: "spine", 10: "vertebrae C7", 28: "rib_cartilage", 132: "pulmonary trunc", 158: "l. obs. right lung"}
    known |= {177: "Atelectasis", 189: "Pneumothorax", 190: "CVC - Normal", 201: "Fremdkörper", 211: "Foreign Object"}
    assert {number: PAPER[number] for number in known} == known
    assert all(name == name.strip() for name in PAPER)


def test_names_by_cxas_numbers():
    known = {131: "pulmonary artery", 132: "inferior vena cava", 136: "left lung", 153: "lung upper lobe right"}
    known |= {154: "trachea", 155: "tracheal bifurcation", 156: "breast", 157: "breast left", 158: "breast right"}
    assert {number: CXAS[number] for number in known} == known


def test_superclasses_by_cxas_numbers():
    public = {name: tuple(CXAS.index(m) for m in members) for name, members in list(SUPERCLASSES.items())[:18]}
    assert public["breast tissue"] == (157, 158) and public["trachea"] == (154, 155)
    assert public["lung zones"] == tuple(range(141, 149)) and public["lung halves"] == (135, 136)
    assert public["vessels"] == (121, *range(128, 133)) and public["lung lobes"] == tuple(range(149, 154))
    assert public["cervical spine"] == tuple(range(4, 11)) and public["thoracic spine"] == (2, *range(11, 23))
    assert {name: len(m) for name, m in SUPERCLASSES.items() if name not in public} == {
        "pathology": 13,
        "foreign objects": 22,
    }


def test_public_classes_of_no_superclass():
    grouped = {member for members in SUPERCLASSES.values() for member in members}
    assert {name for name in CXAS if name not in grouped} == {
        *("spine", "cervical spine", "rib_cartilage", "sternum", "aorta", "esophagus", "lung", "lung base"),
        *("mid zone lung", "upper zone lung", "apical zone lung", "breast"),
    }
