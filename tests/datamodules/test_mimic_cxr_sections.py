"""The section rules of MIMIC-CXR's makers, on reports in its style, on any text at all, and on another hospital's."""

from __future__ import annotations

import random
import tarfile
from xml.etree import ElementTree

import pytest

from datamodules.mimic_cxr_sections import CUT_BY_HAND, section_name, section_of, split_sections

REPORT = "\n \n".join(  # blank lines hold a space in these files
    [
        "                                 FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)",
        " INDICATION:  ___ year old with cough.  // Pneumonia?",
        " TECHNIQUE:  Two views: frontal and lateral.",
        " COMPARISON:  ___.",
        " FINDINGS: ",
        " The lungs are clear.  The heart is\n of normal size.",
        " IMPRESSION: ",
        " Nothing acute since ___.\n",
    ]
)


def names(text):
    return [name for name, _ in split_sections(text)]


def test_a_report_comes_apart():
    sections = ["preamble", "examination", "indication", "technique", "comparison", "findings", "impression"]
    assert names(REPORT) == sections
    assert dict(split_sections(REPORT))["technique"] == " Two views: frontal and lateral.\n "
    assert section_of(REPORT, "findings") == "The lungs are clear. The heart is of normal size."
    assert section_of(REPORT, "impression") == "Nothing acute since ___."  # what was taken out stays marked


def test_both_sections_or_what_there_is_of_them():
    both = "The lungs are clear. The heart is of normal size. Nothing acute since ___."
    assert section_of(REPORT, "findings+impression") == both
    assert section_of("\n IMPRESSION: Well.", "findings+impression") == "Well."
    assert section_of("\n IMPRESSION: Well.", "findings") == section_of("\n HISTORY: x", "findings+impression") == ""


CALLED = {
    "findings": "FINDINGS, FINDINS, CHEST, CHEST (PA), PORTABLE AP VIEW, PA AND LATERAL, TWO VIEWS, RIBS, ONE VIEW",
    "impression": "IMPRESSION, CONCLUSION, FINDINGS AND IMPRESSION, FINDINGS/IMPRESSION, CHEST IMPRESSION, NDICATION",
    "history": "HISTORY, CLINICAL HISTORY, CLINICAL INFORMATION, PFI, HISTORY OF CHEST PAIN",
    "indication": "INDICATION, REASON FOR EXAM, CLINICAL INDICATION, IDICATION",
    "comparison": "COMPARISONS, COMPARISON FILM, REFERENCE EXAM, COMPARISION",
    "examination": "EXAM, EXAMINATION, TYPE OF EXAMINATION",
    "recommendations": "RECOMMENDATION(S), RECOMMENDATION",
    "wet read": "WET READ, WETREAD",
    "addendum": "ADDENDUM, SECOND ADDENDUM",
    "procedure": "PROCEDURE",
    "lateral": "LATERAL",
}


@pytest.mark.parametrize(("name", "headers"), CALLED.items())
def test_headers_are_called_by_what_they_mean(name, headers):
    for header in headers.split(", "):
        assert section_name(header) == section_name(f" {header} ") == section_name(header.lower()) == name


def test_what_is_no_header():
    for line in ("Findings: x", "FINDINGS x", "FINDINGS:x", "2 VIEWS: x", "THE_CHEST: x"):
        assert names(f"A report.\n {line}\n") == ["full report"], line
    assert names("A report.\nFINDINGS: x") == names(" FINDINGS: x") == ["full report"]  # no space, no line before
    assert names("\n HISTORY: x\n Findings: y") == ["preamble", "history"]  # its text stays where it stands


def test_the_rest_of_a_headers_line_and_the_line_after_an_empty_one_are_text():
    assert split_sections("\n FINDINGS:\n IMPRESSION: clear\n")[1:] == [("findings", " IMPRESSION: clear\n")]
    assert split_sections("\n FINDINGS: \n IMPRESSION: clear\n")[1:] == [
        ("impression", "clear\n")
    ]  # findings are empty


def test_of_several_the_last_one_counts_unless_it_is_empty():
    text = "\n CHEST, TWO VIEWS: First.\n FINDINGS: Second.\n AP VIEW: \n \n HISTORY: Cough.\n"
    assert names(text) == ["preamble", "findings", "findings", "history"]
    assert section_of(text, "findings") == "Second."
    addendum = "\n ADDENDUM: FINDINGS: Also a nodule.\n FINDINGS: Clear.\n"
    assert section_of(addendum, "findings") == "Clear."


def test_a_last_paragraph_stands_in_where_there_are_neither_findings_nor_impression():
    text = "\n HISTORY: Cough.\n \n The lungs are clear.\n \n No effusion.\n"
    assert split_sections(text)[1:] == [
        ("history", "Cough."),
        ("last_paragraph", " The lungs are clear.\n \n No effusion.\n"),
    ]
    assert section_of(text, "findings") == ""  # it is no findings section
    assert names(f"{text} IMPRESSION: Well.") == ["preamble", "history", "impression"]
    assert names("One.\n \n Two.") == ["full report", "last_paragraph"]
    assert names("\n HISTORY: Cough.\n\n The lungs are clear.") == ["preamble", "history"]  # a line without its space


def test_reports_that_were_cut_by_hand_have_no_sections():
    assert len(CUT_BY_HAND) == 54 and {"s50913680", "s52035334"} <= CUT_BY_HAND
    assert section_of(REPORT, "findings", "s50913680") == "" != section_of(REPORT, "findings", "s50414267")


def texts(count):
    rng = random.Random(0)
    headers = [header for headers in CALLED.values() for header in headers.split(", ")]
    pieces = [*"\n \t\r:x肺\x00\x0c\u2028\xa0", "\n ", "\n \n", ": ", "Größe"]
    for _ in range(count):
        parts = [
            f"\n {rng.choice(headers)}{rng.choice((': ', ':', ': '))}" if rng.random() < 0.3 else rng.choice(pieces)
            for _ in range(rng.randrange(40))
        ]
        yield "".join(parts)


def test_any_text_is_cut_into_pieces_of_itself_in_order():
    for text in texts(3000):
        plain, place = text.replace("\r\n", "\n").replace("\r", "\n"), 0
        for name, said in split_sections(text):
            assert plain.find(said, place) >= 0, (text, name)
            place = plain.find(said, place) + len(said)
        for section in ("findings", "impression", "findings+impression"):
            found = section_of(text, section)
            assert found == " ".join(found.split())


def test_line_ends_of_any_system_say_the_same():
    assert split_sections(REPORT.replace("\n", "\r\n")) == split_sections(REPORT)
    for text in texts(300):
        plain = text.replace("\r", "")
        assert split_sections(plain.replace("\n", "\r\n")) == split_sections(plain)


def test_a_report_of_twenty_thousand_words_or_headers():
    assert len(section_of("\n FINDINGS: " + "clear " * 20_000, "findings").split()) == 20_000
    assert len(split_sections("\n HISTORY: x\n" * 20_000)) == 20_001
    assert names("\n " + "CAPITALS " * 20_000) == ["full report"]


@pytest.fixture(scope="module")
def openi(shared):
    """Reports of another hospital (Indiana): header → text, one after the other."""
    with tarfile.open(shared / "real/reports/openi_first1200_xml.tgz") as archive:
        files = [archive.extractfile(member) for member in archive if member.isfile()]
        trees = [ElementTree.fromstring(file.read()) for file in files if file]
    return [
        {e.get("Label"): " ".join("".join(e.itertext()).split()) for e in tree.iter("AbstractText")} for tree in trees
    ]


def test_another_hospitals_reports_set_as_these_are(openi):
    """1,200 reports; 149 have no findings and 11 no impression, and these are not made up from other sections."""
    found = {"findings": 0, "impression": 0}
    for report in openi:
        text = "FINAL REPORT\n" + "".join(f" {header}: \n \n {said}\n \n" for header, said in report.items())
        for section in found:
            assert section_of(text, section) == report[section.upper()]
            found[section] += bool(report[section.upper()])
    assert (len(openi), found) == (1200, {"findings": 1051, "impression": 1189})


@pytest.mark.parametrize("header", ["{}: ", " {:.1}.{}: ", "{}\n"])
def test_headers_of_another_style_are_none(openi, header):
    """Flush left, numbered or without a colon: the rules find nothing there, and invent nothing."""
    for report in openi[:200]:
        text = "\n".join(header.format(name, name) + said for name, said in report.items())
        assert section_of(text, "findings+impression") == ""
