"""Language models and tokenizers, through three doors.

`llm` is a hub id or a local folder (real weights; `checkpoints/phantom-llama` is the project's own small one), or
`phantom:llama` / `phantom:gpt2`: the same classes at a small size with fixed random weights and a tokenizer made here,
or `random:<hub id or folder>`: that model's true size with random weights and the phantom's tokenizer, whose ids its
vocabulary holds. That is what a training step costs, measured without the weights; every network here has that door.
Nothing is fetched unless asked for.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from datamodules.files import stand_in, unreadable
from datamodules.study import SettingsFault

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the loader forks after the tokenizer was used

PHANTOMS = ("phantom:llama", "phantom:gpt2")
RANDOM = "random:"

# Published configurations, so that a dry run on the meta device needs no download.
LLAMA_2_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT_2 = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "meta-llama/Llama-2-7b-chat-hf": ("llama", LLAMA_2_7B),
    "meta-llama/Llama-2-7b-hf": ("llama", LLAMA_2_7B),
    "gpt2": ("gpt2", GPT_2),
    "openai-community/gpt2": ("gpt2", GPT_2),
}
LICENCES = {"meta-llama/": "the Llama 2 Community License"}


_CONSTANT = re.compile(r"\.rotary_emb\.inv_freq$|\.position_ids$|\.attn\.(bias|masked_bias)$")  # tables of old versions


@dataclass(frozen=True)
class PhantomSize:
    """The size of a `phantom:` language model.

    Attributes:
        hidden: Width of an embedding.
        layers: Transformer layers.
        heads: Attention heads.
        mlp: Hidden width of the feed-forward layers.
        positions: Longest sequence (GPT-2's own limit is 1024).
        seed: Its weights depend on this alone, not on the global generator.
    """

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 352
    positions: int = 2048
    seed: int = 0


def build_config(llm: str, phantom: PhantomSize, vocabulary: int) -> Any:
    """The configuration of `llm`; `vocabulary` is the size of a phantom's tokenizer."""
    from transformers import AutoConfig, GPT2Config, LlamaConfig

    llm = llm.removeprefix(RANDOM)
    if llm == "phantom:llama":
        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=phantom.hidden,
            intermediate_size=phantom.mlp,
            num_hidden_layers=phantom.layers,
            num_attention_heads=phantom.heads,
            max_position_embeddings=phantom.positions,
            rms_norm_eps=LLAMA_2_7B["rms_norm_eps"],
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    if llm == "phantom:gpt2":
        return GPT2Config(
            vocab_size=vocabulary,
            n_embd=phantom.hidden,
            n_inner=phantom.mlp,
            n_layer=phantom.layers,
            n_head=phantom.heads,
            n_positions=min(phantom.positions, GPT_2["n_positions"]),
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    if llm.startswith("phantom:"):
        raise SettingsFault(f"llm={llm}: there are {' and '.join(PHANTOMS)}")
    if llm in KNOWN:
        kind, values = KNOWN[llm]
        return LlamaConfig(**values) if kind == "llama" else GPT2Config(**values)
    with plain_errors(llm, how_to_get(llm)):
        return AutoConfig.from_pretrained(located(llm))


def build_language_model(config: Any, llm: str, dtype: torch.dtype, phantom: PhantomSize, weights: bool = True) -> Any:
    """The language model, with SDPA attention.

    On the meta device, or with `weights=False`, its weights are not read; other files bring them.
    """
    from transformers import AutoModelForCausalLM

    meta = torch.get_default_device().type == "meta"
    if is_made(llm) or meta or not weights:
        # The phantom's weights must not depend on what was drawn before, nor change what is drawn after.
        with torch.random.fork_rng(enabled=not meta):
            if not meta:
                torch.manual_seed(phantom.seed)
            return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    load: Any = partial(AutoModelForCausalLM.from_pretrained, dtype=dtype, attn_implementation="sdpa")
    with plain_errors(llm, how_to_get(llm)):
        model, found = load(located(llm), ignore_mismatched_sizes=True, output_loading_info=True)
    check_filled(llm, found)
    return model


def is_made(source: str) -> bool:
    """Whether the weights of a network are random numbers, so that no file is read: `phantom:…` or `random:…`."""
    return source.startswith(("phantom:", RANDOM))


def check_filled(source: str, found: Mapping[str, Any], what: str = "its model") -> None:
    """Refuses a model that a file did not fill: transformers leaves such weights random, with a warning.

    Args:
        source: Hub id or folder, for the message.
        found: `from_pretrained`'s `output_loading_info`, made with `ignore_mismatched_sizes`.
        what: The model, for the message.

    Raises:
        SettingsFault: A weight is missing, unknown or of another shape; the message names the first.
    """
    unknown = [key for key in found["unexpected_keys"] if not _CONSTANT.search(key)]
    for keys, fault in ((found["missing_keys"], "is missing"), (unknown, "is unknown")):
        if keys:
            more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
            raise SettingsFault(f"{source} does not fill {what}: {min(keys)} {fault}{more}")
    for key, there, wanted in found["mismatched_keys"]:
        raise SettingsFault(f"{source} does not fill {what}: {key} is {tuple(there)}, not {tuple(wanted)}")


def build_tokenizer(llm: str) -> Any:
    """The tokenizer of `llm`, read from its `tokenizer.json` as it stands.

    Tokenizer classes may rebuild that file with other rules (Llama's `legacy=False` reads `.` after a special token
    where the authors' ids have `▁.`), and add what stands in `added_tokens.json`; neither happens here.
    """
    from transformers import PreTrainedTokenizerFast

    if is_made(llm):
        return PreTrainedTokenizerFast(
            tokenizer_object=phantom_tokenizer(),
            unk_token="<unk>",
            bos_token="<s>",
            eos_token="</s>",
            pad_token="<unk>",
        )
    with plain_errors(llm, how_to_get(llm)):
        settings = json.loads(_file(llm, "tokenizer_config.json").read_text())
        names = {key: _content(settings.get(key)) for key in ("unk_token", "bos_token", "eos_token")}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(_file(llm, "tokenizer.json")), **{key: name for key, name in names.items() if name}
        )
    # The authors pad with <unk> (Llama, id 0); GPT-2 has nothing but its end of text. Padding is never read nor learnt.
    tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def located(path: str) -> str:
    """`checkpoints/…` where the project's own lies, whatever the working directory; of a hub id the folder in the
    hub's cache, if it is there, for which nobody is asked; anything else as it is."""
    own = Path(__file__).parents[2] / path
    if path.startswith("checkpoints/") and own.exists():
        return str(own)
    if Path(path).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        return path
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(path, "config.json")
    return str(Path(cached).parent) if isinstance(cached, str) else path


def _file(llm: str, name: str) -> Path:
    if Path(located(llm)).is_dir():
        path = Path(located(llm)) / name
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: the folder must hold the model's tokenizer.json and tokenizer_config.json"
            )
        return path
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(llm, name))


@contextmanager
def plain_errors(source: str, advice: str) -> Iterator[None]:
    """One line that says what to do, for whatever the hub's client, or a reader of broken files, raises.

    Args:
        source: Hub id or folder of a model in transformers' layout.
        advice: What to do where its files are not at hand.

    Raises:
        SettingsFault: One of its files is broken; the message names it.
        FileNotFoundError: It cannot be read for another reason.
    """
    try:
        yield
    except (SettingsFault, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # safetensors, tokenizers and transformers have kinds of their own
        if broken := _broken_file(source):
            raise SettingsFault(broken) from error
        raise FileNotFoundError(f"{source} cannot be read: {advice} ({type(error).__name__})") from error


def _broken_file(source: str) -> str | None:
    """What is wrong with the first broken file of a folder, or of a hub id's files on this machine."""
    folder = Path(located(source))
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
            elif path.suffix in (".bin", ".pt", ".pth") and (wrong := stand_in(path)):
                return f"{path}: {wrong}"
        except (OSError, ValueError, SafetensorError) as error:
            return unreadable(path, error)
    return None


def how_to_get(llm: str) -> str:
    """What to do when the weights of `llm` are not at hand."""
    if Path(llm).is_absolute() or llm.startswith("."):
        return "give a folder with config.json, tokenizer.json, tokenizer_config.json and *.safetensors"
    licence = next((name for prefix, name in LICENCES.items() if llm.startswith(prefix)), None)
    accept = f"accept {licence} at https://huggingface.co/{llm}, `hf auth login`, then " if licence else ""
    return f"{accept}run `hf download {llm}` while online, or set model.llm to a local folder"


def at_hand(llm: str, weights: bool = True) -> bool:
    """Whether `llm` can be read without a download: its tokenizer, and its weights where they are wanted."""
    if is_made(llm):
        return True
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin.index.json", "pytorch_model.bin")
    return is_local(llm, "tokenizer.json") and (not weights or any(is_local(llm, name) for name in names))


def is_local(llm: str, name: str) -> bool:
    """Whether a file of a local folder, or of a hub id, is on this machine."""
    if Path(located(llm)).is_dir():
        return (Path(located(llm)) / name).is_file()
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(llm, name), str)


# The phantom's tokenizer: deterministic, made in a moment, reads any text back as it was.


def phantom_tokenizer() -> Any:
    """`word_tokenizer` of the words of the phantom's CT reports and of the prompt, with `<s>` before a text."""
    from tokenizers import processors

    tokenizer = word_tokenizer(_phantom_pieces())
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def word_tokenizer(pieces: Iterable[str]) -> Any:
    """A Unigram tokenizer of given pieces with bytes to fall back on, spaced as Llama's (`▁` before each word).

    It adds nothing to a text. `decode(encode(text)) == text` for any text. `<unk>`, `<s>` and `</s>` are 0, 1 and 2.

    Args:
        pieces: Whole words, best with their `▁`; the printable characters are added.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    characters = ["▁", *map(chr, range(33, 127))]
    vocabulary: list[tuple[str, float]] = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    vocabulary += [(f"<0x{byte:02X}>", -1000.0) for byte in range(256)]
    vocabulary += [(piece, -10.0 if len(piece) > 1 else -12.0) for piece in dict.fromkeys([*pieces, *characters])]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def _phantom_pieces() -> list[str]:
    """Words with and without a space before them."""
    from datamodules.phantom.wording import vocabulary
    from lit_modules.nets.prompt import Prompt

    prompts = " ".join(
        Prompt(global_context=glob, align=align).question(0) for glob in (True, False) for align in (True, False)
    )
    said = f"{prompts} The region is. The other report is:"
    words = sorted({*vocabulary(), *re.findall(r"[A-Za-z]+", re.sub(r"<[^>]*>", " ", said))})
    return [*(f"▁{word}" for word in words), *(word for word in words if len(word) > 1)]
