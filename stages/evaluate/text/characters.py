"""Characters that are no text: which are read otherwise than they stand, and which are kept and told."""

from __future__ import annotations

import re
from collections import Counter

_READ = (
    ("line ends CRLF or CR read as LF", re.compile(r"\r\n?"), "\n"),
    ("byte order marks left out", re.compile("\ufeff"), ""),
    ("halves of surrogate pairs read as U+FFFD", re.compile(r"[\ud800-\udfff]"), "\ufffd"),
)
_KEPT = (
    ("control characters", re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]")),
    ("characters without width", re.compile(r"[\xad\u200b-\u200f\u2060-\u2064]")),
    ("U+FFFD, which a wrong decoding leaves", re.compile("\ufffd")),
)
_ANY = re.compile("|".join(pattern.pattern for _, pattern, *_ in (*_READ, *_KEPT)))


def cleaned(text: str, counts: Counter[str]) -> str:
    """`text` with one kind of line end and without what no tokenizer can read; `counts` grows by kind."""
    if _ANY.search(text):
        for name, pattern, replacement in _READ:
            text, found = pattern.subn(replacement, text)
            counts[name] += found
    return text


def count_kept(text: str, counts: Counter[str]) -> None:
    """Count what may be a mistake and is kept, since a perplexity is of a text as it was published."""
    if _ANY.search(text):
        for name, pattern in _KEPT:
            counts[f"{name} kept"] += len(pattern.findall(text))


def told(counts: Counter[str]) -> list[str]:
    """What was counted, in words."""
    return [f"{found:,} {name}" for name, found in counts.items() if found]
