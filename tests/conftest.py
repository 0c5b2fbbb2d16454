"""Fixtures that every floor's tests share."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("ZOO_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material (golden/, real/), where it is at hand."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference material at {SHARED}; point ZOO_SHARED at it")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """Inputs, weights and outputs of the Reg2RG reference implementation."""
    return shared / "golden" / "reg2rg"
