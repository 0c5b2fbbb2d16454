"""BERTScore: how well the tokens of two texts match in a language model's space (Zhang et al., ICLR 2020).

Written anew over a local encoder, with bert-score 0.3.13 as its oracle: with transformers 5 that package gives the
first word of a text another id under RoBERTa, and an empty text stops it. Two things differ on purpose:

* A pair with an empty side scores 0, also where scores are rescaled; rescaling would make that a negative number.
* A token that is like none of the other text's (all similarities below 0) matches nothing and counts 0. bert-score does
  that only where the other text happens to be padded, so its scores depend on which texts share a batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from datamodules.study import DataFault
from zoo.metrics.pairs import MetricUnavailable, Pairs, Score, Tools
from zoo.metrics.weights import device_of, locate

if TYPE_CHECKING:
    import torch

MAX_TOKENS = 512  # of a text, with the two special tokens; what both encoders were trained with
BATCH = 32  # texts that are encoded, and pairs that are matched, at a time
COLUMNS = ("p", "r", "f1")


@dataclass(frozen=True)
class Encoder:
    """A language model and the layer whose output is matched.

    Attributes:
        folder: Its folder's name below a folder of weights.
        hub_id: Its name on the hub.
        num_layers: Layers that run; the last one's output is matched.
        baseline: What precision, recall and F1 are between unrelated sentences; scores are rescaled so that this is 0
            and 1 stays 1. `None`: not rescaled.
    """

    folder: str
    hub_id: str
    num_layers: int
    baseline: tuple[float, float, float] | None


# Layers: bert-score's choice for each model. Baseline: bert-score 0.3.13, rescale_baseline/en, layer 5.
DISTILBERT = Encoder("distilbert-base-uncased", "distilbert-base-uncased", 5, (0.6666034, 0.66660464, 0.66620487))
ROBERTA_LARGE = Encoder("roberta-large", "roberta-large", 17, None)


def bertscore(pairs: Pairs, encoder: Encoder, which: Literal["p", "r", "f1"]) -> Score:
    """Precision, recall or F1 of each study; no idf weights.

    Raises:
        MetricUnavailable: The encoder's files are not at hand.
        DataFault: They do not fit together.
    """
    scores = pairs.once(("bertscore", encoder), lambda: _pair_scores(pairs, encoder))
    return Score(scores[pairs.index, COLUMNS.index(which)])


def greedy(
    hyp_emb: torch.Tensor,
    ref_emb: torch.Tensor,
    hyp_mask: torch.Tensor,
    ref_mask: torch.Tensor,
    hyp_idf: torch.Tensor,
    ref_idf: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each token with its most similar token of the other text (section 3, equation 1 and importance weighting).

    Args:
        hyp_emb: `(pair, token, channel)` of predictions, of any length.
        ref_emb: The same of references; their number of tokens may be another.
        hyp_mask: `(pair, token)`, 0 where it is padding. Tokens of weight 0 stay candidates for a match.
        ref_mask: The same of references.
        hyp_idf: `(pair, token)`, each token's weight; 0 for special tokens and padding.
        ref_idf: The same of references.

    Returns:
        Precision, recall and F1, `(pair,)` each; 0 where all weights of a side are 0.
    """
    import torch
    from torch.nn.functional import normalize

    similarity = normalize(hyp_emb, dim=-1) @ normalize(ref_emb, dim=-1).transpose(1, 2)  # (pair, hyp token, ref token)
    real = hyp_mask.bool().unsqueeze(2) & ref_mask.bool().unsqueeze(1)
    similarity = similarity.masked_fill(~real, 0).clamp_min(0)
    hyp_weight, ref_weight = hyp_idf.sum(1), ref_idf.sum(1)
    both = (hyp_weight > 0) & (ref_weight > 0)
    zero = similarity.new_zeros(())
    precision = torch.where(both, (similarity.amax(2) * hyp_idf).sum(1) / hyp_weight, zero)
    recall = torch.where(both, (similarity.amax(1) * ref_idf).sum(1) / ref_weight, zero)
    total = precision + recall
    return precision, recall, torch.where(total != 0, 2 * precision * recall / total, zero)


def _pair_scores(pairs: Pairs, encoder: Encoder) -> np.ndarray:
    """Precision, recall and F1 of each distinct pair, `(distinct pair, 3)`."""
    files = _files(encoder, pairs.tools)
    import torch

    device = device_of(pairs.tools)
    tokeniser, network = _load(files, encoder.num_layers, device)
    special = {tokeniser.cls_token_id, tokeniser.sep_token_id}
    ids = {text: tokeniser(text.strip(), truncation=True, max_length=MAX_TOKENS)["input_ids"] for text in pairs.texts}
    weights = {text: torch.tensor([float(token not in special) for token in tokens]) for text, tokens in ids.items()}
    texts = [pair for pair in pairs.distinct if all(weights[text].any() for text in pair)]

    scores = dict.fromkeys(pairs.distinct, (0.0, 0.0, 0.0))
    baseline = torch.tensor(encoder.baseline or (0.0, 0.0, 0.0), dtype=torch.float64)
    with torch.inference_mode():
        for block, embeddings in _embedded(texts, ids, network, tokeniser.pad_token_id, device):
            sides = [[pair[side] for pair in block] for side in (1, 0)]
            hyp_emb, ref_emb = (_padded([embeddings[text] for text in side]) for side in sides)
            hyp_idf, ref_idf = (_padded([weights[text] for text in side]).to(device) for side in sides)
            hyp_mask, ref_mask = (_padded([torch.ones(len(ids[text])) for text in side]).to(device) for side in sides)
            raw = torch.stack(greedy(hyp_emb, ref_emb, hyp_mask, ref_mask, hyp_idf, ref_idf), dim=1).cpu().double()
            scores.update(zip(block, ((raw - baseline) / (1 - baseline)).tolist(), strict=True))
    return np.array(list(scores.values()), dtype=np.float64).reshape(-1, 3)


def _embedded(
    texts: Sequence[tuple[str, str]], ids: dict[str, list[int]], network: Any, padding: int, device: str
) -> Iterator[tuple[list[tuple[str, str]], dict[str, torch.Tensor]]]:
    """Blocks of pairs of like length with their texts' embeddings, `(token, channel)`.

    Every text is encoded once, and its embedding is dropped after the last pair that needs it: those of a whole test
    set need not fit in memory.
    """
    import torch

    left = Counter(text for pair in texts for text in pair)
    known: dict[str, torch.Tensor] = {}
    ordered = sorted(texts, key=lambda pair: max(len(ids[text]) for text in pair))
    for start in range(0, len(ordered), BATCH):
        block = ordered[start : start + BATCH]
        unknown = {text: None for pair in block for text in pair if text not in known}
        by_length = sorted(unknown, key=lambda text: len(ids[text]))
        for first in range(0, len(by_length), BATCH):
            batch = by_length[first : first + BATCH]
            tokens = [torch.tensor(ids[text]) for text in batch]
            mask = _padded([torch.ones_like(row) for row in tokens]).to(device)
            states = network(_padded(tokens, padding).to(device), attention_mask=mask).last_hidden_state
            known.update((text, state[: len(ids[text])].clone()) for text, state in zip(batch, states, strict=True))
        yield block, known
        for text in (text for pair in block for text in pair):
            left[text] -= 1
            if not left[text]:
                known.pop(text)


def _padded(rows: Sequence[torch.Tensor], value: float = 0) -> torch.Tensor:
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence(list(rows), batch_first=True, padding_value=value)


def _files(encoder: Encoder, tools: Tools) -> dict[str, Path]:
    """The encoder's files, all of one folder; weights in either format, and from the hub only if in neither."""
    how_to = (
        f"put config.json, tokenizer.json and model.safetensors (or pytorch_model.bin) of {encoder.hub_id} "
        f"into the folder {encoder.folder} below $ZOO_WEIGHTS"
    )
    offline = replace(tools, online=False)
    for where, weights in (
        (offline, "model.safetensors"),
        (offline, "pytorch_model.bin"),
        (tools, "model.safetensors"),
    ):
        names = ("config.json", "tokenizer.json", weights)
        try:
            files = locate(
                encoder.folder, names, where, hub={name: (encoder.hub_id, name) for name in names}, how_to=how_to
            )
        except MetricUnavailable as error:
            missing = error
            continue
        if len({path.parent for path in files.values()}) > 1:
            raise MetricUnavailable(f"files of {encoder.folder} lie in several folders", how_to)
        return {**files, "weights": files[weights]}
    raise missing


def _load(files: dict[str, Path], num_layers: int, device: str) -> tuple[Any, Any]:
    """The tokeniser, and the network's first `num_layers` layers.

    Raises:
        DataFault: The weights lack a part of them, or the network has fewer layers.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    folder = files["config.json"].parent
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if num_layers > config.num_hidden_layers:
        raise DataFault(f"{folder}: {config.num_hidden_layers} layers, but layer {num_layers} is to be matched")
    config.num_hidden_layers = num_layers
    # A space before the first word gives it the id that it has within a sentence.
    extra = {"add_prefix_space": True} if config.model_type == "roberta" else {}
    tokeniser = AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True, **extra)
    weights = files["weights"]
    with _quiet(), torch.random.fork_rng(devices=[]):  # the unused pooler takes random numbers
        try:
            network, loaded = AutoModel.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                use_safetensors=weights.suffix == ".safetensors",
                dtype=torch.float32,
                output_loading_info=True,
            )
        except Exception as error:  # what a file's bytes can make a reader raise has no end
            raise DataFault(f"{weights} is no checkpoint of {files['config.json']}; fetch both anew") from error
    missing = [key for key in loaded["missing_keys"] if not key.startswith("pooler.")]
    if missing:
        raise DataFault(f"{weights} lacks {len(missing)} weights of its network, {sorted(missing)[0]} among them")
    return tokeniser, network.eval().to(device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bar and the list of unused weights: layers above the matched one are left out on purpose."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
