"""Labels of texts by an encoder with linear heads: what CheXbert and RadBERT-CT have in common.

Each distinct text is labelled once in a process (and once for all with `Tools.cache`). Batches hold texts of similar
length, since padding costs more than batching gains on a CPU; the order of the texts and of the labels is the caller's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.study import DataFault
from zoo.metrics.pairs import Tools
from zoo.metrics.weights import LabelCache, device_of, load_strict, locate, read_checkpoint, sha256_of

if TYPE_CHECKING:
    import torch

LONGEST = 512  # ids, with the two that enclose a text
BATCH = {"cpu": 8, "cuda": 64}
WORTH_A_BAR = 100  # texts; 20 s on one CPU thread


@dataclass(frozen=True, eq=False)
class EncoderLabeller:
    """A published labeller.

    Attributes:
        name: The folder of its files below a folder of weights; with `version`, the name of its cache.
        version: Raised when this code gives other labels from the same files.
        title: Its name in messages.
        labels: What it labels, in its heads' order.
        checkpoint: Its file of weights. A `config.json` beside it says which sizes the encoder has, if not the usual.
        vocabulary: The tokenizer's files.
        hub: File → repository and path on the hub.
        elsewhere: Folders that other packages fill.
        how_to: What to do where a file is missing.
        config: Settings of an encoder, or none for the published sizes → transformers' configuration.
        tokenizer: Paths of `vocabulary` → the tokenizer.
        network: Configuration → the network, its parameters named as in the checkpoint.
        state: What the checkpoint's file holds → its tensors, named as in the network.
        decide: Network, ids `(text, token)`, mask `(text, token)` → a code for each label, `(text, label)`, int.
    """

    name: str
    version: int
    title: str
    labels: tuple[str, ...]
    checkpoint: str
    vocabulary: tuple[str, ...]
    hub: Mapping[str, tuple[str, str]]
    elsewhere: Callable[[], Sequence[Path]]
    how_to: str
    config: Callable[..., Any]
    tokenizer: Callable[..., Any]
    network: Callable[[Any], torch.nn.Module]
    state: Callable[[dict[str, Any]], dict[str, Any]]
    decide: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]


def label(labeller: EncoderLabeller, texts: Sequence[str], tools: Tools) -> np.ndarray:
    """Codes of labels, `(text, label)`, int64.

    A text without a word gets 0 for every label, whatever the network would say of nothing.

    Raises:
        MetricUnavailable: A file of the labeller is missing.
        DataFault: A file of it is not what it should be.
    """
    files = (labeller.checkpoint, *labeller.vocabulary)
    found = locate(
        labeller.name, files, tools, elsewhere=labeller.elsewhere(), hub=labeller.hub, how_to=labeller.how_to
    )
    paths = tuple(found[name] for name in files)
    used = [*paths, *(path for path in [_config_file(paths[0])] if path.is_file())]
    fingerprint = hashlib.sha256("".join(sha256_of(path) for path in used).encode()).hexdigest()
    cleaned = [" ".join(text.split()) for text in texts]
    cache = LabelCache(f"{labeller.name}-v{labeller.version}", fingerprint, tools.cache)
    spoken = [text for text in cleaned if text]
    known = dict(zip(spoken, cache.labels(spoken, partial(_run, labeller, paths, fingerprint, tools)), strict=True))
    nothing = [0] * len(labeller.labels)
    rows = [known.get(text, nothing) for text in cleaned]
    return np.array(rows, dtype=np.int64).reshape(len(texts), len(labeller.labels))


def _config_file(checkpoint: Path) -> Path:
    return checkpoint.with_name("config.json")


def _run(
    labeller: EncoderLabeller, paths: tuple[Path, ...], fingerprint: str, tools: Tools, texts: list[str]
) -> list[list[int]]:
    import torch

    device = device_of(tools)
    network, tokenizer = _loaded(labeller, paths, fingerprint, device)
    ids = tokenizer(texts, truncation=True, max_length=LONGEST)["input_ids"]
    order = sorted(range(len(texts)), key=lambda place: -len(ids[place]))  # the longest first: memory runs out at once
    rows: list[list[int]] = [[]] * len(texts)
    size = BATCH["cuda" if device.startswith("cuda") else "cpu"]
    with torch.inference_mode():
        for places in _shown([order[start : start + size] for start in range(0, len(order), size)], labeller.title):
            batch = [torch.tensor(ids[place]) for place in places]
            padded = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=tokenizer.pad_token_id)
            lengths = torch.tensor([len(row) for row in batch])
            mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
            codes = labeller.decide(network, padded.to(device), mask.to(device)).tolist()
            for place, row in zip(places, codes, strict=True):
                rows[place] = row
    return rows


def _shown(batches: list[list[int]], title: str) -> Iterator[list[int]]:
    """The batches, with a bar below the engine's own where they take long."""
    from rich import get_console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    count = sum(len(batch) for batch in batches)
    console = get_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    disable = count < WORTH_A_BAR or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=disable) as bar:
        task = bar.add_task(f"{title} labels texts", total=count)
        for batch in batches:
            yield batch
            bar.advance(task, len(batch))


@lru_cache(maxsize=2)
def _loaded(labeller: EncoderLabeller, paths: tuple[Path, ...], fingerprint: str, device: str) -> tuple[Any, Any]:
    """Network and tokenizer; `fingerprint` is here so that changed files are read anew."""
    checkpoint, *vocabulary = paths
    settings = _settings(_config_file(checkpoint))
    config = labeller.config(**settings)
    try:
        tokenizer = labeller.tokenizer(*map(str, vocabulary))
    except Exception as error:  # the tokenizers' library raises bare exceptions
        raise DataFault(f"{vocabulary[0]} is no vocabulary that can be read ({error}); fetch it anew") from error
    if len(tokenizer) != config.vocab_size:
        raise DataFault(
            f"{vocabulary[0]} has {len(tokenizer)} tokens and {labeller.title} {config.vocab_size}; "
            "fetch the vocabulary of the encoder that it was trained from"
        )
    network = labeller.network(config)
    load_strict(network, labeller.state(read_checkpoint(checkpoint)), checkpoint)
    return network.eval().requires_grad_(False).to(device), tokenizer


def _settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise DataFault(f"{file} is no JSON ({error}); remove it to load the published sizes") from error
