"""What Reg2RG costs the reference's way and ours, side by side in one run.

`python -m benchmarks.reg2rg [--quick]`. The reference's way is written out here, plainly, from what its code does; both
ways get the same weights and inputs, and the last column says how far their results are apart. Sizes are chosen so that
two CPU cores are done in a few minutes; sequence length, number of regions and vocabulary are the paper's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from lit_modules.nets.lora import LoRA, merged, tune, without_adapters
from lit_modules.nets.prompt import splice
from lit_modules.nets.vit3d import Encoder3D, SelfAttention, ViT3D

PADDED, REAL = 2048, 815  # tokens: the authors' padding; the mean of the released validation texts with their prompt
LABELLED = 324  # tokens: the mean target
VOCABULARY, SPECIAL, REGIONS = 32000, 366, 10


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def row(name: str, theirs: Callable[[], Tensor], ours: Callable[[], Tensor]) -> dict[str, Any]:
    """One figure; both ways are run and their results compared."""
    reference, expected = timed(theirs)
    seconds, result = timed(ours)
    apart = (expected.float() - result.float()).abs().max().item()
    return {"name": name, "unit": "s", "reference": reference, "ours": seconds, "apart": apart}


# Splice.


def splice_row(dim: int) -> dict[str, Any]:
    """Token ids to embeddings for one study: a one-hot matrix times the whole table, or a gather."""
    words, rows = torch.nn.Embedding(VOCABULARY, dim).requires_grad_(False), torch.randn(1, SPECIAL, dim)
    tokens = torch.randint(0, VOCABULARY, (1, PADDED))
    tokens[0, 100:466] = torch.arange(VOCABULARY, VOCABULARY + SPECIAL)

    def theirs() -> Tensor:
        table = torch.cat((words.weight[None], rows), dim=1)
        return F.one_hot(tokens, VOCABULARY + SPECIAL).to(table.dtype) @ table

    return row(f"splice, {dim} wide", theirs, lambda: splice(tokens, words, rows, VOCABULARY))


# Encoder.


def plain_attention(self: SelfAttention, tokens: Tensor) -> Tensor:
    """Attention with its matrix written out."""
    q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.to_qkv(tokens).chunk(3, dim=-1))
    weights = F.dropout((q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1), self.dropout, self.training)
    return self.to_out((weights @ v).transpose(1, 2).flatten(2))


def encoder_row(size: tuple[int, int, int], depth: int, volumes: int) -> dict[str, Any]:
    """Global and regional volumes of one study: one by one on three channels, or together on one."""
    net = ViT3D(Encoder3D(512, 512, 32, 4, dim=768, depth=depth, heads=8, mlp_dim=2048)).eval().requires_grad_(False)
    pixels = torch.rand(volumes, 1, *size) * 2 - 1

    def theirs() -> Tensor:
        ours, SelfAttention.forward = SelfAttention.forward, plain_attention  # type: ignore[method-assign]
        try:
            return torch.cat([net(volume[None].repeat(1, 3, 1, 1, 1)) for volume in pixels])
        finally:
            SelfAttention.forward = ours  # type: ignore[method-assign]

    shape = "×".join(map(str, size))
    return row(f"encode {volumes} volumes of {shape}, {depth} layers", theirs, lambda: net(pixels))


# Language model.


def language_model(hidden: int, layers: int, attention: str) -> Any:
    """A LLaMA with adapters that do something; the same weights each time."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=4,
        pad_token_id=0,
        eos_token_id=None,  # so that every report has the same length
    )
    model = tune(AutoModelForCausalLM.from_config(config, attn_implementation=attention), "lora", LoRA(dropout=0.0))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


def training_row(hidden: int, layers: int) -> dict[str, Any]:
    """Forward and backward of one study: padded with all logits, or its own length, logits where labels are."""
    eager, sdpa = (language_model(hidden, layers, attention) for attention in ("eager", "sdpa"))
    inputs = torch.randn(1, REAL, hidden, generator=torch.Generator().manual_seed(0))
    labels = torch.full((1, REAL), -100)
    labels[0, -LABELLED:] = torch.randint(3, VOCABULARY, (LABELLED,))

    def gradient(model: Any, loss: Tensor) -> Tensor:
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    def theirs() -> Tensor:
        padded, ignored = F.pad(inputs, (0, 0, 0, PADDED - REAL)), F.pad(labels, (0, PADDED - REAL), value=-100)
        mask = (torch.arange(PADDED) < REAL)[None].long()
        return gradient(eager, eager(inputs_embeds=padded, attention_mask=mask, labels=ignored, use_cache=False).loss)

    def ours() -> Tensor:
        model = without_adapters(sdpa)
        states, wanted = model.model(inputs_embeds=inputs, use_cache=False).last_hidden_state, labels[:, 1:]
        learnt = wanted != -100
        return gradient(sdpa, F.cross_entropy(model.lm_head(states[:, :-1][learnt]).float(), wanted[learnt]))

    return row(f"train on {REAL} tokens, {hidden} wide, {layers} layers", theirs, ours)


def generation_row(hidden: int, layers: int, studies: int, tokens: int) -> dict[str, Any]:
    """Reports of several studies: one by one, adapters beside the weights, or in a batch, adapters folded in."""
    eager, sdpa = (language_model(hidden, layers, attention) for attention in ("eager", "sdpa"))
    generator = torch.Generator().manual_seed(0)
    lengths = [124 + 42 * (REGIONS - study % 4) for study in range(studies)]
    prompts = [torch.randn(length, hidden, generator=generator) * 0.1 for length in lengths]
    settings = {"max_new_tokens": tokens, "do_sample": False}

    def theirs() -> Tensor:
        return torch.cat([eager.generate(inputs_embeds=prompt[None], **settings) for prompt in prompts])

    def ours() -> Tensor:
        pad = torch.nn.utils.rnn.pad_sequence
        batch = pad(prompts, True, 0.0, padding_side="left")
        mask = pad([torch.ones(length, dtype=torch.long) for length in lengths], True, 0, padding_side="left")
        with merged(sdpa):
            return without_adapters(sdpa).generate(inputs_embeds=batch, attention_mask=mask, **settings)

    return row(f"write {studies} reports of {tokens} tokens", theirs, ours)


# Table.


def data_rows(quick: bool) -> list[dict[str, Any]]:
    """Loading and preprocessing (`benchmarks.reg2rg_data`)."""
    from benchmarks import reg2rg_data

    small: tuple[Any, ...] = ((120, 120, 40), (64, 64, 16)) if quick else ()
    found = reg2rg_data.rows(*small)
    return [entry | {"apart": {True: 0.0, False: float("nan"), None: None}[entry["identical"]]} for entry in found]


def main(argv: list[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reg2rg", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes: under a minute")
    quick = parser.parse_args(argv).quick
    work: list[Callable[[], Any]] = [
        lambda: data_rows(quick),
        lambda: splice_row(512 if quick else 4096),
        lambda: encoder_row((128, 128, 32) if quick else (256, 256, 64), 1 if quick else 3, 11 if quick else 4),
        lambda: training_row(128 if quick else 256, 2 if quick else 4),
        lambda: generation_row(128 if quick else 256, 2 if quick else 4, 4 if quick else 8, 16 if quick else 64),
    ]
    table = Table("", "unit", "reference's way", "ours", "times less", "results apart", title="Reg2RG, CPU")
    with Progress(transient=True) as progress:
        task = progress.add_task("measuring", total=len(work))
        for part in work:
            found = part()
            for entry in found if isinstance(found, list) else [found]:
                apart = "" if entry["apart"] is None else "none" if entry["apart"] == 0 else f"{entry['apart']:.1e}"
                figures = (entry["reference"], entry["ours"], entry["reference"] / entry["ours"])
                table.add_row(entry["name"], entry["unit"], *(f"{figure:.3g}" for figure in figures), apart)
            progress.advance(task)
    Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
