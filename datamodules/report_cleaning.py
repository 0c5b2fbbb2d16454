"""Takes out of radiology reports what the image alone cannot show: comparisons, advice, headers, signatures.

Overlay-SFT ("Dataset") takes out "sentences referring to previous examinations and follow-up comparisons", "template
headers or administrative remarks", and shows no rules; these are ours, made without sight of a CANDID-PTX report. A
sentence goes as a whole: "Unchanged left pneumothorax." leaves nothing. See first what they would take away, by rule,
then, on a screen where patients' text may be read, the sentences themselves:

    python -m datamodules.report_cleaning Pneumothorax_reports.csv
    python -m datamodules.report_cleaning Pneumothorax_reports.csv --show
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rich.progress import track

from datamodules.study import DataFault
from datamodules.tables import read_csv

VERSION = 1  # raise it whenever a report would come out another way

Removed = tuple[str, str]  # rule's name, what it took


@dataclass(frozen=True)
class Rule:
    """What is taken out, and why.

    Attributes:
        name: As the counts name it.
        pattern: A regular expression; case does not matter.
        why: What would be wrong with leaving it.
        removed: Texts that nothing is left of (of a label: that lose it).
        kept: Texts that look similar and stay.
    """

    name: str
    pattern: str
    why: str
    removed: tuple[str, ...]
    kept: tuple[str, ...] = ()

    def search(self, text: str) -> bool:
        """Whether the pattern is found in a sentence."""
        return re.search(self.pattern, text, re.IGNORECASE) is not None


_FILM = r"(?:cxr|ct|film|x-?rays?|radiographs?|imag(?:e|es|ing)|exam(?:ination)?s?|stud(?:y|ies)|views?|scans?)"
_BEFORE_A_FILM = r"(?:[\w-]+ ){0,4}"
# "Previous sternotomy" is seen on the film; "previous film" is not on it.
_PAST_OF_THE_PATIENT = (
    r"(?! (?:[\w/-]+ ){0,3}(?:surgery|surgical|\w+(?:ectomy|otomy|plasty|desis)|operation|resection|repair|cabg|bypass"
    r"|valve|graft|fusion|fractures?|trauma|wounds?|injur(?:y|ies)|infections?|infarct|granulomatous|tuberculosis|tb"
    r"|disease|procedures?|intervention|radiotherapy|pleurisy|inflammation)\b)"
)
_VIEW = (  # a date first, or its digits could be read as "1 view, 2 views" as well
    r"(?:\d{1,4}(?:[/.]\d{1,4}){2}|\d\d?:\d\d|x[- ]?rays?|xr|cxr|radiographs?|radiograph(?:y|ic)|films?|views?|plain"
    r"|chest|portable|mobile|erect|upright|supine|semi-?erect|sitting|pa|ap|lateral|lat|frontal|departmental|bedside"
    r"|single|one|two|[12]|and|of|the|only)"
)

# Sections that go with all that stands in them: their label's words.
SECTIONS = (
    Rule(
        "clinical details",
        r"clinical (?:details?|histor(?:y|ies)|information|indications?|data|notes?|question|summary)|patient history"
        r"|history|indications?|reasons? for (?:exam(?:ination)?|study|request)|clinical|request",
        "What the referring doctor wrote; the image does not show it.",
        ("Clinical details: Left chest pain?", "HISTORY\nCough.\n", "Indication - chest pain"),
        ("There is a history of trauma.",),
    ),
    Rule(
        "technique",
        r"techniques?|views?|exam(?:ination)?s?|exam(?:ination)? type|procedures?|stud(?:y|ies)|protocol",
        "How the image was taken.",
        ("Technique: AP erect.", "EXAMINATION: Chest X-ray"),
    ),
    Rule(
        "comparison section",
        r"comparisons?(?: studies| films?| made)?|previous (?:imaging|films?)|prior(?:s| studies)",
        "Names the examinations before this one.",
        ("Comparison: None available.", "COMPARISON:\nFilm of 3 May.\n"),
    ),
    Rule(
        "administration",
        r"date(?: of (?:exam(?:ination)?|report|study))?|time|referr(?:er|ed by|ing doctor)|accession(?: n\w+)?|nhi|mrn"
        r"|(?:reported|dictated|verified|signed|approved|authori[sz]ed|transcribed|typed|checked|read)(?: by| on)?"
        r"|radiologist|registrar|reporting doctor|cc|copy to|notification",
        "Belongs to the hospital's system.",
        ("Date: 3/5/2015", "Reported by: Dr. A. Nyman", "Radiologist: A. Nyman"),
    ),
)

# Labels that go, while what stands behind them stays.
LABELS = (
    Rule(
        "section label",
        r"findings?(?: and (?:impression|conclusion)s?)?|reports?|impressions?|conclusions?|comments?|summary|opinions?"
        r"|interpretation|result|(?:chest )?x-?ray (?:report|findings)"
        r"|(?:cxr|chest x-?ray|chest radiograph)(?=\s*[:–-])",
        "Says nothing about the patient.",
        ("Findings:", "IMPRESSION\n", "CXR:"),
        ("Findings are normal.",),
    ),
)

# Sentences that go, the first rule that finds something counts.
SENTENCES = (
    Rule("no words", r"^[\W_]*$", "A line of dashes, or a number's dot.", ("-----", "***"), ("5 cm.",)),
    Rule(
        "title",
        rf"^(?=.*\b(?:chest|cxr|x-?rays?|xr|radiographs?|views?|film)\b)\W*(?:(?>{_VIEW}\b)\W*)+$",
        "Names the examination, as every report does.",
        ("CHEST X-RAY", "Chest, PA and lateral views.", "XR CHEST PA 12/03/2015", "Mobile CXR."),
        ("Clear chest.", "Chest X-ray shows a left pneumothorax.", "Lateral pneumothorax."),
    ),
    Rule(
        "signature",
        r"^(?:electronically )?(?:reported|dictated|verified|signed|approved|authori[sz]ed|transcribed|typed|checked)"
        r"(?: and \w+)?(?: electronically)? (?:by|on)\b|^(?:dr|prof)\b\.?(?-i:(?: [A-Z]\S*){1,4})$|\bend of report\b"
        r"|^(?:\w+ )?(?:radiologist|radiology registrar)\W*$|^(?:kind regards|regards|many thanks|thank you\b.*)\W*$"
        r"|^\W*(?:date \W*)?\d{1,4}[/.-]\d{1,2}[/.-]\d{2,4}\W*$",
        "Names who reported, and when.",
        ("Verified by Dr. A. Nyman.", "Dr A. Nyman", "Consultant radiologist", "End of report.", "12/03/2015"),
        ("Fracture verified.",),
    ),
    Rule(
        "follow-up",
        rf"\bfollow(?:ed|ing)?[ -]?up\b|\bfollow to \w+|\brepeat(?:ed)? {_BEFORE_A_FILM}{_FILM}\b|\bserial {_FILM}\b"
        r"|\brecommend|\badvi[sc]ed?\b|\badvisable\b|\b(?:consider|suggest|may|would|could) "
        rf"{_BEFORE_A_FILM}(?:ct|ultrasound|mri|{_FILM}|correlation|referral|evaluation|assess\w*|evaluat\w*)\b"
        rf"|\bfurther (?:[\w-]+ ){{0,2}}(?:evaluation|assessment|characteri[sz]ation|work-?up|{_FILM})\b"
        r"|\bclinical(?:ly)? correlat|\bcorrelat(?:e|ion) (?:with|clinical)|^(?>.*?\bif (?:clinically|there is)\b).*"
        r"\b(?:indicated|concern\w*|warranted|needed|required|suspicion|symptom\w*)\b",
        "Advice about what to do next.",
        (
            "Follow-up chest X-ray is recommended.",
            "Repeat CXR in 24 hours.",
            "Suggest CT chest.",
            "Clinical correlation is advised.",
            "CT may be obtained if clinically indicated.",
        ),
        (
            "Findings suggest a left pneumothorax.",
            "Appearances suggestive of consolidation.",
            "This could be an artefact.",
        ),
    ),
    Rule(
        "communication",
        r"(?<!\bas )\bdiscussed\b|\b(?:communicated|(?:tele)?phoned|paged|notified|informed|conveyed|relayed|emailed)\b"
        r"|\b(?:called|faxed|reported) (?:through )?to (?:dr|the|ed|ward)\b|\bverbal(?:ly)? report|\bwas aware\b",
        "Says who was told.",
        ("These findings were discussed with the referring team.", "ED registrar informed by phone at 10:15."),
        ("Chronic change as discussed below.",),
    ),
    Rule(
        "comparison",
        r"\b(?:compared?|comparing) (?:to|with)(?! (?:the )?(?:right|left|contralateral|opposite|other|adjacent))"
        r"|\bcompared\W*$|\b(?:in|by|for|of|no|direct) comparison\b|^comparison\b|\bcomparison (?:is |was )?"
        rf"(?:made|with|to|{_FILM})\b",
        "Compares with another examination.",
        ("Compared with the previous film the lung is larger.", "In comparison to 3 May, no pneumothorax."),
        ("The left hemidiaphragm is high compared to the right.",),
    ),
    Rule(
        "previous examination",
        rf"\b(?:previous(?:ly)?|prior)\b{_PAST_OF_THE_PATIENT}|\b(?:earlier|older?|preceding) {_BEFORE_A_FILM}{_FILM}\b"
        rf"|\b(?:the|his|her) last {_BEFORE_A_FILM}{_FILM}\b|\bsince (?:the |that |his |her )?(?:last|previous|prior"
        r"|date|yesterday|\d|january|february|march|april|may|june|july|august|september|october|november|december)"
        r"|\bpre-?existing\b|\b(?:earlier today|yesterday|last (?:week|month|night))\b",
        "Speaks of what another examination showed.",
        ("The previously seen pneumothorax is small.", "No pneumothorax since the last film.", "Seen on prior CT."),
        ("Previous median sternotomy.", "Old left rib fractures.", "Findings of prior granulomatous disease."),
    ),
    Rule(
        "change",
        r"\bunchanged\b|(?<!ally )\bstable\b|\binterval\b|\bsimilar (?:in appearance )?to\b|\bno longer\b"
        r"|\bas (?:described )?before\b|\bno (?:(?:significant|interval|appreciable|obvious|substantial|further|major"
        r"|marked|overall|definite|convincing|great|relevant|other|real) ){0,2}change\b",
        "Says that something did, or did not, become different.",
        (
            "Unchanged left apical pneumothorax.",
            "No significant change.",
            "Stable heart size.",
            "Interval drain removal.",
        ),
        ("Haemodynamically stable.", "No acute bony change.", "Intercostal drain in place."),
    ),
    Rule(
        "persistence",
        r"\bpersist(?:s|ed|ing|ent|ently|ence)?\b|\bagain\b(?!st)|\bre-?demonstrated\b|\bongoing\b",
        "Says that something was there before.",
        ("Persisting left pneumothorax.", "The chest drain is again seen.", "Again noted is a small effusion."),
        ("The tip lies against the mediastinum.",),
    ),
    Rule(
        "course",
        r"\b(?:has|have|had)(?: (?:been|now|since|also|further|almost|not|\w+ly))* (?:increased|decreased|resolved"
        r"|enlarged|progressed|reduced|regressed|cleared|diminished|re-?accumulated|removed|changed)\b"
        r"|\b(?:larger|smaller|bigger|greater|less) (?:in \w+ )?than (?:on|in|before|at|it|seen|previous)\b"
        r"|\b(?:improved|worsened|worsening|improving|enlarging|resolving|re-?accumulating)\b"
        r"|\b(?:improvement|deterioration|progression)\b"
        r"|\b(?:resolution|increase|decrease|reduction) (?:in|of) (?:the|size|volume)\b",
        "Says how something went on since.",
        ("The pneumothorax has slightly increased in size.", "Resolving pneumothorax.", "Reduction in the effusion."),
        ("The lungs have re-expanded.", "There is a new small pneumothorax.", "Increased lucency at the left apex."),
    ),
)
RULES = (*SECTIONS, *LABELS, *SENTENCES)

# A label ends with a colon, a dash, or its line.
_LABEL = re.compile(
    r"(?:^|\n|(?<=[.!?;:]) )[ \t]*(?:"
    + "|".join(
        f"(?P<{kind}_{index}>{rule.pattern})"
        for kind, rules in (("section", SECTIONS), ("label", LABELS))
        for index, rule in enumerate(rules)
    )
    + r")(?:[ \t]*:|[ \t]+[-–][ \t]+|[ \t]*(?=\n|$))",
    re.IGNORECASE,
)
_BEFORE_FINDINGS = re.compile(r"clinical|history|indication|technique|view|exam|comparison|finding|report(?!ed)", re.I)
_NO_END = re.compile(r"(?:^|\W)(?:(?i:dr|mr|mrs|ms|prof|e\.g|i\.e|cf|vs|approx)|[A-Z])\.$")
_NUMBER = re.compile(r"\W*\d{1,2}\.")  # of a list's line
_GOES_ON = re.compile(r"(?:,|\b(?:the|a|an|of|in|on|at|to|by|for|with|and|or|is|are|no|from|as|than|near))$", re.I)


def clean(report: str) -> tuple[str, list[Removed]]:
    """What of a report describes the image, and what was taken out.

    Any text will do. The rules are asked until they find nothing more, so a cleaned report stays as it is.

    Args:
        report: As the hospital's system holds it; line breaks tell where titles and headers end.

    Returns:
        The sentences that stay, on one line, with a full stop where a line ended without one; empty where none stays.
        And `(rule's name, text)` of all that went.
    """
    text, removed = re.sub(r"\r\n?", "\n", report), []
    while True:
        kept, taken = _clean_once(text)
        removed += taken
        if kept == text:
            return text, removed
        text = kept


def _clean_once(text: str) -> tuple[str, list[Removed]]:
    kept: list[str] = []
    removed: list[Removed] = []
    parts = list(_parts(text))
    for number, (rule, label, body) in enumerate(parts, start=1):
        if rule in SECTIONS:
            last = number == len(parts)
            unclear = last and ("\n" not in text or not kept)
            before_findings = not last and _BEFORE_FINDINGS.match(parts[number][1]) is not None
            header, body = _header_of(body, before_findings, unclear)
            label = " ".join(f"{label} {header}".split())
        if rule:
            removed.append((rule.name, label))
        for sentence in _sentences(body):
            found = next((each for each in SENTENCES if each.search(sentence)), None)
            if found:
                removed.append((found.name, sentence))
            else:
                kept.append(sentence)
    return " ".join(kept), removed


def _parts(text: str) -> Iterator[tuple[Rule | None, str, str]]:
    """The rule of a label, the label, and what stands behind it up to the next one; the first part has no label."""
    rule, label, begin = None, "", 0
    for match in _LABEL.finditer(text):
        yield rule, label, text[begin : match.start()]
        kind, _, index = str(match.lastgroup).partition("_")
        rule = {"section": SECTIONS, "label": LABELS}[kind][int(index)]
        label, begin = match.group().strip(), match.end()
    yield rule, label, text[begin:]


def _header_of(body: str, before_findings: bool, unclear: bool) -> tuple[str, str]:
    """A section's own text, and what stands behind it up to the next label.

    It ends with its line, or the next one where the label stands alone, but goes on over lines that begin with a small
    letter; if findings, or one more section, have a label of their own behind it, it goes on to an empty line. Where
    it is `unclear` whether the rest of the report belongs to it, it is one sentence.
    """
    lines = body.split("\n")
    end = 1 if lines[0].strip() else 2
    while end < len(lines) and (lines[end].strip()[:1].islower() or (before_findings and lines[end].strip())):
        end += 1
    header, rest = "\n".join(lines[:end]), "\n".join(lines[end:])
    if unclear and not rest.strip():
        first, *others = list(_sentences(header)) or [""]
        return first, " ".join(others)
    return header, rest


def _sentences(text: str) -> Iterator[str]:
    """Sentences without white space around them; a line that ends one without a full stop gets it."""
    block = ""
    for line in [*(" ".join(line.split()) for line in text.split("\n")), ""]:
        if block and (not line or not (line[0].islower() or _GOES_ON.search(block[-5:]))):
            yield from _split(block if block[-1] in ".!?:;" else f"{block}.")
            block = line
        else:
            block = f"{block} {line}".strip()


def _split(block: str) -> Iterator[str]:
    pieces: list[str] = []
    for piece in re.split(r"(?<=[.!?]) ", block):
        goes_on = _NO_END.search(piece) or (not pieces and _NUMBER.fullmatch(piece))
        pieces.append(piece)
        if not goes_on:
            yield " ".join(pieces).strip()
            pieces = []
    if pieces:
        yield " ".join(pieces).strip()


def main(argv: Sequence[str] | None = None) -> int:
    """Says what the rules take out of a table's reports; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.report_cleaning",
        description="Counts, by rule, what would be taken out of a table's reports. Changes no file.",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, metavar="FILE.csv", help="the table; it may be gzipped or zipped")
    parser.add_argument("--column", default="Report", help="the reports' column (default: %(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    parser.add_argument("--show", action="store_true", help="print the sentences too: patients' text")
    options = parser.parse_args(argv)
    if options.limit is not None and options.limit < 1:
        parser.error(f"--limit {options.limit}: choose 1 or more")
    try:
        reports = [row[options.column] for _, row in islice(read_csv(options.file, (options.column,)), options.limit)]
    except DataFault as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 3
    _tell(reports, options.show)
    return 0


def _tell(reports: Sequence[str], show: bool) -> None:
    counts: Counter[str] = Counter()
    taken: dict[str, list[str]] = {rule.name: [] for rule in RULES}
    changed = emptied = 0
    for report in track(reports, "cleaning", transient=True):
        text, removed = clean(report)
        changed += bool(removed)
        emptied += bool(report.strip()) and not text
        for name, sentence in removed:
            counts[name] += 1
            taken[name].append(sentence)
    print(f"{len(reports)} reports; {changed} lose something, {emptied} lose everything (rules of version {VERSION})")
    for rule in RULES:
        print(f"{counts[rule.name]:7} {rule.name:<22} {rule.why}")
        for sentence in taken[rule.name] if show else ():
            print(f"{'':8}- {sentence}")


if __name__ == "__main__":
    sys.exit(main())
