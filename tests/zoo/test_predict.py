"""`zoo.predict` on a toy method and a toy dataset: options from a signature, files written, exit codes."""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from datamodules.report_datamodule import ReportDataModule
from datamodules.study import DataFault, Study
from lit_modules.report_generator import Heatmap, RegionReport, Report, ReportGenerator, Requirement
from zoo.predict import main
from zoo.study_options import add_study_options, described_arguments, study_arguments

REGIONS = ("heart", "lung")


class ToyScans(ReportDataModule):
    """Scans as .npy files."""

    modality = "ct"
    regions = REGIONS

    def list_studies(self, split):
        return [], []

    def inspect(self, study):
        return study, []

    def draw_phantom(self, train, validation):
        raise AssertionError("predict draws no phantom")

    def study_from_files(
        self,
        scan: Path,
        slice_mm: float = 3.0,
        mask_side: Literal["left", "right"] = "left",
        upside_down: bool = False,
        name: str | None = None,
    ) -> Study:
        """One scan.

        Args:
            scan: Volume in HU,
                as NumPy wrote it.
            slice_mm: Slice spacing in mm; 100% of it.
            mask_side: Where the lung is.
            upside_down: Feet first.
            name: Its id.

        Returns:
            The study.
        """
        try:
            volume = np.load(scan)
        except ValueError as error:
            raise DataFault(f"{scan}: not a NumPy file") from error
        masks = {region: np.zeros(volume.shape, np.uint8) for region in REGIONS}
        half = volume.shape[0] // 2
        masks["lung"][half:] = mask_side == "left"
        masks["lung"][:half] = mask_side == "right"
        masks["heart"][half - 3 : half + 3, 5:9] = 1
        return Study(
            id=name or scan.stem,
            volume=volume,
            masks=masks,
            spacing=(1.0, 1.0, slice_mm),
            orientation=("L", "P", "I" if upside_down else "S"),
            files={"volume": scan},
        )


class ToyPreprocessor:
    def settings(self):
        return {}

    def arrays(self, study):
        return {"mean": np.array([study.volume.mean()], np.float32)}

    def __call__(self, study, arrays, rng):
        assert rng is None
        return {"id": study.id, **arrays}

    def collate(self, samples):
        means = np.stack([sample["mean"] for sample in samples])
        return {"ids": [sample["id"] for sample in samples], "mean": torch.tensor(means)}


class ToyWords(ReportGenerator):
    """Says a number that depends on its weight and on the scan."""

    modality = "ct"

    def __init__(self, says: Literal["all", "less", "nothing", "two"] = "all", weights: str | None = None) -> None:
        super().__init__()
        self.says, self.weights = says, weights

    def preprocessor(self):
        return ToyPreprocessor()

    def configure_model(self):
        if self.weights is not None:
            Path(self.weights).read_bytes()
        self.scale = torch.nn.Linear(1, 1, bias=False)

    def configure_optimizers(self):
        return None

    def requirements(self):
        if self.weights is None:
            return []
        return [Requirement("toy weights", Path(self.weights).is_file(), f"put them at {self.weights}")]

    def loss(self, batch):
        return self.scale(batch["mean"]).sum()

    def generate(self, batch):
        assert not self.training
        value = self.scale(batch["mean"])[0, 0].item()
        heart = RegionReport("heart", "heart", f"Heart <{value:.0f}>.")
        rows = (heart, RegionReport("lung", None, "Both lungs are clear."))
        if self.says == "nothing":
            return [Report(batch["ids"][0], " ", "")]
        kept = rows[:1] if self.says == "less" else rows
        report = Report(batch["ids"][0], " ".join(row.text for row in kept), "untouched", kept)
        return [report] * (2 if self.says == "two" else 1)


class ToyFilms(ToyScans):
    """Radiographs as .npy files."""

    modality = "radiograph"
    regions = ()

    def study_from_files(self, film: Path, boxes: str = "") -> Study:
        """One film.

        Args:
            film: Grey values.
            boxes: One box.
        """
        box = tuple(float(edge) for edge in boxes.split(","))
        return Study(id=film.stem, image=np.load(film), boxes={"finding": (box,)}, files={"image": film})


class ToyFilmPreprocessor(ToyPreprocessor):
    def arrays(self, study):
        return {"mean": np.array([study.image.mean()], np.float32)}


class ToyGaze(ToyWords):
    """Says a number about a film; where it looked depends on the film and on what it said."""

    modality = "radiograph"

    def preprocessor(self):
        return ToyFilmPreprocessor()

    def generate(self, batch):
        return [Report(batch["ids"][0], "An opacity.", f"An opacity. {self.scale(batch['mean'])[0, 0].item():.0f}")]

    def explain(self, study, text):
        assert not self.training
        values = np.array([[0, study.image.mean()], [len(text), np.inf]], np.float32)
        return {"gaze": Heatmap(values, "gaze (pixels)", "Only a toy.", (0, -0.25, 1, 1.25), signed=True)}


def write_run(folder: Path, model: str = "ToyWords", data: str = "ToyScans", method: str = "toy") -> Path:
    """A run of the toys whose weight is 2."""
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": {"scale.weight": torch.full((1, 1), 2.0)}}, folder / "checkpoints" / "best.ckpt")
    (folder / "provenance.json").write_text(json.dumps({"phantom": True, "data_fingerprint": "abc"}))
    (folder / "config.yaml").write_text(
        f"method: {method}\nrecipe: phantom\nmodel: {{class: '{__name__}:{model}'}}\n"
        f"data: {{class: '{__name__}:{data}', root: {folder.parent / 'nowhere'}}}\n"
        "trainer: {accelerator: cpu}\n"
    )
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run on scans."""
    return write_run(tmp_path / "run")


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    volume = np.full((24, 20, 12), -1000, np.int16)
    volume[2:22, 2:18] = 50
    np.save(tmp_path / "scan.npy", volume)
    return tmp_path / "scan.npy"


def arguments(run: Path, scan: Path, output: Path, *more: str) -> list[str]:
    return ["--checkpoint", str(run), "--output", str(output), "--scan", str(scan), *more]


def test_report_is_written_and_not_printed(run_folder, scan, tmp_path, capsys) -> None:
    assert main(arguments(run_folder, scan, tmp_path / "out", "--name", "patient-7")) == 0
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    mean = np.load(scan).mean()
    heart = f"Heart <{2 * mean:.0f}>."
    assert record["id"] == "patient-7"
    assert record["regions"] == [
        {"region": "heart", "named": "heart", "text": heart},
        {"region": "lung", "named": None, "text": "Both lungs are clear."},
    ]
    assert record["text"] == f"{heart} Both lungs are clear." and record["raw"] == "untouched"
    assert record["checkpoint"].endswith("best.ckpt") and record["silent_regions"] == []
    assert "Research use only" in record["notice"] and "phantom" in record["notice"]
    page = (tmp_path / "out" / "report.html").read_text()
    for text in ("patient-7", heart.replace("<", "&lt;").replace(">", "&gt;"), "Both lungs are clear.", "Do not share"):
        assert text in page
    assert page.count('<g class="outline') >= 4 and "Reference" not in page
    assert not re.search(r"https?://|(?:src|href)=\"(?!data:image/|#)|@import|url\(", page)
    printed = capsys.readouterr()
    assert "lungs" not in printed.out + printed.err
    assert main(arguments(run_folder / "checkpoints" / "best.ckpt", scan, tmp_path / "out", "--show")) == 0
    assert record["text"] in capsys.readouterr().out


def test_a_radiograph_is_shown_with_its_boxes_and_where_the_method_looked(tmp_path, capsys) -> None:
    run = write_run(tmp_path / "run", "ToyGaze", "ToyFilms")
    np.save(tmp_path / "film.npy", np.full((40, 30), 7, np.uint16))
    given = ["--film", str(tmp_path / "film.npy"), "--boxes", "0.1,0.5,0.4,0.75"]
    assert main(["--checkpoint", str(run), "--output", str(tmp_path / "out"), *given]) == 0
    assert "opacity" not in (printed := capsys.readouterr()).out + printed.err
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["text"] == "An opacity." and record["raw"] == "An opacity. 14"
    assert record["regions"] == record["silent_regions"] == []
    assert record["boxes"] == {"finding": [[0.1, 0.5, 0.4, 0.75]]}
    gaze = {"title": "gaze (pixels)", "note": "Only a toy.", "frame": [0, -0.25, 1, 1.25], "signed": True}
    assert record["heatmaps"] == {"gaze": {**gaze, "values": [[0, 7], [len(record["raw"]), None]]}}
    page = (tmp_path / "out" / "report.html").read_text()
    for text in ("film", "An opacity.", "gaze (pixels)", "Only a toy.", "−14 against", "Do not share"):
        assert text in page
    assert 'd="M6 40h18v20h-18z"' in page and "Reference" not in page  # in half pixels
    assert not re.search(r"https?://|(?:src|href)=\"(?!data:image/|#)|@import|url\(", page)


def test_method_takes_its_newest_finished_run(toy, capsys) -> None:
    np.save("film.npy", np.full((40, 30), 7, np.uint16))
    given = ["--method", "toy", "--output", "out", "--film", "film.npy", "--boxes", "0,0,1,1"]
    assert main(given) == 2
    assert "runs/ has no finished run of toy; train one: python -m zoo.fit --method toy, or" in capsys.readouterr().err
    for name, method, age in (("toy-b", "toy", 3), ("toy-a", "toy", 2), ("toy-two-c", "toy-two", 1)):
        figures = write_run(Path("runs", name), "ToyGaze", "ToyFilms", method) / "metrics.json"
        figures.write_text("{}")
        os.utime(figures, (1e9 - age, 1e9 - age))
    write_run(Path("runs", "toy-z"), "ToyGaze", "ToyFilms")  # newer, but not finished
    assert main(given) == 0
    assert "the newest finished run of toy: runs/toy-a" in capsys.readouterr().err
    assert json.loads(Path("out", "report.json").read_text())["checkpoint"] == "runs/toy-a/checkpoints/best.ckpt"


def test_method_and_checkpoint_exclude_each_other_and_methods_are_known(toy, capsys) -> None:
    assert main(["--method", "toy", "--checkpoint", "runs/a", "--output", "out"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err
    assert main(["--method", "tow", "--output", "out"]) == 2
    assert "did you mean toy?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("says", "message"),
    [("nothing", "gave an empty report"), ("two", "gave 2 reports"), ("less", "1 regions shown: lung")],
)
def test_less_than_asked_for_is_an_error(says, message, run_folder, scan, tmp_path, capsys) -> None:
    assert main(arguments(run_folder, scan, tmp_path / "out", f"model.says={says}")) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1 and message in errors[0]
    assert (tmp_path / "out" / "report.json").exists() == (says == "less")
    if says == "less":
        assert json.loads((tmp_path / "out" / "report.json").read_text())["silent_regions"] == ["lung"]
        assert "the report says nothing" in (tmp_path / "out" / "report.html").read_text()


def test_bad_options_end_with_2(run_folder, scan, tmp_path, capsys) -> None:
    assert main([]) == 2
    assert "--checkpoint" in capsys.readouterr().err
    assert main(arguments(run_folder, scan, tmp_path, "--mask-side", "both")) == 2
    assert "invalid choice: 'both'" in capsys.readouterr().err
    assert main(arguments(run_folder, scan, tmp_path, "--scam", "x")) == 2
    assert main(["--checkpoint", str(run_folder), "--output", str(tmp_path)]) == 2
    assert "--scan" in capsys.readouterr().err
    assert main(arguments(run_folder, scan, tmp_path, "model.say=all")) == 2
    assert "model.says" in capsys.readouterr().err


def test_missing_and_broken_files_end_with_3_and_name_the_file(run_folder, scan, tmp_path, capsys) -> None:
    for broken in (tmp_path / "gone.npy", tmp_path / "text.npy"):
        assert main(arguments(run_folder, broken, tmp_path / "out")) == 3
        assert str(broken) in capsys.readouterr().err
        (tmp_path / "text.npy").write_text("no array")
    assert main(arguments(tmp_path / "no-run", scan, tmp_path / "out")) == 3
    assert "no-run" in capsys.readouterr().err
    assert main(arguments(scan, scan, tmp_path / "out")) == 3
    assert "not a run folder" in capsys.readouterr().err
    checkpoint = run_folder / "checkpoints" / "best.ckpt"
    torch.save({"state_dict": {"other": torch.zeros(1)}}, checkpoint)
    assert main(arguments(run_folder, scan, tmp_path / "out")) == 3
    assert "another model" in capsys.readouterr().err
    checkpoint.write_bytes(b"torn")
    assert main(arguments(run_folder, scan, tmp_path / "out")) == 3
    assert f"{checkpoint}: cannot load" in capsys.readouterr().err
    checkpoint.unlink()
    assert main(arguments(run_folder, scan, tmp_path / "out")) == 3
    assert "no whole checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_weights_end_with_4(run_folder, scan, tmp_path, capsys) -> None:
    assert main(arguments(run_folder, scan, tmp_path / "out", f"model.weights={tmp_path / 'absent.bin'}")) == 4
    assert f"toy weights is missing: put them at {tmp_path / 'absent.bin'}" in capsys.readouterr().err


def test_help_shows_the_datasets_options(run_folder, capsys) -> None:
    assert main(["--checkpoint", str(run_folder), "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        "--scan FILE Volume in HU, as NumPy wrote it.",
        "--mask-side {left,right}",
        "100% of it",
        "default: 3.0",
    ):
        assert text in shown


def test_help_of_a_method_shows_the_options_of_its_run_or_of_its_recipe(toy, capsys, monkeypatch) -> None:
    monkeypatch.setattr("tests.zoo.toy.ToyData.study_from_files", ToyScans.study_from_files, raising=False)
    assert main(["--method", "toy", "--help"]) == 0
    assert "--scan FILE" in capsys.readouterr().out
    (write_run(Path("runs", "toy-a"), "ToyGaze", "ToyFilms") / "metrics.json").write_text("{}")
    assert main(["--help", "--method", "toy"]) == 0
    assert "--film FILE" in (shown := capsys.readouterr().out) and "--boxes TEXT" in shown


def test_help_alone_imports_nothing_heavy() -> None:
    code = (
        "import sys; from zoo.predict import main; code = main(['--help']);"
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'lightning', 'numpy', 'omegaconf')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert "--checkpoint RUN" in done.stdout


def test_options_follow_the_signature(scan) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_study_options(parser, ToyScans.study_from_files)
    given = parser.parse_args(["--scan", str(scan), "--slice-mm", "1.5", "--upside-down"])
    expected = {"scan": scan, "slice_mm": 1.5, "mask_side": "left", "upside_down": True, "name": None}
    assert study_arguments(ToyScans.study_from_files, given) == expected
    assert described_arguments(ToyScans.study_from_files)["name"] == "Its id."
    with pytest.raises(DataFault, match="gone.npy: no such file or folder, given as --scan"):
        study_arguments(ToyScans.study_from_files, parser.parse_args(["--scan", "gone.npy"]))
