"""A signature as a schema: the typed `__init__` of a class, or a function, as an OmegaConf structured config."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, Union

from omegaconf import MISSING

_PLAIN = (int, float, str, bool, bytes, Path)


def schema(
    target: Callable[..., Any],
    skip: Collection[str] = (),
    types: Mapping[str, Any] | None = None,
    defaults: Any = None,
) -> type:
    """A dataclass with one field for each parameter of `target`, for `OmegaConf.structured`.

    Parameters without a default are `MISSING`; parameters that are dataclasses become sections of their own; what
    OmegaConf cannot type becomes `Any`. A `**kwargs` stands for the parameters of the base class's `__init__`.

    Args:
        target: A class or a function.
        skip: Parameters that are no settings.
        types: Parameter → a narrower type than its annotation.
        defaults: An instance of `target` (a dataclass) whose values are the defaults.
    """
    fields: list[tuple[str, Any, Any]] = []
    for name, (kind, default) in parameters(target).items():
        if name in skip:
            continue
        kind = (types or {}).get(name, kind)
        if defaults is not None:
            default = getattr(defaults, name)
        section, optional = _dataclass_of(kind)
        if section is None:
            fields.append((name, _plain_type(kind), _field(default)))
            continue
        nested: Any = schema(section, defaults=default if dataclasses.is_dataclass(default) else None)
        if default is None:
            made = dataclasses.field(default=None)
        elif default is inspect.Parameter.empty and _has_required(section):
            made = dataclasses.field(default=MISSING)
        else:
            made = dataclasses.field(default_factory=nested)
        fields.append((name, nested | None if optional else nested, made))
    return dataclasses.make_dataclass(getattr(target, "__name__", "Settings"), fields)


def instantiate(target: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """Calls `target` with plain values, made into the dataclasses, tuples and paths that its signature asks for."""
    known = parameters(target)
    return target(
        **{name: _convert(known[name][0], value) if name in known else value for name, value in values.items()}
    )


def parameters(target: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Parameter → (annotation, default); `inspect.Parameter.empty` where it has none."""
    owners = [cls for cls in inspect.getmro(target) if "__init__" in vars(cls)] if inspect.isclass(target) else [target]
    found: dict[str, tuple[Any, Any]] = {}
    for owner in owners:
        function = inspect.unwrap(vars(owner)["__init__"] if inspect.isclass(owner) else owner)
        hints = typing.get_type_hints(function)
        signature = inspect.signature(function).parameters.values()
        for parameter in signature:
            if parameter.name == "self" or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            found.setdefault(parameter.name, (hints.get(parameter.name, Any), parameter.default))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature):
            break
    return found


def _dataclass_of(kind: Any) -> tuple[type | None, bool]:
    """The dataclass that an annotation names, if any, and whether `None` is allowed as well."""
    choices = _choices(kind)
    found = [choice for choice in choices if inspect.isclass(choice) and dataclasses.is_dataclass(choice)]
    return (found[0] if len(found) == 1 else None), type(None) in choices


def _choices(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)


def _has_required(section: type) -> bool:
    return any(default is inspect.Parameter.empty for _, default in parameters(section).values())


def _field(default: Any) -> Any:
    if default is inspect.Parameter.empty:
        return dataclasses.field(default=MISSING)
    if isinstance(default, tuple):
        default = list(default)
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: default.copy())
    return dataclasses.field(default=default)


def _plain_type(kind: Any) -> Any:
    """The annotation as OmegaConf can check it; `Any` where it cannot."""
    if kind in _PLAIN:
        return kind
    if typing.get_origin(kind) is Literal:
        return kind
    if typing.get_origin(kind) in (list, tuple, dict):
        inner = [choice for choice in typing.get_args(kind) if choice is not Ellipsis]
        return kind if inner and all(choice in _PLAIN for choice in inner) else Any
    choices = [choice for choice in _choices(kind) if choice is not type(None)]
    if len(choices) == len(_choices(kind)) == 1:
        return Any
    if all(typing.get_origin(choice) is Literal for choice in choices):
        result: Any = Literal[tuple(value for choice in choices for value in typing.get_args(choice))]
    elif all(choice in (int, float, str, bool) for choice in choices):
        result = functools.reduce(operator.or_, choices)
    elif len(choices) == 1:
        result = _plain_type(choices[0])
    else:
        return Any
    return result | None if len(choices) < len(_choices(kind)) and result is not Any else result


def _convert(kind: Any, value: Any) -> Any:
    section, _ = _dataclass_of(kind)
    if section is not None and isinstance(value, Mapping):
        return instantiate(section, value)
    if isinstance(value, list) and any((typing.get_origin(choice) or choice) is tuple for choice in _choices(kind)):
        return tuple(value)
    if isinstance(value, str) and Path in _choices(kind):
        return Path(value)
    return value
