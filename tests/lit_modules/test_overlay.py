"""The mask on the film, to the pixel, and the paper's words."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_modules.nets.overlay import PROMPT_1, PROMPT_2, Overlay, draw_mask

MASK = np.zeros((6, 5), np.uint8)
MASK[1:5, 1:4] = 1
FILM = np.full((6, 5), 100, np.uint8)


@pytest.mark.parametrize(
    ("settings", "colour"),
    [
        ({}, [162, 60, 60]),
        ({"alpha_is": "transparency"}, [193, 40, 40]),  # 0.4 · 100 + 0.6 · 255
        ({"colour": (0, 255, 0)}, [60, 162, 60]),
        ({"alpha": 0.0}, [100, 100, 100]),
        ({"alpha": 1.0}, [255, 0, 0]),
    ],
)
def test_the_colour_is_blended_in_the_mask_and_nowhere_else(settings: dict[str, Any], colour: list[int]) -> None:
    drawn = draw_mask(FILM, MASK, Overlay(**settings))
    assert drawn.dtype == np.uint8 and drawn.shape == (6, 5, 3)
    assert (drawn[MASK == 1] == colour).all() and (drawn[MASK == 0] == 100).all()


def test_every_grey_value_is_rounded_to_the_nearest() -> None:
    grey = np.arange(256, dtype=np.uint8)[None]
    exact = [[(6 * level + 4 * full) / 10 for full in (255, 0, 0)] for level in range(256)]
    drawn = draw_mask(grey, np.ones_like(grey), Overlay()).astype(int)
    assert np.abs(drawn[0] - exact).max() <= 0.5


def test_an_outline_leaves_the_inside_as_it_is() -> None:
    drawn = draw_mask(FILM, MASK, Overlay(style="outline"))
    border = MASK.copy()
    border[2:4, 2] = 0
    assert (drawn[border == 1] == [162, 60, 60]).all() and (drawn[border == 0] == 100).all()
    wide = np.zeros((1024, 1024), np.uint8)
    wide[100:200, 100:200] = 1
    assert (draw_mask(wide, wide, Overlay(style="outline"))[..., 0] > 1).sum() == 100**2 - 92**2  # 4 pixels


def test_no_mask_is_the_film_in_three_channels() -> None:
    assert np.array_equal(draw_mask(FILM, None, Overlay()), np.stack([FILM] * 3, axis=2))
    assert np.array_equal(draw_mask(FILM, np.zeros_like(FILM), Overlay()), np.stack([FILM] * 3, axis=2))


@pytest.mark.parametrize(("grey", "mask"), [(FILM.astype(np.uint16), MASK), (FILM, MASK[:3]), (FILM[..., None], MASK)])
def test_other_shapes_and_kinds_are_refused(grey: np.ndarray, mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match="film|8-bit"):
        draw_mask(grey, mask, Overlay())


def test_the_prompts_are_the_papers(shared: Path) -> None:
    assert PROMPT_1.replace("In the image, the overlapped area is pneumothorax. ", "") == PROMPT_2
    words = (shared / "papers" / "overlay_sft.txt").read_text(encoding="utf-8").replace("**", "")
    assert f"“{PROMPT_1}”" in words and f"“{PROMPT_2}”" in words
