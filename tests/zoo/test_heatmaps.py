"""`zoo.heatmaps` on toy runs: the same films asked of all, numbers known by hand, text only where it is asked for."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.report_datamodule import ReportDataModule
from datamodules.study import Study
from lit_modules.report_generator import Heatmap, Report, ReportGenerator
from zoo.gallery import heatmap_figure
from zoo.heatmaps import file_name, main

IDS = ("1.2.3", "a/b", "c")
FILM = np.arange(64, dtype=np.uint8).reshape(8, 8)


class ToyFilms(ReportDataModule):
    """Films whose left half is the lesion; the last has none."""

    modality = "radiograph"
    regions = ("lesion",)

    def list_studies(self, split):
        return [Study(id=name, split=split, report="an opacity") for name in IDS][: self.limit], []

    def inspect(self, study):
        lesion = np.zeros(FILM.shape, np.uint8)
        lesion[:, :4] = study.id != IDS[-1]
        masks = {"lesion": lesion, "annotation": np.ones(FILM.shape, np.uint8)}
        return Study(id=study.id, split=study.split, image=FILM, masks=masks), []

    def draw_phantom(self, train, validation):
        raise AssertionError("nothing is drawn")


class ToyPreprocessor:
    def settings(self):
        return {}

    def arrays(self, study):
        return {}

    def __call__(self, study, arrays, rng):
        assert rng is None
        return {"id": study.id}

    def collate(self, samples):
        return {"ids": [sample["id"] for sample in samples]}


class ToySilent(ReportGenerator):
    """Says something, and not where it looked."""

    modality = "radiograph"

    def __init__(self, scale: float = 1.0, view: str = "gaze", signed: bool = False) -> None:
        super().__init__()
        self.scale, self.view, self.signed = scale, view, signed

    def preprocessor(self):
        return ToyPreprocessor()

    def configure_model(self):
        self.weight = torch.nn.Parameter(torch.ones(1))

    def configure_optimizers(self):
        return None

    def loss(self, batch):
        return self.weight.sum()

    def generate(self, batch):
        return [Report(name, f"Secret of {name}.") for name in batch["ids"]]


class ToyGaze(ToySilent):
    """Looks `scale` times its weight as much at the left half as at the right."""

    def explain(self, study, text):
        assert not self.training and text == f"Secret of {study.id}."
        left = self.scale * self.weight.item()
        return {self.view: Heatmap(np.array([[left, 1], [left, 1]], np.float32), "gaze", signed=self.signed)}


def _run(name: str, weight: float | None, model: str = "ToyGaze", **settings: object) -> str:
    """A run with that weight; `None`: one that trained nothing."""
    folder = Path("runs", name)
    Path("films").mkdir(exist_ok=True)
    (folder / "checkpoints").mkdir(parents=True)
    if weight is not None:
        torch.save({"state_dict": {"weight": torch.tensor([weight])}}, folder / "checkpoints" / "best.ckpt")
    config = {
        "method": "toy",
        "recipe": "paper",
        "model": {"class": f"{__name__}:{model}", **settings},
        "data": {"class": f"{__name__}:ToyFilms", "root": "films"},
        "trainer": {"accelerator": "cpu", "max_epochs": 0 if weight is None else 3},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture
def drawn(toy, monkeypatch):
    """The rows and headings of the figures instead of their pictures, by file."""
    found = {}

    def draw(rows, path, **heading):
        found[path.name] = rows, heading

    monkeypatch.setattr(heatmap_figure, "draw_heatmaps", draw)
    return found


def _table() -> list[list[str]]:
    with Path("out", "heatmaps.csv").open() as file:
        return list(csv.reader(file))[1:]


def test_a_row_a_run_with_its_difference_its_grid_and_its_contrast(toy, capsys):
    a, b = _run("a", 2.0), _run("b", 3.0, scale=2.0)
    assert main([a, b, "--output", "out"]) == 0
    assert _table()[:2] == [
        ["1.2.3", "a", "model.scale=1.0", "gaze", "lesion", "2"],
        ["1.2.3", "b", "model.scale=2.0", "gaze", "lesion", "6"],
    ]
    assert [row[4:] for row in _table()[4:]] == [["", ""]] * 2, "the last film has no lesion"
    files = {path.name for path in Path("out").iterdir()}
    assert files == {"heatmaps.csv"} | {f"{file_name(name)}.{kind}" for name in IDS for kind in ("png", "npz")}
    grids = np.load(Path("out", "1.2.3.npz"))
    assert grids["runs"].tolist() == ["a", "b"] and grids["frame_1"].tolist() == [0, 0, 1, 1]
    assert grids["values_1"].tolist() == [[6, 1], [6, 1]]
    assert "Secret" not in (said := capsys.readouterr()).out + said.err and "3 figures" in said.out


def test_settings_hold_for_all_runs_and_are_told_but_a_row_keeps_its_own_name(drawn):
    assert main([_run("a", 2.0), _run("b", 3.0, scale=2.0), "--output", "out", "--ids", "c,a/b", "model.scale=5"]) == 0
    assert [row[:1] + row[5:] for row in _table()] == [["c", ""], ["c", ""], ["a/b", "10"], ["a/b", "15"]]
    rows, heading = drawn[f"{file_name('a/b')}.png"]
    assert [row.name for row in rows] == ["model.scale=1.0", "model.scale=2.0"]
    assert heading == {"title": "a/b · gaze · all with model.scale=5", "phantom": False}


def test_text_is_shown_only_where_asked_for_and_a_phantom_is_called_so(drawn):
    run = _run("a", 2.0)
    assert main([run, "--output", "out", "--cases", "1"]) == 0
    assert [row.text for row in drawn["1.2.3.png"][0]] == [""]
    Path("films", "PHANTOM.json").write_text("{}")
    assert main([run, "--output", "out", "--cases", "1", "--text"]) == 0
    rows, heading = drawn["1.2.3.png"]
    assert [row.text for row in rows] == ["Secret of 1.2.3."] and heading["phantom"]


def test_an_untrained_run_is_asked_as_it_is_built_and_a_checkpoint_can_be_named(drawn):
    trained = _run("a", 2.0)
    named = f"{trained}/checkpoints/best.ckpt"
    assert main([_run("zero", None), trained, named, "--output", "out", "--cases", "1"]) == 0
    assert [row[1:3] + row[5:] for row in _table()] == [
        ["zero", "trainer.max_epochs=0", "1"],
        ["a", "trainer.max_epochs=3, a", "2"],
        ["a/best.ckpt", "trainer.max_epochs=3, a/best.ckpt", "2"],
    ]


def test_a_signed_map_has_no_contrast(drawn):
    assert main([_run("a", 2.0, signed=True), "--output", "out", "--cases", "1"]) == 0
    assert _table()[0][5] == ""


def test_runs_without_a_view_in_common_end_with_1_and_say_which_they_have(drawn, capsys):
    runs = [_run("a", 2.0), _run("b", 2.0, view="other")]
    assert main([*runs, "--output", "out", "--cases", "1"]) == 1
    assert "error: 1.2.3: no view of all runs (a: gaze; b: other)" in capsys.readouterr().err
    assert main([runs[0], "--output", "out", "--cases", "1", "--view", "glance"]) == 1
    assert "no view glance of all runs (a: gaze)" in capsys.readouterr().err and not drawn


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        (["--ids", "1.2.3,d"], 2, "a: 1 of 2 studies are not in its test split, 'd' first; one that is there: --ids"),
        (["--cases", "0"], 2, "--cases 1 or more"),
        (["model.scales=2"], 2, "did you mean model.scale"),
        (["runs/none"], 2, "runs/none: there is no such run folder"),
        (["data.root=gone"], 3, "data root: set data.root to the dataset's folder (now gone)"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(given, code, message, toy, capsys):
    assert main([_run("a", 2.0), *given, "--output", "out"]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not Path("out").exists()


def test_a_method_that_says_not_where_it_looks_and_no_run_at_all_are_refused(toy, capsys):
    assert main([_run("a", 2.0, "ToySilent"), "--output", "out"]) == 2
    assert "runs/a: toy says not where it looks" in capsys.readouterr().err
    assert main(["model.scale=2", "--output", "out"]) == 2
    assert "at least one RUN" in capsys.readouterr().err


def test_ids_become_names_that_stay_in_the_folder_and_apart():
    ids = ["1.2.3", "a/b", "a_b", "a:b", "../up", "..", "x" * 300, "x" * 301]
    names = [file_name(name) for name in ids]
    assert names[0] == "1.2.3" and names[2] == "a_b" and len(set(names)) == len(ids)
    assert all("/" not in name and not name.startswith(".") and len(name) < 120 for name in names)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from zoo.heatmaps import main; code = main(['--help']);"
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'lightning', 'numpy', 'omegaconf')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
