"""Fixtures of the commands' tests."""

from pathlib import Path

import pytest


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """An empty working folder, and the toy's `configs/` in place of the zoo's."""
    monkeypatch.setenv("ZOO_CONFIGS", str(Path(__file__).parent / "toy_configs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path
