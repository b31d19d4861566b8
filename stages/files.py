"""Files that pass from stage to stage: versioned JSON, written whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class InputError(Exception):
    """Bad input, explained: what it is, what was found, what was expected, what to do.

    Stages print its message alone, without a traceback, and exit with 2.
    """


def cache_folder() -> Path:
    """``PRUNECAST_CACHE``, or ``prunecast`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PRUNECAST_CACHE") or Path(base) / "prunecast")


def digest(*parts: object) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of what JSON can hold; the order of keys does not count."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def digest_of_file(path: Path) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@contextlib.contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to, which takes its place when the block ends.

    Readers see the old file or the new one, never half of it; what is new is on the disk before it takes
    the place, with the permissions that the umask leaves. An error leaves the old file, and nothing else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        ordinary_permissions(temporary)
        fsync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def ordinary_permissions(path: Path) -> None:
    """Give a file or folder the permissions of one made with `open` or `mkdir`."""
    umask = os.umask(0o077)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def unreadable(path: Path) -> str | None:
    """Why a file that a folder lists cannot be read, in words that follow its name; None if it can be.

    A link may lead to nothing, and a clone without Git LFS has a short text in the place of a large file.
    """
    if path.is_symlink() and not path.exists():
        return f"is a link to {path.readlink()}, which is not there; put the file there or fetch it again"
    if path.is_dir():
        return "is a folder; expected a file"
    try:
        with path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                return "is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return None


def fsync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def finite(values: Mapping[str, T]) -> dict[str, T]:
    """What JSON can hold of these: all but floats that are infinite or not a number."""
    return {name: v for name, v in values.items() if not isinstance(v, float) or math.isfinite(v)}


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: readers see the old content or the new, never half of it."""
    with atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, schema: str, version: int, content: Mapping[str, Any]) -> None:
    """Write `content` under its schema's name and version; lists of scalars stay on one line."""
    document = {"schema": schema, "version": version, **content}
    write_text(path, _readable(document) + "\n")


def read_json(path: Path, schema: str, version: int) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        InputError: the file is missing, is not JSON, or has another schema or version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is not there; run `dvc repro` to make it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); delete it and run `dvc repro`") from error
    found = (document.get("schema"), document.get("version")) if isinstance(document, dict) else None
    if found != (schema, version):
        raise InputError(
            f"{path} has schema and version {found}; expected {(schema, version)}. "
            "Another release wrote it: delete it and run `dvc repro`"
        )
    return dict(document)


def read_dataclass(path: Path, schema: str, version: int, kind: type[T], stage: str) -> T:
    """Read the fields of a dataclass, which `write_json` wrote for the stage of that name.

    Raises:
        InputError: the file is missing, of another schema or version, or damaged.
    """
    document = read_json(path, schema, version)
    try:
        content = {field.name: document[field.name] for field in fields(kind)}  # type: ignore[arg-type]
        return TypeAdapter(kind).validate_python(content)
    except (KeyError, ValidationError) as error:
        first = str(error).split("\n")[0]
        raise InputError(f"{path} is damaged ({first}); delete it and run `dvc repro {stage}`") from error


def read_csv(path: Path, columns: Sequence[str], stage: str) -> list[dict[str, str]]:
    """The rows of a table that the stage of that name writes, as text; what is unknown is empty.

    Raises:
        InputError: the file is missing, lacks one of `columns`, or a row has too many cells or too few.
    """
    again = f"run `dvc repro {stage}`, which writes it"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            found = list(reader.fieldnames or [])
            rows = list(reader)
    except FileNotFoundError:
        raise InputError(f"{path} is not there; {again}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a table ({error}); {again}") from error
    missing = [column for column in columns if column not in found]
    if missing:
        raise InputError(
            f"{path} lacks the column {missing[0]!r}; it has {', '.join(found) or 'none'}, expected are "
            f"{', '.join(columns)}. Another release wrote it: {again}"
        )
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise InputError(f"{path}, line {number} does not have {len(found)} cells; {again}")
    return rows


def numbers(row: Mapping[str, str], path: Path, stage: str) -> dict[str, float]:
    """The cells of a row of `read_csv` as numbers; what is empty is left out.

    Raises:
        InputError: a cell is no number.
    """
    try:
        return {name: float(cell) for name, cell in row.items() if cell}
    except ValueError as error:
        raise InputError(f"{path}: {error}; run `dvc repro {stage}`, which writes it") from error


def _readable(value: Any, depth: int = 0) -> str:
    """JSON with one line for each innermost object or list, so that a person can read and diff it."""
    pad = "  " * depth
    if isinstance(value, dict) and any(isinstance(v, dict | list) for v in value.values()):
        items = (f"{pad}  {json.dumps(k)}: {_readable(v, depth + 1)}" for k, v in value.items())
        return "{\n" + ",\n".join(items) + f"\n{pad}}}"
    if isinstance(value, list) and any(isinstance(v, dict) for v in value):
        items = (f"{pad}  {json.dumps(v, ensure_ascii=False, allow_nan=False)}" for v in value)
        return "[\n" + ",\n".join(items) + f"\n{pad}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
