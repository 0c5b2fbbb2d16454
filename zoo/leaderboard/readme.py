"""Tables in a README, generated from the submissions: between two marks, so that the rest is the writer's own.

<!-- leaderboard:phantom -->
<!-- /leaderboard -->

`phantom/NAME` shows one submission's table alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from zoo.command import UsageError
from zoo.leaderboard.board import Row
from zoo.leaderboard.render import cell_text, label_of, markdown_cell

_BLOCK = re.compile(r"(<!-- leaderboard:([^\s>]*) -->\n)(.*?)(<!-- /leaderboard -->)", re.DOTALL)
_MARK = re.compile(r"<!-- /?leaderboard\b")
# Of each family the figure that papers compare by.
SHOWN = ("bleu_1", "bleu_4", "rouge_l", "meteor", "cider", "bertscore_f1", "chexbert_14_micro_f1",
         "chexbert_5_micro_f1", "radbert_ct_18_micro_f1", "radgraph_partial", "phantom_findings_micro_f1",
         "region_f1")  # fmt: skip


def update_readme(path: Path, rows: Sequence[Row], check: bool = False) -> bool:
    """Rewrites the blocks between a file's leaderboard marks.

    Args:
        path: The file.
        rows: The board.
        check: Change nothing.

    Returns:
        Whether the file differed from what the data say.

    Raises:
        UsageError: The file has no marks, a mark has no partner, or there is no table of that name.
    """
    from zoo.run_directory import atomic_write

    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not readable ({error})") from error
    blocks = list(_BLOCK.finditer(text))
    if not blocks or len(_MARK.findall(text)) != 2 * len(blocks):
        raise UsageError(
            f"{path}: needs <!-- leaderboard:NAME --> on a line and <!-- /leaderboard --> behind it, "
            f"NAME being {' or '.join(TABLES)}"
        )
    unknown = [block[2] for block in blocks if block[2].partition("/")[0] not in TABLES]
    if unknown:
        raise UsageError(f"{path}: there is no table {unknown[0]!r}; there is {', '.join(TABLES)}")
    new = _BLOCK.sub(lambda block: block[1] + _named(block[2], rows) + block[4], text)
    if new != text and not check:
        atomic_write(path, new)
    return new != text


def _named(name: str, rows: Sequence[Row]) -> str:
    table, _, submission = name.partition("/")
    return TABLES[table]([row for row in rows if not submission or row.paper == submission])


def phantom_table(rows: Sequence[Row]) -> str:
    """Each reproduced phantom run beside its trivial baselines, a column a system, a table for each data and protocol.

    Raises:
        UsageError: There is no such run.
    """
    systems: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.phantom and row.status == "reproduced" and row.table is None and row.subset is None:
            systems.setdefault((row.paper, row.provenance.get("baseline", "")), []).append(row)
    groups: dict[tuple[object, ...], list[list[Row]]] = {}
    for own in systems.values():
        main = own[0]  # of the submission's own protocol: a submission states those first
        groups.setdefault((main.dataset, main.split, main.protocol, main.version, main.n), []).append(own)
    if not groups:
        raise UsageError("there is no reproduced phantom run to show; add one: python -m zoo.leaderboard --add RUN")
    return "\n".join(_table(group) for group in groups.values())


def _table(systems: Sequence[list[Row]]) -> str:
    """One table: metrics as rows, methods before baselines as columns."""
    systems = sorted(systems, key=lambda own: bool(own[0].provenance.get("baseline")))
    main = systems[0][0]
    found = {key for own in systems for row in own for key in (*row.figures, *row.absent)}
    names = [own[0].method for own in systems]
    heads = [
        name if names.count(name) == 1 else f"{name} ({own[0].paper})" for name, own in zip(names, systems, strict=True)
    ]
    lines = [_line(["", *heads]), "|---|" + "---|" * len(heads)]
    for key in [key for key in SHOWN if key in found]:
        lines.append(_line([label_of(key), *(_cell(own, key) for own in systems)]))
    found_seeds = {int(seed) for own in systems if (seed := own[0].provenance.get("seed")) is not None}
    parts = [f"{main.dataset} as drawn", f"{main.split} split", f"{main.n} studies"]
    parts += [f"protocol `{main.protocol}` version {main.version}"]
    parts += [f"seed {', '.join(map(str, sorted(found_seeds)))}"] if found_seeds else []
    caption = f"Phantom, not patients: {', '.join(parts)}. In brackets 95 % bootstrap intervals over studies."
    return f"\n{caption}\n\n" + "\n".join(lines) + "\n\n"


def _cell(own: Sequence[Row], key: str) -> str:
    row = next((row for row in own if key in row.figures), None)
    if row is None:
        return next((cell_text(row, key) for row in own if key in row.absent), "–")
    figure = row.figures[key]
    interval = f" [{figure.ci95[0]:.3f}, {figure.ci95[1]:.3f}]" if figure.ci95 else ""
    return f"{figure.value:.3f}{interval}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(markdown_cell, cells))} |"


TABLES = {"phantom": phantom_table}
