"""`zoo.export` on the toy: what the folder holds, and what of this machine and of the patients it does not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file

import zoo.export
import zoo.model_card
from lit_modules.report_generator import Requirement
from tests.zoo.toy import ToyGenerator, fit
from zoo.config import compose, load
from zoo.export import main, public_figures, public_settings
from zoo.layers import flatten
from zoo.run_directory import RunDirectory


@pytest.fixture
def run(toy):
    assert fit(f"data.root={toy}/jane/data", "trainer.max_epochs=1") == 0
    (path,) = toy.glob("runs/*")
    return RunDirectory(path)


def test_a_run_becomes_a_folder_with_a_card_that_the_hub_reads(run, capsys):
    assert main([str(run.path)]) == 0
    folder = run.path / "export"
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.yaml", "metrics.json", "model.safetensors"}
    assert f"written: {folder}" in capsys.readouterr().out
    card, figures = ModelCard.load(folder / "README.md"), json.loads(run.metrics.read_text())
    assert card.data.license == "apache-2.0" and {"phantom", "ct", "toy"} <= set(card.data.tags)
    found = {result.metric_type: result for result in card.data.eval_results}
    wanted = {key: entry["value"] for key, entry in figures["metrics"].items() if entry["value"] is not None}
    assert {key: result.metric_value for key, result in found.items()} == pytest.approx(wanted, abs=1e-6)
    assert f"protocol {figures['protocol']}, version" in found["bleu_4"].metric_name
    for said in (
        "Phantom, not patients",
        "drawn patients",
        "Research use only",
        "Intended use",
        "Licence",
        "A method and",
    ):
        assert said in card.text, said
    assert json.loads((folder / "metrics.json").read_text())["metrics"] == figures["metrics"]
    assert {path.stat().st_mode for path in folder.rglob("*") if path.is_file()} == {
        folder.parent.joinpath("config.yaml").stat().st_mode
    }


def test_the_weights_are_those_that_were_tested_also_where_they_lie_in_the_checkpoint_alone(run, tmp_path):
    tested = load_file(run.tested)
    with safe_open(run.tested, "pt") as file:
        told = file.metadata()
    assert main([str(run.path)]) == 0
    run.tested.unlink()
    assert main([str(run.path), "--output", str(tmp_path / "again")]) == 0
    for folder in (run.path / "export", tmp_path / "again"):
        torch.testing.assert_close(load_file(folder / "model.safetensors"), tested, rtol=0, atol=0)
        with safe_open(folder / "model.safetensors", "pt") as file:
            assert file.metadata() == told


def test_no_report_no_study_and_no_path_of_this_machine_goes_out(run, toy):
    assert main([str(run.path)]) == 0
    rows = [json.loads(line) for line in run.predictions.read_text().splitlines()]
    private = [row[key] for row in rows for key in ("prediction", "reference", "id")] + [str(toy), "jane"]
    assert len(private) > 8
    for path in (run.path / "export").rglob("*"):
        content = path.read_bytes()
        assert not [text for text in private if text.encode() in content], path.name
    assert load(run.path / "export" / "config.yaml").values["data"]["root"] == "data"  # the recipe's


def test_paths_of_this_machine_give_way_and_what_the_project_and_the_hub_have_stays(toy):
    here = {"data.root": "/mnt/jane", "data.store": "fast/disk", "run.folder": "~/runs", "metrics.weights": "../scores"}
    config = compose("toy", "paper", (), [f"{key}={value}" for key, value in here.items()])
    recipe = compose("toy", "paper", allow_missing=True).values
    for weights, needed, wanted in (
        ("/mnt/jane/a.pt", set(), None),  # in the export
        ("/mnt/jane/a.pt", {"/mnt/jane/a.pt"}, "???"),
        ("best.ckpt", set(), None),
        ("google/medgemma-4b-it", {"google/medgemma-4b-it"}, "google/medgemma-4b-it"),
        ("checkpoints/phantom-gpt2", set(), "checkpoints/phantom-gpt2"),
        ("no/such/file", set(), "no/such/file"),  # the recipe's own
    ):
        config.values["model"]["weights"] = weights
        public, places = public_settings(config, recipe, needed)
        assert public.values["model"]["weights"] == wanted
    assert set(places) == set(here)
    changed = {key: flatten(public.values)[key] for key in here}
    assert changed == {
        "data.root": "/path/to/data.root", "data.store": "auto", "run.folder": "runs", "metrics.weights": None,
    }  # fmt: skip
    assert config.values["data"]["root"] == "/mnt/jane"  # as it was


def test_paths_in_figures_are_names():
    figures = {"a": {"searched": ["/home/jane/x"], "reason": "ValueError: /home/jane/w.pth and ~/.cache/a/b.txt broke"}}
    kept = {"b": ["https://hub.co/a/b", "CheXbert/RRG and/or 13a", 1.5, None]}
    assert public_figures(figures | kept) == {"a": {"reason": "ValueError: w.pth and b.txt broke"}} | kept


@pytest.mark.parametrize(
    ("base", "kept"),
    [("/mnt/jane/llama", None), ("weights/llama.bin", None), ("google/medgemma-4b-it",) * 2, ("checkpoints/x",) * 2],
)
def test_an_adapter_names_a_base_that_others_have_or_none(base, kept, tmp_path):
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({"r": 16, "base_model_name_or_path": base}))
    zoo.export._clean_adapter(file)
    assert json.loads(file.read_text()) == {"r": 16, "base_model_name_or_path": kept}


def test_of_real_patients_the_card_says_so_and_names_whose_terms_hold(run, monkeypatch):
    for file in (run.metrics, run.provenance):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"phantom": False}))
    need = Requirement("google/medgemma-4b-it", False, "accept the HAI-DEF terms at https://huggingface.co/google")
    monkeypatch.setattr(ToyGenerator, "requirements", lambda self: [need])
    assert main([str(run.path)]) == 0
    card = ModelCard.load(run.path / "export" / "README.md")
    assert card.data.license == "other" and card.data.base_model == [need.what] and "phantom" not in card.data.tags
    assert "patients' images and reports" in card.text and need.how in card.text and "ToyData" in card.text


def test_what_cannot_be_exported_is_said(run, toy, capsys):
    def fails(code, *arguments):
        assert main([str(argument) for argument in arguments]) == code
        return capsys.readouterr().err

    assert "give the run's folder" in fails(2, run.last)
    assert "no such run folder" in fails(2, toy / "nowhere")
    (toy / "taken").mkdir()
    assert "there already" in fails(2, run.path, "--output", toy / "taken")
    provenance = run.provenance.read_text()
    run.provenance.write_text(provenance.replace('"done"', '"running"'))
    assert "not finished" in fails(3, run.path)
    run.provenance.write_text(provenance)
    run.tested.write_bytes(b"broken")
    assert "cannot read these weights" in fails(3, run.path)
    run.tested.unlink()
    content = torch.load(run.best, weights_only=True)
    content["state_dict"].popitem()
    torch.save(content, run.best)
    assert "not those of config.yaml" in fails(3, run.path)
    assert not (run.path / "export").exists() and not list(run.path.glob("*.partial"))


def test_a_folder_is_there_wholly_or_not_at_all(run, monkeypatch, capsys):
    left = run.path / "export.partial" / "of_a_killed_one"
    left.mkdir(parents=True)

    def broken(export):
        assert (export.folder / "model.safetensors").is_file() and not left.exists()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(zoo.model_card, "model_card", broken)
        assert main([str(run.path)]) == 4
    assert "No space left" in capsys.readouterr().err
    assert not list(run.path.glob("export*"))
    assert main([str(run.path)]) == 0
    assert [path.name for path in run.path.glob("export*")] == ["export"]


def test_help_imports_nothing_heavy():
    code = "import sys; from zoo.export import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(zoo.export.__file__).parents[1]
    )
    assert done.returncode == 0 and "adapter/" in done.stdout
