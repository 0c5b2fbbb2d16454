"""The reference's tiny goldens as folders and files of the real layouts, and a tiny RegionFormer that reads them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import CLIPVisionConfig, GPT2Config, GPT2LMHeadModel

from lit_modules.regionformer import Decoding, Mapper, RegionFormer

STOP = 13  # GPT-2's and the goldens' full stop
GPT = {"vocab_size": 64, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}


def read_golden(path: Path, which: str = "") -> dict[str, Tensor]:
    """Tensors by name; with `which`, those of one of several models."""
    arrays = np.load(path)
    prefix = f"{which}." if which else ""
    return {key.removeprefix(prefix): torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith(prefix)}


def write_gpt(folder: Path) -> Path:
    """A folder as a hub would give it: 64 tokens, the 13th a full stop, the last the end of text; random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    words = {**{f"w{number}": number for number in range(63) if number != STOP}, ".": STOP, "</s>": 63}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Metaspace(" ", prepend_scheme="never")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "</s>"}))
    GPT2LMHeadModel(GPT2Config(**GPT, bos_token_id=63, eos_token_id=63)).save_pretrained(folder)
    return folder


def write_clip(folder: Path, golden: Path) -> Path:
    """The golden's CLIP (32 pixels, patches of 8, embeddings of 16) in transformers' layout."""
    CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, patch_size=8, image_size=32,
        projection_dim=16,
    ).save_pretrained(folder)  # fmt: skip
    weights = read_golden(golden / "clip_tiny.npz", "h")
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / "model.safetensors")
    return folder


def tiny_model(golden: Path, folder: Path, weights: dict[str, Tensor] | None = None, **settings: Any) -> RegionFormer:
    """A RegionFormer of the goldens' size, by default for one embedding; `weights` as the authors' code saves them."""
    if weights is not None:
        torch.save(weights, folder / "reference.pt")
        settings["init_from"] = str(folder / "reference.pt")
    model = RegionFormer(
        llm=str(write_gpt(folder / "gpt2")),
        clip=str(write_clip(folder / "clip", golden)),
        mapper=settings.pop("mapper", Mapper(prefix_length=5, clip_length=4, layers=2)),
        max_length=40,
        decoding=settings.pop("decoding", Decoding()),
        **{"input": "image"} | settings,
    )
    model.configure_model()
    return model.eval()
