"""Guard against regressions: rerun the reduced pipeline and compare it with the committed baseline.

    python -m tests.regression            # make regression: exits with 1 if a figure has regressed
    python -m tests.regression --update   # make regression-update: writes the baseline anew

Exits with 2 if run and baseline cannot be compared or the settings are wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from stages.files import InputError, write_text
from tests.regression import baseline as baseline_file
from tests.regression import settings as settings_file
from tests.regression import table
from tests.regression.baseline import Run
from tests.regression.comparison import Verdict, compare, notes, require_comparable
from tests.regression.pipeline import Result, measure
from tests.regression.settings import Settings

HERE = Path(__file__).parent
PARAMS = HERE.parents[1] / "params.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--update", action="store_true", help="write the baseline anew")
    parser.add_argument("--given", action="store_true", help="no search and no export: dense to mixed only")
    parser.add_argument("--baseline", type=Path, default=HERE / "baseline.json")
    parser.add_argument("--settings", type=Path, default=HERE / "settings.yaml")
    parser.add_argument("--params", type=Path, default=PARAMS, help="the params that are reduced")
    parser.add_argument("--markdown", type=Path, help="write the outcome there too, for a pull request")
    options = parser.parse_args(arguments)
    if options.update and options.given:
        parser.error("--update writes the whole baseline; leave --given out")
    try:
        return _update(options) if options.update else _check(options)
    except InputError as error:
        print(f"prunecast regression: {error}", file=sys.stderr)
        if options.markdown:
            write_text(options.markdown, f"**The guard could not compare.**\n\n```text\n{error}\n```\n")
        return 2


def _check(options: argparse.Namespace) -> int:
    settings = settings_file.load(options.settings)
    before = baseline_file.read(options.baseline)
    result, seconds = _measured(
        settings, options.params, options.given, lambda run: require_comparable(before, run)
    )
    rows = compare(before, result.run, settings)
    said, remarks = table.summary(rows, result), notes(before, result.run)
    took = f"{seconds:.0f} s on {torch.get_num_threads()} threads"
    print(f"\n{table.text(rows)}\n")
    print("\n".join([*table.passed(result.checks), *_noted(remarks), *said[:-1], f"{said[-1]} ({took})"]))
    if options.markdown:
        lines = ["\n".join(f"- {line}" for line in part) for part in (said[::-1], [*remarks, took])]
        write_text(options.markdown, f"{lines[0]}\n\n{table.markdown(rows)}\n\n{lines[1]}\n")
    return int(not result.sound or any(row.verdict is Verdict.REGRESSION for row in rows))


def _update(options: argparse.Namespace) -> int:
    settings = settings_file.load(options.settings)
    result, _ = _measured(settings, options.params)
    if not result.sound:
        print("\n".join(table.summary([], result)), file=sys.stderr)
        print(f"{options.baseline} is left as it was", file=sys.stderr)
        return 1
    try:
        _print_changes(baseline_file.read(options.baseline), result.run, settings)
    except InputError as error:
        print(f"\nNothing to compare with: {error}")
    baseline_file.write(options.baseline, result.run)
    print(f"{options.baseline} is written: {len(result.run.contenders)} contenders. Commit it")
    return 0


def _print_changes(before: Run, now: Run, settings: Settings) -> None:
    print(f"\n{table.text(compare(before, now, settings))}\n")
    print("\n".join(_noted(notes(before, now))))


def _noted(remarks: Sequence[str]) -> list[str]:
    return [f"changed since the baseline: {line}" for line in remarks]


def _measured(
    settings: Settings,
    params: Path,
    given_only: bool = False,
    planned: Callable[[Run], None] = lambda _: None,
) -> tuple[Result, float]:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="prunecast-regression-") as folder:
        return measure(settings, params, Path(folder), given_only, planned), time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
