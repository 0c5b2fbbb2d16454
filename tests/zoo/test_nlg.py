"""BLEU, ROUGE, METEOR and CIDEr against the reference implementations: recorded values, and the packages themselves."""

import json
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest

from zoo.metrics import meteor_nltk
from zoo.metrics.meteor_nltk import WordNet, align, find_wordnet, meteor, meteor_of, tokenise_nltk, wordnet_places
from zoo.metrics.nlg import bleu, cider, common_subsequence, counts, ngram_counts, rouge_l, rouge_n
from zoo.metrics.pairs import MetricUnavailable, Pairs
from zoo.metrics.protocols import REG2RG
from zoo.metrics.tokenise import (
    tokenise_13a,
    tokenise_rouge,
    tokenise_rouge_stemmed,
    tokenise_spaces,
)

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


@pytest.fixture(params=["synthetic24", "abdomen40"])
def golden(request) -> dict:
    """Pairs scored by each reference implementation: self-written ones, and released ones where they are at hand."""
    if request.param == "synthetic24":
        return json.loads((GOLDEN / "synthetic24.json").read_text())
    shared = request.getfixturevalue("shared")
    return json.loads((shared / "golden" / "metrics" / f"{request.param}.json").read_text())


def by_order(values: list) -> list:
    """Recorded per-sample values come as `(order, sample)`."""
    assert len(values) == 4
    return values


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("name", "tokenise", "smoothing"),
    [("nmt_bleu_13a_smooth", tokenise_13a, "add_one"), ("nmt_bleu_13a", tokenise_13a, "none")],
)
def test_bleu_equals_hugging_face(golden, order, name, tokenise, smoothing):
    table, expected = counts(pairs_of(golden), tokenise), golden[name]
    np.testing.assert_allclose(bleu(table, order, smoothing), by_order(expected["sample"])[order - 1], atol=1e-11)
    assert bleu(table.sum(0), order, smoothing) == pytest.approx(expected["corpus"][order - 1], abs=1e-11)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bleu_equals_pycocoevalcap(golden, order):
    tokens = {
        text: out
        for side in ("ref", "hyp")
        for text, out in zip(golden[f"{side}s"], golden["ptb_tokens"][side], strict=True)
    }
    for name, tokenise in (("coco_raw", tokenise_spaces), ("coco_ptb", lambda text: tokens[text].split())):
        table = counts(pairs_of(golden), tokenise)
        assert bleu(table.sum(0), order, "epsilon") == pytest.approx(golden[name]["bleu_corpus"][order - 1], abs=1e-11)
        np.testing.assert_allclose(
            bleu(table, order, "epsilon"), by_order(golden[name]["bleu_sample"])[order - 1], atol=1e-11
        )


def test_bleu_equals_sacrebleu_torchmetrics_and_nltk(golden):
    table = counts(pairs_of(golden), tokenise_13a)
    assert 100 * bleu(table.sum(0), 4, "exponential") == pytest.approx(golden["sacrebleu"]["corpus"], abs=1e-9)
    lower = counts(Pairs(*([text.lower() for text in golden[side]] for side in ("refs", "hyps"))), tokenise_13a)
    assert 100 * bleu(lower.sum(0), 4, "exponential") == pytest.approx(golden["sacrebleu"]["corpus_lower"], abs=1e-9)
    # A sentence counts the orders that it has n-grams of ("effective order").
    orders = np.minimum(4, np.maximum(1, table[:, -2]))
    sentences = [100 * bleu(row, int(order), "exponential") for row, order in zip(table, orders, strict=True)]
    np.testing.assert_allclose(sentences, golden["sacrebleu"]["sentence_effective"], atol=1e-8)

    words = counts(pairs_of(golden), tokenise_spaces)
    assert bleu(words.sum(0), 4) == pytest.approx(golden["torchmetrics"]["BLEUScore4"], rel=1e-6)
    smooth = bleu(words.sum(0), 4, "add_one_above_unigrams")
    assert smooth == pytest.approx(golden["torchmetrics"]["BLEUScore4_smooth"], rel=1e-6)
    assert bleu(table.sum(0), 4) == pytest.approx(golden["torchmetrics"]["SacreBLEU4_13a"], rel=1e-6)
    np.testing.assert_allclose(bleu(words, 4, "tenth"), golden["nltk_bleu_split"]["sentence4_method1"], atol=1e-11)
    words[:, 4:8] = np.maximum(words[:, 4:8], 1)  # NLTK counts at least one n-gram a sentence
    assert bleu(words.sum(0), 4) == pytest.approx(golden["nltk_bleu_split"]["corpus4"], abs=1e-11)


@pytest.mark.parametrize(("name", "tokenise"), [("nostem", tokenise_rouge), ("stem", tokenise_rouge_stemmed)])
def test_rouge_equals_rouge_score(golden, name, tokenise):
    pairs, expected = pairs_of(golden), golden[f"rouge_score_{name}"]
    values = {f"rouge{n}": rouge_n(pairs, n, tokenise) for n in (1, 2)} | {"rougeL": rouge_l(pairs, tokenise)}
    for key, found in values.items():
        np.testing.assert_allclose(found, expected[key]["f"], atol=1e-11)
        assert found.mean() == pytest.approx(expected[key]["mean_f"], abs=1e-11)


@pytest.mark.parametrize("name", ["coco_raw", "coco_ptb"])
def test_cider_and_rouge_l_equal_pycocoevalcap(golden, name):
    tokens = {
        text: out
        for side in ("ref", "hyp")
        for text, out in zip(golden[f"{side}s"], golden["ptb_tokens"][side], strict=True)
    }
    tokenise = tokenise_spaces if name == "coco_raw" else lambda text: tokens[text].split()
    score = cider(pairs_of(golden), tokenise)
    np.testing.assert_allclose(score.values, golden[name]["ciderD_sample"], atol=1e-10)
    assert score.values.mean() == pytest.approx(golden[name]["ciderD"], abs=1e-10)
    rouge = rouge_l(pairs_of(golden), tokenise, beta=1.2)
    np.testing.assert_allclose(rouge, golden[name]["rougeL_beta1.2_sample"], atol=1e-11)
    assert rouge.mean() == pytest.approx(golden[name]["rougeL_beta1.2"], abs=1e-11)


def test_meteor_equals_nltk(synthetic, wordnet):
    score = meteor(pairs_of(synthetic))
    np.testing.assert_allclose(score.values, synthetic["meteor_nltk"]["sample"], atol=1e-11)
    assert score.values.mean() == pytest.approx(synthetic["meteor_nltk"]["mean"], abs=1e-11)


def test_every_metric_equals_the_released_code(reg2rg, wordnet):
    pairs = Pairs([pair["ref"] for pair in reg2rg["pairs"]], [pair["pred"] for pair in reg2rg["pairs"]])
    for key, metric in REG2RG.metrics.items():
        if key.startswith("radbert"):
            continue  # needs weights
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
    found = {f"rouge{n}": rouge_n(pairs, n, tokenise_rouge) for n in (1, 2)} | {
        "rougeL": rouge_l(pairs, tokenise_rouge)
    }
    for name, values in found.items():
        np.testing.assert_allclose(values, [score[name].fmeasure for score in expected], atol=1e-15)
    gts, res = ({i: [text] for i, text in enumerate(side)} for side in (references, predictions))
    np.testing.assert_allclose(
        cider(pairs, tokenise_spaces).values, cider_scorer.Cider().compute_score(gts, res)[1], atol=1e-12
    )


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
        value = bleu(counts(pairs, tokenise_13a), 1, "add_one")[0]
        assert value == (0.0 if expected == "ZeroDivisionError" else pytest.approx(expected))
        assert rouge_l(pairs, tokenise_rouge)[0] == pytest.approx(case["rouge_score_rougeL_nostem"])
        mine, theirs = case["hyp"].lower().split(), case["ref"].lower().split()  # the golden's tokens here
        value = meteor_of(align(mine, theirs, str, wordnet), len(mine), len(theirs))
        assert value == pytest.approx(case["nltk_meteor"], abs=1e-11)
        assert meteor(pairs).values[0] == 0.0 or case["nltk_meteor"]
        corpus = Pairs([case["ref"], "Heart is big.", "Lungs are clear."], [case["hyp"], "Heart is big.", "Lungs."])
        assert np.isfinite(cider(corpus, tokenise_spaces).values).all()


def test_equal_pairs_are_counted_once():
    pairs = Pairs(["a b", "c", "a b"], ["a", "c d", "a"])
    assert len(pairs.distinct) == 2
    np.testing.assert_array_equal(counts(pairs, tokenise_spaces)[0], counts(pairs, tokenise_spaces)[2])
    assert counts(pairs, tokenise_rouge).shape == (3, 10)


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
    monkeypatch.setattr(meteor_nltk, "wordnet_places", lambda: here)
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
