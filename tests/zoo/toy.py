"""A method and a dataset small enough to fit in a second, to test the commands with."""

import io
import json
import multiprocessing
import os
import random
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from datamodules.report_datamodule import ReportDataModule
from datamodules.study import Study
from lit_modules.report_generator import Report, ReportGenerator, Requirement
from zoo.fit import main
from zoo.run_directory import atomic_write


@dataclass(frozen=True)
class Net:
    """Sizes of the network."""

    width: int = 8
    dropout: float = 0.5


class ToyPreprocessor:
    def settings(self):
        return {"toy": 1}

    def arrays(self, study):
        random_of_study = random.Random(study.id)
        return {"x": np.array([random_of_study.gauss(0, 1) for _ in range(4)], np.float32)}

    def __call__(self, study, arrays, rng):
        noise = rng.gauss(0, 0.1) if rng else 0.0
        return {"id": study.id, "x": torch.from_numpy(np.array(arrays["x"])) + noise}

    def collate(self, samples):
        return {"ids": [sample["id"] for sample in samples], "x": torch.stack([sample["x"] for sample in samples])}


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
        init_from: str | None = None,
    ):
        super().__init__()
        if net.width < 1:
            raise ValueError("net.width must be positive")
        self.net, self.lr, self.optimizer, self.betas = net, lr, optimizer, betas
        self.weights, self.init_from = weights, init_from

    def preprocessor(self):
        return ToyPreprocessor()

    def configure_model(self):
        width, dropout = self.net.width, self.net.dropout
        if not hasattr(self, "layers"):
            self.layers = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 1))
            if self.init_from:
                self.load_state_dict(torch.load(self.init_from, weights_only=True)["state_dict"])

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

    def list_studies(self, split):
        count = json.loads((self.root / "PHANTOM.json").read_text())[split]
        names = [f"{split}{number}" for number in range(count)][: self.limit]
        return [
            Study(id=name, split=split, report=f"the value of {name}", regions={"heart": "normal"}) for name in names
        ], []

    def inspect(self, study):
        return study, []

    def draw_phantom(self, train, validation):
        counts = json.dumps({"train": train, "validation": validation})
        atomic_write(self.root / "PHANTOM.json", counts)  # two machines that share the folder draw and list at once

    def label_findings(self):
        return None


class OtherData(ToyData):
    """Another dataset, with a setting of its own."""

    def __init__(self, root: str, flavour: str = "sweet", **options):
        super().__init__(root, **options)
        self.flavour = flavour


def killed_at(call, name="training_step"):
    """A patch for `fit`: the process ends, as `kill -9` does, when the step is called for the `call`th time."""
    original, calls = getattr(ToyGenerator, name), []

    def step(self, batch, batch_idx):
        calls.append(batch_idx)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, batch, batch_idx)

    return ToyGenerator, name, step


def killed_in_save(number):
    """A patch for `fit`: the process ends half-way through the file that it saves as the `number`th."""
    original, calls = torch.save, []

    def save(checkpoint, file):
        calls.append(1)
        if len(calls) == number:
            buffer = io.BytesIO()
            original(checkpoint, buffer)
            file.write(buffer.getvalue()[: buffer.tell() // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        original(checkpoint, file)

    return torch, "save", save


def fit(*arguments, patch=None):
    """Runs `zoo.fit` on the toy in a process of its own; returns its exit code (-9 when it was killed)."""

    def body():
        if patch is not None:
            setattr(*patch)
        sys.exit(main(["--method", "toy", *arguments]))

    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    process.join()
    return process.exitcode
