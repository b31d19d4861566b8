"""A glossary behind each private word of the report: its first use in a section leads there.

Text between tags is linked alone; links, code, headings of the page and styles stay as they are.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

TERMS: Mapping[str, str] = {
    "overall ratio": "the fraction of all parameters of the decoder's layers that is removed; embeddings and "
    "head are not counted",
    "ratio": "the fraction of one site's parameters that is removed",
    "site": "one sublayer that can be pruned: the attention or the MLP of a layer",
    "architecture": "how much every site keeps; two architectures of one id are the same",
    "pair": "an architecture together with what was measured of it: what the predictor learns from",
    "forecast": "what the predictor says of an architecture; it was not run",
    "finalist": "one of the best measured architectures, measured again on more text: the best of them "
    "is the winner",
    "winner": "the architecture that is exported: the best finalist on text that chose it, which this page "
    "compares on text that chose nothing",
    "one-shot": "what the damage curves alone would choose: no pair, no predictor, no round",
    "uniform": "the baseline that cuts attention and MLP of the inner layers alike, repaired as the winner",
    "simple": "the baseline that cuts the MLPs of all layers by one ratio, repaired as the winner",
    "dense": "the model as it came, with nothing removed",
    "calibration part": "the text on which units are scored and projections are refitted",
    "selection part": "the text on which pairs, rounds and finalists are measured: it chooses",
    "report part": "the text on which this page's results are measured: it chooses nothing",
    "held out": "not shown to the predictor while it learned, to see how far it is off",
    "rank correlation": "1 where two orders are the same, 0 where they have nothing to do with each other",
    "damage": "what cutting a site alone costs, in nats a token",
    "objective": "what the search lowers: by default the mean log perplexity of all texts, in nats a token",
    "interval": "the range around a forecast that holds a promised share of what is then measured",
    "standard error": "how far a figure would vary if other text of the same kind had been measured",
}
"""What each word means, for a reader who has not read how Prunecast works."""
_TAG = re.compile(r"(<[^>]+>)")
_LEFT_ALONE = ("a", "code", "dt", "h1", "h2", "h3", "samp", "script", "style", "summary", "title")
_PATTERN = re.compile(
    rf"\b({'|'.join(sorted(map(re.escape, TERMS), key=len, reverse=True))})(s?)\b", re.IGNORECASE
)


def anchor(term: str) -> str:
    """The name of a term's entry within the page."""
    return f"term-{term.replace(' ', '-')}"


def linked(page: str) -> str:
    """The page, in which the first use of each term in a section is a link to its entry, with it as a tip."""
    found: list[str] = []
    inside: list[str] = []
    seen: set[str] = set()

    def link(match: re.Match[str]) -> str:
        term = match[1].lower()
        if term in seen:
            return match[0]
        seen.add(term)
        tip = html.escape(TERMS[term])
        return f'<a class="term" href="#{anchor(term)}" title="{tip}">{match[0]}</a>'

    for piece in _TAG.split(page):
        if piece.startswith("<"):
            name = re.match(r"</?([a-z0-9]+)", piece)
            if name and name[1] in ("section", "header"):
                seen.clear()
            if name and name[1] in _LEFT_ALONE:
                inside = inside[:-1] if piece.startswith("</") else [*inside, name[1]]
            found.append(piece)
        else:
            found.append(piece if inside else _PATTERN.sub(link, piece))
    return "".join(found)
