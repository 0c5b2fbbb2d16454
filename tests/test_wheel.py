"""The wheel carries all that the commands need: built, installed in an empty environment, run outside the checkout."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def uv() -> str:
    local = ROOT / ".uv" / "bin" / "uv"
    found = str(local) if local.is_file() else shutil.which("uv")
    if found is None:
        pytest.skip("needs uv; `make test` brings its own")
    return found


def run(*command: str, **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=540, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_wheel_runs_outside_the_checkout(tmp_path: Path) -> None:
    source = tmp_path / "source"  # built from a copy, so that no build folder stays behind in the checkout
    ignored = shutil.ignore_patterns(".*", "runs", "data", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    run(uv(), "build", "--wheel", "--out-dir", str(tmp_path), str(source))
    (wheel,) = tmp_path.glob("*.whl")
    python = tmp_path / "venv" / "bin" / "python"
    run(uv(), "venv", str(tmp_path / "venv"))
    run(uv(), "pip", "sync", "--python", str(python), "--require-hashes", str(ROOT / "requirements.lock"))
    run(uv(), "pip", "install", "--python", str(python), "--no-deps", str(wheel))
    outside = tmp_path / "outside"
    outside.mkdir()
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "ZOO_CONFIGS")}
    said = run(str(python), "-m", "zoo.fit", "--method", "reg2rg", "--dry-run", cwd=outside, env=clean)
    assert "trainable" in said
    assert not any(outside.iterdir()), "a dry run leaves nothing behind"
