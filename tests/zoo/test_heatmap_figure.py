"""The figure of heatmaps: one scale for all rows, each heatmap where its frame lies, faults in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_modules.report_generator import Heatmap
from zoo.command import UsageError
from zoo.gallery.heatmap_figure import HeatmapRow, draw_heatmaps

FILM = np.zeros((60, 40), np.uint8)


def _row(name: str, peak: float, frame=(0.0, 0.0, 1.0, 1.0)) -> HeatmapRow:
    values = np.zeros((4, 4), np.float32)
    values[1, 2] = peak  # its middle at 3/8 from above, 5/8 from the left
    return HeatmapRow(name, FILM, Heatmap(values, "activation", frame=frame))


def _panels(path: Path, rows: int) -> list[np.ndarray]:
    """The heatmaps' panels, cut out of the page: black films on white, the right half of what is dark."""
    page = np.asarray(Image.open(path).convert("RGB")).astype(int)
    dark = (page.sum(-1) < 60).sum(1) > 200  # lines of letters are not that dark
    edges = np.flatnonzero(np.diff(np.r_[0, dark.astype(int), 0]))
    lines = [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if stop - start > 100]
    assert len(lines) == rows
    panels = []
    for start, stop in lines:
        across = np.flatnonzero((page[start:stop].sum(-1) < 60).mean(0) > 0.5)
        right = across[across > across.min() + np.diff(across).argmax()]
        gap = np.flatnonzero(np.diff(across) > 5)
        panels.append(page[start:stop, across[gap[0] + 1] : right.max() + 1])
    return panels


def test_equal_colours_are_equal_values_in_all_rows(tmp_path):
    draw_heatmaps([_row("a", 1.0), _row("b", 0.4)], tmp_path / "map.png")
    strong, weak = (panel.sum(-1) for panel in _panels(tmp_path / "map.png", 2))
    assert strong.max() > 1.5 * weak.max() > 0, "the weaker peak must not be stretched to the scale's end"


@pytest.mark.parametrize(("frame", "across"), [((0.0, 0.0, 1.0, 1.0), 0.625), ((-0.5, 0.0, 1.0, 1.0), 0.4375)])
def test_a_heatmap_lies_where_its_frame_does(tmp_path, frame, across):
    draw_heatmaps([_row("a", 1.0, frame)], tmp_path / "map.png")
    (panel,) = _panels(tmp_path / "map.png", 1)
    hot = np.argwhere(panel.sum(-1) > 0.8 * panel.sum(-1).max()).mean(0) / panel.shape[:2]
    assert hot == pytest.approx([0.375, across], abs=0.02)


def test_the_mask_is_outlined_in_both_panels(tmp_path):
    mask = np.zeros(FILM.shape, np.uint8)
    mask[20:40, 10:30] = 1
    row = _row("a", 0.0)
    draw_heatmaps([row], tmp_path / "plain.png")
    draw_heatmaps([HeatmapRow("a", FILM, row.heatmap, mask)], tmp_path / "outlined.png", phantom=True)

    def cyan(name: str) -> np.ndarray:
        page = np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int)
        return np.flatnonzero(((page[..., 2] - page[..., 0]) > 100).any(0))

    assert not len(cyan("plain.png"))
    assert np.diff(cyan("outlined.png")).max() > 100, "two separate outlines"


def test_what_cannot_be_drawn_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no heatmap"):
        draw_heatmaps([], tmp_path / "map.png")
    row = HeatmapRow("a", FILM, _row("a", 1.0).heatmap, np.ones((40, 60), np.uint8))
    with pytest.raises(UsageError, match="the mask is"):
        draw_heatmaps([row], tmp_path / "map.png")


def test_a_signed_heatmap_is_clear_where_it_is_neutral_whatever_the_others_reach(tmp_path):
    film = np.full((60, 60), 128, np.uint8)
    values = np.full((2, 2), -1, np.float32), np.zeros((2, 2), np.float32), np.full((2, 2), 0.5, np.float32)
    rows = [HeatmapRow("a", film, Heatmap(grid, "nats", signed=True)) for grid in values]
    draw_heatmaps(rows, tmp_path / "map.png")
    page = np.asarray(Image.open(tmp_path / "map.png").convert("RGB")).astype(int)
    blue, orange = page[..., 2] - page[..., 0] > 60, page[..., 0] - page[..., 2] > 30
    panel = (page == 128).all(-1).sum() / 4  # three films, and the neutral heatmap
    assert 0.95 < blue.sum() / panel < 1.1 and 0.95 < orange.sum() / panel < 1.1  # the bar beside them is narrow


def test_a_text_has_a_column_of_its_own_and_is_cut_where_it_is_longer_than_its_panel(tmp_path):
    row, text = _row("a", 1.0), "small words " * 200 + "$\\frac"  # no formula, though it looks like one
    draw_heatmaps([HeatmapRow("a", FILM, row.heatmap, text=text)], tmp_path / "map.png")
    page = np.asarray(Image.open(tmp_path / "map.png").convert("L")).astype(int)
    written = np.argwhere(page[:, int(0.72 * page.shape[1]) :] < 128)
    assert len(written) > 2000 and written[:, 0].max() < 0.97 * page.shape[0]
    assert written[:, 1].max() < 0.27 * page.shape[1], "the text must not reach the page's edge"


def test_a_long_name_stays_beside_its_film(tmp_path):
    draw_heatmaps([_row("-".join(["a-long-name"] * 12), 1.0)], tmp_path / "map.png")
    page = np.asarray(Image.open(tmp_path / "map.png").convert("L")).astype(int)
    name = np.argwhere(page[:, : int(0.05 * page.shape[1])] < 128)
    assert len(name) > 200 and name[:, 0].min() > 5 and name[:, 0].max() < page.shape[0] - 6
