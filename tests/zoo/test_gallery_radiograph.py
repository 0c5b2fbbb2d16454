"""Radiographs in the gallery: boxes and heatmaps where they belong, said by the right colours, switched on by hand."""

import base64
import io
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.study import Study
from lit_modules.report_generator import Heatmap
from zoo.gallery import Labeller, write_gallery
from zoo.gallery.page import CROWD, Entry, study_section
from zoo.gallery.radiograph import LONGEST_SIDE, draw_radiograph, with_heatmaps
from zoo.gallery.slices import SUBPIXEL

BOX = (0.25, 0.5, 0.75, 0.6)


def study(**more: object) -> Study:
    """A wide 12-bit image that is bright in its box."""
    image = np.full((500, 1400), 100, np.uint16)
    image[250:300, 350:1050] = 4000
    return Study(id="s/0", image=image, **{"boxes": {"Nodule <b>": (BOX,)}, **more})


def opened(uri: str) -> np.ndarray:
    """A data URI's picture."""
    assert uri.startswith("data:image/")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))))


def extent(path: str) -> list[float]:
    """Least and greatest x and y of the rectangles of SVG path data, in pixels of the drawn image."""
    boxes = [[int(n) for n in found] for found in re.findall(r"M(\d+) (\d+)h(\d+)v(\d+)h-\d+z", path)]
    corners = np.array([[x, y, x + width, y + height] for x, y, width, height in boxes]) / SUBPIXEL
    return [*corners[:, :2].min(axis=0), *corners[:, 2:].max(axis=0)]


def test_box_lies_around_what_is_bright() -> None:
    drawn = draw_radiograph(study())
    image = opened(drawn.image)[..., 0]
    assert drawn.size == (LONGEST_SIDE, 250) and image.shape == (250, LONGEST_SIDE)
    rows, columns = np.nonzero(image > 128)
    bright = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert extent(drawn.outlines["Nodule <b>"][0]) == pytest.approx(bright, abs=2)
    assert opened(drawn.thumbnail).shape[1] == 132


def test_a_small_image_is_not_enlarged_and_masks_are_outlined_where_they_lie() -> None:
    mask = np.zeros((30, 40), np.uint8)
    mask[10:20, 5:15] = 1
    small = Study(
        id="s", image=np.eye(30, 40, dtype=np.uint8), masks={"lung": mask, "empty": mask * 0}, boxes={"a": ()}
    )
    drawn = draw_radiograph(small)
    assert drawn.size == (40, 30) and list(drawn.outlined) == ["lung"]
    start, *moves = re.findall(r"-?\d+ -?\d+", drawn.outlines["lung"][0])
    points = np.cumsum([[int(n) for n in pair.split()] for pair in (start, *moves)], axis=0) / SUBPIXEL
    assert np.abs(np.r_[points.min(axis=0), points.max(axis=0)] - [5, 10, 15, 20]).max() <= 0.5


@pytest.mark.parametrize(("count", "crowded"), [(2, False), (CROWD, False), (CROWD + 1, True)])
def test_many_outlines_show_only_when_pointed_at(count: int, crowded: bool) -> None:
    mask = np.zeros((500, 1400), np.uint8)
    mask[100:200, 300:400] = 1
    masks = {f"structure {number}": mask for number in range(count)}
    drawn = draw_radiograph(study(boxes={}, masks=masks))
    section = study_section(Entry(study(), "Clear."), drawn, list(masks), "study-0")
    assert ('class="viewer radiograph crowded"' in section) is crowded
    assert section.count("structure 0") >= 1


def test_heatmap_is_clear_where_neutral_and_two_colours_apart_where_not() -> None:
    grid = np.array([[-2, 0, 1], [0, 4, np.nan]], np.float32)
    signed, plain = with_heatmaps(
        draw_radiograph(study()),
        {"by sign": Heatmap(grid, "nats", signed=True), "by size": Heatmap(abs(grid), "share")},
    ).layers
    red, _, blue, alpha = np.moveaxis(opened(signed.uri).astype(int), -1, 0)
    assert alpha.shape == grid.shape
    assert alpha[0, 1] == alpha[1, 0] == alpha[1, 2] == 0 and alpha[1, 1] > alpha[0, 0] > alpha[0, 2] > 0
    assert blue[0, 0] > red[0, 0] and red[1, 1] > blue[1, 1]
    assert signed.ticks == {"−4 against": 0.0, "0": 0.5, "4 for": 1.0}  # 0 in the middle, however values lie
    alpha = opened(plain.uri)[..., 3]
    assert alpha[0, 1] == 0 and 0 < alpha[0, 2] < alpha[0, 0] < alpha[1, 1] and alpha[1, 2] == 0
    assert plain.ticks == {"0": 0.0, "4": 1.0}
    zero = with_heatmaps(draw_radiograph(study()), {"none": Heatmap(grid * 0, "", signed=True)}).layers[0]
    assert not opened(zero.uri)[..., 3].any() and zero.ticks == {"0": 0.5}


class Films:
    """As much of a DataModule as the gallery asks for: a grounded, a negative and a study of two boxes."""

    regions = ()
    listed = {
        "s/0": {"boxes": {"Nodule <b>": (BOX,)}, "findings": ("Nodule <b>",)},
        "s/1": {"boxes": {}, "findings": ()},
        "t": {"boxes": {"Nodule <b>": (BOX, BOX), "Effusion": (BOX,)}, "findings": ("Nodule <b>", "Effusion", "Gas")},
    }

    def studies(self, split: str) -> list[Study]:
        return [Study(id=name, split=split, **known) for name, known in self.listed.items()]

    def read(self, listed: Study) -> Study:
        return replace(listed, image=study().image)

    def is_phantom(self) -> bool:
        return False

    def label_findings(self) -> Labeller | None:
        return None


def write_run(folder: Path) -> Path:
    folder.mkdir()
    lines = [
        {"id": name, "reference": "A nodule.", "prediction": f"Words of {name}.", "raw": raw, "split": "test"}
        for name, raw in (("s/0", "Words of s/0. !"), ("s/1", ""), ("t", "Words of t.\n"))
    ]
    (folder / "predictions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def explain(read: Study, text: str) -> Mapping[str, Heatmap]:
    assert threading.current_thread() is threading.main_thread() and read.image is not None
    if read.id == "s/1":
        return {}
    values = np.full((7, 7), len(text), np.float32)
    return {"patches": Heatmap(values, f"of {text} <i>", "A <b> note.", (-0.5, 0.0, 1.5, 1.0))}


def section(page: str, name: str) -> str:
    return next(part for part in page.split("<section ")[2:] if f"<h2>{name}</h2>" in part)


def test_gallery_ties_boxes_to_the_text_and_explains_what_was_said(tmp_path: Path) -> None:
    page = write_gallery(write_run(tmp_path / "run"), Films(), explain).read_text()
    assert not re.search(r"https?://|(?:src|href)=\"(?!data:image/|#)|@import|url\(", page)
    one = section(page, "s/0")
    assert re.search(r'<li class="region c0" data-r="0" tabindex="0">.*Nodule &lt;b&gt;.*<del>A nodule</del>', one)
    assert '<g class="outline c0" data-r="0"><title>Nodule &lt;b&gt;</title>' in one
    # The method is asked with its untouched output, and its grid reaches out of the image as its frame says.
    assert "of Words of s/0. ! &lt;i&gt;" in one and "<p>A &lt;b&gt; note.</p>" in one
    heat = re.search(
        r'<image class="heat" data-heat="0" [^>]*x="([^"]*)" y="0.0" width="([^"]*)" height="([^"]*)"', one
    )
    assert [float(n) / SUBPIXEL for n in heat.groups()] == [-350, 1400, 250]
    assert one.count('type="radio"') == 2 and 'value="" checked' in one
    assert "Untouched output" in one


def test_a_study_without_box_says_so_and_one_of_several_names_them_all(tmp_path: Path) -> None:
    page = write_gallery(write_run(tmp_path / "run"), Films(), explain).read_text()
    none, several = section(page, "s/1"), section(page, "t")
    assert '<span class="chip">negative</span><span class="chip">no box</span>' in none
    assert "<fieldset" not in none and "<g class" not in none and '<li class="region">' in none
    assert '<li class="region">' in several and several.count("<g class") == 2
    for number in range(2):
        assert several.count(f'data-r="{number}"') == 3  # outline, key, heading
    assert '<span class="chip">Gas</span>' in several and "Untouched output" not in several


def test_index_has_the_columns_that_apply(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    page = write_gallery(folder, Films()).read_text()
    index = page.split("<section ")[1]
    heads = re.findall(r'<th class="([^"]*)"[^>]*><button type="button">([^<]*)', index)
    assert heads == [("names", "boxes"), ("number score", "BLEU-4"), ("number score", "ROUGE-L")]
    cells = re.findall(r'<th scope="row"><a href="[^"]*">([^<]*)</a></th><td class="names">([^<]*)</td>', index)
    assert dict(cells) == {"s/0": "Nodule &lt;b&gt;", "s/1": "–", "t": "Nodule &lt;b&gt; ×2, Effusion"}
    assert "<fieldset" not in page  # nobody was asked


def test_absent_figures_are_gathered_by_reason(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    skipped = {"bert_p": {"reason": "no <file>"}, "meteor": {"reason": "no WordNet"}, "bert_r": {"reason": "no <file>"}}
    (folder / "metrics.json").write_text(json.dumps({"metrics": {}, "skipped": skipped}))
    page = write_gallery(folder, Films()).read_text()
    assert "Absent figures: 3" in page
    assert "<li>bert_p, bert_r: no &lt;file&gt;</li><li>meteor: no WordNet</li>" in page
