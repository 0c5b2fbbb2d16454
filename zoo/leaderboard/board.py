"""The board: published and measured figures as rows, and which rows may stand side by side."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from datamodules.study import DataFault

HOME = Path(__file__).parent
STATUSES = ("reported", "recomputed", "reproduced")
UNKNOWN = "unknown"  # the protocol of a paper that does not say how it scored
NOTHING = {"", "-", "–", "—", "n/a", "N/A"}  # what papers print where there is no figure
_PRINTED = re.compile(r"\s*([-+−]?\d*\.?\d+)\s*%?\s*(?:±\s*(\d*\.?\d+))?\s*[^\d.±]*")
_PAPER_FIELDS = {"id", "short", "title", "venue", "year", "url"}
_OVERRIDES = {"protocol", "protocol_inferred", "protocol_note", "n", "n_inferred", "split", "split_note", "doubts",
              "subset"}  # fmt: skip
_TABLE_FIELDS = _OVERRIDES | {"table", "what", "dataset", "protocol_version", "scale", "columns", "rows"}
_ROW_FIELDS = _OVERRIDES | {"method", "figures", "marks", "note", "group", "method_id", "recompute"}


@dataclass(frozen=True)
class Figure:
    """One figure, in the suite's scale ([0, 1]; CIDEr in its own).

    Attributes:
        value: The figure.
        std: Standard deviation: over studies where measured, what the paper says where printed.
        ci95: 95 % bootstrap interval over studies.
        printed: The figure as its paper prints it.
        digits: Decimals that are known.
        scale: printed figure × scale = `value`.
        printed_digits: Decimals of the printed figure.
    """

    value: float
    std: float | None = None
    ci95: tuple[float, float] | None = None
    printed: str | None = None
    digits: int = 4
    scale: float = 1.0
    printed_digits: int = 4


@dataclass(frozen=True)
class Row:
    """One row of a table: a method's figures under one protocol on one set of studies.

    Attributes:
        id: Unique on the board: `reg2rg/IV/4`, or the submission's name.
        method: The method's name as its source writes it.
        paper: Short name of the paper, or the submission's name.
        table: The paper's number of the table; `None` for a submission.
        subset: What the row is scored on where that is not the whole report: a region, or `label <name>`.
        protocol: A protocol's id, or `unknown`.
        version: The protocol's version; `None` where unknown.
        protocol_inferred: Whether we concluded the protocol and the paper does not state it.
        n: Number of studies; `None` where not known.
        figures: Metric → figure.
        absent: Metric → the entry that says why there is no figure (`reason`, `how_to`).
        doubts: What casts doubt on the figures.
        notes: Remarks: on the row, the split, the protocol.
        marks: The paper's own signs at the row.
        group: The heading under which the paper prints the row, or the variant.
        provenance: Where a measured row comes from.
        method_id: The zoo's own name of the method, where it has it.
        recompute: What the row can be recomputed from: `{"file": …}`.
    """

    id: str
    method: str
    paper: str
    table: str | None
    dataset: str
    split: str
    protocol: str
    version: int | None
    status: str
    phantom: bool = False
    subset: str | None = None
    protocol_inferred: bool = False
    n: int | None = None
    n_inferred: bool = False
    figures: Mapping[str, Figure] = field(default_factory=dict)
    absent: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    marks: str = ""
    group: str = ""
    what: str = ""
    url: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    method_id: str | None = None
    recompute: Mapping[str, str] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """Paper and table (or released file), or the submission's name."""
        if self.table is None:
            return self.paper
        return f"{self.paper}, {self.table}" if "." in self.table else f"{self.paper}, Table {self.table}"

    @property
    def parts(self) -> str:
        """What the row's table is divided by: `by region`, `by label`, or nothing."""
        return "" if self.subset is None else "by label" if self.subset.startswith("label ") else "by region"

    @property
    def identity(self) -> dict[str, Any]:
        """Everything in which two rows must agree to be compared, by name; `None` agrees with anything."""
        return {
            "kind of data": "phantom" if self.phantom else "patients",
            "dataset": self.dataset,
            "split": self.split,
            "part": self.subset or "all",
            "protocol": self.protocol,
            "protocol version": self.version,
            # Figures of unknown making can be compared only where the same people printed them side by side.
            "table": self.source if self.protocol == UNKNOWN else "",
            "number of studies": self.n,
        }

    @property
    def table_key(self) -> tuple[Any, ...]:
        """What decides in which of our tables the row stands; all regions share one, and so do all labels."""
        known = {**self.identity, "part": self.parts, "number of studies": None}
        return tuple(known.values())


def difference(a: Row, b: Row) -> str | None:
    """Why `b` must not be compared with `a`, or `None` where it may."""
    theirs = b.identity
    for name, mine in a.identity.items():
        if mine != theirs[name] and mine is not None and theirs[name] is not None:
            return f"other {name}: {theirs[name] or 'any'}, not {mine or 'any'}"
    return None


def comparable(a: Row, b: Row) -> bool:
    """Whether two rows' figures mean the same on the same studies: dataset, split, protocol, version, phantom, n."""
    return difference(a, b) is None


def tables(rows: Iterable[Row]) -> dict[tuple[Any, ...], list[Row]]:
    """The rows by table: patients before the phantom, then by dataset, split and protocol."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.phantom, row.dataset, row.split, row.protocol == UNKNOWN)):
        found.setdefault(row.table_key, []).append(row)
    return found


def load_board(folders: Sequence[Path] = ()) -> list[Row]:
    """Every row: what papers report, what was measured and ships with the package, what lies in `folders`.

    Args:
        folders: Further ones: each a submission, or holding submissions (`*/submission.json`) or reported tables
            (`*.yaml`).

    Raises:
        DataFault: A file is broken, or a submission does not agree with itself.
    """
    from zoo.leaderboard.submission import rows_of

    rows: list[Row] = []
    for path in sorted((HOME / "reported").glob("*.yaml")):
        rows += reported(path)
    for folder in folders:
        if not folder.is_dir():
            raise DataFault(f"{folder}: there is no such folder; give one that holds submissions")
        for path in sorted(folder.glob("*.yaml")):
            rows += reported(path)
    for folder in submission_folders(folders):
        rows += rows_of(folder)
    return _unique(rows)


def submission_folders(folders: Sequence[Path] = ()) -> list[Path]:
    """Every submission: what ships with the package, and each of `folders`, be it one or a folder of some."""
    found = [*(HOME / "measured").glob("*/submission.json")]
    for folder in folders:
        own = folder / "submission.json"
        found += [own] if own.is_file() else folder.glob("*/submission.json")
    return sorted(dict.fromkeys(path.resolve().parent for path in found))


def _unique(rows: list[Row]) -> list[Row]:
    """Without the repetition of trivial baselines that several submissions bring along.

    Raises:
        DataFault: Two different rows claim to be the same one.
    """
    seen: dict[Any, Row] = {}
    for row in rows:
        values = tuple((key, round(figure.value, 9)) for key, figure in row.figures.items())
        trivial = row.provenance.get("baseline")
        first = seen.setdefault((trivial, row.table_key, row.n, values) if trivial else row.id, row)
        if not trivial and _without_place(first) != _without_place(row):
            raise DataFault(f"{row.id} is there twice with different content; give one of them another name")
    return list(seen.values())


def _without_place(row: Row) -> Row:
    return replace(row, provenance={key: value for key, value in row.provenance.items() if key != "folder"})


def protocol_version(protocol: str) -> int | None:
    """The current version of a protocol; `None` for `unknown`.

    Raises:
        KeyError: There is no such protocol.
    """
    from zoo.metrics.labels import PHANTOM_FINDINGS
    from zoo.metrics.protocols import PROTOCOLS
    from zoo.metrics.run import RECOGNITION

    if protocol == UNKNOWN:
        return None
    beside = {entry["protocol"]: entry["version"] for entry in (RECOGNITION, PHANTOM_FINDINGS)}
    if protocol in beside:
        return int(str(beside[protocol]))
    return PROTOCOLS[protocol].version


def reported(path: Path) -> list[Row]:
    """The rows of a paper's tables.

    Raises:
        DataFault: The file is not as `reported/*.yaml` is written, with the table and the row.
    """
    try:
        content = yaml.load(path.read_text("utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataFault(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or set(content) != {"paper", "tables"}:
        raise DataFault(f"{path}: must hold `paper` and `tables`, nothing else")
    paper = content["paper"]
    _expect(path, "paper", paper, {"id", "short"}, _PAPER_FIELDS)
    rows: list[Row] = []
    for table in content["tables"]:
        _expect(path, f"table {table.get('table')}", table, {"table", "dataset", "columns", "rows"}, _TABLE_FIELDS)
        for number, row in enumerate(table["rows"], 1):
            place = f"table {table['table']}, row {number}"
            _expect(path, place, row, {"method", "figures"}, _ROW_FIELDS)
            try:
                rows.append(_reported_row(paper, table, row, f"{paper['id']}/{table['table']}/{len(rows) + 1}"))
            except (ValueError, KeyError, TypeError) as error:
                raise DataFault(f"{path}, {place} ({row['method']}): {error}") from error
    return rows


def _expect(path: Path, place: str, found: Any, needed: set[str], known: set[str]) -> None:
    if not isinstance(found, dict):
        raise DataFault(f"{path}, {place}: not a mapping")
    if needed - set(found) or set(found) - known:
        lacking, strange = ", ".join(sorted(needed - set(found))), ", ".join(sorted(set(found) - known))
        raise DataFault(
            f"{path}, {place}: {f'lacks {lacking}; ' * bool(lacking)}{f'unknown: {strange}' * bool(strange)}"
        )


def _reported_row(paper: Mapping[str, Any], table: Mapping[str, Any], row: Mapping[str, Any], name: str) -> Row:
    both = {**table, **row}
    protocol = str(both.get("protocol", UNKNOWN))
    try:
        version = protocol_version(protocol)
    except KeyError:
        raise ValueError(f"there is no protocol {protocol!r}") from None
    if len(row["figures"]) != len(table["columns"]):
        raise ValueError(f"{len(row['figures'])} figures under {len(table['columns'])} columns")
    scales = table.get("scale", 1)
    figures = {}
    for column, printed in zip(table["columns"], row["figures"], strict=True):
        figure = printed_figure(printed, scales.get(column, 1) if isinstance(scales, dict) else scales)
        if figure is not None:
            figures[column] = figure
    # A note on the table's protocol says nothing of a row that has its own.
    inferred = bool(both.get("protocol_inferred")) if "protocol" not in row else bool(row.get("protocol_inferred"))
    protocol_note = both.get("protocol_note") if "protocol" not in row else row.get("protocol_note")
    notes = (row.get("note"), both.get("split_note"), protocol_note)
    return Row(
        id=name,
        method=str(row["method"]),
        paper=paper["short"],
        table=str(table["table"]),
        dataset=table["dataset"],
        split=str(both.get("split", "test")),
        protocol=protocol,
        version=version,
        status="reported",
        subset=both.get("subset"),
        protocol_inferred=inferred,
        n=both.get("n"),
        n_inferred=bool(both.get("n_inferred")),
        figures=figures,
        doubts=(*table.get("doubts", ()), *row.get("doubts", ())),
        notes=tuple(note for note in notes if note),
        marks=str(row.get("marks", "")),
        group=str(row.get("group", "")),
        what=table.get("what", ""),
        url=paper.get("url", ""),
        provenance={key: paper[key] for key in ("title", "venue", "year") if key in paper},
        method_id=row.get("method_id"),
        recompute=row.get("recompute", {}),
    )


def printed_figure(printed: str, scale: float) -> Figure | None:
    """A figure as a paper prints it, in the suite's scale; `None` where it prints none.

    Args:
        printed: `46.73`, `38.68±0.16`, `-`; percent signs and signs such as † behind it do not count.
        scale: printed figure × scale = the suite's scale.

    Raises:
        ValueError: It is no figure.
    """
    if not isinstance(printed, str):
        raise ValueError(f"figures are written in quotation marks, as printed: {printed!r}")
    if printed.strip() in NOTHING:
        return None
    match = _PRINTED.fullmatch(printed)
    if match is None:
        raise ValueError(f"{printed!r} is no figure")
    factor = Decimal(str(scale)).normalize()
    bare = Decimal(match[1].replace("−", "-"))
    std = None if match[2] is None else float(Decimal(match[2]) * factor)
    digits, printed_digits = _decimals(bare * factor), _decimals(bare)
    return Figure(float(bare * factor), std, None, printed.strip(), digits, float(scale), printed_digits)


def _decimals(number: Decimal) -> int:
    exponent = number.as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def select(rows: Iterable[Row], **wanted: str | bool | None) -> Iterator[Row]:
    """The rows that agree with all filters.

    They are `dataset`, `protocol` (`id` or `id@version`), `status`, `method` and `phantom`. Text is compared without
    case; `method` may be a part of the name.
    """
    for row in rows:
        own = {
            "dataset": [row.dataset],
            "protocol": [row.protocol, f"{row.protocol}@{row.version}"],
            "status": [row.status],
        }
        if any(
            str(wanted[key]).casefold() not in (value.casefold() for value in values)
            for key, values in own.items()
            if wanted.get(key) is not None
        ):
            continue
        method, phantom = wanted.get("method"), wanted.get("phantom")
        if method is not None and str(method).casefold() not in f"{row.method} {row.method_id or ''}".casefold():
            continue
        if phantom is None or row.phantom == phantom:
            yield row
