"""RadBERT-CT: the eighteen findings of CT-RATE's labels in chest CT reports, by CT-CLIP's text classifier.

Hamamci et al., CT-RATE and CT-CLIP (arXiv 2403.17834); the clinical efficacy of CT2Rep and Reg2RG. The encoder is
RadBERT-RoBERTa-4m (Yan et al., Radiology: AI 2022). The references' labels are the classifier's own on the reference
texts, not CT-RATE's. An empty text has no label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.metrics.encoder_labeller import EncoderLabeller
from zoo.metrics.encoder_labeller import label as label_texts
from zoo.metrics.labels import Scored, by_study, label_metrics
from zoo.metrics.pairs import Pairs, Tools

if TYPE_CHECKING:
    import torch

LABELS = (
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)
THRESHOLD = 0.5  # Reg2RG's released evaluation, evaluation/ce_evaluator_ct2rep/ce_evaluation.py
# RoBERTa-base where it differs from transformers' default configuration.
ROBERTA_BASE = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
ENCODER = "zzxslp/RadBERT-RoBERTa-4m"


def _config(**settings: Any) -> Any:
    from transformers import RobertaConfig

    return RobertaConfig(**(ROBERTA_BASE | settings))


def _tokenizer(vocabulary: str, merges: str) -> Any:
    from transformers import RobertaTokenizer

    return RobertaTokenizer(vocab=vocabulary, merges=merges)


def _network(config: Any) -> torch.nn.Module:
    """RoBERTa, and one linear layer on its pooled output."""
    from torch.nn import Linear, ModuleDict
    from transformers import RobertaModel

    return ModuleDict({"model": RobertaModel(config), "classifier": Linear(config.hidden_size, len(LABELS))})


def _state(content: dict[str, Any]) -> dict[str, Any]:
    # A constant that older transformers saved.
    return {key: value for key, value in content.items() if key != "model.embeddings.position_ids"}


def _decide(network: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    pooled = network["model"](input_ids=ids, attention_mask=mask).pooler_output
    return (network["classifier"](pooled).sigmoid() >= THRESHOLD).long()


RADBERT_CT = EncoderLabeller(
    name="radbert_ct",
    version=1,
    title="RadBERT-CT",
    labels=LABELS,
    checkpoint="RadBertClassifier.pth",
    vocabulary=("vocab.json", "merges.txt"),
    hub={
        "RadBertClassifier.pth": ("datasets/ibrahimhamamci/CT-RATE", "models/RadBertClassifier.pth"),
        "vocab.json": (ENCODER, "vocab.json"),
        "merges.txt": (ENCODER, "merges.txt"),
    },
    elsewhere=list,
    how_to=f"accept CT-RATE's terms on the hub, then put its models/RadBertClassifier.pth and {ENCODER}'s vocab.json "
    "and merges.txt into the folder radbert_ct below $ZOO_WEIGHTS",
    config=_config,
    tokenizer=_tokenizer,
    network=_network,
    state=_state,
    decide=_decide,
)


def label(texts: Sequence[str], tools: Tools) -> np.ndarray:
    """Whether each label is stated, `(text, 18)`, bool.

    Raises:
        MetricUnavailable: The classifier or a file of its tokenizer is missing.
        DataFault: One of them is not what it should be.
    """
    return label_texts(RADBERT_CT, texts, tools).astype(bool)


def radbert_metrics() -> dict[str, Scored]:
    """`radbert_ct_18_<average>_<figure>` → how to score it (see `label_metrics`)."""
    return label_metrics("radbert_ct_18", LABELS, _matrices)


def _matrices(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    return by_study(pairs, pairs.once("radbert_ct", lambda: label(pairs.texts, pairs.tools)))
