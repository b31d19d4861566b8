"""Files that pass from stage to stage: written whole or not at all, and checked when they are read.

What persists carries a checksum of its content: a file that was altered since it was written is a
`DamagedError`, and never believed.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from stages.locks import lock

T = TypeVar("T")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
PART = ".part"
"""The end of a temporary file's name."""
CHECKSUM = "checksum"

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
OF_THE_DISK = (*FULL, *FORBIDDEN, errno.EIO)
"""The system's errors that mean a disk, whatever was being done."""
_REMEDIES = dict.fromkeys(FULL, "free some space and run it again")
_REMEDIES |= dict.fromkeys(FORBIDDEN, "make it writable for this user, or run in a copy of the repository")


class InputError(Exception):
    """Bad input, explained: what it is, what was found, what was expected, what to do.

    Stages print its message alone, without a traceback, and exit with 2.
    """


class DamagedError(InputError):
    """A file that does not hold what this release writes: the `problem`, and what makes it anew."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem


def kept(path: Path, read: Callable[[Path], T]) -> T | None:
    """What a file of before holds, or None: it is not there, or damaged, which is said in one line.

    For whoever can compute it again.
    """
    if not path.is_file():
        return None
    try:
        return read(path)
    except DamagedError as error:
        print(f"{error.problem}: it is computed again", flush=True)
        return None


def disk_error(error: Exception) -> int | None:
    """The number of the system's error behind an exception; safetensors tells it in its text alone."""
    if isinstance(error, OSError):
        return error.errno
    told = re.search(r"\(os error (\d+)\)", str(error))
    return None if told is None else int(told[1])


@contextlib.contextmanager
def writing(path: Path, only: Container[int] | None = None) -> Iterator[None]:
    """Say as an InputError that the disk does not take `path`, which the block writes.

    Where the block does more than that, `only` has the numbers of the system's errors that mean it.
    """
    try:
        yield
    except Exception as error:
        code = disk_error(error)
        if code is None or (only is not None and code not in only):
            raise
        remedy = _REMEDIES.get(code, "see to the disk and the folders on the way, and run it again")
        raise InputError(
            f"{path} cannot be written to ({os.strerror(code)}). What was there is left as it was; {remedy}"
        ) from error


def cache_folder() -> Path:
    """``PRUNECAST_CACHE``, or ``prunecast`` in the user's cache folder: an absolute path.

    Raises:
        InputError: it cannot be told, as of a user without a home.
    """
    if own := os.environ.get("PRUNECAST_CACHE"):
        return located(own, key="the environment variable PRUNECAST_CACHE ").absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    key = "the cache folder (name one in the environment variable PRUNECAST_CACHE) "
    return located(base, key=key).absolute() / "prunecast"


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
    A folder is swept of what killed writers left in it: their locks are free.

    Raises:
        InputError: the disk is full, fails, or may not be written to.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        with _temporary(path) as temporary:
            yield temporary
            ordinary_permissions(temporary)
            fsync(temporary)
            clear(path)
            temporary.replace(path)


def clear(path: Path) -> None:
    """Remove an empty folder from where a file is to be; one that is not empty is an OSError."""
    if path.is_dir():
        path.rmdir()


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A new file beside `path`, locked as long as its writer lives, and gone at the end."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
        try:
            lock(handle)
            if os.fstat(handle).st_nlink:  # or it was swept before it was locked
                yield Path(name)
                return
        finally:
            Path(name).unlink(missing_ok=True)
            os.close(handle)


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed writers left in a folder."""
    for path in folder.glob(f".*{PART}"):
        with contextlib.suppress(OSError), path.open("rb") as file:  # it lives, or is another user's
            lock(file.fileno(), wait=False)
            path.unlink()


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


def located(source: str, root: Path = Path(), key: str = "") -> Path:
    """The path that a source names, relative to `root`; ``~`` is a home. `key` begins the error's message.

    Raises:
        InputError: the file system knows no such name or user.
    """
    try:
        path = root / Path(source).expanduser()
        if "\0" in source:  # which `exists` takes for a name
            raise ValueError("it holds a NUL")
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, of a user who is none, with a NUL
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise InputError(
            f"{key}{shortened(source)} cannot be looked for: {reason}. Name a file that is there"
        ) from error
    return path


def shortened(text: str) -> str:
    """`text` in quotes, and no longer than a line."""
    return repr(text) if len(text) <= 200 else f"{text[:80]!r}… ({len(text):,} characters)"


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
    """Write `content` under its schema's name and version, with a checksum; lists of scalars on one line."""
    document = {"schema": schema, "version": version, **content}
    checksum = {CHECKSUM: _checksum(document)}
    head = {"schema": schema, "version": version}
    write_text(path, _readable(head | checksum | document) + "\n")


def read_json(path: Path, schema: str, version: int, stage: str = "") -> dict[str, Any]:
    """Read what `write_json` wrote, in the stage of that name.

    Raises:
        InputError: the file is missing or cannot be read.
        DamagedError: it is not JSON, has another schema or version, or was altered since it was written.
    """
    run = f"run `dvc repro{stage and ' '}{stage}`"
    try:
        document = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} is not there; {run} to make it") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); make it readable, or {run}") from error
    except ValueError as error:
        raise DamagedError(f"{path} is not valid JSON ({error})", f"delete it and {run}") from error
    found = (document.get("schema"), document.get("version")) if isinstance(document, dict) else None
    if found != (schema, version):
        raise DamagedError(
            f"{path} has schema and version {found}; expected {(schema, version)}",
            f"another release wrote it: delete it and {run}",
        )
    given = document.pop(CHECKSUM, None)
    if given is None:
        raise DamagedError(
            f"{path} has no {CHECKSUM}", f"an earlier release wrote it: delete it and {run}, which writes one"
        )
    if given != (expected := _checksum(document)):
        raise DamagedError(
            f"{path} is damaged (it was altered since it was written: its {CHECKSUM} is {given}, and that of "
            f"its content {expected})",
            f"delete it and {run}",
        )
    return dict(document)


def read_document(
    path: Path, schema: str, version: int, stage: str, make: Callable[[dict[str, Any]], T]
) -> T:
    """What `make` makes of a document that `write_json` wrote in the stage of that name.

    Raises:
        InputError: the file is missing or cannot be read.
        DamagedError: it is damaged, of another schema or version, or does not hold what `make` looks for.
    """
    document = read_json(path, schema, version, stage)
    try:
        return make(document)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        first = (str(error) or repr(error)).split("\n")[0]
        raise DamagedError(
            f"{path} is damaged ({first})", f"delete it and run `dvc repro {stage}`"
        ) from error


def read_dataclass(path: Path, schema: str, version: int, kind: type[T], stage: str) -> T:
    """Read the fields of a dataclass, which `write_json` wrote in the stage of that name.

    Raises:
        InputError: as `read_document` does.
    """

    def make(document: dict[str, Any]) -> T:
        content = {field.name: document[field.name] for field in fields(kind)}  # type: ignore[arg-type]
        return TypeAdapter(kind).validate_python(content)

    return read_document(path, schema, version, stage, make)


def parse_json(raw: bytes) -> Any:
    """The value of JSON in UTF-8.

    Raises:
        ValueError: it is not JSON; a key stands twice in an object, a number is not finite or has
            thousands of digits, or it is nested deeper than can be read.
    """
    try:
        return _STRICT.decode(raw.decode())
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands twice")
    return found


def _not_finite(name: str) -> float:
    raise ValueError(f"{name} is no number")


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_not_finite)


def _checksum(document: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits of a document's values; the order of keys counts, spaces do not."""
    return hashlib.sha256(json.dumps(document, allow_nan=False).encode()).hexdigest()[:16]


def seals(folder: Path, names: Sequence[str]) -> list[dict[str, str]]:
    """The checksums of plain files in a folder, to be written into a document beside them."""
    return [{"file": name, CHECKSUM: digest_of_file(folder / name)} for name in names]


def check_seals(folder: Path, found: Sequence[Mapping[str, str]], stage: str) -> None:
    """Compare a folder's files with what `seals` said of them.

    Raises:
        DamagedError: a file was altered since the stage of that name wrote it, or is gone.
    """
    for seal in found:
        path = folder / seal["file"]
        run = f"run `dvc repro {stage}`, which writes it"
        if not path.is_file():
            raise DamagedError(f"{path} is not there", run)
        if digest_of_file(path) != seal[CHECKSUM]:
            raise DamagedError(f"{path} is damaged (it was altered since it was written)", run)


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
