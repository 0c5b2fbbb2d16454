"""One study as HTML: slices with outlines on one side, what is said about each region on the other."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from string import Template

from datamodules.study import Study
from zoo.gallery.slices import SUBPIXEL, Pictures, Slice
from zoo.gallery.text_diff import word_diff

# Ten colours that stay apart (CIE76 distance of 18 or more) also for protanopes, deuteranopes and tritanopes, and show
# on a dark image. Beyond ten they repeat; numbers tell regions apart everywhere.
PALETTE = (
    "#ffebb1", "#4e8962", "#ff9db1", "#c4ff00", "#ff3b00", "#4effff", "#eb14b1", "#00c44e", "#7662ff", "#89b1ff",
)  # fmt: skip


@dataclass(frozen=True)
class RegionRow:
    """What is said about one region; `None` where nothing is.

    Attributes:
        region: The region.
        named: The name that the method gave it.
        reference: The reference's sentences.
        prediction: The method's sentences.
    """

    region: str
    named: str | None = None
    reference: str | None = None
    prediction: str | None = None


@dataclass(frozen=True, eq=False)
class Entry:
    """One study of a page.

    Attributes:
        study: The study; its pixels are not needed.
        prediction: The method's whole report.
        reference: The reference's whole report; `None` shows the prediction alone.
        raw: The method's output, untouched.
        regions: Region by region; empty where nothing is grounded.
        findings: Known to be present and named by the prediction; `None` where not known.
        scores: Name → figure of this study, the first being what studies are ranked by.
    """

    study: Study
    prediction: str
    reference: str | None = None
    raw: str = ""
    regions: tuple[RegionRow, ...] = ()
    findings: tuple[frozenset[str], frozenset[str]] | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


def document(title: str, phantom: bool, body: str) -> str:
    """A whole self-contained page; `title` is text, `body` HTML."""
    notice = (
        "<b>Research use only.</b> Phantom: drawn patients and worded reports, which say nothing about real ones."
        if phantom
        else "<b>Research use only. Do not share:</b> this file may hold patient data, pixels and text."
    )
    asset = resources.files("zoo.gallery").joinpath
    return Template(asset("page.html").read_text("utf-8")).substitute(
        title=html.escape(title),
        notice=f'<p class="notice {"phantom" if phantom else "patient"}" role="note">{notice}</p>',
        style=asset("page.css").read_text("utf-8")
        + "".join(f".c{i}{{--c:{colour}}}" for i, colour in enumerate(PALETTE)),
        script=asset("page.js").read_text("utf-8"),
        body=body,
    )


def study_section(entry: Entry, pictures: Pictures | None, regions: Sequence[str], anchor: str) -> str:
    """A study's page.

    Args:
        entry: What is said.
        pictures: What is drawn; `None` where the study has no volume.
        regions: Every region's name in the order of colours and numbers.
        anchor: The section's id.
    """
    number = {region: i for i, region in enumerate(regions)}
    chips = _score_chips(entry.scores) + _finding_chips(entry.findings)
    return (
        f'<section class="study" id="{anchor}" tabindex="-1"><header><h2>{html.escape(entry.study.id)}</h2>'
        f'<div class="chips">{chips}</div></header><div class="columns">'
        f"{_viewer(pictures, number) if pictures else ''}"
        f'<div class="text">{_legend(entry)}{_region_rows(entry, pictures, number)}{_whole_report(entry)}</div>'
        "</div></section>"
    )


def index_row(entry: Entry, pictures: Pictures | None, anchor: str, columns: Sequence[str]) -> str:
    """A study's row of the index, with a cell for each of the score `columns`."""
    thumbnail = f'<img src="{pictures.thumbnail}" alt="" loading="lazy">' if pictures else ""
    said = sum(row.prediction is not None for row in entry.regions)
    cells = [f'<td class="thumb"><a href="#{anchor}" tabindex="-1">{thumbnail}</a></td>']
    cells.append(f'<th scope="row"><a href="#{anchor}">{html.escape(entry.study.id)}</a></th>')
    cells.append(_number(said, f"{said} of {len(entry.regions)}") if entry.regions else _number(None, "–"))
    if entry.findings is None:
        cells.append(_number(None, "–"))
    else:
        agree, missed, invented = _compare(entry.findings)
        shown = f'<span class="ok">✓{len(agree)}</span> <span class="miss">−{len(missed)}</span> '
        shown += f'<span class="invent">+{len(invented)}</span>'
        cells.append(_number(len(agree) - len(missed) - len(invented), shown))
    for column in columns:
        score = entry.scores.get(column)
        cells.append(_number(score, "–" if score is None else figure(score)))
    return f"<tr>{''.join(cells)}</tr>"


def figure(value: float) -> str:
    """A figure as shown in tables."""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _number(value: float | None, shown: str) -> str:
    return f'<td class="number" data-v="{"" if value is None else value}">{shown}</td>'


def _compare(findings: tuple[frozenset[str], frozenset[str]]) -> tuple[list[str], list[str], list[str]]:
    known, said = findings
    return sorted(known & said), sorted(known - said), sorted(said - known)


def _score_chips(scores: Mapping[str, float]) -> str:
    return "".join(
        f'<span class="chip">{html.escape(name)} <b>{figure(value)}</b></span>' for name, value in scores.items()
    )


def _finding_chips(findings: tuple[frozenset[str], frozenset[str]] | None) -> str:
    if findings is None:
        return ""
    kinds = zip(("ok", "miss", "invent"), ("✓", "− missed:", "+ invented:"), _compare(findings), strict=True)
    chips = "".join(
        f'<span class="chip {kind}">{mark} {html.escape(name)}</span>' for kind, mark, names in kinds for name in names
    )
    return chips or '<span class="chip ok">✓ no finding</span>'


def _legend(entry: Entry) -> str:
    if entry.reference is None:
        return ""
    return (
        '<p class="legend"><del>dashed</del> only the reference says it · '
        "<ins>underlined</ins> only the prediction says it</p>"
    )


def _region_rows(entry: Entry, pictures: Pictures | None, number: Mapping[str, int]) -> str:
    if not entry.regions:
        return ""
    return f'<ol class="regions">{"".join(_region_row(row, entry, pictures, number) for row in entry.regions)}</ol>'


def _region_row(row: RegionRow, entry: Entry, pictures: Pictures | None, number: Mapping[str, int]) -> str:
    position = number[row.region]
    level = pictures.best.get(row.region) if pictures else None
    notes = []
    if row.named is not None and row.named != row.region:
        notes.append(f'<span class="chip miss">named “{html.escape(row.named)}”</span>')
    if pictures and level is None:
        notes.append('<span class="chip">no mask</span>')
    if entry.reference is None:
        texts = _cell("", None if row.prediction is None else html.escape(row.prediction), "the report says nothing")
    else:
        left, right, _ = word_diff(row.reference or "", row.prediction or "")
        texts = _cell("Reference", left if row.reference else None, "not mentioned")
        texts += _cell("Prediction", right if row.prediction else None, "not mentioned")
    shown_on = "" if level is None else level
    return (
        f'<li class="region c{position % len(PALETTE)}" data-r="{position}" data-level="{shown_on}" tabindex="0">'
        f'<h3><span class="badge">{position + 1}</span>{html.escape(row.region)}{"".join(notes)}</h3>'
        f'<div class="pair">{texts}</div></li>'
    )


def _cell(label: str, shown: str | None, otherwise: str) -> str:
    heading = f"<h4>{label}</h4>" if label else ""
    return f"<div>{heading}" + (f"<p>{shown}</p></div>" if shown else f'<p class="nothing">{otherwise}</p></div>')


def _whole_report(entry: Entry) -> str:
    left, right, _ = word_diff(entry.reference or "", entry.prediction)
    if entry.reference is None:
        right = html.escape(entry.prediction)
    texts = "" if entry.reference is None else _cell("Reference", left, "empty")
    texts += _cell("Prediction" if texts else "", right, "empty")
    raw = f"<h4>Untouched output</h4><pre>{html.escape(entry.raw)}</pre>" if entry.raw else ""
    opened = "" if entry.regions else " open"
    return f'<details{opened}><summary>Whole report</summary><div class="pair">{texts}</div>{raw}</details>'


def _viewer(pictures: Pictures, number: Mapping[str, int]) -> str:
    last = len(pictures.axial) - 1
    start = last // 2
    levels = "".join(_pair(drawn, number, level) for level, drawn in enumerate(pictures.axial))
    lines = "".join(
        f'<line class="level-line" data-level="{level}" x1="0" x2="100%" y1="{row:.2%}" y2="{row:.2%}"/>'
        for level, row in enumerate(pictures.level_rows)
    )
    keys = "".join(
        f'<button type="button" class="key c{number[name] % len(PALETTE)}" data-r="{number[name]}">'
        f'<span class="badge">{number[name] + 1}</span>{html.escape(name)}</button>'
        for name in sorted(pictures.best, key=lambda name: number[name])
    )
    doubt = "" if pictures.oriented else '<p class="doubt">Orientation not known: drawn as the file lies.</p>'
    return (
        f'<div class="viewer" data-level="{start}"><div class="heads"><span>Lung window</span>'
        f'<span>Mediastinal window</span></div><div class="levels">{levels}</div>'
        f'<label class="slider"><span>Head</span><input type="range" min="0" max="{last}" value="{start}" '
        'aria-label="Axial level"><span>Feet</span><output></output></label>'
        f'{_pair(pictures.coronal, number, None, lines)}{doubt}<div class="keys">{keys}</div></div>'
    )


def _pair(drawn: Slice, number: Mapping[str, int], level: int | None, extra: str = "") -> str:
    """A slice in both windows; the second picture borrows the outlines of the first."""
    width, height = drawn.size
    box = f"0 0 {width * SUBPIXEL} {height * SUBPIXEL}"
    outlines = "".join(
        f'<g class="outline c{number[name] % len(PALETTE)}" data-r="{number[name]}"><title>{html.escape(name)}</title>'
        f'<path d="{path}"/><text x="{x}" y="{y}">{number[name] + 1}</text></g>'
        for name, (path, (x, y)) in sorted(drawn.outlines.items(), key=lambda item: -len(item[1][0]))  # small on top
    )
    figures = "".join(
        f'<figure><img src="{uri}" width="{width}" height="{height}" loading="lazy" '
        f'alt="{drawn.plane} slice {drawn.index}, {window} window"><svg viewBox="{box}" '
        f'preserveAspectRatio="none">{outlines}{extra}</svg><i class="side">R</i></figure>'
        for window, uri in drawn.images.items()
    )
    where = "" if level is None else f' data-level="{level}"'
    return f'<div class="slice {drawn.plane}"{where}>{figures}</div>'
