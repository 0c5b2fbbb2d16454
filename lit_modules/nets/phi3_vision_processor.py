"""Texts and images → what Phi-3(.5)-vision reads: the original processor's ids, with a batch of texts too.

The original tokenizes what stands before and after `<|image_1|>` apart, each piece with its own `<s>`, and joins the
pieces with the image's places between them. Its places are -1; here they are the id of `<|image|>`, which the published
vocabulary holds for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules.study import SettingsFault
from lit_modules.nets.backbones import located
from lit_modules.nets.phi3_vision_image import Phi3VisionImageProcessor

IMAGE_TAG, IMAGE_TOKEN = "<|image_1|>", "<|image|>"

# Turns in the published format. `<s>` stands before the text and again after the image, as in the original's ids;
# written out, it is there with `add_special_tokens=False`.
CHAT_TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|image_1|><s>\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


class Phi3VisionProcessor:
    """Called as transformers' processors are.

    Args:
        image_processor: Prepares images.
        tokenizer: Holds `<|image|>` as a special token.

    Raises:
        SettingsFault: It does not.
    """

    def __init__(self, image_processor: Phi3VisionImageProcessor, tokenizer: Any) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.chat_template = CHAT_TEMPLATE
        self.image_token = IMAGE_TOKEN
        if IMAGE_TOKEN not in tokenizer.get_added_vocab():
            raise SettingsFault(f"the tokenizer has no {IMAGE_TOKEN}; give Phi-3-vision's own")
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] = "",
        add_special_tokens: bool = True,
        padding: bool = False,
        return_tensors: str | None = None,
    ) -> Any:
        """One text or several, each with one image or none of them with any.

        Args:
            images: See `Phi3VisionImageProcessor`; in the order of the texts.
            text: With `<|image_1|>` where the image goes.
            add_special_tokens: `<s>` before each piece of a text.
            padding: To the longest text, on the tokenizer's `padding_side`.
            return_tensors: "pt", "np" or `None`.

        Returns:
            `input_ids` and `attention_mask` `(text, position)`; with images, `pixel_values` and `image_sizes` too.

        Raises:
            ValueError: Not one `<|image_1|>` in each text for one image each.
        """
        from transformers import BatchFeature

        texts = [text] if isinstance(text, str) else list(text)
        seen = self.image_processor(images, return_tensors=return_tensors) if images is not None else {}
        counts = seen.pop("num_img_tokens") if seen else [None] * len(texts)
        if len(counts) != len(texts):
            raise ValueError(f"{len(texts)} texts, but {len(counts)} images")
        ids = [self._ids(one, count, add_special_tokens) for one, count in zip(texts, counts, strict=True)]
        words = self.tokenizer.pad({"input_ids": ids}, padding=padding, return_tensors=return_tensors)
        return BatchFeature({**words, **seen})

    def _ids(self, text: str, places: int | None, add_special_tokens: bool) -> list[int]:
        pieces = text.split(IMAGE_TAG)
        if len(pieces) != (1 if places is None else 2):
            raise ValueError(f"a text has {len(pieces) - 1} {IMAGE_TAG} for {0 if places is None else 1} image")
        ids = [self.tokenizer(piece, add_special_tokens=add_special_tokens)["input_ids"] for piece in pieces]
        return ids[0] if places is None else [*ids[0], *[self.image_token_id] * places, *ids[1]]

    def apply_chat_template(self, messages: Sequence[dict[str, Any]], **settings: Any) -> Any:
        """The tokenizer's `apply_chat_template` with `CHAT_TEMPLATE`; text by default, to be handed to `__call__`."""
        settings = {"tokenize": False, "chat_template": self.chat_template} | settings
        return self.tokenizer.apply_chat_template(messages, **settings)

    def decode(self, *args: Any, **settings: Any) -> str:
        """The tokenizer's."""
        return self.tokenizer.decode(*args, **settings)

    def batch_decode(self, *args: Any, **settings: Any) -> list[str]:
        """The tokenizer's."""
        return self.tokenizer.batch_decode(*args, **settings)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes tokenizer and image settings beside a model."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, vlm: str, num_crops: int | None = None) -> Phi3VisionProcessor:
        """The processor of a hub id or of a local folder, in the hub's layout or as `save_pretrained` writes it.

        Args:
            vlm: Hub id or folder.
            num_crops: In the place of the published number.

        Raises:
            OSError: It cannot be read.
        """
        from transformers import PreTrainedTokenizerFast

        images = Phi3VisionImageProcessor.from_pretrained(vlm)
        images.num_crops = num_crops or images.num_crops
        # The class that the hub names would rebuild tokenizer.json with rules of its own.
        return cls(images, PreTrainedTokenizerFast.from_pretrained(located(vlm)))
