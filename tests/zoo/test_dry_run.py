"""`--dry-run`: settings, sizes and what is missing, without data, weights or memory."""

import resource

import torch

from zoo.config import compose
from zoo.dry_run import GIB, Memory, counts, estimate
from zoo.fit import main
from zoo.trainer import effective_batch


def test_a_dry_run_shows_changes_sizes_and_writes_nothing(toy, capsys):
    assert main(["--method", "toy", "--with", "wide", "--dry-run", "model.lr=0.25"]) == 0
    text = capsys.readouterr().out
    assert "model.lr: 0.005 → 0.25  (argument 'model.lr=0.25')" in text
    assert "model.net.width: 8 → 16  (" in text
    assert "wide.yaml:4)" in text
    assert "97 trainable + 0 frozen = 97 parameters" in text  # 4·16 + 16 + 16·1 + 1
    assert "4 studies = 2 micro × 2 accumulation × 1 devices × 1 nodes" in text
    assert "an estimate" in text
    assert list(toy.iterdir()) == []


def test_what_is_missing_is_a_checklist_and_no_error(toy, capsys):
    assert main(["--method", "toy", "--recipe", "paper", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert text.count("✗") >= 2 and text.count("data.root") == 1  # said once
    assert "✗ weights: put them at no/such/file" in text


def test_wrong_settings_fail_in_a_dry_run_too(toy, capsys):
    assert main(["--method", "toy", "--dry-run", "model.lrr=1"]) == 2
    assert "did you mean model.lr?" in capsys.readouterr().err


def test_the_papers_model_is_counted_without_holding_it(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main(["--method", "reg2rg", "--recipe", "paper", "--dry-run"]) == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2e6  # KiB; the weights alone would be 13 GiB
    text = capsys.readouterr().out
    # The reference's own counts, under the authors' library versions.
    assert "52,780,943 trainable + 6,804,623,616 frozen = 6,857,404,559 parameters" in text
    assert "16 studies = 1 micro × 8 accumulation × 2 devices × 1 nodes" in text
    assert "✗ RadFM_vit3d.pth" in text
    assert "✗ meta-llama/Llama-2-7b-chat-hf: accept" in text


def test_the_estimate_shares_what_zero2_shares(toy):
    model = torch.nn.Linear(1000, 1000, bias=False)
    model.extra = torch.nn.Linear(1000, 3000, bias=False).requires_grad_(False)
    assert counts(model) == (1_000_000, 3_000_000)
    settings = ["trainer.devices=2", "data.global_batch_size=4"]
    plain = compose("toy", "phantom", (), settings)
    one = estimate(model, plain, effective_batch(plain))
    assert (one.weights, one.gradients, one.optimizer, one.buckets) == (16e6, 4e6, 8e6, 0)
    zero = compose("toy", "phantom", (), [*settings, "trainer.strategy=zero2", "trainer.precision=bf16-true"])
    shared = estimate(model, zero, effective_batch(zero))
    assert (shared.weights, shared.gradients, shared.optimizer) == (8e6, 1e6, 6e6)
    assert shared.buckets == 4e6
    assert shared.total < one.total < GIB
    settings += ["trainer.strategy=zero2_offload", "trainer.precision=bf16-true"]
    offloaded = compose("toy", "phantom", (), settings)
    host = estimate(model, offloaded, effective_batch(offloaded))
    assert (host.weights, host.gradients, host.optimizer, host.host) == (8e6, 0, 0, 9e6)  # 12 + 4 + 2 bytes, halved
    assert host.buckets == 6e6  # and the largest gradient
    summed = compose("toy", "phantom", (), [*settings, "data.global_batch_size=8"])
    assert estimate(model, summed, effective_batch(summed)).host == 10e6
    zero_shot = compose("toy", "phantom", (), [*settings, "trainer.max_epochs=0"])
    assert estimate(model, zero_shot, effective_batch(zero_shot)) == Memory(8e6)
    next(model.parameters()).bits = 4  # as it will be read
    assert estimate(model, zero_shot, effective_batch(zero_shot)) == Memory(6_500_000)


def test_offloading_asks_for_the_machines_memory(toy, capsys):
    settings = ["trainer.accelerator=gpu", "trainer.devices=2", "trainer.strategy=zero2_offload"]
    assert main(["--method", "toy", "--dry-run", *settings]) == 0
    text = capsys.readouterr().out
    assert "and in the machine's" in text
    assert "✓ about 0.0 GiB of the machine's memory" in text
