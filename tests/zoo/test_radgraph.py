"""RadGraph F1: rewards against two releases of the package, and the package's own network on a tiny model."""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.study import DataFault
from zoo.metrics import radgraph as module
from zoo.metrics.pairs import MetricUnavailable, Pairs, Tools
from zoo.metrics.radgraph import annotate, radgraph, reward

LEVELS = ("simple", "partial", "complete")
LABELS = ("ANAT-DP", "OBS-DP", "OBS-U", "OBS-DA")
RELATIONS = ("modify", "located_at", "suggestive_of")
TYPE = "radgraph-xl"
SENTENCE = "the lungs are clear no effusion is seen heart of normal size small nodule in left right lobe"
REFERENCES = ["The lungs are clear. No effusion.", "", "Small nodule in left lobe, 4 mm.", "Heart normal", "Effusion"]
PREDICTIONS = ["No effusion is seen.", "Lungs clear.", "small nodule in the right lobe", "", "Effusion"]


def entity(tokens: str, label: str, *relations: list[str]) -> dict:
    return {"tokens": tokens, "label": label, "relations": list(relations)}


@pytest.mark.parametrize(("case", "release"), [("kept", "v0.1.18"), ("lower", "master_87f11a1_lowercased")])
def test_rewards_of_both_releases(case, release, shared):
    recorded = json.loads((shared / "golden/metrics/radgraph_rewards.json").read_text())
    assert len(recorded["cases"]) == 24
    for pair in recorded["cases"]:
        prediction, reference = pair["hyp"]["entities"], pair["ref"]["entities"]
        ours = [reward(prediction, reference, level, case) for level in recorded["order"]]
        assert ours == pytest.approx(pair[release], abs=1e-9)


def test_rewards_by_hand():
    reference = {"1": entity("effusion", "OBS-DP", ["located_at", "2"]), "2": entity("Pleural", "ANAT-DP")}
    unrelated = {"1": entity("effusion", "OBS-DP"), "2": entity("Pleural", "ANAT-DP")}
    elsewhere = {"1": entity("Effusion", "OBS-DP", ["located_at", "2"]), "2": entity("lung", "ANAT-DP")}
    recased = {"1": entity("EFFUSION", "OBS-DP", ["located_at", "2"]), "2": entity("Pleural", "ANAT-DP")}
    assert [reward(unrelated, reference, level, "kept") for level in LEVELS] == [1, 0.5, 0.5]
    assert [reward(elsewhere, reference, level, "lower") for level in LEVELS] == [0.5, 0.5, 0]
    assert [reward(recased, reference, level, "kept") for level in LEVELS] == [0.5, 0.5, 1]  # relations know no case
    assert [reward(recased, reference, level, "lower") for level in LEVELS] == [1, 1, 1]
    assert [reward({}, reference, level, "kept") for level in LEVELS] == [0, 0, 0]
    assert [reward(reference, {}, level, "kept") for level in LEVELS] == [0, 0, 0]
    assert reward({}, {}, "simple", "kept") == 0


def config_of(encoder: str) -> dict:
    """The parts of a released archive's config.json that decide the network, and some that do not; a small head."""
    bert = {"bert": {"type": "pretrained_transformer_mismatched", "model_name": encoder, "max_length": 64}}
    return {
        "dataset_reader": {"type": "dygie", "max_span_width": 3, "token_indexers": bert},
        "model": {
            "type": "dygie",
            "embedder": {"token_embedders": bert},
            "initializer": {"regexes": [["_span_width_embedding.weight", {"type": "xavier_normal"}]]},
            "module_initializer": {"regexes": [[".*weight", {"type": "xavier_normal"}]]},
            "loss_weights": {"ner": 0.2, "relation": 1.0, "coref": 0.0, "events": 0.0},
            "feature_size": 4,
            "max_span_width": 3,
            "target_task": "relation",
            "feedforward_params": {"num_layers": 2, "hidden_dims": 10, "dropout": 0.4},
            "modules": {
                "coref": {"spans_per_word": 0.3, "max_antecedents": 100, "coref_prop": 0},
                "ner": {},
                "relation": {"spans_per_word": 0.5},
                "events": {
                    "trigger_spans_per_word": 0.3,
                    "argument_spans_per_word": 0.8,
                    "loss_weights": {"trigger": 0.2, "arguments": 1.0},
                },
            },
        },
        "data_loader": {"batch_sampler": {"type": "bucket", "batch_size": 1}},
    }


def write_model(root: Path) -> Path:
    """A tiny model in the layout of a released one, below a folder of weights; returns the folder of weights."""
    from transformers import BertConfig

    folder = root / "radgraph" / TYPE
    (folder / "encoder").mkdir(parents=True)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *SENTENCE.split(),
        *",.",
        *letters,
        *(f"##{c}" for c in letters),
    ]
    (folder / "encoder/vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "encoder/tokenizer_config.json").write_text('{"do_lower_case": true}')
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    BertConfig(vocab_size=len(words), max_position_embeddings=64, **size).save_pretrained(folder / "encoder")
    (folder / "config.json").write_text(json.dumps(config_of("nobody/some-encoder"), indent=2))
    (folder / "vocabulary").mkdir()
    (folder / "vocabulary/non_padded_namespaces.txt").write_text("*labels\n*tags\n")
    (folder / f"vocabulary/{TYPE}__ner_labels.txt").write_text("\n".join(["", *LABELS]) + "\n")
    (folder / f"vocabulary/{TYPE}__relation_labels.txt").write_text("\n".join(RELATIONS) + "\n")
    torch.save(_state(root), folder / "weights.th")
    return root


def _state(root: Path) -> dict[str, torch.Tensor]:
    """Weights by name and shape, as the package's network has them before it loads any."""
    from radgraph.dygie.models.dygie import DyGIE

    expected: dict[str, torch.Tensor] = {}
    (root / "radgraph" / TYPE / "weights.th").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: {})
        patch.setattr(DyGIE, "load_state_dict", lambda self, *_, **__: expected.update(self.state_dict()))
        module._load(module._find(TYPE, Tools(weights=root)), "cpu")
    state = {}
    for name, tensor in expected.items():
        values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(tensor.shape))
        state[name] = torch.from_numpy((0.5 * values).astype(np.float32)) if tensor.is_floating_point() else tensor
    return state


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No network, no weights of this machine, nothing known from another test."""

    def refuse(*args, **kwargs):
        raise AssertionError("went online")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("ZOO_WEIGHTS", raising=False)
    monkeypatch.setattr(module, "_known", {})


def settings() -> tuple:
    """What importing package radgraph changes for a whole process."""
    return list(warnings.filters), logging.getLoggerClass(), torch.get_rng_state().tolist()


@pytest.fixture(scope="module")
def imported() -> tuple:
    """`settings` before and after."""
    import transformers  # noqa: F401

    before = settings()
    module._import()
    return before, settings()


@pytest.fixture(scope="module")
def weights(imported, tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def network(weights):
    """The package's network itself."""
    return module._load(module._find(TYPE, Tools(weights=weights)), "cpu")


@pytest.fixture
def tools(weights) -> Tools:
    return Tools(weights=weights, device="cpu")


@pytest.fixture
def copied(weights, tmp_path) -> Path:
    """A copy of the folder of weights that a test may spoil."""
    shutil.copytree(weights, tmp_path / "copy")
    return tmp_path / "copy"


def test_entities_and_relations_of_a_text(tools):
    text = "No effusion is seen. Small nodule in left lobe."
    entities = annotate([text], TYPE, tools)[text]
    tokens = text.replace(".", " .").split()
    assert len(entities) > 1 and list(entities) == [str(k + 1) for k in range(len(entities))]
    for found in entities.values():
        assert found["tokens"] == " ".join(tokens[found["start_ix"] : found["end_ix"] + 1])
        assert found["label"] in LABELS
        assert all(kind in RELATIONS and target in entities for kind, target in found["relations"])
    assert any(found["relations"] for found in entities.values())


def test_rewards_are_the_packages_and_stay_with_their_studies(tools, network):
    from radgraph import F1RadGraph

    theirs = F1RadGraph.__new__(F1RadGraph)
    torch.nn.Module.__init__(theirs)
    theirs.reward_level, theirs.radgraph = "all", network
    with warnings.catch_warnings(action="ignore"):
        _, recorded, _, _ = theirs(refs=REFERENCES, hyps=PREDICTIONS)
    pairs = Pairs(REFERENCES, PREDICTIONS, tools)
    for level, values in zip(LEVELS, recorded, strict=True):
        ours = radgraph(pairs, level, TYPE).values
        np.testing.assert_allclose(ours, values, atol=1e-12)
        assert ours[1] == ours[3] == 0 and ours[4] == 1
        assert 0 < ours[0] < 1
    order = [4, 2, 0, 3, 1]
    turned = Pairs([REFERENCES[k] for k in order], [PREDICTIONS[k] for k in order], tools)
    np.testing.assert_array_equal(
        radgraph(turned, "partial", TYPE).values, radgraph(pairs, "partial", TYPE).values[order]
    )


def test_the_case_rule_reaches_the_score(tools):
    pairs = Pairs(["Effusion"], ["effusion"], tools)  # one id to the uncased encoder: the same annotation but for case
    assert radgraph(pairs, "simple", TYPE, "kept").values == [0]
    assert radgraph(pairs, "simple", TYPE, "lower").values == [1]


def test_a_text_is_annotated_alone_as_in_a_file(tools, monkeypatch):
    texts = [text for text in (*REFERENCES, *PREDICTIONS) if text]
    together = annotate(list(dict.fromkeys(texts)), TYPE, tools)
    assert len({json.dumps(entities) for entities in together.values()}) == len(set(texts))
    monkeypatch.setattr(module, "_known", {})
    monkeypatch.setattr(module, "AT_A_TIME", 1)
    assert together == {text: annotate([text], TYPE, tools)[text] for text in reversed(texts)}


def test_the_network_sees_a_text_once(tools, monkeypatch):
    seen, read = [], module._read
    monkeypatch.setattr(module, "_read", lambda network, texts: seen.extend(texts) or read(network, texts))
    pairs = Pairs(["clear", "clear", "heart", "nodule"], ["heart", "heart", "clear", ""], tools)
    for level in LEVELS:
        radgraph(pairs, level, TYPE)
    assert sorted(seen) == ["clear", "heart"]  # a text beside an empty one needs no annotation
    radgraph(Pairs(["clear", "heart"], ["small nodule", "effusion"], tools), "simple", TYPE)
    assert sorted(seen) == ["clear", "effusion", "heart", "small nodule"]


def test_long_and_short_texts(tools):
    long = " ".join(SENTENCE.split() * 8)  # 144 pieces, the encoder takes 64
    texts = [long, "effusion", "x-ray: 4.5 x 3 cm (prior 4.1)."]
    annotations = annotate(texts, TYPE, tools)
    assert max(found["end_ix"] for found in annotations[long].values()) > 64
    assert {found["tokens"] for found in annotations["effusion"].values()} <= {"effusion"}


def test_leaves_no_traces(imported, weights, tools, monkeypatch, tmp_path, capfd):
    assert imported[0] == imported[1]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = {path: path.read_bytes() for path in weights.rglob("*") if path.is_file()}, settings()
    annotate(["Heart normal", "effusion"], TYPE, tools)
    assert ({path: path.read_bytes() for path in weights.rglob("*") if path.is_file()}, settings()) == before
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_an_archive_does_as_well(weights, tools, tmp_path):
    expected = annotate(["Small nodule in left lobe"], TYPE, tools)
    source = weights / "radgraph" / TYPE
    target = tmp_path / "radgraph"
    (target / TYPE).mkdir(parents=True)
    (source / "encoder").rename(target / TYPE / "encoder")
    try:
        with tarfile.open(target / f"{TYPE}.tar.gz", "w:gz") as archive:
            archive.add(source, arcname=".")
        module._known.clear()
        assert annotate(["Small nodule in left lobe"], TYPE, Tools(weights=tmp_path, device="cpu")) == expected
        assert len(module._known) == 1
    finally:
        (target / TYPE / "encoder").rename(source / "encoder")


@pytest.mark.parametrize("fault", ["left out", "too many", "no weights", "no config"])
def test_files_that_do_not_fit_are_refused(fault, copied):
    folder = copied / "radgraph" / TYPE
    state = torch.load(folder / "weights.th", weights_only=True)
    if fault == "left out":
        state.pop(next(name for name in state if "_ner" in name))
        torch.save(state, folder / "weights.th")
    elif fault == "too many":
        torch.save(state | {"classifier.weight": torch.zeros(2)}, folder / "weights.th")
    elif fault == "no weights":
        (folder / "weights.th").write_bytes(b"no weights at all")
    else:
        (folder / "config.json").write_text("{}")
    with pytest.raises(DataFault, match=TYPE):
        annotate(["effusion"], TYPE, Tools(weights=copied, device="cpu"))


def test_code_in_a_weights_file_is_never_run(copied):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(copied / "sprung"),))

    torch.save({"weight": Trap()}, copied / "radgraph" / TYPE / "weights.th")
    with pytest.raises(DataFault):
        annotate(["effusion"], TYPE, Tools(weights=copied, device="cpu"))
    assert not (copied / "sprung").exists()


def test_a_missing_encoder_is_named(copied, monkeypatch):
    (copied / "radgraph" / TYPE / "encoder/vocab.txt").unlink()
    with pytest.raises(MetricUnavailable) as caught:
        annotate(["effusion"], TYPE, Tools(weights=copied))
    assert "vocab.txt" in caught.value.reason and "nobody/some-encoder" in caught.value.how_to


def test_a_text_that_the_package_leaves_out_is_an_error(network, monkeypatch):
    monkeypatch.setattr(network, "forward", lambda texts: {"0": {"entities": {}}})
    with pytest.raises(DataFault, match="1 of 2 texts"):
        module._read(network, ["a", "b"])


def test_a_text_that_the_package_cannot_read_has_no_entity(tools):
    texts = ["\\n", "effusion", "\N{ZERO WIDTH SPACE}", "\\n \\f"]  # backslash and letter, as models write them
    annotations = annotate(texts, TYPE, tools)
    assert annotations["\\n"] == annotations["\\n \\f"] == {}
    assert radgraph(Pairs(["effusion"], ["\\n"], tools), "simple", TYPE).values == [0]


def test_without_weights_says_what_to_do_and_imports_nothing_heavy(tmp_path):
    code = """
import sys
from pathlib import Path
from zoo.metrics.pairs import MetricUnavailable, Pairs, Tools
from zoo.metrics.radgraph import radgraph
try:
    radgraph(Pairs(["a"], ["b"], Tools(weights=Path(sys.argv[1]))), "partial")
except MetricUnavailable as error:
    print(error.reason, error.how_to, *error.searched)
    print([name for name in ("torch", "transformers", "radgraph") if name in sys.modules])
"""
    home = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_CACHE": str(tmp_path / "hub"), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=os.environ | home, timeout=120
    )
    told, modules = done.stdout.splitlines()
    for part in ("weights.th", "radgraph-xl.tar.gz", "radgraph/0.1.18/radgraph-xl", "not asked"):
        assert part in told, done.stderr
    assert modules == "[]"
