"""Vision-language models through one door: transformers' own classes, without any code of the hub's.

`vlm` is a hub id, a local folder in transformers' layout, or `phantom:<model_type>`: the family's real classes at a
small size with fixed random weights (`nets.phantom_vlm`), or `random:…` (see `nets.backbones`). Nothing is fetched
unless asked for, and weights come from safetensors alone.

Of transformers' multimodal processors the two halves are used, image processor and tokenizer, but not the class that
joins them: it would read the image again with each prompt (see `nets.vlm_encoding`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from datamodules.study import SettingsFault
from lit_modules.nets.backbones import RANDOM, check_filled, is_local, is_made, located, plain_errors
from lit_modules.nets.phantom_vlm import (
    PHANTOM,
    PhantomVLM,
    phantom_config,
    phantom_image_processor,
    phantom_tokenizer,
    true_size,
    with_ids_of,
)
from lit_modules.nets.vlm_families import FAMILIES, VLMS, Family

_PREFIX = "phantom:"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class VlmProcessor:
    """What turns films and texts into what a model reads.

    Attributes:
        family: See `vlm_families`.
        tokenizer: The model's.
        image_processor: The model's.
        image_tokens: How many tokens an image has in the prompt; `None` where the image decides.
    """

    family: Family
    tokenizer: Any
    image_processor: Any
    image_tokens: int | None

    def save(self, folder: str | Path) -> None:
        """Writes the files that `build_processor` reads beside a model's."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)


def family_of(vlm: str) -> Family:
    """The family of a model.

    Raises:
        SettingsFault: No family that is known here.
        FileNotFoundError: Its configuration cannot be read; the message says what to do.
    """
    vlm = vlm.removeprefix(RANDOM)
    if vlm in VLMS:
        return FAMILIES[VLMS[vlm].family]
    kind = vlm.removeprefix(_PREFIX)
    if kind == vlm:
        kind = json.loads(_file(vlm, "config.json").read_text()).get("model_type")
    if kind not in FAMILIES:
        raise SettingsFault(f"{vlm} is a {kind}; there are {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def build_config(vlm: str, phantom: PhantomVLM = PHANTOM) -> Any:
    """The configuration of `vlm`; a published one's needs no download.

    Raises:
        SettingsFault: No family that is known here.
        FileNotFoundError: It cannot be read; the message says what to do.
    """
    from transformers import AutoConfig

    family = family_of(vlm)
    if family.model_type == "phi3_v":
        import lit_modules.nets.phi3_vision  # noqa: F401  # makes itself known to transformers
    if vlm.startswith(RANDOM):
        return with_ids_of(phantom_tokenizer(family.model_type), build_config(vlm.removeprefix(RANDOM), phantom))
    if vlm.startswith(_PREFIX):
        return phantom_config(family.model_type, phantom, phantom_tokenizer(family.model_type))
    if vlm in VLMS:
        return AutoConfig.for_model(family.model_type, **copy.deepcopy(dict(VLMS[vlm].config)))
    with plain_errors(vlm, how_to_get_vlm(vlm)):
        return AutoConfig.from_pretrained(located(vlm))


def build_processor(vlm: str, phantom: PhantomVLM = PHANTOM) -> VlmProcessor:
    """The processor of `vlm`, from `tokenizer.json` and `preprocessor_config.json`.

    Raises:
        SettingsFault: No family that is known here, or a token of the family's prompt is missing.
        FileNotFoundError: It cannot be read; the message says what to do.
    """
    from transformers import AutoImageProcessor, AutoTokenizer

    family = family_of(vlm)
    if is_made(vlm):
        tokenizer = phantom_tokenizer(family.model_type)
        size = true_size(build_config(vlm, phantom)) if vlm.startswith(RANDOM) else phantom
        images = phantom_image_processor(family.model_type, size)
    else:
        with plain_errors(vlm, how_to_get_vlm(vlm)):
            if family.model_type == "phi3_v":
                from lit_modules.nets.phi3_vision_processor import Phi3VisionProcessor

                both = Phi3VisionProcessor.from_pretrained(vlm)
                tokenizer, images = both.tokenizer, both.image_processor
            else:
                tokenizer = AutoTokenizer.from_pretrained(located(vlm))
                images = AutoImageProcessor.from_pretrained(located(vlm), backend="torchvision")
    known = tokenizer.get_vocab()
    for token in (family.image_token, family.end_of_turn):
        if token not in known:
            raise SettingsFault(f"{vlm}: its tokenizer does not know {token}, which a {family.model_type} needs")
    return VlmProcessor(family, tokenizer, images, _image_tokens(build_config(vlm, phantom)))


def _image_tokens(config: Any) -> int | None:
    if config.model_type == "gemma3":
        return config.mm_tokens_per_image
    if config.model_type == "paligemma":
        return (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    return 1 if config.model_type == "mllama" else None


def build_vlm(
    vlm: str,
    dtype: torch.dtype,
    quantization: Any = None,
    device_map: Mapping[str, Any] | None = None,
    phantom: PhantomVLM = PHANTOM,
) -> Any:
    """The model, with SDPA attention; on the meta device, its weights are not read.

    Args:
        vlm: See the module.
        dtype: Of the weights that are not quantised.
        quantization: transformers' `quantization_config`.
        device_map: Where the weights go as they are read.
        phantom: The size, where it is a phantom.

    Raises:
        SettingsFault: A weight is missing, unknown or of another shape; the message names the first.
        FileNotFoundError: They cannot be read; the message says what to do.
    """
    from transformers import AutoModelForMultimodalLM

    config = build_config(vlm, phantom)
    if torch.get_default_device().type == "meta":
        return AutoModelForMultimodalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    if is_made(vlm):
        return _made(config, dtype, phantom, quantization, device_map)
    load: Any = partial(
        AutoModelForMultimodalLM.from_pretrained,
        dtype=dtype,
        attn_implementation="sdpa",
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # `check_filled` names what is amiss
        output_loading_info=True,
        quantization_config=quantization,
        device_map=device_map,
    )
    with plain_errors(vlm, how_to_get_vlm(vlm)):
        model, found = load(located(vlm))
    check_filled(vlm, found)
    return model


def _made(config: Any, dtype: torch.dtype, phantom: PhantomVLM, quantization: Any, device_map: Any) -> Any:
    from transformers import AutoModelForMultimodalLM

    # The phantom's weights must not depend on what was drawn before, nor change what is drawn after.
    with torch.random.fork_rng():
        torch.manual_seed(phantom.seed)
        model = AutoModelForMultimodalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    if quantization is None:
        return model
    load: Any = type(model).from_pretrained  # only a reader of weights quantises them
    return load(
        None,
        config=config,
        state_dict=model.state_dict(),
        dtype=dtype,
        attn_implementation="sdpa",
        quantization_config=quantization,
        device_map=device_map,
    )


# What must be at hand.


def vlm_at_hand(vlm: str, weights: bool = True) -> bool:
    """Whether `vlm` can be read without a download: its tokenizer, and its weights where they are wanted."""
    if is_made(vlm):
        return True
    return is_local(vlm, "tokenizer.json") and (not weights or any(is_local(vlm, name) for name in _WEIGHTS))


def how_to_get_vlm(vlm: str) -> str:
    """What to do when `vlm` is not at hand."""
    if Path(vlm).is_absolute() or vlm.startswith((".", "checkpoints/")):
        return "give a folder with config.json, preprocessor_config.json, tokenizer.json and model*.safetensors"
    known = VLMS.get(vlm)
    accept = ""
    if known and known.gated:
        accept = f"accept the {known.licence} at https://huggingface.co/{vlm}, `hf auth login`, then "
    return f"{accept}run `hf download {vlm}` while online, or set model.vlm to a local folder"


def _file(vlm: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    local = Path(located(vlm))
    with plain_errors(vlm, how_to_get_vlm(vlm)):
        if not local.is_dir():
            return Path(hf_hub_download(vlm, name))
        if not (local / name).is_file():
            raise FileNotFoundError(f"{local / name} is missing")
        return local / name
