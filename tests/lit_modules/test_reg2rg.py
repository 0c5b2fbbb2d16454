"""Reg2RG against the reference implementation's own numbers, and the ways in which it is allowed to differ."""

import pickle
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from reg2rg_tiny import golden_model
from torch import Tensor

from datamodules.study import Study
from lit_modules.nets.backbones import PhantomSize
from lit_modules.nets.perceiver import PerceiverSettings
from lit_modules.nets.prompt import Prompt, splice
from lit_modules.nets.vit3d import Encoder3D
from lit_modules.reg2rg import Decoding, Reg2RG
from lit_modules.report_generator import RegionReport


@pytest.fixture(scope="module")
def reference(
    golden: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Reg2RG, dict[str, Any], dict[str, Tensor]]:
    return golden_model(golden, tmp_path_factory.mktemp("reference"))


def golden_rows(model: Reg2RG, config: dict[str, Any], expected: dict[str, Tensor]) -> Tensor:
    """The visual rows of the golden's two studies, the second of which lacks the lung."""
    volumes, masks, volume_rows, mask_rows = [], [], [], []
    for study, areas in enumerate(config["region2area"]):
        volumes.append(expected["vision_x.image"][study])
        volume_rows.append((study, 4))
        for slot, area in areas.items():
            first = 4 + 32 + 33 * int(slot)
            volumes.append(expected[f"vision_x.{area}"][study])
            volume_rows.append((study, first))
            masks.append(expected[f"mask_x.{area}"][study][None])
            mask_rows.append((study, first + 32))
    shape = (2, 4 + 32 + 33 * 4)
    return model.embedding_layer(
        torch.cat(volumes), torch.tensor(volume_rows), torch.cat(masks), torch.tensor(mask_rows), shape
    )


def test_splice_loss_and_gradients_equal_the_reference(reference) -> None:
    model, config, expected = reference
    model.zero_grad()
    rows = golden_rows(model, config, expected)
    words = model.lang_model.get_input_embeddings()
    embedded = splice(expected["lang_x"], words, rows, config["V"])
    torch.testing.assert_close(embedded, expected["input_embedding"], rtol=1e-4, atol=1e-5)
    batch = {"cut": [], "tokens": expected["lang_x"], "labels": expected["labels"]}
    loss = model._loss(batch, rows)
    torch.testing.assert_close(loss, expected["loss"], rtol=1e-6, atol=1e-6)
    loss.backward()
    gradients = {key.removeprefix("grad."): value for key, value in expected.items() if key.startswith("grad.")}
    assert len(gradients) == 9
    for name, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-7, msg=name)


def test_logits_equal_the_reference(reference) -> None:
    model, config, expected = reference
    with torch.no_grad():
        rows = golden_rows(model, config, expected)
        inputs = splice(expected["lang_x"], model.lang_model.get_input_embeddings(), rows, config["V"])
        logits = model.lang_model(inputs_embeds=inputs, attention_mask=expected["attention_mask"]).logits
    last = expected["attention_mask"].sum(1) - 1
    for study in range(2):
        picked = torch.stack([logits[study, last[study] - j] for j in range(8)])
        torch.testing.assert_close(picked, expected["logits"][study], rtol=1e-4, atol=1e-5)


def test_greedy_ids_equal_the_reference_in_one_padded_batch(reference) -> None:
    model, config, expected = reference
    with torch.no_grad():
        rows = golden_rows(model, config, expected)
        starts = [int((labels != -100).nonzero()[0]) for labels in expected["labels"]]
        prompts = [ids[:start] for ids, start in zip(expected["lang_x"], starts, strict=True)]
        assert len(prompts[0]) != len(prompts[1]), "so that one of them is padded"
        pad = torch.nn.utils.rnn.pad_sequence
        batch = {
            "prompt": pad(prompts, True, 0, padding_side="left"),
            "prompt_mask": pad([torch.ones_like(p) for p in prompts], True, 0, padding_side="left"),
        }
        written = model._write(batch, rows)
    for study in range(2):
        assert [1, *written[study].tolist()] == expected[f"generated.{study}"].tolist()


# A Reg2RG of the phantom's language models, small enough for every ablation to be run.

SMALL: dict[str, Any] = {
    "llm": "phantom:llama",
    "phantom": PhantomSize(hidden=32, layers=2, heads=2, mlp=48),
    "llm_tuning": "full",
    "size": (16, 16, 8),
    "vision": Encoder3D(16, 8, patch_size=8, patch_frames=4, dim=12, depth=1, heads=2, mlp_dim=16, dim_head=8),
    "mask_encoder": Encoder3D(16, 8, 8, 4, dim=9, depth=1, heads=1, mlp_dim=16, channels=1, dim_head=8),
    "perceiver": PerceiverSettings(depth=1, latents=4, heads=2, dim_head=8),
    "max_length": 1024,
    "gradient_checkpointing": False,
    "dtype": "float32",
    "decoding": Decoding(max_new_tokens=8),
}
TEXTS = {"abdomen": "No mass.", "heart": "The heart is large.", "lung": "A 4 mm nodule.", "bone": " "}


def study(name: str, regions: tuple[str, ...]) -> Study:
    generator = np.random.default_rng(len(regions))
    volume = generator.integers(-900, 300, (20, 18, 10)).astype(np.int16)
    masks = {}
    for index, region in enumerate(regions):
        masks[region] = np.zeros(volume.shape, np.uint8)
        masks[region][3 * index : 3 * index + 5, 2:15, 1:9] = 1
    return Study(name, volume=volume, masks=masks, regions=TEXTS)


STUDIES = (study("one", ("heart", "lung", "abdomen", "bone")), study("two", ("lung", "abdomen")))


def small(**changes: Any) -> Reg2RG:
    torch.manual_seed(0)
    model = Reg2RG(**SMALL | changes)
    model.configure_model()
    return model


def batch_of(model: Reg2RG, *studies: Study, rng: random.Random | None = None) -> dict[str, Any]:
    pre = pickle.loads(pickle.dumps(model.preprocessor()))
    return pre.collate([pre(study, pre.arrays(study), rng) for study in studies or STUDIES])


ABLATIONS: dict[str, dict[str, Any]] = {
    "paper": {},
    "table_v_no_lfd": {"decouple": False},
    "table_vi_global_only": {"texture": False, "geometry": False},
    "table_vi_a_texture": {"geometry": False, "global_context": False},
    "table_vi_b_texture_geometry": {"global_context": False},
    "table_vii_no_rra": {"align": False},
    "table_viii_gpt2": {"llm": "phantom:gpt2", "llm_tuning": "lora"},
    "lora": {"llm_tuning": "lora"},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_learns_with_all_its_weights_and_reports(name: str) -> None:
    model = small(**ABLATIONS[name], freeze_vision=False)
    batch = batch_of(model, rng=random.Random(1))
    optimizer = model.configure_optimizers()["optimizer"]
    losses = []
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    for _ in range(4):
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad), "no process may lack a gradient"
    reports = model.eval().generate(batch_of(model))
    assert [report.study_id for report in reports] == ["one", "two"]
    grounds = model.prompt.align and model.prompt.shows_regions
    assert all((report.regions is not None) == grounds for report in reports)
    masked = name not in ("table_v_no_lfd", "table_vi_global_only", "table_vi_a_texture")
    assert hasattr(model.embedding_layer, "mask_encoder") == masked


def test_targets_of_the_ablations() -> None:
    def target(name: str) -> str:
        model = small(**ABLATIONS[name])
        batch = batch_of(model, STUDIES[0], rng=random.Random(1))
        learnt = batch["labels"][0][batch["labels"][0] != -100]
        assert learnt[-1] == model.tokenizer.eos_token_id
        return model.tokenizer.decode(learnt, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    plain = "No mass. The heart is large. A 4 mm nodule. "
    assert target("table_vii_no_rra") == plain, "regions in their order, no names"
    assert target("table_vi_global_only") == plain
    named = target("paper")
    assert sorted(Prompt().parse(named, ["?"] * 3)) == sorted(
        ("?", region, TEXTS[region]) for region in ("abdomen", "heart", "lung")
    )


def test_without_lfd_regions_are_masked_but_not_cropped() -> None:
    with_lfd, without = (batch_of(small(decouple=decouple), STUDIES[1])["pixels"][0] for decouple in (True, False))
    assert torch.equal(with_lfd["volume/image"], without["volume/image"])
    assert (without["volume/lung"] == -1).float().mean() > 0.5 > (with_lfd["volume/lung"] == -1).float().mean()
    assert not any(key.startswith("mask/") for key in without)


def test_regions_prompted_at_test() -> None:
    assert batch_of(small())["regions"] == [["abdomen", "bone", "heart", "lung"], ["abdomen", "lung"]]
    reported = small(prompted_at_test="reported")
    assert batch_of(reported)["regions"] == [["abdomen", "heart", "lung"], ["abdomen", "lung"]]
    assert sorted(batch_of(small(), rng=random.Random(0))["regions"][0]) == ["abdomen", "heart", "lung"], "in training"


@pytest.mark.parametrize("llm", ["phantom:llama", "phantom:gpt2"])
def test_a_study_gets_the_same_report_alone_and_in_a_padded_batch(llm: str) -> None:
    model = small(llm=llm, decoding=Decoding(max_new_tokens=20)).eval()
    with torch.no_grad():  # embeddings of a fresh network hardly differ: make the report depend on what is shown
        for parameter in model.lang_model.parameters():
            parameter.mul_(4)
    batch = batch_of(model)
    assert batch["prompt_mask"][1, 0] == 0, "the second study is padded"
    together = model.generate(batch)
    alone = [model.generate(batch_of(model, one))[0] for one in STUDIES]
    assert [report.raw for report in together] == [report.raw for report in alone]
    assert together[0].raw != together[1].raw


@pytest.mark.parametrize("llm", ["phantom:llama", "phantom:gpt2"])
def test_logits_only_where_labels_are_give_the_full_loss_and_gradients(llm: str) -> None:
    model = small(llm=llm, freeze_vision=False).eval()
    batch = batch_of(model)
    loss = model.loss(batch)
    loss.backward()
    cheap = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    mask = (torch.arange(batch["tokens"].shape[1]) < (batch["labels"] != -100).int().cumsum(1).argmax(1, True)).long()
    inputs = model._splice(batch["tokens"], model._rows(batch))
    full = model.lang_model(inputs_embeds=inputs, attention_mask=mask, labels=batch["labels"]).loss
    full.backward()
    torch.testing.assert_close(loss, full, rtol=1e-5, atol=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(cheap[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_regions_of_one_study_do_not_reach_another() -> None:
    model = small().eval()
    with torch.no_grad():
        both = model._rows(batch_of(model))
        second = model._rows(batch_of(model, STUDIES[1]))
    rows = 4 + 4 + 2 * 5
    torch.testing.assert_close(both[1, :rows], second[0], rtol=1e-5, atol=1e-6)
    assert (both[1, rows:] == 0).all() and (both[0] != 0).any(-1).all()


def test_frozen_encoder_and_its_dropout() -> None:
    faithful = small(vision=replace(SMALL["vision"], dropout=0.5))
    assert faithful.training and faithful.embedding_layer.vision_encoder.training
    assert not any(p.requires_grad for p in faithful.embedding_layer.vision_encoder.parameters())
    volumes = torch.randn(2, 1, 16, 16, 8)
    assert not faithful.embedding_layer.vision_encoder(volumes).requires_grad
    assert not torch.equal(faithful.embedding_layer.texture(volumes), faithful.embedding_layer.texture(volumes))
    sound = small(vision=replace(SMALL["vision"], dropout=0.5), encoder_dropout=False).eval().train()
    assert sound.training and not sound.embedding_layer.vision_encoder.training
    assert torch.equal(sound.embedding_layer.texture(volumes), sound.embedding_layer.texture(volumes))
    assert sound.embedding_layer.texture(volumes).requires_grad, "what follows the encoder is trained"


def test_many_volumes_pass_the_encoder_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, volumes = small().eval().embedding_layer, torch.randn(5, 1, 16, 16, 8)
    whole, seen = layer.texture(volumes), []
    monkeypatch.setattr("lit_modules.nets.visual_embedding.VOXELS_AT_ONCE", 2 * 16 * 16 * 8)
    layer.vision_encoder.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    torch.testing.assert_close(layer.texture(volumes), whole, rtol=1e-5, atol=1e-6)
    assert seen == [2, 2, 1]


def test_a_study_without_regions_still_trains_every_weight() -> None:
    model = small()
    batch = batch_of(model, study("bare", ()), rng=random.Random(0))
    assert batch["regions"] == [[]]
    model.loss(batch).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert model.eval().generate(batch)[0].regions == ()


def test_reports_are_read_from_what_was_written() -> None:
    model = small()
    raw = "The region 0 is lung: Clear. The region 1 is nothing known: Odd.\n "
    report = model._report("x", ["lung", "heart", "bone"], raw)
    assert report.raw == raw and report.text == "Clear. Odd."
    assert report.regions == (
        RegionReport("lung", "lung", "Clear."),
        RegionReport("heart", None, "Odd."),
        RegionReport("bone", None, ""),
    )
    empty = model._report("x", ["lung"], "")
    assert (empty.text, empty.raw, empty.regions) == ("", "", (RegionReport("lung", None, ""),))


def test_decoding_is_ours_and_not_the_weights_own() -> None:
    greedy = small().lang_model.generation_config
    assert not greedy.do_sample and greedy.max_new_tokens == 8
    drawn = Decoding(sample=True, temperature=0.6, top_p=0.9, top_k=30, max_new_tokens=12)
    model = small(decoding=drawn).eval()
    config = model.lang_model.generation_config
    assert (config.do_sample, config.temperature, config.top_p, config.top_k) == (True, 0.6, 0.9, 30)
    batch = batch_of(model)
    assert model.generate(batch)[0].raw != model.generate(batch)[0].raw


def test_bfloat16_and_gradient_checkpointing() -> None:
    changes = {"dtype": "bfloat16", "llm_tuning": "lora", "gradient_checkpointing": True}
    model = small(**changes)
    batch = batch_of(model)
    assert batch["pixels"][0]["volume/image"].dtype == torch.uint16, "stored as bfloat16's bits"
    loss = model.loss(batch)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, small(llm_tuning="lora").loss(batch), rtol=2e-2, atol=2e-2)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert len(model.eval().generate(batch)) == 2


def test_settings_that_cannot_work_are_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="height of 20 voxels"):
        Reg2RG(**SMALL | {"size": (20, 16, 8)})
    with pytest.raises(ValueError, match="model.texture"):
        Reg2RG(**SMALL | {"texture": False, "global_context": False})
    with pytest.raises(ValueError, match="set model.max_length=1024"):
        Reg2RG(**SMALL | {"llm": "phantom:gpt2", "max_length": 2048}).configure_model()
    with pytest.raises(ValueError, match=r"set model.decoding.max_new_tokens=\d+ or less"):
        Reg2RG(**SMALL | {"llm": "phantom:gpt2", "decoding": Decoding(max_new_tokens=900)}).configure_model()
    with pytest.raises(ValueError, match="set model.max_length above"):
        Reg2RG(**SMALL | {"max_length": 50}).preprocessor()


def test_long_sequences_warn_by_name() -> None:
    model = small()
    longest = len(model.tokenizer(model.prompt.question(10))["input_ids"]) + 1
    model = small(max_length=longest)
    long = replace(STUDIES[0], id="wordy", regions=TEXTS | {"lung": "A 4 mm nodule. " * 60})
    with pytest.warns(UserWarning, match=f"cut to model.max_length={longest} tokens: wordy"):
        assert model.loss(batch_of(model, long)).isfinite()


def test_published_size_has_the_published_parameter_counts() -> None:
    with torch.device("meta"):
        model = Reg2RG()
        model.configure_model()
        model.configure_model()
    parameters = list(model.parameters())
    assert sum(p.numel() for p in parameters if p.requires_grad) == 52_780_943
    assert sum(p.numel() for p in parameters) == 6_857_404_559
    assert all(p.is_meta for p in parameters)


def test_requirements_and_frozen_files(tmp_path: Path) -> None:
    assert small().requirements() == [] and small().frozen_files() == {}
    (tmp_path / "vit.pth").touch()
    paper = Reg2RG(vision_weights=str(tmp_path / "vit.pth"), adapter_weights="nowhere/perceiver.pth")
    needs = {need.what: need for need in paper.requirements()}
    assert needs["vit.pth"].met and not needs["perceiver.pth"].met
    assert "Llama 2" in needs["meta-llama/Llama-2-7b-chat-hf"].how
    assert paper.frozen_files() == {
        "lang_model.": "meta-llama/Llama-2-7b-chat-hf",
        "embedding_layer.vision_encoder.": str(tmp_path / "vit.pth"),
    }
    assert set(Reg2RG(init_from="all.bin").frozen_files().values()) == {"all.bin"}


def test_learning_rate_warms_up_and_stays() -> None:
    settings = small(lr=5e-5, warmup_steps=20).configure_optimizers()
    optimizer, scheduler = settings["optimizer"], settings["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(30):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[1] == pytest.approx(2.5e-6) and rates[20:] == [5e-5] * 10  # 2.5e-6: the authors' log after one step
    assert optimizer.defaults["betas"] == (0.9, 0.999) and optimizer.defaults["weight_decay"] == 0


def test_fits_saves_and_comes_back(tmp_path: Path) -> None:
    model = small(llm_tuning="lora", lr=1e-2, warmup_steps=0)
    loader = torch.utils.data.DataLoader([batch_of(model)], batch_size=None)
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, loader, loader)
    assert {"train/loss", "validation/loss"} <= set(trainer.callback_metrics)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    loaded = Reg2RG.load_from_checkpoint(tmp_path / "run.ckpt", map_location="cpu")
    assert loaded.settings == model.settings
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())
    batch = batch_of(model)
    assert loaded.eval().predict_step(batch, 0)[0].raw == model.eval().generate(batch)[0].raw
    loaded.loss(batch).backward()  # nothing of inference mode stays behind
