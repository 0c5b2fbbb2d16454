"""What RegionFormer costs the reference's way and ours, side by side in one run, at full size.

`python -m benchmarks.regionformer [--threads 1] [--quick]`; about six minutes of an idle processor, 12 GB of memory and
2 GB below the temporary folder. GPT-2 (124 M), the mapper (image+mask) and CLIP ViT-B/32 have random weights, the same
for both ways; ours are those of the method itself. The reference's way is written out here, plainly, from what its code
does, on the same installed transformers, attention and optimiser, so that its loops alone are compared:

* training: GPT-2's gradients are computed and never used; texts are padded to the split's longest (60 tokens); the
  head's logits are computed at every position;
* generation: one report at a time; at each token all beams are read anew from the prefix on, with all their logits;
* embedding: image and mask of every finding are read, prepared and encoded, one at a time.

Texts are drawn: 3 to 24 tokens, 12 on average, none of them token 0 (which the reference does not learn). Each way runs
in a process of its own. Seconds are of the clock and of the processor; with one thread the latter change less on a busy
machine. The last column says how far the results are apart.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from datamodules.study import Study
from lit_modules.nets.prefix_mapper import PrefixMapper
from lit_modules.regionformer import Mapper, RegionFormer

VOCABULARY, STOP = 50257, 13  # GPT-2's; its full stop
BATCH, PADDED = 40, 60  # §4; the longest text of the authors' training split, in tokens
BEAMS, NEW_TOKENS = 5, 15  # §4


@dataclass(frozen=True)
class Size:
    """How much is measured; the defaults are full size.

    Attributes:
        gpt: What differs from GPT-2's configuration.
        clip: What differs from CLIP ViT-B/32's.
        layers: Of the mapper.
        steps: Training steps.
        reports: Reports of the batch that the reference's way writes too.
        images: Radiographs, with 2 or 3 findings each, a third of them without boxes.
        shape: Rows and columns of a radiograph.
    """

    gpt: Mapping[str, Any] = field(default_factory=dict)
    clip: Mapping[str, Any] = field(default_factory=dict)
    layers: int = 8
    steps: int = 2
    reports: int = 3
    images: int = 6
    shape: tuple[int, int] = (1824, 1652)


QUICK = Size(
    {"n_embd": 96, "n_layer": 2, "n_head": 4},
    {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    layers=2,
    steps=1,
    reports=4,
    shape=(456, 413),
)


# Models and inputs, the same for both ways.


def write_models(folder: Path, size: Size) -> None:
    """GPT-2 with a tokenizer of 50,257 made-up words, and CLIP's image side, as folders that the method reads."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**size.gpt)).save_pretrained(folder / "gpt2")
    CLIPVisionModelWithProjection(CLIPVisionConfig(**size.clip)).save_pretrained(folder / "clip")
    names = [f"w{token}" for token in range(VOCABULARY - 1)] + ["<|endoftext|>"]
    names[STOP] = "."
    words = Tokenizer(models.WordLevel({name: token for token, name in enumerate(names)}, unk_token=names[-1]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(folder / "gpt2" / "tokenizer.json"))
    (folder / "gpt2" / "tokenizer_config.json").write_text(json.dumps({"eos_token": names[-1]}))


def method(folder: Path, size: Size) -> RegionFormer:
    """The method with its networks; the mapper's weights are the same each time."""
    module = RegionFormer(str(folder / "gpt2"), clip=str(folder / "clip"), mapper=Mapper(layers=size.layers))
    torch.manual_seed(0)
    module.configure_model()
    return module.train()


def embeddings(module: RegionFormer, number: int, seed: int) -> Tensor:
    """Image and mask embeddings side by side, each of length 1, `(study, prefix_size)`."""
    dim = module.clip_project.settings.prefix_size // 2
    pair = torch.randn(number, 2, dim, generator=torch.Generator().manual_seed(seed))
    return F.normalize(pair, dim=-1).flatten(1)


def texts(number: int, seed: int) -> list[Tensor]:
    """Token ids of drawn texts."""
    generator = torch.Generator().manual_seed(seed)
    lengths = (12 + 4 * torch.randn(number, generator=generator)).round().clamp(3, 24).int().tolist()
    return [torch.randint(1, VOCABULARY - 1, (length,), generator=generator) for length in lengths]


# Training.


def plain_prefix(mapper: PrefixMapper, embedding: Tensor) -> Tensor:
    """The mapper with its attention's matrix written out."""
    constants = mapper.prefix_const.expand(len(embedding), -1, -1)
    tokens = torch.cat((mapper.linear(embedding).view(len(embedding), -1, constants.shape[-1]), constants), 1)
    layers: Any = mapper.transformer["layers"]
    for layer in layers:
        attn, normed = layer.attn, layer.norm1(tokens)
        q = attn.to_queries(normed).unflatten(-1, (attn.heads, -1))
        k, v = attn.to_keys_values(normed).unflatten(-1, (2, attn.heads, -1)).unbind(2)
        weights = (torch.einsum("bnhd,bmhd->bnmh", q, k) * q.shape[-1] ** -0.5).softmax(2)
        tokens = tokens + attn.project(torch.einsum("bnmh,bmhd->bnhd", weights, v).flatten(2))
        tokens = tokens + layer.mlp(layer.norm2(tokens))
    return tokens[:, -constants.shape[1] :]


def plain_loss(module: RegionFormer, embedding: Tensor, targets: list[Tensor]) -> Tensor:
    """The reference's loss: everything is padded to the split's longest text, and every position has its logits."""
    padded = torch.stack([F.pad(text, (0, PADDED - len(text))) for text in targets])
    prefix = plain_prefix(module.clip_project, embedding)
    embeds = torch.cat((prefix, module.gpt.transformer.wte(padded)), 1)
    mask = torch.cat((torch.ones(prefix.shape[:2]), (padded > 0).float()), 1)
    logits = module.gpt(inputs_embeds=embeds, attention_mask=mask).logits[:, prefix.shape[1] - 1 : -1]
    return F.cross_entropy(logits.reshape(-1, VOCABULARY), padded.flatten(), ignore_index=0)


def our_loss(module: RegionFormer, embedding: Tensor, targets: list[Tensor]) -> Tensor:
    """The method's own loss, from its own batch."""
    pairs = zip(embedding, targets, strict=True)
    samples = [{"id": "", "embedding": seen, "tokens": text, "cut": False} for seen, text in pairs]
    return module.loss(module.preprocessor().collate(samples))


def train(folder: Path, size: Size, plain: bool) -> dict[str, Any]:
    """Steps of training. Results: each step's loss, and the first step's gradient of the mapper."""
    module = method(folder, size)
    module.gpt.requires_grad_(plain)
    loss_of = plain_loss if plain else our_loss
    optimizer = torch.optim.AdamW(module.clip_project.parameters(), 2e-5, eps=1e-6, weight_decay=0.0)
    loss_of(module, embeddings(module, 2, 0), texts(2, 0)).backward()  # not on the clock
    optimizer.zero_grad()
    seconds, losses, gradient = [], [], torch.empty(0)
    for step in range(1, size.steps + 1):
        embedding, targets = embeddings(module, BATCH, step), texts(BATCH, step)
        begun = clock()
        loss = loss_of(module, embedding, targets)
        loss.backward()
        optimizer.step()
        seconds.append(clock() - begun)
        losses.append(loss.item())
        if step == 1:
            gradients = [p.grad for p in module.clip_project.parameters() if p.grad is not None]
            gradient = torch.cat([part.flatten() for part in gradients])
        optimizer.zero_grad()
    return figures(np.mean(seconds, axis=0)) | {"results": {"loss": np.array(losses), "gradient": gradient.numpy()}}


# Generation.


@torch.no_grad()
def plain_search(gpt: Any, prefix: Tensor) -> list[int]:
    """One report: every beam is read anew at every token; a stopped one goes on with token 0 at no cost."""
    embeds, tokens = prefix, torch.empty(1, 0, dtype=torch.long)
    scores, lengths, stopped = torch.zeros(1), torch.zeros(1), torch.zeros(1, dtype=torch.bool)
    for _ in range(NEW_TOKENS):
        log_p = gpt(inputs_embeds=embeds).logits[:, -1].softmax(-1).log()
        log_p[stopped] = -torch.inf
        log_p[stopped, 0] = 0.0
        lengths = lengths + ~stopped
        means, chosen = ((scores[:, None] + log_p) / lengths[:, None]).flatten().topk(BEAMS)
        parent, token = chosen // VOCABULARY, chosen % VOCABULARY
        lengths = lengths[parent]
        scores, stopped = means * lengths, stopped[parent] | (token == STOP)
        tokens = torch.cat((tokens[parent], token[:, None]), 1)
        embeds = torch.cat((embeds[parent], gpt.transformer.wte(token)[:, None]), 1)
        if stopped.all():
            break
    best = int((scores / lengths).argmax())
    return tokens[best, : int(lengths[best])].tolist()


def write_plainly(folder: Path, size: Size) -> dict[str, Any]:
    """Reports, one by one. Results: their token ids."""
    module = method(folder, size).eval()
    given = embeddings(module, BATCH, 0)[: size.reports]
    ids = []
    begun = clock()
    for one in given.split(1):
        with torch.no_grad():
            prefix = plain_prefix(module.clip_project, one)
        ids.append(plain_search(module.gpt, prefix))
    seconds = clock() - begun
    return figures(seconds / len(given)) | {"results": ids}


def write(folder: Path, size: Size) -> dict[str, Any]:
    """Reports in a batch, by the method's `generate`. Results: the token ids of those that are compared."""
    module = method(folder, size).eval()
    batch = {"ids": [str(number) for number in range(BATCH)], "embedding": embeddings(module, BATCH, 0)}
    begun = clock()
    reports = module.generate(batch)
    seconds = clock() - begun
    spaced = [report.raw.replace(".", " .") for report in reports[: size.reports]]
    return figures(seconds / BATCH) | {"results": [module.tokenizer(text)["input_ids"] for text in spaced]}


# Embedding.


def write_radiographs(folder: Path, size: Size) -> None:
    """16-bit PNGs: something smooth, with noise."""
    rng = np.random.default_rng(0)
    for number in range(size.images):
        coarse = Image.fromarray(rng.uniform(4000, 50000, (12, 12)).astype(np.float32))
        smooth = np.asarray(coarse.resize(size.shape[::-1], Image.Resampling.BICUBIC))
        values = np.clip(smooth + rng.normal(0, 300, size.shape), 0, 65535).astype(np.uint16)
        Image.fromarray(values).save(folder / f"{number}.png")


def findings(folder: Path, size: Size) -> list[Study]:
    """A study a finding, without pixels; every third one has no boxes."""
    places = [number for number in range(size.images) for _ in range(2 + (number % 3 == 0))]  # 2.3 an image
    rng, found = np.random.default_rng(1), []
    for count, number in enumerate(places):
        x, y, width, height = rng.uniform(0.15, 0.5, 4).tolist()
        boxes = {} if count % 3 == 2 else {"finding": ((x, y, x + width, y + height),)}
        found.append(Study(str(count), boxes=boxes, files={"image": folder / f"{number}.png"}))
    return found


def plain_embedding(encoder: Any, image: np.ndarray) -> np.ndarray:
    """An 8-bit image as three channels, prepared as OpenAI's package does, encoded and brought to length 1."""
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    rows, columns = image.shape
    target = [int(224 * length / min(rows, columns)) for length in (columns, rows)]
    colour = Image.fromarray(np.stack([image] * 3, -1)).resize(target, Image.Resampling.BICUBIC)
    left, top = (round((length - 224) / 2) for length in target)
    values = torch.from_numpy(np.array(colour.crop((left, top, left + 224, top + 224)))).permute(2, 0, 1) / 255
    pixels = (values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        found = encoder(pixel_values=pixels[None]).image_embeds
    return (found / found.norm(dim=-1, keepdim=True))[0].numpy()


def embed_plainly(folder: Path, size: Size) -> dict[str, Any]:
    """Image and mask of every finding. Results: their embeddings."""
    encoder, studies, found = method(folder, size).eyes.model(), findings(folder, size), []
    begun = clock()
    for study in studies:
        with Image.open(study.files["image"]) as file:
            grey = np.asarray(file).astype(np.float32)
        grey = (grey - grey.min()) / (grey.max() - grey.min() + 1e-8)
        grey = np.clip(grey / (np.percentile(grey, 99) + 1e-8), 0, 1)
        mask = np.zeros(grey.shape, np.uint8)
        for boxes in (study.boxes or {}).values():
            for box in boxes:
                x0, y0, x1, y1 = (round(edge * length) for edge, length in zip(box, grey.shape[::-1] * 2, strict=True))
                mask[y0:y1, x0:x1] = 255
        found.append([plain_embedding(encoder, image) for image in ((grey * 255).astype(np.uint8), mask)])
    return figures((clock() - begun) / len(studies)) | {"results": np.array(found)}


def embed(folder: Path, size: Size) -> dict[str, Any]:
    """The store is built, or, where it is, opened; all of it is read. Results: the embeddings.

    The encoder's weights name the store, so they are hashed either way, once.
    """
    from datamodules.padchest_gr import PadChestGR
    from datamodules.store import Store

    module, studies = method(folder, size), findings(folder, size)
    module.eyes.model()  # not on the clock, nor is it in the reference's way
    begun = clock()
    preprocessor, data = module.preprocessor(), PadChestGR(str(folder))
    store = Store(folder / "store", preprocessor.settings())
    hashed = clock()
    faults = store.build(studies, preprocessor, data.inspect, progress=False)
    found = [[items["image"], items["mask"]] for items in map(store.load, studies)]
    assert not faults, faults
    return figures((clock() - hashed) / len(studies)) | {"results": np.array(found), "hashing": hashed - begun}


# Table.


def clock() -> np.ndarray:
    """Seconds of the clock, and of this process's work."""
    return np.array([time.perf_counter(), time.process_time()])


def figures(seconds: np.ndarray) -> dict[str, Any]:
    """Seconds, and the process's memory at its peak, GB."""
    return {"seconds": seconds, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def alone(run: Callable[..., dict[str, Any]], threads: int) -> dict[str, Any]:
    """Runs it in a process of its own, so that its memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (threads,)) as pool:
        return pool.submit(run).result()


def _begin(threads: int) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(threads)


def apart_training(theirs: dict[str, np.ndarray], ours: dict[str, np.ndarray]) -> str:
    """Largest difference of the losses (at most 1e-4), relative length of that of the gradients (at most 1e-3).

    Rounding decides whether a ReLU lets a gradient through where its input is all but 0, so they differ by more than
    float32's precision; in float64 they agree to 4e-8.
    """
    loss = np.abs(theirs["loss"] - ours["loss"]).max()
    gradient = np.linalg.norm(theirs["gradient"] - ours["gradient"]) / np.linalg.norm(theirs["gradient"])
    equal = loss <= 1e-4 and gradient <= 1e-3
    return f"{'' if equal else 'NOT EQUAL: '}loss {loss:.0e}, gradient {gradient:.0e}"


def apart_ids(theirs: list[list[int]], ours: list[list[int]]) -> str:
    """How many reports have the same token ids."""
    same = sum(mine == other for mine, other in zip(ours, theirs, strict=True))
    return f"{'' if same == len(theirs) else 'NOT EQUAL: '}{same} of {len(theirs)} have the same tokens"


def apart_embeddings(theirs: np.ndarray, ours: np.ndarray) -> str:
    """Largest difference; at most 1e-6."""
    difference = float(np.abs(theirs - ours).max())
    return "none" if difference == 0 else f"{'' if difference <= 1e-6 else 'NOT EQUAL: '}{difference:.0e}"


def machine(threads: int) -> str:
    """What it was measured on."""
    from transformers import __version__

    cpus = Path("/proc/cpuinfo")
    names = [line.partition(":")[2] for line in cpus.read_text().splitlines() if line.startswith("model name")]
    model = names[0].strip() if names else platform.machine()
    return f"{model}, threads: {threads}; torch {torch.__version__}, transformers {__version__}"


def main(argv: list[str] | None = None) -> int:
    """Prints the table; 1 where results are not equal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.regionformer", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="of each process (default: 1)")
    parser.add_argument("--quick", action="store_true", help="small networks")
    options = parser.parse_args(argv)
    size = QUICK if options.quick else Size()
    work: list[tuple[str, Callable[..., Any] | None, Callable[..., Any], Callable[..., str]]] = [
        (f"a training step, batch {BATCH}", partial(train, plain=True), partial(train, plain=False), apart_training),
        (f"a report, {BEAMS} beams × {NEW_TOKENS} tokens", write_plainly, write, apart_ids),
        ("embeddings of a finding", embed_plainly, embed, apart_embeddings),
        ("the same from the store", None, embed, apart_embeddings),
    ]
    heads = ("", "reference's way", "ours", "times less", "GB, both", "results apart")
    table = Table(*heads, title=f"RegionFormer{', small networks' if options.quick else ''}: s (CPU s)")
    theirs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, Progress(transient=True) as progress:
        task, folder = progress.add_task("writing models", total=len(work)), Path(name)
        write_models(folder, size)
        write_radiographs(folder, size)
        for title, plain, own, apart in work:
            progress.update(task, description=title)
            if plain is not None:
                theirs = alone(partial(plain, folder, size), options.threads)
            ours = alone(partial(own, folder, size), options.threads)
            less, memory = theirs["seconds"] / ours["seconds"], f"{theirs['memory']:.1f}, {ours['memory']:.1f}"
            seconds = (f"{wall:.3g} ({cpu:.3g})" for wall, cpu in (theirs["seconds"], ours["seconds"]))
            factor, difference = f"{less[0]:.1f} ({less[1]:.1f})", apart(theirs["results"], ours["results"])
            table.add_row(title, *seconds, factor, memory, difference)
            progress.advance(task)
    console = Console()
    console.print(table)
    console.print(f"Opening the store hashes CLIP's weights: {ours['hashing'][0]:.2g} s, however many studies.")
    console.print(machine(options.threads))
    return int(any("NOT EQUAL" in str(cell) for cell in table.columns[-1].cells))


if __name__ == "__main__":
    raise SystemExit(main())
