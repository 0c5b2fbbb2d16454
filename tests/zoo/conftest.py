"""Fixtures of the commands' tests."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """An empty working folder, and the toy's `configs/` in place of the zoo's."""
    monkeypatch.setenv("ZOO_CONFIGS", str(Path(__file__).parent / "toy_configs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def forked(toy, monkeypatch):
    """An empty folder, the toy's studies, and fits that start at once."""
    from tests.zoo.toy_study import ForkedFit
    from zoo.studies import runs

    stand_in = SimpleNamespace(**{name: getattr(subprocess, name) for name in ("DEVNULL", "TimeoutExpired")})
    monkeypatch.setenv("ZOO_WEIGHTS", "none")  # so that a metric is absent
    monkeypatch.setattr(runs, "subprocess", SimpleNamespace(Popen=ForkedFit, **vars(stand_in)))
    return toy
