"""The door between a method and the rest of the zoo: what every method is, and what it says about a study."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import lightning as L
import numpy as np
import torch
from torch import Tensor

from datamodules.masks import Box
from datamodules.report_datamodule import Preprocessor
from datamodules.study import SettingsFault, Study


@dataclass(frozen=True)
class RegionReport:
    """What a method says about one region that it was shown.

    Attributes:
        region: The region whose mask was given.
        named: The region's name as the method recognised it; `None` where it named none.
        text: The region's sentences, without any prefix.
    """

    region: str
    named: str | None
    text: str


@dataclass(frozen=True)
class Report:
    """What any method says about one study.

    Attributes:
        study_id: The `Study.id` it speaks of.
        text: The whole report, as a protocol would score it.
        raw: The method's output, untouched.
        regions: Grounded sentences, in the order in which the regions were given; `None` where it grounds nothing.
    """

    study_id: str
    text: str
    raw: str = ""
    regions: tuple[RegionReport, ...] | None = None


@dataclass(frozen=True, eq=False)
class Heatmap:
    """Where a method looked for what it said: a grid over a part of the image.

    Attributes:
        values: `(row, column)`, float32.
        title: What it is, in a few words, with the unit.
        note: One sentence that a reader must know, e.g. that the grid does not lie where the image does.
        frame: The part of the image that the grid covers, as fractions; may reach out of it, where the image is padded.
        signed: 0 is neutral, positive values speak for what was said, negative ones against it.
    """

    values: np.ndarray
    title: str
    note: str = ""
    frame: Box = (0.0, 0.0, 1.0, 1.0)
    signed: bool = False


@dataclass(frozen=True)
class Requirement:
    """Something that a recipe needs and that the user must bring: weights, a licence, memory.

    Attributes:
        what: Its name, in a few words.
        met: Whether it is at hand.
        how: The one thing to do about it when it is not.
    """

    what: str
    met: bool
    how: str


class ReportGenerator(L.LightningModule, ABC):
    """A method. `__init__` only keeps settings (its typed signature is the configuration's schema); networks are built
    in `configure_model`, so that a dry run can build them on the meta device.

    A subclass gives `preprocessor`, `configure_model`, `loss`, `generate` and `configure_optimizers`.
    """

    modality: ClassVar[Literal["ct", "radiograph"]]

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = (
            False  # frozen weights that come from files are absent; `on_load_checkpoint` checks the rest
        )

        self.reports_in_validation = True  # the metric callback wants none in the epochs that it does not score

    def keep_settings(self, arguments: Mapping[str, Any]) -> Any:
        """Keeps `__init__`'s arguments as hyper-parameters, which a checkpoint holds as plain values.

        Args:
            arguments: `locals()` at the head of `__init__`.

        Returns:
            The settings as attributes; groups (dataclasses) as such, though a checkpoint gives them back as mappings.
        """
        kept = {}
        for name, parameter in inspect.signature(type(self)).parameters.items():
            kept[name] = arguments[name]
            if is_dataclass(parameter.default) and isinstance(kept[name], Mapping):
                group: Any = type(parameter.default)
                kept[name] = group(**kept[name])
        self.save_hyperparameters({name: _plain(value) for name, value in kept.items()})
        return SimpleNamespace(**kept)

    @abstractmethod
    def preprocessor(self) -> Preprocessor:
        """What turns a study into this method's sample: small and picklable, never the module itself."""

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """The training loss of one batch, a scalar."""

    @abstractmethod
    def generate(self, batch: Any) -> list[Report]:
        """One report for each study of the batch, in its order."""

    def embed(self, batch: Any) -> Tensor | None:
        """What the method sees of each study, `(study, feature)`: the baseline "nearest training report" compares it.

        `None` where a method has no such thing.
        """
        return None

    def explain(self, study: Study, text: str) -> Mapping[str, Heatmap]:
        """Where the method looks when it says a text of a study, by the name of the view; empty where it has none.

        Args:
            study: A study that was read (has its pixels).
            text: What is said of it, as the method put it out.
        """
        return {}

    def requirements(self) -> list[Requirement]:
        """What this configuration needs that a user must bring; checked before anything is built."""
        return []

    def frozen_files(self) -> Mapping[str, str]:
        """State-dict prefix → the file or hub id that frozen weights come from. Checkpoints leave these out."""
        return {}

    def export(self, folder: Path) -> None:
        """Writes what other tools read of a built method: the tokenizer's files and, in `adapter/`, what peft loads.

        Adapters must hold their weights; what they adapt may be without memory (meta device).
        """
        if (tokenizer := getattr(self, "tokenizer", None)) is not None:
            tokenizer.save_pretrained(folder)
        for name, part in self.named_children():
            if hasattr(part, "peft_config"):  # peft's wrapping
                peft: Any = part
                peft.active_peft_config.base_model_name_or_path = self.frozen_files().get(f"{name}.")
                # No embedding was trained; left to find out, peft asks the hub.
                peft.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
                (folder / "adapter" / "README.md").unlink()  # peft's own card, a form to fill in

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Logs `train/loss`."""
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True, on_step=True, batch_size=len(batch["ids"]))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Logs `validation/loss`; the reports go to the clinical-efficacy callback."""
        loss = self.loss(batch)
        self.log_validation_loss(loss, batch_idx, len(batch["ids"]))
        return {"loss": loss, "reports": self.validation_reports(batch)}

    def log_validation_loss(self, loss: Tensor, batch_idx: int, weight: int) -> None:
        """Logs `validation/loss`, the mean over all processes by `weight`.

        A batch that was dealt twice, so that all processes have equally many, counts once: the figure that chooses
        `best` does not depend on the number of processes.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is not None and data.is_repeated("validation", batch_idx):
            weight = 0
        # As a float: Lightning 2.6.6 rounds the mean of whole weights over the processes down.
        self.log("validation/loss", loss, prog_bar=True, sync_dist=True, batch_size=float(weight))  # type: ignore[arg-type]

    def validation_reports(self, batch: Any) -> list[Report]:
        """The batch's reports, where they are wanted: writing is most of a validation's time."""
        return self.generate(batch) if self.reports_in_validation else []

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """The reports go to the clinical-efficacy callback."""
        return {"reports": self.generate(batch)}

    def predict_step(self, batch: Any, batch_idx: int) -> list[Report]:
        """One report for each study of the batch."""
        with torch.inference_mode():
            return self.generate(batch)

    def optimizer_steps(self) -> int:
        """Optimiser steps of the whole fit, for schedules that end; known from the first step on, 0 before."""
        batches, epochs = self.trainer.num_training_batches, self.trainer.max_epochs
        if not isinstance(batches, int):  # the loader is not there yet
            return 0
        most = self.trainer.max_steps if self.trainer.max_steps > 0 else math.inf
        each = batches // self.trainer.accumulate_grad_batches
        return int(min(most, each * epochs if epochs is not None and epochs > 0 else math.inf))

    # Checkpoints hold what was trained, not what can be had again from its file.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out the frozen weights that come from files, and names those files."""
        kept = self._kept_keys()
        checkpoint["frozen_files"] = dict(self.frozen_files())
        checkpoint["state_dict"] = {key: value for key, value in checkpoint["state_dict"].items() if key in kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint that lacks a weight which no file brings, or that holds one nobody asks for.

        Raises:
            SettingsFault: The weights are another model's.
        """
        found = set(checkpoint["state_dict"])
        missing, unknown = sorted(self._kept_keys() - found), sorted(found - set(self.state_dict()))
        if missing or unknown:
            raise SettingsFault(
                f"this checkpoint is of another model: {len(missing)} weights are missing ({', '.join(missing[:3])} …)"
                f", {len(unknown)} are unknown ({', '.join(unknown[:3])} …)"
            )

    def _kept_keys(self) -> set[str]:
        """State-dict keys that a checkpoint holds: all but the frozen ones that a file brings."""
        from_files = tuple(self.frozen_files())
        parameters = self.named_parameters(remove_duplicate=False)  # a tied head has its key too
        frozen = {name for name, parameter in parameters if not parameter.requires_grad}
        return {key for key in self.state_dict() if not (key in frozen and key.startswith(from_files))}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return list(value) if isinstance(value, tuple) else value
