"""The report viewer: a run's studies, or one report, as one self-contained HTML file."""

from __future__ import annotations

import html
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.progress import track

from datamodules.study import DataFault, Study
from lit_modules.report_generator import Heatmap
from zoo.gallery.page import Drawn, Entry, RegionRow, document, facts, figure, index_row, study_section
from zoo.gallery.radiograph import Radiograph, draw_radiograph, with_heatmaps
from zoo.gallery.slices import draw
from zoo.metrics import nlg
from zoo.metrics.pairs import Pairs
from zoo.metrics.tokenise import tokenise_13a, tokenise_rouge
from zoo.run_directory import atomic_write

Labeller = Callable[[str], frozenset[str]]
Explainer = Callable[[Study, str], Mapping[str, Heatmap]]  # a ReportGenerator's `explain`
DRAWERS = 4  # studies that are drawn at a time


class Source(Protocol):
    """As much of a ReportDataModule as the gallery asks for; see there."""

    @property
    def regions(self) -> tuple[str, ...]: ...
    def studies(self, split: str) -> list[Study]: ...
    def read(self, study: Study) -> Study: ...
    def is_phantom(self) -> bool: ...
    def label_findings(self) -> Labeller | None: ...


def write_gallery(folder: Path, datamodule: Source, explain: Explainer | None = None, limit: int = 40) -> Path:
    """Writes a run's `gallery.html` from its `predictions.jsonl` and, where there, `metrics.json`.

    Args:
        folder: The run's folder.
        datamodule: The ReportDataModule that the predictions are of; gives regions, pixels and finding labels.
        explain: The method's; asked about the radiographs that are drawn, one after the other.
        limit: At most as many studies are drawn: where there are more, evenly from the worst to the best.

    Returns:
        The file written.

    Raises:
        DataFault: Predictions are missing, broken, or of studies that the DataModule does not have.
    """
    lines = read_predictions(folder / "predictions.jsonl")
    studies = _studies(lines, datamodule, folder / "predictions.jsonl")
    label = datamodule.label_findings()
    scores = _scores(lines)
    entries = [_entry(line, studies[line["id"]], label, own) for line, own in zip(lines, scores, strict=True)]
    drawn = sorted(entries, key=lambda entry: (next(iter(entry.scores.values())), entry.study.id))
    if len(drawn) > limit:
        drawn = [drawn[i] for i in np.linspace(0, len(drawn) - 1, limit).round().astype(int)]
    regions = list(dict.fromkeys([*datamodule.regions, *(row.region for entry in drawn for row in entry.regions)]))
    columns = list(dict.fromkeys(name for entry in drawn for name in entry.scores))
    applies = facts(drawn)
    rows, sections = [], []
    drawing = track(_pictures(drawn, datamodule, explain), description="Drawing the gallery", total=len(drawn))
    for position, (entry, pictures) in enumerate(zip(drawn, drawing, strict=True)):
        rows.append(index_row(entry, pictures, f"study-{position}", applies, columns))
        sections.append(study_section(entry, pictures, regions, f"study-{position}"))
    phantom = bool(datamodule.is_phantom())
    title = f"{folder.resolve().name}{' · phantom' if phantom else ''}"
    body = _index(title, folder / "metrics.json", rows, applies, columns, len(entries)) + "".join(sections)
    atomic_write(folder / "gallery.html", document(title, phantom, body))
    return folder / "gallery.html"


def write_study_page(
    path: Path,
    study: Study,
    entry: Entry,
    regions: tuple[str, ...],
    caption: str,
    heatmaps: Mapping[str, Heatmap] | None = None,
) -> Path:
    """Writes one study's page, without a reference.

    Args:
        path: The HTML file.
        study: With pixels.
        entry: What the method says.
        regions: Every region's name in the order of colours and numbers.
        caption: Where the report comes from, in one line.
        heatmaps: Where the method looked; shown on a radiograph.
    """
    names = list(dict.fromkeys([*regions, *(row.region for row in entry.regions)]))
    pictures = _draw(study)
    if isinstance(pictures, Radiograph):
        pictures = with_heatmaps(pictures, heatmaps or {})
    section = study_section(entry, pictures, names, "study-0")
    body = f'<p class="caption">{html.escape(caption)}</p>{section}'
    atomic_write(path, document(f"Report of {study.id}", False, body))
    return path


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """Reads a run's predictions.

    Raises:
        DataFault: The file is missing or empty, or a line is not a prediction.
    """
    if not path.is_file():
        raise DataFault(f"{path}: no predictions there; run zoo.fit (or its evaluation) to the end first")
    lines = []
    whole = path.read_bytes().removesuffix(b"\n")
    for number, text in enumerate(whole.split(b"\n") if whole else [], 1):  # texts hold other line ends
        try:
            line = json.loads(text.decode())
            line["id"], line["reference"], line["prediction"]
        except (ValueError, KeyError, TypeError, RecursionError) as fault:
            raise DataFault(f"{path}: line {number} is not a prediction ({fault})") from fault
        lines.append(line)
    if not lines:
        raise DataFault(f"{path}: empty; run zoo.fit (or its evaluation) to the end first")
    return lines


def _draw(study: Study) -> Drawn | None:
    """What can be drawn of a study that was read."""
    if study.volume is not None:
        return draw(study)
    return None if study.image is None else draw_radiograph(study)


def _pictures(entries: Sequence[Entry], datamodule: Source, explain: Explainer | None) -> Iterator[Drawn | None]:
    """Each entry's pictures. A few studies are read and drawn ahead; the method is asked in the caller's thread."""

    def pictured(entry: Entry) -> tuple[Study, Drawn | None]:
        study = datamodule.read(entry.study)
        return study, _draw(study)

    with ThreadPoolExecutor(min(DRAWERS, os.cpu_count() or 1)) as pool:  # unpacking and compressing leave Python's lock
        ahead = deque(pool.submit(pictured, entry) for entry in entries[:DRAWERS])
        for position, entry in enumerate(entries, DRAWERS):
            study, pictures = ahead.popleft().result()
            ahead.extend(pool.submit(pictured, later) for later in entries[position : position + 1])
            if explain is not None and isinstance(pictures, Radiograph):
                pictures = with_heatmaps(pictures, explain(study, entry.raw or entry.prediction))
            yield pictures


def _studies(lines: list[dict[str, Any]], datamodule: Source, path: Path) -> dict[str, Study]:
    splits = sorted({line.get("split") or "test" for line in lines})
    studies = {study.id: study for split in splits for study in datamodule.studies(split)}
    unknown = [line["id"] for line in lines if line["id"] not in studies]
    if unknown:
        raise DataFault(
            f"{path}: {len(unknown)} of {len(lines)} studies are not in this dataset's {', '.join(splits)} split, "
            f"{unknown[0]!r} first; give the data that the run was evaluated on"
        )
    return studies


def _scores(lines: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Each study's own figures, the one that ranks studies first."""
    pairs = Pairs([line["reference"] for line in lines], [line["prediction"] for line in lines])
    columns = {
        "BLEU-4": nlg.bleu(nlg.counts(pairs, tokenise_13a), 4, "add_one"),
        "ROUGE-L": nlg.rouge_l(pairs, tokenise_rouge),
    }
    return [{name: float(values[i]) for name, values in columns.items()} for i in range(len(lines))]


def _entry(line: Mapping[str, Any], study: Study, label: Labeller | None, scores: Mapping[str, float]) -> Entry:
    regions = tuple(
        RegionRow(row["region"], row.get("named"), row.get("reference") or None, row.get("prediction") or None)
        for row in line.get("regions") or ()
    )
    if regions:  # those that the reference speaks of and the method was not shown
        shown = {row.region for row in regions}
        rest = ((name, text) for name, text in (study.regions or {}).items() if name not in shown)
        regions += tuple(RegionRow(name, reference=text) for name, text in rest)
    known = line.get("findings")
    if known is None and label is not None:
        known = label(line["reference"])
    findings = None if label is None or known is None else (frozenset(known), label(line["prediction"]))
    return Entry(
        study=study,
        prediction=line["prediction"],
        reference=line["reference"],
        raw=line.get("raw") or "",
        regions=regions,
        findings=findings,
        scores=scores,
    )


def _index(title: str, metrics: Path, rows: list[str], facts: Sequence[str], columns: Sequence[str], total: int) -> str:
    kinds = {name: "names" if name == "boxes" else "number" for name in facts} | dict.fromkeys(columns, "number score")
    heads = "".join(
        f'<th class="{kind}" aria-sort="none"><button type="button">{html.escape(name)}</button></th>'
        for name, kind in kinds.items()
    )
    shown = f"{total} studies" if len(rows) == total else f"{len(rows)} of {total} studies, from worst to best"
    return (
        f'<section id="index"><header><h1>{html.escape(title)}</h1><p class="sub">{shown}</p></header>{_tiles(metrics)}'
        '<div class="tools"><button type="button" data-order="ascending">Worst first</button>'
        '<button type="button" data-order="descending">Best first</button>'
        '<input type="search" placeholder="Find a study" aria-label="Find a study"></div>'
        '<div class="scroll"><table><thead><tr><th></th><th aria-sort="none"><button type="button">study</button></th>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _tiles(path: Path) -> str:
    """The run's figures, where `metrics.json` is there."""
    if not path.is_file():
        return ""
    metrics = json.loads(path.read_text("utf-8"))
    tiles = "".join(
        f"<div><dt>{html.escape(name.replace('_', ' '))}</dt><dd>{figure(entry['value'])}</dd></div>"
        for name, entry in metrics["metrics"].items()
    )
    protocol = html.escape(f"protocol {metrics.get('protocol', 'not named')}, n = {metrics.get('n', '?')}")
    return f'<dl class="tiles">{tiles}</dl><p class="sub">{protocol}</p>{_absent(metrics.get("skipped") or {})}'


def _absent(skipped: Mapping[str, Mapping[str, str]]) -> str:
    """The figures that are missing, by the reason."""
    names: dict[str, list[str]] = {}
    for name, entry in skipped.items():
        names.setdefault(entry["reason"], []).append(name)
    lines = "".join(f"<li>{html.escape(', '.join(of) + ': ' + reason)}</li>" for reason, of in names.items())
    if not names:
        return ""
    return f'<details class="absent"><summary>Absent figures: {len(skipped)}</summary><ul>{lines}</ul></details>'
