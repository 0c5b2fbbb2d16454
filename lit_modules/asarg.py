"""ASaRG: Automatic fine-grained Segmentation-assisted Report Generation.

arXiv:2507.16623. No code of it is public, and its equations are lost in every text form of the paper: the fusion is a
reconstruction that meets the paper's parameter budgets (`nets.feature_fusion`). LLaVA-1.5 is compared with
https://github.com/haotian-liu/LLaVA (Apache-2.0).

LLaVA-1.5 reads, beside CLIP's tokens of a radiograph, the features of a network that was taught on medical images
(LVM-Med) and maps of 212 structures that another one has segmented (CXAS), and writes the findings.

Differs from the paper in (results equal unless said otherwise):

* Maps are pooled once and kept as 8-bit values (rounded by at most 1/510); features are kept in float16.
* Logits are computed where labels are. What a mixing layer makes of an image's features is computed once an image.
* Decoding is greedy; the paper samples, at a temperature that is lost (0.2 in LLaVA's scripts: `decoding.sample`).
* 159 classes of CXAS are public, not 212; `classes=paper` leaves the others empty where no file brings them.
* The paper's 5,000 written chats are not public; training sees the 33 questions alone, which are our own words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from datamodules.study import DataFault, SettingsFault, Study
from lit_modules.asarg_samples import NAMES, AsargPreprocessor, Classes
from lit_modules.checkpoint_file import checkpoint_at, file_of, read_checkpoint
from lit_modules.nets import backbones, llava, lvm_med
from lit_modules.nets.clip_image import PhantomCLIP, view_frame
from lit_modules.nets.feature_fusion import FeatureFusion, Fusion, FusionSettings
from lit_modules.nets.llava_prompt import LlavaPrompt
from lit_modules.nets.lvm_med import PhantomResNet
from lit_modules.nets.pooled_maps import Frame
from lit_modules.nets.schedule import rate
from lit_modules.nets.structures import FINDINGS, structures_in
from lit_modules.report_generator import Heatmap, Report, ReportGenerator, Requirement


@dataclass(frozen=True)
class Decoding:
    """How reports are decoded. Sound, and the default: greedy. The paper's: `sample`, without top-p and beams.

    Attributes:
        sample: Draw tokens instead of taking the likeliest.
        temperature: Of the draw (lost in the paper; LLaVA's evaluation scripts).
        beams: Texts that are followed (supplement: 1).
        max_new_tokens: Longest report (supplement).
    """

    sample: bool = False
    temperature: float = 0.2
    beams: int = 1
    max_new_tokens: int = 1024


FUSION, DECODING, PHANTOM = Fusion(), Decoding(), backbones.PhantomSize()
PHANTOM_CLIP, PHANTOM_RESNET = PhantomCLIP(), PhantomResNet()
SHOWN_MAPS = 8  # at most, beside one report


class Asarg(ReportGenerator):
    """The method. Defaults are the paper's, with maps.

    Args:
        llava: Hub id or local folder of LLaVA-1.5 in either published layout, or `phantom:llava`.
        phantom: Size of a `phantom:` language model.
        phantom_clip: Size of its CLIP.
        resnet: LVM-Med's ResNet-50, see `nets.lvm_med`. Frozen; its features are stored.
        phantom_resnet: Size of `phantom:resnet`.
        fusion: What is fused and how, see `nets.feature_fusion.Fusion`.
        classes: Whose maps: the `paper`'s 212, the 159 that `cxas` gives out, or 20 `superclasses` (§4.1.2).
        grid: Rows and columns of a pooled map.
        frame: What a map's grid covers, see `nets.pooled_maps`.
        trained: `all` but CLIP (stage 1), or the `projector` alone, with what is fused into it (stage 2, §4.1.2).
        init_from: A checkpoint of this method or a name of the registry, which brings every weight that it holds; what
            it lacks (the maps' part, after a stage without maps) starts as ever.
        max_length: Longest sequence in training, tokens, the image's among them; a longer answer is cut (LLaVA: 2048).
        gradient_checkpointing: Recompute the language model's layers in the backward pass (LLaVA's scripts).
        dtype: Precision of LLaVA's own weights.
        decoding: See `Decoding`.
        shuffle_maps: In evaluation, give the maps in another order, drawn from this seed (§5.3).
        lr: AdamW's (lost in the paper, "defaults from the official finetuning scripts": 2e-5); no decay.
        warmup_share: Share of all steps in which the rate grows from 0; then it falls as a cosine to 0 (LLaVA's).
    """

    modality = "radiograph"

    def __init__(
        self,
        llava: str = llava.HUB,
        phantom: backbones.PhantomSize = PHANTOM,
        phantom_clip: PhantomCLIP = PHANTOM_CLIP,
        resnet: str = lvm_med.LVM_MED,
        phantom_resnet: PhantomResNet = PHANTOM_RESNET,
        fusion: Fusion = FUSION,
        classes: Classes = "paper",
        grid: int = 32,
        frame: Frame = "image",
        trained: Literal["all", "projector"] = "all",
        init_from: str | None = None,
        max_length: int = 2048,
        gradient_checkpointing: bool = True,
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
        decoding: Decoding = DECODING,
        shuffle_maps: int | None = None,
        lr: float = 2e-5,
        warmup_share: float = 0.03,
    ) -> None:
        super().__init__()
        self.settings = self.keep_settings(locals())

    # Built when they are needed: configuration and tokenizer by the loader, networks by the Trainer.

    @cached_property
    def tokenizer(self) -> Any:
        """LLaVA's tokenizer."""
        return llava.build_llava_tokenizer(self.settings.llava)

    @cached_property
    def llava_config(self) -> Any:
        """LLaVA's configuration."""
        settings = self.settings
        vocabulary = len(self.tokenizer) if settings.llava == llava.PHANTOM else 0
        return llava.build_llava_config(settings.llava, settings.phantom, settings.phantom_clip, vocabulary)

    @cached_property
    def fusion_settings(self) -> FusionSettings:
        """The fusion with the sizes of the networks that it joins."""
        settings = self.settings
        found = FusionSettings(
            **asdict(settings.fusion),
            width=self.llava_config.vision_config.hidden_size,
            image_tokens=llava.image_tokens(self.llava_config),
            feature_dim=self._feature_dim(),
            classes=len(NAMES[settings.classes]),
            grid=settings.grid,
        )
        found.check()
        return found

    def _feature_dim(self) -> int:
        """Length of LVM-Med's features; 0 where none are fused, so that its files need not be there."""
        settings = self.settings
        if settings.fusion.features == "none":
            return 0
        return lvm_med.build_resnet_config(settings.resnet, settings.phantom_resnet).hidden_sizes[-1]

    def preprocessor(self) -> AsargPreprocessor:
        """View, features, maps and token ids of a study."""
        settings, fusion = self.settings, self.fusion_settings
        tokens = fusion.image_tokens + fusion.added_tokens
        return AsargPreprocessor(
            LlavaPrompt(self.tokenizer, self.llava_config.image_token_id, tokens, settings.max_length),
            self.llava_config.vision_config.image_size,
            None if fusion.features == "none" else settings.resnet,
            settings.phantom_resnet,
            None if fusion.maps == "none" else settings.classes,
            settings.grid,
            settings.frame,
            settings.shuffle_maps,
        )

    def configure_model(self) -> None:
        """Builds LLaVA and the fusion; on the meta device, reads nothing. LVM-Med stays with the preprocessor."""
        if hasattr(self, "llava"):
            return
        settings, meta = self.settings, torch.get_default_device().type == "meta"
        limit = self.llava_config.text_config.max_position_embeddings
        if settings.max_length > limit:
            raise SettingsFault(f"{settings.llava} has {limit} positions: set model.max_length={limit} or less")
        dtype = getattr(torch, settings.dtype)
        self.llava = llava.build_llava(self.llava_config, settings.llava, dtype, settings.phantom)
        self.fusion = FeatureFusion(self.fusion_settings)
        if settings.gradient_checkpointing:
            self.llava.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        if settings.trained == "projector":
            self.llava.requires_grad_(False)
            self.llava.model.multi_modal_projector.requires_grad_(True)
        if settings.init_from and not meta:
            self._begin_from(settings.init_from)
        self.train(self.training)  # transformers hands models over in evaluation mode

    def _begin_from(self, path: str) -> None:
        """Loads an earlier stage's checkpoint.

        Raises:
            FileNotFoundError: There is no such file.
            DataFault: It cannot be read.
            SettingsFault: It is of another model.
        """
        place = checkpoint_at(path)
        if not file_of(place).is_file():
            given = path == self.settings.init_from
            why = "given as model.init_from" if given else "which model.init_from was trained on"
            raise FileNotFoundError(f"{path}: no such checkpoint, {why}")
        checkpoint = read_checkpoint(place)
        if checkpoint is None:
            raise DataFault(f"{path} is no checkpoint of this project")
        weights = checkpoint["state_dict"]
        there = self.state_dict()
        other = [key for key, value in weights.items() if key not in there or value.shape != there[key].shape]
        lacking = [key for key in there if key not in weights and key.startswith("fusion.") and "maps" not in key]
        if other or lacking:
            raise SettingsFault(f"{path} is of another model: {min(other or lacking)} does not fit")
        below = checkpoint.get("frozen_files", {}).get("llava.", self.settings.llava)
        if "llava.lm_head.weight" not in weights and below != self.settings.llava:
            self._begin_from(below)  # what this stage kept frozen came from the stage before it
        self.load_state_dict(weights, strict=False)

    # Training.

    def _encoded(self, batch: Mapping[str, Any]) -> list[Tensor]:
        return llava.encode(self.llava, self.fusion, batch["pixels"], batch["features"], batch["maps"])

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Cross-entropy of the answer's tokens and of its end, averaged over the batch's tokens."""
        return self._loss(batch, self._encoded(batch))

    def _loss(self, batch: Mapping[str, Any], encoded: list[Tensor]) -> Tensor:
        if batch["cut"]:
            rank_zero_warn(f"cut to model.max_length={self.settings.max_length} tokens: {', '.join(batch['cut'])}")
        return llava.answer_loss(self.llava, encoded, batch["tokens"], batch["mask"], batch["labels"])

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """Logs `validation/loss`; images are encoded once for it and for the reports."""
        encoded = self._encoded(batch)
        loss = self._loss(batch, encoded)
        self.log_validation_loss(loss, batch_idx, len(batch["ids"]))
        return {"loss": loss, "reports": self._reports(batch, encoded) if self.reports_in_validation else []}

    def configure_optimizers(self) -> Any:
        """AdamW on what is trained; the rate grows linearly from 0 and falls as a cosine to 0 (LLaVA's scripts)."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, self.settings.lr, betas=(0.9, 0.999), weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._rate(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        return rate(step, self.optimizer_steps(), self.settings.warmup_share, "cosine")

    # Reports.

    def embed(self, batch: Mapping[str, Any]) -> Tensor:
        """What the language model is shown of each study, averaged over positions: `(study, hidden)`."""
        return torch.stack([tokens.mean(0) for tokens in self._encoded(batch)])

    @torch.no_grad()
    def generate(self, batch: Mapping[str, Any]) -> list[Report]:
        """The findings of each study."""
        return self._reports(batch, self._encoded(batch))

    def _reports(self, batch: Mapping[str, Any], encoded: list[Tensor]) -> list[Report]:
        decoding = self.settings.decoding
        written = llava.generate(
            self.llava,
            encoded,
            batch["prompt"],
            batch["prompt_mask"],
            max_new_tokens=decoding.max_new_tokens,
            num_beams=decoding.beams,
            do_sample=decoding.sample,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            **{"temperature": decoding.temperature, "top_p": 1.0, "top_k": 0} if decoding.sample else {},
        )
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [Report(name, text.strip(), text) for name, text in zip(batch["ids"], texts, strict=True)]

    def explain(self, study: Study, text: str) -> dict[str, Heatmap]:
        """The maps of what the text speaks of, findings first, and whether the two agree (§6.2).

        A map is what the model was given, not proof that it was used: how much a model leans on its maps is measured by
        shuffling them (§5.3, `shuffle_maps`). Words are found by rules (`nets.structures`).
        """
        settings = self.settings
        if settings.fusion.maps == "none" or study.masks is None:
            return {}
        assert study.image is not None, "a study that was read has its image"
        source, known = self.preprocessor(), NAMES[settings.classes]
        spoken = {tuple(c for c in classes if c in known): said for classes, said in structures_in(text).items()}
        names = list(dict.fromkeys(name for classes in spoken for name in classes))
        if not names:
            return {}
        maps = dict(zip(names, source.pooled(study.masks, names) / np.float32(255), strict=True))
        height, width = study.image.shape
        padded_square = settings.frame == "padded_square"
        frame = view_frame(width, height, "pad") if padded_square else (0.0, 0.0, 1.0, 1.0)
        film = max(width, height) ** 2 / (width * height) if padded_square else 1.0
        found: dict[str, Heatmap] = {}
        for classes, said in spoken.items():
            # Of the classes that stand for the same thing, one that is seen.
            name = next((c for c in classes if maps[c].any()), classes[0] if classes else None)
            if name is not None and name not in found:
                note = self._compared(name, said, 100 * film * float(maps[name].mean()), study.masks)
                found[name] = Heatmap(maps[name], f"{name}, share of a cell", note, frame)
        return dict(list(found.items())[:SHOWN_MAPS])

    def _compared(self, name: str, affirmed: bool, covered: float, masks: Mapping[str, np.ndarray]) -> str:
        """One sentence on what the text says and what the map shows, which covers `covered` per cent of the film."""
        shows = f"the map covers {covered:.3g} % of the film" if covered else "the map is empty"
        if name not in FINDINGS:
            note = f"{shows[0].upper()}{shows[1:]}"
        else:
            note = f"The text {'affirms' if affirmed else 'denies'} it and {shows}: "
            note += "agree" if affirmed == bool(covered) else "disagree"
            if affirmed and name not in masks:
                note += ", unless the segmentation does not know this class"
        if self.settings.shuffle_maps is not None:
            note += "; the model was given it in another class's place (model.shuffle_maps)"
        return f"{note}."

    # What it needs, and what its checkpoints leave out.

    def frozen_files(self) -> dict[str, str]:
        """LLaVA where it is frozen, by its own files or by the stage before."""
        return {"llava.": self.settings.init_from or self.settings.llava}

    def requirements(self) -> list[Requirement]:
        """Weights."""
        settings, needs = self.settings, []
        if settings.init_from:
            how = f"train the stage before, or set model.init_from=null (now {settings.init_from})"
            there = file_of(checkpoint_at(settings.init_from)).is_file()
            needs.append(Requirement(Path(settings.init_from).name, there, how))
        if settings.llava != llava.PHANTOM:
            there = llava.llava_at_hand(settings.llava)
            needs.append(Requirement(settings.llava, there, llava.how_to_get_llava(settings.llava)))
        if settings.fusion.features != "none" and not settings.resnet.startswith("phantom:"):
            there = lvm_med.resnet_at_hand(settings.resnet)
            needs.append(Requirement(settings.resnet, there, lvm_med.how_to_get_resnet(settings.resnet)))
        return needs
