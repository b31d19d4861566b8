"""What a run ends with: how long it took, what came out, where it lies, and what to do next.

    python -m stages.export.report.closing [--seconds 1080]

Only files are read.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from stages.config import extensions
from stages.export.benchmark import comparison
from stages.export.report.build import MODELING, REPORT
from stages.export.report.from_files import read_report
from stages.export.report.verdict import verdict
from stages.export.results import record
from stages.export.results.record import GGUF, MODEL, PROOF, RECORD
from stages.progress import duration
from stages.stage import command


def lines(data: Path, seconds: float | None) -> Iterator[str]:
    """The lines of the export in `data`; `seconds` is how long the run took, if that is known.

    Raises:
        InputError: a file is missing, damaged or of another release.
    """
    here = data / "export"
    found = record.read(here / RECORD)
    extensions.load(found.extensions)
    judgement = verdict(read_report(data, found, comparison.read(here / PROOF)))
    yield "" if seconds is None else f"Done in {duration(seconds)}."
    yield f"{judgement.lead} {judgement.headline}"
    files = [here / MODEL, *sorted((here / GGUF).glob("*.gguf"))]
    yield f"model:  {', '.join(map(str, files))}"
    yield f"report: {here / REPORT}"
    trust = ", trust_remote_code=True" if (here / MODEL / MODELING).is_file() else ""
    yield f'load:   AutoModelForCausalLM.from_pretrained("{here / MODEL}", dtype="auto"{trust})'
    yield f'        AutoTokenizer.from_pretrained("{here / MODEL}"{trust})'
    yield "next:   make ui (compare the runs), make report, make proof"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.export.report.closing")
    parser.add_argument("--data", type=Path, default=Path("data"), help="default: data")
    parser.add_argument("--seconds", type=float, help="how long the run took")
    arguments = parser.parse_args()
    print("\n".join(line for line in lines(arguments.data, arguments.seconds) if line))


if __name__ == "__main__":
    command("report", main)
