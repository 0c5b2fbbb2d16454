"""CheXbert: fourteen findings of chest radiograph reports (Smit et al., EMNLP 2020), the usual clinical labeller.

Weights: `chexbert.pth` of https://github.com/stanfordmlgroup/CheXbert (Stanford's academic licence), as `f1chexbert`
0.0.2 fetches it; that package cannot run with today's transformers and scikit-learn, and takes any file without a word.
Differs from it in: weights must fit exactly, texts go through in batches, each distinct one once, and an empty text has
no label at all, not even No Finding.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from datamodules.study import DataFault
from zoo.metrics.encoder_labeller import EncoderLabeller
from zoo.metrics.encoder_labeller import label as label_texts
from zoo.metrics.labels import Scored, by_study, label_metrics
from zoo.metrics.pairs import Pairs, Tools

if TYPE_CHECKING:
    import torch

BLANK, POSITIVE, NEGATIVE, UNCERTAIN = range(4)  # the classes of its heads
LABELS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)
FIVE = (1, 4, 5, 7, 9)  # the competition labels of CheXpert (Irvin et al., AAAI 2019), as `f1chexbert` takes them
Uncertain = Literal["positive", "negative"]


def _package_caches() -> list[Path]:
    return [Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chexbert"]


def _config(**settings: Any) -> Any:
    from transformers import BertConfig

    return BertConfig(**settings)


def _tokenizer(vocabulary: str) -> Any:
    from transformers import BertTokenizer

    return BertTokenizer(vocab=vocabulary)


def _network(config: Any) -> torch.nn.Module:
    """BERT, and a linear head on its [CLS] for each label: four classes, but blank or positive for No Finding."""
    from torch.nn import Linear, ModuleDict, ModuleList
    from transformers import BertModel

    heads = [Linear(config.hidden_size, 4) for _ in LABELS[:-1]]
    return ModuleDict({"bert": BertModel(config), "linear_heads": ModuleList([*heads, Linear(config.hidden_size, 2)])})


def _state(content: dict[str, Any]) -> dict[str, Any]:
    state = content.get("model_state_dict")
    if not isinstance(state, dict):
        held = ", ".join(map(str, list(content)[:5]))
        raise DataFault(f"chexbert.pth holds no model_state_dict but: {held}; fetch it anew")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    state.pop("bert.embeddings.position_ids", None)  # a constant that older transformers saved
    return state


def _decide(network: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    import torch

    cls = network["bert"](input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
    return torch.stack([head(cls).argmax(-1) for head in network["linear_heads"]], dim=-1)


CHEXBERT = EncoderLabeller(
    name="chexbert",
    version=1,
    title="CheXbert",
    labels=LABELS,
    checkpoint="chexbert.pth",
    vocabulary=("vocab.txt",),
    hub={
        "chexbert.pth": ("StanfordAIMI/RRG_scorers", "chexbert.pth"),
        "vocab.txt": ("bert-base-uncased", "vocab.txt"),
    },
    elsewhere=_package_caches,
    how_to="put chexbert.pth (CheXbert's repository or StanfordAIMI/RRG_scorers) and vocab.txt (bert-base-uncased) "
    "into the folder chexbert below $ZOO_WEIGHTS",
    config=_config,
    tokenizer=_tokenizer,
    network=_network,
    state=_state,
    decide=_decide,
)


def label(texts: Sequence[str], tools: Tools) -> np.ndarray:
    """Codes 0 blank, 1 positive, 2 negative, 3 uncertain (No Finding: 0 or 1), `(text, 14)`.

    Raises:
        MetricUnavailable: `chexbert.pth` or `vocab.txt` is missing.
        DataFault: One of them is not what it should be.
    """
    return label_texts(CHEXBERT, texts, tools)


def stated(codes: np.ndarray, uncertain: Uncertain) -> np.ndarray:
    """What counts as stated: the positive, and the uncertain too where the protocol says so; bool, shape of `codes`."""
    return (codes == POSITIVE) | ((codes == UNCERTAIN) & (uncertain == "positive"))


def chexbert_metrics(labels: Literal[14, 5], uncertain: Uncertain) -> dict[str, Scored]:
    """`chexbert_<labels>_<average>_<figure>` → how to score it (see `label_metrics`).

    Args:
        labels: All 14, No Finding included, or the five competition labels.
        uncertain: What an uncertain mention counts as: `positive` in `f1chexbert`, `negative` in R2Gen's descendants.
    """
    chosen = FIVE if labels == 5 else tuple(range(len(LABELS)))
    matrices = partial(_matrices, chosen=chosen, uncertain=uncertain)
    return label_metrics(f"chexbert_{labels}", [LABELS[place] for place in chosen], matrices)


def _matrices(pairs: Pairs, chosen: Sequence[int], uncertain: Uncertain) -> tuple[np.ndarray, np.ndarray]:
    codes = pairs.once("chexbert", lambda: label(pairs.texts, pairs.tools))
    return by_study(pairs, stated(codes, uncertain)[:, list(chosen)])
