"""What ASaRG's maps say of what a report says (§6.2), and the command that shows it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.lit_modules.asarg_tiny import FEATURES, MASKS, film, saved, small


def test_maps_are_compared_with_what_is_said() -> None:
    said = "There is a pleural effusion. No pneumothorax. Heart size is normal. Possible fracture."
    maps = small().explain(film(), said)
    assert list(maps) == ["Cardiomegaly", "Effusion", "Pneumothorax", "Fracture", "heart"]
    notes = {name: heatmap.note for name, heatmap in maps.items()}
    assert notes == {
        "Cardiomegaly": "The text denies it and the map is empty: agree.",
        "Effusion": "The text affirms it and the map covers 1.56 % of the film: agree.",
        "Pneumothorax": "The text denies it and the map is empty: agree.",
        "Fracture": "The text affirms it and the map is empty: disagree, unless the segmentation does not know this "
        "class.",
        "heart": "The map covers 9.38 % of the film.",
    }  # fmt: skip
    assert all(heatmap.title == f"{name}, share of a cell" for name, heatmap in maps.items())
    assert np.array_equal(maps["heart"].values, MASKS["heart"][6::12, 4::9].astype(np.float32))
    assert maps["heart"].values.dtype == np.float32 and maps["heart"].frame == (0, 0, 1, 1)
    denied = small().explain(film(), "No effusion. Large pneumothorax.")
    assert denied["Effusion"].note == "The text denies it and the map covers 1.56 % of the film: disagree."
    assert denied["Pneumothorax"].note == "The text affirms it and the map is empty: disagree."


def test_the_frame_is_where_the_grid_lies() -> None:
    heart = small(frame="padded_square").explain(film(), "Normal heart.")["heart"]
    assert heart.frame == pytest.approx((-1 / 6, 0, 7 / 6, 1))  # 96 by 72: 12 pixels at each side
    assert "covers 9.38 % of the film" in heart.note  # not of the square
    rows, columns = np.nonzero(heart.values)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 5, 3, 5)


def test_only_what_is_fused_is_shown() -> None:
    text = "Effusion and a big heart."
    assert small(fusion=FEATURES).explain(film(), text) == {}
    assert small().explain(film(masks=None), text) == {}
    assert small().explain(film(), "Good inspiration.") == {}
    assert list(small(classes="cxas").explain(film(), text)) == ["heart"]
    united = small(classes="superclasses").explain(film(), f"No {text}")
    assert list(united) == ["pathology", "heart region"]
    assert united["pathology"].note == "The map covers 1.56 % of the film."  # of whichever: neither agrees nor not
    shuffled = small(shuffle_maps=0).explain(film(), text)["heart"]
    assert shuffled.note.endswith("; the model was given it in another class's place (model.shuffle_maps).")


def test_of_several_classes_one_that_is_seen_and_eight_maps_at_most() -> None:
    masks = {"CVC - Abnormal": MASKS["heart"], "Diffuse Nodule": MASKS["lung"]}
    assert list(small().explain(film(masks=masks), "Central line. Nodules.")) == ["Diffuse Nodule", "CVC - Abnormal"]
    many = "Effusion, nodule, mass, fibrosis, emphysema, fracture, consolidation, atelectasis, heart, aorta, spine."
    found = small().explain(film(), many)
    assert len(found) == 8 and "heart" not in found


def test_the_command_reports_on_a_film_with_masks(tmp_path: Path, capsys) -> None:
    from zoo.predict import main

    run, masks = tmp_path / "run", tmp_path / "masks" / "film"
    (run / "checkpoints").mkdir(parents=True)
    masks.mkdir(parents=True)
    model = small()
    with torch.no_grad():
        model.llava.lm_head.weight.zero_()
        for word, sign in (("▁heart", 1.0), ("▁lungs", -1.0)):  # whatever it reads, it says one of the two
            model.llava.lm_head.weight[model.tokenizer.get_vocab()[word]] = sign
    torch.save(saved(model), run / "checkpoints" / "best.ckpt")
    (run / "config.yaml").write_text(f"""
method: asarg
recipe: phantom
model:
  class: lit_modules.asarg:Asarg
  llava: phantom:llava
  phantom: {{hidden: 32, layers: 1, heads: 4, mlp: 48}}
  phantom_clip: {{hidden: 64, layers: 2, heads: 4, mlp: 64, patch: 16, image: 64}}
  resnet: phantom:resnet
  phantom_resnet: {{dim: 64}}
  fusion: {{depth: 8}}
  grid: 8
  max_length: 512
  gradient_checkpointing: false
  dtype: float32
  decoding: {{max_new_tokens: 6}}
data: {{class: 'datamodules.mimic_cxr:MimicCXR', root: {tmp_path / "nowhere"}}}
trainer: {{accelerator: cpu}}
""")
    Image.fromarray(film().image).save(tmp_path / "film.png")
    for name, values in MASKS.items():
        Image.fromarray(values * 255).save(masks / f"{name}.png")
    given = ["--checkpoint", str(run), "--output", str(tmp_path / "out"), "--image", str(tmp_path / "film.png")]
    assert main([*given, "--masks", str(tmp_path / "masks")]) == 0
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    covered = {"heart": 9.38, "lung": 56.2}
    assert record["heatmaps"]
    for name, heatmap in record["heatmaps"].items():
        assert heatmap["note"] == f"The map covers {covered[name]} % of the film."
    assert "share of a cell" in (tmp_path / "out" / "report.html").read_text()
    capsys.readouterr()
    assert main(given) == 3  # a film without masks
    assert "film has no segmentation masks: give them (data.masks" in capsys.readouterr().err
