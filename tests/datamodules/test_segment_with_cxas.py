"""The script that runs in CXAS's environment, with a stand-in for CXAS: goes on, names failures, shares the work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from datamodules.segmentation_files import made_by, open_masks

SCRIPT = Path(__file__).parents[2] / "docs" / "segment_with_cxas.py"
STAND_IN = """
import json, os
class CXAS:
    def __init__(self, model_name, gpus):
        assert (model_name, gpus) == ("UNet_ResNet50_default", "cpu")
    def process_file(self, filename, do_store, output_directory, create, storage_type):
        assert do_store and create and storage_type == "json"
        stem = os.path.splitext(filename)[0].split("/")[-1]
        if stem == "bad":
            raise RuntimeError("size -1")
        os.makedirs(output_directory, exist_ok=True)
        whole = {"images": [[{"id": 1, "file_name": filename}]], "categories": [], "annotations": []}
        with open(f"{output_directory}/{stem}.json", "w") as file:
            json.dump(whole, file)
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "cxas.py").write_text(STAND_IN)
    (tmp_path / "images" / "p1").mkdir(parents=True)
    for name in ("p1/a.jpg", "p1/b.PNG", "bad.dcm", "notes.txt"):
        (tmp_path / "images" / name).write_bytes(b"")

    def command(*options):
        line = [
            sys.executable,
            str(SCRIPT),
            str(tmp_path / "images"),
            str(tmp_path / "out"),
            "--device",
            "cpu",
            *options,
        ]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60, check=False)

    return command


def test_segments_what_is_missing_and_names_what_fails(run, tmp_path):
    first = run()
    assert (
        first.returncode == 1 and "2 segmented, 1 failed" in first.stdout and "bad.dcm: not segmented" in first.stderr
    )
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["a.json", "b.json", "made_by.txt"]
    assert made_by(out) == "cxas of unknown version, UNet_ResNet50_default"
    assert len(open_masks(out, "a")) == 0
    (tmp_path / "images" / "bad.dcm").unlink()
    (out / "b.json").unlink()
    again = run()
    assert again.returncode == 0 and "1 segmented, 0 failed" in again.stdout


def test_parts_share_the_images(run):
    assert "1 segmented, 1 failed" in run("--part", "1/2").stdout
    assert "1 segmented, 0 failed" in run("--part", "2/2").stdout


def test_two_images_of_one_name_are_refused(run, tmp_path):
    (tmp_path / "images" / "a.png").write_bytes(b"")
    assert "two images have the same name" in run().stderr
