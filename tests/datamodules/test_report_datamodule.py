"""The loaders: an order that only seed and epoch decide, exact resumption in mid-epoch, nothing lost in evaluation."""

from __future__ import annotations

import multiprocessing
import pickle
import random

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from small_ct import Means, radgenome

from datamodules.radgenome_chestct import RadGenomeChestCT
from datamodules.resumable_loader import EpochBatches, deal
from datamodules.study import DataFault

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return radgenome(tmp_path_factory.mktemp("data"), train=7, validation=3)


def _data(root, **settings):
    data = RadGenomeChestCT(str(root), **settings)
    data.preprocessor = Means()
    return data


class Diary(L.LightningModule):
    """Writes down what it is given; its one weight depends on the order and on the global random state."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.stop_at, self.given = stop_at, []

    def training_step(self, batch, batch_idx):
        self.given.append((self.current_epoch, batch_idx, tuple(batch["ids"]), tuple(batch["drawn"])))
        self.log("trained", float(len(batch["ids"])), on_step=False, on_epoch=True, reduce_fx="sum", batch_size=1)
        if len(self.given) == self.stop_at:
            raise KeyboardInterrupt  # after the last checkpoint, in the middle of an epoch
        return ((self.weight - sum(batch["drawn"]) - torch.rand(1)) ** 2).sum()

    def validation_step(self, batch, batch_idx):
        self.log("seen", float(len(batch["ids"])), on_step=False, on_epoch=True, reduce_fx="sum", batch_size=1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def _fit(root, folder, workers, stop_at=None, resume=None, **trainer_settings):
    settings = {"max_epochs": 3, "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
                "accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, **trainer_settings}  # fmt: skip
    last = ModelCheckpoint(folder, "{epoch}-{step}", monitor=None, every_n_train_steps=1, save_top_k=-1)
    trainer = L.Trainer(callbacks=[last], use_distributed_sampler=False, **settings)
    data, diary = _data(root, micro_batch_size=2, num_workers=workers, seed=3), Diary(stop_at)
    torch.manual_seed(0)
    try:
        trainer.fit(diary, datamodule=data, ckpt_path=resume)
    except (KeyboardInterrupt, SystemExit):
        assert stop_at is not None
    return diary


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [2, 4, 6, 8])  # in mid-epoch, at an epoch's end, in the next epoch, at its end
def test_lightning_resumes_with_exactly_the_next_batch(root, tmp_path, workers, step):
    whole = _fit(root, tmp_path / "whole", workers)
    assert [entry[0] for entry in whole.given] == [0] * 4 + [1] * 4 + [2] * 4
    assert whole.given[0][2:] != whole.given[4][2:]
    (checkpoint,) = (tmp_path / "whole").glob(f"*step={step}.ckpt")
    resumed = _fit(root, tmp_path / "resumed", workers, resume=checkpoint)
    assert resumed.given == whole.given[step:]
    assert multiprocessing.active_children() == []  # the fit is over, and so are its workers


@pytest.mark.parametrize(
    "limit", [{"limit_train_batches": 3}, {"accumulate_grad_batches": 2}, {"val_check_interval": 2}], ids=str
)
def test_resumes_under_other_settings_of_the_trainer(root, tmp_path, limit):
    whole = _fit(root, tmp_path / "whole", 0, **limit)
    for checkpoint in (tmp_path / "whole").glob("*.ckpt"):
        step = int(checkpoint.stem.split("=")[-1]) * limit.get("accumulate_grad_batches", 1)
        resumed = _fit(root, tmp_path / "resumed", 0, resume=checkpoint, **limit)
        assert resumed.given == whole.given[step:], checkpoint.name


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(root, tmp_path):
    whole = _fit(root, tmp_path / "whole", 0)
    stopped = _fit(root, tmp_path / "stopped", 0, stop_at=7)
    assert stopped.given == whole.given[:7]
    (checkpoint,) = (tmp_path / "stopped").glob("*step=6.ckpt")
    resumed = _fit(root, tmp_path / "resumed", 0, resume=checkpoint)
    assert resumed.given == whole.given[6:]


def test_two_processes_share_an_epoch(root, tmp_path):
    torch.set_num_threads(1)
    data = _data(root, micro_batch_size=1, num_workers=0)
    trainer = L.Trainer(strategy="ddp_fork", accelerator="cpu", devices=2, max_epochs=1, logger=False,
                        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
                        num_sanity_val_steps=0, use_distributed_sampler=False)  # fmt: skip
    trainer.fit(Diary(), datamodule=data)
    assert trainer.callback_metrics["trained"] == 4  # on the first process: 7 studies padded to 8
    assert trainer.callback_metrics["seen"] == 2  # 3 padded to 4


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("studies", [1, 5, 7, 16])
def test_ranks_side_by_side_make_the_batches_that_one_makes(studies, world_size):
    order = random.Random(0).sample(range(studies), studies)
    shares = [deal(order, 2, rank, world_size) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    dealt = [batch for turn in zip(*shares, strict=True) for batch in turn]
    alone = deal(order, 2)
    assert dealt[: len(alone)] == alone
    assert [index for batch in alone for index in batch] == order
    assert len(dealt) < len(alone) + world_size
    assert [batch for batch in dealt if batch not in alone] == []
    assert len(EpochBatches(studies, 2, 0, 0, world_size)) == len(shares[0])


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch, batch_size=2):
        batches = EpochBatches(50, batch_size, seed)
        batches.epoch = epoch
        return [index for batch in batches for index, _ in batch]

    assert order(0, 1) == order(0, 1, batch_size=7) != order(0, 2) != order(1, 1)
    assert sorted(order(0, 1)) == list(range(50))


def test_the_sample_is_the_same_whatever_the_worker(root):
    runs = [[batch["drawn"] for batch in _data(root, num_workers=workers).train_dataloader()] for workers in (0, 2)]
    assert runs[0] == runs[1]
    loader = _data(root, seed=0).train_dataloader()
    first = next(iter(loader))
    assert first["drawn"] == [random.Random(f"0/0/{first['ids'][0]}").random()]
    assert [batch["drawn"] for batch in _data(root).val_dataloader()] == [[None]] * 3


def test_epochs_follow_each_other_without_lightning(root):
    loader = _data(root, micro_batch_size=4).train_dataloader()
    first, second = list(loader), list(loader)
    assert [b["ids"] for b in first] != [b["ids"] for b in second] and len(first) == len(second) == len(loader) == 2


def test_the_global_random_state_is_left_alone(root):
    data = _data(root)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_state_of_other_data_is_refused(root):
    loader = _data(root, micro_batch_size=2).train_dataloader()
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    smaller = _data(root, micro_batch_size=1).train_dataloader()
    smaller.load_state_dict(state)  # another micro batch that the place fits
    assert [b["ids"][0] for b in smaller] == [name for b in batches for name in b["ids"]]
    with pytest.raises(DataFault, match="7 training studies with seed 0, but now there are 5"):
        _data(root, limit=5).train_dataloader().load_state_dict(state)
    with pytest.raises(DataFault, match="2 studies into the epoch, which is no multiple of the 4"):
        _data(root, micro_batch_size=4).train_dataloader().load_state_dict(state)


def test_evaluation_is_in_order_and_reads_the_store(root, tmp_path):
    data = _data(root, eval_batch_size=2, store=str(tmp_path))
    with pytest.raises(DataFault, match="not in the store; prepare the data first"):
        next(iter(data.val_dataloader()))
    data.prepare_data()
    data.setup("validate")
    assert [batch["ids"] for batch in data.val_dataloader()] == [["valid_1_a_1", "valid_2_a_1"], ["valid_3_a_1"]]
    without = list(_data(root, eval_batch_size=2, store=None).test_dataloader())
    assert without == list(data.test_dataloader())


def test_can_be_sent_to_a_spawned_worker(root):
    data = _data(root)
    data.trainer = L.Trainer(logger=False, accelerator="cpu", barebones=True)
    copy = pickle.loads(pickle.dumps(data))
    assert copy.trainer is None and copy.studies("train")[0].id == "train_1_a_1"


def test_requirements_name_the_missing_folder(tmp_path):
    (what, met, how) = RadGenomeChestCT(str(tmp_path / "none")).requirements()[0]
    assert what == "data root" and not met and str(tmp_path / "none") in how
    assert RadGenomeChestCT(str(tmp_path), phantom=2).requirements() == []
    assert not RadGenomeChestCT(str(tmp_path)).is_phantom() and RadGenomeChestCT(str(tmp_path)).label_findings() is None
