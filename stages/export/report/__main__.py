"""Make report and model card anew from the files of the last run.  Run: python -m stages.export.report

Only files are read, so that an edit of a chart or a template shows in seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from stages.config import extensions
from stages.export.benchmark import comparison
from stages.export.report.build import PICTURES, REPORT, write_card, write_report
from stages.export.report.from_files import read_report
from stages.export.results import record
from stages.export.results.record import PROOF, RECORD, ExportPart
from stages.export.results.staging import replacing
from stages.files import DamagedError
from stages.stage import command


def run(data: Path) -> None:
    """Write the report of the export in `data`.

    Raises:
        InputError: a file is missing, damaged or of another release.
    """
    here = data / "export"
    found = record.read(here / RECORD)
    if altered := [path for part in ExportPart for path in found.altered(part, here)]:
        raise DamagedError(f"{altered[0]} was altered since it was written", "run `dvc repro export`")
    extensions.load(found.extensions)
    shown = read_report(data, found, comparison.read(here / PROOF))
    with replacing(here) as new:
        write_report(shown, new)
    write_card(shown, found, here, here / PICTURES)
    print(f"report: {here / REPORT}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.export.report")
    parser.add_argument("--data", type=Path, default=Path("data"), help="default: data")
    arguments = parser.parse_args()
    run(arguments.data)


if __name__ == "__main__":
    command("report", main)
