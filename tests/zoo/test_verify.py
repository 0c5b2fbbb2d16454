"""`--verify`: printed cells beside recomputed ones, on a small table with one wrong cell and on the released files."""

import csv
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from zoo.command import UsageError
from zoo.leaderboard.__main__ import main
from zoo.leaderboard.board import Row, load_board, reported
from zoo.leaderboard.verify import verify

PAIRS = {  # id → reference, prediction: four words each
    "a": ("the heart is large", "the heart is large"),
    "b": ("the heart is large", "the lung is clear"),
}
# BLEU-1 with add-one smoothing by hand: (4+1)/(4+1) = 1 and (2+1)/(4+1) = 0.6, so 0.8 ± 0.2; one corpus: (6+1)/(8+1).
# ROUGE-1 F1: 1 and 2·2/(4+4) = 0.5, so 0.75 ± 0.25.
PRINTED = {"bleu_1": "80.00±20.0", "bleu_1_overall": "77.78", "rouge_1": "75.00", "amount": "2"}


def predictions(path: Path) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["AccNum", "GT_combined_report", "Pred_combined_report"])
        writer.writerows((study, *pair) for study, pair in PAIRS.items())
    return path


def board(folder: Path, printed: dict[str, str], n: int = 2, **row: object) -> list[Row]:
    """A paper's table of one row that can be recomputed, and one that cannot."""
    columns = list(printed)
    rows = [
        {"method": "Ours", "figures": list(printed.values()), "recompute": {"file": "ours.csv"}, **row},
        {"method": "Lost", "figures": ["1"] * len(columns), "recompute": {"file": "lost.csv"}},
        {"method": "Theirs", "figures": ["1"] * len(columns)},
    ]
    scale = {column: 1 if column == "amount" else 0.01 for column in columns}
    table = {"table": "1", "dataset": "Toy", "protocol": "reg2rg", "n": n, "scale": scale, "columns": columns}
    content = {"paper": {"id": "toy", "short": "Toy et al."}, "tables": [table | {"rows": rows}]}
    folder.mkdir(exist_ok=True)
    (folder / "toy.yaml").write_text(yaml.safe_dump(content))
    return reported(folder / "toy.yaml")


def test_equal_cells_are_equal_as_printed(tmp_path: Path) -> None:
    file = predictions(tmp_path / "ours.csv")
    found = verify(board(tmp_path / "data", PRINTED), [file])
    assert {cell.metric: cell.recomputed for cell in found.cells} == PRINTED
    assert all(cell.difference == 0 for cell in found.cells)
    assert found.summary == "4 of 4 cells equal"
    assert (found.files, found.missing, found.notes) == ({"ours.csv": 2}, ("lost.csv",), ())


@pytest.mark.parametrize(
    ("metric", "wrong", "difference"),
    [
        ("bleu_1", "80.01±20.0", -0.01),
        ("bleu_1", "80.00±19.9", 0.1),
        ("bleu_1_overall", "77.77", 0.01),
        ("amount", "3", -1),
    ],
)
def test_a_wrong_cell_is_found_and_by_how_much(tmp_path: Path, metric: str, wrong: str, difference: float) -> None:
    found = verify(board(tmp_path / "data", PRINTED | {metric: wrong}), [predictions(tmp_path / "ours.csv")])
    (cell,) = (cell for cell in found.cells if not cell.equal)
    assert (cell.metric, cell.printed, cell.recomputed) == (metric, wrong, PRINTED[metric])
    assert cell.difference == pytest.approx(difference, abs=1e-9)
    assert found.summary == "3 of 4 cells equal"
    assert not found.all_equal


def test_what_cannot_be_recomputed_says_why_and_counts_for_nothing(tmp_path: Path) -> None:
    printed = {"bleu_1": "80.00", "radbert_ct_18_micro_f1": "25.3", "radgraph_complete": "10.0"}
    found = verify(board(tmp_path / "data", printed), [predictions(tmp_path / "ours.csv")])
    reasons = {cell.metric: cell.reason for cell in found.cells if not cell.equal}
    assert reasons["radgraph_complete"] == "protocol reg2rg has no such metric"
    assert "RadBertClassifier.pth" in reasons["radbert_ct_18_micro_f1"]
    assert found.summary == "1 of 1 cells equal; 2 could not be recomputed"
    nothing = verify(board(tmp_path / "data", {"radgraph_complete": "10.0"}), [tmp_path])
    assert not nothing.all_equal, "nothing compared is nothing verified"
    unknown = verify(board(tmp_path / "data", {"bleu_1": "80.00"}, protocol="unknown"), [tmp_path])
    assert [cell.reason for cell in unknown.cells] == ["the protocol is not known"]


def test_another_number_of_studies_is_noted(tmp_path: Path) -> None:
    found = verify(board(tmp_path / "data", {"bleu_1": "80.00"}, n=1564), [predictions(tmp_path / "ours.csv")])
    assert found.notes == ("Toy et al., Table 1, Ours: n is 1564, and ours.csv has 2 rows",)


def test_files_are_found_by_name_and_never_guessed(tmp_path: Path) -> None:
    rows = board(tmp_path / "data", PRINTED)
    (tmp_path / "released" / "deep").mkdir(parents=True)
    predictions(tmp_path / "released" / "deep" / "ours.csv")
    assert verify(rows, [tmp_path / "released"]).all_equal
    predictions(tmp_path / "released" / "ours.csv")
    with pytest.raises(UsageError, match="is there twice"):
        verify(rows, [tmp_path / "released"])
    with pytest.raises(UsageError, match="there is no such file or folder"):
        verify(rows, [tmp_path / "nowhere"])
    with pytest.raises(UsageError, match=r"nothing to recompute.*lost\.csv, ours\.csv"):
        verify(rows, [tmp_path / "data"])


def test_the_command_exits_with_3_where_a_cell_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = str(predictions(tmp_path / "ours.csv"))
    board(tmp_path / "leaderboard", PRINTED)  # found in the current directory
    assert main(["--verify", file, "--dataset", "toy", "--json", "out.json"]) == 0
    assert "4 of 4 cells equal" in capsys.readouterr().out
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["summary"] == "4 of 4 cells equal"
    assert {cell["metric"]: cell["recomputed"] for cell in content["cells"]} == PRINTED
    assert "heart" not in (tmp_path / "out.json").read_text()
    board(tmp_path / "leaderboard", PRINTED | {"rouge_1": "75.01"})
    assert main(["--verify", file, "--dataset", "toy"]) == 3
    said = capsys.readouterr().out
    assert "3 of 4 cells equal" in said
    assert "Toy et al., Table 1: 3 of 4 cells equal" in said
    assert "differs: Toy et al., Table 1, Ours, ROUGE-1: printed 75.01, recomputed 75.00" in said


def test_every_published_cell_of_the_released_region_files(shared: Path) -> None:
    """All 170 cells of the authors' results by region, and the text half and the amounts of the paper's Table IV."""
    folder = shared / "real" / "reg2rg_released" / "radgenome"
    if not folder.is_dir():
        pytest.skip(f"no released predictions in {folder}")
    found = verify(load_board(), [folder], Console(quiet=True))
    assert [cell for cell in found.compared if not cell.equal] == []
    absent = {cell.reason for cell in found.cells if cell.metric == "meteor" and cell.reason}
    lost = 1 + bool(absent)  # METEOR needs WordNet
    released = [cell for cell in found.compared if cell.source.endswith("nlg_evaluation_results_all_regions.csv")]
    assert len(released) == (170 if not absent else 150)
    table_iv = [cell for cell in found.compared if cell.source == "Reg2RG, Table IV"]
    assert len(table_iv) == 10 * (6 - lost)
    assert not found.notes
    left = {cell.metric for cell in found.cells if cell.reason} - {"meteor", "meteor_overall"}
    assert all(key.startswith("radbert_ct_18_") or key == "support" for key in left)
