"""Where settings come from: YAML files and `key=value` arguments, each key with its file and line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo.command import UsageError

_UNREADABLE = (  # what OmegaConf stumbles with
    *(yaml.YAMLError, OmegaConfBaseException),
    *(ValueError, LookupError, AssertionError, RecursionError),
)


@dataclass(frozen=True)
class Layer:
    """One source of settings: nested values, and where each dotted key stands."""

    name: str
    values: dict[str, Any]
    lines: Mapping[str, int] = field(default_factory=dict)
    method: str | None = None
    recipe: str | None = None
    ablations: tuple[str, ...] = ()

    def origin(self, key: str) -> str:
        """`file:line` of a key, or the argument itself."""
        line = self.lines.get(key)
        return f"{self.name}:{line}" if line else self.name


def read_layer(path: Path, recipe: str | None = None) -> Layer:
    """Reads a YAML file; what its `when: {<recipe>: …}` says about this recipe is laid over the rest."""
    try:
        text = path.read_text(encoding="utf-8")
        values = OmegaConf.to_container(OmegaConf.create(text)) if text.strip() else {}
        lines = _lines(yaml.compose(text, Loader=yaml.SafeLoader))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except _UNREADABLE as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold sections (model, data, trainer, …), not a list")
    when, ablations = values.pop("when", None) or {}, values.pop("with", None) or []
    if not isinstance(when, dict) or not isinstance(own := when.get(recipe) or {}, dict):
        raise UsageError(f"{path}: `when` must hold sections (model, data, trainer, …) for each recipe")
    if not isinstance(ablations, list):
        raise UsageError(f"{path}: `with` must be a list of ablations")
    prefix = f"when.{recipe}."
    lines |= {key.removeprefix(prefix): line for key, line in lines.items() if key.startswith(prefix)}
    values = _overlay(dict(values), own)
    method, name = values.pop("method", None), values.pop("recipe", None)
    return Layer(_short(path), values, lines, method, name, tuple(ablations))


def read_arguments(overrides: Sequence[str]) -> tuple[list[Layer], list[str]]:
    """One layer an argument, and what is wrong with those that cannot be read."""
    layers, errors = [], []
    for text in overrides:
        key, equals, _ = text.partition("=")
        try:
            if not equals or not key:
                raise UsageError
            values = OmegaConf.to_container(OmegaConf.from_dotlist([text]))
        except (UsageError, *_UNREADABLE):
            errors.append(f"{text!r}: settings are written key=value, e.g. model.lr=1e-4")
            continue
        layers.append(Layer(f"argument {text!r}", values))  # type: ignore[arg-type]
    return layers, errors


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings → dotted key → value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _overlay(under: Mapping[Any, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _overlay(result[key], value) if both else value
    return result


def _lines(node: yaml.Node | None, prefix: str = "") -> dict[str, int]:
    lines: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[f"{prefix}{key.value}"] = key.start_mark.line + 1
            lines |= _lines(value, f"{prefix}{key.value}.")
    return lines


def _short(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
