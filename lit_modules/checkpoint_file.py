"""The project's own checkpoints in whichever form they lie: Lightning's file, safetensors, an export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from datamodules.files import unreadable
from datamodules.study import DataFault, SettingsFault
from lit_modules.nets.backbones import located
from lit_modules.report_generator import ReportGenerator

EXPORTED = "model.safetensors"


def file_of(checkpoint: Path) -> Path:
    """The file with a checkpoint's weights: of an exported folder its `model.safetensors`, else itself."""
    exported = checkpoint / EXPORTED
    return exported if exported.is_file() else checkpoint


def checkpoint_at(name: str) -> Path:
    """What `init_from` means: a path, or a name of the checkpoint registry.

    A name stands for `checkpoints/NAME/` of the project, or for `weights/NAME.safetensors`, where `zoo.download` puts
    what it has brought.
    """
    path = Path(located(name))
    if path.exists():
        return path
    places = (Path(located(f"checkpoints/{name}")), Path("weights", f"{name}.safetensors"))
    return next((place for place in places if file_of(place).is_file()), path)


def read_checkpoint(checkpoint: Path) -> dict[str, Any] | None:
    """What a checkpoint of the project holds, as Lightning would hand it over; `None` where it is somebody else's file.

    Returns:
        `state_dict` (what was trained, and what no file brings), `frozen_files` (prefix → what brings the rest) and
        what else the method keeps there.

    Raises:
        FileNotFoundError: There is no such file.
        DataFault: It cannot be read without running code, or at all.
    """
    file = file_of(checkpoint)
    if not file.is_file():
        hint = (
            f"; is it a name of the registry? python -m zoo.download {checkpoint}"
            if checkpoint.parent == Path()
            else ""
        )
        raise FileNotFoundError(f"{checkpoint}: no such checkpoint{hint}")
    try:
        if file.suffix == ".safetensors":
            return _safetensors(file)
        with file.open("rb") as opened:
            zipped = opened.read(2) == b"PK"  # files from before torch 1.6 cannot be mapped
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # torch raises a dozen kinds for a broken file
        raise DataFault(unreadable(file, type(error).__name__, "as a checkpoint")) from error
    own = isinstance(content, dict) and isinstance(content.get("state_dict"), dict)
    return {"frozen_files": {}} | content if own else None


def begin_from(model: ReportGenerator, checkpoint: dict[str, Any], source: str, own: Mapping[str, str | None]) -> bool:
    """Puts what another run of the same method trained into a built model, whose frozen parts are there.

    Where that run's frozen part came from a checkpoint of the project itself, that one is loaded first.

    Args:
        model: The model.
        checkpoint: See `read_checkpoint`.
        source: What `init_from` says, for messages.
        own: Prefix → the file or hub id that this model's frozen part came from.

    Returns:
        Whether a frozen part was brought by a checkpoint, so that `own` is no longer where it is from.

    Raises:
        SettingsFault: The weights are of another model, or were trained on a frozen part that cannot be had from here.
    """
    brought: list[str] = []
    for prefix, below in checkpoint["frozen_files"].items():
        if below == own.get(prefix):
            continue
        place = checkpoint_at(below)
        there = file_of(place).is_file()
        beneath = read_checkpoint(place) if there else None
        if beneath is not None:
            begin_from(model, beneath, below, own)
            brought.append(prefix)
        elif there or " sha256:" in below:
            raise SettingsFault(
                f"{source} was trained on frozen weights of {below}: begin from its own run's checkpoint"
            )
    there_now = {name: value for name, value in model.state_dict().items() if name.startswith(tuple(brought))}
    try:
        model.on_load_checkpoint(checkpoint | {"state_dict": there_now | checkpoint["state_dict"]})
        model.load_state_dict(checkpoint["state_dict"], strict=False)
    except SettingsFault as fault:
        raise SettingsFault(f"{source}: {fault}") from None
    except RuntimeError as error:  # shapes
        lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        raise SettingsFault(f"{source} is of another model: {(lines or [str(error)])[0][:200]}") from None
    return bool(brought)


def _safetensors(file: Path) -> dict[str, Any] | None:
    with safe_open(file, "pt") as opened:
        named = opened.metadata() or {}
        if "method" not in named:
            return None
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    weights |= {name: weights[owner] for name, owner in json.loads(named.get("tied", "{}")).items()}
    return named | {"state_dict": weights, "frozen_files": json.loads(named.get("frozen_files", "{}"))}
