"""LVM-Med's ResNet against torchvision's network written out by its own weight names."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lit_modules.nets.lvm_med import (
    LVM_MED,
    PHANTOM,
    PhantomResNet,
    build_resnet,
    build_resnet_config,
    from_torchvision,
    resnet_at_hand,
    resnet_features,
    resnet_pixels,
)

SMALL = PhantomResNet(dim=32)


def torchvision_weights(sizes: list[int], stem: int, depths: list[int], fill: float | None = None) -> dict[str, Tensor]:
    """Names and shapes as `torchvision.models.resnet50().state_dict()` has them; all random, or all one value."""
    rng = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}

    def put(name: str, *shape: int) -> None:
        if fill is None:
            weights[name] = torch.rand(shape, generator=rng) - (0.5 if len(shape) > 1 else 0)
        else:
            weights[name] = torch.tensor(fill).expand(shape)  # a file of one number

    def norm(name: str, width: int) -> None:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            put(f"{name}.{leaf}", width)
        weights[f"{name}.num_batches_tracked"] = torch.tensor(7)

    put("conv1.weight", stem, 3, 7, 7)
    norm("bn1", stem)
    before = stem
    for stage, (width, depth) in enumerate(zip(sizes, depths, strict=True), 1):
        for block in range(depth):
            name, narrow = f"layer{stage}.{block}", width // 4
            shapes = ((narrow, before, 1), (narrow, narrow, 3), (width, narrow, 1))
            for number, (out, given, side) in enumerate(shapes, 1):
                put(f"{name}.conv{number}.weight", out, given, side, side)
                norm(f"{name}.bn{number}", out)
            if block == 0:
                put(f"{name}.downsample.0.weight", width, before, 1, 1)
                norm(f"{name}.downsample.1", width)
            before = width
    put("fc.weight", 10, before)
    put("fc.bias", 10)
    return weights


def torchvision_features(weights: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """torchvision's forward pass up to `avgpool`: strides stand at the 3 x 3 convolutions."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        return F.batch_norm(x, mean, variance, weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = norm(F.conv2d(pixels, weights["conv1.weight"], stride=2, padding=3), "bn1").relu()
    x = F.max_pool2d(x, 3, 2, 1)
    for name in sorted({key.rsplit(".", 2)[0] for key in weights if key.endswith("conv1.weight") and "layer" in key}):
        stride = 2 if name.endswith(".0") and not name.startswith("layer1") else 1
        y = norm(F.conv2d(x, weights[f"{name}.conv1.weight"]), f"{name}.bn1").relu()
        y = norm(F.conv2d(y, weights[f"{name}.conv2.weight"], stride=stride, padding=1), f"{name}.bn2").relu()
        y = norm(F.conv2d(y, weights[f"{name}.conv3.weight"]), f"{name}.bn3")
        if f"{name}.downsample.0.weight" in weights:
            x = norm(F.conv2d(x, weights[f"{name}.downsample.0.weight"], stride=stride), f"{name}.downsample.1")
        x = (x + y).relu()
    return x.mean((2, 3))


def test_features_equal_torchvisions() -> None:
    config = build_resnet_config(PHANTOM, SMALL)
    config.depths, config.embedding_size = [2, 1, 1, 2], 2
    with torch.device("meta"):
        model = build_resnet(config, PHANTOM, SMALL)
    weights = torchvision_weights([4, 8, 16, 32], 2, [2, 1, 1, 2])
    model.load_state_dict(from_torchvision(weights), assign=True, strict=True)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    found = resnet_features(model, pixels)
    assert found.shape == (2, 32)
    torch.testing.assert_close(found, torchvision_features(weights, pixels), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"module.conv1.weight is no weight of torchvision's ResNet"):
        from_torchvision({"module.conv1.weight": torch.zeros(1)})


def test_the_released_files_form_fills_the_network_or_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "lvmmed_resnet.torch"
    weights = torchvision_weights([256, 512, 1024, 2048], 64, [3, 4, 6, 3], fill=0.25)
    torch.save(weights, file)
    assert resnet_at_hand(str(file))
    config = build_resnet_config(str(file), SMALL)
    model = build_resnet(config, str(file), SMALL)
    assert config.hidden_sizes[-1] == 2048 and not model.training
    assert all(bool((weight == 0.25).all()) for weight in model.parameters())
    del weights["layer4.2.bn3.weight"]
    torch.save(weights, file)
    with pytest.raises(ValueError, match=r"encoder.stages.3.layers.2.layer.2.normalization.weight is missing"):
        build_resnet(config, str(file), SMALL)
    torch.save({"conv1.weight": Path("x")}, file)
    with pytest.raises(ValueError, match="refused, for it holds more than weights"):
        build_resnet(config, str(file), SMALL)


def test_a_folder_is_read_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = build_resnet(build_resnet_config(PHANTOM, SMALL), PHANTOM, SMALL)
    folder = str(tmp_path / "resnet")
    written.save_pretrained(folder)
    read = build_resnet(build_resnet_config(folder, PhantomResNet()), folder, PhantomResNet(), torch.bfloat16)
    assert read.dtype == torch.bfloat16 and resnet_at_hand(folder)
    stem = "embedder.embedder.convolution.weight"
    assert torch.equal(read.state_dict()[stem], written.state_dict()[stem].bfloat16())
    written.save_pretrained(folder, state_dict={k: v for k, v in written.state_dict().items() if k != stem})
    with pytest.raises(ValueError, match=f"does not fill the ResNet: {stem} is missing"):
        build_resnet(build_resnet_config(folder, SMALL), folder, SMALL)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="run `hf download someone/resnet` while online"):
        build_resnet_config("someone/resnet", SMALL)
    with pytest.raises(FileNotFoundError, match=r"put lvmmed_resnet\.torch there"):
        build_resnet(build_resnet_config(str(tmp_path / "none.torch"), SMALL), str(tmp_path / "none.torch"), SMALL)


def test_sizes_and_the_phantom() -> None:
    with torch.device("meta"):
        model = build_resnet(build_resnet_config(LVM_MED, SMALL), LVM_MED, SMALL)
        assert sum(weight.numel() for weight in model.parameters()) == 25_557_032 - 2_049_000  # less the head
        assert resnet_features(model, torch.empty(2, 3, 224, 224)).shape == (2, 2048)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    config = build_resnet_config(PHANTOM, SMALL)
    first, other = (build_resnet(config, PHANTOM, PhantomResNet(32, seed)) for seed in (0, 1))
    assert torch.equal(torch.random.get_rng_state(), before), "building it draws nothing from the global generator"
    again = build_resnet(config, PHANTOM, SMALL)
    pixels = torch.from_numpy(resnet_pixels(np.random.default_rng(0).integers(0, 256, (90, 80), np.uint8), 64))[None]
    assert torch.equal(resnet_features(first, pixels), resnet_features(again, pixels))
    assert not torch.allclose(resnet_features(first, pixels), resnet_features(other, pixels))
    assert not any(weight.requires_grad for weight in first.parameters())
    with pytest.raises(ValueError, match="there is phantom:resnet"):
        build_resnet_config("phantom:vit", SMALL)


def test_pixels_are_squashed_and_normalised_as_imagenet() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 90), np.uint8)
    pixels = resnet_pixels(image, 30)
    assert pixels.shape == (3, 30, 30) and pixels.dtype == np.float32
    colour = Image.fromarray(image).convert("RGB").resize((30, 30), Image.Resampling.BILINEAR)
    shares = np.asarray(colour).transpose(2, 0, 1) / 255
    expected = (shares - np.array([0.485, 0.456, 0.406])[:, None, None]) / np.array([[[0.229]], [[0.224]], [[0.225]]])
    np.testing.assert_allclose(pixels, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="8-bit grey"):
        resnet_pixels(image.astype(np.uint16))
