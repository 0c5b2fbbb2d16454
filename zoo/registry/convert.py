"""Rewrites others' weights as safetensors under the method's own names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.study import DataFault
from zoo.registry.manifest import Entry


def convert(entry: Entry, file: Path, sha256: str, commit: str, root: Path) -> Path:
    """Writes `root / entry.converted_to`, unless it was made of the same file already.

    The weights are compared with the names and shapes of the method's model of the entry's recipe, which is built
    without any memory for it. The file's metadata name `method`, `recipe`, `source`, `sha256` (of what it was made of),
    `licence`, and `frozen_files`: none, for it holds every weight.

    Args:
        entry: One with `convert`.
        file: The file that came.
        sha256: Its sum.
        commit: Of the repository that it came from.
        root: The folder of weights.

    Raises:
        DataFault: It is no model of that recipe.
    """
    import torch
    from safetensors.torch import save_file

    from zoo.config import compose, import_target

    place = root / str(entry.converted_to)
    if place.is_file() and _metadata(place).get("sha256") == sha256:
        return place
    config = compose(str(entry.method), str(entry.recipe), allow_missing=True)
    with torch.device("meta"):
        model: Any = config.build("model")
        model.configure_model()
    wanted = model.state_dict()
    weights = import_target(str(entry.convert))(str(file), set(wanted))
    faults = [f"{name} is missing" for name in wanted if name not in weights]
    faults += [f"{name} is unknown" for name in weights if name not in wanted]
    faults += [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted.keys() & weights.keys()
        if weights[name].shape != wanted[name].shape
    ]
    if faults:
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise DataFault(
            f"{file} is no {entry.method} of its recipe {entry.recipe}: {', '.join(sorted(faults)[:3])}{more}"
        )
    source = f"{entry.hub or entry.url}/{file.name}" + (f" at {commit}" if commit else "")
    named = {"format": "pt", "method": str(entry.method), "recipe": str(entry.recipe), "source": source}
    named |= {"sha256": sha256, "licence": entry.licence, "frozen_files": "{}", "tied": "{}"}
    partial = place.with_name(f"{place.name}.partial")
    place.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, partial, named)
    partial.replace(place)
    return place


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError:
        return {}
