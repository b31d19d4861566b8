"""Safetensors files that carry a checksum of everything else in them: altered ones are found on reading."""

from __future__ import annotations

import hashlib
import json

from stages.files import CHECKSUM, parse_json


def sealed(raw: bytes) -> bytes:
    """A safetensors file's content with a checksum of it among its metadata.

    The same content has the same bytes: safetensors itself writes metadata in any order.
    """
    metadata, _, checksum = _parts(raw)
    end = 8 + int.from_bytes(raw[:8], "little")
    header = parse_json(raw[8:end]) | {"__metadata__": metadata | {CHECKSUM: checksum}}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + raw[end:]


def metadata_of(raw: bytes) -> dict[str, str]:
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


def _parts(raw: bytes) -> tuple[dict[str, str], str | None, str]:
    """Metadata, the checksum among them, and the one of names, types, shapes, places and numbers."""
    end = 8 + int.from_bytes(raw[:8], "little")
    try:
        header = parse_json(raw[8:end])
        metadata = header.pop("__metadata__", {})
        given = metadata.pop(CHECKSUM, None)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"its header is none of safetensors: {error}") from None
    found = hashlib.sha256(json.dumps([metadata, header], sort_keys=True).encode())
    found.update(memoryview(raw)[end:])
    return metadata, given, found.hexdigest()[:16]
