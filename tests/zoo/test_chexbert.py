"""CheXbert's code on random weights and a local vocabulary, in the layout of the published files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from datamodules.study import DataFault
from zoo.metrics import chexbert, encoder_labeller
from zoo.metrics.chexbert import LABELS, chexbert_metrics, label, stated
from zoo.metrics.pairs import MetricUnavailable, Pairs, Tools
from zoo.metrics.weights import LabelCache

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "no", "the", "heart", "is", "enlarged", "effus",
         "##ion", "small", "left", "lung", "clear", "a", "edema"]  # fmt: skip
SIZES = {"vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 40}  # fmt: skip
TEXTS = ["No effusion.", "The heart is enlarged, a small effusion", "Edema", "lung clear. " * 9, "the left heart ."]


def save(folder: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {"state": {}}}, folder / "chexbert.pth")


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """A folder of weights with `chexbert/` in it; no other place has any, and nothing is known of any text."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(LabelCache, "_memory", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ZOO_WEIGHTS", raising=False)
    folder = tmp_path / "weights" / "chexbert"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    bert = BertModel(BertConfig(**SIZES, initializer_range=0.5))  # so that [CLS] depends on the text
    heads = [torch.randn(4 if place < 13 else 2, 32) for place in range(14)]
    state = {f"module.bert.{key}": value for key, value in bert.state_dict().items()}
    state["module.bert.embeddings.position_ids"] = torch.arange(512)[None]  # as older transformers saved it
    for place, head in enumerate(heads):
        state |= {f"module.linear_heads.{place}.weight": head, f"module.linear_heads.{place}.bias": head[:, 0].clone()}
    save(folder, state)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "config.json").write_text(json.dumps(SIZES))
    return tmp_path / "weights"


@pytest.fixture
def tools(files) -> Tools:
    return Tools(weights=files, device="cpu")


@pytest.fixture
def forwards(monkeypatch) -> list[tuple[int, int]]:
    """The shapes (text, token) that go through BERT."""
    shapes = []
    forward = BertModel.forward

    def counted(self, input_ids, **rest):
        shapes.append(tuple(input_ids.shape))
        return forward(self, input_ids=input_ids, **rest)

    monkeypatch.setattr(BertModel, "forward", counted)
    return shapes


def one_by_one(folder: Path, ids: list[int]) -> list[int]:
    """What the published network says of one text's ids, put together from the file anew."""
    state = torch.load(folder / "chexbert" / "chexbert.pth", weights_only=True)["model_state_dict"]
    bert = BertModel(BertConfig(**SIZES)).eval()
    prefix = "module.bert."
    bert.load_state_dict({key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}, False)
    with torch.no_grad():
        hidden = bert(torch.tensor([ids])).last_hidden_state[0, 0]
    head = "module.linear_heads.{}.{}"
    scores = [state[head.format(i, "weight")] @ hidden + state[head.format(i, "bias")] for i in range(14)]
    return [int(row.argmax()) for row in scores]


def test_labels_are_the_networks_whatever_the_batch(files, tools, monkeypatch):
    monkeypatch.setitem(encoder_labeller.BATCH, "cpu", 2)
    ids = [
        [2, 7, 12, 13, 5, 3],
        [2, 8, 9, 10, 11, 6, 18, 14, 12, 13, 3],
        [2, 19, 3],
        [2, *[16, 17, 5] * 9, 3],
        [2, 8, 15, 9, 5, 3],
    ]
    expected = [one_by_one(files, row) for row in ids]
    codes = label(TEXTS, tools)
    assert codes.tolist() == expected
    assert codes.shape == (5, 14) and len(np.unique(codes, axis=0)) > 1 and codes[:, 13].max() <= 1
    LabelCache._memory.clear()
    assert label(TEXTS[::-1], tools).tolist() == expected[::-1]
    LabelCache._memory.clear()
    assert label(["  Edema\n", "lung\tclear.\r\n" * 9], tools).tolist() == [expected[2], expected[3]]


def test_each_distinct_text_goes_through_once(tools, forwards):
    pairs = Pairs([TEXTS[0], TEXTS[0], TEXTS[1]], [TEXTS[0], TEXTS[2], ""], tools)
    metrics = {**chexbert_metrics(14, "positive"), **chexbert_metrics(5, "positive")}
    for score, _ in metrics.values():
        score(pairs)
    assert len(metrics) == 24 and sum(count for count, _ in forwards) == 3
    other = Pairs([TEXTS[1]], [TEXTS[3]], tools)  # as another region's reports: what is known stays known
    metrics["chexbert_14_micro_f1"][0](other)
    assert sum(count for count, _ in forwards) == 4


def test_a_long_text_is_cut_to_511_ids_and_the_separator(files, tools, forwards):
    long = label(["the heart " * 400], tools)
    assert forwards == [(1, 512)]
    assert long.tolist() == [one_by_one(files, [2, *[8, 9] * 255, 3])]


def test_nothing_said_is_no_label_not_even_no_finding(tools, forwards):
    assert not label(["", "  \n"], tools).any() and forwards == []
    assert label([], tools).shape == (0, 14)
    pairs = Pairs(["", "edema"], ["edema", ""], tools)
    for score, corpus in chexbert_metrics(14, "negative").values():
        outcome = score(pairs)
        value = corpus.formula(outcome.statistics.sum(0)) if corpus else outcome.values.mean()
        assert value == 0  # and not NaN


def test_what_an_uncertain_mention_counts_as(monkeypatch):
    codes = np.array([[0] * 14, [1] * 14, [2] * 14, [3] * 13 + [1]])
    assert stated(codes, "positive").tolist() == [[False] * 14, [True] * 14, [False] * 14, [True] * 14]
    assert stated(codes, "negative").tolist() == [[False] * 14, [True] * 14, [False] * 14, [False] * 13 + [True]]

    said = {"certain": [1] * 14, "doubtful": [3] * 13 + [0], "none": [0] * 14}
    monkeypatch.setattr(chexbert, "label", lambda texts, tools: np.array([said[text] for text in texts]))
    pairs = Pairs(["certain", "none"], ["doubtful", "certain"])

    def recall(labels, uncertain):
        score, corpus = chexbert_metrics(labels, uncertain)[f"chexbert_{labels}_micro_recall"]
        return corpus.formula(score(pairs).statistics.sum(0))

    assert recall(14, "positive") == pytest.approx(13 / 14) and recall(14, "negative") == 0
    assert recall(5, "positive") == 1
    five = chexbert_metrics(5, "positive")["chexbert_5_macro_f1"][1].labels
    assert five == ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")


def test_the_usual_sizes_have_the_published_layout():
    with torch.device("meta"):
        state = chexbert._network(chexbert._config()).state_dict()
    layer = [f"{part}.{kind}" for part in ("attention.self.query", "attention.self.key", "attention.self.value",
             "attention.output.dense", "attention.output.LayerNorm", "intermediate.dense", "output.dense",
             "output.LayerNorm") for kind in ("weight", "bias")]  # fmt: skip
    embeddings = ["word_embeddings.weight", "position_embeddings.weight", "token_type_embeddings.weight"]
    expected = [f"bert.embeddings.{name}" for name in [*embeddings, "LayerNorm.weight", "LayerNorm.bias"]]
    expected += [f"bert.encoder.layer.{number}.{name}" for number in range(12) for name in layer]
    expected += ["bert.pooler.dense.weight", "bert.pooler.dense.bias"]
    expected += [f"linear_heads.{place}.{kind}" for place in range(14) for kind in ("weight", "bias")]
    assert set(state) == set(expected) and len(expected) == 227
    assert state["bert.embeddings.word_embeddings.weight"].shape == (30522, 768)
    assert state["bert.encoder.layer.11.intermediate.dense.weight"].shape == (3072, 768)
    assert [len(state[f"linear_heads.{place}.bias"]) for place in range(14)] == [4] * 13 + [2]


def test_a_file_that_is_not_chexbert_is_an_error(files, tools):
    folder = files / "chexbert"
    right = torch.load(folder / "chexbert.pth", weights_only=True)["model_state_dict"]
    save(folder, {"garbage": torch.zeros(3)})
    with pytest.raises(DataFault, match=r"chexbert.pth does not fit .* 67 missing: bert\..*1 unexpected: garbage"):
        label(TEXTS, tools)
    save(folder, {key: value for key, value in right.items() if "linear_heads.13" not in key})
    with pytest.raises(DataFault, match="2 missing: linear_heads.13.weight, linear_heads.13.bias"):
        label(TEXTS, tools)
    torch.save(right, folder / "chexbert.pth")
    with pytest.raises(DataFault, match="no model_state_dict"):
        label(TEXTS, tools)
    save(folder, right)
    (folder / "vocab.txt").write_text("\n".join([*WORDS, "more"]))
    with pytest.raises(DataFault, match="21 tokens and CheXbert 20"):
        label(TEXTS, tools)
    (folder / "vocab.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataFault, match="vocab.txt"):
        label(TEXTS, tools)


HEAVY = "; print(*(name for name in ('torch', 'transformers') if name in sys.modules))"


def in_a_new_process(code: str, home: Path) -> list[str]:
    """What the code prints, and then which heavy packages it imported; `home` has no weights anywhere."""
    code = f"import sys; from pathlib import Path; from zoo.metrics import chexbert; {code}{HEAVY}"
    places = {"HOME": str(home), "HF_HOME": str(home / "hf"), "XDG_CACHE_HOME": str(home / "cache"), "ZOO_WEIGHTS": ""}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | places, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    return done.stdout.splitlines()


def test_labels_on_disk_need_no_network(files, tmp_path):
    cache = tmp_path / "labels here"
    codes = label(TEXTS, Tools(weights=files, device="cpu", cache=cache))
    (kept,) = (cache / "labels").iterdir()
    assert "heart" not in kept.read_text()
    tools = f"chexbert.Tools(weights=Path({str(files)!r}), cache=Path({str(cache)!r}))"
    said, heavy = in_a_new_process(f"print(chexbert.label({TEXTS!r}, {tools}).tolist())", tmp_path)
    assert json.loads(said) == codes.tolist() and heavy == ""


def test_without_weights_it_says_where_it_looked(files, tmp_path):
    (files / "chexbert" / "vocab.txt").unlink()
    with pytest.raises(MetricUnavailable) as error:
        chexbert_metrics(14, "positive")["chexbert_14_micro_f1"][0](Pairs(["edema"], ["edema"], Tools(weights=files)))
    assert error.value.reason == "vocab.txt not found" and "bert-base-uncased" in error.value.how_to
    searched = "\n".join(error.value.searched)
    assert str(files / "chexbert" / "vocab.txt") in searched
    assert str(tmp_path / "cache" / "chexbert" / "vocab.txt") in searched and str(tmp_path / "hub") in searched
    assert "chexbert.pth" not in searched


def test_without_weights_nothing_heavy_is_imported(tmp_path):
    code = (
        "error = None\ntry: chexbert.label(['edema'], chexbert.Tools())\n"
        "except Exception as caught: error = type(caught).__name__\nprint(error)\nprint(end='')"
    )
    assert in_a_new_process(code, tmp_path) == ["MetricUnavailable", ""]


def test_labels_are_in_f1chexberts_order():
    assert LABELS[:4] == ("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion")
    assert LABELS[-2:] == ("Support Devices", "No Finding") and len(set(LABELS)) == 14
