"""What is wrong with a document of params, in words: a line a problem, with its key in params.yaml."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

Place = tuple[str | int, ...]
"""The keys that lead to a value, and places in lists."""
_LONGEST = 200


def explained(path: Path, document: Any, error: ValidationError) -> str:
    """A line a problem: the key, what was found, what was expected, and what to do where that is not plain.

    A key that is misspelled is named beside the key that it stands for, which is missing.
    """
    problems = [p for p in error.errors() if not _is_of_other_form(p)]
    missing = {_place(document, p["loc"]) for p in problems if p["type"] == "missing"}
    meant = {
        place: near
        for p in problems
        if p["type"] == "extra_forbidden"
        and (near := _nearest(place := _place(document, p["loc"]), missing)) is not None
    }
    lines = []
    for problem in problems:
        place = _place(document, problem["loc"])
        if problem["type"] == "missing" and place in meant.values():
            continue
        lines.append(f"{path}: {_in_words(problem, place, meant.get(place))}")
    return "\n".join(lines)


def _in_words(problem: Mapping[str, Any], place: Place, near: Place | None) -> str:
    key, found = _dotted(place), problem["input"]
    match problem["type"]:
        case "extra_forbidden" if near is not None:
            return f"{key} is not a known key; did you mean {_dotted(near)}?"
        case "extra_forbidden":
            return f"{key} is not a known key; remove it or correct its spelling"
        case "missing":
            return f"{key} is missing; add it (the committed params.yaml shows every key)"
        case "value_error":  # of several keys together it names them itself
            return f"{key}: {problem['ctx']['error']}" if place else str(problem["ctx"]["error"])
        case "model_type" | "model_attributes_type" | "dict_type":
            return (
                f"{key} is {_shown(found)}; expected keys and values, as the committed params.yaml has them"
            )
        case _:
            expected = problem["msg"].removeprefix("Input should be ").replace("String should", "text to")
            return f"{key} is {_shown(found)}; expected {expected}{_remedy(problem['type'], found)}"


def _remedy(kind: str, found: Any) -> str:
    if kind == "string_type" and isinstance(found, bool | int | float | datetime.date):
        return "; write it in quotes"
    if kind == "bool_type" and isinstance(found, str):
        return ": true or false, without quotes"
    if kind == "int_type" and isinstance(found, float) and found.is_integer():
        return f"; write {found:.0f}"
    return ""


def _place(document: Any, loc: Sequence[str | int]) -> Place:
    """Where a problem is, without the forms that a value of several could have, which pydantic names too."""
    found: list[str | int] = []
    value = document
    for index, part in enumerate(loc):
        inside = isinstance(value, Mapping) and part in value
        inside |= isinstance(value, list) and isinstance(part, int)
        if inside:
            value = value[part]
        elif part in _FORMS and (index < len(loc) - 1 or index == _DEPTH_OF_FORMS):
            continue
        found.append(part)
    return tuple(found)


_FORMS = ("str", "PartSources")
_DEPTH_OF_FORMS = 3  # corpora, texts, NAME, and then one of the forms


def _is_of_other_form(problem: Mapping[str, Any]) -> bool:
    """Whether it says that a corpus with parts is no text: its parts have problems of their own."""
    loc = problem["loc"]
    if len(loc) <= _DEPTH_OF_FORMS or loc[0] != "corpora" or loc[_DEPTH_OF_FORMS] not in _FORMS:
        return False
    is_text = not isinstance(problem["input"], Mapping)
    return len(loc) == _DEPTH_OF_FORMS + 1 and (loc[_DEPTH_OF_FORMS] == "str") != is_text


def _nearest(place: Place, missing: Collection[Place]) -> Place | None:
    """The missing key of the same section that is spelled most like this one."""
    beside = [str(other[-1]) for other in missing if other[:-1] == place[:-1]]
    found = get_close_matches(str(place[-1]).lower(), beside, n=1)
    return (*place[:-1], found[0]) if found else None


def _dotted(place: Place) -> str:
    return ".".join(str(part) for part in place) or "the whole file"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
