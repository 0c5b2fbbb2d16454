"""`random:…`: a published network at its true size, with random weights, when none of its files is there."""

import pytest
import torch

from lit_modules.nets import backbones, clip_image, llava, lvm_med, vlm
from lit_modules.nets.vlm_families import FAMILIES, VLMS

SIZE = backbones.PhantomSize()


def test_weights_are_random_and_the_size_is_true() -> None:
    there = "checkpoints/phantom-llama"
    source = f"random:{there}"
    config = backbones.build_config(source, SIZE, 0)
    first, again, true = (
        backbones.build_language_model(config, name, torch.bfloat16, SIZE).state_dict()
        for name in (source, source, there)
    )
    assert {name: weight.shape for name, weight in first.items()} == {name: w.shape for name, w in true.items()}
    name = "model.layers.0.self_attn.q_proj.weight"
    assert first[name].dtype == torch.bfloat16
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], true[name])


def test_nothing_of_it_need_be_there() -> None:
    hub = "random:meta-llama/Llama-2-7b-chat-hf"
    assert backbones.at_hand(hub) and llava.llava_at_hand("random:liuhaotian/llava-v1.5-7b")
    assert lvm_med.resnet_at_hand("random:weights/lvmmed_resnet.torch")
    assert clip_image.clip_at_hand(f"random:{clip_image.VIT_B_32}") and vlm.vlm_at_hand("random:google/medgemma-4b-it")
    assert len(backbones.build_tokenizer(hub)) < backbones.build_config(hub, SIZE, 0).vocab_size


def test_sizes_are_the_papers() -> None:
    with torch.device("meta"):
        source = f"random:{llava.HUB}"
        config = llava.build_llava_config(source, SIZE, clip_image.PhantomCLIP(), 0)
        networks = {
            7.06e9: llava.build_llava(config, source, torch.bfloat16, SIZE),
            23.5e6: _resnet("random:weights/lvmmed_resnet.torch"),
            87.8e6: _clip(f"random:{clip_image.VIT_B_32}"),
        }
    for wanted, network in networks.items():
        assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("hub", [next(hub for hub in VLMS if VLMS[hub].family == family) for family in FAMILIES])
def test_a_vision_language_model_knows_the_ids_of_its_phantom_tokenizer(hub: str) -> None:
    source = f"random:{hub}"
    processor, config = vlm.build_processor(source), vlm.build_config(source)
    assert vlm.family_of(source) == FAMILIES[VLMS[hub].family]
    assert config.image_token_id == processor.tokenizer.convert_tokens_to_ids(processor.family.image_token)
    assert config.text_config.vocab_size > len(processor.tokenizer)
    assert config.text_config.hidden_size == vlm.build_config(hub).text_config.hidden_size


def _resnet(source: str) -> torch.nn.Module:
    phantom = lvm_med.PhantomResNet()
    return lvm_med.build_resnet(lvm_med.build_resnet_config(source, phantom), source, phantom)


def _clip(source: str) -> torch.nn.Module:
    phantom = clip_image.PhantomCLIP()
    return clip_image.build_vision_model(clip_image.build_vision_config(source, phantom), source, phantom)
