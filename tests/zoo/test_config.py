"""The configuration: signatures are its schema, layers fill it in, all errors come at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import yaml
from omegaconf import OmegaConf

from zoo.command import UsageError, ablations, configs_folder, methods, recipes
from zoo.config import compose, import_target, load
from zoo.schema import instantiate, schema


@dataclass(frozen=True)
class Part:
    width: int
    sizes: tuple[int, ...] = (1, 2)


class Base:
    def __init__(self, root: str, number: int = 3, folder: Path = Path("x")):
        self.root, self.number, self.folder = root, number, folder


class Derived(Base):
    def __init__(
        self,
        kind: Literal["a", "b"] = "a",
        part: Part = Part(width=7),
        other: Part | None = None,
        rate: float | None = None,
        pair: tuple[float, float] = (0.9, 0.99),
        **base,
    ):
        super().__init__(**base)
        self.kind, self.part, self.other, self.rate, self.pair = kind, part, other, rate, pair


def test_a_schema_has_the_base_class_parameters_and_the_defaults_own_values():
    node = OmegaConf.structured(schema(Derived))
    assert OmegaConf.to_container(node) == {
        "kind": "a", "part": {"width": 7, "sizes": (1, 2)}, "other": None, "rate": None, "pair": (0.9, 0.99),
        "root": "???", "number": 3, "folder": Path("x"),
    }  # fmt: skip
    assert OmegaConf.missing_keys(node) == {"root"}


def test_instantiate_makes_dataclasses_tuples_and_paths():
    made = instantiate(Derived, {"root": "r", "part": {"width": 2, "sizes": [5]}, "pair": [1.0, 2.0], "folder": "here"})
    assert made.part == Part(2, (5,))
    assert made.pair == (1.0, 2.0)
    assert made.folder == Path("here")
    assert made.other is None


def test_later_layers_win(toy):
    Path("mine.yaml").write_text("# Mine\nmodel:\n  lr: 5e-5\n  net: {dropout: 0.25}\n")
    config = compose("toy", "phantom", ["wide", "mine.yaml"], ["model.net.dropout=0.125", "trainer.devices=[0,1]"])
    model = config.values["model"]
    assert model["optimizer"] == "adamw"  # the signature's default
    assert config.values["trainer"]["log_every_n_steps"] == 1  # defaults.yaml
    assert config.values["trainer"]["max_epochs"] == 3  # the recipe
    assert model["lr"] == 5e-5  # the file: a float although YAML 1.1 reads a text
    assert model["net"] == {"width": 16, "dropout": 0.125}  # the ablation, then the argument
    assert config.values["trainer"]["devices"] == [0, 1]
    assert config.origins["model.lr"] == "mine.yaml:3"
    assert config.origins["model.net.dropout"] == "argument 'model.net.dropout=0.125'"
    assert "model.optimizer" not in config.origins


def test_an_ablation_may_speak_to_one_recipe(toy):
    assert compose("toy", "phantom", ["wide"]).values["model"]["net"]["width"] == 16
    assert compose("toy", "paper", ["wide"], ["data.root=x"]).values["model"]["net"]["width"] == 64


def test_another_class_brings_its_own_settings_and_drops_the_old_ones(toy):
    Path("old.yaml").write_text("data: {studies_per_patient: 2}\n")
    config = compose("toy", "phantom", ["old.yaml", "other"])
    assert config.values["data"]["class"] == "tests.zoo.toy:OtherData"
    assert config.values["data"]["flavour"] == "sour"
    assert config.values["data"]["phantom"] == 12
    assert config.build("data").flavour == "sour"


def test_every_error_is_reported_at_once_with_its_origin_and_a_suggestion(toy):
    Path("bad.yaml").write_text("model:\n  learning: 1\n  net:\n    widht: 3\ntrainer:\n  max_epochs: many\n")
    arguments = ["modl.lr=1", "lr=1", "model.optimizer=adam", "data.root=${oc.env:HOME}", "loose", "model=3",
                 "trainer.strategy=deepspeed", "model.net=4"]  # fmt: skip
    with pytest.raises(UsageError) as caught:
        compose("toy", "paper", ["bad.yaml"], arguments)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    expected = {
        "bad.yaml:2": "there is no setting model.learning",
        "bad.yaml:4": "did you mean model.net.width?",
        "bad.yaml:6": "trainer.max_epochs: Value 'many'",
        "argument 'modl.lr=1'": "did you mean model.lr?",
        "argument 'lr=1'": "did you mean model.lr?",
        "argument 'model.optimizer=adam'": "expected one of ['adamw', 'sgd']",
        "argument 'data.root=${oc.env:HOME}'": "write the value itself",
        "'loose'": "written key=value",
        "argument 'model=3'": "model is a section",
        "argument 'trainer.strategy=deepspeed'": "['auto', 'ddp', 'zero2', 'zero2_offload']",
        "argument 'model.net=4'": "model.net",
        "data.root is missing": "give data.root=",
    }
    for origin, what in expected.items():
        assert [line for line in lines if line.startswith(origin) and what in line], (origin, what, lines)
    assert len(lines) == len(expected)


def test_accumulation_is_not_set_by_hand(toy):
    with pytest.raises(UsageError, match="data.global_batch_size = data.micro_batch_size × accumulation"):
        compose("toy", "phantom", (), ["trainer.accumulate_grad_batches=4"])


def test_names_are_checked(toy):
    with pytest.raises(UsageError, match="no method is called 'tyo'.*did you mean toy"):
        compose("tyo", "phantom")
    with pytest.raises(UsageError, match="no recipe is called 'papper'.*did you mean paper"):
        compose("toy", "papper")
    with pytest.raises(UsageError, match="no ablation is called 'wid'; there are: other, wide; did you mean wide"):
        compose("toy", "phantom", ["wid"])
    with pytest.raises(UsageError, match="phantom.yaml is not valid YAML|bad.yaml is not valid YAML"):
        Path("bad.yaml").write_text("model: [")
        compose("toy", "phantom", ["bad.yaml"])
    with pytest.raises(UsageError, match="cannot find the class 'tests.zoo.toy:Nobody'"):
        compose("toy", "phantom", (), ["model.class=tests.zoo.toy:Nobody"])


def test_a_resolved_configuration_reads_back_as_itself(toy):
    config = compose("toy", "phantom", ["wide"], ["model.betas=[0.8,0.9]", "model.extra={width: 3}"])
    Path("config.yaml").write_text(config.yaml())
    again = load(Path("config.yaml"))
    assert again.plain() == config.plain()
    assert again.hash() == config.hash()
    assert again.ablations == ("wide",)
    changed = load(Path("config.yaml"), ["model.lr=1.0"])
    assert changed.differences(config.values) == {"model.lr": (5e-3, 1.0)}
    assert changed.hash() != config.hash()


def test_a_class_that_refuses_its_settings_is_a_usage_error(toy):
    with pytest.raises(UsageError, match="model: net.width must be positive"):
        compose("toy", "phantom", (), ["model.net.width=0"]).build("model")


@pytest.mark.parametrize("method", methods())
def test_every_recipe_and_ablation_of_the_zoo_resolves(method):
    assert {"paper", "phantom"} <= set(recipes(method))
    idle = set(ablations(method))
    for recipe in recipes(method):
        for chosen in ([], *([name] for name in ablations(method))):
            config = compose(method, recipe, chosen, allow_missing=True)
            assert set(config.missing) <= {"data.root"}
            config.build("model")
            config.build("metrics")
            import_target(config.values["data"]["class"])
            if config.differences(config.base):
                idle -= set(chosen)
    assert not idle, "these change no recipe"


@pytest.mark.parametrize("path", sorted(configs_folder().rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_begins_with_a_line_for_the_help(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 20
    assert yaml.safe_load(path.read_text())


def test_the_papers_recipe_is_the_papers():
    config = compose("reg2rg", "paper", (), ["data.root=x"]).values
    model, data, trainer = config["model"], config["data"], config["trainer"]
    assert (model["lr"], model["warmup_steps"], model["size"]) == (5e-5, 20, [256, 256, 64])
    assert (model["lora"]["r"], model["lora"]["alpha"], model["lora"]["dropout"]) == (8, 32, 0.1)
    assert (data["global_batch_size"], trainer["max_epochs"], trainer["strategy"]) == (16, 6, "zero2")
    assert (trainer["devices"], trainer["gradient_clip_val"], config["run"]["evaluate"]) == (2, 1.0, "last")
    assert config["log"] == {"wandb": "offline", "project": "rrg-zoo", "text": False}
