"""Lines of progress, where there is no terminal."""

from types import SimpleNamespace

import pytest

from zoo.callbacks import progress


@pytest.mark.parametrize(("begins_at", "left"), [(0, ["0:00:30", "0:00:20", "0:00:10"]), (2, ["0:00:10"])])
def test_the_time_left_follows_from_what_this_process_did(monkeypatch, capsys, begins_at, left):
    clock = SimpleNamespace(now=1e6)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    bar = progress.ProgressLines(seconds=0)
    bar._trainer = trainer = SimpleNamespace(current_epoch=0, max_epochs=2, progress_bar_metrics={}, world_size=1)
    monkeypatch.setattr(progress.ProgressLines, "total_train_batches", 4)
    bar.on_train_start()
    if not begins_at:  # a run that is resumed within an epoch does not start it
        bar.on_train_epoch_start()
    for batch in range(begins_at, 4):
        clock.now += 10
        bar.on_train_batch_end(trainer, None, None, None, batch)
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"epoch 1/2: {4 - n}/4, {when} left" for n, when in zip(range(len(left), 0, -1), left, strict=True)
    ] + ["epoch 1/2: 4/4, 0:00:00 left"]
