"""Two texts side by side, word by word: what only one of them says is marked in it."""

from __future__ import annotations

import difflib
import html
import re

WORD = re.compile(r"\w+(?:[.,'’-]\w+)*|[^\w\s]")


def word_diff(reference: str, prediction: str) -> tuple[str, str, float]:
    """Marks what differs between two texts; case does not count.

    Returns:
        The reference as HTML with `<del>` around what the prediction lacks, the prediction with `<ins>` around what the
        reference lacks, and the share of words that both have, in order, from 0 to 1 (1 for two empty texts).
    """
    spans = [[match.span() for match in WORD.finditer(text)] for text in (reference, prediction)]
    words = [
        [text[start:end].lower() for start, end in part]
        for text, part in zip((reference, prediction), spans, strict=True)
    ]
    matcher = difflib.SequenceMatcher(None, words[0], words[1], autojunk=False)
    changes = [opcode for opcode in matcher.get_opcodes() if opcode[0] != "equal"]
    missed = [(a, b) for _, a, b, _, _ in changes if b > a]
    added = [(a, b) for _, _, _, a, b in changes if b > a]
    return _mark(reference, spans[0], missed, "del"), _mark(prediction, spans[1], added, "ins"), matcher.ratio()


def _mark(text: str, spans: list[tuple[int, int]], changed: list[tuple[int, int]], tag: str) -> str:
    """Escapes the text and wraps each run of changed words."""
    parts, done = [], 0
    for first, after in changed:
        start, end = spans[first][0], spans[after - 1][1]
        parts.append(f"{html.escape(text[done:start])}<{tag}>{html.escape(text[start:end])}</{tag}>")
        done = end
    return "".join(parts) + html.escape(text[done:])
