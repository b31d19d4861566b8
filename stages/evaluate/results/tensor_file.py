"""Safetensors files that carry a checksum of everything else in them: altered ones are found on reading."""

from __future__ import annotations

import hashlib
import json
import mmap
from pathlib import Path

from stages.files import CHECKSUM, parse_json

UNSEALED = {CHECKSUM: "0" * 16}
"""Metadata of a file that `seal` seals where it lies: a checksum of as many digits takes the place."""


def seal(path: Path) -> None:
    """Seal a file whose metadata are `UNSEALED`, without reading all of it into memory."""
    with path.open("r+b") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
            _, given, checksum = _parts(raw)
            assert given == UNSEALED[CHECKSUM]
            file.seek(raw.find(given.encode(), 0, _end(raw)))
        file.write(checksum.encode())


def check(path: Path) -> None:
    """Check a file's checksum, without reading all of it into memory.

    Raises:
        OSError: it is not there, or not ours to read.
        ValueError: it is no safetensors file, has no checksum, or was altered since it was written.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
            metadata_of(raw)


def sealed(raw: bytes) -> bytes:
    """A safetensors file's content with a checksum of it among its metadata.

    The same content has the same bytes: safetensors itself writes metadata in any order.
    """
    metadata, _, checksum = _parts(raw)
    end = _end(raw)
    header = parse_json(raw[8:end]) | {"__metadata__": metadata | {CHECKSUM: checksum}}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + raw[end:]


def metadata_of(raw: bytes | mmap.mmap) -> dict[str, str]:
    """The metadata of a file's content, but the checksum.

    Raises:
        ValueError: it is no safetensors file, has no checksum, or was altered since it was written.
    """
    metadata, given, expected = _parts(raw)
    if given is None:
        raise ValueError(f"it has no {CHECKSUM}: an earlier release wrote it")
    if given != expected:
        raise ValueError("it was altered since it was written")
    return metadata


def _end(raw: bytes | mmap.mmap) -> int:
    """Where the header ends and the numbers begin."""
    return 8 + int.from_bytes(raw[:8], "little")


def _parts(raw: bytes | mmap.mmap) -> tuple[dict[str, str], str | None, str]:
    """Metadata, the checksum among them, and the one of names, types, shapes, places and numbers."""
    end = _end(raw)
    try:
        header = parse_json(raw[8:end])
        metadata = header.pop("__metadata__", {})
        given = metadata.pop(CHECKSUM, None)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"its header is none of safetensors: {error}") from None
    found = hashlib.sha256(json.dumps([metadata, header], sort_keys=True).encode())
    with memoryview(raw) as numbers:
        found.update(numbers[end:])
    return metadata, given, found.hexdigest()[:16]
