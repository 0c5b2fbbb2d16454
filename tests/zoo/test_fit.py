"""`zoo.fit` from its command line to the files of its run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zoo.gallery
from tests.zoo.toy import ToyData, ToyGenerator, fit
from zoo import command
from zoo.config import compose
from zoo.fit import main
from zoo.loggers import build_loggers
from zoo.trainer import effective_batch

HOME = Path(zoo.__file__).parent.parent


def test_help_names_methods_recipes_ablations_and_exit_codes(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, path in (command.recipes("reg2rg") | command.ablations("reg2rg")).items():
        assert f"{name} " in text
        assert command.first_comment(path) in text
    assert command.EXIT_CODES in text
    assert "exits 0 when the settings are valid" in " ".join(text.split())


def test_help_of_a_method_shows_its_recipe_with_comments(capsys):
    assert main(["--method", "reg2rg", "--recipe", "paper", "--help"]) == 0
    assert (command.configs_folder() / "reg2rg" / "paper.yaml").read_text() in capsys.readouterr().out


def test_help_imports_nothing_heavy():
    code = "import sys; from zoo.fit import main; main(['--help']); print(sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True, check=True)
    loaded = result.stdout.splitlines()[-1]
    for package in ("torch", "lightning", "numpy", "omegaconf", "rich"):
        assert f"'{package}'" not in loaded


def test_gallery_may_ask_the_method_which_no_longer_trains(toy):
    def write(folder, datamodule, explain):
        method = explain.__self__
        (folder / "gallery.html").write_text(f"{type(method).__name__}.{explain.__name__} {method.training}")

    assert fit(patch=(zoo.gallery, "write_gallery", write)) == 0
    assert next(toy.glob("runs/*/gallery.html")).read_text() == "ToyGenerator.explain False"


def test_a_run_leaves_its_files_and_config_yaml_repeats_it(toy, capfd):
    assert fit() == 0
    first_line = capfd.readouterr().out.splitlines()[0]
    assert first_line.startswith("Recipe phantom (the default): needs no data, no weights and no GPU.")
    assert "python -m zoo.fit --method toy --recipe paper data.root=" in first_line
    (run,) = toy.glob("runs/*")
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert names == {"config.yaml", "provenance.json", "metrics.csv", "metrics.json", "predictions.jsonl",
                     "per_study.csv", "gallery.html", "checkpoints/best.ckpt", "checkpoints/last.ckpt",
                     "checkpoints/tested.safetensors"}  # fmt: skip
    record = json.loads((run / "provenance.json").read_text())
    assert record["status"] == "done"
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert record["config_hash"] == compose("toy", "phantom").hash()
    assert record["peak_memory_bytes"]["process"] > 1e8
    again = toy / "again"
    assert main_in_child("--config", str(run / "config.yaml"), f"run.folder={again}") == 0
    (repeated,) = again.iterdir()
    for name in ("metrics.json", "metrics.csv", "predictions.jsonl", "per_study.csv"):
        assert (repeated / name).read_text() == (run / name).read_text()


def main_in_child(*arguments):
    """`main` without `--method`, in a process of its own."""
    import multiprocessing

    process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(main(list(arguments))))
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--method", "toy", "model.lr=fast"], 2, "argument 'model.lr=fast'"),
        (["--method", "toy", "--recpie", "paper"], 2, "unrecognized arguments: --recpie"),
        ([], 2, "--method is missing; there are: toy"),
        (["--method", "toy", "--resume", "nowhere"], 2, "no such run folder"),
        (["--method", "toy", "data.global_batch_size=5"], 2, "data.global_batch_size=4, data.global_batch_size=6"),
        (["--method", "toy", "data.global_batch_size=32"], 2, "lower data.global_batch_size (now 32)"),
        (["--method", "toy", "--recipe", "paper", "data.root=nowhere"], 3, "set data.root"),
        (["--method", "toy", "model.weights=nowhere"], 4, "weights: put them at nowhere"),
        (
            ["--method", "toy", "trainer.accelerator=gpu", "trainer.devices=99", "data.global_batch_size=198"],
            4,
            "99 GPUs",
        ),
    ],
)
def test_what_is_wrong_is_one_line_and_an_exit_code(toy, capfd, arguments, code, words):
    assert main(arguments) == code
    error = capfd.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_a_crash_shows_its_traceback_and_where_the_log_is(toy, capfd, monkeypatch):
    def broken(self, batch):
        raise ZeroDivisionError("unforeseen")

    assert fit(patch=(ToyGenerator, "loss", broken)) == 1
    error = capfd.readouterr().err
    assert "ZeroDivisionError: unforeseen" in error
    log = Path(error.split("the log is ")[1].strip())
    assert "ZeroDivisionError: unforeseen" in log.read_text()
    log.unlink()


def test_out_of_memory_says_what_to_lower(toy, capfd):
    def full(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    assert fit(patch=(ToyGenerator, "loss", full)) == 4
    assert "Lower data.micro_batch_size" in capfd.readouterr().err


def test_other_data_are_refused_on_resume(toy, capfd):
    assert fit("trainer.max_epochs=1") == 0
    listed = ToyData.list_studies

    def changed(self, split):
        studies, faults = listed(self, split)
        return [type(study)(**{**study.__dict__, "report": "rewritten"}) for study in studies], faults

    assert fit("--resume", "auto", patch=(ToyData, "list_studies", changed)) == 3
    assert "not those that" in capfd.readouterr().err


def test_the_effective_batch_follows_from_the_global_one(toy):
    batch = effective_batch(compose("toy", "phantom", (), ["data.global_batch_size=24", "trainer.devices=3"]))
    assert (batch.micro, batch.accumulation, batch.devices, batch.nodes, batch.total) == (2, 4, 3, 1, 24)
    assert str(batch) == "24 studies = 2 micro × 4 accumulation × 3 devices × 1 nodes"


def test_epochs_end_after_the_last_whole_step(toy):
    assert fit("data.phantom=15", "trainer.max_epochs=2") == 0
    (path,) = toy.glob("runs/*/metrics.csv")
    table = [line.split(",") for line in path.read_text().splitlines()]
    assert [(epoch, step) for epoch, step, metric, _ in table if metric == "train/loss"] == [
        ("0", "1"), ("0", "2"), ("0", "3"), ("1", "4"), ("1", "5"), ("1", "6")
    ]  # fmt: skip


def test_wandb_offline_writes_numbers_and_no_text(toy):
    assert fit("log.wandb=offline", "trainer.max_epochs=1") == 0
    (file,) = toy.glob("runs/*/wandb/offline-run-*/run-*.wandb")
    content = file.read_bytes()
    assert b"train/loss" in content
    assert b"the value of" not in content
    assert not list(toy.glob("runs/*/wandb/*/files/output.log"))


def test_report_text_in_the_log_is_warned_about(tmp_path):
    with pytest.warns(UserWarning, match="report texts go into the log"):
        assert build_loggers(str(tmp_path), text=True) == []
