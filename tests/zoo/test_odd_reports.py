"""Reports and paths that nobody expects, from a fit to its gallery, and in each method's batches."""

import json
import random
import shutil
import warnings
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from datamodules.study import Study
from tests.zoo.toy import ToyData
from zoo.command import methods
from zoo.config import compose
from zoo.fit import main as fit

METHODS = methods()

LONG = "Patchy opacities. " * 10_000
TEXTS = ("", " \t ", "µ é 肺 🫁 \u202eעברית", "two\r\nlines", "one\u2028end\x85of\x1clines", "</script><b>&amp;", LONG)


class OddData(ToyData):
    """The toy's studies with such reports, those of training the same as those of evaluation."""

    def list_studies(self, split):
        studies, faults = super().list_studies(split)
        return [replace(s, report=TEXTS[n % len(TEXTS)], regions=None) for n, s in enumerate(studies)], faults

    def draw_phantom(self, train, validation):
        super().draw_phantom(train, len(TEXTS))


def test_any_report_comes_through_a_fit_whatever_the_folders_are_called(tmp_path, monkeypatch, capfd):
    place = tmp_path / "a b" / "Ü 患者's {data}"
    shutil.copytree(Path(__file__).parent / "toy_configs", place / "my configs")
    recipe = place / "my configs/toy/phantom.yaml"
    recipe.write_text(recipe.read_text().replace("tests.zoo.toy:ToyData", "tests.zoo.test_odd_reports:OddData"))
    for name, value in (("ZOO_CONFIGS", str(recipe.parents[1])), ("ZOO_WEIGHTS", "none")):
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(place)
    folders = [f"data.root={place}/my data", f"run.folder={place}/my runs"]
    assert fit(["--method", "toy", "trainer.max_epochs=1", *folders]) == 0
    (run,) = (place / "my runs").iterdir()
    lines = (run / "predictions.jsonl").read_text("utf-8").split("\n")
    assert [json.loads(line)["reference"] for line in lines if line] == list(TEXTS)
    assert json.loads((run / "metrics.json").read_text())["n"] == len(TEXTS)
    page = unescape((run / "gallery.html").read_text("utf-8"))
    assert "肺 🫁" in page and "</script><b>" not in (run / "gallery.html").read_text("utf-8")
    said = "".join(capfd.readouterr())
    assert "肺" not in said and "Patchy" not in said


SPECIALS = "<image> <image_soft_token> <region47> </s> <|image_pad|> <|im_end|> <eos> <|endoftext|>"


@pytest.mark.parametrize("method", METHODS)
def test_each_method_learns_from_any_report_and_names_the_one_that_it_cuts(method):
    """Its phantom recipe, a text at a time: a batch of nothing, of letters that it does not know, of 20,000 words."""
    model = compose(method, "phantom", [], []).build("model")
    model.configure_model()
    preprocessor = model.preprocessor()
    for text in (TEXTS[0], TEXTS[2], SPECIALS, LONG):
        study = odd_study(model.modality, text)
        batch = preprocessor.collate([preprocessor(study, preprocessor.arrays(study), random.Random(0))])
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            loss = model.loss(batch)
        assert loss.isfinite() and loss.requires_grad
        assert batch["cut"] == ["odd"] * (text is LONG)
        cut = [str(warning.message) for warning in said if "cut to model.max_length" in str(warning.message)]
        assert len(cut) == (text is LONG) and not any("Patchy" in line for line in cut)


def odd_study(modality: str, text: str) -> Study:
    """An examination of noise with that report, of each region too."""
    shape = (64, 64, 24) if modality == "ct" else (96, 72)
    mask = np.zeros(shape, np.uint8)
    mask[10:50, 10:40] = 1
    noise = np.random.default_rng(0).integers(0, 256, shape)
    masks = dict.fromkeys(("heart", "lung", "pneumothorax"), mask)
    if modality == "radiograph":
        return Study("odd", image=noise.astype(np.uint8), masks=masks, boxes={}, report=text)
    place = {"spacing": (1.0, 1.0, 3.0), "orientation": ("L", "P", "S")}
    return Study("odd", volume=noise.astype(np.int16), masks=masks, report=text, regions={"heart": text}, **place)
