"""Whether two parts hold the same text or the same questions: the report shows what nothing saw before.

Texts are compared by paragraph and questions one by one, whatever their white space and capitals, so that
it does not matter how a source is called, linked, copied or laid out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from stages.config.params import PARTS, Part
from stages.evaluate.text.corpus_files import Document, Question
from stages.files import InputError

_LONG = 40
"""Characters of a paragraph that tells texts apart; headings and the like stand in many."""
_MOST = 0.5

Parts = Mapping[Part, Sequence[Document | Question]]


def overlaps(section: str, corpora: Mapping[str, Parts], *, divided: Sequence[str]) -> dict[str, list[str]]:
    """What the parts of these corpora have in common, in words by corpus.

    `section` is their key in params.yaml; `divided` are those whose parts are of one source, by document.
    Calibration questions are examples in prompts, and no question is an example of itself, so they may be
    the report's too.

    Raises:
        InputError: more than half of a report part is text or questions that were chosen or calibrated on,
            or the other way round.
    """
    weights = {(name, part): _weights(parts[part]) for name, parts in corpora.items() for part in PARTS}
    told: dict[str, list[str]] = {name: [] for name in corpora}
    for one, other in combinations(weights, 2):
        common = weights[one].keys() & weights[other].keys()
        if not common:
            continue
        shares = {
            place: sum(weights[place][unit] for unit in common) / sum(weights[place].values())
            for place in (one, other)
        }
        first, second = _words(section, one, other, shares[one]), _words(section, other, one, shares[other])
        roles = {one[1], other[1]}
        shots = "calibration" in roles and isinstance(corpora[one[0]]["calibration"][0], Question)
        apart = shots or (one[0] == other[0] and one[0] in divided)
        if len(roles) > 1 and "report" in roles and not apart and max(shares.values()) > _MOST:
            done = "calibrated" if "calibration" in roles else "chosen"
            raise InputError(
                f"params.yaml: {first if shares[one] > _MOST else second}: the final table would be of what "
                f"was {done} on. Give sources that differ, or one source, which is divided by document"
            )
        told[one[0]].append(first)
        if one[0] != other[0]:
            told[other[0]].append(second)
    return told


class Seen:
    """Documents that training must not see: by paragraph, and by line where that is long enough."""

    def __init__(self, documents: Sequence[Document]) -> None:
        units = (unit for document in documents for unit in _units(document.text))
        self._seen = {unit for unit in map(_plain, units) if len(unit) >= _LONG}

    def holds(self, text: str) -> bool:
        """Whether a text holds a paragraph or line of them."""
        return any(map(self._is_seen, _units(text)))

    def without(self, documents: Sequence[Document]) -> list[Document]:
        """Documents without what they have in common with these; none that is left empty."""
        left = (replace(document, text=self._left(document.text)) for document in documents)
        return [document for document in left if document.text.strip()]

    def _is_seen(self, unit: str) -> bool:
        return _plain(unit) in self._seen

    def _left(self, text: str) -> str:
        if not self.holds(text):
            return text
        kept = [paragraph for paragraph in _paragraphs(text) if not self._is_seen(paragraph)]
        lines = ([line for line in part.split("\n") if not self._is_seen(line)] for part in kept)
        return "\n\n".join(filter(None, map("\n".join, lines)))


def _units(text: str) -> list[str]:
    return [*_paragraphs(text), *text.split("\n")]


def _paragraphs(text: str) -> list[str]:
    return re.split(r"\n\s*\n", text)


def _words(section: str, one: tuple[str, Part], other: tuple[str, Part], share: float) -> str:
    percent = f"{share:.1%}".replace("%", " %") if share >= 0.0005 else "under 0.1 %"
    whole, place = (f"{section}.{name}, part {part}," for name, part in (one, other))
    return f"{percent} of {whole} stands in {place} too"


def _weights(items: Sequence[Document | Question]) -> dict[int, int]:
    """What tells a part apart, by hash: its questions, or its paragraphs with their characters.

    A text that is one paragraph, such as PTB, is taken by line.
    """
    if isinstance(items[0], Question):
        return {hash(_question(item)): 1 for item in items if isinstance(item, Question)}
    texts = [item.text for item in items if isinstance(item, Document)]
    units = [unit for text in texts for unit in _paragraphs(text)]
    if len(units) == 1:
        units = units[0].split("\n")
    plain = [_plain(unit) for unit in units]
    return {hash(unit): len(unit) for unit in [u for u in plain if len(u) >= _LONG] or filter(None, plain)}


def _question(item: Question) -> tuple[str, ...]:
    return (_plain(item.question), *sorted(map(_plain, item.choices)))


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
