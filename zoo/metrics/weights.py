"""Where the weights of clinical metrics are found, how they are loaded, and how labels of texts are kept.

Nothing here makes up for missing weights: a file that is nowhere is a `MetricUnavailable`, and a file that does not fit
its network exactly is an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.study import DataFault
from zoo.command import EnvironmentFault
from zoo.metrics.pairs import MetricUnavailable, Tools

if TYPE_CHECKING:
    import torch

VARIABLE = "ZOO_WEIGHTS"  # names a folder with one folder for each metric's weights
NAMED = 5  # keys that an error message lists


def locate(
    folder: str,
    names: Sequence[str],
    tools: Tools,
    *,
    elsewhere: Sequence[Path] = (),
    hub: Mapping[str, tuple[str, str]] | None = None,
    how_to: str,
) -> dict[str, Path]:
    """Finds a metric's files without importing anything heavy.

    Looks in `tools.weights`/`folder`, `$ZOO_WEIGHTS`/`folder`, each of `elsewhere`, the local hub cache, and, only with
    `tools.online`, the hub. What is found is noted in `tools.used`.

    Args:
        folder: The metric's folder name below a folder of weights.
        names: The files that it needs.
        tools: Where to look.
        elsewhere: Folders that other packages fill.
        hub: File name → the repository that has it (`owner/name`, `datasets/owner/name`) and its path there.
        how_to: What to do where a file is missing.

    Returns:
        Name → file.

    Raises:
        MetricUnavailable: A file is missing everywhere.
    """
    roots = [tools.weights, Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None]
    places = [root.expanduser() / folder for root in roots if root is not None] + list(elsewhere)
    found: dict[str, Path] = {}
    searched: list[str] = []
    for name in names:
        candidates = [place / name for place in places]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        tried = [_shown(candidate) for candidate in candidates]
        if path is None and hub and name in hub:
            path, asked = _from_hub(*hub[name], online=tools.online)
            tried += asked
        if path is None:
            searched += tried
        else:
            found[name] = path
    missing = [name for name in names if name not in found]
    if missing:
        nowhere = "" if searched else f"; nowhere to look, as ${VARIABLE} is not set"
        raise MetricUnavailable(f"{' and '.join(missing)} not found{nowhere}", how_to, searched)
    tools.used.update({f"{folder}/{name}": path for name, path in found.items()})
    return found


def _from_hub(repository: str, file: str, online: bool) -> tuple[Path | None, list[str]]:
    """The file in the local hub cache, or from the hub if that may be asked; and where it was looked for."""
    from huggingface_hub import constants, try_to_load_from_cache

    name, kind = repository.removeprefix("datasets/"), "dataset" if repository.startswith("datasets/") else "model"
    cached = try_to_load_from_cache(name, file, repo_type=kind)
    if isinstance(cached, str):
        return Path(cached), []
    tried = [f"{_shown(Path(constants.HF_HUB_CACHE))}: {repository}, {file}"]
    if not online:
        return None, [*tried, f"https://huggingface.co/{repository}: not asked, as going online was not allowed"]
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file, repo_type=kind)), []
    except OSError as error:  # the hub's own errors are OSErrors too
        return None, [*tried, f"https://huggingface.co/{repository}: {type(error).__name__} for {file}"]


def _shown(path: Path) -> str:
    """The path as it is published with a run: without the user's name where it lies below the home folder."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a `.safetensors` file or a file of `torch.save` holds, on the CPU; code in it is never run.

    Raises:
        DataFault: The file is no such thing, or loading it would run code.
    """
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Mapped, so that an optimizer's state beside the weights is not read; torch's old format cannot be.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # what a file's bytes can make a reader raise has no end
        raise DataFault(
            f"{path} is no checkpoint that can be read without running code ({type(error).__name__}); fetch it anew"
        ) from error
    if not isinstance(content, dict):
        raise DataFault(f"{path} holds a {type(content).__name__}, no weights; fetch it anew")
    return content


def load_strict(module: torch.nn.Module, state: Mapping[str, Any], source: Path | str = "the weights") -> None:
    """Loads weights that fit exactly.

    Raises:
        DataFault: A key is missing, unexpected, no tensor, of another shape or not finite; the message names such keys.
    """
    import torch

    expected = module.state_dict()
    faults = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "no tensor": [key for key in expected if key in state and not isinstance(state[key], torch.Tensor)],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
            for key, tensor in expected.items()
            if isinstance(state.get(key), torch.Tensor) and state[key].shape != tensor.shape
        ],
    }
    if not any(faults.values()):
        weights = {name for name, _ in module.named_parameters()}
        faults["not finite"] = [key for key in expected if key in weights and not state[key].isfinite().all()]
    told = [f"{len(keys)} {fault}: {_some(keys)}" for fault, keys in faults.items() if keys]
    if told:
        raise DataFault(f"{source} does not fit its network; {'; '.join(told)}")
    module.load_state_dict(dict(state), strict=True)


def _some(keys: Iterable[Any]) -> str:
    named = [str(key) for key in keys]
    return ", ".join(named[:NAMED]) + (", …" if len(named) > NAMED else "")


def sha256_of(path: Path) -> str:
    """The file's SHA-256, read once as long as the file stays as it is."""
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def device_of(tools: Tools) -> str:
    """The device that `tools.device` means: `auto` is a GPU where there is one."""
    if tools.device != "auto":
        return tools.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class LabelCache:
    """What a labeller says of texts: kept for the whole process, and on disk where a folder is given.

    On disk it is `<folder>/labels/<name>-<fingerprint>.json`, SHA-256 of the text → labels. No text is in it.

    Args:
        name: The labeller's name, with whatever of it changes labels and is in no file.
        fingerprint: Of the labeller's files.
        folder: `Tools.cache`.
    """

    _memory: dict[tuple[str, str], dict[str, Any]] = {}

    def __init__(self, name: str, fingerprint: str, folder: Path | None = None) -> None:
        self._known = self._memory.setdefault((name, fingerprint), {})
        self._file = None if folder is None else folder / "labels" / f"{name}-{fingerprint[:16]}.json"

    def labels(self, texts: Sequence[str], label: Callable[[list[str]], Sequence[Any]]) -> list[Any]:
        """Labels of each text, in order.

        Args:
            texts: Any texts; each distinct one is labelled once.
            label: Labels of distinct texts (what JSON can hold, and no text). Not called where all are known.
        """
        keys = {text: hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in texts}
        if any(key not in self._known for key in keys.values()):
            self._known.update(self._read())
        unknown = [text for text, key in keys.items() if key not in self._known]
        if unknown:
            self._known.update(zip((keys[text] for text in unknown), label(unknown), strict=True))
            self._write()
        return [self._known[keys[text]] for text in texts]

    def _read(self) -> dict[str, Any]:
        if self._file is None or not self._file.is_file():
            return {}
        try:
            content = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}  # written over below: a cache that cannot be read is no cache
        return content if isinstance(content, dict) else {}

    def _write(self) -> None:
        if self._file is None:
            return
        from zoo.run_directory import atomic_write

        try:
            atomic_write(self._file, json.dumps(self._read() | self._known))  # another process may have written
        except EnvironmentFault as error:
            warnings.warn(f"labels are not kept: {error}", stacklevel=3)  # the labels themselves are there
