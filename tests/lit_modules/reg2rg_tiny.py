"""The reference's tiny end-to-end golden as files of the authors' layout, and a tiny Reg2RG that reads them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lit_modules.nets.lora import LoRA
from lit_modules.nets.perceiver import PerceiverSettings
from lit_modules.nets.vit3d import Encoder3D
from lit_modules.reg2rg import Decoding, Reg2RG


def encoder(config: dict[str, Any]) -> Encoder3D:
    """The reference's names of an encoder's sizes → ours."""
    names = {"image_patch_size": "patch_size", "frame_patch_size": "patch_frames"}
    return Encoder3D(**{names.get(key, key): value for key, value in config.items() if key != "emb_dropout"})


def read_golden(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The configuration, the weights under the reference's names, and the rest."""
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
        config = json.loads(file.metadata()["config"])
    weights = {key[3:]: value for key, value in tensors.items() if key.startswith("sd.")}
    return config, weights, {key: value for key, value in tensors.items() if not key.startswith("sd.")}


def write_llama(folder: Path, config: dict[str, Any]) -> Path:
    """A folder as a hub would give it: configuration and a tokenizer of exactly `config["vocab_size"]` pieces."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((f"<0x{byte:02X}>", -100.0) for byte in range(256))]
    pieces += [(chr(33 + index), -1.0) for index in range(config["vocab_size"] - len(pieces))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": {"content": "</s>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    kind = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(kind | config))
    return folder


def golden_model(golden: Path, folder: Path) -> tuple[Reg2RG, dict[str, Any], dict[str, torch.Tensor]]:
    """The golden's own model in evaluation mode, from a folder and a `pytorch_model.bin`; its inputs and outputs."""
    config, weights, expected = read_golden(golden / "reg2rg_e2e_tiny.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    perceiver = config["perceiver"]
    model = Reg2RG(
        llm=str(write_llama(folder / "llama", config["llama"])),
        lora=LoRA(config["lora"]["r"], config["lora"]["alpha"]),
        size=(16, 16, 8),
        vision=encoder(config["vision"]),
        mask_encoder=encoder(config["mask"]),
        perceiver=PerceiverSettings(
            perceiver["depth"],
            perceiver["num_latents"],
            perceiver["heads"],
            perceiver["dim_head"],
            perceiver["ff_mult"],
        ),
        init_from=str(folder / "pytorch_model.bin"),
        gradient_checkpointing=False,
        dtype="float32",
        decoding=Decoding(max_new_tokens=12),
    )
    model.configure_model()
    return model.eval(), config, expected
