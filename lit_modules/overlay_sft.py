"""Overlay-SFT: segmentation-guided radiology report generation for pneumothorax detection in chest X-rays.

Jia, Elboardy, Rashed, PMLR 317:150-158 (2nd AAAI Bridge "AI for Medicine and Healthcare", 2026). No code of it is
public. Training is compared with TRL's SFTTrainer, which the paper uses.

The pneumothorax mask is drawn onto the radiograph, the prompt says so, and a published vision-language model, which is
otherwise as it was, learns with QLoRA to write the radiologists' report: eleven models, with and without the mask.

Differs from the paper in:

* What it does not tell is set as in Google's notebook that fine-tunes MedGemma: rank, rates, batch, warm-up, clipping.
* Loss is taken on the report alone. TRL, as the paper seems to use it, also takes it on the prompt, which is the same
  in each sample (`mask_prompt=false`).
* A film without pneumothorax gets the prompt that speaks of no mask, with guidance too: the other would be false.
* Decoding is greedy (the paper does not say). What a model thinks aloud, and markdown, is taken out of its answer; both
  stay in `raw`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from datamodules.study import DataFault, SettingsFault, Study
from lit_modules.checkpoint_file import begin_from, checkpoint_at, file_of, read_checkpoint
from lit_modules.nets import qlora
from lit_modules.nets.overlay import Overlay
from lit_modules.nets.patch_norms import contrast, normalised, patch_norms
from lit_modules.nets.phantom_vlm import PHANTOM, PhantomVLM
from lit_modules.nets.schedule import rate
from lit_modules.nets.vlm import build_vlm, family_of, how_to_get_vlm, vlm_at_hand
from lit_modules.nets.vlm_encoding import IGNORED, VlmEncoder
from lit_modules.overlay_samples import REGION, OverlayPreprocessor
from lit_modules.report_generator import Heatmap, Report, ReportGenerator, Requirement


@dataclass(frozen=True)
class Decoding:
    """How reports are decoded: greedily, or by following several texts.

    Attributes:
        beams: Texts that are followed.
        max_new_tokens: Longest report.
    """

    beams: int = 1
    max_new_tokens: int = 512


OVERLAY, ADAPTERS, DECODING = Overlay(), qlora.Adapters(), Decoding()


class OverlaySFT(ReportGenerator):
    """The method. Defaults are the paper's, with guidance; where it is silent, those of MedGemma's notebook.

    Args:
        vlm: Hub id or local folder of a vision-language model, or `phantom:<model_type>`; see `nets.vlm_families`.
        phantom: Size of a `phantom:` model.
        guidance: Draw the `mask` and say so (Prompt 1), or show the film as it is (Prompt 2).
        overlay: See `Overlay`.
        tuning: Train adapters, everything, or nothing.
        lora: See `qlora.Adapters`.
        quantization: What the frozen weights lie in: `nf4`, or as they are read.
        init_from: A checkpoint of this method in any form, or a name of the registry, whose trained weights it begins
            with.
        mask_prompt: Learn the report alone; `false`: the prompt too, as TRL does with whole conversations.
        max_length: Longest sequence in training, tokens, the image's among them; a longer report loses its end.
        max_pixels: Bound of a film's size, in pixels, for models that give a larger film more tokens (Qwen, Phi).
        gradient_checkpointing: Recompute layers in the backward pass.
        dtype: Precision of what is neither quantised nor trained.
        decoding: See `Decoding`.
        lr: AdamW's; no decay.
        warmup_share: Share of all steps in which the rate grows from 0; then it falls linearly to 0.
    """

    modality = "radiograph"

    def __init__(
        self,
        vlm: str = "google/medgemma-4b-it",
        phantom: PhantomVLM = PHANTOM,
        guidance: Literal["mask", "none"] = "mask",
        overlay: Overlay = OVERLAY,
        tuning: Literal["lora", "full", "frozen"] = "lora",
        lora: qlora.Adapters = ADAPTERS,
        quantization: qlora.Quantization = "nf4",
        init_from: str | None = None,
        mask_prompt: bool = True,
        max_length: int = 4096,
        max_pixels: int | None = None,
        gradient_checkpointing: bool = True,
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
        decoding: Decoding = DECODING,
        lr: float = 2e-4,
        warmup_share: float = 0.03,
    ) -> None:
        super().__init__()
        self.settings = self.keep_settings(locals())
        if tuning == "full" and quantization != "none":
            raise SettingsFault("4-bit weights cannot be trained: set model.quantization=none or model.tuning=lora")

    @cached_property
    def encoder(self) -> VlmEncoder:
        """The model's own reading of images and turns."""
        settings = self.settings
        return VlmEncoder(
            settings.vlm, settings.phantom, settings.max_length, settings.max_pixels, settings.mask_prompt
        )

    def preprocessor(self) -> OverlayPreprocessor:
        """Image tensors and token ids of a study."""
        return OverlayPreprocessor(self.encoder, self.settings.overlay if self.settings.guidance == "mask" else None)

    def configure_model(self) -> None:
        """Builds the model and its adapters, on its GPU where there is one; on the meta device, reads nothing."""
        if hasattr(self, "vlm"):
            return
        settings, meta = self.settings, torch.get_default_device().type == "meta"
        quantization = None if meta else qlora.quantization_config(settings.quantization)
        vlm = build_vlm(
            settings.vlm, getattr(torch, settings.dtype), quantization, {"": self._place()}, phantom=settings.phantom
        )
        if meta and settings.quantization == "nf4":
            qlora.as_if_quantised(vlm)
        qlora.repair_on_cpu(vlm)
        if settings.gradient_checkpointing:
            vlm.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        if settings.tuning == "lora":
            vlm = qlora.adapt(vlm, settings.lora, family_of(settings.vlm).language)
        else:
            vlm.requires_grad_(settings.tuning == "full")
        self.vlm = vlm
        if settings.init_from and not meta:
            begun = read_checkpoint(checkpoint_at(settings.init_from))
            if begun is None:
                raise DataFault(f"{settings.init_from} is no checkpoint of this project")
            begin_from(self, begun, settings.init_from, self.frozen_files())
        self.train(self.training)  # transformers hands models over in evaluation mode

    def _place(self) -> torch.device:
        """Where weights are read to: left alone, transformers would read each process's onto the first GPU."""
        trainer = getattr(self, "_trainer", None)
        return torch.device("cpu") if trainer is None else trainer.strategy.root_device

    # Training.

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Cross-entropy of the report's tokens and of its end, averaged over the batch's tokens.

        Logits are made from the first of them on alone: for all of a batch, with Gemma's 262,144 words, they are
        gigabytes.
        """
        if batch["cut"]:
            rank_zero_warn(f"cut to model.max_length={self.settings.max_length} tokens: {', '.join(batch['cut'])}")
        turn = dict(batch["turn"])
        labels = turn.pop("labels")[:, -batch["learnt"] :]
        logits = self.vlm(**turn, use_cache=False, logits_to_keep=batch["learnt"] + 1).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        return loss / (labels != IGNORED).sum().clamp(min=1)

    def configure_optimizers(self) -> Any:
        """AdamW on what is trained; the rate grows linearly from 0 and falls linearly to 0."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, self.settings.lr, betas=(0.9, 0.999), weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._rate(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        return rate(step, self.optimizer_steps(), self.settings.warmup_share, "linear")

    # Reports.

    @torch.no_grad()
    def generate(self, batch: Mapping[str, Any]) -> list[Report]:
        """The report of each study."""
        decoding, prompt = self.settings.decoding, batch["prompt"]
        written = self.vlm.generate(
            **prompt,
            max_new_tokens=decoding.max_new_tokens,
            num_beams=decoding.beams,
            do_sample=False,
            eos_token_id=self.encoder.ends,
            pad_token_id=self.encoder.pad,
            **dict.fromkeys(("temperature", "top_p", "top_k")),  # a repository's own are for sampling
        )
        answers = map(self.encoder.decode, written[:, prompt["input_ids"].shape[1] :])
        return [Report(name, plain_text(raw), raw) for name, raw in zip(batch["ids"], answers, strict=True)]

    def explain(self, study: Study, text: str) -> dict[str, Heatmap]:
        """How strongly the image encoder answers to each patch of what the model is shown (eqs. 1 to 4, Fig. 6).

        It is the length of a patch's hidden state, neither attention nor a gradient, and does not depend on the text.
        """
        assert study.image is not None, "a study that was read has its image"
        film, guided = self.preprocessor().film(study)
        inputs = self.encoder.image_tensors(self.encoder.image_arrays(film))
        values, frame = patch_norms(self.vlm, family_of(self.settings.vlm), inputs, study.image.shape)
        note = "The film with the mask drawn on it." if guided else "The film as it is."
        mask = (study.masks or {}).get(REGION)
        ratio = math.nan if mask is None else contrast(values, frame, mask)
        if not math.isnan(ratio):
            note += f" Inside the mask it is {ratio:.2f} times as much as outside."
        return {"activation": Heatmap(normalised(values), "activation, share of the greatest", note, frame)}

    # What it needs, and what its checkpoints hold.

    def _kept_keys(self) -> set[str]:
        """What is trained, alone: 4-bit weights come with scales that no parameter is."""
        return {name for name, weight in self.named_parameters(remove_duplicate=False) if weight.requires_grad}

    def frozen_files(self) -> dict[str, str]:
        """All but what is trained comes from the model's own files."""
        return {"vlm.": self.settings.vlm}

    def export(self, folder: Path) -> None:
        """Writes what reads films and texts, too; adapters as every method's."""
        super().export(folder)
        self.encoder.processor.save(folder)

    def requirements(self) -> list[Requirement]:
        """Weights and their licence, bitsandbytes, a GPU that holds the weights."""
        settings, needs = self.settings, []
        if settings.init_from:
            how = f"train the run before, or set model.init_from=null (now {settings.init_from})"
            there = file_of(checkpoint_at(settings.init_from)).is_file()
            needs.append(Requirement(Path(settings.init_from).name, there, how))
        if not settings.vlm.startswith("phantom:"):
            needs.append(Requirement(settings.vlm, vlm_at_hand(settings.vlm), how_to_get_vlm(settings.vlm)))
        if settings.quantization == "nf4":
            how = "pip install bitsandbytes, or set model.quantization=none (--with no_quantization)"
            needs.append(Requirement("bitsandbytes", qlora.bitsandbytes_there(), how))
        return needs


_THOUGHT = re.compile(r"\A.*(?:</think>|<unused95>)|<think>.*|<unused94>.*", re.DOTALL)  # the latter are MedGemma's
_MARKS = [
    (re.compile(r"^\s*```.*$", re.MULTILINE), ""),
    (re.compile(r"^\s*(?:[-*_]\s*){3,}$", re.MULTILINE), ""),  # rules
    (re.compile(r"^\s*#{1,6}\s+", re.MULTILINE), ""),
    (re.compile(r"^\s*[-*+•]\s+", re.MULTILINE), ""),
    (re.compile(r"\*\*(.+?)\*\*|__(\w.*?\w)__"), r"\1\2"),
    (re.compile(r"(?<![\w*])\*(\S(?:[^*\n]*\S)?)\*(?![\w*])"), r"\1"),
    (re.compile(r"\n{2,}"), "\n"),
]


def plain_text(answer: str) -> str:
    """An answer without what was thought aloud before it, and without markdown: a protocol compares words."""
    text = _THOUGHT.sub("", answer)
    for pattern, replacement in _MARKS:
        text = pattern.sub(replacement, text)
    return text.strip()
