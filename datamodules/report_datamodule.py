"""What every dataset of the zoo is: studies in, batches out, whatever the method."""

from __future__ import annotations

import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import lightning as L
import numpy as np
import torch.distributed
from torch.utils.data import DataLoader, Dataset

from datamodules.faults import Fault, complain, write_faults
from datamodules.resumable_loader import ResumableLoader, deal, outlive_sigterm
from datamodules.store import Store
from datamodules.study import DataFault, SettingsFault, Study
from datamodules.turns import in_turn

PHANTOM_MARKER = "PHANTOM.json"


class Preprocessor(Protocol):
    """What a method does with a study before its network: small, picklable, given to the DataModule by the command."""

    def settings(self) -> dict[str, Any]:
        """Plain JSON: all that `arrays` depends on besides the study. It names the store."""

    def arrays(self, study: Study) -> dict[str, np.ndarray]:
        """Pixels → exactly what the model reads. Heavy, deterministic, stored."""

    def __call__(self, study: Study, arrays: Mapping[str, np.ndarray], rng: random.Random | None) -> dict:
        """One sample. Light. `rng` is given in training, `None` in evaluation."""

    def collate(self, samples: list[dict]) -> dict:
        """The batch; it always holds `batch["ids"]`, a list of study ids."""


class _Samples(Dataset):
    """Samples by index (evaluation) or by `(index, epoch)` (training), read in the loader's workers."""

    def __init__(self, data: ReportDataModule, studies: Sequence[Study], preprocessor: Preprocessor) -> None:
        self.data, self.studies, self.preprocessor = data, studies, preprocessor

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        index, epoch = key if isinstance(key, tuple) else (key, None)
        study = self.studies[index]
        store = self.data.open_store()
        arrays = self.preprocessor.arrays(self.data.read(study)) if store is None else store.load(study)
        rng = None if epoch is None else random.Random(f"{self.data.seed}/{epoch}/{study.id}")
        return self.preprocessor(study, arrays, rng)


class ReportDataModule(L.LightningDataModule, ABC):
    """A dataset. A subclass gives `list_studies`, `inspect`, `draw_phantom` and `study_from_files`.

    Faults: with `on_error="raise"` any fault ends the command, all of them named at once. With `"skip"` a study that
    cannot be used is left out of training, a region whose mask is missing or empty is left out of its study, and every
    one of them is written to `skipped.jsonl` in the store's folder. An evaluation drops no study in either case: one
    that lacks some masks is evaluated with the regions that it has, one that cannot be read is an error.

    Args:
        root: The dataset's folder.
        global_batch_size: Studies in one optimiser step over all devices; the command derives the accumulation.
        micro_batch_size: Studies in one forward pass of one device in training.
        eval_batch_size: Studies in one forward pass of one device in evaluation.
        num_workers: Processes that read samples ahead, and that build the store.
        store: `auto` keeps ready arrays below `<root>/.store`, a folder keeps them there, `None` makes them each time.
        on_error: What to do about faults in the data, see above.
        phantom: Draw this many training patients (and a quarter of that for validation, at least 4) into `root` first.
        limit: Use only the first so many studies of each split.
        seed: Decides the order of training, what the preprocessor shuffles, and whatever else a dataset draws.
        phantom_seed: Decides which patients the phantom draws.

    Attributes:
        preprocessor: The method's; the command sets it before `fit`.
        faults: What was found wrong and passed over (`on_error="skip"`), by split.
    """

    modality: ClassVar[str]
    regions: ClassVar[tuple[str, ...]]
    splits: ClassVar[tuple[str, ...]] = ("train", "validation")
    published_counts: ClassVar[Mapping[str, int]] = {}  # what its makers or its papers count → how many

    def __init__(
        self,
        root: str,
        global_batch_size: int = 16,
        micro_batch_size: int = 1,
        eval_batch_size: int = 1,
        num_workers: int = 0,
        store: str | None = "auto",
        on_error: Literal["raise", "skip"] = "raise",
        phantom: int | None = None,
        limit: int | None = None,
        seed: int = 0,
        phantom_seed: int = 0,
    ) -> None:
        super().__init__()
        if on_error == "skip" and store is None:
            raise SettingsFault("data.on_error=skip needs a store, which finds the faults first: set data.store=auto")
        self.root = Path(root)
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.eval_batch_size, self.num_workers = eval_batch_size, num_workers
        self.store, self.on_error, self.limit, self.seed = store, on_error, limit, seed
        self.phantom, self.phantom_seed = phantom, phantom_seed
        self.preprocessor: Preprocessor | None = None
        self.faults: dict[str, list[Fault]] = {}
        self._studies: dict[str, list[Study]] = {}

    # What a dataset gives.

    @abstractmethod
    def list_studies(self, split: str) -> tuple[list[Study], list[Fault]]:
        """Studies of one of `splits` without pixels, in stable order, and what is wrong without opening them.

        At most the first `self.limit` are listed.
        """

    @abstractmethod
    def inspect(self, study: Study) -> tuple[Study, list[Fault]]:
        """The study with its pixels and masks, and everything that is wrong with its files."""

    @abstractmethod
    def draw_phantom(self, train: int, validation: int) -> None:
        """Writes phantom patients into `root` in the dataset's real layout, with the marker file `PHANTOM.json`.

        Goes on with a phantom that was cut short, and refuses a folder that holds anything else.
        """

    # Studies.

    def studies(self, split: str) -> list[Study]:
        """Studies without pixels, in stable order. `test` is `validation` where the dataset has only two splits.

        Raises:
            DataFault: Something is wrong that `on_error` does not pass over.
        """
        if split == "test" and "test" not in self.splits:
            split = "validation"
        if split not in self.splits:
            raise ValueError(f"no split {split!r}: choose train, validation or test")
        if split not in self._studies:
            if not self.root.is_dir():
                raise DataFault(f"{self.root}: no such folder; set data.root to the dataset's folder")
            studies, faults = self.list_studies(split)
            self._studies[split] = self._judge(split, studies, faults)
            if not self._studies[split]:
                raise DataFault(f"{self.root}: no study in the {split} split")
        return self._studies[split]

    def read(self, study: Study) -> Study:
        """The study with its pixels and masks.

        Raises:
            DataFault: Something is wrong with its files that `on_error` does not pass over.
        """
        full, faults = self.inspect(study)
        faults = [fault for fault in faults if fault.fatal or self.on_error == "raise"]
        if faults:
            raise complain(faults, _HINT if self.on_error == "raise" else "")
        return full

    @property
    def skipped(self) -> dict[str, list[str]]:
        """Id → reasons, of the studies that training goes without."""
        reasons: dict[str, list[str]] = {}
        for fault in (fault for faults in self.faults.values() for fault in faults if fault.fatal):
            reasons.setdefault(fault.study_id, []).append(fault.what)
        return reasons

    def _judge(self, split: str, studies: list[Study], faults: list[Fault]) -> list[Study]:
        """The studies that remain; raises what may not be passed over."""
        if faults and self.on_error == "raise":
            raise complain(faults, _HINT)
        lost = [fault for fault in faults if fault.fatal and fault.reference]
        if lost and split != "train":
            raise complain(lost, "an evaluation leaves no study out: repair these, or take them out of the report file")
        known = self.faults.setdefault(split, [])
        known += [fault for fault in faults if fault not in known]
        dropped = {fault.study_id for fault in faults if fault.fatal}
        return [study for study in studies if study.id not in dropped]

    # Phantom and store.

    def is_phantom(self) -> bool:
        """Whether `root` holds the project's own patients."""
        return (self.root / PHANTOM_MARKER).is_file()

    def label_findings(self) -> Callable[[str], frozenset[str]] | None:
        """What reads the findings out of a report, where the dataset brings such a thing: only the phantom does."""
        if not (self.is_phantom() or self.phantom):
            return None
        from datamodules.phantom.wording import findings_in

        return findings_in

    def group_of(self, study: Study) -> str | None:
        """The group of studies whose figures are given apart beside those of all; `None`: of no group."""
        return None

    def examination_of(self, study: Study) -> str:
        """The examination that a study is a part of: itself, unless a dataset's studies are parts of examinations."""
        return study.id

    def patient_of(self, study: Study) -> str | None:
        """The patient whose study it is, where the dataset tells: studies of one patient resemble each other."""
        return None

    def prepare_data(self) -> None:
        """Draws the phantom and builds the store, each with a progress bar, each only as far as it is not there yet.

        Lightning calls it once on each machine. Where they share the folder, the first does it while the others wait.
        """
        if self.phantom:
            with in_turn(self.root):
                self.draw_phantom(self.phantom, max(4, self.phantom // 4))  # does nothing where it is there already
        store = self.open_store()
        if store is None or self.preprocessor is None:
            return
        split_of: dict[str, str] = {}
        everything: list[Fault] = []
        for split in self.splits:
            studies = self.studies(split)
            split_of |= {study.id: split for study in studies}
            with in_turn(store.folder):
                found = store.build(studies, self.preprocessor, self.inspect, self.num_workers, f"preparing {split}")
            self._studies[split] = self._judge(split, studies, found)
            split_of |= {fault.study_id: split for fault in self.faults[split]}
            everything += self.faults[split]
        if self.on_error == "skip":
            write_faults(store.folder / "skipped.jsonl", split_of, everything)
        if everything:
            lost = f"{len(everything)} faults passed over, {len(self.skipped)} studies left out of training"
            print(f"{lost}: see {store.folder / 'skipped.jsonl'}")

    def setup(self, stage: str | None = None) -> None:
        """Lists the studies; those that `prepare_data` had to leave out stay out on every process."""
        store = self.open_store()
        if store is not None and self.on_error == "skip":
            self._studies["train"] = [study for study in self.studies("train") if store.holds(study)]

    def open_store(self) -> Store | None:
        """The store of the present preprocessor, or `None` where none is wanted."""
        if self.store is None or self.preprocessor is None:
            return None
        folder = self.root / ".store" if self.store == "auto" else Path(self.store)
        return Store(folder, self.preprocessor.settings())

    # Loaders.

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled by `(seed, epoch)`, resumable in mid-epoch."""
        rank, world_size = self._place()
        samples = self._samples("train")
        return ResumableLoader(
            samples,
            self.micro_batch_size,
            self.seed,
            samples.preprocessor.collate,
            self.num_workers,
            rank,
            world_size,
        )

    def val_dataloader(self) -> DataLoader:
        """Stable order; over several processes the batches that one would make, dealt in turn, as many to each."""
        return self.evaluation_dataloader("validation")

    def test_dataloader(self) -> DataLoader:
        """As `val_dataloader`."""
        return self.evaluation_dataloader("test")

    def evaluation_dataloader(self, split: str) -> DataLoader:
        """Any split as it is evaluated: in stable order, with nothing random in its samples."""
        rank, world_size = self._place()
        samples = self._samples(split)
        return DataLoader(
            samples,
            batch_sampler=deal(list(range(len(samples))), self.eval_batch_size, rank, world_size),
            collate_fn=samples.preprocessor.collate,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # validating must not move the global generator that training draws from
            worker_init_fn=outlive_sigterm,
        )

    def is_repeated(self, split: str, batch_idx: int) -> bool:
        """Whether this process was dealt a batch of an evaluation that another process was dealt before."""
        rank, world_size = self._place()
        return batch_idx * world_size + rank >= -(-len(self.studies(split)) // self.eval_batch_size)

    def _samples(self, split: str) -> _Samples:
        if self.preprocessor is None:
            raise ValueError("set data.preprocessor = model.preprocessor() before asking for batches")
        return _Samples(self, self.studies(split), self.preprocessor)

    def _place(self) -> tuple[int, int]:
        """This process's rank, and how many there are."""
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "trainer": None}  # workers that are spawned need the data, not the trainer

    # What is said about the data.

    def fingerprint(self) -> str:
        """sha256 over ids, report texts, and the names and sizes of the files, of all splits."""
        digest = hashlib.sha256()
        for split in self.splits:
            for study in self.studies(split):
                present = {name: file for name, file in sorted(study.files.items()) if file.is_file()}
                files = [(name, file.name, file.stat().st_size) for name, file in present.items()]
                row = [split, study.id, study.report, dict(study.regions or {}), files]
                digest.update(json.dumps(row, ensure_ascii=False, sort_keys=True).encode())
        return digest.hexdigest()

    def counts(self) -> Mapping[str, int]:
        """What `published_counts` names, counted in the dataset's own tables, whatever the settings use of them."""
        return {}

    def patients(self) -> Mapping[str, frozenset[str]]:
        """Split → its patients by the dataset's tables, those of unused studies too; empty where they do not tell."""
        return {}

    def requirements(self) -> list[tuple[str, bool, str]]:
        """What a user must bring: `(what, whether it is there, how to get it)`."""
        if self.phantom:
            return []
        return [("data root", self.root.is_dir(), f"set data.root to the dataset's folder (now {self.root})")]


_HINT = "repair these, or set data.on_error=skip to go on without them"
