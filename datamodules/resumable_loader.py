"""A training loader that can stop in the middle of an epoch and go on with exactly the next batch.

Lightning 2.6 saves `state_dict()` of any loader that has one and gives it back through `load_state_dict()` before it
asks for the iterator (`loops/fit_loop.py`, `utilities/combined_loader.py`). The loader is deliberately no subclass of
`DataLoader`, so that Lightning cannot put a sampler of its own into it.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.study import DataFault


class EpochBatches:
    """Batches of `(index, epoch)` pairs; the order is a function of `(seed, epoch)` alone.

    Every rank is dealt its batches of one common permutation, so that a step's batches hold the same studies whether
    several ranks make them side by side or one makes them one after the other.

    Attributes:
        epoch: The epoch whose batches come next.
        start: How many of this rank's batches of that epoch are already done.
    """

    def __init__(self, studies: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.studies, self.batch_size, self.seed = studies, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return -(-self.studies // self.batch_size // self.world_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, epoch = list(range(self.studies)), self.epoch
        random.Random(f"{self.seed}/{epoch}").shuffle(order)
        for batch in deal(order, self.batch_size, self.rank, self.world_size)[self.start :]:
            yield [(index, epoch) for index in batch]


def deal(order: list[int], batch_size: int, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    """This rank's batches of `order`: cut as for one rank, dealt in turn, as many as every other rank's.

    Where they do not come out even, the last ranks begin again with the first batches.
    """
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    rounds = -(-len(batches) // world_size)
    return [batches[number % len(batches)] for number in range(rank, rounds * world_size, world_size)]


def outlive_sigterm(worker: int) -> None:
    """Lets a loader's process live on for a minute: SLURM sends SIGTERM to every process of a job that it takes back,
    and the main one finishes its step and saves, for which it needs the next batches.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(60))


class ResumableLoader:
    """Batches of a dataset whose items are asked for as `(index, epoch)`.

    Args:
        dataset: Answers `dataset[(index, epoch)]`, the same whatever the worker.
        batch_size: Studies in a batch of one rank.
        seed: Decides the order, together with the epoch.
        collate: Makes the batch.
        num_workers: Processes that read ahead; the order does not depend on it.
        rank: This process among `world_size`.
        world_size: How many processes share the epoch.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        collate: Callable[[list[dict]], dict],
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        studies = len(dataset)  # type: ignore[arg-type]  # torch's Dataset declares no length
        self.dataset = dataset
        self.batch_sampler = EpochBatches(studies, batch_size, seed, rank, world_size)
        self._loader: DataLoader = DataLoader(
            dataset,
            batch_sampler=self.batch_sampler,
            collate_fn=collate,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else each iterator draws from the global one, and resuming shifts it
            worker_init_fn=outlive_sigterm,
        )
        self._epoch = self._done = self._begin = 0

    @property
    def sampler(self) -> ResumableLoader:
        """Where Lightning looks for `set_epoch`."""
        return self

    @property
    def _iterator(self) -> Any:
        """Where Lightning looks for workers to stop when a fit ends; they would live on otherwise."""
        return self._loader._iterator

    @_iterator.setter
    def _iterator(self, iterator: Any) -> None:
        self._loader._iterator = iterator

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch; a new epoch begins at its first batch."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._done = self._begin = 0

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[dict]:
        # Lightning may ask for the iterator before it tells the epoch, so nothing is decided until the first `next`.
        if self._begin >= len(self):
            self.set_epoch(self._epoch + 1)
        self._done, self._begin = self._begin, 0
        self.batch_sampler.epoch, self.batch_sampler.start = self._epoch, self._done
        for batch in self._loader:
            self._done += 1
            yield batch
        self.set_epoch(self._epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """Which epoch, and how many of its studies all ranks together have been given."""
        given = self._done * self.batch_sampler.batch_size * self.batch_sampler.world_size
        return {
            "epoch": self._epoch,
            "given": given,
            "studies": self.batch_sampler.studies,
            "seed": self.batch_sampler.seed,
            "complete": self._done >= len(self),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken; the number of processes and the batch size may have changed.

        Raises:
            DataFault: The state is of other data or another seed, or the new batches do not begin where the old ended.
        """
        batches = self.batch_sampler
        if (state["studies"], state["seed"]) != (batches.studies, batches.seed):
            raise DataFault(
                f"the checkpoint was made on {state['studies']} training studies with seed {state['seed']}, but now "
                f"there are {batches.studies} with seed {batches.seed}: restore the data, or begin a new run"
            )
        step = batches.batch_size * batches.world_size
        if not state["complete"] and state["given"] % step:
            raise DataFault(
                f"the checkpoint lies {state['given']} studies into the epoch, which is no multiple of the {step} that "
                "a step now takes: resume with the processes and micro batch of the interrupted run"
            )
        self._epoch = state["epoch"]
        self._done = self._begin = len(self) if state["complete"] else state["given"] // step
