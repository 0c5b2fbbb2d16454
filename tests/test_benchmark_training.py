"""The benchmark of an optimizer step measures what it says, on a CPU and at the phantom's size."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import count
from benchmarks.training import main, peak_of
from datamodules.study import Study
from lit_modules.nets.phantom_vlm import PhantomVLM
from lit_modules.nets.qlora import Adapters
from lit_modules.overlay_sft import OverlaySFT

SMALL = ["data.micro_batch_size=1", "data.global_batch_size=2", "trainer.enable_progress_bar=false"]
KEYS = {
    "method", "recipe", "with", "settings", "strategy", "precision", "gradient_checkpointing", "parameters", "batch",
    "seconds_per_step", "studies_per_second", "tokens_per_step", "tokens_per_second", "tokens_are",
    "peak_memory_bytes", "flops_per_step", "flops_per_step_by_formula", "formula", "mfu", "hardware", "versions", "git",
    "date", "random_weights", "tokenizer", "data", "command",
}  # fmt: skip


@pytest.mark.parametrize("method, patients", [("overlay_sft", 2), ("reg2rg", 1)])
def test_a_step_is_measured_and_recorded(method: str, patients: int, tmp_path: Path, capsys) -> None:
    arguments = ["--method", method, "--recipe", "phantom", "--random", "--steps", "2", "--out", str(tmp_path)]
    assert main([*arguments, *SMALL, f"data.phantom={patients}"]) == 0
    (path,) = tmp_path.glob(f"{method}-*m-1xcpu-*.json")
    found = json.loads(path.read_text())
    assert found.keys() == KEYS
    assert found["batch"] == {"micro": 1, "accumulation": 2, "devices": 1, "nodes": 1, "studies": 2}
    seconds = found["seconds_per_step"]
    assert seconds["steps"] == 2 and 0 < seconds["least"] <= seconds["median"] <= seconds["greatest"]
    assert found["tokens_per_second"] * seconds["median"] == pytest.approx(found["tokens_per_step"])
    assert found["studies_per_second"] * seconds["median"] == pytest.approx(2)
    assert found["flops_per_step"] > found["flops_per_step_by_formula"] > 4 * found["tokens_per_step"] * 10_000
    assert found["peak_memory_bytes"]["resident"][0] > 1e8
    assert found["mfu"] == {"value": None, "note": "run on a CPU, of which no peak is listed"}
    assert found["hardware"]["device"] == "CPU" and found["random_weights"] and found["data"] == "phantom"
    capsys.readouterr()
    assert main(["--show", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert f"{method}, phantom" in shown and "1 × CPU" in shown and "no MFU: run on a CPU" in shown


@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl", "mllama"])
def test_a_model_without_memory_is_counted_as_a_real_one(family: str) -> None:
    """Its ids, masks and image tokens decide over what is computed; adapters train, the rest is frozen."""
    settings = {"quantization": "none", "gradient_checkpointing": False, "dtype": "float32", "max_length": 512}
    methods = [OverlaySFT(f"phantom:{family}", PhantomVLM(), lora=Adapters(dropout=0.0), **settings) for _ in range(2)]
    films = np.random.default_rng(0).integers(0, 255, (2, 120, 100), np.uint8)
    reports = ("Clear lungs.", "A pneumothorax on the left, and no effusion.")
    studies = [Study(id=text, image=film, report=text) for film, text in zip(films, reports, strict=True)]
    source = methods[0].preprocessor()
    batch = source.collate([source(study, source.arrays(study), random.Random(0)) for study in studies])
    methods[0].configure_model()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        methods[0].train().loss(batch).backward()
    with torch.device("meta"):
        methods[1].configure_model()
    cost = count(methods[1], batch)
    assert cost.flops == counter.get_total_flops()
    assert cost.positions == batch["turn"]["input_ids"].numel()


def test_what_cannot_be_measured_says_why(tmp_path: Path, capsys) -> None:
    assert main(["--method", "asarg", "--recipe", "paper", "--out", str(tmp_path)]) == 4  # no weights, no GPUs
    assert "4 GPUs" in capsys.readouterr().err
    assert main(["--method", "overlay_sft", "--recipe", "paper", "--out", str(tmp_path), "trainer.max_epochs=0"]) == 2
    assert "nothing is trained" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_peaks_are_told_by_the_devices_name() -> None:
    assert peak_of("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_of("NVIDIA H100 80GB HBM3") == peak_of("NVIDIA H200") == 989e12
    assert peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None and peak_of("Tesla T4") is None
