"""YAML that people write, read as DVC reads it: YAML 1.2, in which 5e-3 is a number and `no` is a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from stages.files import InputError

DEEPEST = 30
MOST = 100_000
"""Values of a document, those that an alias repeats counted wherever it stands."""


def read_yaml(path: Path) -> Any:
    """What a YAML file says; None where it is empty.

    Raises:
        InputError: the file is not there, cannot be read or is not UTF-8; it is not one document of plain
            values, which names no key twice; or it nests without measure. Line and column are named where
            they are known.
    """
    text = _text(path)
    try:
        document = YAML(typ="safe", pure=True).load(text)
    except RecursionError:
        raise InputError(f"{path} {_BEYOND}") from None
    except MarkedYAMLError as error:
        raise InputError(f"{path} is not valid YAML: {_explained(error)}") from error
    except Exception as error:  # dates that are none, numbers beyond measure: of many types
        words = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} is not valid YAML: {words}") from error
    _check(path, document)
    return document


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"{path} is not there; run from the repository's root, where params.yaml lies"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        line = content[: error.start].count(b"\n") + 1
        found = "it is UTF-16" if wide else f"line {line} has the byte 0x{content[error.start]:02x}"
        raise InputError(
            f"{path} is not in UTF-8, as YAML is written: {found}. Save it with the encoding UTF-8"
        ) from error


def _explained(error: MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    return where + (", ".join(filter(None, (error.context, error.problem))) or type(error).__name__)


_BEYOND = (
    f"nests more than {DEEPEST} deep or holds more than {MOST:,} values, aliases written out; "
    "expected a file like the committed params.yaml"
)


def _check(path: Path, document: Any) -> None:
    """Raise InputError for a document that is deep, large or, by its aliases, within itself, or no text."""
    waiting, count = [(document, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > DEEPEST or count > MOST:
            raise InputError(f"{path} {_BEYOND}")
        if isinstance(value, str):
            if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
                raise InputError(f"{path} holds {value!r}, which has a character that no text has; remove it")
        elif isinstance(value, dict):
            waiting += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, list | tuple | set):
            waiting += [(item, depth + 1) for item in value]
