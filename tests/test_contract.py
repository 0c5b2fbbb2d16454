"""What every method must pass. Methods are found in `configs/`; a new one needs no line here."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zoo import command
from zoo.config import load
from zoo.fit import main as fit
from zoo.run_directory import RunDirectory
from zoo.trainer import checkpoint_to_test

ROOT = Path(__file__).parents[1]
METHODS = sorted(path.parent.name for path in (ROOT / "configs").glob("*/phantom.yaml"))


def fit_for_a_moment(method: str, folder: Path) -> RunDirectory:
    """A method's phantom recipe, fitted for two steps on a handful of patients."""
    before = set((folder / "runs").glob("*"))
    arguments = [f"data.root={folder}/data", "data.phantom=8", f"run.folder={folder}/runs", "trainer.max_epochs=1"]
    arguments += ["trainer.limit_train_batches=2", "trainer.check_val_every_n_epoch=1"]
    arguments += ["data.global_batch_size=4", "data.micro_batch_size=4"]
    assert fit(["--method", method, *arguments]) == 0
    (path,) = set((folder / "runs").glob("*")) - before
    return RunDirectory(path)


@pytest.fixture(scope="session", params=METHODS)
def run(request, tmp_path_factory) -> RunDirectory:
    return fit_for_a_moment(request.param, tmp_path_factory.mktemp(request.param))


def chosen_checkpoint(run: RunDirectory) -> Path:
    return checkpoint_to_test(run, load(run.config).values["run"]["evaluate"])


def build(run: RunDirectory):
    """The run's method with the weights that it tested, and its data."""
    config = load(run.config)
    model, data = config.build("model"), config.build("data")
    model.configure_model()
    checkpoint = torch.load(chosen_checkpoint(run), map_location="cpu", weights_only=True)
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"], strict=False)
    data.preprocessor = model.preprocessor()
    return model.eval(), data


def test_a_fit_leaves_its_whole_folder(run: RunDirectory) -> None:
    for path in (
        run.config,
        run.provenance,
        run.metrics_csv,
        run.metrics,
        run.predictions,
        run.gallery,
        run.best,
        run.last,
    ):
        assert path.exists(), path
    assert "phantom" in run.gallery.read_text().lower()


def test_the_same_seed_gives_the_same_figures(run: RunDirectory) -> None:
    again = fit_for_a_moment(load(run.config).method, run.path.parents[1])
    assert again.path != run.path
    for first, second in ((run.metrics, again.metrics), (run.predictions, again.predictions)):
        assert first.read_bytes() == second.read_bytes()


def test_every_study_of_the_test_split_has_a_prediction(run: RunDirectory) -> None:
    _, data = build(run)
    predicted = [json.loads(line)["id"] for line in run.predictions.read_text().splitlines()]
    assert predicted == [study.id for study in data.studies("test")]
    assert json.loads(run.metrics.read_text())["n"] == len(predicted)


def test_a_saved_model_says_again_what_it_said(run: RunDirectory) -> None:
    model, data = build(run)
    said = {row["id"]: row for row in map(json.loads, run.predictions.read_text().splitlines())}
    with torch.inference_mode():
        reports = [report for batch in data.test_dataloader() for report in model.generate(batch)]
    assert {report.study_id for report in reports} == set(said)
    assert all(report.raw == said[report.study_id]["raw"] for report in reports)


def test_a_checkpoint_of_another_model_is_refused(run: RunDirectory) -> None:
    model, _ = build(run)
    checkpoint = torch.load(run.last, map_location="cpu", weights_only=True)
    checkpoint["state_dict"].popitem()
    with pytest.raises(ValueError, match="another model"):
        model.on_load_checkpoint(checkpoint)


def test_a_study_without_text_is_not_dropped(run: RunDirectory) -> None:
    model, data = build(run)
    study = data.read(data.studies("test")[0])
    bare = replace(study, report=None, regions=None, findings=None)
    preprocessor = data.preprocessor
    sample = preprocessor(bare, preprocessor.arrays(bare), None)
    with torch.inference_mode():
        (report,) = model.generate(preprocessor.collate([sample]))
    assert report.study_id == study.id


@pytest.mark.parametrize("method", METHODS)
def test_every_recipe_and_ablation_can_be_built(method: str, capsys) -> None:
    """Each is built on the meta device by a dry run, on its own recipe and on the phantom."""
    for recipe in command.recipes(method):
        for ablation in [None, *command.ablations(method)]:
            chosen = [] if ablation is None else ["--with", ablation]
            assert fit(["--method", method, "--recipe", recipe, *chosen, "--dry-run"]) == 0, (recipe, ablation)
            assert "trainable" in capsys.readouterr().out
