"""An exported folder comes back through `zoo.load` as the model that it was."""

import json
from pathlib import Path

import pytest
import torch

import zoo
from tests.zoo.test_export_adapters import as_if_trained, run_of
from zoo.command import UsageError
from zoo.config import compose
from zoo.export import export


def test_on_a_phantom_study_an_export_says_what_the_run_said(tmp_path: Path) -> None:
    settings = ["model.decoding.max_new_tokens=40", f"run.folder={tmp_path}/runs", f"data.root={tmp_path}/data"]
    config = compose("reg2rg", "phantom", (), settings)
    torch.manual_seed(0)
    model, data = config.build("model"), config.build("data")
    model.configure_model()
    as_if_trained(model)
    again = zoo.load(export(run_of(config, model.eval()).path, tmp_path / "export"))
    data.draw_phantom(1, 1)
    (study,), source = data.studies("test"), again.preprocessor()
    study = data.read(study)
    batch = source.collate([source(study, source.arrays(study), None)])
    with torch.inference_mode():
        (said,), (wanted,) = again.generate(batch), model.generate(batch)
    assert said == wanted and len(said.raw) > 20


def test_weights_that_lay_on_this_machine_are_asked_for_by_name(tmp_path: Path) -> None:
    local = tmp_path / "jane" / "gpt2"
    local.mkdir(parents=True)
    for file in Path(zoo.__file__).parents[1].glob("checkpoints/phantom-gpt2/*"):
        (local / file.name).write_bytes(file.read_bytes())
    config = compose("regionformer", "phantom", (), [f"run.folder={tmp_path}/runs", f"model.llm={local}"])
    model = config.build("model")
    model.configure_model()
    as_if_trained(model)
    folder = export(run_of(config, model).path, tmp_path / "export")
    card = (folder / "README.md").read_text()
    assert 'zoo.load("/path/to/this/folder", llm="/path/to/gpt2")' in card and "license: other" in card
    assert not [path for path in folder.rglob("*") if path.is_file() and b"jane" in path.read_bytes()]
    with pytest.raises(UsageError, match=r"model\.llm is missing: give model\.llm="):
        zoo.load(folder)
    again = zoo.load(folder, llm=str(local)).state_dict()
    assert json.loads((folder / "metrics.json").read_text())["phantom"]
    torch.testing.assert_close(again, dict(model.state_dict()), rtol=0, atol=0)
