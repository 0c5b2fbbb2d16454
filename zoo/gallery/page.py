"""One study as HTML: pictures with outlines on one side, what is said about it, or each region, on the other."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from string import Template

from datamodules.study import Study
from zoo.gallery.radiograph import Layer, Radiograph
from zoo.gallery.slices import SUBPIXEL, Pictures, Slice
from zoo.gallery.text_diff import word_diff

# Ten colours that stay apart (CIE76 distance of 18 or more) also for protanopes, deuteranopes and tritanopes, and show
# on a dark image. Beyond ten they repeat; numbers tell regions apart everywhere.
PALETTE = (
    "#ffebb1", "#4e8962", "#ff9db1", "#c4ff00", "#ff3b00", "#4effff", "#eb14b1", "#00c44e", "#7662ff", "#89b1ff",
)  # fmt: skip

Drawn = Pictures | Radiograph

CROWD = 8  # of more outlines on a radiograph, those alone show that are pointed at: CXAS has 159


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


def study_section(entry: Entry, pictures: Drawn | None, regions: Sequence[str], anchor: str) -> str:
    """A study's page.

    Args:
        entry: What is said.
        pictures: What is drawn; `None` where the study has no pixels.
        regions: Every region's name in the order of colours and numbers; other names that are outlined follow.
        anchor: The section's id.
    """
    outlined = () if pictures is None else pictures.outlined
    number = {name: i for i, name in enumerate(dict.fromkeys([*regions, *outlined]))}
    chips = _score_chips(entry.scores) + _finding_chips(entry.findings)
    return (
        f'<section class="study" id="{anchor}" tabindex="-1"><header><h2>{html.escape(entry.study.id)}</h2>'
        f'<div class="chips">{chips}</div></header><div class="columns">'
        f"{_viewer(pictures, number, anchor)}"
        f'<div class="text">{_legend(entry)}{_said(entry, pictures, number)}</div></div></section>'
    )


def facts(entries: Sequence[Entry]) -> tuple[str, ...]:
    """The columns of the index, beside the scores, that say something of these entries."""
    applies = {
        "boxes": any(entry.study.boxes is not None for entry in entries),
        "regions said": any(entry.regions for entry in entries),
        "findings": any(entry.findings is not None for entry in entries),
    }
    return tuple(name for name, there in applies.items() if there)


def index_row(entry: Entry, pictures: Drawn | None, anchor: str, facts: Sequence[str], columns: Sequence[str]) -> str:
    """A study's row of the index, with a cell for each of the `facts` and of the score `columns`."""
    thumbnail = f'<img src="{pictures.thumbnail}" alt="" loading="lazy">' if pictures else ""
    cells = [f'<td class="thumb"><a href="#{anchor}" tabindex="-1">{thumbnail}</a></td>']
    cells.append(f'<th scope="row"><a href="#{anchor}">{html.escape(entry.study.id)}</a></th>')
    of = {"boxes": _boxes_cell, "regions said": _regions_cell, "findings": _findings_cell}
    cells += [of[fact](entry) for fact in facts]
    for column in columns:
        score = entry.scores.get(column)
        cells.append(_number(score, "–" if score is None else figure(score)))
    return f"<tr>{''.join(cells)}</tr>"


def figure(value: float) -> str:
    """A figure as shown in tables."""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _boxes_cell(entry: Entry) -> str:
    boxes = entry.study.boxes or {}
    names = ", ".join(f"{name} ×{len(of)}" if len(of) > 1 else name for name, of in boxes.items() if of)
    return f'<td class="names">{html.escape(names) or "–"}</td>'


def _regions_cell(entry: Entry) -> str:
    said = sum(row.prediction is not None for row in entry.regions)
    return _number(said, f"{said} of {len(entry.regions)}") if entry.regions else _number(None, "–")


def _findings_cell(entry: Entry) -> str:
    if entry.findings is None:
        return _number(None, "–")
    agree, missed, invented = _compare(entry.findings)
    shown = f'<span class="ok">✓{len(agree)}</span> <span class="miss">−{len(missed)}</span> '
    shown += f'<span class="invent">+{len(invented)}</span>'
    return _number(len(agree) - len(missed) - len(invented), shown)


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


def _said(entry: Entry, pictures: Drawn | None, number: Mapping[str, int]) -> str:
    """Region by region where the method grounds its words; what is said of a radiograph as a whole beside its boxes."""
    if entry.regions:
        rows = "".join(_region_row(row, entry, pictures, number) for row in entry.regions)
        return f'<ol class="regions">{rows}</ol>{_whole_report(entry)}'
    if isinstance(pictures, Radiograph):
        return _statement(entry, pictures, number)
    return _whole_report(entry)


def _region_row(row: RegionRow, entry: Entry, pictures: Drawn | None, number: Mapping[str, int]) -> str:
    position = number[row.region]
    level = pictures.best.get(row.region) if isinstance(pictures, Pictures) else None
    notes = []
    if row.named is not None and row.named != row.region:
        notes.append(f'<span class="chip miss">named “{html.escape(row.named)}”</span>')
    if pictures and row.region not in pictures.outlined:
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


def _statement(entry: Entry, drawn: Radiograph, number: Mapping[str, int]) -> str:
    """What is said of a radiograph, headed by what its boxes are of and by findings without a box."""
    heads = [
        f'<span class="name c{number[name] % len(PALETTE)}" data-r="{number[name]}">{_badge(name, number)}</span>'
        for name in drawn.boxed
    ]
    known = entry.study.findings
    plain = ["negative"] if known == () else [name for name in known or () if name not in drawn.boxed]
    plain += ["no box"] if entry.study.boxes is not None and not drawn.boxed else []
    heads += [f'<span class="chip">{html.escape(name)}</span>' for name in plain]
    whose = 'class="region"'
    if len(drawn.boxed) == 1:  # all that is said is about it
        only = number[drawn.boxed[0]]
        whose = f'class="region c{only % len(PALETTE)}" data-r="{only}" tabindex="0"'
    body = f'<div class="pair">{_texts(entry)}</div>'
    if entry.raw.strip() != entry.prediction.strip():
        body += _raw(entry)
    return f'<ol class="regions"><li {whose}><h3>{"".join(heads)}</h3>{body}</li></ol>'


def _whole_report(entry: Entry) -> str:
    opened = "" if entry.regions else " open"
    body = f'<div class="pair">{_texts(entry)}</div>{_raw(entry)}'
    return f"<details{opened}><summary>Whole report</summary>{body}</details>"


def _texts(entry: Entry) -> str:
    """The whole report, beside its reference where there is one."""
    if entry.reference is None:
        return _cell("", html.escape(entry.prediction), "empty")
    left, right, _ = word_diff(entry.reference, entry.prediction)
    return _cell("Reference", left, "empty") + _cell("Prediction", right, "empty")


def _raw(entry: Entry) -> str:
    return f"<h4>Untouched output</h4><pre>{html.escape(entry.raw)}</pre>" if entry.raw else ""


def _viewer(pictures: Drawn | None, number: Mapping[str, int], anchor: str) -> str:
    if pictures is None:
        return ""
    return _radiograph(pictures, number, anchor) if isinstance(pictures, Radiograph) else _slices(pictures, number)


def _radiograph(drawn: Radiograph, number: Mapping[str, int], anchor: str) -> str:
    """The image under its heatmaps and outlines, and what switches a heatmap on."""
    width, height = drawn.size
    heat = "".join(_heat(layer, drawn.size, i) for i, layer in enumerate(drawn.layers))
    choices = "".join(
        f'<label><input type="radio" name="{anchor}-heat" value="{value}"{" checked" * (value == "")}>'
        f"{html.escape(name)}</label>"
        for value, name in [("", "none"), *((str(i), layer.name) for i, layer in enumerate(drawn.layers))]
    )
    switch = f'<fieldset class="heats"><legend>Heatmap</legend>{choices}</fieldset>' if drawn.layers else ""
    outlines = _outlines(drawn.outlines, number)
    view = f'viewBox="{_view_box(drawn.size)}" style="--label:{0.03 * SUBPIXEL * max(drawn.size):.0f}px"'
    crowded = " crowded" if len(drawn.outlines) > CROWD else ""
    return (
        f'<div class="viewer radiograph{crowded}"><figure style="--ratio:{width / height:.4f}">'
        f'<img src="{drawn.image}" width="{width}" height="{height}" loading="lazy" alt="radiograph">'
        f'<svg {view} preserveAspectRatio="none">{heat}{outlines}</svg></figure>{switch}'
        f"{''.join(_scale(layer, i) for i, layer in enumerate(drawn.layers))}{_keys(drawn, number)}</div>"
    )


def _heat(layer: Layer, size: tuple[int, int], position: int) -> str:
    """A grid stretched over its frame, each cell a rectangle: the method saw no finer."""
    width, height = (side * SUBPIXEL for side in size)
    x0, y0, x1, y1 = layer.frame
    return (
        f'<image class="heat" data-heat="{position}" href="{layer.uri}" preserveAspectRatio="none" '
        f'x="{x0 * width:.1f}" y="{y0 * height:.1f}" width="{(x1 - x0) * width:.1f}" '
        f'height="{(y1 - y0) * height:.1f}"/>'
    )


def _scale(layer: Layer, position: int) -> str:
    """A heatmap's title, colour bar and note."""
    ticks = "".join(f'<span style="left:{place:.1%}">{text}</span>' for text, place in layer.ticks.items())
    note = f"<p>{html.escape(layer.note)}</p>" if layer.note else ""
    return (
        f'<div class="scale" data-heat="{position}"><h4>{html.escape(layer.title)}</h4>'
        f'<div class="bar" style="background-image:linear-gradient(90deg,{",".join(layer.bar)})"></div>'
        f'<div class="ticks">{ticks}</div>{note}</div>'
    )


def _slices(pictures: Pictures, number: Mapping[str, int]) -> str:
    last = len(pictures.axial) - 1
    start = last // 2
    levels = "".join(_pair(drawn, number, level) for level, drawn in enumerate(pictures.axial))
    lines = "".join(
        f'<line class="level-line" data-level="{level}" x1="0" x2="100%" y1="{row:.2%}" y2="{row:.2%}"/>'
        for level, row in enumerate(pictures.level_rows)
    )
    doubt = "" if pictures.oriented else '<p class="doubt">Orientation not known: drawn as the file lies.</p>'
    return (
        f'<div class="viewer" data-level="{start}"><div class="heads"><span>Lung window</span>'
        f'<span>Mediastinal window</span></div><div class="levels">{levels}</div>'
        f'<label class="slider"><span>Head</span><input type="range" min="0" max="{last}" value="{start}" '
        'aria-label="Axial level"><span>Feet</span><output></output></label>'
        f"{_pair(pictures.coronal, number, None, lines)}{doubt}{_keys(pictures, number)}</div>"
    )


def _pair(drawn: Slice, number: Mapping[str, int], level: int | None, extra: str = "") -> str:
    """A slice in both windows; the second picture borrows the outlines of the first."""
    width, height = drawn.size
    small_on_top = dict(sorted(drawn.outlines.items(), key=lambda item: -len(item[1][0])))
    outlines = _outlines(small_on_top, number)
    figures = "".join(
        f'<figure><img src="{uri}" width="{width}" height="{height}" loading="lazy" '
        f'alt="{drawn.plane} slice {drawn.index}, {window} window"><svg viewBox="{_view_box(drawn.size)}" '
        f'preserveAspectRatio="none">{outlines}{extra}</svg><i class="side">R</i></figure>'
        for window, uri in drawn.images.items()
    )
    where = "" if level is None else f' data-level="{level}"'
    return f'<div class="slice {drawn.plane}"{where}>{figures}</div>'


def _outlines(outlines: Mapping[str, tuple[str, tuple[int, int]]], number: Mapping[str, int]) -> str:
    return "".join(
        f'<g class="outline c{number[name] % len(PALETTE)}" data-r="{number[name]}"><title>{html.escape(name)}</title>'
        f'<path d="{path}"/><text x="{x}" y="{y}">{number[name] + 1}</text></g>'
        for name, (path, (x, y)) in outlines.items()
    )


def _keys(pictures: Drawn, number: Mapping[str, int]) -> str:
    """A button for each name that is outlined."""
    keys = "".join(
        f'<button type="button" class="key c{number[name] % len(PALETTE)}" data-r="{number[name]}">'
        f"{_badge(name, number)}</button>"
        for name in sorted(pictures.outlined, key=lambda name: number[name])
    )
    return f'<div class="keys">{keys}</div>'


def _badge(name: str, number: Mapping[str, int]) -> str:
    return f'<span class="badge">{number[name] + 1}</span>{html.escape(name)}'


def _view_box(size: tuple[int, int]) -> str:
    return f"0 0 {size[0] * SUBPIXEL} {size[1] * SUBPIXEL}"
