"""What is taken out of reports: each rule's own examples, reports as a whole, and any text at all."""

from __future__ import annotations

import csv
import random

import pytest

from datamodules.phantom.pneumothorax_wording import Chest, Lesion, findings_in, labels_of, word_pneumothorax
from datamodules.report_cleaning import RULES, clean, main

REPORT = """CHEST X-RAY 12/03/2015

Clinical Details: Fall from a horse.
Left chest pain?
Comparison: Film of 3 May.

FINDINGS: There is a small left apical pneumothorax
No pleural effusion. The heart size is unchanged. The lungs have re-expanded; previous
median sternotomy. Dr. Wu was informed.
CONCLUSION
1. Small left pneumothorax. 2. Follow-up film is recommended.

Reported by: Dr. A. Nyman
"""


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_does_what_its_examples_say(rule):
    for text in rule.removed:
        left, removed = clean(text)
        assert (left, {name for name, _ in removed}) == ("", {rule.name}), text
        assert clean(f"{text.strip()}\n\nNo pleural effusion.")[0] == "No pleural effusion."
    for text in rule.kept:
        assert clean(text) == (text, [])


def test_a_report_keeps_what_its_image_shows_and_the_rest_is_accounted_for():
    text, removed = clean(REPORT)
    assert text == (
        "There is a small left apical pneumothorax. No pleural effusion. The lungs have re-expanded; "
        "previous median sternotomy. 1. Small left pneumothorax."
    )
    assert removed == [
        ("title", "CHEST X-RAY 12/03/2015."),
        ("clinical details", "Clinical Details: Fall from a horse. Left chest pain?"),
        ("comparison section", "Comparison: Film of 3 May."),
        ("section label", "FINDINGS:"),
        ("change", "The heart size is unchanged."),
        ("communication", "Dr. Wu was informed."),
        ("section label", "CONCLUSION"),
        ("follow-up", "2. Follow-up film is recommended."),
        ("administration", "Reported by: Dr. A. Nyman"),
    ]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Clinical details: Fall. There is a left pneumothorax.", "There is a left pneumothorax."),  # all on one line
        ("Indication: Cough. Findings: Clear lungs. Conclusion: Normal.", "Clear lungs. Normal."),
        ("History: Cough.\nThe lungs are clear.\nConclusion: Normal.", "The lungs are clear. Normal."),
        ("Clinical details:\nchest pain\nafter a fall\nNo pneumothorax", "No pneumothorax."),
        ("The tip of the\nSwan-Ganz catheter is in place", "The tip of the Swan-Ganz catheter is in place."),
        ("No pneumothorax\r\nNo effusion\r\n", "No pneumothorax. No effusion."),
        ("Measures 2.5 cm approx. 3 cm from the apex. Stable.", "Measures 2.5 cm approx. 3 cm from the apex."),
        ("Compared with the last film it has resolved.", ""),
        (" \n", ""),
        ("", ""),
    ],
)
def test_lines_and_sentences(text, left):
    assert clean(text)[0] == left


def test_the_phantoms_reports_lose_what_no_film_shows_and_keep_all_that_it_does():
    rng = random.Random(0)
    for seed in range(200):
        lesion = Lesion(rng.choice(["left", "right"]), rng.choice(["apical", "basal"]), rng.uniform(0.05, 0.5))
        chest = Chest((lesion,), tube=rng.choice(["", lesion.side]), fracture=rng.choice(["", "left"]))
        text, removed = clean(word_pneumothorax(chest, seed, before=rng.choice([None, Chest(), chest])))
        assert findings_in(text) == labels_of(chest)
        assert not any(word in text for word in (":", "X-RAY", "XR", "revious", "ollow-up", "Phantom", "discussed"))


def test_any_text_will_do_and_a_cleaned_report_stays_as_it_is():
    rng = random.Random(1)
    pieces = [*REPORT.split(" "), *"\n\t .:;-–,?!()1\0é"] + [
        text for rule in RULES for text in rule.removed + rule.kept
    ]
    for _ in range(400):
        text = "".join(rng.choice(pieces) + rng.choice(["", " ", "\n"]) for _ in range(rng.randrange(25)))
        once, removed = clean(text)
        assert clean(once) == (once, []), text
        assert once or removed or not text.strip()


@pytest.mark.parametrize("piece", ["x-ray ", "1/2/2 ", "has been partly ", "if there is ", "the previous old ", "no "])
def test_no_pattern_runs_wild_on_a_long_text(piece):
    text, removed = clean(piece * 400 + "end")  # would not come back
    assert text.endswith("end.") or removed[-1][1].endswith("end.")


def write(path, reports, column="Report"):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([[column], *([report] for report in reports)])
    return str(path)


def test_the_dry_run_counts_and_shows_sentences_only_where_asked(tmp_path, capsys):
    table = write(tmp_path / "a.csv", [REPORT, "No change.", "Clear lungs."])
    assert main([table]) == 0
    told = capsys.readouterr().out
    assert "3 reports; 2 lose something, 1 lose everything" in told and "2 change " in told and "horse" not in told
    assert main([table, "--limit", "1", "--show"]) == 0
    assert "- Clinical Details: Fall from a horse. Left" in capsys.readouterr().out


def test_the_dry_run_says_what_is_wrong(tmp_path, capsys):
    assert main([write(tmp_path / "a.csv", [], column="Text")]) == 3
    assert "no column Report; the columns are: Text" in capsys.readouterr().err
    assert main([str(tmp_path / "b.csv")]) == 3
    assert "b.csv: no such file" in capsys.readouterr().err
