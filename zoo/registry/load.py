"""`zoo.load`: a model with its weights, of whatever the project wrote or the registry names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from datamodules.study import DataFault
from lit_modules.checkpoint_file import EXPORTED, checkpoint_at, file_of, read_checkpoint
from lit_modules.report_generator import ReportGenerator
from zoo.command import EnvironmentFault, UsageError
from zoo.config import Config, compose
from zoo.config import load as load_config
from zoo.registry.manifest import find
from zoo.run_directory import tested_checkpoint


def load(name: str | Path, **settings: Any) -> ReportGenerator:
    """A trained model, ready to be fine-tuned or to report, in evaluation mode.

    Args:
        name: A name of the registry, a run's folder, a checkpoint in one, an exported folder, or a
            `.safetensors` file that the project wrote.
        settings: Of the model, in place of those that it was trained with, e.g. `llm="/weights/llama"`.

    Raises:
        UsageError: There is no such thing, or a setting is wrong.
        DataFault: It cannot be read, or is of another model.
        EnvironmentFault: Something that it needs is missing.
    """
    overrides = [f"model.{key}={json.dumps(value)}" for key, value in settings.items()]
    config, checkpoint = _described(str(name), overrides)
    model = build_model(config)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    return model.eval()


def _described(name: str, overrides: list[str]) -> tuple[Config, Path | None]:
    """How the model is built, and the checkpoint that goes into it; `None` where `init_from` brings it."""
    place = Path(name)
    if place.exists():
        return _of_path(place, overrides)
    entry = find(name)
    if not entry.method:
        raise UsageError(f"{name} is no model that reports, but a part of one ({entry.what})")
    there = checkpoint_at(name)
    if not file_of(there).is_file():
        raise UsageError(f"{name} is not on this machine: python -m zoo.download {name}")
    if entry.place == "here":
        return _of_path(there, overrides)
    own = [f"model.init_from={json.dumps(name)}", *overrides]
    return compose(entry.method, str(entry.recipe), (), own, allow_missing=True), None


def _of_path(place: Path, overrides: list[str]) -> tuple[Config, Path]:
    folder = place if place.is_dir() else place.parent
    if (folder / EXPORTED).is_file() and place in (folder, folder / EXPORTED):
        if not (folder / "config.yaml").is_file():
            raise UsageError(f"{folder} holds no config.yaml, which python -m zoo.export writes beside the weights")
        return load_config(folder / "config.yaml", overrides), folder / EXPORTED
    in_a_run = place.is_dir() or (place.resolve().parent.parent / "config.yaml").is_file()
    if place.suffix == ".safetensors" and not in_a_run:
        told = _told(place)
        return compose(told["method"], told["recipe"], (), overrides, allow_missing=True), place
    run, checkpoint = tested_checkpoint(place)
    return load_config(run.config, overrides), checkpoint


def _told(file: Path) -> Mapping[str, str]:
    """A file's metadata."""
    try:
        with safe_open(file, "pt") as opened:
            told = dict(opened.metadata() or {})
    except SafetensorError as error:
        raise DataFault(f"{file}: cannot be read ({error})") from error
    if not {"method", "recipe"} <= told.keys():
        raise UsageError(f"{file} does not say which method and recipe it is of; give a run's or an exported folder")
    return told


def build_model(config: Config) -> ReportGenerator:
    """The run's model with its networks.

    Raises:
        EnvironmentFault: They cannot be built, and something that they need is missing.
    """
    model: ReportGenerator = config.build("model")
    try:
        model.configure_model()
    except Exception as error:
        missing = [need for need in model.requirements() if not need.met]
        if not missing:
            raise
        raise EnvironmentFault("; ".join(f"{need.what} is missing: {need.how}" for need in missing)) from error
    return model


def load_checkpoint(model: ReportGenerator, path: Path) -> None:
    """Puts a checkpoint's weights into a built model.

    Raises:
        DataFault: It cannot be read, or is of another model.
    """
    try:
        checkpoint = read_checkpoint(path)
        if checkpoint is None:
            raise DataFault("it holds no `state_dict`, so the project did not write it")
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"], strict=model.strict_loading)
    except Exception as error:  # torch raises a dozen kinds for a broken file
        raise DataFault(f"{path}: cannot load this checkpoint: {' '.join(str(error).split())[:400]}") from error
