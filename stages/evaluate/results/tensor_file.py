"""Safetensors files that carry a checksum of everything else in them: altered ones are found on reading."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping

from stages.files import CHECKSUM, parse_json


def sealed(save: Callable[[dict[str, str]], bytes], metadata: Mapping[str, str]) -> bytes:
    """What `save` makes of metadata: these, and the checksum of the file without it.

    The same content has the same bytes: safetensors itself writes metadata in any order.
    """
    _, _, checksum = _parts(save(dict(metadata)))
    raw = save({**metadata, CHECKSUM: checksum})
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.dumps(parse_json(raw[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + raw[end:]


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
