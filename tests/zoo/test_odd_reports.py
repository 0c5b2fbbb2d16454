"""Reports and paths that nobody expects, from a fit to its gallery, and in each method's batches."""

import json
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path

from tests.zoo.toy import ToyData
from zoo.fit import main as fit

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
