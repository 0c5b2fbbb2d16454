"""Reg2RG: Large Language Model with Region-guided Referring and Grounding for CT Report Generation.

Chen, Bie, Jin, Chen; IEEE Transactions on Medical Imaging, 2025; arXiv:2411.15539. Authors' code:
https://github.com/zhi-xuan-chen/Reg2RG (Apache-2.0). The volume encoder and resampler come from RadFM
(arXiv:2308.02463).

Each region of a CT is shown to a language model as its cropped, masked volume (texture, 32 embeddings) and its
uncropped mask (geometry, one embedding), beside the whole volume (32 embeddings); the model names every region, then
reports on it.

Differs from the authors' code in (results equal unless said otherwise):

* All volumes of a batch, global and regional, pass the encoder together, without gradients where it is frozen; regions
  that a study lacks are not encoded. Attention is `scaled_dot_product_attention`.
* Embeddings are gathered instead of multiplied by a one-hot matrix; sequences are padded to the longest of the batch,
  not to 2048; logits are computed where labels are, and their loss in float32 (the authors' is bfloat16).
* Generation runs in batches, padded on the left, with adapters folded into the weights.
* A sequence longer than `max_length` is cut with a warning; the authors' code fails.
* Decoding is greedy; the authors take whatever the language model's generation settings say, probably sampling
  (`Decoding`).

Quirks of the authors' training that are settings here: `encoder_dropout` (the frozen encoder's dropout stays on:
faithful `True`, sound `False`), `prompted_at_test`, `decoding`. `fc` starts from random numbers although RadFM's file
holds one, for that one is as wide as another language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from datamodules.study import SettingsFault
from lit_modules.checkpoint_file import begin_from, checkpoint_at, file_of, read_checkpoint
from lit_modules.nets import backbones
from lit_modules.nets.lora import LoRA, Tuning, merged, tune, without_adapters
from lit_modules.nets.perceiver import PerceiverSettings
from lit_modules.nets.prompt import REGIONS, Prompt, add_special_tokens, check_prompt, splice, without_prefixes
from lit_modules.nets.region_crops import unpack
from lit_modules.nets.visual_embedding import FRAME, VisualEmbedding
from lit_modules.nets.vit3d import Encoder3D
from lit_modules.reg2rg_samples import IGNORED, Reg2RGPreprocessor
from lit_modules.reg2rg_weights import load_weights
from lit_modules.report_generator import RegionReport, Report, ReportGenerator, Requirement

# §IV-B: "pre-trained ViT3D … from RadFM"; sizes as in that file.
VOLUME_ENCODER = Encoder3D(512, 512, patch_size=32, patch_frames=4, dim=768, depth=12, heads=8, mlp_dim=2048)
# §IV-B: "a lightweight 3-layer ViT3D serves as the mask encoder"; sizes as in the authors' code.
MASK_ENCODER = Encoder3D(256, 64, patch_size=32, patch_frames=16, dim=255, depth=3, heads=8, mlp_dim=512, channels=1)
PERCEIVER = PerceiverSettings()  # §IV-B: 32 embeddings a volume


@dataclass(frozen=True)
class Decoding:
    """How reports are decoded.

    Sound, and the default: greedy, the same report each time. Faithful: the authors give `top_k=30` and leave the rest
    to the language model's own file; Llama-2-chat's says `sample=True, temperature=0.6, top_p=0.9`, so that is probably
    what their figures used.

    Attributes:
        sample: Draw tokens instead of taking the likeliest.
        temperature: Of the draw.
        top_p: Probability mass that is drawn from.
        top_k: Tokens that are drawn from.
        max_new_tokens: Longest report; authors' code.
    """

    sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 30
    max_new_tokens: int = 500


LORA, DECODING, PHANTOM = LoRA(), Decoding(), backbones.PhantomSize()


class Reg2RG(ReportGenerator):
    """The method. Defaults are the paper's.

    Args:
        llm: Hub id or local folder of the language model, or `phantom:llama` / `phantom:gpt2` (Table VIII: `gpt2`).
        phantom: Size of a `phantom:` language model.
        llm_tuning: What of the language model is trained.
        lora: Adapters, where `llm_tuning` is `lora`.
        size: Height, width and depth, in voxels, that each volume, crop and mask is resized to (§IV-B).
        vision: Encoder of volumes.
        mask_encoder: Encoder of masks.
        perceiver: Resampler.
        vision_weights: The authors' `RadFM_vit3d.pth`.
        adapter_weights: The authors' `RadFM_perceiver_fc.pth`.
        init_from: What training begins with, a path or a name of the registry: the authors' `pytorch_model.bin` or that
            file converted (`reg2rg@authors`), a whole trained model, so that nothing else is read but the tokenizer; or
            a checkpoint of this method, which brings what it trained.
        freeze_vision: Do not train the encoder of volumes (authors' code).
        encoder_dropout: Leave the volume encoder's dropout on in training, frozen or not: faithful `True`, sound
            `False`.
        texture: Show regions' cropped volumes (Table VI).
        geometry: Show regions' masks (Table VI).
        global_context: Show the whole volume (Table VI).
        decouple: LFD (Table V). `False` shows each region as the masked, uncropped volume, and no mask.
        align: RRA (Table VII). `False` keeps regions in their order and asks for no names.
        prompted_at_test: Regions shown in evaluation. `masked`: all that have a mask (faithful, and sound: it asks the
            reference nothing); `reported`: those that the reference speaks of, as in training, which tells the model
            what is worth a word.
        max_length: Longest sequence in training, in tokens; longer ones are cut (authors' code: 2048).
        gradient_checkpointing: Recompute the language model's layers in the backward pass (§IV-B).
        dtype: Precision of the language model's own weights; adapters and encoders follow the Trainer.
        decoding: See `Decoding`.
        lr: AdamW's (§IV-B); betas 0.9 and 0.999.
        warmup_steps: Linear, then constant (authors' code).
        weight_decay: AdamW's (authors' code).
    """

    modality = "ct"

    def __init__(
        self,
        llm: str = "meta-llama/Llama-2-7b-chat-hf",
        phantom: backbones.PhantomSize = PHANTOM,
        llm_tuning: Tuning = "lora",
        lora: LoRA = LORA,
        size: tuple[int, int, int] = (256, 256, 64),
        vision: Encoder3D = VOLUME_ENCODER,
        mask_encoder: Encoder3D = MASK_ENCODER,
        perceiver: PerceiverSettings = PERCEIVER,
        vision_weights: str | None = None,
        adapter_weights: str | None = None,
        init_from: str | None = None,
        freeze_vision: bool = True,
        encoder_dropout: bool = True,
        texture: bool = True,
        geometry: bool = True,
        global_context: bool = True,
        decouple: bool = True,
        align: bool = True,
        prompted_at_test: Literal["masked", "reported"] = "masked",
        max_length: int = 2048,
        gradient_checkpointing: bool = True,
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
        decoding: Decoding = DECODING,
        lr: float = 5e-5,
        warmup_steps: int = 20,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.settings = self.keep_settings(locals())
        self.settings.size = tuple(size)
        self._frozen_from = init_from  # a whole model; not of a checkpoint of this method that lacks what files bring
        self.prompt = Prompt(
            self.settings.perceiver.latents,
            texture=texture,
            geometry=geometry and decouple,
            global_context=global_context,
            align=align,
        )
        self.settings.vision.check(self.settings.size)
        if self.prompt.geometry:
            self.settings.mask_encoder.check(self.settings.size)

    # Built when they are needed: the tokenizer by the loader, networks by the Trainer.

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, with the prompt's special tokens, checked."""
        tokenizer = backbones.build_tokenizer(self.settings.llm)
        base = len(tokenizer)
        config = backbones.build_config(self.settings.llm, self.settings.phantom, base)
        add_special_tokens(tokenizer, self.prompt)
        longest = check_prompt(tokenizer, self.prompt, base, config.vocab_size)
        self._check_lengths(longest, config.max_position_embeddings)
        return tokenizer

    @cached_property
    def first_special(self) -> int:
        """Id of the first special token: the size of the tokenizer's own vocabulary."""
        return len(self.tokenizer) - len(self.prompt.tokens)

    def preprocessor(self) -> Reg2RGPreprocessor:
        """Crops, prompt and target of a study."""
        settings = self.settings
        return Reg2RGPreprocessor(
            settings.size,
            settings.decouple,
            settings.dtype,
            self.prompt,
            self.tokenizer,
            settings.max_length,
            settings.prompted_at_test,
        )

    def configure_model(self) -> None:
        """Builds the networks and reads the weights that the settings name; on the meta device, reads nothing."""
        if hasattr(self, "lang_model"):
            return
        settings, meta = self.settings, torch.get_default_device().type == "meta"
        vocabulary = self.first_special if settings.llm in backbones.PHANTOMS else 0
        config = backbones.build_config(settings.llm, settings.phantom, vocabulary)
        if not meta:
            _ = self.tokenizer  # checked before anything large is read
        begun = read_checkpoint(checkpoint_at(settings.init_from)) if settings.init_from and not meta else None
        partial = begun is not None and bool(begun["frozen_files"])
        dtype, weights = getattr(torch, settings.dtype), settings.init_from is None or partial
        model = backbones.build_language_model(config, settings.llm, dtype, settings.phantom, weights)
        model.generation_config = self._generation(config)  # not the one that came with the weights
        if settings.gradient_checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        self.lang_model = tune(model, settings.llm_tuning, settings.lora)
        self.embedding_layer = VisualEmbedding(
            settings.vision,
            settings.mask_encoder if self.prompt.geometry else None,
            settings.perceiver,
            model.get_input_embeddings().embedding_dim,
            settings.freeze_vision,
        )
        if not meta and (begun is None or partial):
            whole = None if begun else settings.init_from
            load_weights(self, settings.vision_weights, settings.adapter_weights, whole)
        if begun:
            self._frozen_from = None if partial else settings.init_from
            if begin_from(self, begun, str(settings.init_from), self._own_files()):
                self._frozen_from = settings.init_from
        self.train(self.training)  # transformers hands models over in evaluation mode

    def train(self, mode: bool = True) -> Reg2RG:
        """Training mode, but for the volume encoder where its dropout is to stay off."""
        super().train(mode)
        if hasattr(self, "embedding_layer") and not self.settings.encoder_dropout:
            self.embedding_layer.vision_encoder.eval()
        return self

    def _check_lengths(self, prompt: int, limit: int) -> None:
        """Refuses settings under which a prompt of `prompt` tokens leaves no room among `limit` positions."""
        llm, written = self.settings.llm, self.settings.decoding.max_new_tokens
        if self.settings.max_length > limit:
            raise SettingsFault(f"{llm} reads {limit} positions at most: set model.max_length={limit} or less")
        if prompt + written > limit:
            raise SettingsFault(
                f"{llm} reads {limit} positions at most and a prompt takes up to {prompt}: "
                f"set model.decoding.max_new_tokens={limit - prompt} or less"
            )
        if prompt >= self.settings.max_length:
            raise SettingsFault(f"a prompt takes up to {prompt} tokens: set model.max_length above that")

    def _generation(self, config: Any) -> Any:
        from transformers import GenerationConfig

        decoding = self.settings.decoding
        drawn = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}
        pad = config.eos_token_id if config.pad_token_id is None else config.pad_token_id
        return GenerationConfig(
            do_sample=decoding.sample,
            max_new_tokens=decoding.max_new_tokens,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=pad,
            **drawn if decoding.sample else {},
        )

    # Training.

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Cross-entropy of the target's tokens, averaged over the batch's tokens (paper Eq. 9)."""
        return self._loss(batch, self._rows(batch))

    def _rows(self, batch: Mapping[str, Any]) -> Tensor:
        """The studies' rows, see `VisualEmbedding`."""
        pairs = zip(batch["pixels"], batch["regions"], strict=True)
        volumes, masks = zip(*(unpack(packed, regions, self.settings.size) for packed, regions in pairs), strict=True)
        length = FRAME + self.prompt.latents + self.prompt.stride * max(map(len, batch["regions"]))
        none = self.embedding_layer.fc.weight.new_zeros(0, 1, *self.settings.size)
        return self.embedding_layer(
            torch.cat([part for part in volumes if part is not None] or [none]),
            batch["volume_rows"],
            torch.cat([part for part in masks if part is not None] or [none]),
            batch["mask_rows"],
            (len(batch["ids"]), length),
        )

    def _loss(self, batch: Mapping[str, Any], rows: Tensor) -> Tensor:
        if batch["cut"]:
            rank_zero_warn(f"cut to model.max_length={self.settings.max_length} tokens: {', '.join(batch['cut'])}")
        model = without_adapters(self.lang_model)
        # Padding stands on the right, where causal attention never looks back at it, so no mask is needed.
        hidden = getattr(model, model.base_model_prefix)(
            inputs_embeds=self._splice(batch["tokens"], rows), use_cache=False
        ).last_hidden_state
        labels = batch["labels"][:, 1:]
        learnt = labels != IGNORED
        logits = model.get_output_embeddings()(hidden[:, :-1][learnt])
        return F.cross_entropy(logits.float(), labels[learnt])

    def _splice(self, tokens: Tensor, rows: Tensor) -> Tensor:
        words = without_adapters(self.lang_model).get_input_embeddings()
        return splice(tokens, words, rows, self.first_special).to(words.weight.dtype)

    def configure_optimizers(self) -> Any:
        """AdamW on what is trained; learning rate linear from 0 over `warmup_steps`, then constant (authors' code)."""
        settings = self.settings
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, settings.lr, betas=(0.9, 0.999), weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(warmed_up, settings.warmup_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # Reports.

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """Logs `validation/loss`; volumes are encoded once for it and for the reports."""
        rows = self._rows(batch)
        loss = self._loss(batch, rows)
        self.log_validation_loss(loss, batch_idx, len(batch["ids"]))
        return {"loss": loss, "reports": self._generate(batch, rows) if self.reports_in_validation else []}

    def embed(self, batch: Mapping[str, Any]) -> Tensor:
        """What the language model is shown of each study, averaged over positions: `(study, hidden)`."""
        return self._rows(batch).mean(1)

    @torch.no_grad()
    def generate(self, batch: Mapping[str, Any]) -> list[Report]:
        """One report for each study, all regions in one pass."""
        return self._generate(batch, self._rows(batch))

    def _generate(self, batch: Mapping[str, Any], rows: Tensor) -> list[Report]:
        written = self._write(batch, rows)
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [self._report(*row) for row in zip(batch["ids"], batch["regions"], texts, strict=True)]

    def _write(self, batch: Mapping[str, Any], rows: Tensor) -> Tensor:
        """New token ids, `(study, position)`."""
        model = without_adapters(self.lang_model)
        with merged(self.lang_model):
            return model.generate(
                inputs_embeds=self._splice(batch["prompt"], rows), attention_mask=batch["prompt_mask"]
            )

    def _report(self, study_id: str, regions: list[str], text: str) -> Report:
        rows = self.prompt.parse(text, regions)
        known = {*REGIONS, *regions}
        grounded = rows and tuple(RegionReport(r, name if name in known else None, said) for r, name, said in rows)
        return Report(study_id, without_prefixes(text), text, None if rows is None else tuple(grounded or ()))

    # What it needs, and what its checkpoints leave out.

    def frozen_files(self) -> dict[str, str]:
        """The language model and the volume encoder, where they came from files."""
        files = self._own_files()
        if self._frozen_from:
            files = dict.fromkeys([*files, "embedding_layer.vision_encoder."], self._frozen_from)
        return files

    def _own_files(self) -> dict[str, str]:
        """The same, where `init_from` does not bring them."""
        settings = self.settings
        files = {}
        if settings.llm not in backbones.PHANTOMS:
            files["lang_model."] = settings.llm
        if settings.vision_weights:
            files["embedding_layer.vision_encoder."] = settings.vision_weights
        return files

    def requirements(self) -> list[Requirement]:
        """Weights, and the licence to accept."""
        settings = self.settings
        needs = []
        for name in ("vision_weights", "adapter_weights", "init_from"):
            if path := getattr(settings, name):
                how = f"put the authors' file at {path}, or set model.{name}=null to start from random numbers"
                needs.append(Requirement(Path(path).name, file_of(checkpoint_at(path)).is_file(), how))
        if settings.llm not in backbones.PHANTOMS:
            there = backbones.at_hand(settings.llm, weights=settings.init_from is None)
            needs.append(Requirement(settings.llm, there, backbones.how_to_get(settings.llm)))
        return needs


def warmed_up(steps: int, step: int) -> float:
    """Share of the learning rate at optimiser step `step`: linear over `steps`, then one."""
    return min(1.0, step / steps) if steps else 1.0
