"""LLaVA-1.5: transformers' own `LlavaForConditionalGeneration`, with image tokens that may come from more than CLIP.

Liu et al., "Improved Baselines with Visual Instruction Tuning", arXiv:2310.03744; authors' code (Apache-2.0):
https://github.com/haotian-liu/LLaVA. The model stays the stock class: image tokens are made here (`encode`) and handed
over through the argument that is there for them (`mm_encoder_outputs`). A subclass would not do: transformers skips the
renaming of a hub checkpoint's keys for classes of others, and leaves every weight random with a mere warning.

`llava` is a hub id or a local folder in either published layout (transformers', or the authors', where CLIP lies
elsewhere), or `phantom:llava`: the same classes at a small size with fixed random weights, or `random:…` (see
`nets.backbones`). Nothing is fetched unless asked for. Weights: Llama 2 Community License.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.study import SettingsFault
from lit_modules.nets import backbones
from lit_modules.nets.backbones import LLAMA_2_7B, RANDOM, PhantomSize, is_local, is_made, located
from lit_modules.nets.clip_image import PHANTOM as PHANTOM_TOWER
from lit_modules.nets.clip_image import PhantomCLIP, build_vision_config
from lit_modules.nets.feature_fusion import FeatureFusion
from lit_modules.reg2rg_weights import read

if TYPE_CHECKING:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

PHANTOM = "phantom:llava"
HUB, ORIGINAL = "llava-hf/llava-1.5-7b-hf", "liuhaotian/llava-v1.5-7b"
IGNORED = -100  # a label that no loss counts

# Published configurations, so that a dry run on the meta device needs no download.
TOWER = "openai/clip-vit-large-patch14-336"
VIT_L_14_336: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 336,
    "projection_dim": 768,
}
# The id that stands where image tokens go. The hub's vocabulary has one for it, among 64 rows that were added. The
# authors' has none (their code writes -200 there); the byte 0, which no text holds, serves, and no row is made up.
HUB_VOCABULARY, HUB_IMAGE, BYTE_0 = 32064, 32000, 3
# What makes a folder LLaVA-1.5, the authors' (`mm_`) or the hub's; with other values it is another network or prompt.
LLAVA_1_5 = {
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False,
    "rope_scaling": None,
}
_WEIGHTS = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
_NAMES = (
    (re.compile(r"^model\.mm_projector\.0\."), "model.multi_modal_projector.linear_1."),
    (re.compile(r"^model\.mm_projector\.2\."), "model.multi_modal_projector.linear_2."),
    (re.compile(r"^model\.vision_tower\.vision_tower\.(vision_model\.)?"), "model.vision_tower."),
    (re.compile(r"^model\.(embed_tokens|layers|norm)\."), r"model.language_model.\1."),
)


def build_llava_config(llava: str, phantom: PhantomSize, phantom_clip: PhantomCLIP, vocabulary: int) -> LlavaConfig:
    """The configuration of `llava`; `vocabulary` is the size of the phantom's tokenizer.

    Raises:
        SettingsFault: There is no such phantom, or it is no LLaVA-1.5.
        FileNotFoundError: It cannot be read; the message says what to do.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    llava = llava.removeprefix(RANDOM)
    if llava == PHANTOM:
        text = backbones.build_config("phantom:llama", phantom, vocabulary)
        return _config_of(build_vision_config(PHANTOM_TOWER, phantom_clip), text, BYTE_0)
    if llava.startswith("phantom:"):
        raise SettingsFault(f"llava={llava}: there is {PHANTOM}")
    if llava in (HUB, ORIGINAL):
        language: dict[str, Any] = LLAMA_2_7B | ({"vocab_size": HUB_VOCABULARY} if llava == HUB else {})
        image = HUB_IMAGE if llava == HUB else BYTE_0
        return _config_of(CLIPVisionConfig(**VIT_L_14_336), LlamaConfig(**language), image)
    settings = _settings(llava)
    if settings.get("model_type") not in ("llava", "llava_llama"):
        raise SettingsFault(f"{llava} is a {settings.get('model_type')}, no LLaVA-1.5")
    for key, value in LLAVA_1_5.items():
        if settings.get(key, value) != value:
            raise SettingsFault(f"{llava}: {key} is {settings[key]}; LLaVA-1.5 has {value}")
    if not _is_original(settings):
        return LlavaConfig.from_pretrained(located(llava))
    text = LlamaConfig(**{key: settings[key] for key in LLAMA_2_7B if key in settings})
    tower = settings["mm_vision_tower"]
    vision = CLIPVisionConfig(**VIT_L_14_336) if tower == TOWER else build_vision_config(tower, phantom_clip)
    return _config_of(vision, text, BYTE_0)


def _config_of(vision: Any, text: Any, image: int) -> LlavaConfig:
    from transformers import LlavaConfig

    length = (vision.image_size // vision.patch_size) ** 2
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=image, image_seq_length=length)


def image_tokens(config: LlavaConfig) -> int:
    """CLIP's tokens of an image: 576 for LLaVA-1.5."""
    vision: Any = config.vision_config
    return (vision.image_size // vision.patch_size) ** 2


def build_llava(
    config: LlavaConfig, llava: str, dtype: torch.dtype, phantom: PhantomSize, weights: bool = True
) -> LlavaForConditionalGeneration:
    """The model, CLIP frozen as in the authors' code, with SDPA attention.

    On the meta device, or with `weights=False`, its weights are not read; other files bring them.

    Raises:
        SettingsFault: A weight is missing, unknown or of another shape; the message names the first.
        FileNotFoundError: They cannot be read; the message says what to do.
    """
    from transformers import LlavaForConditionalGeneration

    meta = torch.get_default_device().type == "meta"
    if is_made(llava) or meta or not weights:
        # The phantom's weights must not depend on what was drawn before, nor change what is drawn after.
        with torch.random.fork_rng(enabled=not meta):
            if not meta:
                torch.manual_seed(phantom.seed)
            make: Any = LlavaForConditionalGeneration._from_config
            model = make(config, dtype=dtype, attn_implementation="sdpa")
    else:
        load: Any = LlavaForConditionalGeneration.from_pretrained
        load = partial(load, config=config, dtype=dtype, attn_implementation="sdpa")
        load = partial(load, ignore_mismatched_sizes=True, output_loading_info=True)  # for `check_filled`
        settings = _settings(llava)
        if _is_original(settings):
            model, found = load(None, state_dict=_original_weights(llava, settings, dtype))
        else:
            with backbones.plain_errors(llava, how_to_get_llava(llava)):
                model, found = load(located(llava))
        backbones.check_filled(llava, found, "LLaVA")
    model.model.vision_tower.requires_grad_(False)
    return model


# The authors' layout.


def _settings(llava: str) -> dict[str, Any]:
    """What a folder's `config.json` says."""
    from huggingface_hub import hf_hub_download

    local = Path(located(llava))
    with backbones.plain_errors(llava, how_to_get_llava(llava)):
        path = local / "config.json" if local.is_dir() else Path(hf_hub_download(llava, "config.json"))
        return json.loads(path.read_text())


def _is_original(settings: Mapping[str, Any]) -> bool:
    return "mm_vision_tower" in settings


def _original_weights(llava: str, settings: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """The authors' weights under the names of the model; CLIP's, where they are absent, from its own files."""
    from huggingface_hub import snapshot_download
    from transformers import CLIPVisionModel

    folder = Path(located(llava))
    if not folder.is_dir():
        with backbones.plain_errors(llava, how_to_get_llava(llava)):
            folder = Path(snapshot_download(llava, allow_patterns=["*.json", "*.bin", "*.safetensors"]))
    there = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if there is None:
        raise FileNotFoundError(f"{folder} holds no weights: none of {', '.join(_WEIGHTS)}")
    names = {there.name}
    if there.suffix == ".json":
        names = set(json.loads(there.read_text())["weight_map"].values())
    weights = {}
    for name in sorted(names):
        weights.update({_renamed(key): value for key, value in read(str(folder / name)).items()})
    if not any(key.startswith("model.vision_tower.") for key in weights):
        tower = settings["mm_vision_tower"]
        load: Any = CLIPVisionModel.from_pretrained
        with backbones.plain_errors(tower, how_to_get_llava(llava)):
            model, found = load(located(tower), dtype=dtype, output_loading_info=True)
        backbones.check_filled(tower, {**found, "unexpected_keys": []}, "LLaVA")  # CLIP's text side
        weights.update({f"model.vision_tower.{key}": value for key, value in model.state_dict().items()})
    return weights


def _renamed(key: str) -> str:
    for pattern, name in _NAMES:
        key, count = pattern.subn(name, key)
        if count:
            break
    return key


# What must be at hand.


def build_llava_tokenizer(llava: str) -> Any:
    """Its tokenizer; the authors' id has only a SentencePiece file, so the hub's, with the same pieces, is taken."""
    names = {PHANTOM: "phantom:llama", ORIGINAL: HUB}
    return backbones.build_tokenizer(names.get(llava, llava))


def llava_at_hand(llava: str, weights: bool = True) -> bool:
    """Whether `llava` can be read without a download; for the authors' layout, CLIP's weights aside."""
    if is_made(llava):
        return True
    tokenizer = is_local(HUB if llava == ORIGINAL else llava, "tokenizer.json")
    return tokenizer and (not weights or any(is_local(llava, name) for name in _WEIGHTS))


def how_to_get_llava(llava: str) -> str:
    """What to do when `llava` is not at hand."""
    if Path(llava).is_absolute() or llava.startswith((".", "checkpoints/")):
        return "give a folder with config.json, tokenizer.json, tokenizer_config.json and the weights"
    extra = f", `hf download {HUB} tokenizer.json tokenizer_config.json` and `hf download {TOWER}`"
    also = extra if llava == ORIGINAL else ""
    return f"run `hf download {llava}`{also} while online, or set model.llava to a local folder"


# Images in, text out.


def vision_tokens(llava: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """CLIP's tokens before its last layer, without the class token: `(image, token, width)`.

    Args:
        llava: The model.
        pixels: `(image, channel, row, column)`, see `llava_prompt.llava_pixels`.
    """
    tower: Any = llava.model.vision_tower
    return tower(pixels.to(tower.dtype), output_hidden_states=True).hidden_states[-2][:, 1:]


def encode(
    llava: LlavaForConditionalGeneration,
    fusion: FeatureFusion,
    pixels: Tensor,
    features: Tensor | None = None,
    maps: Tensor | None = None,
) -> list[Tensor]:
    """What the language model reads in an image's place: `(token, dim)` for each image.

    Args:
        llava: The model.
        fusion: Brings the other sources in; with `features="none"` the result is LLaVA's own, bit for bit.
        pixels: `(image, channel, row, column)`.
        features: `(image, feature_dim)`.
        maps: `(image, class, grid, grid)`.
    """
    projector: Any = llava.model.multi_modal_projector
    fused = fusion(vision_tokens(llava, pixels), features, maps)
    return list(projector(fused.to(projector.linear_1.weight.dtype)))


def _given(encoded: Sequence[Tensor]) -> dict[str, Any]:
    """A new dictionary for each call: `generate` changes the one that it is given when it follows several beams."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    outputs: Any = BaseModelOutputWithPooling
    return {"image": outputs(pooler_output=list(encoded))}


def forward(llava: LlavaForConditionalGeneration, encoded: Sequence[Tensor], tokens: Tensor, mask: Tensor) -> Tensor:
    """The last hidden states `(study, position, dim)`; `llava.lm_head` turns them into logits.

    Args:
        llava: The model.
        encoded: What `encode` gave, one for each study.
        tokens: `(study, position)`, the image's id repeated at its tokens' places.
        mask: `(study, position)`, 0 at padding.

    Raises:
        ValueError: The places are not as many as the tokens.
    """
    _check_places(llava, encoded, tokens)
    return llava.model(
        input_ids=tokens,
        attention_mask=mask,
        mm_encoder_outputs=_given(encoded),
        use_cache=False,
    ).last_hidden_state


def answer_loss(
    llava: LlavaForConditionalGeneration, encoded: Sequence[Tensor], tokens: Tensor, mask: Tensor, labels: Tensor
) -> Tensor:
    """Cross-entropy averaged over the batch's labels, as the stock loss, but with logits at those places alone.

    Logits at every place of a batch of 16 are 2.6 GB in float32 with 1,250 positions each.

    Args:
        llava: The model.
        encoded: See `forward`.
        tokens: See `forward`.
        mask: See `forward`.
        labels: `(study, position)`: the tokens to be written, `IGNORED` elsewhere.
    """
    hidden = forward(llava, encoded, tokens, mask)[:, :-1]
    counted = labels[:, 1:] != IGNORED
    wanted = labels[:, 1:][counted]
    logits = llava.lm_head(hidden[counted]).float()
    return F.cross_entropy(logits, wanted, reduction="sum") / max(len(wanted), 1)


def generate(llava: Any, encoded: Sequence[Tensor], tokens: Tensor, mask: Tensor, **decoding: Any) -> Tensor:
    """The tokens written after each prompt, `(study, token)`; padded after the end. The image's id is never written.

    Args:
        llava: The model.
        encoded: See `forward`.
        tokens: See `forward`; padded on the left.
        mask: See `forward`.
        decoding: As transformers' `generate` takes it: `max_new_tokens`, `num_beams`, `do_sample`, `temperature` …
    """
    _check_places(llava, encoded, tokens)
    found = llava.generate(
        input_ids=tokens,
        attention_mask=mask,
        mm_encoder_outputs=_given(encoded),
        suppress_tokens=[llava.config.image_token_id],
        **decoding,
    )
    return found[:, tokens.shape[1] :]


def _check_places(llava: LlavaForConditionalGeneration, encoded: Sequence[Tensor], tokens: Tensor) -> None:
    # transformers compares only the whole batch's sums: with one place too many here and one too few there, an image's
    # tokens would run on into the next study.
    places = (tokens == llava.config.image_token_id).sum(1).tolist()
    if places != (given := [len(one) for one in encoded]):
        raise ValueError(f"the prompts have {places} places for image tokens, but there are {given}")
