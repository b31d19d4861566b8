"""Planted bugs that the guard must catch, each in a copy of the code of its own.

    python -m tests.regression.mutants [--given] [NAME …]

Further options are those of `python -m tests.regression`. Prints what the guard says of each bug, and
exits with 1 unless it catches them all. By hand: with `--given` a minute a bug on two cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutant:
    """A bug: `old`, which stands once in a file of stages/, becomes `new`."""

    name: str
    path: str
    old: str
    new: str


MUTANTS = (
    # Query head n is served by KV group n mod G, not by n // H: the heads are tiled and not repeated.
    Mutant(
        "kv-heads-mapped-wrong",
        "evaluate/network/decoder.py",
        "attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, scale)",
        "attention(q.transpose(1, 2), *(t.transpose(1, 2).repeat(1, h, 1, 1) for t in (k, v)), mask, scale)",
    ),
    # The last norm: without one of a layer's, hidden states overflow, and no figure is left to compare.
    Mutant(
        "norm-skipped",
        "evaluate/network/decoder.py",
        "self.normed(hidden.flatten(0, 1)[batch.at])",
        "hidden.flatten(0, 1)[batch.at]",
    ),
    # The units that matter least are kept. Dense shows nothing of it.
    Mutant(
        "importance-sign-flipped",
        "evaluate/calibrate/importance/moments.py",
        "moments.square_sums().cpu(), Tensor.sqrt)",
        "moments.square_sums().cpu(), lambda total: -total.sqrt())",
    ),
)


def plant(mutant: Mutant, folder: Path) -> None:
    """Copy the code into an empty folder and plant the bug there.

    Raises:
        ValueError: the code no longer reads as the bug expects; it would be planted nowhere.
    """
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "stages", folder / "stages", ignore=skipped)
    shutil.copytree(REPOSITORY / "tests" / "regression", folder / "tests" / "regression", ignore=skipped)
    shutil.copy(REPOSITORY / "params.yaml", folder)
    path = folder / "stages" / mutant.path
    code = path.read_text(encoding="utf-8")
    found = code.count(mutant.old)
    if found != 1:
        raise ValueError(
            f"{mutant.name}: stages/{mutant.path} holds {mutant.old!r} {found} times; expected once. "
            "Plant the bug where that code is now"
        )
    path.write_text(code.replace(mutant.old, mutant.new), encoding="utf-8")


def guarded(mutant: Mutant, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """What the guard prints (stdout) and returns when it runs on the code with the bug."""
    with tempfile.TemporaryDirectory(prefix="prunecast-mutant-") as name:
        folder = Path(name)
        plant(mutant, folder)
        return subprocess.run(
            [sys.executable, "-m", "tests.regression", *arguments],
            cwd=folder, env=os.environ | {"PYTHONPATH": name}, capture_output=True, text=True, check=False,
        )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(m.name for m in MUTANTS))
    options, arguments = parser.parse_known_args()
    unknown = set(options.names) - {m.name for m in MUTANTS}
    if unknown:
        parser.error(f"there is no mutant {', '.join(sorted(unknown))}")
    missed = []
    for mutant in MUTANTS:
        if options.names and mutant.name not in options.names:
            continue
        done = guarded(mutant, arguments)
        caught = done.returncode == 1 and "\nREGRESSION: " in done.stdout
        print(f"=== {mutant.name} in stages/{mutant.path}: {'caught' if caught else 'MISSED'}")
        print(f"{done.stdout if caught else done.stdout + done.stderr}\n", flush=True)
        missed += [] if caught else [mutant.name]
    print(f"missed: {', '.join(missed)}" if missed else "all caught")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
