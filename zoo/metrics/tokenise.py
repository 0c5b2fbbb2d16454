"""How texts are prepared and cut into tokens. METEOR's own tokens are in `meteor_nltk`, Stanford's in `ptb`."""

from __future__ import annotations

import re
from functools import cache

# Preparation: raw text → the text that is scored.


def one_line(text: str) -> str:
    """All white space, line breaks and control characters collapsed to single spaces."""
    return _GAPS.sub(" ", text).strip()


_GAPS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200b\u2028\u2029\ufeff]+")


def strip_region_prefixes(text: str) -> str:
    """Drops Reg2RG's "The region 3 is lung: " prefixes and collapses white space."""
    return re.sub(r"\s+", " ", re.sub(r"The region \d+ is [^:]+: ", "", text)).strip()


def clean_r2gen(text: str) -> str:
    """What R2Gen does to a MIMIC-CXR report: no enumeration, no runs of periods or underscores, lower case, no
    punctuation within a sentence, sentences joined and ended by " . ". An empty text stays empty."""
    text = re.sub(r"_+", "_", one_line(text))
    text = re.sub(r"\.{2,}", ".", re.sub(r" {2,}", " ", text))
    text = re.sub(r"^1\. ", "", text)
    text = re.sub(r"\.? [2-5]\. ", ". ", text)
    sentences = [_R2GEN_DROPPED.sub("", sentence).strip() for sentence in text.lower().split(". ")]
    sentences = [sentence for sentence in sentences if sentence]
    return " . ".join(sentences) + " ." if sentences else ""


_R2GEN_DROPPED = re.compile(r"""[.,?;*!%^&_+():\-\[\]{}"'/\\]""")

# Tokens.


def tokenise_spaces(text: str) -> list[str]:
    """White-space words, case kept."""
    return text.split()


def tokenise_13a(text: str) -> list[str]:
    """mteval-v13a's tokens (the WMT standard), case kept."""
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        text = text.replace(entity, character)
    text = f" {text} "
    for pattern, replacement in _RULES_13A:
        text = pattern.sub(replacement, text)
    return text.split()


_RULES_13A = (
    (re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),  # punctuation, without ' , - .
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),  # period and comma, unless a digit stands before
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),  # … or behind
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),  # dash behind a digit
)


def tokenise_rouge(text: str) -> list[str]:
    """rouge_score's tokens without stemming: lower case, runs of `[a-z0-9]`."""
    return _ALPHANUMERIC.findall(text.lower())


_ALPHANUMERIC = re.compile(r"[a-z0-9]+")


def tokenise_rouge_stemmed(text: str) -> list[str]:
    """rouge_score's tokens with stemming: those of more than three letters by NLTK's Porter stemmer."""
    stem = porter_stem()
    return [stem(token) if len(token) > 3 else token for token in tokenise_rouge(text)]


@cache
def porter_stem():
    """NLTK's Porter stemmer, each word stemmed once."""
    from nltk.stem.porter import PorterStemmer

    return cache(PorterStemmer().stem)
