"""Versions of what decides a result. Imports nothing heavy."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import zoo

PACKAGES = ("rrg-zoo", "torch", "lightning", "transformers", "peft", "monai", "deepspeed", "omegaconf", "numpy")


def versions() -> dict[str, str]:
    """Package → version, of those that decide the result and are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, Any] | None:
    """The commit that the code is of, and whether files were changed since; `None` outside a checkout."""
    home = Path(zoo.__file__).parent.parent
    if not (home / ".git").exists():
        return None
    try:
        answers = [
            subprocess.run(
                ["git", "-C", str(home), *words], capture_output=True, text=True, timeout=10, check=True
            ).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": answers[0].strip(), "changed": bool(answers[1].strip())}
