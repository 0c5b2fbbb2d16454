"""A method and a dataset small enough to fit in a second, to test the commands with."""

import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from datamodules.report_datamodule import ReportDataModule
from datamodules.study import Study
from lit_modules.report_generator import Report, ReportGenerator, Requirement


@dataclass(frozen=True)
class Net:
    """Sizes of the network."""

    width: int = 8
    dropout: float = 0.5


class ToyPreprocessor:
    def settings(self):
        return {"toy": 1}

    def arrays(self, study):
        return {"x": np.asarray(study.volume, np.float32)}

    def __call__(self, study, arrays, rng):
        time.sleep(float(os.environ.get("TOY_SECONDS", "0")))
        noise = rng.gauss(0, 0.1) if rng else 0.0
        return {"id": study.id, "x": torch.from_numpy(arrays["x"]) + noise, "reference": study.report}

    def collate(self, samples):
        return {
            "ids": [sample["id"] for sample in samples],
            "x": torch.stack([sample["x"] for sample in samples]),
            "references": [sample["reference"] for sample in samples],
        }


class ToyGenerator(ReportGenerator):
    modality = "ct"

    def __init__(
        self,
        net: Net = Net(),
        lr: float = 1e-2,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        extra: Net | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        weights: str | None = None,
    ):
        super().__init__()
        if net.width < 1:
            raise ValueError("net.width must be positive")
        self.net, self.lr, self.optimizer, self.betas, self.weights = net, lr, optimizer, betas, weights
        self.layers = None

    def preprocessor(self):
        return ToyPreprocessor()

    def configure_model(self):
        if self.layers is None:
            width, dropout = self.net.width, self.net.dropout
            self.layers = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 1))

    def loss(self, batch):
        return nn.functional.mse_loss(self.layers(batch["x"])[:, 0], batch["x"].sum(1))

    def generate(self, batch):
        return [
            Report(name, text=f"value {value.item():.3f}")
            for name, value in zip(batch["ids"], self.layers(batch["x"]), strict=True)
        ]

    def configure_optimizers(self):
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        optimizer = (
            torch.optim.AdamW(weights, self.lr, self.betas)
            if self.optimizer == "adamw"
            else torch.optim.SGD(weights, self.lr)
        )
        warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 3))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}

    def requirements(self):
        return (
            [Requirement("weights", Path(self.weights).is_file(), f"put them at {self.weights}")]
            if self.weights
            else []
        )


class ToyData(ReportDataModule):
    modality = "ct"
    regions = ("heart", "lung")

    def __init__(self, root: str, studies_per_patient: int = 1, **options):
        super().__init__(root, **options)
        self.studies_per_patient = studies_per_patient

    def _row(self, split, number):
        values = [random.Random(f"{split}{number}").gauss(0, 1) for _ in range(4)]
        return Study(
            id=f"{split}{number}", split=split, report=f"value {sum(values):.3f}", regions={"heart": "normal"}
        ), values

    def list_studies(self, split):
        counts = json.loads((self.root / "PHANTOM.json").read_text())
        return [self._row(split, number)[0] for number in range(counts[split])][: self.limit], []

    def inspect(self, study):
        number = int(study.id.removeprefix(study.split))
        return Study(**{**study.__dict__, "volume": np.array(self._row(study.split, number)[1], np.float32)}), []

    def draw_phantom(self, train, validation):
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "PHANTOM.json").write_text(json.dumps({"train": train, "validation": validation}))

    def label_findings(self):
        return None


class OtherData(ToyData):
    """Another dataset, with a setting of its own."""

    def __init__(self, root: str, flavour: str = "sweet", **options):
        super().__init__(root, **options)
        self.flavour = flavour


class NoMetrics(Callback):
    """Stands in for the metric callback."""

    def __init__(self, protocol: str = "none"):
        self.protocol = protocol
