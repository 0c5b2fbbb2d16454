"""Sections of MIMIC-CXR's reports, by the rules of the dataset's makers (MIT-LCP/mimic-cxr, txt/section_parser.py).

A header begins a line: a space, capitals (spaces and `()/,-` may stand among them), a colon, white space. One in small
letters, with a digit or without its space is none: its text stays with the section before. The rest of a header's own
line is text, whatever it looks like. What a section is called is read off its header: headers are spelled in hundreds
of ways, and many a report calls its findings by the views taken ("CHEST, TWO VIEWS"). A findings or impression section
that is empty does not count, and of several with one name the last one does.
"""

from __future__ import annotations

import re
from typing import Literal

Section = Literal["findings", "impression", "findings+impression"]

_HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")
_BLANK_LINE = "\n \n"  # every line of these reports begins with a space

# Headers by what they are called, where `_WITHIN` and `_VIEWS` do not tell. That "ndication" is one of these is theirs.
_CALLED = {
    "indication": ("reason for examination", "reason for exam", "clinical indication", "idication"),
    "history": ("clinical information", "pfi"),
    "examination": ("exam", "type of examination"),
    "comparison": ("reference exam", "comparision", "comparsion", "comparrison", "comparisions"),
    "recommendations": ("recommendation(s)", "recommendation"),
    "wet read": ("wetread",),
    "impression": (
        *("conclusion", "ndication", "impresson", "imprression", "imoression", "impressoin", "imprssion"),
        *("impresion", "imperssion", "mpression", "impession"),
    ),
    "findings": ("finding", "findins", "findindgs", "findgings", "findngs", "findnings", "finidngs"),
}
_NAMES = {header: name for name, headers in _CALLED.items() for header in headers}
_WITHIN = ("impression", "findings", "history", "comparison", "addendum")  # the first one that a header contains
_VIEWS = re.compile(
    "chest|portable|ribs|bone window|two views|(pa|ap|one|frontal|lateral) view|frontal (and|upright|semi-upright)"
    "|pa and lat|ap and lateral|lateral and (pa|ap)"
)

# Reports that the makers cut by hand for their labellers, since these rules fail there (31 by position, 23 by another
# section's name). Their own table of sections, mimic_cxr_sectioned.csv, goes without them.
_BY_HAND = """
    50058765 50196495 50525523 50743547 50798377 50808053 50913680 51410602 51491012 51966317 52035334 52119491
    52648681 52674888 53071062 53182247 53202765 53356173 53488209 53514462 53607029 54168089 54231141 54365831
    54654948 54875119 54986978 55124749 55157853 55258338 56412866 56451190 56482935 56579911 56724958 56760320
    57150433 57564132 57936451 58157373 58235663 58375018 59003148 59067458 59087630 59215320 59279892 59330497
    59363654 59505494 59562049 59768032 59889364 59982525
"""
CUT_BY_HAND = frozenset(f"s{number}" for number in _BY_HAND.split())


def split_sections(text: str) -> list[tuple[str, str]]:
    """All sections of a report in its order, `(name, text)`, the text as it stands.

    What comes before the first header is the `preamble`; a report without one is a `full report`. Where neither
    findings nor impression are left, what follows the last section's first blank line is the `last_paragraph`.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    header = _HEADER.search(text)
    found = [("preamble", text[: header.start(1)]) if header else ("full report", text)]
    while header:
        name, start = section_name(header[1]), header.end()
        header = _HEADER.search(text, max(start, text.find("\n", start)))
        found.append((name, text[start : header.start() if header else len(text)]))
    found = [(name, said) for name, said in found if said.strip() or name not in ("findings", "impression")]
    if not {"findings", "impression"} & {name for name, _ in found}:
        name, said = found[-1]
        before, blank, after = said.partition(_BLANK_LINE)
        if blank:
            found[-1:] = [(name, before), ("last_paragraph", after)]
    return found


def section_name(header: str) -> str:
    """What a section with this header is called; the header in small letters where no rule knows it."""
    header = header.lower().strip()
    if header in _NAMES:
        return _NAMES[header]
    for name in _WITHIN:
        if name in header:
            return name
    return "findings" if _VIEWS.search(header) else header


def section_of(text: str, section: Section, study: str = "") -> str:
    """One section's text, white space collapsed; empty where the report has none.

    Args:
        text: The report.
        section: Its name; of `findings+impression` those that there are, one after the other.
        study: Its name (`s50414267`): reports in `CUT_BY_HAND` have no sections.
    """
    if study in CUT_BY_HAND:
        return ""
    found = dict(split_sections(text))  # the last one of a name stays
    return " ".join(" ".join(found.get(name, "").split()) for name in section.split("+")).strip()
