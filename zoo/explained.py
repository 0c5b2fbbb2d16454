"""From runs to where they look: each run's model is built, reports on the same studies, and is asked about them."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.radiograph import to_8_bit
from datamodules.report_datamodule import ReportDataModule
from datamodules.study import DataFault, Study
from lit_modules.nets.patch_norms import contrast
from lit_modules.report_generator import Heatmap, Report, ReportGenerator
from zoo import one_report
from zoo.command import EnvironmentFault, UsageError
from zoo.config import Config, import_target, load
from zoo.layers import flatten
from zoo.run_directory import LAYOUT, MAY_DIFFER, run_of, tested_checkpoint
from zoo.trainer import data_needs, device_needs, require, seed_everything

# Two runs that differ in these alone are the same experiment; in epochs they are not (0: nothing was trained).
_NOT_TOLD = (*{*MAY_DIFFER, *LAYOUT} - {"trainer.max_epochs"}, "run.monitor", "run.mode", "run.evaluate")
_MOST_TOLD = 3  # settings in a label
_LONGEST = 36  # characters of a setting in a label


@dataclass(frozen=True, eq=False)
class TestedRun:
    """A run that can be asked.

    Attributes:
        name: Its folder's name, and the checkpoint's where one was named.
        trained: Its own configuration.
        config: The same with the settings that are given now.
        checkpoint: Its weights; `None`: it trained nothing, and is asked as it is built.
        data: Its dataset.
    """

    name: str
    trained: Config
    config: Config
    checkpoint: Path | None
    data: ReportDataModule

    def listed(self) -> dict[str, Study]:
        """Id → study of the test split, without pixels."""
        return {study.id: study for study in self.data.studies("test")}


@dataclass(frozen=True, eq=False)
class Answer:
    """What a run says of a study, and where it looked.

    Attributes:
        film: `(row, column)`, uint8.
        region: The only region of the dataset that the study shows; `None` where there are more or none.
        mask: That region's, `(row, column)`.
        report: What is said.
        heatmaps: View → where it looked.
    """

    film: np.ndarray
    region: str | None
    mask: np.ndarray | None
    report: Report
    heatmaps: Mapping[str, Heatmap]

    def contrast(self, view: str) -> float:
        """Mean inside the mask over that outside; NaN where no mask, or a signed map, makes that meaningless."""
        heatmap = self.heatmaps[view]
        if self.mask is None or heatmap.signed or not (heatmap.values >= 0).all():
            return float("nan")
        with np.errstate(divide="ignore", invalid="ignore"):  # a map may be 0 all over
            return contrast(heatmap.values, heatmap.frame, self.mask)


def open_run(place: Path, settings: Sequence[str]) -> TestedRun:
    """The run with its configuration and dataset; builds no network.

    Args:
        place: A run's folder, or a checkpoint in one.
        settings: `key=value` that differ from the run's.

    Raises:
        UsageError: It is none, settings are wrong, or its method says not where it looks, or looks at no radiograph.
        DataFault: It has no whole checkpoint, or its data are missing.
        EnvironmentFault: Weights or devices are missing.
    """
    run = run_of(place)
    trained, config = load(run.config), load(run.config, settings)
    method: Any = import_target(config.values["model"]["class"])
    if method.modality != "radiograph" or method.explain is ReportGenerator.explain:
        what = "says not where it looks" if method.modality == "radiograph" else "reads no radiographs"
        raise UsageError(f"{place}: {config.method} {what}, so there is no heatmap to draw")
    whole = run.path == place
    checkpoint = None if whole and trained.untrained else tested_checkpoint(place)[1]
    data = config.build("data")
    require(data_needs(data), DataFault)
    require([*config.build("model").requirements(), *device_needs(config)], EnvironmentFault)
    name = run.path.resolve().name
    return TestedRun(name if whole else f"{name}/{place.name}", trained, config, checkpoint, data)


def ask(run: TestedRun, studies: Sequence[str], done: Callable[[], None]) -> list[Answer]:
    """The run's answers about studies of its test split, in their order.

    Args:
        run: Its model is built, and let go of.
        studies: Their ids.
        done: Called after each study.

    Raises:
        DataFault: A study or the checkpoint cannot be read.
    """
    seed_everything(run.config.values["run"]["seed"])
    listed = run.listed()
    read = [run.data.read(listed[name]) for name in studies]
    model: ReportGenerator = run.config.build("model")
    answers = one_report.ask(run.config, model, run.checkpoint, read, done)
    del model
    gc.collect()  # the model and its trainer hold each other, and the next run's needs the memory
    return [_answer(study, *found, run.data.regions) for study, found in zip(read, answers, strict=True)]


def _answer(study: Study, report: Report, heatmaps: Mapping[str, Heatmap], regions: Sequence[str]) -> Answer:
    assert study.image is not None, "a radiograph that was read has its image"
    masks = study.masks or {}
    shown = [name for name in regions if name in masks and masks[name].any()]
    region = shown[0] if len(shown) == 1 else None
    return Answer(to_8_bit(study.image), region, masks[region] if region else None, report, heatmaps)


def labels(runs: Sequence[TestedRun]) -> list[str]:
    """What tells each run from the others: the settings in which they were made differently, one a line."""
    if len({run.trained.method for run in runs}) > 1:
        found = [f"{run.trained.method}, {run.trained.recipe}" for run in runs]
    else:
        made = [flatten(run.trained.values) for run in runs]
        keys = sorted(key for key in set().union(*made) if key not in _NOT_TOLD and key.split(".")[0] not in _NOT_TOLD)
        differ = [key for key in keys if any(settings.get(key) != made[0].get(key) for settings in made)]
        more = ["…"] * (len(differ) > _MOST_TOLD)
        found = ["\n".join([*(_told(key, s.get(key)) for key in differ[:_MOST_TOLD]), *more]) for s in made]
    return [
        label if label and found.count(label) == 1 else "\n".join(filter(None, (label, run.name)))
        for label, run in zip(found, runs, strict=True)
    ]


def _told(key: str, value: Any) -> str:
    """As it is written on a command line; of a long value, such as a path, its end."""
    text = value if isinstance(value, str) else json.dumps(value)
    room = max(8, _LONGEST - len(key))
    return f"{key}={text if len(text) <= room else f'…{text[1 - room :]}'}"
