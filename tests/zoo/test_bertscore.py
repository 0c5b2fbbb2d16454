"""BERTScore against bert-score's own figures, on two tiny encoders that are written here."""

import json
import os
import socket
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.study import DataFault
from zoo.metrics import bertscore as module
from zoo.metrics.bertscore import COLUMNS, DISTILBERT, Encoder, bertscore, greedy
from zoo.metrics.pairs import MetricUnavailable, Pairs, Tools

GOLDEN = Path(__file__).parents[1] / "golden" / "bertscore_tiny.json"
SENTENCE = "the lungs are clear no effusion is seen heart of normal size small nodule in left right lobe stable . ,"
WORDS = SENTENCE.split()
SIZE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}


def write_weights(folder: Path, network: torch.nn.Module) -> None:
    """Weights by a rule that no release of torch changes: drawn anew for each name, from numpy's frozen generator."""
    from safetensors.torch import save_file

    state = {}
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(tensor.shape))
            centre = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            state[name] = torch.from_numpy((centre + 0.3 * values).astype(np.float32))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def write_bert(folder: Path) -> Path:
    """A tiny BERT that knows `WORDS` and letters."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *letters,
        *(f"##{letter}" for letter in letters),
    ]
    folder.mkdir(parents=True)
    BertTokenizerFast(vocab={word: k for k, word in enumerate(vocabulary)}, model_max_length=512).save_pretrained(
        folder
    )
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    config = BertConfig(vocab_size=len(vocabulary), **SIZE)
    config.save_pretrained(folder)
    write_weights(folder, BertModel(config))
    return folder


def write_roberta(folder: Path) -> Path:
    """A tiny RoBERTa that knows `WORDS` with and without a space before them, by other ids."""
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizerFast

    vocabulary = {token: k for k, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])}
    merges = []
    for token in ["Ġ", *map(chr, range(33, 127))]:
        vocabulary.setdefault(token, len(vocabulary))
    for word in [*("Ġ" + word for word in WORDS), *WORDS]:
        for end in range(2, len(word) + 1):
            if (pair := (word[: end - 1], word[end - 1])) not in merges:
                merges.append(pair)
            vocabulary.setdefault(word[:end], len(vocabulary))
    folder.mkdir(parents=True)
    RobertaTokenizerFast(vocab=vocabulary, merges=merges, model_max_length=512).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    config = RobertaConfig(vocab_size=len(vocabulary), max_position_embeddings=514, **SIZE)
    config.save_pretrained(folder)
    write_weights(folder, RobertaModel(config))
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("weights")
    write_bert(root / "bert")
    write_roberta(root / "roberta")
    return root


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No network, no weights of this machine."""

    def refuse(*args, **kwargs):
        raise AssertionError("went online")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("ZOO_WEIGHTS", raising=False)


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads(GOLDEN.read_text())


def encoder_of(name: str, **changes) -> Encoder:
    return replace(Encoder(name, "nobody/nothing", 2, None), **changes)


def scores(pairs: list, root: Path, encoder: Encoder) -> np.ndarray:
    """(study, 3)"""
    references, predictions = zip(*pairs, strict=True)
    made = Pairs(references, predictions, Tools(weights=root, device="cpu"))
    return np.stack([bertscore(made, encoder, which).values for which in COLUMNS], axis=1)


def expected(figures: dict) -> np.ndarray:
    return np.stack([figures[which] for which in COLUMNS], axis=1)


def test_greedy_matching_is_bert_scores(shared):
    core = json.loads((shared / "golden/metrics/bertscore_core.json").read_text())
    names = ("hyp_emb", "ref_emb", "hyp_mask", "ref_mask", "hyp_idf", "ref_idf")
    for ours, letter in zip(greedy(*(torch.tensor(core[name]) for name in names)), "PRF", strict=True):
        assert torch.allclose(ours, torch.tensor(core[letter]), atol=1e-6, rtol=0)


def test_a_match_by_hand():
    # Orthogonal tokens: the prediction's "a" is in the reference, its "b" is not; the reference has "a" and "c".
    a, b, c, cls = torch.eye(4)
    ones, weights = torch.ones(1, 3), torch.tensor([[0.0, 1.0, 1.0]])
    p, r, f = greedy(torch.stack([cls, a, b])[None], torch.stack([cls, a, c])[None], ones, ones, weights, weights)
    assert (p.item(), r.item(), f.item()) == (0.5, 0.5, 0.5)
    # A special token has no weight but may be matched: "b" points halfway to the reference's first token.
    halfway = torch.nn.functional.normalize(b + cls, dim=0)
    p, r, _ = greedy(torch.stack([cls, a, halfway])[None], torch.stack([cls, a, c])[None], ones, ones, weights, weights)
    assert p.item() == pytest.approx((1 + 0.5**0.5) / 2) and r.item() == 0.5


def test_a_token_like_no_other_matches_nothing_whether_padded_or_not():
    hyp, ref = torch.tensor([[[1.0, 0], [-1, 0]]]), torch.tensor([[[1.0, 0], [1, 0]]])
    ones = torch.ones(1, 2)
    p, r, _ = greedy(hyp, ref, ones, ones, ones, ones)
    assert (p.item(), r.item()) == (0.5, 1)
    wider = torch.cat([ref, torch.full((1, 3, 2), 2.0)], dim=1), torch.tensor([[1.0, 1, 0, 0, 0]])
    padded = greedy(hyp, wider[0], ones, wider[1], ones, wider[1])
    assert (padded[0].item(), padded[1].item()) == (0.5, 1)


def test_embeddings_are_dropped_after_their_last_pair(weights, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)
    tokeniser, network = module._load(module._files(encoder_of("bert"), Tools(weights=weights)), 2, "cpu")
    texts = [" ".join(WORDS[:length]) for length in range(1, 20)]
    pairs = [(texts[0], text) for text in texts[1:]]  # one reference with many predictions
    ids = {text: tokeniser(text)["input_ids"] for text in texts}
    held = []
    with torch.inference_mode():
        for block, known in module._embedded(pairs, ids, network, tokeniser.pad_token_id, "cpu"):
            assert {text for pair in block for text in pair} <= set(known)
            held.append(len(known))
    assert held == [3] * 9


def test_nothing_to_match_counts_zero():
    emb, ones, zeros = torch.eye(3)[None], torch.ones(1, 3), torch.zeros(1, 3)
    assert [value.item() for value in greedy(emb, emb, ones, ones, zeros, ones)] == [0, 0, 0]
    assert [value.item() for value in greedy(emb, emb, ones, ones, ones, zeros)] == [0, 0, 0]


@pytest.mark.parametrize("name", ["bert", "roberta"])
@pytest.mark.parametrize("batch", [32, 3])
def test_whole_way_is_bert_scores(name, batch, weights, golden, monkeypatch):
    monkeypatch.setattr(module, "BATCH", batch)  # 3: pairs meet other pairs, in several blocks
    ours = scores(golden["pairs"], weights, encoder_of(name))
    np.testing.assert_allclose(ours, expected(golden[name]), atol=2e-6)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_tokens_are_those_of_the_slow_tokenizers(name, weights, golden):
    files = module._files(encoder_of(name), Tools(weights=weights))
    tokeniser, _ = module._load(files, 2, "cpu")
    for (_, prediction), ids in zip(golden["pairs"], golden[name]["ids"], strict=True):
        assert tokeniser(prediction.strip())["input_ids"][:8] == ids


def test_the_layer_matters(weights, golden):
    deeper = scores(golden["pairs"][:1], weights, encoder_of("bert", num_layers=3))
    assert np.abs(deeper - expected(golden["bert"])[:1]).max() > 1e-3
    with pytest.raises(DataFault, match="3 layers"):
        scores(golden["pairs"][:1], weights, encoder_of("bert", num_layers=4))


def test_order_of_studies(weights, golden):
    order = np.random.RandomState(0).permutation(len(golden["pairs"]))
    ours = scores([golden["pairs"][k] for k in order], weights, encoder_of("bert"))
    np.testing.assert_allclose(ours, expected(golden["bert"])[order], atol=2e-6)


def test_a_pair_scores_alone_what_it_scores_in_a_file(weights, golden):
    alone = np.concatenate([scores([pair], weights, encoder_of("roberta")) for pair in golden["pairs"]])
    np.testing.assert_allclose(alone, scores(golden["pairs"], weights, encoder_of("roberta")), atol=1e-6)


def test_rescaled(weights, golden):
    ours = scores(golden["pairs"], weights, encoder_of("bert", baseline=tuple(golden["baseline"])))
    empty = np.array([not (reference.strip() and prediction.strip()) for reference, prediction in golden["pairs"]])
    assert empty.sum() == 3
    np.testing.assert_allclose(ours[~empty], expected(golden["bert"]["rescaled"])[~empty], atol=5e-6)
    assert (ours[empty] == 0).all()
    assert ours[1] == pytest.approx(1, abs=1e-6)  # a prediction that is its reference


def test_nothing_but_empty_texts(weights):
    assert (scores([("", ""), (" ", "a"), ("\u200b", "clear")], weights, encoder_of("bert")) == 0).all()


def test_a_long_text_counts_up_to_its_last_token_that_fits(weights):
    words = [WORDS[k * 7 % len(WORDS)] for k in range(700)]
    texts = [" ".join(words[:length]) for length in (700, 510, 509)]  # 512 with [CLS] and [SEP]
    whole, fits, shorter = scores([("the lungs are clear .", text) for text in texts], weights, encoder_of("bert"))
    assert whole == pytest.approx(fits, abs=1e-7)
    assert np.abs(whole - shorter).max() > 1e-6


def test_every_text_is_encoded_once_and_every_metric_computed_once(weights, golden, monkeypatch):
    rows, loads = [], []
    load = module._load

    def counted(*args):
        loads.append(args)
        tokeniser, network = load(*args)
        network.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
        return tokeniser, network

    monkeypatch.setattr(module, "_load", counted)
    monkeypatch.setattr(module, "BATCH", 2)
    pairs = [
        ["clear", "heart"],
        ["heart", "clear"],
        ["clear", "lungs"],
        ["heart", ""],
        ["clear", "heart"],
        ["no", "no"],
    ]
    scores(pairs, weights, encoder_of("bert"))
    assert sum(rows) == 4 and len(loads) == 1  # clear, heart, lungs, no


def test_older_weights_format_and_random_numbers_left_alone(weights, golden, tmp_path):
    from safetensors.torch import load_file

    (tmp_path / "bert").mkdir()
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "bert" / name).write_bytes((weights / "bert" / name).read_bytes())
    state = load_file(weights / "bert/model.safetensors")
    without_pooler = {key: tensor for key, tensor in state.items() if not key.startswith("pooler.")}
    torch.save(without_pooler, tmp_path / "bert/pytorch_model.bin")
    torch.manual_seed(7)
    expected_next = torch.rand(1)
    torch.manual_seed(7)
    ours = scores(golden["pairs"], tmp_path, encoder_of("bert"))
    assert torch.rand(1) == expected_next
    np.testing.assert_allclose(ours, expected(golden["bert"]), atol=2e-6)


@pytest.mark.parametrize("fault", ["no tensors", "layer left out", "other shape"])
def test_weights_that_do_not_fit_are_refused(fault, weights, tmp_path):
    from safetensors.torch import load_file, save_file

    (tmp_path / "bert").mkdir()
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "bert" / name).write_bytes((weights / "bert" / name).read_bytes())
    file = tmp_path / "bert/model.safetensors"
    state = load_file(weights / "bert/model.safetensors")
    if fault == "no tensors":
        file.write_bytes(b"no weights at all")
    elif fault == "layer left out":
        save_file({key: tensor for key, tensor in state.items() if ".layer.1." not in key}, file)
    else:
        save_file(state | {"embeddings.word_embeddings.weight": torch.zeros(3, 32)}, file)
    with pytest.raises(DataFault, match="model.safetensors"):
        scores([("clear", "heart")], tmp_path, encoder_of("bert"))


def test_files_of_several_folders_are_not_mixed(weights, tmp_path, monkeypatch):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_bytes((weights / "bert/config.json").read_bytes())
    monkeypatch.setenv("ZOO_WEIGHTS", str(weights))
    with pytest.raises(MetricUnavailable, match="several folders"):
        scores([("clear", "heart")], tmp_path, encoder_of("bert"))


def test_without_weights_says_what_to_do_and_imports_nothing_heavy(tmp_path):
    code = """
import sys
from pathlib import Path
from zoo.metrics.bertscore import DISTILBERT, bertscore
from zoo.metrics.pairs import MetricUnavailable, Pairs, Tools
try:
    bertscore(Pairs(["a"], ["b"], Tools(weights=Path(sys.argv[1]))), DISTILBERT, "f1")
except MetricUnavailable as error:
    print(error.reason, error.how_to, *error.searched)
    print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    env = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=env, timeout=120
    )
    told, modules = done.stdout.splitlines()
    assert "model.safetensors" in told and DISTILBERT.folder in told and str(tmp_path) in told, done.stderr
    assert modules == "[]"
