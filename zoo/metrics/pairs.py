"""What every metric gets and gives: pairs of texts in, a score out."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

Tokenise = Callable[[str], list[str]]
T = TypeVar("T")


class MetricUnavailable(Exception):
    """A metric that cannot run here.

    Args:
        reason: What is missing.
        how_to: The one thing to do about it.
        searched: Where it was looked for.
    """

    def __init__(self, reason: str, how_to: str, searched: list[str] | None = None) -> None:
        super().__init__(reason)
        self.reason, self.how_to, self.searched = reason, how_to, searched or []


@dataclass(frozen=True)
class Tools:
    """What metrics with weights of their own may use.

    Attributes:
        weights: A folder with one folder for each metric's weights; looked into before all other places.
        online: Whether weights may be fetched from the hub.
        device: `cpu`, `cuda`, `cuda:1`, …; `auto` takes a GPU where there is one.
        cache: Where labels of texts are kept from one call to the next, by the texts' hashes; `None` keeps none.
        used: The files that were found and used, by name, for the record.
    """

    weights: Path | None = None
    online: bool = False
    device: str = "auto"
    cache: Path | None = None
    used: dict[str, Path] = field(default_factory=dict, compare=False)


def default_cache() -> Path:
    """Where commands keep labels of texts: `$ZOO_CACHE`, or `rrg-zoo` in the user's cache folder."""
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ZOO_CACHE") or Path(user, "rrg-zoo"))


@dataclass(frozen=True)
class Corpus:
    """How a metric's value comes from sums over studies, where it is not the mean of the studies' own values.

    Attributes:
        name: The statistics' name; metrics that share statistics share it.
        columns: What is summed, a name for each column.
        formula: Sums `(…, column)` → the metric's value `(…)`.
        labels: Where the columns are true positives, false positives and false negatives of labels (all `tp` first,
            then all `fp`, then all `fn`): the labels.
    """

    name: str
    columns: tuple[str, ...]
    formula: Callable[[np.ndarray], np.ndarray]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Score:
    """A metric's outcome.

    Attributes:
        values: Each study's own value, `(study,)`, float64; their mean is the metric's value unless it has a `Corpus`.
            `None` where a study has no value of its own.
        overall: A second value of the whole file, where the protocol states one beside the mean.
        statistics: What the metric's `Corpus` sums, `(study, column)`; `None` for a mean.
    """

    values: np.ndarray | None
    overall: float | None = None
    statistics: np.ndarray | None = None


class Pairs:
    """Prepared references and predictions, in the studies' order.

    Args:
        references: One text for each study.
        predictions: One text for each study.
        tools: What metrics with weights may use.

    Attributes:
        distinct: The distinct `(reference, prediction)`.
        index: For each study the place of its pair in `distinct`, `(study,)`.
    """

    def __init__(self, references: Sequence[str], predictions: Sequence[str], tools: Tools | None = None) -> None:
        positions: dict[tuple[str, str], int] = {}
        self.index = np.array(
            [positions.setdefault(pair, len(positions)) for pair in zip(references, predictions, strict=True)],
            dtype=np.intp,
        )
        self.distinct = list(positions)
        self.tools = tools or Tools()
        self._made: dict[Hashable, tuple[Any, Exception | None]] = {}

    def __len__(self) -> int:
        return len(self.index)

    @property
    def texts(self) -> list[str]:
        """The distinct texts of either side."""
        return self.once("texts", lambda: list(dict.fromkeys(text for pair in self.distinct for text in pair)))

    def once(self, name: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, made only the first time that `name` is asked for: metrics share work through it.

        They share its failure too: weights that are missing or broken are looked for once, not once for each average.
        """
        if name not in self._made:
            try:
                self._made[name] = make(), None
            except Exception as error:
                self._made[name] = None, error
        value, failure = self._made[name]
        if failure is not None:
            raise failure
        return value

    def tokens(self, tokenise: Tokenise) -> list[tuple[list[str], list[str]]]:
        """`(reference, prediction)` as tokens, for each distinct pair."""

        def make() -> list[tuple[list[str], list[str]]]:
            tokens = {text: tokenise(text) for text in self.texts}
            return [(tokens[reference], tokens[prediction]) for reference, prediction in self.distinct]

        return self.once(("tokens", tokenise), make)

    def each(self, score: Callable[[list[str], list[str]], float], tokenise: Tokenise) -> np.ndarray:
        """`score(reference, prediction)` for each study, `(study,)`, computed once for each distinct pair."""
        return np.array([score(*tokens) for tokens in self.tokens(tokenise)], dtype=np.float64)[self.index]
