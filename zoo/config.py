"""The configuration: typed signatures are its schema, YAML files and `key=value` arguments fill it in.

Order, weakest first: a signature's defaults, `configs/defaults.yaml`, `configs/<method>/<recipe>.yaml`, each ablation
(`--with`), each `key=value`. All errors are found before any is reported, each with its origin and a suggestion.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo.command import UsageError, ablations, configs_folder, methods, recipes
from zoo.layers import Layer, flatten, read_arguments, read_layer
from zoo.schema import instantiate, schema


@dataclass(frozen=True)
class Run:
    """How a run is made.

    Attributes:
        seed: Seeds weights, order, dropout and sampling.
        folder: Where run folders are made.
        monitor: The logged value that `checkpoints/best` follows.
        mode: Whether the monitored value should be small or large.
        checkpoint_every: Optimizer steps between two `checkpoints/last`; `None`: at each epoch's end only.
        evaluate: The checkpoint that is tested after the fit.
    """

    seed: int = 0
    folder: str = "runs"
    monitor: str = "validation/loss"
    mode: Literal["min", "max"] = "min"
    checkpoint_every: int | None = None
    evaluate: Literal["best", "last"] = "best"


# Section → whose signature it fills; `None`: the class that its `class:` key names.
SECTIONS: dict[str, str | None] = {
    "model": None,
    "data": None,
    "trainer": "lightning:Trainer",
    "metrics": "zoo.callbacks.clinical_efficacy:ClinicalEfficacy",
    "log": "zoo.loggers:build_loggers",
    "run": "zoo.config:Run",
}
# What the commands give themselves; a user sets the first by `data.global_batch_size`.
NOT_SETTINGS = {
    "trainer": {"accumulate_grad_batches", "callbacks", "logger", "plugins", "default_root_dir", "barebones",
                "model_registry", "use_distributed_sampler", "enable_checkpointing", "enable_autolog_hparams"},
    "log": {"folder"},
}  # fmt: skip
ZERO = ("zero2", "zero2_offload")  # strategies that share the optimizer's state out among the processes
NARROWER = {
    "trainer": {
        "strategy": Literal["auto", "ddp", "zero2", "zero2_offload"],
        "accelerator": Literal["auto", "cpu", "gpu"],
    }
}
ACCUMULATION = (
    "accumulation follows from data.global_batch_size = data.micro_batch_size × accumulation × devices × nodes; "
    "set data.global_batch_size or data.micro_batch_size instead"
)


@dataclass(frozen=True)
class Config:
    """A resolved configuration.

    Attributes:
        method: A folder of `configs/`.
        recipe: One of its recipes.
        ablations: What `--with` named, in order.
        values: Section → settings, plain containers; `model` and `data` also hold `class`.
        origins: Dotted key → where its value was set; keys at their signature's default are absent.
        base: The same as `values` for the recipe alone, without ablations and arguments.
        missing: Keys that must be given and were not (only where `compose` allowed it).
    """

    method: str
    recipe: str
    ablations: tuple[str, ...]
    values: dict[str, dict[str, Any]]
    origins: dict[str, str]
    base: dict[str, dict[str, Any]]
    missing: tuple[str, ...] = ()

    @property
    def untrained(self) -> bool:
        """Whether nothing is trained: the model is tested as it is built (zero-shot)."""
        return self.values["trainer"]["max_epochs"] == 0

    @property
    def zero(self) -> bool:
        """Whether the optimizer's state is shared out among the processes (ZeRO)."""
        return self.values["trainer"]["strategy"] in ZERO

    def plain(self) -> dict[str, Any]:
        """What `config.yaml` and checkpoints hold; `load` reads it back."""
        return {"method": self.method, "recipe": self.recipe, "with": list(self.ablations), **self.values}

    def yaml(self) -> str:
        """`plain` as YAML."""
        return OmegaConf.to_yaml(OmegaConf.create(self.plain()))

    def hash(self) -> str:
        """sha256 of `plain`."""
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()

    def differences(self, other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Dotted key → (there, here) for each setting in which `other` (sections of values) differs."""
        there, here = flatten({name: other.get(name, {}) for name in SECTIONS}), flatten(self.values)
        keys = sorted(there.keys() | here.keys())
        return {key: (there.get(key), here.get(key)) for key in keys if there.get(key) != here.get(key)}

    def build(self, section: str, **given: Any) -> Any:
        """The object that a section describes: the model, the DataModule, the metric callback, the run's settings.

        Raises:
            UsageError: The object refuses its settings.
        """
        values = dict(self.values[section])
        target = import_target(values.pop("class", None) or SECTIONS[section] or "")
        try:
            return instantiate(target, {**values, **given})
        except ValueError as error:
            raise UsageError(f"{section}: {error}") from error


def compose(
    method: str, recipe: str, with_: Sequence[str] = (), overrides: Sequence[str] = (), allow_missing: bool = False
) -> Config:
    """Resolves a method's recipe with ablations and `key=value` arguments.

    Args:
        allow_missing: Leave required settings that nobody gave as `"???"` and list them in `Config.missing`.

    Raises:
        UsageError: Everything that is wrong, one line each.
    """
    files = recipes(choose("method", method, methods()))
    path = files[choose("recipe", recipe, list(files))]
    known = ablations(method)
    chosen = [
        Path(name) if Path(name).suffix == ".yaml" else known[choose("ablation", name, list(known))] for name in with_
    ]
    defaults = configs_folder() / "defaults.yaml"
    base = [read_layer(file, recipe) for file in (defaults, path) if file.is_file()]
    extra = [read_layer(file, recipe) for file in chosen]
    return _resolve(method, recipe, tuple(with_), base, extra, overrides, allow_missing)


def load(path: Path, overrides: Sequence[str] = (), allow_missing: bool = False) -> Config:
    """Resolves a run's `config.yaml` with `key=value` arguments.

    Raises:
        UsageError: Everything that is wrong, one line each.
    """
    layer = read_layer(path)
    if layer.method is None or layer.recipe is None:
        raise UsageError(f"{path} is not a run's config.yaml: it names no method and recipe")
    return _resolve(layer.method, layer.recipe, layer.ablations, [layer], [], overrides, allow_missing)


def choose(kind: str, name: str, known: Sequence[str]) -> str:
    """`name`, if it is known.

    Raises:
        UsageError: It is not; with what there is and the nearest name.
    """
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UsageError(f"no {kind} is called {name!r}; there are: {', '.join(known) or 'none'}{hint}")


def import_target(name: str) -> Any:
    """The class or function that `package.module:Name` names."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        missing = getattr(error, "name", None)
        if isinstance(error, ImportError) and missing and not module.startswith(missing):
            raise  # a package that the class needs, not the class itself
        raise UsageError(f"cannot find the class {name!r} (written package.module:Class)") from error


class _Resolver:
    """Lays layers over the schema and gathers every error."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self.errors: list[str] = []
        self.origins: dict[str, str] = {}
        self.classes: dict[str, str] = {}
        self.nodes: dict[str, DictConfig] = {}
        self.forgotten: dict[str, list[tuple[int, set[str]]]] = {}
        for section, target in SECTIONS.items():
            self._open(section, target)

    def _open(self, section: str, target: str | None) -> None:
        """Finds a section's class and its schema."""
        name, origin, earlier = target, "", []
        if target is None:
            for index, layer in enumerate(self.layers):
                values = layer.values.get(section)
                new = values.get("class") if isinstance(values, Mapping) else None
                if new and new != name:
                    earlier.append((index, name))
                    name, origin = new, layer.origin(f"{section}.class")
        if name is None:
            self.errors.append(f"{section}.class is missing: name one, written package.module:Class")
            return
        try:
            self.nodes[section] = _node(section, import_target(name))
            # Settings made for a class that a later layer replaced are dropped where the new class does not know them.
            self.forgotten[section] = [
                (index, {str(key) for key in _node(section, import_target(old))}) for index, old in earlier if old
            ]
        except UsageError as error:
            self.errors.append(f"{origin}: {error}" if origin else str(error))
            return
        if target is None:
            self.classes[section] = name
            self.origins[f"{section}.class"] = origin

    def resolve(self) -> None:
        for index, layer in enumerate(self.layers):
            for section, values in layer.values.items():
                if section not in SECTIONS:
                    for key in flatten({section: values}):
                        self._unknown(key, layer.origin(key))
                elif values is None:
                    continue  # a section whose lines are all comments
                elif not isinstance(values, Mapping):
                    self.errors.append(f"{layer.origin(section)}: {section} is a section; write {section}.<setting>=…")
                elif section in self.nodes:
                    settings = {key: value for key, value in values.items() if key != "class" or SECTIONS[section]}
                    old = set().union(*(keys for end, keys in self.forgotten[section] if index < end))
                    known = {str(key) for key in self.nodes[section]}
                    kept = {key: value for key, value in settings.items() if key in known or key not in old}
                    self._merge(self.nodes[section], kept, section, layer)

    def _merge(self, node: DictConfig, values: Mapping[str, Any], path: str, layer: Layer) -> None:
        for key, value in values.items():
            dotted = f"{path}.{key}"
            if dotted == "trainer.accumulate_grad_batches":
                self.errors.append(f"{layer.origin(dotted)}: {ACCUMULATION}")
            elif key not in list(node):  # a missing value's key is not `in` an OmegaConf node
                self._unknown(dotted, layer.origin(dotted))
            elif isinstance(value, Mapping) and (section := _section_type(node, key)):
                if node[key] is None:
                    node[key] = OmegaConf.structured(section)
                self._merge(node[key], value, dotted, layer)
            elif isinstance(value, str) and "${" in value:
                self.errors.append(
                    f"{layer.origin(dotted)}: {dotted}={value!r}: write the value itself, not a reference"
                )
            else:
                self._set(node, key, value, dotted, layer)

    def _set(self, node: DictConfig, key: str, value: Any, dotted: str, layer: Layer) -> None:
        try:
            OmegaConf.update(node, key, value, merge=False)
            self.origins[dotted] = layer.origin(dotted)
        except OmegaConfBaseException as error:
            self.errors.append(f"{layer.origin(dotted)}: {dotted}: {str(error).splitlines()[0]}")

    def _unknown(self, key: str, origin: str) -> None:
        known = list(flatten({name: OmegaConf.to_container(node) for name, node in self.nodes.items()}))
        known += [f"{path}.{name}" for section, node in self.nodes.items() for path, name in _branches(section, node)]
        section, _, rest = key.partition(".")
        if section not in SECTIONS and (near := difflib.get_close_matches(section, SECTIONS, 1)):
            key_there = f"{near[0]}.{rest}" if rest else near[0]
            self.errors.append(f"{origin}: there is no section {section}; did you mean {key_there}?")
            return
        last = key.rpartition(".")[2]
        near = [name for name in known if name.rpartition(".")[2] == last]
        near = near or difflib.get_close_matches(key, known, 1, 0.8)
        near = (
            near or [name for name in known if difflib.get_close_matches(last, [name.rpartition(".")[2]], 1, 0.7)][:1]
        )
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        self.errors.append(f"{origin}: there is no setting {key}{hint}")


def _resolve(
    method: str,
    recipe: str,
    with_: tuple[str, ...],
    base: list[Layer],
    extra: list[Layer],
    overrides: Sequence[str],
    allow_missing: bool,
) -> Config:
    arguments, errors = read_arguments(overrides)
    resolver = _Resolver([*base, *extra, *arguments])
    resolver.resolve()
    errors += resolver.errors
    missing = [f"{name}.{key}" for name, node in resolver.nodes.items() for key in sorted(OmegaConf.missing_keys(node))]
    if not allow_missing:
        errors += [f"{key} is missing: give {key}=…" for key in missing]
    if errors:
        raise UsageError("\n       ".join(dict.fromkeys(errors)))
    values = resolver.nodes, resolver.classes
    recipe_alone = _Resolver(base)
    recipe_alone.resolve()
    return Config(
        method, recipe, with_, _values(*values), resolver.origins,
        _values(recipe_alone.nodes, recipe_alone.classes), tuple(missing),
    )  # fmt: skip


def _values(nodes: Mapping[str, DictConfig], classes: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    return {
        name: ({"class": classes[name]} if name in classes else {}) | _lists(OmegaConf.to_container(node))
        for name, node in nodes.items()
    }


def _lists(value: Any) -> Any:
    """Tuples as lists, as YAML and JSON give them back."""
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def _node(section: str, target: Any) -> DictConfig:
    return OmegaConf.structured(schema(target, NOT_SETTINGS.get(section, ()), NARROWER.get(section)))


def _section_type(node: DictConfig, key: str) -> type | None:
    """The dataclass behind a setting that is a section of its own."""
    kind = node._get_node(key)._metadata.ref_type  # type: ignore[union-attr]
    return kind if dataclasses.is_dataclass(kind) else None


def _branches(path: str, node: DictConfig) -> list[tuple[str, str]]:
    return [(path, str(key)) for key in node if isinstance(node._get_node(key), DictConfig)]
