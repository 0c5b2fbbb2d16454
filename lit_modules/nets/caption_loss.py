"""Cross-entropy of a text that follows a prefix, with the language model's head on the targets alone.

GPT-2's head has nearly half as many weights as its body. The reference (LightVED-prhlt/RegionFormer, 84205cc) computes
it for the prefix, for the padding and for the last token too, and throws those logits away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor


def caption_loss(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    targets: Tensor,
    prefix_length: int,
    ignore: int = -100,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """The loss over a batch's target tokens; the prefix's last position predicts the first.

    Args:
        hidden: `(study, position, dim)`, the language model's last hidden states over the prefix and the text. The
            text's last token predicts nothing and may be left out.
        head: From hidden states to logits.
        targets: `(study, token)`, the text's token ids.
        prefix_length: Positions of the prefix.
        ignore: Targets of this value do not count. The reference pads with 0 and ignores 0, and with it a token 0 that
            was said (GPT-2's `!`).
        reduction: `mean` over the batch's targets (the reference's training loss), or their `sum`. A batch without a
            target gives 0 either way.

    Raises:
        ValueError: There are too few positions for the targets.
    """
    first = prefix_length - 1
    if hidden.shape[1] < first + targets.shape[1]:
        raise ValueError(f"{hidden.shape[1]} positions cannot predict {targets.shape[1]} tokens after {prefix_length}")
    counted = targets != ignore
    wanted = targets[counted]
    logits = head(hidden[:, first : first + targets.shape[1]][counted])
    total = F.cross_entropy(logits.float(), wanted, reduction="sum")
    return total / max(len(wanted), 1) if reduction == "mean" else total
