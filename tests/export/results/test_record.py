"""The record of an export: read as it was written, and what it says of parts that are there or not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from stages.evaluate.results.journal import Journal
from stages.export.report import __main__ as report
from stages.export.report.data import ReportData
from stages.export.results import record
from stages.export.results.final_table import FinalTable
from stages.export.results.record import BaseModel, ExportPart, Record
from stages.files import InputError
from tests.evaluate.results.journal_writer import make_row


@pytest.fixture
def export(tmp_path: Path, report_data: ReportData) -> tuple[Path, Record]:
    """A folder of an export, and its record."""
    for name in ("model/model.safetensors", "model/config.json", "gguf/README.md", "proof.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "model" / "README.md").write_text("a card")
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.append(make_row(16))
    table = FinalTable(
        contenders=report_data.contenders,
        change_errors={"uniform": {"ppl.news": 0.5}},
        question_groups=report_data.question_groups,
        taken=report_data.taken,
        protocol=report_data.protocol,
        protocol_entries=report_data.protocol_entries,
        words={"news": "3 windows"},
        rows={"winner": make_row(16).key},
    )
    made = Record(
        keys={part: f"key of {part}" for part in ExportPart},
        files=record.checksums(tmp_path),
        model="a model",
        texts=["news"],
        base=BaseModel("base", "a folder", "mit", ("en",), terms=(Path("LICENSE"),)),
        checks=[("loads", "yes")],
        table=table,
        provenance=[("git commit", "abc")],
        extensions=[],
        registered="prunecast-model",
    )
    return tmp_path, made


def test_it_is_read_as_it_was_written(export: tuple[Path, Record]) -> None:
    folder, made = export
    record.write(folder / "record.json", made)
    found = record.read(folder / "record.json")
    assert found.table.contenders[0] == made.table.contenders[0]
    assert found.base == made.base
    assert found.keys == made.keys
    assert list(found.provenance) == list(made.provenance)
    record.write(folder / "again.json", found)
    assert (folder / "again.json").read_bytes() == (folder / "record.json").read_bytes()


def test_what_is_not_finite_is_unknown(export: tuple[Path, Record]) -> None:
    folder, made = export
    first = made.table.contenders[0]
    broken = replace(first, standard_errors={"ppl.news": math.nan, "ppl.wikipedia": 0.25})
    made = replace(made, table=replace(made.table, contenders=[broken]))
    record.write(folder / "record.json", made)
    (contender,) = record.read(folder / "record.json").table.contenders
    assert contender.standard_errors == {"ppl.wikipedia": 0.25}


@pytest.mark.parametrize(
    ("file", "lost"),
    [
        ("model/model.safetensors", ExportPart.WEIGHTS),
        ("gguf/README.md", ExportPart.WEIGHTS),
        ("proof.json", ExportPart.PROOF),
        ("journal.jsonl", ExportPart.TABLE),
        ("model/README.md", None),
    ],
)
def test_a_part_holds_while_its_key_does_and_its_files_are_whole(
    export: tuple[Path, Record], file: str, lost: ExportPart | None
) -> None:
    folder, made = export

    def held(key: str) -> list[ExportPart]:
        with Journal(folder / "journal.jsonl") as journal:
            return [p for p in ExportPart if made.holds(p, key.format(p), folder, journal.rows)]

    assert held("key of {}") == list(ExportPart)
    assert held("another key") == []
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[:-3] + b"?" + content[-2:])
    assert held("key of {}") == [part for part in ExportPart if part is not lost]


def test_a_damaged_record_says_what_to_run(export: tuple[Path, Record]) -> None:
    folder, made = export
    path = folder / "record.json"
    record.write(path, made)
    path.write_text(path.read_text().replace('"a model"', '"a muddle"'))
    with pytest.raises(InputError, match=r"record\.json is damaged \(it was altered.*dvc repro export"):
        record.read(path)
    assert record.read_if_there(path) is None
    assert record.read_if_there(folder / "nothing.json") is None


def test_no_report_is_made_of_an_export_that_was_altered(
    export: tuple[Path, Record], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, made = export
    record.write(folder / "record.json", made)
    data = tmp_path_factory.mktemp("data")
    (data / "export").symlink_to(folder)
    (folder / "model" / "model.safetensors").write_text("model/model.safetensorz")
    with pytest.raises(InputError, match=r"model\.safetensors was altered .*; run `dvc repro export`"):
        report.run(data)
