"""Drawn reports for what takes reports apart: MIMIC-CXR's sections and the rules of cleaning."""

import signal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from datamodules.mimic_cxr_sections import section_of, split_sections
from datamodules.report_cleaning import RULES, clean
from tests.fuzz import fuzz

PHRASES = sorted({phrase for rule in RULES for phrase in (*rule.removed, *rule.kept)})
PIECES = st.one_of(
    st.sampled_from(PHRASES),
    st.sampled_from(sorted({word for phrase in PHRASES for word in phrase.split()})),
    st.sampled_from(
        ["\n", "\n\n", "\r\n", ". ", ":", " - ", ",", "Dr.", "A.", "3.", "\u2028", "\n FINDINGS: ", "\n \n"]
    ),
    st.text(max_size=5),
)
REPORTS = st.lists(st.tuples(PIECES, st.sampled_from([" ", "", "\n"])).map("".join), max_size=20).map("".join)
# What made a rule look at the rest of a report again and again, each time anew.
REPEATS = ["A. ", "The\n", "if there is ", "chest 1/2/1 ", "history: ", "consider a-", "has really ", "\n (A", " ", "_"]


def is_within(words, report):
    """Whether the words stand in the report in this order."""
    rest = iter(report)
    return all(word in rest for word in words)


@pytest.fixture
def bounded():
    """Breaks off what would go on for minutes: 8 seconds of this process's own time, ten times what is needed."""

    def break_off(*_):
        raise TimeoutError("it reads the same text again and again")

    before = signal.signal(signal.SIGVTALRM, break_off)
    signal.setitimer(signal.ITIMER_VIRTUAL, 8)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@fuzz(150)
@given(REPORTS)
@example("CXR:5 cm. ")
def test_a_cleaned_report_holds_words_of_the_report_and_stays_as_it_is(report):
    text, removed = clean(report)
    assert clean(text) == (text, [])
    assert "\n" not in text and text == " ".join(text.split())
    # A full stop may be new, where a line ended without one; a label may go from a word that it is written to.
    said, there = (words.replace(".", "").replace(":", ": ").split() for words in (text, report))
    assert is_within(said, there)
    assert {name for name, _ in removed} <= {rule.name for rule in RULES}


@fuzz(200)
@given(REPORTS)
@example("\n FINDINGS:\n IMPRESSION: x")
@example("\n (:\r")
def test_sections_are_passages_of_the_report_in_its_order(report):
    plain = report.replace("\r\n", "\n").replace("\r", "\n")
    place = 0
    for name, said in split_sections(report):
        place = plain.index(said, place) + len(said)
        assert name
    for section in ("findings", "impression"):
        assert is_within(section_of(report, section).split(), plain.split())


@pytest.mark.parametrize("repeated", REPEATS)
def test_a_report_of_20_000_words_is_not_read_again_and_again(repeated, bounded):
    report = f"chest {repeated * 20_000} end"
    assert all(said in report for _, said in split_sections(report))
    assert len(clean(report)[0]) <= len(report) + 1  # a full stop is added where there is none
    assert clean("chest " + repeated * 30 + "end")  # a rule that tries every way to read a line needs 2^30 of them
