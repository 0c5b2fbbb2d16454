"""Pooled maps: torch's adaptive pooling to half a level, unions of masks, not of maps, each mask asked for once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lit_modules.nets.pooled_maps import pool, pooled_maps

SIZES = [(1024, 1024), (512, 512), (97, 211), (313, 100), (32, 33), (7, 20), (1, 1), (301, 40)]


def _mask(shape, seed=0, share=0.3):
    return (np.random.default_rng(seed).random(shape) < share).astype(np.uint8)


def _torch(mask, grid):
    return F.adaptive_avg_pool2d(torch.from_numpy(mask.astype(np.float64))[None], grid)[0].numpy()


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("grid", [32, 24, 5])
def test_as_torch_pools(shape, grid):
    mask = _mask(shape, grid)
    pooled = pool(mask, grid)
    assert pooled.dtype == np.uint8 and pooled.shape == (grid, grid)
    assert np.abs(pooled / 255 - _torch(mask, grid)).max() <= 0.5 / 255 + 1e-12


def test_any_memory_order_and_type_pools_alike():
    mask = _mask((90, 61))
    for same in (np.asfortranarray(mask), mask.astype(bool), np.repeat(mask, 2, axis=1)[:, ::2]):
        assert np.array_equal(pool(same, 8), pool(mask, 8))


def test_windows_of_more_than_255_rows_do_not_wrap():
    assert (pool(np.ones((1200, 300), np.uint8), 2) == 255).all()
    assert (pool(np.ones((300, 1200), np.uint8, order="F"), 2) == 255).all()


@pytest.mark.parametrize("shape", [(60, 100), (101, 60), (33, 70)])
def test_a_padded_square_pools_what_the_model_sees(shape):
    mask, side = _mask(shape), max(shape)
    top, left = (side - shape[0]) // 2, (side - shape[1]) // 2
    square = np.zeros((side, side), np.uint8)
    square[top : top + shape[0], left : left + shape[1]] = mask
    assert np.array_equal(pool(mask, 16, "padded_square"), pool(square, 16))


@pytest.mark.parametrize(
    "mask", [np.zeros((3, 4, 5), np.uint8), np.zeros((4, 4), np.float32), np.full((4, 4), 255, np.uint8)]
)
def test_what_is_no_mask_is_refused(mask):
    with pytest.raises(ValueError, match="mask"):
        pool(mask, 2)


class Counting(dict):
    """Notes which masks are asked for."""

    def __init__(self, *args):
        super().__init__(*args)
        self.asked = []

    def __getitem__(self, name):
        self.asked.append(name)
        return super().__getitem__(name)


def test_classes_in_order_absent_ones_zero_and_each_mask_once():
    dot = np.zeros((320, 320), np.uint8)
    dot[0, 0] = 1  # less than half a level in its cell
    left, right = np.zeros((2, 320, 320), np.uint8)
    left[:, :30], right[:, 25:40] = 1, 1
    masks = Counting({"left": left, "right": right.astype(bool), "dot": dot, "unasked": left})
    groups = {"both": ("left", "right"), "none": ("absent",)}
    arrays = pooled_maps(masks, ("dot", "absent", "right"), 8, groups=groups)
    assert masks.asked == ["left", "right", "dot"]
    assert arrays["seen"].tolist() == [True, False, True]
    assert not arrays["maps"][:2].any() and np.array_equal(arrays["maps"][2], pool(right, 8))
    both, none = arrays["superclass_maps"]
    assert (both[:, 0] == 255).all() and not both[:, 1:].any() and not none.any()  # 40 columns, none counted twice
    assert np.array_equal(masks["left"], left)  # the union was not made in place
    assert "superclass_maps" not in pooled_maps(masks, ("dot",), 8)


def test_a_union_is_not_the_sum_of_pooled_maps():
    mask = _mask((64, 64), share=0.5)
    arrays = pooled_maps({"a": mask, "b": mask}, ("a", "b"), 4, groups={"ab": ("a", "b")})
    assert np.array_equal(arrays["superclass_maps"][0], arrays["maps"][0])
