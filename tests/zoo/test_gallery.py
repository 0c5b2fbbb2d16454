"""The gallery: one file, nothing from outside, the right way round, every study and region in it."""

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.study import DataFault, Study
from zoo.gallery import Labeller, write_gallery
from zoo.gallery.page import PALETTE
from zoo.gallery.slices import SUBPIXEL, choose_levels, draw, outline, simplify
from zoo.gallery.text_diff import word_diff

REGIONS = ("heart", "left lung")
SIDES = {"right": ("R", "L"), "front": ("A", "P"), "head": ("S", "I")}


def lay(orientation: tuple[str, str, str], spacing: dict[str, float]) -> Study:
    """A box of a body, bright near its right, front, upper corner, as a file of this orientation holds it."""
    size = {"R": 40, "L": 40, "A": 30, "P": 30, "S": 20, "I": 20}
    shape = tuple(size[letter] for letter in orientation)
    inner, corner = [], []
    for letter, count in zip(orientation, shape, strict=True):
        towards, _ = next(pair for pair in SIDES.values() if letter in pair)
        inner.append(slice(count // 10, count - count // 10))
        low, high = count // 5, count // 5 + count // 4
        corner.append(slice(count - high, count - low) if letter == towards else slice(low, high))
    volume = np.full(shape, -1000, np.int16)
    volume[tuple(inner)] = 0
    volume[tuple(corner)] = 600
    mask = np.zeros(shape, np.uint8)
    mask[tuple(corner)] = 1
    where = {"R": "x", "L": "x", "A": "y", "P": "y", "S": "z", "I": "z"}
    masks = {"heart": mask, "left lung": np.flip(mask)}
    return Study(
        id="toy",
        volume=volume,
        masks=masks,
        orientation=orientation,
        spacing=tuple(spacing[where[letter]] for letter in orientation),
    )


def pixels(uri: str) -> np.ndarray:
    """A data URI's picture, `(row, column)`, grey."""
    head, data = uri.split(",", 1)
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"), dtype=float)


def points(path: str) -> np.ndarray:
    """The corners of an SVG path's first polygon, in pixels, `(point, 2)` of (x, y)."""
    first = path.split("z")[0]
    start, moves = first[1:].split("l")
    steps = np.array([start.split(), *np.array(moves.split()).reshape(-1, 2).tolist()], dtype=float)
    return steps.cumsum(axis=0) / SUBPIXEL


@pytest.mark.parametrize("orientation", [("L", "P", "S"), ("R", "A", "S"), ("P", "L", "I"), ("S", "R", "P")])
def test_patients_right_is_on_the_left_and_front_and_head_are_up(orientation: tuple[str, str, str]) -> None:
    pictures = draw(lay(orientation, {"x": 1.0, "y": 2.0, "z": 3.0}))
    level = pictures.axial[pictures.best["heart"]]
    for drawn in (level, pictures.coronal):
        image = pixels(drawn.images["mediastinal"])
        assert image.shape[::-1] == drawn.size
        rows, columns = np.nonzero(image > 225)
        assert rows.mean() < image.shape[0] / 2, "front or head is not up"
        assert columns.mean() < image.shape[1] / 2, "the patient's right is not on the left"
        corners = points(drawn.outlines["heart"][0])
        bright = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(np.r_[corners.min(axis=0), corners.max(axis=0)] - bright).max() <= 6
    # 32 × 24 voxels of body and its margins, at 1 and 2 mm.
    assert level.size[1] / level.size[0] == pytest.approx(2 * 26 / 34, rel=0.05)
    assert pictures.level_rows[pictures.best["heart"]] < 0.5


def test_a_study_that_does_not_say_how_it_lies_is_drawn_and_marked() -> None:
    study = lay(("L", "P", "S"), {"x": 1.0, "y": 1.0, "z": 1.0})
    assert draw(study).oriented
    assert not draw(replace(study, orientation=None, spacing=None)).oriented


def test_every_region_is_well_visible_on_some_level() -> None:
    area = {name: np.zeros(60, int) for name in ("thyroid", "heart", "lung", "abdomen", "empty")}
    area["thyroid"][56:59] = 20
    area["heart"][20:30] = 300
    area["lung"][10:55] = np.arange(45) * 10 + 1
    area["abdomen"][0:9] = 900
    levels = choose_levels(area, 60)
    assert levels == sorted(set(levels), reverse=True)
    assert len(levels) == 8
    for name in ("thyroid", "heart", "lung", "abdomen"):
        assert area[name][levels].max() >= 0.5 * area[name].max(), name


def test_levels_without_masks_are_spread_evenly() -> None:
    levels = choose_levels({}, 91)
    assert levels == [80, 70, 60, 50, 40, 30, 20, 10]


def test_outlines_follow_holes_and_leave_out_specks() -> None:
    mask = np.zeros((20, 20), bool)
    mask[2:14, 3:15] = True
    mask[6:10, 7:11] = False
    mask[17, 17] = True
    outer, hole = outline(mask)
    assert outer.min(axis=0).tolist() == [3, 2]
    assert outer.max(axis=0).tolist() == [15, 14]
    assert (hole.min(axis=0).tolist(), hole.max(axis=0).tolist()) == ([7, 6], [11, 10])
    octagon = simplify(outer, 0.1)
    assert 8 <= len(octagon) <= 10  # four sides, four cut corners
    assert np.linalg.norm(octagon - np.roll(octagon, 1, axis=0), axis=1).max() == 11
    single = np.zeros((3, 3), bool)
    single[1, 1] = True
    assert len(outline(single)) == 1


def test_word_diff_marks_what_only_one_side_says_and_escapes() -> None:
    left, right, share = word_diff("A 6 mm nodule <b>, no effusion.", "a 8.5 mm nodule <b>.")
    assert left == "A <del>6</del> mm nodule &lt;b&gt;<del>, no effusion</del>."
    assert right == "a <ins>8.5</ins> mm nodule &lt;b&gt;."
    assert share == pytest.approx(2 * 7 / (11 + 8))
    assert word_diff("", "") == ("", "", 1.0)


def test_colours_stay_apart_for_colour_blind_readers() -> None:
    # Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
    sights = {
        "normal": np.eye(3),
        "protanopia": [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        "deuteranopia": [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.01182, 0.04294, 0.968881],
        ],
        "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
    }
    colours = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in PALETTE])
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    for sight, matrix in sights.items():
        xyz = (linear @ np.array(matrix).T).clip(0, 1) @ to_xyz.T / [0.9505, 1, 1.089]
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=-1)
        apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1)[np.triu_indices(len(lab), 1)]
        assert apart.min() >= 18, sight
        assert lab[:, 0].min() >= 45, sight


class Toys:
    """As much of a DataModule as the gallery asks for."""

    regions = REGIONS

    def __init__(self, ids: tuple[str, ...] = ("one<1>", "two"), phantom: bool = True) -> None:
        self.ids, self.phantom = ids, phantom

    def studies(self, split: str) -> list[Study]:
        return [Study(id=name, split=split) for name in self.ids] if split == "validation" else []

    def read(self, study: Study) -> Study:
        return replace(lay(("R", "A", "S"), {"x": 1.0, "y": 1.0, "z": 2.0}), id=study.id)

    def is_phantom(self) -> bool:
        return self.phantom

    def label_findings(self) -> Labeller | None:
        return lambda text: frozenset(word for word in ("effusion", "nodule", "hernia") if word in text)


def write_run(folder: Path, ids: tuple[str, ...] = ("one<1>", "two")) -> Path:
    folder.mkdir()
    with (folder / "predictions.jsonl").open("w") as file:
        for i, name in enumerate(ids):
            reference = {"heart": "The heart is large.", "left lung": "A nodule and an effusion."}
            prediction = {
                "heart": "The heart <script>alert(1)</script> is large.",
                "left lung": "A nodule. " * (i + 1) + "hernia",
            }
            regions = [
                {"region": region, "named": region, "reference": reference[region], "prediction": prediction[region]}
                for region in REGIONS
            ]
            whole = [" ".join(part.values()) for part in (reference, prediction)]
            row = {"id": name, "reference": whole[0], "prediction": whole[1], "raw": whole[1], "regions": regions}
            file.write(json.dumps({**row, "findings": None, "split": "validation"}) + "\n")
    metrics = {"bleu_4": {"value": 0.125}}
    skipped = {"meteor": {"reason": "no WordNet"}}
    record = {"protocol": "toy", "n": 2, "metrics": metrics, "skipped": skipped}
    (folder / "metrics.json").write_text(json.dumps(record))
    return folder


def test_gallery_is_one_file_with_every_study_region_and_text(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run<a>")
    page = write_gallery(folder, Toys()).read_text()
    assert sorted(path.name for path in folder.iterdir()) == ["gallery.html", "metrics.json", "predictions.jsonl"]
    assert not re.search(r"https?://|(?:src|href)=\"(?!data:image/|#)|@import|url\(", page)
    assert page.count("<script>") == 1 and "&lt;script&gt;" in page
    assert "<title>run&lt;a&gt; · phantom</title>" in page
    assert page.count('<section class="study"') == 2
    for text in ("one&lt;1&gt;", "two", *REGIONS, "0.125", "meteor: no WordNet", "protocol toy, n = 2"):
        assert text in page
    assert "The heart is large." in page and "A nodule <del>and an effusion</del>." in page
    for chip in ("✓ nodule", "− missed: effusion", "+ invented: hernia"):
        assert chip in page
    assert "Do not share" not in page
    for region in range(2):
        assert page.count(f'<g class="outline c{region}"') >= 2 * 2 * 2  # two studies, two planes, two windows


def test_real_data_carries_the_warning_and_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    first = write_gallery(folder, Toys(phantom=False)).read_bytes()
    assert b"Do not share" in first and b"hantom" not in first.split(b"<style>")[0]
    assert write_gallery(folder, Toys(phantom=False)).read_bytes() == first


def test_a_large_run_shows_the_worst_the_best_and_some_between(tmp_path: Path) -> None:
    ids = tuple(f"s{i}" for i in range(9))
    page = write_gallery(write_run(tmp_path / "run", ids), Toys(ids), limit=3).read_text()
    shown = re.findall(r'<th scope="row"><a href="#study-\d">(s\d)</a>', page)
    assert shown == ["s8", "s4", "s0"]  # the prediction grows worse with each study
    assert "3 of 9 studies" in page


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no predictions there"), ("", "empty"), ('{"id": "one"}\n', "line 1"), ("[1]\n", "line 1")],
)
def test_broken_predictions_are_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "predictions.jsonl").write_text(content)
    with pytest.raises(DataFault, match=f"predictions.jsonl: .*{message}"):
        write_gallery(tmp_path, Toys())


def test_predictions_of_another_dataset_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFault, match="1 of 2 studies are not in this dataset's validation split, 'two' first"):
        write_gallery(write_run(tmp_path / "run"), Toys(("one<1>",)))
