"""A process that appends rows to a journal until it is killed, for test_journal.

    python -m tests.evaluate.results.journal_writer PATH LAYERS [--limit BYTES] [--hold]

Prints each row's key once `append` has returned. Rows that the journal holds already are skipped,
as measuring does. With --limit no file may grow beyond so many bytes; with --hold it appends
nothing and keeps the journal open.
"""

from __future__ import annotations

import argparse
import resource
import signal
import time
from itertools import count
from pathlib import Path

from stages.architecture import Architecture, LayerWidth
from stages.evaluate.results.journal import Journal, Row


def make_row(number: int, layers: int = 2) -> Row:
    """A row that its number alone decides."""
    architecture = Architecture((LayerWidth(1, 2, number), *(LayerWidth(2, 3, 64),) * (layers - 1)))
    return Row(
        key=f"key-{number:06d}",
        context="c0ffee",
        architecture=architecture,
        design="free é",
        overall_ratio=1 / (number + 3),
        metrics={"ppl.wikipedia": 20 + number / 7, "log_ppl.wikipedia": 3.0},
        samples={"log_ppl.wikipedia": [number / 3, 0.1]},
        seconds=0.25,
        measured_at="2025-01-01T00:00:00+00:00",
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("layers", type=int)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--hold", action="store_true")
    arguments = parser.parse_args()
    if arguments.limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (arguments.limit, arguments.limit))
    with Journal(arguments.path) as journal:
        print("open", flush=True)
        if arguments.hold:
            time.sleep(60)
        for number in count():
            row = make_row(number, arguments.layers)
            if row.key not in journal.rows:
                journal.append(row)
                print(row.key, flush=True)


if __name__ == "__main__":
    main()
