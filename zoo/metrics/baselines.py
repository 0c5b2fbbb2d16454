"""What a report scores that never looked at the image: the lines that any method has to beat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from datamodules.study import Study
from zoo.metrics.labels import Label

WHOLE = ""  # the one part of a report that is not divided into regions


def report_of(study: Study, regions: Sequence[str]) -> str:
    """A study's reference: its regions' sentences in the dataset's order (as Reg2RG is evaluated), or its report."""
    if study.regions:
        return " ".join(study.regions[region].strip() for region in regions if region in study.regions)
    return study.report or ""


def trivial_reports(training: Sequence[Study], regions: Sequence[str], label: Label | None) -> dict[str, str]:
    """Reports made from the training reports alone, the same one for every study.

    A region is spoken of if most training studies speak of it; of equally frequent texts the first by alphabet counts.

    Args:
        training: The training studies, without pixels.
        regions: Region names in the order of a report.
        label: What reads findings out of a text; without it nobody knows what is normal.

    Returns:
        `most_frequent_report`: each region's most frequent text. With `label` also `always_normal`: each region's most
        frequent text among those that state no finding.
    """
    texts = [_parts(study) for study in training]
    order = [*regions, WHOLE]
    result = {"most_frequent_report": _compose(texts, order, lambda text: True)}
    if label is not None:
        cache = {text: not label(text) for parts in texts for text in parts.values()}
        result = {"always_normal": _compose(texts, order, cache.__getitem__)} | result
    return {name: report for name, report in result.items() if report}


def _parts(study: Study) -> dict[str, str]:
    parts: Mapping[str, str] = study.regions or {WHOLE: study.report or ""}
    return {region: text.strip() for region, text in parts.items() if text.strip()}


def _compose(texts: list[dict[str, str]], order: Iterable[str], admits: Callable[[str], bool]) -> str:
    report = []
    for region in order:
        said = [parts[region] for parts in texts if region in parts]
        admitted = Counter(text for text in said if admits(text))
        if admitted and 2 * len(said) > len(texts):
            report.append(min(admitted, key=lambda text: (-admitted[text], text)))
    return " ".join(report)
