"""The board: printed figures in one scale, tables that refuse to mix, filters, formats, the README's table, plots."""

import csv
import io
import json
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from datamodules.study import DataFault
from zoo.command import UsageError
from zoo.leaderboard.__main__ import main
from zoo.leaderboard.board import (
    Figure,
    Row,
    comparable,
    difference,
    load_board,
    printed_figure,
    reported,
    select,
    tables,
)
from zoo.leaderboard.readme import update_readme
from zoo.leaderboard.render import cell_text, csv_text, label_of, markdown, ranges, show, views
from zoo.metrics.protocols import PROTOCOLS

ROOT = Path(__file__).parents[2]


def row(**changed: Any) -> Row:
    common: dict[str, Any] = {
        "id": "p/1/1",
        "method": "Ours",
        "paper": "Paper",
        "table": "1",
        "dataset": "Toy",
        "split": "test",
    }
    common |= {
        "protocol": "coco",
        "version": 1,
        "status": "reported",
        "n": 10,
        "figures": {"bleu_4": Figure(0.2, printed="20")},
    }
    return Row(**(common | changed))


@pytest.fixture(scope="module")
def board() -> list[Row]:
    return load_board()


# Reading


@pytest.mark.parametrize(
    ("printed", "scale", "value", "std", "digits"),
    [
        ("46.73", 0.01, 0.4673, None, 4),
        ("38.68±0.16", 0.01, 0.3868, 0.0016, 4),
        ("0.4665 ± 0.0029", 1, 0.4665, 0.0029, 4),
        ("0.423", 1, 0.423, None, 3),
        ("0.00", 0.01, 0.0, None, 4),
        ("+9.49", 0.01, 0.0949, None, 4),
        ("−2.1", 1, -2.1, None, 1),
        ("12.5 %", 0.01, 0.125, None, 3),
        ("35.2†", 0.01, 0.352, None, 3),
        ("1517", 1, 1517.0, None, 0),
    ],
)  # fmt: skip
def test_printed_figures_in_the_suites_scale(
    printed: str, scale: float, value: float, std: float | None, digits: int
) -> None:
    figure = printed_figure(printed, scale)
    assert figure is not None
    assert (figure.value, figure.std, figure.digits, figure.printed) == (value, std, digits, printed)


def test_what_is_no_figure() -> None:
    assert [printed_figure(nothing, 0.01) for nothing in ("-", "", "–", " - ")] == [None] * 4
    for wrong in ("4o.5", "1.2.3", "see text", "12 34"):
        with pytest.raises(ValueError, match="is no figure"):
            printed_figure(wrong, 1)
    with pytest.raises(ValueError, match="quotation marks"):
        printed_figure(46.73, 1)  # type: ignore[arg-type]  # YAML makes a number of it, and 46.70 would lose its zero


def paper(folder: Path, **table: Any) -> Path:
    rows = [
        {"method": "A", "figures": ["20.0", "-"]},
        {"method": "B", "figures": ["21.5", "30.0"], "protocol": "unknown", "note": "copied"},
    ]
    common = {
        "table": "1",
        "dataset": "Toy",
        "protocol": "coco",
        "protocol_inferred": True,
        "protocol_note": "by its range",
    }
    common |= {
        "n": 10,
        "n_inferred": True,
        "scale": 0.01,
        "columns": ["bleu_4", "meteor"],
        "doubts": ["one run"],
        "rows": rows,
    }
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump({"paper": {"id": "toy", "short": "Toy et al."}, "tables": [common | table]}))
    return path


def test_a_papers_table_becomes_rows(tmp_path: Path) -> None:
    first, second = reported(paper(tmp_path))
    assert (first.id, first.method, first.source, first.status) == ("toy/1/1", "A", "Toy et al., Table 1", "reported")
    assert (first.protocol, first.version) == ("coco", PROTOCOLS["coco"].version)
    assert (first.n, first.n_inferred, first.protocol_inferred) == (10, True, True)
    assert (list(first.figures), list(second.figures)) == (["bleu_4"], ["bleu_4", "meteor"])
    assert first.doubts == ("one run",)
    assert first.notes == ("by its range",)
    assert (second.protocol, second.version, second.protocol_inferred) == ("unknown", None, False)
    assert second.notes == ("copied",), "what is said of the table's protocol is not said of a row with its own"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"columns": ["bleu_4"]}, r"row 1 \(A\): 2 figures under 1 columns"),
        ({"protocol": "bleu"}, "there is no protocol 'bleu'"),
        ({"scael": 1}, "unknown: scael"),
        ({"rows": [{"method": "A", "figures": ["x", "-"]}]}, r"row 1 \(A\): 'x' is no figure"),
        ({"rows": [{"figures": []}]}, "lacks method"),
    ],
)
def test_faults_of_a_table_are_named_with_their_place(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(DataFault, match=says):
        reported(paper(tmp_path, **change))


def test_the_shipped_board_is_whole(board: list[Row]) -> None:
    papers = {entry.paper for entry in board if entry.status == "reported"}
    assert {"Reg2RG", "RegionFormer", "ASaRG", "Overlay-SFT"} <= papers
    assert len({entry.id for entry in board}) == len(board)
    assert all(entry.table is None or entry.version is not None or entry.protocol == "unknown" for entry in board)
    best = next(
        entry
        for entry in board
        if entry.id.startswith("reg2rg/I/") and entry.dataset.startswith("CTRG") and entry.method_id
    )
    assert best.figures["bleu_1"].value == 0.4963
    assert any("mix two runs" in doubt for doubt in best.doubts)
    assert not any(key.startswith("rules14") for entry in board for key in entry.figures)


# What may stand side by side


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"dataset": "Other"}, "dataset"),
        ({"split": "validation"}, "split"),
        ({"protocol": "r2gen"}, "protocol"),
        ({"version": 2}, "protocol version"),
        ({"phantom": True}, "kind of data"),
        ({"subset": "heart"}, "part"),
        ({"n": 11}, "number of studies"),
        ({"protocol": "unknown", "version": None}, "protocol"),
    ],
)
def test_rows_that_must_not_be_compared(change: dict[str, Any], name: str) -> None:
    a, b = row(), row(id="b", **change)
    assert not comparable(a, b)
    assert not comparable(b, a)
    reason = difference(a, b)
    assert reason is not None
    assert reason.startswith(f"other {name}: ")


def test_rows_that_may_be_compared() -> None:
    assert comparable(row(), row(id="b", paper="Other", table="7", method="Theirs", status="reproduced"))
    assert comparable(row(), row(id="b", n=None)), "an unknown number of studies excludes nobody"
    unknown = row(protocol="unknown", version=None)
    assert comparable(unknown, replace(unknown, id="b")), "as printed in one table"
    assert difference(unknown, replace(unknown, table="2")) == "other table: Paper, Table 2, not Paper, Table 1"


def test_no_table_mixes_what_must_not_be_mixed(board: list[Row]) -> None:
    others = (
        {"dataset": "Other"},
        {"split": "val"},
        {"protocol": "r2gen"},
        {"version": 2},
        {"phantom": True},
        {"subset": "heart"},
    )
    mixed = [row(), *(row(id=str(place), **change) for place, change in enumerate(others))]
    assert [len(group) for group in tables(mixed).values()] == [1] * 7
    for group in tables([*board, *mixed]).values():
        assert len({(entry.dataset, entry.split, entry.protocol, entry.version, entry.phantom) for entry in group}) == 1
        if group[0].protocol == "unknown":
            assert len({entry.source for entry in group}) == 1


# Showing


def shown(rows: list[Row], width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    show(rows, console)
    return console.export_text()


def test_every_figure_of_the_board_is_shown_in_every_format(board: list[Row]) -> None:
    kept = {(entry.id, key): figure for entry in board for key, figure in entry.figures.items()}
    lines = list(csv.DictReader(io.StringIO(csv_text(board))))
    assert {(line["id"], line["metric"]): float(line["value"]) for line in lines if not line["absent"]} == {
        place: figure.value for place, figure in kept.items()
    }
    placed = {
        (entry.id, key) for view in views(board) for entry in view.rows for key in view.columns if key in entry.figures
    }
    assert placed == set(kept)
    assert {entry.id for view in views(board) for entry in view.rows} == {entry.id for entry in board}, "empty rows too"
    text, table = shown(board), markdown(board)
    for entry in board:
        for key in entry.figures:
            assert cell_text(entry, key).split(" ")[0] in text
            assert cell_text(entry, key) in table


def test_signs_and_notes() -> None:
    measured = Figure(0.25, std=0.1, ci95=(0.2, 0.31))
    rows = [
        row(protocol_inferred=True, n_inferred=True, doubts=("mixes two runs",), notes=("as printed",), marks="†"),
        row(id="b", doubts=("mixes two runs",), figures={"bleu_4": Figure(0.3, std=0.01, printed="30±1")}),
        row(id="c", paper="run", table=None, figures={"bleu_4": measured}, absent={"meteor": {"reason": "Java"}}),
    ]
    table = markdown(rows)
    assert "| Ours † [1, 2] |" in table
    assert "| reported° | ≈10 | 0.2000 |" in table
    assert "| 0.3000 ± 0.0100 |" in table
    assert "| 0.2500 [0.200, 0.310] | n/a (Java) |" in table
    assert table.count("mixes two runs") == 1
    assert "≈ number of studies inferred" in table
    assert "° protocol inferred" in table
    assert "never counted as 0" in table
    text = shown(rows)
    assert all(
        part in text for part in ("Ours †", "reported°", "≈10", "n/a (Java)", "[0.200, 0.310]", "[1] mixes two runs")
    )
    assert "≈" not in markdown(rows[1:2])


def test_a_phantom_says_so_and_stands_behind_patients(board: list[Row]) -> None:
    found = views([row(id="x", phantom=True, n=None), row()])
    assert [view.title for view in found] == [
        "Toy · test · protocol coco version 1",
        "Phantom, not patients: Toy · test · protocol coco version 1",
    ]


def test_text_fits_its_width_and_keeps_brackets(board: list[Row]) -> None:
    for width in (80, 140):
        assert max(map(len, shown(board, width).splitlines())) <= width
    assert "method [bold]x" in shown([row(method="method [bold]x")])


def test_markdown_cells_stay_cells() -> None:
    text = markdown([row(method="a|b *c* <script>", notes=("one\ntwo | three",))])
    (line,) = (line for line in text.splitlines() if "script" in line)
    assert r"a\|b \*c\* \<script\>" in line
    assert len(re.findall(r"(?<!\\)\|", line)) == 6


def test_wide_tables_are_divided_by_family() -> None:
    averages = [
        f"{average}_{part}" for average in ("micro", "macro", "weighted") for part in ("precision", "recall", "f1")
    ]
    keys = [*(f"chexbert_14_{key}" for key in averages), *(f"bleu_{n}" for n in range(1, 5)), "surprise"]
    both = row(figures=dict.fromkeys(keys, Figure(0.5)))
    found = {
        view.part: (view.columns, len(view.rows))
        for view in views([both, row(id="b", figures={"bleu_1": Figure(0.1)})])
    }
    assert list(found) == ["text metrics", "CheXbert, 14 classes", "other figures"]
    assert found["text metrics"] == (("bleu_1", "bleu_2", "bleu_3", "bleu_4"), 2)
    assert found["CheXbert, 14 classes"][1] == 1


def test_regions_and_labels_have_tables_of_their_own() -> None:
    parts = [row(), row(id="b", subset="heart"), row(id="c", subset="lung"), row(id="d", subset="label Edema")]
    titles = [(view.title.rpartition(" · ")[2], len(view.rows)) for view in views(parts)]
    assert titles == [("protocol coco version 1", 1), ("by region", 2), ("by label", 1)]


def test_small_words() -> None:
    assert ranges([7, 1, 2, 3, 5]) == " [1–3, 5, 7]"
    assert ranges([1, 2]) == " [1, 2]"
    assert ranges([]) == ""
    assert label_of("bleu_4") == "BLEU-4"
    assert label_of("bleu_4_overall") == "overall BLEU-4"
    assert label_of("bleu_4_delta") == "Δ BLEU-4"
    assert label_of("region_f1") == "region recognition F1"
    assert label_of("never_heard_of_f1") == "never heard of F1"


# The command


def test_filters(board: list[Row]) -> None:
    assert {entry.dataset for entry in select(board, dataset="padchest-gr")} == {"PadChest-GR"}
    assert {entry.protocol for entry in select(board, protocol="asarg")} == {"asarg"}
    assert list(select(board, protocol="asarg@999")) == []
    assert {"Reg2RG", "Reg2RG without LFD"} <= {entry.method for entry in select(board, method="reg2rg")}
    assert list(select([row(), row(phantom=True)], phantom=True)) == [row(phantom=True)]


def test_a_filter_that_finds_nothing_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dataset", "MIMIC-CRX"]) == 2
    said = capsys.readouterr().err
    assert "did you mean 'MIMIC-CXR'?" in said
    assert "PadChest-GR" in said
    assert main(["--dataset", "MIMIC-CXR", "--protocol", "reg2rg"]) == 2
    assert "asarg" in capsys.readouterr().err
    assert main(["--status", "reported", "--phantom"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_command_writes_each_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    starts = {"text": "MIMIC-CXR", "markdown": "### MIMIC-CXR", "csv": "id,method", "html": "<!doctype html>"}
    for form, start in starts.items():
        assert main(["--dataset", "MIMIC-CXR", "--format", form, "--output", f"board.{form}"]) == 0
        text = (tmp_path / f"board.{form}").read_text()
        assert text.lstrip().startswith(start)
        assert "PadChest-GR" not in text
    capsys.readouterr()
    assert main(["--dataset", "MIMIC-CXR", "--format", "markdown"]) == 0
    assert capsys.readouterr().out == (tmp_path / "board.markdown").read_text()


def test_folders_of_the_user_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaderboard").mkdir()
    paper(tmp_path / "leaderboard")
    assert [entry.id for entry in load_board([tmp_path / "leaderboard"]) if entry.dataset == "Toy"] == [
        "toy/1/1",
        "toy/1/2",
    ]
    monkeypatch.chdir(tmp_path)
    assert main(["--dataset", "toy", "--format", "csv", "--output", "toy.csv"]) == 0
    assert len(list(csv.DictReader((tmp_path / "toy.csv").open()))) == 3
    with pytest.raises(DataFault, match="no such folder"):
        load_board([tmp_path / "nowhere"])


def test_a_plot_takes_one_table_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--method", "reg2rg", "--metric", "bleu_1", "--plot", "all.png"]) == 2
    assert "must not stand in one plot" in capsys.readouterr().err
    assert not (tmp_path / "all.png").exists()
    assert main(["--dataset", "CTRG-Chest-548K", "--metric", "bleu_1", "--plot", "one.svg"]) == 0
    assert "<svg" in (tmp_path / "one.svg").read_text()
    assert main(["--dataset", "CTRG-Chest-548K", "--metric", "blue_1", "--plot", "two.svg"]) == 2
    assert "bleu_1" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom zoo.leaderboard.__main__ import main\nmain(['--help'])\n"
        "print([name for name in ('torch', 'numpy', 'rich', 'yaml', 'matplotlib', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


# README


def phantom_rows() -> list[Row]:
    def measured(
        name: str, method: str, protocol: str, figures: dict[str, float], baseline: str = "", **more: Any
    ) -> Row:
        found = {key: Figure(value, ci95=(value - 0.05, value + 0.05)) for key, value in figures.items()}
        made = {"seed": 0} | ({"baseline": baseline} if baseline else {})
        parts = "/".join(part for part in (name, baseline, protocol) if part)
        more |= {"id": parts, "method": method, "paper": name, "table": None, "protocol": protocol, "n": 32}
        return row(status="reproduced", phantom=True, figures=found, provenance=made, **more)

    absent = {"meteor": {"reason": "WordNet"}}
    return [
        measured("run1", "Reg2RG, small", "reg2rg", {"bleu_4": 0.284, "bleu_2": 0.4}, absent=absent),
        measured("run1", "Reg2RG, small", "region_recognition", {"region_f1": 0.994}),
        measured("run1", "Reg2RG, small", "reg2rg", {"bleu_4": 0.9}, subset="heart"),
        measured("run1", "always normal", "reg2rg", {"bleu_4": 0.223}, "always_normal"),
        measured("run2", "Other", "reg2rg", {"bleu_4": 0.1}),
        row(),
    ]


def test_the_readmes_table_is_generated(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("# Before\n<!-- leaderboard:phantom -->\nold\n<!-- /leaderboard -->\nafter\n")
    assert update_readme(path, phantom_rows(), check=True)
    assert "old" in path.read_text()
    assert update_readme(path, phantom_rows())
    text = path.read_text()
    assert text.startswith(
        "# Before\n<!-- leaderboard:phantom -->\n\nPhantom, not patients: Toy as drawn, test split, 32 studies, "
    )
    assert text.endswith("<!-- /leaderboard -->\nafter\n")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == "|  | Reg2RG, small | Other | always normal |"
    assert lines[2:] == [
        "| BLEU-4 | 0.284 [0.234, 0.334] | 0.100 [0.050, 0.150] | 0.223 [0.173, 0.273] |",
        "| METEOR | n/a (WordNet) | – | – |",
        "| region recognition F1 | 0.994 [0.944, 1.044] | – | – |",
    ]
    assert not update_readme(path, phantom_rows())
    assert path.read_text() == text
    path.write_text(text.replace("leaderboard:phantom", "leaderboard:phantom/run2"))  # one submission alone
    assert update_readme(path, phantom_rows())
    assert [line for line in path.read_text().splitlines() if line.startswith("|")][::2] == [
        "|  | Other |",
        "| BLEU-4 | 0.100 [0.050, 0.150] |",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nothing", "needs <!-- leaderboard:NAME -->"),
        ("<!-- leaderboard:phantom -->\n", "needs <!-- leaderboard:NAME -->"),
        ("<!-- leaderboard:x -->\n<!-- /leaderboard -->", "there is no table 'x'"),
    ],
)
def test_marks_that_are_wrong(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        update_readme(path, phantom_rows())
    assert path.read_text() == text


def test_our_readme_has_not_drifted_from_the_data() -> None:
    if "<!-- leaderboard:" not in (ROOT / "README.md").read_text():
        pytest.skip("README.md holds no leaderboard marks")
    assert main(["--readme", str(ROOT / "README.md"), "--check"]) == 0


def test_the_wheel_takes_the_boards_files_along() -> None:
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    endings = {f"*{path.suffix}" for path in (ROOT / "zoo" / "leaderboard").rglob("*") if path.is_file()}
    assert endings - {"*.py", "*.pyc"} <= set(package_data)


# Comparing and drawing


def test_the_command_compares_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three ways to draw a comparison: points with intervals, the runs' dots, bars for each label."""
    keys = ("tp", "fp", "fn")
    labels = next(m.corpus.labels for m in PROTOCOLS["reg2rg"].metrics.values() if m.corpus and m.corpus.labels)
    columns = [f"radbert_ct_18.{column}" for column in _columns_of("radbert_ct_18")]
    assert len(columns) == len(keys) * len(labels)
    for name, hits in (("a", 1), ("b", 0), ("c", 1)):
        lines = [f"# protocol reg2rg version {PROTOCOLS['reg2rg'].version}"]
        lines.append(",".join(["id", "bleu_1", *columns]))
        for study in range(8):
            counts = [hits] * len(labels) + [0] * len(labels) + [1 - hits] * len(labels)
            lines.append(",".join(map(str, [f"s{study}", 0.5 + 0.01 * study * hits, *counts])))
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    a, b, c = (str(tmp_path / f"{name}.csv") for name in "abc")
    for systems, metric, picture in (
        ([a, b], "bleu_1", "points"),
        ([a, b], "radbert_ct_18", "labels"),
        ([f"{a},{c}", b], "bleu_1", "runs"),
    ):
        out, drawn = tmp_path / f"{picture}.json", tmp_path / f"{picture}.svg"
        assert main(["--compare", *systems, "--metrics", metric, "--json", str(out), "--plot", str(drawn)]) == 0
        found = json.loads(out.read_text())["metrics"]["bleu_1"]
        values = [entry["value"] for entry in found.values()]
        assert values[0] == pytest.approx(0.535)
        assert values[1] == pytest.approx(0.5)
        assert "<svg" in drawn.read_text()
    assert main(["--compare", a, b, "--metrics", "bleu_9", "--plot", str(tmp_path / "x.svg")]) == 2
    assert "bleu_9" in capsys.readouterr().err


def _columns_of(name: str) -> tuple[str, ...]:
    found = (
        metric.corpus for metric in PROTOCOLS["reg2rg"].metrics.values() if metric.corpus and metric.corpus.name == name
    )
    return next(found).columns
