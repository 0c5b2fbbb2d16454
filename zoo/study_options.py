"""What files one examination takes, as a command's options: the signature of a DataModule's `study_from_files`."""

from __future__ import annotations

import argparse
import inspect
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Union

from datamodules.study import DataFault
from zoo.schema import parameters


def add_study_options(parser: argparse.ArgumentParser, study_from_files: Callable[..., Any]) -> None:
    """Adds an option for each parameter: name with dashes, type, choices, default, and the docstring's words on it."""
    group = parser.add_argument_group("the examination")
    described = described_arguments(study_from_files)
    for name, (kind, default) in parameters(study_from_files).items():
        required = default is inspect.Parameter.empty
        known = "" if required or default in (None, "") else f" (default: {default})"
        options: dict[str, Any] = {"required": required, "help": described.get(name, "").replace("%", "%%") + known}
        if not required:
            options["default"] = default
        plain = _without_none(kind)
        if typing.get_origin(plain) is Literal:
            options["choices"] = typing.get_args(plain)
        elif plain is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = plain
            options["metavar"] = {Path: "FILE", str: "TEXT"}.get(plain, plain.__name__.upper())
        group.add_argument(_option(name), dest=name, **options)


def study_arguments(study_from_files: Callable[..., Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """The options' values, by parameter.

    Raises:
        DataFault: A file is not there.
    """
    values = {name: getattr(arguments, name) for name in parameters(study_from_files)}
    for name, value in values.items():
        if isinstance(value, Path) and not value.exists():
            raise DataFault(f"{value}: no such file or folder, given as {_option(name)}")
    return values


def described_arguments(function: Callable[..., Any]) -> dict[str, str]:
    """Parameter → description, from the `Args:` of a Google-style docstring."""
    _, _, section = (inspect.getdoc(function) or "").partition("Args:\n")
    section = re.split(r"\n(?=\S)", section)[0]
    entries = re.findall(r"^ {4}(\w+)(?: \([^)]*\))?: (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _without_none(kind: Any) -> Any:
    """The type in `X | None`, and any other type as it is."""
    if typing.get_origin(kind) not in (Union, types.UnionType):
        return kind
    return next(choice for choice in typing.get_args(kind) if choice is not type(None))
