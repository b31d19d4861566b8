"""record.json: what an export is made of, so that the report needs no model and nothing is made twice.

An export has parts: the weights with their GGUF files, the final table, the proof of speed. The record has
of each a key, a digest of everything that decides it, and what the report says of it. A part whose key is
still the same, and whose files are whole, is not made again.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from stages.export.results.final_table import FinalTable
from stages.files import digest_of_file, finite, kept, read_dataclass, write_json

SCHEMA, VERSION = "prunecast.export-record", 2
RECORD, JOURNAL = "record.json", "journal.jsonl"
MODEL, GGUF, PROOF = "model", "gguf", "proof.json"
_OF_THE_REPORT = (".md", ".png")  # what lies in the model's folder and is made anew with the report


class ExportPart(StrEnum):
    """What an export is made of, in the order in which it is made."""

    WEIGHTS = "weights"
    TABLE = "final table"
    PROOF = "proof of speed"


@dataclass(frozen=True)
class BaseModel:
    """The dense model, for the reader of a model card."""

    name: str
    """What it is called, e.g. ``Qwen3-0.6B``; no path of this machine."""
    origin: str
    """Where it was read from, e.g. ``Qwen/Qwen3-0.6B on the Hugging Face hub, revision main``."""
    licence: str = "unknown"
    """Its licence as an SPDX or hub identifier, or by name."""
    languages: tuple[str, ...] = ()
    hub_id: str | None = None
    quantisation: str | None = None
    """How the weights that were read are quantised, e.g. ``Q4_1``; they were dequantised before pruning."""
    terms: tuple[Path, ...] = ()
    """Licence files and notices."""


@dataclass(frozen=True)
class Record:
    """What was exported, as far as no other file says it."""

    keys: Mapping[ExportPart, str]
    files: Mapping[str, str]
    """Checksums of the files of weights, GGUF and proof, by path within the export."""
    model: str
    """The source of the dense model, as params name it."""
    texts: Sequence[str]
    """The text corpora, in the order of params."""
    base: BaseModel
    checks: Sequence[tuple[str, str]]
    """What was proved of the written weights: lines of a label and a sentence."""
    table: FinalTable
    provenance: Sequence[tuple[str, str]]
    extensions: Sequence[str]
    """The files that params name as extensions: metrics of theirs may stand in the table."""
    registered: str
    """The name under which MLflow's registry has the model, or nothing."""

    def holds(self, part: ExportPart, key: str, folder: Path, rows: Container[str]) -> bool:
        """Whether the part in `folder` is what `key` asks for, and as it was written.

        `rows` are the keys of the journal there. What was altered is said in a line.
        """
        if self.keys.get(part) != key:
            return False
        if part is ExportPart.TABLE:
            return all(row in rows for row in self.table.rows.values())
        altered = self.altered(part, folder)
        if altered:
            print(f"{altered[0]} was altered since it was written: {part} is made again", flush=True)
        return bool(self.files_of(part)) and not altered

    def altered(self, part: ExportPart, folder: Path) -> list[Path]:
        """The part's files in `folder` that are not as they were written, or are gone."""
        own = self.files_of(part).items()
        return [folder / name for name, checksum in own if _checksum(folder / name) != checksum]

    def files_of(self, part: ExportPart) -> dict[str, str]:
        """Checksums of the part's own files; the final table has none."""
        if part is ExportPart.TABLE:
            return {}
        of_proof = part is ExportPart.PROOF
        return {name: checksum for name, checksum in self.files.items() if (name == PROOF) == of_proof}


def checksums(folder: Path) -> dict[str, str]:
    """The files of weights, GGUF and proof in an export, those of the report left out."""
    weights = [p for p in (folder / MODEL).rglob("*") if p.suffix not in _OF_THE_REPORT]
    files = [*weights, *(folder / GGUF).rglob("*"), folder / PROOF]
    return {path.relative_to(folder).as_posix(): digest_of_file(path) for path in files if path.is_file()}


def _checksum(path: Path) -> str | None:
    return digest_of_file(path) if path.is_file() else None


def write(path: Path, record: Record) -> None:
    """Write the record; a figure that is not finite, and so unknown, is left out."""
    write_json(path, SCHEMA, VERSION, _plain(asdict(record)))


def read(path: Path) -> Record:
    """Read what `write` wrote.

    Raises:
        InputError: the file is missing, of another schema, or damaged.
    """
    return read_dataclass(path, SCHEMA, VERSION, Record, "export")


def read_if_there(path: Path) -> Record | None:
    """The record of the export before; None where there is none that can be read."""
    return kept(path, read)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in finite(value).items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
