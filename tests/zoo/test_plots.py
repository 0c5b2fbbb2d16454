"""Plots: what stands in them, that nothing is cut off, that the same figures give the same file."""

import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from zoo.command import UsageError
from zoo.leaderboard import plots
from zoo.leaderboard.plots import Point, plot_classes, plot_points, plot_seeds

LONG = "A method whose name its authors made so long that it must go over two lines, in their re-implementation"
POINTS = [
    Point("weak", 0.21, (0.19, 0.24), "reproduced"),
    Point("printed", 0.35, None, "reported"),
    Point("strong", 0.48, (0.45, 0.5), "recomputed"),
]
CLASSES = {"Rare": {"ours": 0.1, "theirs": 0.0}, "Common": {"ours": 0.8, "theirs": 0.6}}
SUPPORT = {"Rare": 3, "Common": 1200}
SEEDS = {"ours": [0.39, 0.41, 0.4], "theirs": [0.37]}


TITLE = (
    "A dataset with a name, its official validation split, protocol regionformer (version 1), scored in the zoo " * 2
)


def one_of_each(folder, suffix="png", phantom=False):
    title = {"title": TITLE, "phantom": phantom}
    plot_points(POINTS, "BLEU-4", folder / f"points.{suffix}", **title)
    plot_classes(CLASSES, folder / f"classes.{suffix}", support=SUPPORT, **title)
    plot_seeds(SEEDS, "CIDEr", folder / f"seeds.{suffix}", **title)
    return sorted(folder.glob(f"*.{suffix}"))


def smallest_and_largest(folder):
    many = [Point(f"{LONG} {i}" if i % 3 else f"m{i}", 0.1 + i / 90, (0.09, 0.12 + i / 80)) for i in range(25)]
    wide = {f"class {i}": {f"{LONG} {k}": (i + k) / 26 for k in range(6)} for i in range(20)}
    plot_points(many, "BLEU-4", folder / "many_points.png", title=TITLE)
    plot_points(POINTS[1:2], "BLEU-4", folder / "one_point.png")
    plot_points([Point("nothing", 0.0, (0.0, 0.0))], "F1", folder / "zero.png")
    plot_classes(wide, folder / "many_classes.png", title=TITLE)
    plot_seeds({LONG: [1.5]}, "CIDEr", folder / "one_run.png")
    return sorted(folder.glob("*.png"))


@pytest.fixture
def texts(monkeypatch):
    """Path → the texts of an SVG, which are drawn as outlines otherwise."""
    monkeypatch.setitem(plots._STYLE, "svg.fonttype", "none")

    def read(path):
        root = ElementTree.fromstring(path.read_text())
        return [element.text for element in root.iter("{http://www.w3.org/2000/svg}text") if element.text]

    return read


def test_nothing_is_cut_off(tmp_path):
    pictures = {path.stem: path for path in one_of_each(tmp_path, phantom=True) + smallest_and_largest(tmp_path)}
    assert len(pictures) == 8
    heights = {}
    for name, path in pictures.items():
        picture = np.asarray(Image.open(path).convert("L"))
        inside = picture[4:-4, 4:-4]
        assert (picture == 255).sum() - (inside == 255).sum() == picture.size - inside.size, name
        assert (inside < 200).mean() > 0.002, name
        heights[name], width = picture.shape
        assert width == 1080
    assert heights["one_point"] < 300
    assert heights["many_points"] / 25 > 30  # pixels a row
    plot_points(POINTS, "BLEU-4", tmp_path / "untitled.png")
    assert heights["points"] - Image.open(tmp_path / "untitled.png").height > 4 * 18  # a title takes no row's place


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_same_figures_give_the_same_bytes(tmp_path, suffix):
    pairs = zip(one_of_each(tmp_path / "once", suffix), one_of_each(tmp_path / "again", suffix), strict=True)
    for mine, other in pairs:
        content = mine.read_bytes()
        assert content == other.read_bytes(), mine.name
        assert not re.search(rb"<dc:date>|Creation Time|\d\d:\d\d:\d\d", content)
    assert not list(tmp_path.rglob("*.partial"))


def test_points_stand_with_their_intervals_best_on_top(tmp_path, texts):
    plot_points(POINTS, "BLEU-4", tmp_path / "a.svg", title="RadGenome-ChestCT")
    found = texts(tmp_path / "a.svg")
    assert [text for text in found if text in ("weak", "printed", "strong")] == ["strong", "printed", "weak"]
    figures = [" ".join(text.split()) for text in found if re.match(r"0\.\d{3}\b", text)]
    assert figures == ["0.480 [0.450, 0.500]", "0.350", "0.210 [0.190, 0.240]"]
    assert {"BLEU-4", "RadGenome-ChestCT", "as the paper reports it"} <= set(found)


def test_only_reported_figures_are_hollow(tmp_path, texts):
    def hollow(points):
        plot_points(points, "BLEU-4", tmp_path / "a.svg")
        return (tmp_path / "a.svg").read_text().count("fill: #ffffff; stroke: #0072b2")

    assert hollow([POINTS[0], POINTS[2]]) == 0
    assert "as the paper reports it" not in texts(tmp_path / "a.svg")
    assert hollow(POINTS) == 2  # the point and the legend's
    assert hollow(POINTS[1:2]) == 2
    assert not any("scored here" in text for text in texts(tmp_path / "a.svg"))


def test_the_phantom_is_named_in_every_plot(tmp_path, texts):
    for path in one_of_each(tmp_path, "svg", phantom=True):
        assert texts(path).count("phantom, not patients") == 1, path.name
    for path in one_of_each(tmp_path, "svg"):
        assert "phantom, not patients" not in texts(path), path.name


def test_classes_stand_by_their_support(tmp_path, texts):
    plot_classes(CLASSES, tmp_path / "a.svg", support=SUPPORT)
    found = [" ".join(text.split()) for text in texts(tmp_path / "a.svg")]
    assert [text for text in found if "(" in text and "F1" not in text] == ["Common (1,200)", "Rare (3)"]
    assert {"ours", "theirs", "0.80", "0.60", "0.10", "0.00"} <= set(found)
    plot_classes(CLASSES, tmp_path / "b.svg")
    assert [text for text in texts(tmp_path / "b.svg") if text in CLASSES] == ["Rare", "Common"]


def test_seeds_stand_with_mean_and_standard_deviation(tmp_path, texts):
    plot_seeds(SEEDS, "CIDEr", tmp_path / "a.svg")
    found = [" ".join(text.split()) for text in texts(tmp_path / "a.svg")]
    assert {"0.400 ± 0.010 (3 runs)", "0.370 (1 run)", "CIDEr"} <= set(found)


def test_names_are_taken_as_they_are(tmp_path, texts):
    plot_points([Point("$a_1$ & <b>", 0.5)], "F_1", tmp_path / "a.svg")
    assert {"$a_1$ & <b>", "F_1"} <= set(texts(tmp_path / "a.svg"))


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda folder: plot_points(POINTS, "BLEU-4", folder / "a.pdf"), "must end in .png or .svg"),
        (lambda folder: plot_points([], "BLEU-4", folder / "a.png"), "no figure"),
        (lambda folder: plot_classes({}, folder / "a.png"), "no class"),
        (lambda folder: plot_classes({"a": {str(i): 0.1 for i in range(7)}}, folder / "a.png"), "plot 6 at most"),
        (lambda folder: plot_seeds({"a": []}, "BLEU-4", folder / "a.png"), "no run"),
    ],
)
def test_what_cannot_be_plotted_is_refused(tmp_path, draw, words):
    with pytest.raises(UsageError, match=words):
        draw(tmp_path)
    assert not list(tmp_path.iterdir())


def test_plots_need_no_display_and_load_matplotlib_late(tmp_path):
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from zoo.leaderboard.plots import Point, plot_points\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"plot_points([Point('a', 0.5)], 'BLEU-4', Path({str(tmp_path / 'a.png')!r}))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PATH": "", "MPLBACKEND": "tkagg"}, timeout=120)
    assert (tmp_path / "a.png").is_file()
