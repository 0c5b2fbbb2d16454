"""RRG Zoo. `zoo.load` gives a trained model; the commands are `python -m zoo.<command>`. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_modules.report_generator import ReportGenerator

__all__ = ["load"]


def load(name: str | Path, **settings: Any) -> ReportGenerator:
    """A trained model, ready to be fine-tuned or to report, in evaluation mode; see `zoo.registry.load`.

    Args:
        name: A name of the registry, a run's folder or a checkpoint in one, an exported folder, or a file of weights.
        settings: Of the model, in place of those that it was trained with.
    """
    from zoo.registry.load import load as loaded

    return loaded(name, **settings)
