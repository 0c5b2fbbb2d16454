"""Activation heatmaps: a patch's number lies over what the patch saw, in every family and for every shape of film."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from lit_modules.nets.patch_norms import contrast, normalised, patch_norms, patch_states
from lit_modules.nets.vlm import build_processor, build_vlm
from lit_modules.nets.vlm_families import FAMILIES

FILMS = [(150, 220), (220, 150), (90, 270), (270, 80), (30, 40)]  # landscape, portrait, long, small


@lru_cache
def tiny(model_type: str):
    """The family's phantom and its image processor."""
    vlm = f"phantom:{model_type}"
    return build_vlm(vlm, torch.float32).eval(), build_processor(vlm).image_processor


def read(model_type: str, film: np.ndarray):
    """What the model reads of a film, `(row, column, 3)`, through the family's own image processor."""
    return tiny(model_type)[1](images=[film], return_tensors="pt")


def noise(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(100, 140, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("shape", FILMS, ids=str)
def test_a_square_of_the_film_changes_the_cell_that_lies_over_it(model_type, shape):
    model, family = tiny(model_type)[0], FAMILIES[model_type]
    film = noise(shape)
    before, (x0, y0, x1, y1) = patch_states(model, family, read(model_type, film), shape)
    rows, columns = before.shape[:2]
    down = (y0 + (y1 - y0) * (np.arange(rows) + 0.5) / rows) * shape[0]  # the cells' middles, in the film's pixels
    across = (x0 + (x1 - x0) * (np.arange(columns) + 0.5) / columns) * shape[1]
    reach = max(1, round(min(down[1] - down[0], across[1] - across[0]) / 3))
    first, last = np.flatnonzero((down > 0) & (down < shape[0]))[[0, -1]]
    left, right = np.flatnonzero((across > 0) & (across < shape[1]))[[0, -1]]
    for row, column in ((first, left), (first, right), (last, left), (last - 1, columns // 2), (rows // 3, left + 1)):
        y, x = int(down[row]), int(across[column])
        changed = film.copy()
        changed[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1] = 255
        after, frame = patch_states(model, family, read(model_type, changed), shape)
        assert frame == (x0, y0, x1, y1)
        most = int((after - before).norm(dim=-1).argmax())
        assert divmod(most, columns) == (row, column)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_before_the_last_norm_patches_differ_in_length_and_after_it_no_more(model_type):
    model, family = tiny(model_type)[0], FAMILIES[model_type]
    inputs = read(model_type, noise((150, 220)))
    before, frame = patch_norms(model, family, inputs, (150, 220))
    after, same = patch_norms(model, family, inputs, (150, 220), after_norm=True)
    assert before.dtype == np.float32 and before.shape == after.shape and frame == same
    assert after.std() / after.mean() < 1e-4 < 1e-3 < before.std() / before.mean()


def test_adapters_of_the_language_model_leave_the_map_as_it_is_and_those_of_the_tower_do_not():
    family = FAMILIES["gemma3"]
    inputs = read("gemma3", noise((60, 50)))
    maps = []
    for targets in (None, family.language, "all-linear"):
        model = build_vlm("phantom:gemma3", torch.float32).eval()
        if targets:
            torch.manual_seed(0)
            model = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False)).eval()
        maps.append(patch_norms(model, family, inputs, (60, 50))[0])
    bare, language, everything = maps
    assert np.array_equal(language, bare)
    assert np.abs(everything - bare).max() > 0.01


def test_two_films_are_refused():
    two = tiny("qwen2_vl")[1](images=[noise((60, 60))] * 2, return_tensors="pt")
    with pytest.raises(ValueError, match="the inputs hold 2"):
        patch_norms(tiny("qwen2_vl")[0], FAMILIES["qwen2_vl"], two, (60, 60))


def test_the_greatest_activation_is_1_and_outliers_may_be_cut_off():
    values = np.linspace(1, 2, 1000, dtype=np.float32).reshape(25, 40)
    assert normalised(values) == pytest.approx(values / 2, abs=1e-5)
    values[3, 3] = 100
    assert np.median(normalised(values)) == pytest.approx(0.015, abs=1e-3)
    cut = normalised(values, percentile=99.5)
    assert cut.max() == 1 == cut[3, 3] and np.median(cut) == pytest.approx(1.5 / 1.995, abs=1e-3)


def test_contrast_weighs_cells_with_what_the_mask_covers_of_them():
    values = np.array([[3.0, 1.0], [1.0, 2.0]])
    mask = np.zeros((40, 80), np.uint8)
    mask[:20, :40] = 255
    assert contrast(values, (0, 0, 1, 1), mask) == pytest.approx(3 / (4 / 3))
    assert contrast(7 * values, (0, 0, 1, 1), mask) == pytest.approx(3 / (4 / 3))
    mask[:] = 0
    mask[:20, 20:60] = 1  # half of each upper cell
    assert contrast(values, (0, 0, 1, 1), mask) == pytest.approx(2 / ((1.5 + 0.5 + 1 + 2) / 3))
    # Half of the left cells lies beside the film: they count half as much outside.
    mask[:] = 0
    mask[:20, 40:] = 1
    found = contrast(values, (-1.0, 0.0, 1.0, 1.0), mask)
    assert found == pytest.approx(contrast(values[:, 1:], (0.0, 0.0, 1.0, 1.0), mask))
    assert math.isnan(contrast(values, (0, 0, 1, 1), np.zeros((4, 4)))), "no mask"
    assert math.isnan(contrast(values, (0, 0, 1, 1), np.ones((4, 4)))), "nothing outside"
