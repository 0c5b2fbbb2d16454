"""`python -m zoo.export`: a finished run as a folder that others can use, with a model card; `zoo.load` reads it."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import command

if TYPE_CHECKING:
    from torch import Tensor

    from lit_modules.report_generator import ReportGenerator, Requirement
    from zoo.config import Config
    from zoo.run_directory import RunDirectory

DESCRIPTION = """\
Writes DIR/README.md (the model card), config.yaml, model.safetensors (the tested weights), metrics.json, the
tokenizer's files and, of a method with low-rank adapters, adapter/, which peft itself loads. No report, no id of a
study and no path of this machine goes into it. Nothing is sent anywhere."""
STEPS = ("reading the weights", "building the model", "writing weights and settings", "writing tokenizer and adapters",
         "writing the model card")  # fmt: skip
WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".torch")
TO_GIVE = "???"  # OmegaConf's mark of a value that must be given
_PATH = re.compile(r"(?<![\w:/.$])[~/][\w.~-]*/(?:[\w.~-]+/)*([\w.-]+)")  # of a file; its name is the group


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return command.run(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m zoo.export",
        description=DESCRIPTION,
        epilog=command.EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where no folder is yet (default: RUN/export)")
    arguments = parser.parse_args(argv)
    place = export(arguments.run, arguments.output or arguments.run / "export")
    command.say(f"written: {place}; read {place / 'README.md'} before you share it")


def export(place: Path, output: Path) -> Path:
    """Exports a run; returns the folder, which is there wholly or not at all.

    Raises:
        UsageError: It is no run's folder, or something lies at `output`.
        DataFault: The run is not finished, or its weights cannot be read.
        EnvironmentFault: The disk does not take it.
    """
    run, metrics, provenance = finished(place)
    if output.exists():
        raise command.UsageError(f"{output} is there already: delete it, or give another --output")
    from safetensors.torch import save_file

    from zoo.config import load
    from zoo.layers import flatten
    from zoo.model_card import Exported, model_card
    from zoo.trainer import quiet

    quiet()
    config = load(run.config)
    with _steps(*STEPS) as step, _whole_folder(output) as folder:
        step()
        weights, told = tested_weights(run, config)
        step()
        model = without_memory(config, weights, json.loads(told["tied"]))
        recipe = _recipe(config)
        public, places = public_settings(config, recipe, set(model.frozen_files().values()))
        step()
        frozen = {prefix: public_source(source) for prefix, source in json.loads(told["frozen_files"]).items()}
        save_file(weights, folder / "model.safetensors", told | {"frozen_files": json.dumps(frozen)})
        (folder / "config.yaml").write_text(public.yaml(), encoding="utf-8")
        figures = json.dumps(metrics, indent=2)
        (folder / "metrics.json").write_text(f"{figures}\n", encoding="utf-8")
        step()
        model.export(folder)
        _clean_adapter(folder / "adapter" / "adapter_config.json")
        step()
        to_give = {key: Path(value).name for key, value in places.items() if flatten(public.values)[key] == TO_GIVE}
        needs = [_by_name(need, places.values()) for need in model.requirements()]
        brought = _brought(frozen, model.state_dict().keys() - weights.keys() - json.loads(told["tied"]).keys())
        card = model_card(Exported(folder, public, recipe, to_give, brought, needs, metrics, provenance))
        (folder / "README.md").write_text(card, encoding="utf-8")
        for file in folder.rglob("*.safetensors"):  # which its library writes for nobody else to read
            file.chmod((folder / "README.md").stat().st_mode)
    return output


def finished(place: Path) -> tuple[RunDirectory, dict[str, Any], dict[str, Any]]:
    """A run that was tested, with its figures, fit to be shown, and with what it was made with.

    Raises:
        UsageError: It is no run's folder.
        DataFault: It has no figures, or goes on, so that they may be older than its checkpoints.
    """
    from datamodules.study import DataFault
    from zoo.run_directory import run_of

    run = run_of(place)
    if run.path != place:
        raise command.UsageError(f"{place}: give the run's folder, {run.path}; its figures are of the tested weights")
    metrics, made = (
        json.loads(file.read_text("utf-8")) if file.is_file() else {} for file in (run.metrics, run.provenance)
    )
    if not metrics or made.get("status") != "done":
        raise DataFault(f"{place}: not finished, and a card needs figures; python -m zoo.fit --resume {place}")
    return run, public_figures(metrics), made


# Weights.


def tested_weights(run: RunDirectory, config: Config) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights that were tested, each tensor once, and the metadata of `zoo.trainer.write_tested`.

    Where they take more than 1 GiB, they are in the checkpoint alone.

    Raises:
        DataFault: They are not there, or cannot be read.
    """
    import torch
    from safetensors import safe_open

    from datamodules.study import DataFault
    from zoo.run_directory import tested_checkpoint
    from zoo.trainer import untied, without_path

    path = run.tested if run.tested.is_file() else tested_checkpoint(run.path)[1]
    try:
        if path == run.tested:
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        weights, tied = untied(content["state_dict"])
        frozen = {prefix: without_path(source) for prefix, source in content["frozen_files"].items()}
    except Exception as error:  # torch raises a dozen kinds for a broken file
        raise DataFault(f"{path}: cannot read these weights: {' '.join(str(error).split())[:400]}") from error
    of_run = {"format": "pt", "method": config.method, "recipe": config.recipe, "config_hash": config.hash()}
    return weights, of_run | {"frozen_files": json.dumps(frozen), "tied": json.dumps(tied)}


def without_memory(config: Config, weights: Mapping[str, Tensor], tied: Mapping[str, str]) -> ReportGenerator:
    """The method with its trained weights. All others stay on the meta device: no export needs their files.

    Raises:
        DataFault: The weights are of another model.
    """
    import torch

    from datamodules.study import DataFault

    model: ReportGenerator = config.build("model")
    with torch.device("meta"):
        model.configure_model()
    whole = {**weights, **{name: weights[owner] for name, owner in tied.items()}}
    try:
        model.on_load_checkpoint({"state_dict": whole})
        model.load_state_dict(whole, strict=False, assign=True)
    except (RuntimeError, ValueError) as error:
        raise DataFault(f"the weights are not those of config.yaml: {' '.join(str(error).split())[:400]}") from error
    return model.eval()


# What lies on this machine is nobody else's.


def _recipe(config: Config) -> dict[str, dict[str, Any]]:
    """The settings of the run's recipe, without what the run set; none where the recipe is not here."""
    from zoo.config import compose

    try:
        return compose(config.method, config.recipe, allow_missing=True).values
    except command.UsageError:
        return {}


def public_settings(
    config: Config, recipe: Mapping[str, Mapping[str, Any]], needed: set[str]
) -> tuple[Config, dict[str, str]]:
    """The configuration as somebody else can use it.

    A path of this machine gives way to the recipe's value, or to `/path/to/<setting>` where that is none. In `model` it
    gives way to `???`, which a reader must give, for the recipe's may be other weights; a file whose weights are in the
    export is left out.

    Args:
        config: Of the run.
        recipe: The recipe's own settings, by section.
        needed: Values of settings that bring weights which the export lacks.

    Returns:
        The configuration, and dotted key → path, of those that are not in it any more.
    """
    from zoo.config import import_target
    from zoo.layers import flatten
    from zoo.schema import parameters

    own, values = flatten(recipe), json.loads(json.dumps(config.values))
    places: dict[str, str] = {}
    for key, value in flatten(config.values).items():
        if not _is_place(key, value, own.get(key)):
            continue
        section, *path, last = key.split(".")
        if section == "model":
            optional = not path and parameters(import_target(values["model"]["class"]))[last][1] is None
            new = None if optional and value not in needed else TO_GIVE
        else:
            new = own.get(key, TO_GIVE)
            new = f"/path/to/{key}" if new == TO_GIVE or _is_local(new) else new
        places[key] = value
        branch = values[section]
        for name in path:
            branch = branch[name]
        branch[last] = new
    names = tuple(Path(name).stem if name.endswith(".yaml") else name for name in config.ablations)
    return replace(config, values=values, ablations=names), places


def _is_place(key: str, value: Any, recipe: Any) -> bool:
    """Whether a setting names a place on this machine: no hub id, no file of the project, no place of the recipe's."""
    if not isinstance(value, str) or value.startswith("checkpoints/") or _is_local(value):
        return _is_local(value)
    if value == recipe:
        return False
    if Path(value).suffix in WEIGHTS:
        return True
    return "/" in value and (key.startswith("data.") or value.count("/") > 1 or Path(value).exists())


def _is_local(value: Any) -> bool:
    """Whether a value begins like a path of this machine, whoever says so."""
    return isinstance(value, str) and "/" in value and value.startswith(("/", "~", "."))


def public_source(source: str) -> str:
    """Where frozen weights come from, without the folders of this machine."""
    return Path(source).name if _is_local(source) else source


def _brought(frozen: Mapping[str, str], lacking: set[str]) -> dict[str, str]:
    """What brings the weights that the export lacks, by prefix; of a method that trained everything nothing."""
    return {prefix: source for prefix, source in frozen.items() if any(name.startswith(prefix) for name in lacking)}


def _by_name(need: Requirement, places: Iterable[str]) -> Requirement:
    """What a method needs, with files called by their names."""
    for place in sorted(places, key=len, reverse=True):
        name = Path(place).name
        need = replace(need, what=need.what.replace(place, name), how=need.how.replace(place, name))
    return need


def _clean_adapter(file: Path) -> None:
    """Takes a path of this machine out of peft's configuration."""
    if not file.is_file():
        return
    settings = json.loads(file.read_text("utf-8"))
    base = settings["base_model_name_or_path"]
    if _is_place("model", base, None):
        settings["base_model_name_or_path"] = None
        file.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def public_figures(figures: Any) -> Any:
    """Figures without the folders in which a metric's weights were looked for."""
    if isinstance(figures, dict):
        return {key: public_figures(value) for key, value in figures.items() if key != "searched"}
    if isinstance(figures, list):
        return [public_figures(value) for value in figures]
    return _PATH.sub(r"\1", figures) if isinstance(figures, str) else figures


# The folder.


@contextmanager
def _whole_folder(place: Path) -> Iterator[Path]:
    """A folder beside the place, which gets its name when all that was written lies on the disk.

    Raises:
        EnvironmentFault: The disk does not take it.
    """
    from safetensors import SafetensorError

    from zoo.run_directory import sync_folder

    partial = place.with_name(f"{place.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
        partial.mkdir(parents=True)
        yield partial
        for file in filter(Path.is_file, partial.rglob("*")):
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        partial.rename(place)
        sync_folder(place.parent)
    except SafetensorError as error:
        raise command.EnvironmentFault(f"cannot write {place}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _steps(*names: str) -> Iterator[Any]:
    """A progress bar with a name for each step; yields what is called as each begins."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task, begun = progress.add_task(names[0], total=len(names)), iter(range(len(names)))

        def step() -> None:
            at = next(begun)
            progress.update(task, completed=at, description=names[at], refresh=True)

        yield step
        progress.update(task, completed=len(names), description="done")


if __name__ == "__main__":
    sys.exit(main())
