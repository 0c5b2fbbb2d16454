"""RadGraph F1: entities and relations that a prediction shares with its reference.

Jain et al., "RadGraph: Extracting Clinical Entities and Relations from Radiology Reports", NeurIPS Datasets and
Benchmarks 2021; RadGraph-XL: Delbrouck et al., Findings of ACL 2024; the three rewards: Delbrouck et al., "Improving
the Factual Correctness of Radiology Report Generation with Semantic Rewards", Findings of EMNLP 2022.

The network is package `radgraph`'s (0.1.18), which needs two methods that tokenizers lost in transformers 5. Its
rewards are computed here, since two releases of that very version count differently (`case` of `reward`). Differs from
the package in: each distinct text goes through the network once, and nothing is fetched unless asked for.

Weights (StanfordAIMI/RRG_scorers on the hub): folder `radgraph/<model type>` with `config.json`, `weights.th` and
`vocabulary/` as in the released archive, or the archive itself in folder `radgraph`. The archive leaves out its
encoder's tokenizer and configuration: they come from folder `radgraph/<model type>/encoder` or the hub's cache.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import os
import shutil
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.study import DataFault
from zoo.metrics.pairs import MetricUnavailable, Pairs, Score, Tools
from zoo.metrics.weights import device_of, locate, sha256_of

Level = Literal["simple", "partial", "complete"]
ModelType = Literal["radgraph", "radgraph-xl"]
Case = Literal["kept", "lower"]
Annotation = dict[
    str, dict[str, Any]
]  # entity's id → "tokens", "label", "relations": [[kind, the other entity's id], …]

HUB = "StanfordAIMI/RRG_scorers"
ENCODER_FILES = ("config.json", "tokenizer_config.json", "vocab.txt")
UNPACKED = 4 << 30  # bytes at most that an archive may unpack to; the released ones hold half a gigabyte
AT_A_TIME = 16  # texts whose candidate spans are held at a time; the network takes one text after the other

_known: dict[tuple[str, ...], dict[str, Annotation]] = {}  # never on disk: an annotation quotes its text


def radgraph(pairs: Pairs, level: Level, model_type: ModelType = "radgraph-xl", case: Case = "kept") -> Score:
    """The reward of each study; 0 where either text is empty or has no entity.

    Raises:
        MetricUnavailable: The model's or its encoder's files are not at hand.
        DataFault: They do not fit together.
    """

    def make() -> dict[str, Annotation]:
        filled = [pair for pair in pairs.distinct if all(text.strip() for text in pair)]
        return annotate(list(dict.fromkeys(text for pair in filled for text in pair)), model_type, pairs.tools)

    annotations = pairs.once(("radgraph", model_type), make)
    rewards = [
        reward(annotations.get(prediction, {}), annotations.get(reference, {}), level, case)
        for reference, prediction in pairs.distinct
    ]
    return Score(np.array(rewards, dtype=np.float64)[pairs.index])


def reward(prediction: Annotation, reference: Annotation, level: Level, case: Case) -> float:
    """F1 of the two sets of facts; 0 where either is empty.

    Args:
        prediction: Entities of the prediction.
        reference: Entities of the reference.
        level: `simple`: what an entity is called and its label. `partial`: also whether it has relations. `complete`:
            each relation's kind and target in place of that.
        case: `kept`: tokens as written, as in radgraph 0.1.18 of PyPI, which lower-cases them in relations only.
            `lower`: all in lower case, as in its repository since July 2026.
    """
    ours, theirs = _facts(prediction, level, case), _facts(reference, level, case)
    return 2 * len(ours & theirs) / (len(ours) + len(theirs)) if ours and theirs else 0.0


def _facts(entities: Annotation, level: Level, case: Case) -> set[tuple[Any, ...]]:
    facts: set[tuple[Any, ...]] = set()
    for entity in entities.values():
        tokens = entity["tokens"].lower() if case == "lower" else entity["tokens"]
        fact = (tokens, entity["label"])
        if level == "simple" or not entity["relations"]:
            facts.add(fact)
        elif level == "partial":
            facts.add((*fact, True))
        else:
            facts |= {
                (tokens.lower(), entity["label"], kind, entities[target]["tokens"].lower())
                for kind, target in entity["relations"]
            }
    return facts


def annotate(texts: Sequence[str], model_type: ModelType, tools: Tools) -> dict[str, Annotation]:
    """Each text's entities; the network sees a text once in this process.

    Args:
        texts: Distinct texts, none of them empty.
        model_type: Which network.
        tools: Where its files are and where it runs.

    Raises:
        MetricUnavailable: The model's or its encoder's files are not at hand.
        DataFault: They do not fit together.
    """
    model = _find(model_type, tools)
    known = _known.setdefault(model.fingerprint, {})
    unknown = [text for text in texts if text not in known]
    if unknown:
        network = _load(model, device_of(tools))
        for start in range(0, len(unknown), AT_A_TIME):
            block = unknown[start : start + AT_A_TIME]
            known.update(zip(block, _read(network, block), strict=True))
    return {text: known[text] for text in texts}


@dataclass(frozen=True)
class _Model:
    """Where a model's files are: `source` is its folder or its archive, `encoder` the folder of its encoder's files."""

    type: ModelType
    source: Path
    config: dict[str, Any]
    encoder: Path

    @property
    def fingerprint(self) -> tuple[str, ...]:
        files = [self.source] if self.source.is_file() else [self.source / "weights.th", self.source / "config.json"]
        return (self.type, *(sha256_of(path) for path in (*files, *(self.encoder / name for name in ENCODER_FILES))))


def _find(model_type: ModelType, tools: Tools) -> _Model:
    """The model's files: a folder as unpacked, or else the archive; and its encoder's."""
    how_to = f"unpack {model_type}.tar.gz of {HUB} into the folder radgraph/{model_type} below $ZOO_WEIGHTS"
    vocabulary = ("non_padded_namespaces", f"{model_type}__ner_labels", f"{model_type}__relation_labels")
    names = ("config.json", "weights.th", *(f"vocabulary/{name}.txt" for name in vocabulary))
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "radgraph" / version("radgraph")
    try:
        files = locate(f"radgraph/{model_type}", names, tools, elsewhere=[caches / model_type], how_to=how_to)
        source = files["config.json"].parent
        if any(files[name] != source / name for name in names):
            raise MetricUnavailable(f"files of {model_type} lie in several folders", how_to)
    except MetricUnavailable as unpacked:
        archive = f"{model_type}.tar.gz"
        try:
            source = locate("radgraph", [archive], tools, hub={archive: (HUB, archive)}, how_to=how_to)[archive]
        except MetricUnavailable as packed:
            raise MetricUnavailable(unpacked.reason, how_to, [*unpacked.searched, *packed.searched]) from None
    config = _config(source)
    return _Model(model_type, source, config, _encoder(model_type, config, tools))


def _encoder(model_type: ModelType, config: dict[str, Any], tools: Tools) -> Path:
    """The folder of the tokenizer and configuration of the encoder that the model's configuration names."""
    name = config["model"]["embedder"]["token_embedders"]["bert"]["model_name"]
    how_to = f"put {name}'s {', '.join(ENCODER_FILES)} into the folder radgraph/{model_type}/encoder below $ZOO_WEIGHTS"
    own = [Path(name)] if Path(name).is_dir() else []  # a folder that its owner has written into config.json
    hub = {file: (name, file) for file in ENCODER_FILES}
    files = locate(f"radgraph/{model_type}/encoder", ENCODER_FILES, tools, elsewhere=own, hub=hub, how_to=how_to)
    if len({path.parent for path in files.values()}) > 1:
        raise MetricUnavailable(f"files of {name} lie in several folders", how_to)
    return files["config.json"].parent


def _config(source: Path) -> dict[str, Any]:
    try:
        if source.is_dir():
            config = json.loads((source / "config.json").read_text())
        else:
            with tarfile.open(source) as archive:
                member = next(member for member in archive if Path(member.name) == Path("config.json"))
                config = json.loads((archive.extractfile(member) or io.BytesIO()).read(1 << 20))
        for part in (config["dataset_reader"]["token_indexers"], config["model"]["embedder"]["token_embedders"]):
            part["bert"]["model_name"]
    except (OSError, ValueError, KeyError, TypeError, StopIteration, EOFError, tarfile.TarError) as error:
        raise DataFault(f"{source} holds no RadGraph model's config.json; fetch it anew") from error
    return config


def _load(model: _Model, device: str) -> Any:
    """The package's network on a copy of the model's folder whose configuration names the encoder's local folder."""
    import torch
    from transformers import AutoTokenizer

    package, cached_transformers = _import()
    tokenizer: Any = AutoTokenizer.from_pretrained(model.encoder, use_fast=True, local_files_only=True)
    tokenizer.encode_plus = tokenizer.__call__
    tokenizer.build_inputs_with_special_tokens = lambda ids: [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]
    original = cached_transformers.get_tokenizer
    with _working_copy(model) as folder, torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
        cached_transformers.get_tokenizer = lambda *_, **__: tokenizer
        try:
            network = package.RadGraph(cuda=-1, model_type=model.type, model_cache_dir=str(folder))
        except Exception as error:  # what a file's bytes can make a reader raise has no end
            raise DataFault(f"{model.source} does not fit package radgraph's network; fetch it anew") from error
        finally:
            cached_transformers.get_tokenizer = original
            cached_transformers._model_cache.clear()  # a second copy of the encoder, of random weights
    network.model.to(device)
    network.device = torch.device(device)
    return network.eval()


def _import() -> tuple[Any, Any]:
    """Package `radgraph` and its store of tokenizers, without its traces in this process's logging and warnings."""
    logger = logging.getLoggerClass()
    try:
        with warnings.catch_warnings():
            import radgraph
            from radgraph.allennlp.common import cached_transformers
    finally:
        logging.setLoggerClass(logger)
    return radgraph, cached_transformers


@contextlib.contextmanager
def _working_copy(model: _Model) -> Iterator[Path]:
    """A temporary folder with the folder `<model type>`; the package writes a lock into it, and reads `model_name`."""
    with tempfile.TemporaryDirectory(prefix="radgraph-") as temporary:
        folder = Path(temporary) / model.type
        if model.source.is_dir():
            shutil.copytree(model.source / "vocabulary", folder / "vocabulary")
            (folder / "weights.th").symlink_to((model.source / "weights.th").resolve())
        else:
            unpack(model.source, folder)
        config = json.loads(json.dumps(model.config))
        config["dataset_reader"]["token_indexers"]["bert"]["model_name"] = str(model.encoder)
        config["model"]["embedder"]["token_embedders"]["bert"]["model_name"] = str(model.encoder)
        (folder / "config.json").write_text(json.dumps(config))
        yield Path(temporary)


def unpack(source: Path, folder: Path) -> None:
    """Unpacks a model's archive into a new folder.

    Raises:
        DataFault: Something in it is neither file nor folder (a link, a device), or leads out of the folder (an
            absolute path, `..`), or it unpacks to more than `UNPACKED`; or it cannot be read.
    """
    room = UNPACKED
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                room -= member.size
                if room < 0:
                    raise DataFault(f"{source}: refused, it unpacks to more than {UNPACKED} bytes; fetch it anew")
                if not (member.isfile() or member.isdir()):
                    raise DataFault(f"{source}: refused, it holds a link or a device; fetch it anew")
                if member.name.startswith("/") or ".." in Path(member.name).parts:
                    raise DataFault(f"{source}: refused, it would write outside its own folder; fetch it anew")
                archive.extract(member, folder, filter="data")
    except (EOFError, tarfile.TarError, zlib.error, gzip.BadGzipFile) as error:
        raise DataFault(f"{source} cannot be unpacked ({type(error).__name__}); fetch it anew") from None


def _read(network: Any, texts: Sequence[str]) -> list[Annotation]:
    """Entities of each text, in order.

    Raises:
        DataFault: The package has left a text out.
    """
    import torch
    from radgraph.utils import preprocess_reports

    # The package drops what looks like an escaped line break, and stops at a text of nothing else.
    worded = [text for text in texts if preprocess_reports([text], network.model_type)[0]["sentences"][0]]
    # Its data loader takes a random number, and it warns of texts of one word.
    with torch.inference_mode(), torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        told = network(worded) if worded else {}
    left_out = [place for place in range(len(worded)) if str(place) not in told]
    if left_out:
        raise DataFault(f"package radgraph could not annotate {len(left_out)} of {len(worded)} texts")
    entities = {text: told[str(place)]["entities"] for place, text in enumerate(worded)}
    return [entities.get(text, {}) for text in texts]
