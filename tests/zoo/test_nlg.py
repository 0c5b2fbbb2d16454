"""BLEU, ROUGE, METEOR and CIDEr against the reference implementations: recorded values, and the packages themselves."""

import json
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest

from zoo.metrics import meteor as meteor_module
from zoo.metrics.meteor import (
    MetricUnavailable,
    WordNet,
    align,
    find_wordnet,
    meteor,
    meteor_of,
    tokenise_nltk,
    wordnet_places,
)
from zoo.metrics.nlg import (
    Pairs,
    bleu,
    cider,
    common_subsequence,
    ngram_counts,
    rouge_l,
    rouge_n,
    tokenise_13a,
    tokenise_rouge,
    tokenise_spaces,
)
from zoo.metrics.protocols import REG2RG

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def synthetic() -> dict:
    """24 self-written pairs, scored by each reference implementation."""
    return json.loads((GOLDEN / "synthetic24.json").read_text())


@pytest.fixture(scope="module")
def reg2rg() -> dict:
    """10 self-written pairs, scored by the code released with Reg2RG."""
    return json.loads((GOLDEN / "metrics_synthetic.json").read_text())


@pytest.fixture
def wordnet() -> WordNet:
    try:
        return find_wordnet()
    except MetricUnavailable as missing:
        pytest.skip(f"{missing.reason}; {missing.how_to}")


def pairs_of(golden: dict) -> Pairs:
    return Pairs(golden["refs"], golden["hyps"])


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bleu_equals_nmt_with_smoothing(synthetic, order):
    counts = pairs_of(synthetic).counts(tokenise_13a)
    expected = synthetic["nmt_bleu_13a_smooth"]
    np.testing.assert_allclose(bleu(counts, order), expected["sample"][order - 1], atol=1e-11)
    assert bleu(counts.sum(0), order) == pytest.approx(expected["corpus"][order - 1], abs=1e-11)


def test_rouge_equals_rouge_score_without_stemming(synthetic):
    pairs, expected = pairs_of(synthetic), synthetic["rouge_score_nostem"]
    for name, values in (("rouge1", rouge_n(pairs, 1)), ("rouge2", rouge_n(pairs, 2)), ("rougeL", rouge_l(pairs))):
        np.testing.assert_allclose(values, expected[name]["f"], atol=1e-11)
        assert values.mean() == pytest.approx(expected[name]["mean_f"], abs=1e-11)


def test_cider_equals_pycocoevalcap(synthetic):
    score = cider(pairs_of(synthetic))
    np.testing.assert_allclose(score.values, synthetic["coco_raw"]["ciderD_sample"], atol=1e-10)
    assert score.values.mean() == pytest.approx(synthetic["coco_raw"]["ciderD"], abs=1e-10)


def test_meteor_equals_nltk(synthetic, wordnet):
    score = meteor(pairs_of(synthetic))
    np.testing.assert_allclose(score.values, synthetic["meteor_nltk"]["sample"], atol=1e-11)
    assert score.values.mean() == pytest.approx(synthetic["meteor_nltk"]["mean"], abs=1e-11)


def test_every_metric_equals_the_released_code(reg2rg, wordnet):
    pairs = Pairs([pair["ref"] for pair in reg2rg["pairs"]], [pair["pred"] for pair in reg2rg["pairs"]])
    for key, metric in REG2RG.metrics.items():
        score = metric.score(pairs)
        if key.startswith("bleu"):
            order = int(key[-1]) - 1
            expected = [pair["bleu"][order] for pair in reg2rg["pairs"]]
            assert score.overall == pytest.approx(reg2rg["overall_bleu"][order], abs=1e-14)
            assert score.values.mean() == pytest.approx(reg2rg["mean"]["bleu"][order], abs=1e-14)
        else:
            name = {"rouge_l": "rougeL"}.get(key, key.replace("_", ""))
            expected = [pair[name] for pair in reg2rg["pairs"]]
            assert score.values.mean() == pytest.approx(reg2rg["mean"][name], abs=1e-14)
        np.testing.assert_allclose(score.values, expected, atol=1e-14)


def test_tokens_equal_those_of_the_released_code(reg2rg):
    assert [tokenise_13a(case["text"]) for case in reg2rg["tokens13a"]] == [case["out"] for case in reg2rg["tokens13a"]]
    for case in reg2rg["nltk_tokens"]:
        assert tokenise_nltk(case["text"]) == [token.lower() for token in case["out"]]


def test_ct_is_an_abbreviation_unless_a_sentence_opens_behind_it():
    assert tokenise_nltk("Seen on CT. Bilateral cysts.")[2] == "ct."
    assert tokenise_nltk("Seen on CT. There are cysts.")[2:4] == ["ct", "."]


def texts(seed: int, number: int) -> list[str]:
    """Made-up reports with repeats, punctuation, numbers and white space."""
    draw = random.Random(seed)
    words = [
        "No",
        "nodule",
        "is",
        "seen",
        "the",
        "lung",
        "5.5",
        "mm",
        "(left)",
        "3-4",
        "a",
        "&",
        "heart,",
        "normal.",
        "Nodules",
        "\n",
    ]
    return [" ".join(draw.choices(words, k=draw.randint(1, 25))) for _ in range(number)]


def test_rouge_and_cider_equal_their_packages_on_random_texts():
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    cider_scorer = pytest.importorskip("pycocoevalcap.cider.cider")
    references, predictions = texts(0, 120), texts(1, 100) + texts(0, 120)[100:]
    pairs = Pairs(references, predictions)
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    expected = [
        scorer.score(reference, prediction) for reference, prediction in zip(references, predictions, strict=True)
    ]
    for name, values in (("rouge1", rouge_n(pairs, 1)), ("rouge2", rouge_n(pairs, 2)), ("rougeL", rouge_l(pairs))):
        np.testing.assert_allclose(values, [score[name].fmeasure for score in expected], atol=1e-15)
    gts, res = ({i: [text] for i, text in enumerate(side)} for side in (references, predictions))
    np.testing.assert_allclose(cider(pairs).values, cider_scorer.Cider().compute_score(gts, res)[1], atol=1e-12)


def test_common_subsequence_equals_the_table():
    draw = random.Random(3)
    for _ in range(50):
        a, b = (draw.choices("abc", k=draw.randint(0, 90)) for _ in range(2))
        row = [0] * (len(b) + 1)
        for x in a:
            above = row[:]
            for j, y in enumerate(b, 1):
                row[j] = above[j - 1] + 1 if x == y else max(row[j - 1], above[j])
        assert common_subsequence(a, b) == row[-1]


def test_counts_are_clipped():
    assert ngram_counts(["a", "a", "a", "b"], ["a", "a", "b", "b"]) == [3, 2, 1, 0, 4, 3, 2, 1, 4, 4]


def test_edge_cases(shared, wordnet):
    """Empty and odd texts: where the originals give a number it is theirs; where they divide by zero it is 0."""
    cases = json.loads((shared / "golden" / "metrics" / "edge_cases.json").read_text())["metrics"]
    for case in cases:
        pairs = Pairs([case["ref"]], [case["hyp"]])
        expected = case["nmt_bleu1_smooth"]
        value = bleu(pairs.counts(tokenise_13a), 1)[0]
        assert value == (0.0 if expected == "ZeroDivisionError" else pytest.approx(expected))
        assert rouge_l(pairs)[0] == pytest.approx(case["rouge_score_rougeL_nostem"])
        mine, theirs = case["hyp"].lower().split(), case["ref"].lower().split()  # the golden's tokens here
        value = meteor_of(align(mine, theirs, str, wordnet), len(mine), len(theirs))
        assert value == pytest.approx(case["nltk_meteor"], abs=1e-11)
        assert meteor(pairs).values[0] == 0.0 or case["nltk_meteor"]
        corpus = Pairs([case["ref"], "Heart is big.", "Lungs are clear."], [case["hyp"], "Heart is big.", "Lungs."])
        assert np.isfinite(cider(corpus).values).all()


def test_equal_pairs_are_counted_once():
    pairs = Pairs(["a b", "c", "a b"], ["a", "c d", "a"])
    assert len(pairs.distinct) == 2
    np.testing.assert_array_equal(pairs.counts(tokenise_spaces)[0], pairs.counts(tokenise_spaces)[2])
    assert pairs.counts(tokenise_rouge).shape == (3, 10)


def small_wordnet(folder: Path, version: str = "3.0") -> Path:
    """A WordNet of one synset, {tumor, tumour, big_lump}, in the real file format."""
    folder.mkdir(parents=True)
    header = f"  1 This software is WordNet {version} Copyright 2006 by Princeton University.  \n"
    for part in ("noun", "verb", "adj", "adv"):
        entries = {"noun": "tumor n 1 0 1 0 {0}  \ntumour n 1 0 1 0 {0}  \n"}.get(part, "")
        line = "{0} 26 n 03 tumor 0 tumour 0 big_lump 0 000 | a growth  \n" if part == "noun" else ""
        (folder / f"data.{part}").write_text(header + line.format(f"{len(header):08d}"))
        (folder / f"index.{part}").write_text(header + entries.format(f"{len(header):08d}"))
        (folder / f"{part}.exc").write_text("tumores tumor\n" if part == "noun" else "")
    return folder


def test_synonyms_by_rule_and_exception(tmp_path):
    wordnet = WordNet(small_wordnet(tmp_path / "wordnet"))
    assert wordnet.version == "3.0"
    assert wordnet.synonyms("tumors") == {"tumors", "tumor", "tumour"}
    assert wordnet.synonyms("tumores") == {"tumores", "tumor", "tumour"}
    assert wordnet.synonyms("lung") == {"lung"}


@pytest.fixture
def only_here(tmp_path, monkeypatch):
    """Looks for WordNet below `tmp_path` alone."""
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    here = [place for place in wordnet_places() if place.is_relative_to(tmp_path)]
    monkeypatch.setattr(meteor_module, "wordnet_places", lambda: here)
    find_wordnet.cache_clear()
    yield tmp_path
    find_wordnet.cache_clear()


def test_wordnet_is_found_zipped_below_nltk_data(only_here):
    source = small_wordnet(only_here / "unpacked")
    (only_here / "corpora").mkdir()
    with zipfile.ZipFile(only_here / "corpora" / "wordnet.zip", "w") as archive:
        for file in source.iterdir():
            archive.write(file, f"wordnet/{file.name}")
    assert "tumour" in find_wordnet().synonyms("tumor")
    assert meteor(Pairs(["A tumour is seen."], ["A tumor is seen."])).values[0] > 0.99


def test_another_wordnet_is_named_and_refused(only_here):
    small_wordnet(only_here / "corpora" / "wordnet", version="3.1")
    with pytest.raises(MetricUnavailable, match=r"is WordNet 3\.1") as caught:
        find_wordnet()
    assert str(only_here / "corpora" / "wordnet") in caught.value.searched
    assert "wordnet-base" in caught.value.how_to
