"""The board as one page that stands alone: plain tables, and with JavaScript filters, sorting and a reference row."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from itertools import groupby
from string import Template

from zoo.leaderboard.board import STATUSES, UNKNOWN, Figure, Row
from zoo.leaderboard.render import (
    View,
    cell_text,
    figure_text,
    method_text,
    ranges,
    size_text,
    status_text,
    views,
)


def document(rows: Sequence[Row]) -> str:
    """The whole page, HTML."""
    found = views(rows)
    sections, links = [], []
    for number, (_, group) in enumerate(groupby(found, key=lambda view: view.rows[0].table_key)):
        parts = list(group)
        anchor = f"table-{number}"
        sections.append(_section(parts, anchor))
        row = parts[0].rows[0]
        count = len({row.id for view in parts for row in view.rows})
        protocol = "protocol not stated" if row.protocol == UNKNOWN else row.protocol
        label = " · ".join([protocol, *[row.parts] * bool(row.parts), *["phantom"] * row.phantom])
        links.append(f'<a href="#{anchor}"><b>{_text(row.dataset)}</b> {_text(label)} ({count})</a>')
    asset = resources.files("zoo.leaderboard").joinpath
    return Template(asset("page.html").read_text("utf-8")).substitute(
        style=asset("page.css").read_text("utf-8"),
        script=asset("page.js").read_text("utf-8"),
        summary=_text(_summary(rows)),
        contents="".join(links),
        datasets=_options(row.dataset for row in rows),
        protocols=_options(row.protocol for row in rows),
        statuses=_options(status for status in STATUSES if any(row.status == status for row in rows)),
        data=_json({row.id: _facts(row) for row in rows}),
        body="".join(sections),
    )


def _summary(rows: Sequence[Row]) -> str:
    counts = [f"{sum(row.status == status for row in rows)} {status}" for status in STATUSES]
    phantom = sum(row.phantom for row in rows)
    said = f"{len(rows)} rows: {', '.join(counts)}{f'; {phantom} of them on the phantom' if phantom else ''}. "
    return (
        said
        + "A table holds one dataset, split, protocol and version. Choose a method to see what may be compared with it."
    )


def _facts(row: Row) -> dict[str, object]:
    """What the page's script needs of a row."""
    return {
        "identity": row.identity,
        "status": row.status,
        "phantom": row.phantom,
        "name": method_text(row),
        "source": row.source,
    }


def _json(content: object) -> str:
    """JSON that ends no script element and starts no comment."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _options(values: Iterable[str]) -> str:
    return "".join(f'<option value="{_text(value)}">{_text(value)}</option>' for value in dict.fromkeys(values))


def _text(text: object) -> str:
    return html.escape(str(text))


def _section(parts: Sequence[View], anchor: str) -> str:
    row = parts[0].rows[0]
    if row.protocol == UNKNOWN:
        protocol = f"protocol not stated ({_text(row.source)})"
    else:
        protocol = f"protocol <b>{_text(row.protocol)}</b> version {row.version}"
    chips = [f'<span class="chip">{text}</span>' for text in (_text(row.split), protocol)]
    chips += [f'<span class="chip">{row.parts}</span>'] if row.parts else []
    chips += ['<span class="chip phantom">phantom, not patients</span>'] if row.phantom else []
    body = "".join(_part(view, f"{anchor}-{number}") for number, view in enumerate(parts))
    return f'<section id="{anchor}"><header><h2>{_text(row.dataset)}</h2>{"".join(chips)}</header>{body}</section>'


def _part(view: View, anchor: str) -> str:
    ranges_of = {column: _range(view, column) for column in view.columns}
    heads = "".join(
        f'<th class="number" scope="col" data-key="{_text(column)}" aria-sort="none">{_text(name)}</th>'
        for column, name in zip(view.columns, view.headings(), strict=True)
    )
    rows = "".join(_row(view, row, place, ranges_of, anchor) for place, row in enumerate(view.rows))
    title = f"<h3>{_text(view.part[:1].upper() + view.part[1:])}</h3>" if view.part else ""
    fixed = "".join(f'<th scope="col" data-key="{key}" aria-sort="none">{key}</th>' for key in ("method", "status"))
    size = '<th class="number" scope="col" data-key="n" aria-sort="none">n</th>'
    return (
        f'<div class="part">{title}<div class="scroll"><table><thead><tr>{fixed}{size}{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{_notes(view, anchor)}</div>"
    )


def _row(view: View, row: Row, place: int, ranges_of: Mapping[str, tuple[float, float] | None], anchor: str) -> str:
    variant = "".join(f' <span class="variant">· {_text(part)}</span>' for part in (row.subset, row.group) if part)
    variant += f' <span class="variant">{_text(row.marks)}</span>' if row.marks else ""
    source = f'<span title="{_text(row.what)}">{_text(row.source)}</span>'
    cells = "".join(_cell(row, column, ranges_of[column]) for column in view.columns)
    return (
        f'<tr class="{row.status}" data-row="{_text(row.id)}" data-place="{place}"><th scope="row">'
        f'<span class="method">{_text(row.method)}</span>{variant}'
        f'<span class="from">{source}{_reference(view, row, anchor)}</span></th>'
        f'<td><span class="status">{_text(status_text(row))}</span></td>'
        f'<td class="number" data-v="{"" if row.n is None else row.n}"><span>{_text(size_text(row))}</span></td>'
        f"{cells}</tr>"
    )


def _reference(view: View, row: Row, anchor: str) -> str:
    """The link to a row's notes; the script shows their text where the mouse rests."""
    numbers = view.numbers[row.id]
    if not numbers:
        return ""
    kind = ' class="doubtful"' if view.doubts & {*numbers} else ""
    listed = ranges(numbers).strip(" []")
    return (
        f' · <a href="#{anchor}-notes"{kind} data-notes="{" ".join(map(str, numbers))}">'
        f"note{'s' * (len(numbers) > 1)} {listed}</a>"
    )


def _cell(row: Row, column: str, limits: tuple[float, float] | None) -> str:
    head = f'<td class="number" data-key="{_text(column)}" data-v='
    if column not in row.figures:
        absent = cell_text(row, column)
        return f'{head}"">{f"<span class=absent>{_text(absent)}</span>" if absent else ""}</td>'
    figure = row.figures[column]
    shown, _, spread = figure_text(figure, interval=False).partition(" ± ")
    small = f"± {spread}" if spread else f"[{figure.ci95[0]:.3f}, {figure.ci95[1]:.3f}]" if figure.ci95 else ""
    title = f' title="printed {_text(figure.printed)}"' if figure.printed is not None else ""
    return (
        f'{head}"{figure.value!r}"{title}><span>{_text(shown)}</span>'
        f"{f'<small>{_text(small)}</small>' if small else ''}{_bar(figure, limits)}</td>"
    )


def _bar(figure: Figure, limits: tuple[float, float] | None) -> str:
    """The figure as a dot on its column's range, its interval as a line; a spread that would fill it is left out."""
    if limits is None:
        return ""
    low, high = limits

    def place(value: float) -> float:
        return round(4 + 92 * (min(max(value, low), high) - low) / (high - low), 2)

    line = ""
    ends = figure.ci95
    if ends is None and figure.printed is not None and figure.std is not None and 2 * figure.std < high - low:
        ends = figure.value - figure.std, figure.value + figure.std
    if ends:
        kind = "interval" if figure.ci95 else "spread"
        line = (
            f'<i class="{kind}" style="left:{place(ends[0])}%;width:{round(place(ends[1]) - place(ends[0]), 2)}%"></i>'
        )
    return f'<span class="bar" aria-hidden="true">{line}<b style="left:{place(figure.value)}%"></b></span>'


def _range(view: View, column: str) -> tuple[float, float] | None:
    """The lowest and the highest figure of a column, with intervals."""
    figures = [row.figures[column] for row in view.rows if column in row.figures]
    values = [value for figure in figures for value in (figure.value, *(figure.ci95 or ()))]
    return (min(values), max(values)) if values and min(values) < max(values) else None


def _notes(view: View, anchor: str) -> str:
    legend = f'<p class="legend">{_text("; ".join(view.legend()))}</p>' if view.legend() else ""
    if not view.notes:
        return legend
    items = []
    for number, note in enumerate(view.notes, 1):
        kind = " class=doubt" if number in view.doubts else ""
        items.append(f'<li data-number="{number}"{kind}><span>{number}</span><span>{_text(note)}</span></li>')
    counts = (("doubt", len(view.doubts)), ("note", len(view.notes) - len(view.doubts)))
    said = " and ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in counts if count)
    return f'<details id="{anchor}-notes"><summary>{said}</summary><ol>{"".join(items)}</ol></details>{legend}'
