"""RegionFormer: Does Grounding Improve Radiology Report Generation? An Empirical Study on PadChest-GR.

Aas-Alas, Albiol, Paredes; MIDL 2026. Authors' code: https://github.com/LightVED-prhlt/RegionFormer (MIT), compared with
at 84205cc. After ClipCap (Mokady et al., arXiv:2111.09734), whose code it builds on.

A frozen CLIP embeds a radiograph, and a mask that is white inside the boxes of one finding; a small transformer maps
the two embeddings to a prefix, after which a frozen GPT-2 writes the finding's sentence.

Differs from the authors' code in (results equal unless said otherwise):

* Embeddings are made and stored once for each image and each set of boxes, not for each sentence.
* Sentences are padded to the longest of the batch, not of the split; the language model's head is computed on the
  targets alone; a genuine `!` (token 0, their padding) is learnt.
* GPT-2's weights get no gradients; theirs are computed and never used.
* The beam search is batched and cached (`nets.beam_search`).
* AdamW is torch's with their ε and decay; theirs (transformers 4.10) adds ε before the bias correction: the loss is
  apart by 5e-4 after six steps.
* CLIP computes in float32; theirs in float16 on a GPU.

The paper and its code disagree on the length of the concatenated embeddings (1 in §3.1, √2 in the code: `unit_norm`)
and on what is validated on (in the code the test split: `data.validation_split`). Quirks of theirs that are settings
here: `fit` (the centre crop cuts off what lies outside the middle square, boxes and all; sound: `pad`) and
`warmup_steps` (fixed, however few steps there are; sound: `warmup_share`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from datamodules.masks import Box
from datamodules.study import SettingsFault, Study
from lit_modules.checkpoint_file import begin_from, checkpoint_at, file_of, read_checkpoint
from lit_modules.nets import backbones
from lit_modules.nets.attention_view import attention_grid
from lit_modules.nets.beam_search import beam_search
from lit_modules.nets.caption_loss import caption_loss
from lit_modules.nets.clip_image import (
    VIT_B_32,
    Fit,
    PhantomCLIP,
    build_vision_config,
    clip_at_hand,
    how_to_get_clip,
    view_frame,
)
from lit_modules.nets.patch_attribution import patch_attribution, sentence_log_probability
from lit_modules.nets.prefix_mapper import PrefixMapper, PrefixMapperSettings
from lit_modules.nets.weights_hash import weights_hash
from lit_modules.regionformer_samples import IGNORED, Eyes, Input, RegionFormerPreprocessor, boxes_of
from lit_modules.regionformer_weights import load_checkpoint
from lit_modules.report_generator import Heatmap, Report, ReportGenerator, Requirement

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


@dataclass(frozen=True)
class Mapper:
    """The size of the mapper; what it takes and gives follows from CLIP and GPT-2.

    Attributes:
        prefix_length: Tokens that the language model reads (§4: 40).
        clip_length: Tokens that the embedding is laid out as (authors' script: 40).
        layers: Transformer layers (authors' code).
        heads: Attention heads (authors' code).
        mlp_ratio: Hidden width of the feed-forward layers, in multiples of the width (authors' code).
    """

    prefix_length: int = 40
    clip_length: int = 40
    layers: int = 8
    heads: int = 8
    mlp_ratio: float = 2.0


@dataclass(frozen=True)
class Decoding:
    """How sentences are decoded.

    Attributes:
        search: `reference`: the authors' rule, see `nets.beam_search`; `transformers`: its own beam search, which finds
            other texts and knows no temperature.
        beams: Texts that are followed (§4).
        max_new_tokens: Longest text, tokens (§4).
        stop: The token that ends a text (authors' code: the full stop). `None`: the language model's own end
            of text, which is then learnt too; for texts of several sentences.
        temperature: Logits are divided by it (§4).
    """

    search: Literal["reference", "transformers"] = "reference"
    beams: int = 5
    max_new_tokens: int = 15
    stop: str | None = "."
    temperature: float = 1.0


MAPPER, DECODING, PHANTOM, PHANTOM_CLIP = Mapper(), Decoding(), backbones.PhantomSize(), PhantomCLIP()
NOT_SPATIAL = "These cells are cut from one vector and have no place in the image: they cannot show where."


class RegionFormer(ReportGenerator):
    """The method. Defaults are the paper's.

    Args:
        llm: Hub id or local folder of a GPT-2, or `phantom:gpt2`. Frozen.
        phantom: Size of a `phantom:` language model.
        clip: Hub id or local folder of a CLIP whose image side is a vision transformer, or `phantom:clip`. Frozen.
        phantom_clip: Size of `phantom:clip`.
        input: What the mapper is given (§3.1, Table 1).
        fit: How an image that is not square is made so, see `nets.clip_image`: faithful `crop`, sound `pad`.
        unit_norm: Bring the two embeddings together to length 1 (§3.1 says so, the code does not).
        mapper: See `Mapper`.
        init_from: What training begins with, a path or a name of the registry: a checkpoint of this method, which
            brings the mapper, or one of the authors' code (`<name>-best.pt`), which brings GPT-2 too.
        max_length: Longest text in training, tokens; longer ones are cut (authors' code: the split's mean + 10 standard
            deviations).
        decoding: See `Decoding`.
        lr: AdamW's (§4); ε 1e-6 and no decay (authors' code).
        warmup_steps: Steps in which the rate grows from 0; then it falls linearly to 0 at the end (§4: 500).
        warmup_share: In place of `warmup_steps`, the share of all steps.
        attribution_steps: Steps of the integrated gradients in `explain`; 0 leaves them out: at full size they take
            half a minute on a CPU.
    """

    modality = "radiograph"

    def __init__(
        self,
        llm: str = "openai-community/gpt2",
        phantom: backbones.PhantomSize = PHANTOM,
        clip: str = VIT_B_32,
        phantom_clip: PhantomCLIP = PHANTOM_CLIP,
        input: Input = "image+mask",
        fit: Fit = "crop",
        unit_norm: bool = False,
        mapper: Mapper = MAPPER,
        init_from: str | None = None,
        max_length: int = 200,
        decoding: Decoding = DECODING,
        lr: float = 2e-5,
        warmup_steps: int = 500,
        warmup_share: float | None = None,
        attribution_steps: int = 32,
    ) -> None:
        super().__init__()
        self.settings = self.keep_settings(locals())
        if warmup_share is not None and not 0 <= warmup_share < 1:
            raise SettingsFault(f"model.warmup_share={warmup_share}: choose 0 to below 1")
        self.eyes = Eyes(clip, self.settings.phantom_clip, fit)
        self._gpt_from = init_from or llm  # of a checkpoint of this method, which brings the mapper alone: `llm`

    # Built when they are needed: the tokenizer by the loader, networks by the Trainer.

    @cached_property
    def tokenizer(self) -> Any:
        """GPT-2's tokenizer."""
        return backbones.build_tokenizer(self.settings.llm)

    @cached_property
    def stop(self) -> int:
        """The token that ends a text."""
        stop = self.settings.decoding.stop
        if stop is None:
            return self.tokenizer.eos_token_id
        token = self.tokenizer.get_vocab().get(stop)
        if token is None:
            raise SettingsFault(f"model.decoding.stop={stop!r} is no token of {self.settings.llm}: give one, or null")
        return token

    def preprocessor(self) -> RegionFormerPreprocessor:
        """Embeddings and token ids of a study."""
        settings = self.settings
        stop = self.stop  # checked here, before anything is trained
        end = stop if settings.decoding.stop is None else None
        return RegionFormerPreprocessor(
            self.eyes, settings.input, settings.unit_norm, self.tokenizer, end, settings.max_length
        )

    def configure_model(self) -> None:
        """Builds GPT-2 and the mapper; on the meta device, reads nothing. CLIP stays with the preprocessor."""
        if hasattr(self, "gpt"):
            return
        settings, meta = self.settings, torch.get_default_device().type == "meta"
        vocabulary = len(self.tokenizer) if settings.llm in backbones.PHANTOMS else 0
        config = backbones.build_config(settings.llm, settings.phantom, vocabulary)
        self._check(config)
        begun = read_checkpoint(checkpoint_at(settings.init_from)) if settings.init_from and not meta else None
        own_gpt = settings.init_from is None or begun is not None
        gpt = backbones.build_language_model(config, settings.llm, torch.float32, settings.phantom, weights=own_gpt)
        self.gpt: GPT2LMHeadModel = gpt.requires_grad_(False)
        dim = build_vision_config(settings.clip, settings.phantom_clip).projection_dim
        self.clip_project = PrefixMapper(
            PrefixMapperSettings(
                prefix_size=dim * (2 if settings.input == "image+mask" else 1),
                dim=config.n_embd,
                **vars(settings.mapper),
            )
        )
        if begun:
            self._gpt_from = settings.llm
            if begin_from(self, begun, str(settings.init_from), {"gpt.": settings.llm}):
                self._gpt_from = str(settings.init_from)
        elif settings.init_from and not meta:
            load_checkpoint(settings.init_from, self.gpt, self.clip_project)
        self.train(self.training)

    def _check(self, config: Any) -> None:
        """Refuses another kind of language model, and lengths that it has no positions for."""
        settings = self.settings
        if config.model_type != "gpt2":
            raise SettingsFault(f"model.llm={settings.llm} is a {config.model_type}; RegionFormer writes with a GPT-2")
        room = config.n_positions - settings.mapper.prefix_length
        longest = max(settings.max_length, settings.decoding.max_new_tokens)
        if longest > room:
            raise SettingsFault(
                f"{settings.llm} has {config.n_positions} positions, {settings.mapper.prefix_length} of them for the "
                f"prefix: set model.max_length and model.decoding.max_new_tokens to {room} or less"
            )

    def train(self, mode: bool = True) -> RegionFormer:
        """Training mode, but for GPT-2, which stays as it is."""
        super().train(mode)
        if hasattr(self, "gpt"):
            self.gpt.eval()
        return self

    # Training.

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Cross-entropy of the text's tokens, averaged over the batch's tokens (§3.3)."""
        if batch["cut"]:
            rank_zero_warn(f"cut to model.max_length={self.settings.max_length} tokens: {', '.join(batch['cut'])}")
        prefix, targets = self.clip_project(batch["embedding"]), batch["tokens"]
        # Padding stands on the right, where causal attention never looks back at it, so no mask is needed. The last
        # token predicts nothing.
        words = self.gpt.get_input_embeddings()(targets[:, :-1].clamp(min=0))
        embeds = torch.cat((prefix, words.to(prefix.dtype)), 1)
        hidden = self.gpt.transformer(inputs_embeds=embeds, use_cache=False).last_hidden_state
        return caption_loss(hidden, self.gpt.lm_head, targets, prefix.shape[1], IGNORED)

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """Logs `validation/loss`, a mean over tokens as in the authors' code."""
        loss = self.loss(batch)
        tokens = int((batch["tokens"] != IGNORED).sum())
        self.log_validation_loss(loss, batch_idx, max(tokens, 1))
        return {"loss": loss, "reports": self.validation_reports(batch)}

    def configure_optimizers(self) -> Any:
        """AdamW on the mapper; the rate grows linearly from 0 and falls linearly to 0 (authors' code)."""
        optimizer = torch.optim.AdamW(self.clip_project.parameters(), self.settings.lr, eps=1e-6, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._rate(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        """Share of the learning rate at an optimiser step."""
        total = self.optimizer_steps()
        share = self.settings.warmup_share
        # The optimizer asks for its first rate before the total is known: a warm-up has at least that one step.
        warmup = self.settings.warmup_steps if share is None else max(bool(share), round(share * total))
        if step < warmup:
            return step / warmup
        if step == 0:
            return 1.0
        return max(0.0, (total - step) / max(1, total - warmup))

    # Reports.

    def embed(self, batch: Mapping[str, Any]) -> Tensor:
        """What the mapper is given, `(study, prefix_size)`."""
        return batch["embedding"]

    @torch.no_grad()
    def generate(self, batch: Mapping[str, Any]) -> list[Report]:
        """One sentence for each study."""
        written = self._write(self.clip_project(batch["embedding"])).tolist()
        texts = [self._decoded([token for token in row if token >= 0]) for row in written]
        return [Report(name, text.strip(), text) for name, text in zip(batch["ids"], texts, strict=True)]

    def _write(self, prefix: Tensor) -> Tensor:
        """The best text of each study, `(study, token)`, -1 after its end."""
        decoding = self.settings.decoding
        if decoding.search == "reference":
            found = beam_search(
                self.gpt, prefix, decoding.beams, decoding.max_new_tokens, self.stop, decoding.temperature
            )
            return found.ids[:, 0]
        gpt: Any = self.gpt  # transformers' own annotations do not fit its classes
        ids = gpt.generate(
            inputs_embeds=prefix.to(gpt.dtype),
            attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long, device=prefix.device),
            num_beams=decoding.beams,
            max_new_tokens=decoding.max_new_tokens,
            do_sample=False,
            eos_token_id=self.stop,
            pad_token_id=self.stop,
        )
        stops = ids.eq(self.stop).long()
        return ids.masked_fill(stops.cumsum(1) > stops, -1)  # all that comes after the first stop token

    def _decoded(self, ids: list[int]) -> str:
        # The authors' transformers (4.10) puts no space before a full stop by default.
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=True)

    def explain(self, study: Study, text: str) -> dict[str, Heatmap]:
        """Which patches of the image, and of the mask, speak for the text (sound), and the paper's attention (§4.4)."""
        assert study.image is not None, "a study that was read has its image"
        settings, boxes, source = self.settings, boxes_of(study), self.preprocessor()
        ids = source.tokens(text)[: settings.max_length]
        if not ids:
            return {}
        maps = self._attribution(study.image, boxes, ids) if settings.attribution_steps else {}
        with torch.no_grad():
            pair = [torch.from_numpy(array.copy()) for array in source.arrays(study).values()]
            _, weights = self.clip_project.with_attention(source.embedding(*pair)[None].to(self.gpt.device))
            grid = attention_grid(weights, settings.mapper.clip_length)[0].float().cpu().numpy()
        return maps | {"attention": Heatmap(grid, "attention, as in the paper (0 to 1)", NOT_SPATIAL)}

    def _attribution(self, image: np.ndarray, boxes: tuple[Box, ...], ids: list[int]) -> dict[str, Heatmap]:
        """What each patch that was given adds to the text's log-probability, over a black image and mask."""
        settings, source, (height, width) = self.settings, self.preprocessor(), image.shape
        views = torch.stack([self.eyes.image_pixels(image), self.eyes.mask_pixels(boxes, width, height)])
        black = self.eyes.mask_pixels((), 1, 1).expand_as(views)
        wanted = torch.tensor(ids, device=self.gpt.device)

        def score(embeddings: Tensor) -> Tensor:
            given = source.embedding(embeddings[:, 0], embeddings[:, 1]).to(wanted.device)
            return sentence_log_probability(self.gpt, self.clip_project(given), wanted).to(embeddings.device)

        found = patch_attribution(self.eyes.model(), views, black, score, settings.attribution_steps)
        note = (
            f"Integrated gradients from a black image and mask: image {found.maps[0].sum():+.2f}, mask "
            f"{found.maps[1].sum():+.2f}, together {found.score - found.baseline_score:+.2f} nats "
            f"(left over {found.remainder:+.3f})."
        )
        frame = view_frame(width, height, settings.fit)
        return {
            name: Heatmap(part.numpy(), f"{name}: nats for the text", note, frame, signed=True)
            for name, part in zip(("image", "mask"), found.maps, strict=True)
            if name in settings.input
        }

    # What it needs, and what its checkpoints leave out.

    def frozen_files(self) -> dict[str, str]:
        """GPT-2, by its files or by the phantom's seed."""
        return {"gpt.": self._gpt_from}

    @cached_property
    def _frozen_sha256(self) -> dict[str, str]:
        return {"gpt": weights_hash(self.gpt), "clip": self.eyes.sha256()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Names the frozen parts and their content beside the mapper's weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["frozen_sha256"] = dict(self._frozen_sha256)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses the weights of another model, and a mapper that was trained between other frozen parts.

        Raises:
            SettingsFault: Either is so.
        """
        super().on_load_checkpoint(checkpoint)
        names = {"gpt": f"model.llm={self.settings.llm}", "clip": f"model.clip={self.settings.clip}"}
        for part, trained_with in checkpoint.get("frozen_sha256", {}).items():
            if (here := self._frozen_sha256[part]) != trained_with:
                raise SettingsFault(
                    f"{names[part]} holds other weights ({here[:12]}…) than the mapper was trained with "
                    f"({trained_with[:12]}…): give those"
                )

    def requirements(self) -> list[Requirement]:
        """Weights."""
        settings = self.settings
        needs = []
        if settings.init_from:
            how = f"put a checkpoint at {settings.init_from}, or set model.init_from=null"
            there = file_of(checkpoint_at(settings.init_from)).is_file()
            needs.append(Requirement(Path(settings.init_from).name, there, how))
        if settings.llm not in backbones.PHANTOMS:
            there = backbones.at_hand(settings.llm, weights=settings.init_from is None)
            needs.append(Requirement(settings.llm, there, backbones.how_to_get(settings.llm)))
        if not settings.clip.startswith("phantom:"):
            needs.append(Requirement(settings.clip, clip_at_hand(settings.clip), how_to_get_clip(settings.clip)))
        return needs
