"""The configuration of Phi-3(.5)-vision: transformers' own of CLIP and Phi-3, into which the hub's file is read."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import CLIPVisionConfig, Phi3Config
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from datamodules.study import SettingsFault

_LAYERS = 24  # of the published CLIP

# What makes a hub folder this network, and what its `config.json` says of Phi-3.
_PORTED = {
    "hd_transform_order": "sub_glb",
    "projection_cls": "mlp",
    "use_hd_transform": True,
    "with_learnable_separator": True,
}
_TEXT = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "rms_norm_eps",
    "sliding_window",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


class Phi3VisionConfig(PreTrainedConfig):
    """The published sizes by default, with plain rotary positions: the scaling factors are in the hub's `config.json`.

    Attributes:
        text_config: Phi-3.
        vision_config: CLIP without its last layer.
        image_token_id: Holds the image's place in a text.
    """

    model_type = "phi3_v"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "text_config": SubConfigSpec(config_class=Phi3Config),
        "vision_config": SubConfigSpec(
            config_class=CLIPVisionConfig,
            init_kwargs={
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": _LAYERS - 1,
                "num_attention_heads": 16,
                "patch_size": 14,
                "image_size": 336,
            },
        ),
    }
    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 32044
    tie_word_embeddings: bool = False

    @classmethod
    def from_dict(cls, config_dict: Any, **kwargs: Any) -> Any:
        """As transformers'; what the hub's `config.json` says too, which knows neither part.

        Raises:
            SettingsFault: It is another network.
        """
        if (kind := config_dict.get("model_type", cls.model_type)) != cls.model_type:
            raise SettingsFault(f"this is a {kind}, no {cls.model_type}")
        if layer := config_dict.get("embd_layer"):
            for key, value in _PORTED.items():
                if layer.get(key, value) != value:
                    raise SettingsFault(f"embd_layer.{key} is {layer[key]}; only {value} is known here")
            text = {key: config_dict[key] for key in _TEXT if key in config_dict}
            if scaling := config_dict.get("rope_scaling"):  # the hub calls it "su"
                text["rope_parameters"] = {
                    "rope_type": "longrope",
                    "rope_theta": config_dict["rope_theta"],
                    "factor": text["max_position_embeddings"] / text["original_max_position_embeddings"],
                    "short_factor": scaling["short_factor"],
                    "long_factor": scaling["long_factor"],
                }
            if text.get("sliding_window") and text["sliding_window"] >= text["max_position_embeddings"]:
                del text["sliding_window"]  # as wide as the context, it hides nothing, but would cost a mask
            config_dict = {"text_config": text}
        return super().from_dict(config_dict, **kwargs)
