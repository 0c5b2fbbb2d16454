"""RadBERT-CT's code on random weights and a local vocabulary, in the layout of the published files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import RobertaConfig, RobertaModel

from datamodules.study import DataFault
from zoo.metrics import encoder_labeller, radbert_ct
from zoo.metrics.pairs import MetricUnavailable, Pairs, Tools
from zoo.metrics.radbert_ct import LABELS, label, radbert_metrics
from zoo.metrics.weights import LabelCache

VOCABULARY = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "c", "Ġ", "Ġa", "bc", "Ġbc", "<mask>"]
MERGES = "#version: 0.2\nĠ a\nb c\nĠ bc\n"
SIZES = {"vocab_size": len(VOCABULARY), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 40}  # fmt: skip
IDS = {  # word pieces by hand; a space belongs to the word after it
    "a bc": [0, 4, 10, 2],
    "bc a a": [0, 9, 8, 8, 2],
    "a": [0, 4, 2],
    "cab bc bc a": [0, 6, 4, 5, 10, 10, 8, 2],
}


def roberta(**more) -> RobertaModel:
    return RobertaModel(
        RobertaConfig(**SIZES, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, **more)
    )


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """A folder of weights with `radbert_ct/` in it; no other place has any, and nothing is known of any text."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(LabelCache, "_memory", {})
    monkeypatch.delenv("ZOO_WEIGHTS", raising=False)
    folder = tmp_path / "weights" / "radbert_ct"
    folder.mkdir(parents=True)
    torch.manual_seed(1)
    state = {f"model.{key}": value for key, value in roberta(initializer_range=0.5).state_dict().items()}
    state["model.embeddings.position_ids"] = torch.arange(514)[None]  # as older transformers saved it
    state |= {"classifier.weight": torch.randn(18, 32), "classifier.bias": torch.randn(18)}
    torch.save(state, folder / "RadBertClassifier.pth")
    (folder / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(VOCABULARY)}))
    (folder / "merges.txt").write_text(MERGES)
    (folder / "config.json").write_text(json.dumps(SIZES))
    return tmp_path / "weights"


@pytest.fixture
def tools(files) -> Tools:
    return Tools(weights=files, device="cpu")


def one_by_one(files: Path, ids: list[int]) -> list[bool]:
    """What the published network says of one text's ids, put together from the file anew."""
    state = torch.load(files / "radbert_ct" / "RadBertClassifier.pth", weights_only=True)
    model = roberta().eval()
    model.load_state_dict({key[6:]: value for key, value in state.items() if key.startswith("model.")}, strict=False)
    with torch.no_grad():
        pooled = model(torch.tensor([ids])).pooler_output[0]
    logits = state["classifier.weight"] @ pooled + state["classifier.bias"]
    return (torch.sigmoid(logits) >= 0.5).tolist()


def test_labels_are_the_networks_whatever_the_batch(files, tools, monkeypatch):
    monkeypatch.setitem(encoder_labeller.BATCH, "cpu", 3)
    expected = [one_by_one(files, ids) for ids in IDS.values()]
    rows = label(list(IDS), tools)
    assert rows.tolist() == expected and rows.dtype == bool
    assert rows.shape == (4, 18) and len(np.unique(rows, axis=0)) > 1
    LabelCache._memory.clear()
    assert label([*reversed(IDS), "a", ""], tools).tolist() == [*expected[::-1], expected[2], [False] * 18]


def test_a_long_text_is_cut_to_512_ids(files, tools):
    assert label(["a" + " bc" * 700], tools).tolist() == [one_by_one(files, [0, 4, *[10] * 509, 2])]


def test_the_usual_sizes_have_the_published_layout():
    with torch.device("meta"):
        state = radbert_ct._network(radbert_ct._config()).state_dict()
    assert len(state) == 201 and sum(key.startswith("model.encoder.layer.") for key in state) == 12 * 16
    shapes = {
        "model.embeddings.word_embeddings.weight": (50265, 768),
        "model.embeddings.position_embeddings.weight": (514, 768),
        "model.embeddings.token_type_embeddings.weight": (1, 768),
        "model.encoder.layer.11.output.dense.weight": (768, 3072),
        "model.pooler.dense.weight": (768, 768),
        "classifier.weight": (18, 768),
        "classifier.bias": (18,),
    }
    assert {key: tuple(state[key].shape) for key in shapes} == shapes
    assert radbert_ct._config().layer_norm_eps == 1e-5


def test_a_classifier_of_other_labels_is_an_error(files, tools):
    file = files / "radbert_ct" / "RadBertClassifier.pth"
    state = torch.load(file, weights_only=True)
    torch.save(state | {"classifier.weight": torch.zeros(20, 32), "classifier.bias": torch.zeros(20)}, file)
    with pytest.raises(DataFault, match=r"2 of another shape: classifier.weight \(20, 32\) instead of \(18, 32\)"):
        label(["a"], tools)
    torch.save({"classifier.weight": state["classifier.weight"]}, file)
    with pytest.raises(DataFault, match="missing: model.embeddings"):
        label(["a"], tools)


def test_twelve_metrics_over_eighteen_labels(files, tools):
    pairs = Pairs(["a bc", "a", "bc a a"], ["a bc", "a", "bc a a"], tools)
    metrics = radbert_metrics()
    assert len(metrics) == 12 and "radbert_ct_18_weighted_recall" in metrics
    score, corpus = metrics["radbert_ct_18_micro_f1"]
    assert corpus.labels == LABELS and len(LABELS) == 18
    statistics = score(pairs).statistics
    assert statistics.shape == (3, 54) and statistics[:, 18:].sum() == 0  # the same texts: nothing false or missed
    assert statistics[:, :18].tolist() == [one_by_one(files, IDS[text]) for text in ("a bc", "a", "bc a a")]
    assert corpus.formula(statistics.sum(0)) == 1


def test_without_weights_it_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path / "weights"))
    with pytest.raises(MetricUnavailable) as error:
        radbert_metrics()["radbert_ct_18_samples_f1"][0](Pairs(["a"], ["a"]))
    assert error.value.reason == "RadBertClassifier.pth and vocab.json and merges.txt not found"
    assert str(tmp_path / "weights" / "radbert_ct" / "RadBertClassifier.pth") in error.value.searched
    assert any("CT-RATE" in place and str(tmp_path / "hub") in place for place in error.value.searched)
