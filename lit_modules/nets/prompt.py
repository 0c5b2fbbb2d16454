"""What Reg2RG's language model reads and writes: special tokens, prompt, target, and the splice of visual embeddings.

Paper §III-C and §III-D (prefix "The region [i] is [area name]", shuffled regions). Wording, token names and their order
are those of the authors' dataset class, since released weights were trained on them.

Differs from the authors' code in: embeddings are gathered, not multiplied by a 2048 × 32366 one-hot matrix (bit-equal).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.masks import REGIONS
from datamodules.study import SettingsFault

REGIONS_AT_MOST = len(REGIONS)  # the authors' token list ends at <region329>
LLAMA_FULL_STOP = 869  # "▁.", what follows </image> and </region> in the authors' ids; "." alone is 29889

_PREFIX = re.compile(r"The region \d+ is [^:]+: ")
_TOKEN = re.compile(r"<(?=/?(?:s|unk|(?:image|region)\d*)>)")
_REGION = re.compile(r"The region (\d+) is ((?:(?!The region \d)[^:])+):(.*?)(?=The region \d+ is |\Z)", re.DOTALL)


@dataclass(frozen=True)
class Prompt:
    """The prompt and the target of one study.

    Attributes:
        latents: Embeddings of one volume (paper §IV-B: 32).
        texture: Show each region's cropped volume, `latents` embeddings.
        geometry: Show each region's mask, one embedding.
        global_context: Show the whole volume, `latents` embeddings.
        align: Ask for the region's name before its report (RRA, paper §III-D).
    """

    latents: int = 32
    texture: bool = True
    geometry: bool = True
    global_context: bool = True
    align: bool = True

    def __post_init__(self) -> None:
        if not (self.texture or self.global_context):
            raise SettingsFault("no volume to show: at least one of model.texture and model.global_context must be on")

    @property
    def shows_regions(self) -> bool:
        """Whether regions are shown one by one."""
        return self.texture or self.geometry

    @property
    def stride(self) -> int:
        """Tokens that each region owns: texture, then one for geometry."""
        return self.latents + 1

    @property
    def tokens(self) -> list[str]:
        """The special tokens, in the order of their ids: base vocabulary + 0, 1, …; 366 for 32 latents."""
        frame = ["<image>", "</image>", "<region>", "</region>"]
        image = [f"<image{i}>" for i in range(self.latents)]
        return frame + image + [f"<region{i}>" for i in range(self.stride * REGIONS_AT_MOST)]

    def region_tokens(self, index: int) -> list[str]:
        """The tokens that stand for region `index`, without their frame."""
        offsets = [*range(self.latents)] * self.texture + [self.latents] * self.geometry
        return [f"<region{index * self.stride + offset}>" for offset in offsets]

    def question(self, regions: int) -> str:
        """The prompt for so many regions; with all features on, the authors' word for word."""
        if regions > REGIONS_AT_MOST:
            raise SettingsFault(f"{regions} regions are too many: the method has tokens for {REGIONS_AT_MOST}")
        parts = []
        if self.global_context:
            image = "".join(f"<image{i}>" for i in range(self.latents))
            parts.append(f"The global information is provided as the context: <image>{image}</image>.")
        if self.shows_regions:
            parts += [f"The region {i} is <region>{''.join(self.region_tokens(i))}</region>." for i in range(regions)]
        return " ".join([*parts, self._instruction()])

    def _instruction(self) -> str:
        given = " and ".join(["global"] * self.global_context + ["regional"] * self.shows_regions)
        ask = (
            f"Given the provided {given} information from this CT scan, please generate a comprehensive medical report"
        )
        if not self.shows_regions:
            return f"{ask}."
        detail = "detailed information about these anatomical structures and any abnormalities that are essential."
        if self.align:
            detail = f"First, identify the anatomical area corresponding to each region, then provide {detail}"
        else:
            detail = f"Provide {detail}"
        context = (
            " You can refer to the global information as the context and take it as a supplement when generating each"
            " region report."
        )
        return f"{ask} for each region. {detail}{context * self.global_context}"

    def target(self, reports: Sequence[tuple[str, str]]) -> str:
        """What to write about `(region, report)` in this order; the authors keep a trailing space.

        What looks like a special token in a report gets a space, so that it is read as letters: as a token it would
        stand for an image.
        """
        reports = [(region, _TOKEN.sub("< ", report)) for region, report in reports]
        if not (self.align and self.shows_regions):
            return "".join(f"{report} " for _, report in reports)
        return "".join(f"The region {i} is {region}: {report} " for i, (region, report) in enumerate(reports))

    def parse(self, text: str, regions: Sequence[str]) -> list[tuple[str, str | None, str]] | None:
        """Reads a written target back: `(region shown, name given to it, its report)` for each region shown.

        A region that the text leaves out has no name and an empty report. `None` where the prompt asks for no names.
        """
        if not (self.align and self.shows_regions):
            return None
        found: dict[int, tuple[str, list[str]]] = {}
        for digits, name, report in _REGION.findall(text):
            number = int(digits[:9])  # what goes round in circles writes digits that no number has
            reports = found[number][1] if number in found else []
            found[number] = (name.strip(), [*reports, report.strip()])
        rows = []
        for index, region in enumerate(regions):
            name, reports = found.get(index, ("", []))
            rows.append((region, name or None, " ".join(filter(None, reports))))
        return rows


def without_prefixes(text: str) -> str:
    """The report as the authors score it: no "The region i is NAME: ", single spaces (paper §III-D, last paragraph)."""
    return " ".join(_PREFIX.sub("", f"{text} ").split())


def add_special_tokens(tokenizer: Any, prompt: Prompt) -> int:
    """Adds the prompt's tokens to `tokenizer`; returns the id of the first, the size of the base vocabulary."""
    base = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": prompt.tokens})
    return base


def check_prompt(tokenizer: Any, prompt: Prompt, base: int, vocabulary: int) -> int:
    """Asserts that `tokenizer` reads the prompt as the model expects, for any tokenizer.

    Every special token must be exactly one id, ids must run on from the base vocabulary, stand in the prompt in order
    and contiguously, and a prompt must be the exact beginning of prompt plus target. Llama-2's ids are known: 124 + 42
    k ids for k regions, `▁.` after a closing token.

    Args:
        tokenizer: With the special tokens added.
        prompt: What is shown.
        base: Size of its base vocabulary.
        vocabulary: Rows of the language model's embedding.

    Returns:
        Ids of the longest prompt.

    Raises:
        SettingsFault: One line that names the first difference.
    """
    if base > vocabulary:
        raise SettingsFault(
            f"the tokenizer has {base} entries but the language model embeds {vocabulary}: remove tokens that were"
            " added to the tokenizer's folder (often <pad> in added_tokens.json)"
        )
    for index, token in enumerate(prompt.tokens):
        if tokenizer.convert_tokens_to_ids(token) != base + index:
            raise SettingsFault(
                f"the tokenizer maps {token} to {tokenizer.convert_tokens_to_ids(token)}, not {base + index}"
            )
    llama = base == 32000 and tokenizer.convert_tokens_to_ids("▁.") == LLAMA_FULL_STOP
    for regions in range(1, REGIONS_AT_MOST + 1):
        ids = tokenizer(prompt.question(regions))["input_ids"]
        _check_positions(ids, prompt, base, regions)
        if llama:
            _check_llama(ids, prompt, base, regions)
        whole = tokenizer(f"{prompt.question(regions)} {prompt.target([('lung', 'Clear.')] * regions)}")["input_ids"]
        if whole[: len(ids)] != ids:
            raise SettingsFault("the tokenizer reads the prompt differently when a target follows it")
    return len(ids)


def _check_positions(ids: list[int], prompt: Prompt, base: int, regions: int) -> None:
    blocks = [["<image>", *prompt.tokens[4 : 4 + prompt.latents], "</image>"]] * prompt.global_context
    if prompt.shows_regions:
        blocks += [["<region>", *prompt.region_tokens(i), "</region>"] for i in range(regions)]
    order = {token: base + index for index, token in enumerate(prompt.tokens)}
    position = 0
    for block in blocks:
        expected = [order[token] for token in block]
        position = next((i for i in range(position, len(ids)) if ids[i] >= base), len(ids))
        if ids[position : position + len(block)] != expected:
            raise SettingsFault(
                f"the tokenizer breaks the block {block[0]}…{block[-1]} of a prompt for {regions} regions"
            )
        position += len(block)
    if any(token >= base for token in ids[position:]):
        raise SettingsFault("the tokenizer puts special tokens after the last block of the prompt")


def _check_llama(ids: list[int], prompt: Prompt, base: int, regions: int) -> None:
    if prompt == Prompt() and len(ids) != 124 + 42 * regions:
        raise SettingsFault(
            f"a prompt for {regions} regions has {len(ids)} ids with this Llama tokenizer, not {124 + 42 * regions} as"
            " the authors': use the fast tokenizer of the original folder (tokenizer.json)"
        )
    for position, token in enumerate(ids):
        if token in (base + 1, base + 3) and ids[position + 1] != LLAMA_FULL_STOP:
            raise SettingsFault(
                f"id {ids[position + 1]} follows a closing token, the authors' tokenizer gives {LLAMA_FULL_STOP}"
                " ('▁.'): load it from tokenizer.json or with legacy=True"
            )


def splice(tokens: Tensor, words: nn.Module, rows: Tensor, base: int) -> Tensor:
    """Token ids to embeddings: a word's from the language model, a special token's from the study's own rows.

    Args:
        tokens: `(study, position)`.
        words: The language model's embedding.
        rows: `(study, special token, dim)`: four frame tokens, the image's, then `stride` for each region.
        base: Id of the first special token.

    Returns:
        `(study, position, dim)`, of `rows`' precision.
    """
    special = tokens >= base
    study, position = special.nonzero(as_tuple=True)
    text = words(tokens.masked_fill(special, 0)).to(rows.dtype)
    # Frame tokens are picked many times. Indexing would sum their gradients in whatever order threads come by.
    picked = F.embedding(study * rows.shape[1] + tokens[study, position] - base, rows.flatten(0, 1))
    return text.index_put((study, position), picked)
