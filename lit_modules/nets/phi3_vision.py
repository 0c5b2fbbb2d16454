"""Phi-3-vision and Phi-3.5-vision, made of transformers' own CLIP and Phi-3.

Abdin et al., "Phi-3 Technical Report", arXiv:2404.14219, §7; weights (MIT): microsoft/Phi-3-vision-128k-instruct and
microsoft/Phi-3.5-vision-instruct. The hub's model is remote code, with which today's transformers cannot generate (made
to, it loses the image after the first token); this one needs none, and its logits are the original's.

Differs from the authors' code in:

* Logits, ids and pixels are the same; CLIP's last layer, which nothing reads (features are those before it), is left
  out, so that every adapter put on a linear layer gets a gradient;
* one image for each text. The image's place is held by the id of `<|image|>`, not by -1 (which is understood too);
* beyond 4,096 positions the rotary factors for long texts are used, as transformers' Phi-3 does: the cache is made
  anew when generation gets there, and the whole batch switches with its longest text. Tested against transformers'
  Phi-3 at a small size, not on published weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForMultimodalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    Phi3Config,
    Phi3Model,
)
from transformers import initialization as init
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from lit_modules.nets.phi3_vision_config import Phi3VisionConfig
from lit_modules.nets.phi3_vision_processor import IMAGE_TOKEN

if TYPE_CHECKING:
    from lit_modules.nets.phantom_vlm import PhantomVLM

# How the hub calls the weights, and how they are called here.
_HUB_KEYS = {
    r"^model\.vision_embed_tokens\.img_processor\.vision_model\.": "model.vision_tower.",
    r"^model\.vision_embed_tokens\.img_projection\.0\.": "model.projector.linear_1.",
    r"^model\.vision_embed_tokens\.img_projection\.2\.": "model.projector.linear_2.",
    r"^model\.vision_embed_tokens\.sub_GN": "model.projector.row_end",
    r"^model\.vision_embed_tokens\.glb_GN": "model.projector.before_whole",
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
}


class Projector(nn.Module):
    """CLIP's patches of one image → what the language model reads in its place.

    Args:
        width: Of CLIP's tokens.
        dim: Of the language model's.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(4 * width, dim)
        self.activation = nn.GELU()
        self.linear_2 = nn.Linear(dim, dim)
        self.row_end = nn.Parameter(torch.zeros(1, 1, 1, 4 * width))
        self.before_whole = nn.Parameter(torch.zeros(1, 1, 4 * width))

    def forward(self, patches: Tensor, down: int, across: int) -> Tensor:
        """`(token, dim)`: the crops' rows of tokens, a separator, the whole's rows.

        Args:
            patches: `(1 + crop, patch, width)`, the whole first; the patches row by row.
            down: Rows of crops.
            across: Columns of crops.
        """
        side, width = int(patches.shape[1] ** 0.5) // 2, patches.shape[2]
        merged = patches.reshape(-1, side, 2, side, 2, width).transpose(2, 3).reshape(-1, side, side, 4 * width)
        crops = merged[1:].reshape(down, across, side, side, -1).transpose(1, 2)
        rows = self._rows(crops.reshape(down * side, across * side, -1)), self._rows(merged[0])
        tokens = torch.cat([rows[0], self.before_whole[0].to(merged.dtype), rows[1]])
        return self.linear_2(self.activation(self.linear_1(tokens)))

    def _rows(self, grid: Tensor) -> Tensor:
        """`(row, column, width)` → `(token, width)`, each row with its end."""
        end = self.row_end[0].to(grid.dtype).expand(len(grid), 1, -1)
        return torch.cat([grid, end], 1).flatten(0, 1)


class Phi3VisionPreTrainedModel(PreTrainedModel):
    """What both classes below tell transformers."""

    config_class = Phi3VisionConfig
    config: Phi3VisionConfig
    base_model_prefix = "model"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["Phi3DecoderLayer", "CLIPEncoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Projector):
            for weight in (module.row_end, module.before_whole):
                init.normal_(weight, std=self.config.get_text_config().initializer_range)


class Phi3VisionModel(Phi3VisionPreTrainedModel):
    """Images and text in, last hidden states out."""

    def __init__(self, config: Phi3VisionConfig) -> None:
        super().__init__(config)
        text: Any = config.text_config
        vision: Any = config.vision_config
        self.vision_tower = CLIPVisionModel._from_config(vision)
        self.projector = Projector(vision.hidden_size, text.hidden_size)
        self.language_model = Phi3Model._from_config(text)
        self.post_init()
        # The hub's layer that is not read, and the second name of its embeddings.
        unread = rf"vision_tower\.encoder\.layers\.{vision.num_hidden_layers}\."
        known: Any = self._keys_to_ignore_on_load_unexpected
        known.update([unread, r"vision_embed_tokens\.wte\."])

    def get_input_embeddings(self) -> nn.Module:
        """The language model's."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: Any) -> None:
        """Replaces them."""
        self.language_model.set_input_embeddings(value)

    def patches(self, pixel_values: Tensor) -> Tensor:
        """CLIP's tokens before its last layer, without the class token: `(crop, patch, width)`.

        Args:
            pixel_values: `(crop, 3, row, column)`.
        """
        return self.vision_tower(pixel_values=pixel_values).last_hidden_state[:, 1:]

    def image_features(self, pixel_values: Tensor, image_sizes: Tensor) -> list[Tensor]:
        """What the language model reads in each image's place: `(token, dim)` each.

        Args:
            pixel_values: `(image, 1 + crop, 3, row, column)`; crops that are there only as padding are not looked at.
            image_sizes: `(image, 2)`, rows and columns of each page in pixels.
        """
        grids = (image_sizes // pixel_values.shape[-1]).tolist()
        counts = [1 + down * across for down, across in grids]
        crops = torch.cat([pixels[:count] for pixels, count in zip(pixel_values, counts, strict=True)])
        patches = self.patches(crops).split(counts)
        return [self.projector(one, *grid) for one, grid in zip(patches, grids, strict=True)]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """As transformers' models do; `(text, position)` ids, one image for each text or none at all.

        Raises:
            ValueError: A text holds more or fewer places than its image has tokens, or images come without ids.
        """
        if input_ids is not None:
            places = (input_ids == self.config.image_token_id) | (input_ids < 0)
            inputs_embeds = self.get_input_embeddings()(input_ids.masked_fill(places, self.config.image_token_id))
        if pixel_values is not None:
            if input_ids is None or image_sizes is None or inputs_embeds is None:
                raise ValueError("pixel_values need image_sizes, and input_ids that say where the image goes")
            features = self.image_features(pixel_values, image_sizes)
            if places.sum(1).tolist() != (given := [len(tokens) for tokens in features]):
                raise ValueError(f"the texts have {places.sum(1).tolist()} places for image tokens, the images {given}")
            image = torch.cat(features).to(inputs_embeds)
            inputs_embeds = inputs_embeds.masked_scatter(places[..., None], image)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )


class Phi3VisionForConditionalGeneration(Phi3VisionPreTrainedModel, GenerationMixin):
    """With the head that writes."""

    def __init__(self, config: Phi3VisionConfig) -> None:
        super().__init__(config)
        text: Any = config.text_config
        self.model = Phi3VisionModel(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The language model's."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: Any) -> None:
        """Replaces them."""
        self.model.set_input_embeddings(value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """See `Phi3VisionModel.forward`.

        Args:
            input_ids: `(text, position)`.
            attention_mask: `(text, position)`, 0 at padding.
            position_ids: `(text, position)`.
            past_key_values: The cache.
            inputs_embeds: `(text, position, dim)`, in the place of `input_ids`.
            pixel_values: `(text, 1 + crop, 3, row, column)`.
            image_sizes: `(text, 2)`, rows and columns of each page in pixels.
            labels: `(text, position)`, the ids to be written, -100 where no loss counts.
            logits_to_keep: Logits of so many last positions alone, or of these; 0: of all.
            kwargs: For Phi-3.
        """
        kwargs.pop("return_dict", None)  # there is no other form
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(found.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=logits.shape[-1])
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=found.past_key_values,
            hidden_states=found.hidden_states,
            attentions=found.attentions,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Any,
        next_sequence_length: int | None = None,
        past_key_values: Any = None,
        attention_mask: Any = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The image is read with the prompt, and again wherever there is no cache (any more)."""
        image = {key: kwargs.pop(key, None) for key in ("pixel_values", "image_sizes")}
        if past_key_values is not None and not is_first_iteration:
            # With the rotary factors for long texts, nothing that was cached with those for short ones is right.
            text: Any = self.config.text_config
            if past_key_values.get_seq_length() <= text.original_max_position_embeddings < input_ids.shape[1]:
                past_key_values, next_sequence_length = None, None
        stock: Any = super()
        inputs = stock.prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        return inputs | image if is_first_iteration or past_key_values is None else inputs

    @classmethod
    def from_pretrained(cls, *args: Any, **loading: Any) -> Any:
        """As transformers'; a hub folder's weights too, under their own names."""
        found = super().from_pretrained(*args, key_mapping=_HUB_KEYS, **loading)
        model = found[0] if isinstance(found, tuple) else found
        model._weight_conversions = None  # or `save_pretrained` would write the hub's names
        return found


# transformers' doors open to this class, as to its own.
AutoConfig.register(Phi3VisionConfig.model_type, Phi3VisionConfig)
AutoModelForMultimodalLM.register(Phi3VisionConfig, Phi3VisionForConditionalGeneration)


# The small edition.


def phantom_phi3_config(size: PhantomVLM, tokenizer: Any) -> Phi3VisionConfig:
    """Two crops each way, of half the image's side; plain rotary positions."""
    text = Phi3Config(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=size.vision_hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.heads,
        patch_size=size.patch,
        image_size=size.image // 2,
    )
    image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    return Phi3VisionConfig(text_config=text, vision_config=vision, image_token_id=image)
