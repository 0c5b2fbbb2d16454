"""Recomputes printed figures from released predictions, and lays the two side by side, cell by cell."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.command import UsageError
from zoo.leaderboard.board import UNKNOWN, Figure, Row
from zoo.leaderboard.render import label_of

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Cell:
    """One printed figure and what the predictions give.

    Attributes:
        row: The row's id.
        method: The row's method, with the region where it is of one.
        source: Paper and table.
        metric: The figure's key.
        printed: As printed.
        recomputed: Scaled and rounded as printed; `None` where it could not be recomputed.
        difference: Recomputed − printed, in the print's own scale and digits; the largest of mean and ±.
        reason: Why it could not be recomputed.
    """

    row: str
    method: str
    source: str
    metric: str
    printed: str
    recomputed: str | None = None
    difference: float | None = None
    reason: str = ""

    @property
    def equal(self) -> bool:
        """Whether the recomputed figure is, as printed, the same."""
        return self.recomputed is not None and not self.difference


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        cells: Every figure of every row whose file was found.
        files: The files that were scored: name → number of studies.
        missing: The files that rows could be recomputed from and that were not found.
        notes: What else differs: numbers of studies.
    """

    cells: tuple[Cell, ...]
    files: Mapping[str, int]
    missing: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def compared(self) -> list[Cell]:
        """The cells that could be recomputed."""
        return [cell for cell in self.cells if cell.recomputed is not None]

    @property
    def all_equal(self) -> bool:
        """Whether something was compared, and all of it is equal."""
        return bool(self.compared) and all(cell.equal for cell in self.compared)

    @property
    def summary(self) -> str:
        """How many of them are equal, in one line."""
        equal, left = sum(cell.equal for cell in self.compared), len(self.cells) - len(self.compared)
        return f"{equal} of {len(self.compared)} cells equal" + (f"; {left} could not be recomputed" if left else "")

    def as_json(self) -> str:
        """Everything as JSON; no text and no path in it."""
        content = asdict(self) | {"summary": self.summary}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def verify(rows: Sequence[Row], paths: Sequence[Path], console: Console | None = None) -> Verification:
    """Recomputes the reported rows whose predictions are among `paths`.

    Args:
        rows: The board.
        paths: Files of predictions, or folders that hold them somewhere below; found by the names that rows state.
        console: Where a progress bar is shown.

    Raises:
        UsageError: A path does not exist, no row's file is among them, or a name is there twice.
        DataFault: A file is broken.
    """
    from rich.progress import track

    able = [row for row in rows if row.recompute.get("file")]
    found = _find({row.recompute["file"] for row in able}, paths)
    if not found:
        names = ", ".join(sorted({row.recompute["file"] for row in able})) or "none"
        raise UsageError(f"nothing to recompute in {', '.join(map(str, paths))}; files that can be: {names}")
    jobs = sorted({(row.recompute["file"], row.protocol) for row in able if row.recompute["file"] in found})
    shown = track(jobs, "Recomputing", console=console, disable=console is None, transient=True)
    results = {job: {} if job[1] == UNKNOWN else _score(found[job[0]], job[1]) for job in shown}
    cells: list[Cell] = []
    notes = []
    for row in able:
        result = results.get((row.recompute["file"], row.protocol))
        if result is None:
            continue
        cells += [_cell(row, key, figure, result) for key, figure in row.figures.items()]
        if result and row.n is not None and not row.n_inferred and row.n != result["n"]:
            notes.append(
                f"{row.source}, {_name(row)}: n is {row.n}, and {row.recompute['file']} has {result['n']} rows"
            )
    files = {name: result["n"] for (name, _), result in results.items() if result}
    missing = tuple(sorted({row.recompute["file"] for row in able} - set(found)))
    return Verification(tuple(cells), files, missing, tuple(notes))


def _find(names: set[str], paths: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path}: there is no such file or folder")
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.name in names and file.is_file():
                if file.name in found and found[file.name].resolve() != file.resolve():
                    raise UsageError(f"{file.name} is there twice, {found[file.name]} and {file}: name the one to take")
                found[file.name] = file
    return found


def _score(file: Path, protocol: str) -> dict[str, Any]:
    from zoo.evaluate import KNOWN_COLUMNS
    from zoo.metrics.engine import evaluate
    from zoo.metrics.predictions import read_predictions

    _, rows = read_predictions(file, (None, None, None), KNOWN_COLUMNS)
    ids, references, predictions = zip(*rows, strict=True)
    return evaluate(references, predictions, ids, protocol, resamples=0)


def _name(row: Row) -> str:
    return " · ".join(part for part in (row.method, row.subset, row.group) if part)


def _cell(row: Row, key: str, figure: Figure, result: Mapping[str, Any]) -> Cell:
    """A printed cell beside the same from a score."""
    printed = figure.printed or ""
    cell = Cell(row.id, _name(row), row.source, key, printed)
    if not result:
        return replace(cell, reason="the protocol is not known")
    base = key.removesuffix("_overall")
    entry = result["metrics"].get(base, {})
    if key in ("amount", "n"):
        value, std = float(result["n"]), None
    else:
        value, std = entry.get("overall" if key != base else "value"), entry.get("std")
    if value is None:
        return replace(cell, reason=_reason(base, result))
    if figure.std is not None and std is None:
        return replace(cell, reason="the protocol has no value for single studies, so no ±")
    ours, difference = _printed_alike(value, figure.value, figure.scale, figure.printed_digits)
    if figure.std is not None and std is not None:
        spread, other = _printed_alike(std, figure.std, figure.scale, len(printed.rpartition(".")[2]))
        ours, difference = f"{ours}±{spread}", max(difference, other, key=abs)
    return replace(cell, recomputed=ours, difference=difference)


def _printed_alike(value: float, printed: float, scale: float, digits: int) -> tuple[str, float]:
    """A value in the print's scale and digits, and its difference to the printed one."""
    factor = round(1 / scale, 9)
    ours = f"{factor * value:.{digits}f}"
    return ours, round(float(ours) - round(factor * printed, digits), digits)


def _reason(key: str, result: Mapping[str, Any]) -> str:
    skipped = result["skipped"].get(key)
    if skipped:
        return skipped["reason"]
    return f"protocol {result['protocol']} has no such metric"


def show(found: Verification, console: Console) -> None:
    """Prints each row's cells, printed above recomputed, what could not be recomputed and why, and the summary."""
    from rich.markup import escape
    from rich.table import Table

    for _, cells in _by_row(found.compared):
        console.print(f"[bold]{escape(cells[0].method)}[/bold] [dim]{escape(cells[0].source)}[/dim]", highlight=False)
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in ("metric", "printed", "recomputed", "difference"):
            table.add_column(name, justify="left" if name == "metric" else "right")
        for cell in cells:
            style = None if cell.equal else "bold red"
            shown = "0" if cell.equal else f"{cell.difference:+g}"
            table.add_row(label_of(cell.metric), cell.printed, cell.recomputed, shown, style=style)
        console.print(table, highlight=False)
    lines = [
        f"not compared: {', '.join(what)} ({count} cells): {reason}" for reason, (what, count) in _left(found).items()
    ]
    lines += [f"not found, so not recomputed: {name}" for name in found.missing]
    for line in [*lines, *found.notes]:
        console.print(escape(line), style="yellow", highlight=False)
    for source in dict.fromkeys(cell.source for cell in found.compared):
        own = [cell for cell in found.compared if cell.source == source]
        console.print(escape(f"{source}: {sum(cell.equal for cell in own)} of {len(own)} cells equal"), highlight=False)
    differing = [cell for cell in found.compared if not cell.equal]
    for cell in differing:
        where = f"{cell.source}, {cell.method}, {label_of(cell.metric)}"
        said = f"differs: {where}: printed {cell.printed}, recomputed {cell.recomputed}"
        console.print(escape(said), style="bold red", highlight=False)
    console.print(found.summary, style="bold green" if not differing else "bold red", highlight=False)


def _by_row(cells: Sequence[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.row, []).append(cell)
    yield from rows.items()


def _left(found: Verification) -> dict[str, tuple[list[str], int]]:
    """Reason → the metrics that could not be recomputed for it, and the number of their cells."""
    left: dict[str, tuple[list[str], int]] = {}
    for cell in found.cells:
        if cell.recomputed is None:
            names, count = left.get(cell.reason, ([], 0))
            left[cell.reason] = (list(dict.fromkeys([*names, label_of(cell.metric)])), count + 1)
    return left
