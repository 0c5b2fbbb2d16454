"""The board as text, Markdown and CSV. Every table holds one dataset, split, protocol and version; none mixes them."""

from __future__ import annotations

import csv
import io
import os.path
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

from zoo.leaderboard.board import UNKNOWN, Figure, Row, tables

if TYPE_CHECKING:
    from rich.console import Console

DIGITS = 4  # at most shown; CSV has all
WIDE = 12  # a table with more metrics is divided into one for each family
SUFFIXES = {"_overall": "of the whole file", "_delta": "gains, as printed"}
FAMILIES = {
    "text metrics": r"bleu_|rouge_|meteor|cider|bertscore_",
    "CheXbert, 14 classes": "chexbert_14_",
    "CheXbert, 5 classes": "chexbert_5_",
    "RadBERT, 18 classes": "radbert_ct_18_",
    "RadGraph": "radgraph_",
}
BESIDE = {"region_": "region recognition ", "phantom_findings_": "phantom findings "}
LEGEND = {
    "≈": "≈ number of studies inferred, not printed",
    "°": "° protocol inferred: the paper does not state it",
    "±": "± as printed: standard deviation, see the notes for of what",
    "[": "[low, high]: 95 % bootstrap interval over studies",
    "n/a": "n/a: not computed, for want of what stands in brackets; never counted as 0",
}


@dataclass(frozen=True)
class View:
    """One table as it is shown.

    Attributes:
        title: Dataset, split, protocol, version.
        part: The family of metrics, where a table was divided.
        rows: Those that have a figure in it, or say why not.
        columns: Metric keys.
        notes: Doubts and notes in the order of their numbers.
        doubts: The numbers of those that cast doubt on figures.
        numbers: Row id → the numbers of its notes.
    """

    title: str
    part: str
    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    notes: tuple[str, ...] = ()
    doubts: frozenset[int] = frozenset()
    numbers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def headings(self) -> list[str]:
        """The columns' names, without what the part says already."""
        labels = [label_of(column) for column in self.columns]
        beside = all(column.startswith(tuple(BESIDE)) for column in self.columns)  # the protocol's name says it
        if len(labels) > 1 and (beside or self.part in (*SUFFIXES.values(), *FAMILIES)):
            shared = os.path.commonprefix(labels)
            labels = [label.removeprefix(shared[: shared.rfind(" ") + 1]) for label in labels]
        return labels

    def legend(self) -> list[str]:
        """What the signs in it mean."""
        shown = " ".join(
            [*(size_text(row) + status_text(row) for row in self.rows)]
            + [cell_text(row, column) for row in self.rows for column in self.columns]
        )
        return [meaning for sign, meaning in LEGEND.items() if sign in shown]


def views(rows: Iterable[Row]) -> list[View]:
    """The rows as tables, the wide ones divided by families of metrics."""
    result = []
    for group in tables(rows).values():
        columns = _ordered(group)
        parts: dict[str, list[str]] = {}
        plain = [column for column in columns if not column.endswith(tuple(SUFFIXES))]
        for column in columns:
            suffix = next((what for ending, what in SUFFIXES.items() if column.endswith(ending)), "")
            parts.setdefault(suffix or (_family(column) if len(plain) > WIDE else ""), []).append(column)
        have = {part for part, chosen in parts.items() if any({*row.figures} & {*chosen} for row in group)}
        lost = {part: chosen for part, chosen in parts.items() if have and part not in have}
        for place, (part, chosen) in enumerate([pair for pair in parts.items() if pair[0] not in lost] or [("", [])]):
            shown = [row for row in group if {*row.figures, *row.absent} & {*chosen} or (not place and _is_empty(row))]
            result.append(_view(title_of(group[0]), part, shown, chosen, {} if place else lost))
    return result


def _is_empty(row: Row) -> bool:
    """Whether the paper prints the row without any figure."""
    return not row.figures and not row.absent


def _view(
    title: str, part: str, rows: Sequence[Row], columns: Sequence[str], lost: Mapping[str, Sequence[str]]
) -> View:
    """One table; `lost` are the families of which no row has a figure, which its notes mention."""
    places: dict[str, int] = {}
    numbers, doubts = {}, set()
    for row in rows:
        absences = sorted({_absence_note(row.absent[column]) for column in columns if column in row.absent})
        for family, keys in lost.items():
            absences += sorted({f"{family}: {_absence_note(row.absent[key])}" for key in keys if key in row.absent})
        said = [" ".join(note.split()) for note in (*row.doubts, *row.notes, *absences)]
        numbers[row.id] = tuple(places.setdefault(note, len(places) + 1) for note in said)
        doubts |= set(numbers[row.id][: len(row.doubts)])
    return View(title, part, tuple(rows), tuple(columns), tuple(places), frozenset(doubts), numbers)


def _absence_note(entry: Mapping[str, Any]) -> str:
    known = {
        "weights": "n/a (weights): the classifier's or encoder's weights were not at hand",
        "WordNet": "n/a (WordNet): NLTK's METEOR needs WordNet 3.0, which was not at hand",
        "Java": "n/a (Java): METEOR 1.5 needs a Java, which was not at hand",
    }
    return known.get(entry["reason"], "n/a: the metric could not be computed")


def title_of(row: Row) -> str:
    """Dataset, split, protocol and version: what a row's table holds."""
    protocol = (
        f"protocol not stated ({row.source})"
        if row.protocol == UNKNOWN
        else f"protocol {row.protocol} version {row.version}"
    )
    parts = [row.dataset, row.split, protocol, *([row.parts] if row.parts else [])]
    return ("Phantom, not patients: " if row.phantom else "") + " · ".join(parts)


def _family(column: str) -> str:
    return next((name for name, pattern in FAMILIES.items() if re.match(pattern, column)), "other figures")


def _ordered(rows: Iterable[Row]) -> list[str]:
    """The rows' metrics in the protocol's order, then those that it does not know."""
    found = dict.fromkeys(column for row in rows for column in (*row.figures, *row.absent))
    order = list(_labels())
    base = {column: re.sub(f"({'|'.join(SUFFIXES)})$", "", column) for column in found}
    return sorted(found, key=lambda column: order.index(base[column]) if base[column] in order else len(order))


@cache
def _labels() -> dict[str, str]:
    from zoo.metrics.protocols import PROTOCOLS

    return {key: metric.label for protocol in PROTOCOLS.values() for key, metric in protocol.metrics.items()}


def label_of(column: str) -> str:
    """A metric's name for people."""
    for ending, prefix in (("_delta", "Δ "), ("_overall", "overall ")):
        if column.endswith(ending):
            return prefix + label_of(column.removesuffix(ending))
    for start, name in BESIDE.items():
        if column.startswith(start):
            return name + column.removeprefix(start).replace("_", "-").replace("f1", "F1")
    return _labels().get(column) or column.replace("_", " ").replace("f1", "F1")


def figure_text(figure: Figure, interval: bool = True) -> str:
    """`0.4673`, `0.3868 ± 0.0016`, `0.549 [0.512, 0.586]`."""
    digits = min(figure.digits, DIGITS)
    text = f"{figure.value:.{digits}f}"
    if figure.printed is not None:
        return text if figure.std is None else f"{text} ± {figure.std:.{digits}f}"
    return f"{text} [{figure.ci95[0]:.3f}, {figure.ci95[1]:.3f}]" if figure.ci95 and interval else text


def cell_text(row: Row, column: str) -> str:
    """A figure, why there is none, or nothing."""
    if column in row.figures:
        return figure_text(row.figures[column])
    if column not in row.absent:
        return ""
    reason = row.absent[column]["reason"]
    return f"n/a ({reason})" if reason not in ("other", "failed") else "n/a"


def size_text(row: Row) -> str:
    """The number of studies."""
    return "?" if row.n is None else f"{'≈' if row.n_inferred else ''}{row.n}"


def status_text(row: Row) -> str:
    """Reported, recomputed or reproduced, with the sign of an inferred protocol."""
    return row.status + ("°" if row.protocol_inferred else "")


def method_text(row: Row) -> str:
    """The method's name with what tells its rows apart."""
    parts = [row.method, *(part for part in (row.subset, row.group) if part)]
    return " · ".join(parts) + (f" {row.marks}" if row.marks else "")


def show(rows: Iterable[Row], console: Console) -> None:
    """Prints the board on a console, in as many blocks of columns as its width asks for."""
    from rich.padding import Padding

    for view in views(rows):
        console.print(
            f"[bold]{_plain(view.title)}[/bold]{_plain(f' · {view.part}' if view.part else '')}", highlight=False
        )
        first = min(34, max(len(_head(view, row, view.rows[:1])) for row in view.rows))
        for columns in _blocks(view, console.width - first - 4):
            for _, group in groupby(view.rows, key=_section_of):
                _print_section(view, list(group), columns, first, console)
        console.print()
        for number, note in enumerate(view.notes, 1):
            console.print(Padding(f"{_plain(f'[{number}]')} {_plain(note)}", (0, 0, 0, 1)), highlight=False)
        if view.legend():
            console.print(f" [dim]{_plain('; '.join(view.legend()))}[/dim]", highlight=False)
        console.print()


def _section_of(row: Row) -> tuple[str, ...]:
    """What stands under one line: a printed table, or all that was measured in one way."""
    return (row.source, row.what) if row.table is not None else (row.status,)


def _print_section(view: View, rows: list[Row], columns: Sequence[str], first: int, console: Console) -> None:
    """The rows of one printed table, or of submissions, under a line that says what holds for all of them."""
    from rich import box
    from rich.table import Table

    first_block = columns[:1] == list(view.columns[:1])
    shown = [
        row for row in rows if any(cell_text(row, column) for column in columns) or (first_block and _is_empty(row))
    ]
    if not shown:
        return
    sources = list(dict.fromkeys(row.source for row in rows))
    source = sources[0] if len(sources) == 1 else f"{len(sources)} submissions"
    said = [source + (f": {rows[0].what}" if rows[0].what else ""), *_uniform(rows)]
    console.print(f"\n [italic]{_plain('; '.join(said) + ranges(_shared(view, rows)))}[/italic]", highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("", width=first, overflow="fold")
    names, widths = dict(zip(view.columns, view.headings(), strict=True)), _widths(view)
    for column in columns:
        table.add_column(names[column], justify="right", overflow="fold", width=widths[column])
    for row in shown:
        cells = [cell_text(row, column).replace(" [", "\n[") for column in columns]
        table.add_row(_plain(_head(view, row, rows)), *map(_plain, cells))
    console.print(table, highlight=False)


def _uniform(rows: Sequence[Row]) -> list[str]:
    """Status and number of studies, as far as they are the same in all the rows."""
    statuses, sizes = {status_text(row) for row in rows}, {size_text(row) for row in rows}
    return [*(statuses if len(statuses) == 1 else ()), *(f"n {size}" for size in sizes if len(sizes) == 1)]


def _shared(view: View, rows: Sequence[Row]) -> set[int]:
    return set.intersection(*(set(view.numbers[row.id]) for row in rows))


def _head(view: View, row: Row, rows: Sequence[Row]) -> str:
    """A row's name with all that does not hold for its whole section."""
    own = [status_text(row), f"n {size_text(row)}"]
    differing = [text for text in own if text not in _uniform(rows)]
    numbers = set(view.numbers[row.id]) - _shared(view, rows) if len(rows) > 1 else set()
    return ", ".join([method_text(row), *differing]) + ranges(numbers)


def ranges(numbers: Iterable[int]) -> str:
    """The numbers of notes: ` [1–3, 5]`."""
    parts = []
    for _, group in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}{', ' if len(run) == 2 else '–'}{run[-1]}")
    return f" [{', '.join(parts)}]" if parts else ""


def _widths(view: View) -> dict[str, int]:
    found = {}
    for column, name in zip(view.columns, view.headings(), strict=True):
        texts = [part for row in view.rows for part in cell_text(row, column).replace(" [", "\n[").split("\n")]
        found[column] = max(map(len, [*texts, *name.split()]))
    return found


def _blocks(view: View, width: int) -> Iterator[Sequence[str]]:
    """Columns in blocks that fit beside the methods' names."""
    block: list[str] = []
    used = 0
    for column, needed in _widths(view).items():
        if block and used + needed + 3 > width:
            yield block
            block, used = [], 0
        block.append(column)
        used += needed + 3
    yield block


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def markdown(rows: Iterable[Row]) -> str:
    """The board as Markdown."""
    lines: list[str] = []
    for view in views(rows):
        lines += [f"### {markdown_cell(view.title)}{f' · {view.part}' if view.part else ''}", ""]
        heads = ["method", "from", "status", "n", *view.headings()]
        lines += [_line(heads), "|---|---|---|---|" + "---:|" * len(view.columns)]
        for row in view.rows:
            cells = [cell_text(row, column) for column in view.columns]
            method = method_text(row) + ranges(view.numbers[row.id])
            lines.append(_line([method, row.source, status_text(row), size_text(row), *cells]))
        lines += ["", *(f"- [{number}] {markdown_cell(note)}" for number, note in enumerate(view.notes, 1))]
        lines += [f"- {meaning}" for meaning in view.legend()] + [""]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(markdown_cell, cells))} |"


def markdown_cell(text: str) -> str:
    """Text that stays text in a Markdown table."""
    return re.sub(r"([|\\*_<>`])", r"\\\1", " ".join(text.split()))


CSV_COLUMNS = ("id", "method", "method_id", "group", "subset", "paper", "table", "dataset", "split", "phantom",
               "protocol", "version", "protocol_inferred", "status", "n", "n_inferred", "metric", "value", "ci95_low",
               "ci95_high", "std", "printed", "absent", "marks", "notes", "doubts")  # fmt: skip


def csv_text(rows: Iterable[Row]) -> str:
    """The board in long form: one figure, or one absent figure, a line, and everything that is known of it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        common = {key: getattr(row, key, None) for key in CSV_COLUMNS}
        common |= {"notes": " | ".join(row.notes), "doubts": " | ".join(row.doubts), "absent": ""}
        for key, figure in row.figures.items():
            low, high = figure.ci95 or (None, None)
            own = {"value": repr(figure.value), "ci95_low": low, "ci95_high": high, "std": figure.std}
            writer.writerow({**common, "metric": key, **own, "printed": figure.printed})
        for key, entry in row.absent.items():
            writer.writerow({**common, "metric": key, "absent": entry["reason"]})
    return text.getvalue()
