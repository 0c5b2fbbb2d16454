"""METEOR as NLTK computes it (Lavie & Agarwal 2007; alpha 0.9, beta 3, gamma 0.5), without any download of NLTK's.

Words are matched as they stand, then by Porter stem, then by WordNet 3.0 synonym. The WordNet files are read directly,
wherever they lie (an `nltk_data` folder, zipped or not, or Debian's `wordnet-base`); stems and synonyms are looked up
once for each word. Sentences are split by Punkt's rules with a handful of words instead of its trained model: of the
6,675 distinct texts released with Reg2RG two are split otherwise, and all released METEOR values come out.
"""

from __future__ import annotations

import os
import sys
import zipfile
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path

from zoo.metrics.pairs import MetricUnavailable, Pairs, Score
from zoo.metrics.tokenise import porter_stem

ALPHA, BETA, GAMMA = 0.9, 3.0, 0.5


# WordNet

_PARTS = ("noun", "verb", "adj", "adv")
# WordNet's own morphology, morphy(7WN): ending → ending of the base form.
_ENDINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "noun": (
        ("s", ""),
        ("ses", "s"),
        ("ves", "f"),
        ("xes", "x"),
        ("zes", "z"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("men", "man"),
        ("ies", "y"),
    ),
    "verb": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}


def wordnet_places() -> list[Path]:
    """Where WordNet is looked for, in order: `$NLTK_DATA`, NLTK's usual folders, Debian's `wordnet-base`."""
    folders = [Path(folder) for folder in os.environ.get("NLTK_DATA", "").split(os.pathsep) if folder]
    folders += [Path.home() / "nltk_data", *(Path(sys.prefix, *end) for end in (["nltk_data"], ["share", "nltk_data"]))]
    folders += [Path("/usr", *end, "nltk_data") for end in (["share"], ["local", "share"], ["lib"], ["local", "lib"])]
    found = [folder / "corpora" / name for folder in folders for name in ("wordnet", "wordnet.zip")]
    return [*found, Path("/usr/share/wordnet")]


class WordNet:
    """The synonyms in WordNet's database files (`index.*`, `data.*`, `*.exc`; wndb(5WN)).

    Args:
        place: A folder holding the files, or NLTK's `wordnet.zip`.
    """

    def __init__(self, place: Path) -> None:
        self._offsets: dict[str, dict[str, list[int]]] = {}
        self._exceptions: dict[str, dict[str, list[str]]] = {}
        self._data: dict[str, bytes] = {}
        for part in _PARTS:
            self._data[part] = _read(place, f"data.{part}")
            lines = _read(place, f"index.{part}").decode("ascii").splitlines()
            self._offsets[part] = dict(_index_entry(line) for line in lines if not line.startswith(" "))
            words = (line.split() for line in _read(place, f"{part}.exc").decode("ascii").splitlines())
            self._exceptions[part] = {first: rest for first, *rest in words}
        head = self._data["noun"][:2000].decode("ascii", "replace")
        self.version = head.split("WordNet ", 1)[-1].split(" ", 1)[0]
        self._synonyms: dict[str, frozenset[str]] = {}

    def synonyms(self, word: str) -> frozenset[str]:
        """All single words in the synsets of `word`'s base forms, and `word` itself."""
        if word not in self._synonyms:
            found = {word}
            for part in _PARTS:
                for form in self._base_forms(word.lower(), part):
                    for offset in self._offsets[part][form]:
                        found.update(name for name in self._members(part, offset) if "_" not in name)
            self._synonyms[word] = frozenset(found)
        return self._synonyms[word]

    def _base_forms(self, word: str, part: str) -> list[str]:
        forms = self._exceptions[part].get(word)
        if forms is None:
            forms = [word[: -len(old)] + new for old, new in _ENDINGS[part] if word.endswith(old)]
        return [form for form in dict.fromkeys([word, *forms]) if form in self._offsets[part]]

    def _members(self, part: str, offset: int) -> list[str]:
        data = self._data[part]
        fields = data[offset : data.index(b"|", offset)].decode("ascii").split(" ")
        names = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
        return [name.split("(")[0] for name in names]  # adjectives may carry a marker, "(a)"


def _index_entry(line: str) -> tuple[str, list[int]]:
    fields = line.split()
    return fields[0], [int(offset) for offset in fields[-int(fields[2]) :]]


def _read(place: Path, name: str) -> bytes:
    if place.suffix == ".zip":
        with zipfile.ZipFile(place) as archive:
            return archive.read(f"wordnet/{name}")
    return (place / name).read_bytes()


@cache
def find_wordnet() -> WordNet:
    """The first WordNet 3.0 at hand.

    Raises:
        MetricUnavailable: There is none.
    """
    searched, others = [], []
    for place in wordnet_places():
        searched.append(str(place))
        if place.is_file() or (place / "data.noun").is_file():
            wordnet = WordNet(place)
            if wordnet.version == "3.0":
                return wordnet
            others.append(f"{place} is WordNet {wordnet.version}")
    raise MetricUnavailable(
        "; ".join(["WordNet 3.0 is not at hand", *others]),
        "install Debian's package wordnet-base, or unpack NLTK's corpora/wordnet below a folder that NLTK_DATA names",
        searched,
    )


# Tokens and alignment


def tokenise_nltk(text: str) -> list[str]:
    """NLTK's `word_tokenize`, lower-cased as METEOR does."""
    split, words = _tokenisers()
    return [token for sentence in split(text) for token in words(sentence)]


@cache
def _tokenisers() -> tuple[Callable[[str], list[str]], Callable[[str], tuple[str, ...]]]:
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    parameters = PunktParameters()
    # Behind an abbreviation only a known opener starts a sentence; these are the ones that reports need.
    parameters.abbrev_types = {"ct"}
    parameters.sent_starters = {"both", "in", "it", "the", "there", "these", "they", "this"}
    tokeniser = NLTKWordTokenizer()
    words = cache(lambda sentence: tuple(token.lower() for token in tokeniser.tokenize(sentence)))
    return PunktSentenceTokenizer(parameters).tokenize, words


def align(
    prediction: list[str], reference: list[str], stem: Callable[[str], str], wordnet: WordNet
) -> list[tuple[int, int]]:
    """NLTK's greedy matching from the right: sorted pairs (position in the prediction, position in the reference)."""
    mine, theirs = dict(enumerate(prediction)), dict(enumerate(reference))
    matches: list[tuple[int, int]] = []

    def match(candidates: Callable[[str], frozenset[str] | tuple[str]]) -> None:
        places: defaultdict[str, list[int]] = defaultdict(list)
        for j, word in theirs.items():
            places[word].append(j)
        for i in sorted(mine, reverse=True):
            last = max(((places[word][-1], word) for word in candidates(mine[i]) if places.get(word)), default=None)
            if last is not None:
                matches.append((i, places[last[1]].pop()))
                del mine[i], theirs[last[0]]

    match(lambda word: (word,))
    mine, theirs = ({i: stem(word) for i, word in words.items()} for words in (mine, theirs))
    match(lambda word: (word,))
    match(wordnet.synonyms)  # of the stems: so NLTK does it
    return sorted(matches)


def meteor_of(matches: list[tuple[int, int]], predicted: int, expected: int) -> float:
    """METEOR from an alignment and both lengths in tokens; 0 where nothing matches."""
    if not matches:
        return 0.0
    precision, recall = len(matches) / predicted, len(matches) / expected
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    breaks = sum((i + 1, j + 1) != following for (i, j), following in zip(matches, matches[1:], strict=False))
    return (1 - GAMMA * ((breaks + 1) / len(matches)) ** BETA) * mean


def meteor(pairs: Pairs) -> Score:
    """NLTK's METEOR, mean over studies.

    Raises:
        MetricUnavailable: WordNet 3.0 is not at hand.
    """
    wordnet, stem = find_wordnet(), porter_stem()

    def score(reference: list[str], prediction: list[str]) -> float:
        return meteor_of(align(prediction, reference, stem, wordnet), len(prediction), len(reference))

    values = pairs.each(score, tokenise_nltk)
    return Score(values, float(values.mean()))
