"""ASaRG's fusion: image features and segmentation maps of specialist models beside CLIP's tokens, before the projector.

"Automatic Fine-grained Segmentation-assisted Report Generation" (ASaRG), arXiv:2507.16623, §3.3, equations 2 to 12.
There is no public code, and the equations themselves are lost in every text form of the paper. What stands here was
rebuilt from the paper's words and from its parameter budgets (§5: +0.06 % of LLaVA-1.5-7B for features, +0.09 % with
maps, "around 50 %" more than features alone); the defaults are the one reading found that meets all three:

    features alone    4,458,496 = 0.0631 %      features and 212 maps    6,611,200 = 0.0936 %, 48.3 % more

The paper's axes are (batch, channel = token, embedding = width). I are CLIP's tokens (token, width), F the features of
one image (a vector), S its pooled maps (class, row, column), C a learnt class embedding (depth, width):

    F' = W_F F, the same for every token                        f_mix = W_m [C ; F']                        (eq. 6)
    replace  Conv(AdaIN(F', C)) in I's place       (eq. 5)      add      I + α Conv(f_mix)                  (eq. 8)
    mix      W_l [I ; Conv(f_mix)] in I's place    (eq. 7)      concat   f_mix as further tokens            (eq. 9)
    S' = Conv(flatten(S))                         (eq. 11)      f_seg = W_s [F' ; S'], as further tokens    (eq. 10, 12)

Where the words leave more than one reading, the others are settings. Weights start as torch's `Linear` and `Conv1d` do,
C as torch's `Embedding` (normal, 1): the paper says "randomly initialized" and no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.study import SettingsFault

EPS = 1e-5  # of AdaIN's standard deviation


@dataclass(frozen=True)
class Fusion:
    """What is fused and how; the defaults are the paper's, with maps.

    Attributes:
        features: How the image features come in (§3.3, Table 1); `none` is LLaVA itself.
        maps: Whether segmentation maps come in, as further tokens (eq. 12).
        depth: Tokens of the class embedding (§3.3: 256). Equation 5 names a 1D convolution that brings them to
            `image_tokens`; without one equations 7 and 8 do not fit together, so it stands there too. It is left out
            where the two are equal.
        alpha: Where α of equation 8 starts; the paper's two values are lost. At 0 the first step moves α alone.
        map_tokens: Reading of equation 11. `width`: a class's map is laid out along the width and the convolution makes
            `depth` tokens of the classes; fits the budgets. `spatial`: it makes the width of the classes, and each cell
            is a token.
        maps_partner: Reading of equation 10: the "global features" that meet the maps, F', or f_mix (`mixed`).
        keep_mix: Reading of equation 12: keep f_mix beside f_seg; without it, f_seg takes its place.
        adain_content: Reading of equation 5: whose values AdaIN keeps, those of F' (C gives the statistics) or those of
            C (F' gives them). Statistics are over the width, by token. Either way next to nothing of the image is left,
            as in the paper, where this variant "does not converge".
    """

    features: Literal["none", "replace", "mix", "add", "concat"] = "concat"
    maps: Literal["none", "concat"] = "concat"
    depth: int = 256
    alpha: float = 0.0
    map_tokens: Literal["width", "spatial"] = "width"
    maps_partner: Literal["features", "mixed"] = "features"
    keep_mix: bool = True
    adain_content: Literal["features", "classes"] = "features"


@dataclass(frozen=True)
class FusionSettings(Fusion):
    """A fusion with the sizes of the networks that it joins; the defaults are LLaVA-1.5's and LVM-Med's ResNet-50's.

    Attributes:
        width: Width of CLIP's tokens, which is the projector's input.
        image_tokens: CLIP's tokens of an image.
        feature_dim: Length of the feature vector.
        classes: Segmentation classes: 212, or 20 superclasses (§4.1.2).
        grid: Rows and columns of a pooled map.
    """

    width: int = 1024
    image_tokens: int = 576
    feature_dim: int = 2048
    classes: int = 212
    grid: int = 32

    @property
    def added_tokens(self) -> int:
        """Tokens beyond CLIP's: 256 for concatenated features, 512 with maps."""
        return self.depth * self.shows_mix + (self.map_depth if self.maps == "concat" else 0)

    @property
    def map_depth(self) -> int:
        """Tokens that the maps become."""
        return self.depth if self.map_tokens == "width" else self.grid**2

    @property
    def shows_mix(self) -> bool:
        """Whether f_mix becomes tokens of its own."""
        return self.features == "concat" and (self.keep_mix or self.maps == "none")

    @property
    def mixes(self) -> bool:
        """Whether f_mix is needed at all."""
        meets_maps = self.maps == "concat" and self.maps_partner == "mixed"
        return self.features in ("mix", "add") or self.shows_mix or meets_maps

    def check(self) -> None:
        """Refuses what cannot work together.

        Raises:
            SettingsFault: One line that says what to set instead.
        """
        if self.maps == "none":
            return
        if self.features == "none":
            raise SettingsFault("maps=concat needs features: equation 10 joins the two; set features=concat")
        if self.map_tokens == "width" and self.grid**2 != self.width:
            raise SettingsFault(f"a map of {self.grid} x {self.grid} cells is no row of width {self.width}: set grid")
        if self.maps_partner == "mixed" and self.features == "replace":
            raise SettingsFault("maps_partner=mixed: features=replace makes no such thing; set maps_partner=features")
        if self.maps_partner == "mixed" and self.map_depth != self.depth:
            raise SettingsFault(f"maps_partner=mixed: {self.map_depth} map tokens meet {self.depth}; set depth or grid")
        if not self.keep_mix and self.features != "concat":
            raise SettingsFault(f"keep_mix=False: features={self.features} adds no tokens; set keep_mix=True")


class FeatureFusion(nn.Module):
    """CLIP's tokens, features and maps → the projector's tokens `(batch, image_tokens + added_tokens, width)`.

    Only what the settings use is built, so that every parameter gets a gradient (of equation 8's, all but α from the
    second step on, where α starts at 0).

    Raises:
        SettingsFault: The settings cannot work together.
    """

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__()
        settings.check()
        self.settings = settings
        width, depth = settings.width, settings.depth
        if settings.features != "none":
            self.embed_features = nn.Linear(settings.feature_dim, width)  # W_F
        if settings.mixes or settings.features == "replace":
            self.classes = nn.Parameter(torch.randn(depth, width))  # C
        if settings.mixes:
            self.mix = nn.Linear(2 * width, width)  # W_m
        if settings.features in ("replace", "mix", "add") and depth != settings.image_tokens:
            self.to_image_tokens: nn.Module = nn.Conv1d(depth, settings.image_tokens, 1)
        else:
            self.to_image_tokens = nn.Identity()
        if settings.features == "mix":
            self.mix_image = nn.Linear(2 * width, width)  # W_l
        if settings.features == "add":
            self.alpha = nn.Parameter(torch.tensor(float(settings.alpha)))
        if settings.maps == "concat":
            out = depth if settings.map_tokens == "width" else width
            self.embed_maps = nn.Conv1d(settings.classes, out, 1)
            self.mix_maps = nn.Linear(2 * width, width)  # W_s

    def forward(self, image: Tensor, features: Tensor | None = None, maps: Tensor | None = None) -> Tensor:
        """The tokens for the projector (eq. 2 to 4).

        Args:
            image: I, `(batch, image_tokens, width)`.
            features: F, `(batch, feature_dim)`; not needed with `features="none"`.
            maps: S, `(batch, class, grid, grid)`: fractions of a cell, as float or as uint8 of 255; not needed with
                `maps="none"`.

        Raises:
            ValueError: Something needed is missing or has another shape.
        """
        settings = self.settings
        if settings.features == "none":
            return image
        embedded = self._embedded(image, features)
        mixed = joined(self.mix, self.classes[None], embedded) if settings.mixes else None
        tokens = [self._image_part(image, embedded, mixed)]
        if settings.shows_mix:
            assert mixed is not None
            tokens.append(mixed)
        if settings.maps == "concat":
            partner = embedded if settings.maps_partner == "features" else mixed
            assert partner is not None
            tokens.append(joined(self.mix_maps, partner, self._map_tokens(maps, len(image), partner)))
        return torch.cat([part.to(image.dtype) for part in tokens], 1)

    def _embedded(self, image: Tensor, features: Tensor | None) -> Tensor:
        """F' `(batch, 1, width)`: one token that stands for `depth` equal ones ("repeated 256 times", §3.3)."""
        wanted = (len(image), self.settings.feature_dim)
        if features is None or tuple(features.shape) != wanted:
            raise ValueError(f"expected features {wanted}, not {None if features is None else tuple(features.shape)}")
        return self.embed_features(features.to(self.embed_features.weight.dtype))[:, None]

    def _image_part(self, image: Tensor, embedded: Tensor, mixed: Tensor | None) -> Tensor:
        """What stands in the place of CLIP's tokens: equations 5, 7 and 8; for concatenation the tokens themselves."""
        settings = self.settings
        if settings.features == "replace":
            content, style = embedded, self.classes[None]
            if settings.adain_content == "classes":
                content, style = style, content
            return self.to_image_tokens(adaptive_instance_norm(content, style))
        if settings.features == "concat":
            return image
        assert mixed is not None
        fitted = self.to_image_tokens(mixed)
        if settings.features == "mix":
            return joined(self.mix_image, image.to(fitted.dtype), fitted)
        return image + self.alpha * fitted

    def _map_tokens(self, maps: Tensor | None, batch: int, like: Tensor) -> Tensor:
        """S' `(batch, token, width)` (eq. 11). The pooling was done before (`AdaptiveAvgPool2d` has no parameters)."""
        settings = self.settings
        wanted = (batch, settings.classes, settings.grid, settings.grid)
        if maps is None or tuple(maps.shape) != wanted:
            raise ValueError(f"expected maps {wanted}, not {None if maps is None else tuple(maps.shape)}")
        shares = maps.to(like.dtype) / 255 if maps.dtype == torch.uint8 else maps.to(like.dtype)
        tokens = self.embed_maps(shares.flatten(2))
        return tokens if settings.map_tokens == "width" else tokens.mT


def joined(linear: nn.Linear, left: Tensor, right: Tensor) -> Tensor:
    """`linear` of two tensors joined along the width, `linear([left ; right])`, each half computed by itself.

    What is the same for all images (C) or for all tokens of an image (F') is then computed once and not 256 times: the
    halves are `(batch or 1, token or 1, width)` and are broadcast.
    """
    width = left.shape[-1]
    return F.linear(left, linear.weight[:, :width]) + F.linear(right, linear.weight[:, width:], linear.bias)


def adaptive_instance_norm(content: Tensor, style: Tensor) -> Tensor:
    """The content with the style's mean and standard deviation, over the width of each token (Huang & Belongie 2017).

    Args:
        content: `(batch or 1, token or 1, width)`.
        style: Likewise; the two are broadcast.
    """
    deviation, mean = torch.std_mean(style, -1, correction=0, keepdim=True)
    return F.layer_norm(content, content.shape[-1:], eps=EPS) * deviation + mean
