"""The region crops against the authors' pipeline, torch's own pooling, and their packed form."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lit_modules.nets.region_crops import GLOBAL, pack, region_crops, regions_of, resize_area, unpack


@pytest.fixture
def tiny(golden):
    return np.load(golden / "dataset_tiny.npz")


def _study(tiny, wanted=None):
    masks = {key.removeprefix("mask."): tiny[key] for key in tiny.files if key.startswith("mask.")}
    return tiny["volume"], {region: mask for region, mask in masks.items() if wanted is None or region in wanted}


@pytest.mark.parametrize("pipeline", ["train", "test"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_equals_the_reference_to_the_last_bit(tiny, pipeline, order):
    meta = json.loads(bytes(tiny["meta"]))
    # The training pipeline loads the regions that have a report row, the test pipeline all that have a mask.
    volume, masks = _study(tiny, meta["reports"] if pipeline == "train" else None)
    masks = {name: np.asarray(mask, order=order) for name, mask in masks.items()}
    crops = region_crops(np.asarray(volume, order=order), masks, meta["size"])
    expected = {key for key in tiny.files if key.startswith((f"{pipeline}.vision.", f"{pipeline}.mask."))}
    got = {f"{pipeline}.vision.{name}": array for name, array in crops.volumes.items()}
    got |= {f"{pipeline}.mask.{name}": array for name, array in crops.masks.items()}
    assert set(got) == expected
    for key in expected:
        assert got[key].dtype == np.float32
        assert np.abs(got[key] - tiny[key]).max() == 0.0, key


@pytest.mark.parametrize("shape", [(50, 41, 23), (7, 90, 64), (33, 24, 8), (3, 5, 2)])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("order", ["C", "F"])
def test_area_resize_is_torchs_pooling(shape, dtype, order):
    array = np.asarray(np.random.default_rng(0).normal(0, 900, shape), dtype, order=order)
    ours = resize_area(array, (32, 24, 8))
    theirs = F.adaptive_avg_pool3d(torch.from_numpy(array.astype(np.float32))[None, None], (32, 24, 8))[0, 0]
    assert ours.flags.c_contiguous and ours.dtype == np.float32
    assert np.array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("size", [(32, 24, 8), (5, 4, 3), (64, 64, 32)])
def test_masks_are_resized_only_where_they_are_yet_equal_the_whole_resize(size):
    rng = np.random.default_rng(1)
    volume = np.full((50, 41, 23), -1024, np.int16)
    volume[4:47, 3:40, 1:22] = 40
    masks = {"outside": np.zeros(volume.shape, np.uint8), "corner": np.zeros(volume.shape, np.uint8)}
    masks["outside"][:3] = 1  # wholly in the air that the global box cuts off
    masks["corner"][2:9, 30:41, 15:23] = 1
    masks["scattered"] = (rng.random(volume.shape) > 0.97).astype(np.uint8)
    crops = region_crops(volume, masks, size)
    for region, mask in masks.items():
        inside = torch.from_numpy(mask[4:47, 3:40, 1:22].astype(np.float32))
        expected = F.adaptive_avg_pool3d(inside[None, None], size)[0, 0].numpy()
        assert np.array_equal(crops.masks[region], expected), region
    assert set(crops.volumes) == {GLOBAL, "corner", "scattered"}  # a region wholly in air has no volume


def test_without_decoupling_a_region_keeps_the_whole_box(tiny):
    volume, masks = _study(tiny, ["heart"])
    crops = region_crops(volume, masks, (32, 24, 8), decouple=False)
    body = np.argwhere(volume > -1000)
    low, high = body.min(0), body.max(0) + 1
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    filled = torch.from_numpy(np.where(masks["heart"] != 0, volume, -1024)[box].astype(np.float32))
    expected = F.adaptive_avg_pool3d(filled[None, None], (32, 24, 8))[0, 0].clamp(-1000, 200).add(400).div(600)
    assert np.array_equal(crops.volumes["heart"], expected.numpy())
    assert not np.array_equal(crops.volumes["heart"], region_crops(volume, masks, (32, 24, 8)).volumes["heart"])


def test_only_what_is_asked_for(tiny):
    volume, masks = _study(tiny)
    assert region_crops(volume, masks, (32, 24, 8), geometry=False).masks == {}
    assert set(region_crops(volume, masks, (32, 24, 8), texture=False).volumes) == {GLOBAL}


def test_a_volume_of_air_is_refused():
    with pytest.raises(ValueError, match="above -1000 HU"):
        region_crops(np.full((4, 4, 4), -1000, np.int16), {}, (2, 2, 2))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_unpack_undoes_pack(tiny, dtype):
    volume, masks = _study(tiny)
    crops = region_crops(volume, masks, (32, 24, 8))
    packed = pack(crops, dtype)
    regions = regions_of(packed)
    assert regions == ["abdomen", "heart", "lung", "thyroid", "pleura", "breast"]  # the empty esophagus is left out
    chosen = regions[::-1]
    volumes, shapes = unpack({key: torch.from_numpy(array) for key, array in packed.items()}, chosen, (32, 24, 8))
    assert volumes.shape == (7, 1, 32, 24, 8) and shapes.shape == (6, 1, 32, 24, 8)
    expected = torch.stack([torch.from_numpy(crops.volumes[name]) for name in [GLOBAL, *chosen]])[:, None]
    assert volumes.dtype == getattr(torch, dtype)
    assert torch.equal(volumes, expected.to(volumes.dtype))
    assert torch.equal(shapes, torch.stack([torch.from_numpy(crops.masks[name]) for name in chosen])[:, None])


def test_long_runs_and_many_values_are_packed_exactly():
    size = (96, 96, 32)
    many = np.zeros(size, np.float32)
    many[40:50, :20, :2] = np.random.default_rng(0).permutation(400).reshape(10, 20, 2) / 400
    crops = region_crops(np.zeros(size, np.int16), {}, size)
    crops.masks["many"] = many
    packed = pack(crops)
    assert packed["mask/many/codes"].dtype == np.uint16
    assert packed["mask/many/lengths"].max() == 65535
    tensors = {key: torch.from_numpy(array) for key, array in packed.items()}
    assert np.array_equal(unpack(tensors, ["many"], size)[1][0, 0].numpy(), many)
