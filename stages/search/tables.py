"""The tables that `search` leaves, of trials, rounds and the front, and the search's figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.files import InputError, numbers, read_csv, write_json, write_text

if TYPE_CHECKING:
    import pandas as pd

    from stages.search.rounds import Round

STAGE = "search"
COURSE, EXPLAINED, FRONT, ROUNDS, TRIALS = TABLES = (
    "course.csv",
    "explained.csv",
    "front.csv",
    "rounds.csv",
    "trials.csv",
)
SCHEMA, VERSION = "prunecast.search-metrics", 2
_FORECAST, _TAKES = "forecast.", "takes."
_FRONT = ["name", "architecture", "overall_ratio", "parameters", "objective", "dominated"]


@dataclass(frozen=True)
class FrontRow:
    """An architecture at its overall ratio, measured on the selection part.

    `forecast` was made before it was measured, and is empty where it is among the pairs; `takes` is what
    it takes of a limit in bytes or milliseconds; `dominated` says that another row is better.
    """

    name: str
    architecture: str
    """The id."""
    overall_ratio: float
    parameters: int
    """All parameters, embeddings included."""
    objective: float
    metrics: Mapping[str, float]
    forecast: Mapping[str, float]
    takes: Mapping[str, float]
    dominated: bool


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write some columns of rows, none of whose cells holds a comma; what is None is left empty."""
    cells = [["" if row[name] is None else str(row[name]) for name in columns] for row in rows]
    write_text(path, "".join(f"{','.join(line)}\n" for line in [columns, *cells]))


def front_table(rows: Sequence[FrontRow]) -> pd.DataFrame:
    """The front as it is written: a cell is empty where a row lacks the value."""
    import pandas as pd

    made = [
        {
            "name": row.name,
            "architecture": row.architecture,
            "overall_ratio": row.overall_ratio,
            "parameters": row.parameters,
            "objective": row.objective,
            **row.metrics,
            **{f"{_FORECAST}{metric}": value for metric, value in row.forecast.items()},
            **{f"{_TAKES}{limit}": value for limit, value in row.takes.items()},
        }
        for row in rows
    ]
    return pd.DataFrame(made).assign(dominated=[row.dominated for row in rows])


def write_front(path: Path, rows: Sequence[FrontRow]) -> None:
    write_text(path, front_table(rows).to_csv(index=False))


def read_front(path: Path) -> list[FrontRow]:
    """Read what `write_front` wrote.

    Raises:
        InputError: the file is missing or damaged, or lacks a column.
    """
    found = []
    for row in read_csv(path, _FRONT, STAGE):
        words = ("name", "architecture", "dominated")
        values = numbers({k: v for k, v in row.items() if k not in words}, path, STAGE)
        own = [values.pop(key) for key in ("overall_ratio", "parameters", "objective") if key in values]
        if len(own) < 3 or row["dominated"] not in ("True", "False"):
            raise InputError(f"{path}: the row of {row['architecture']} is damaged; run `dvc repro {STAGE}`")
        forecast, takes = (
            {k.removeprefix(start): v for k, v in values.items() if k.startswith(start)}
            for start in (_FORECAST, _TAKES)
        )
        metrics = {k: v for k, v in values.items() if not k.startswith((_FORECAST, _TAKES))}
        ratio, parameters, objective = own
        found.append(
            FrontRow(
                name=row["name"],
                architecture=row["architecture"],
                overall_ratio=ratio,
                parameters=int(parameters),
                objective=objective,
                metrics=metrics,
                forecast=forecast,
                takes=takes,
                dominated=row["dominated"] == "True",
            )
        )
    return found


def write_trials(path: Path, rounds: Sequence[Round]) -> None:
    """Write every trial with its forecasts, and the best objective of its round so far."""
    import pandas as pd

    rows = [
        {"round": r.number, "trial": t.number, "architecture": t.architecture.id, "objective": t.objective}
        | {f"{_FORECAST}{target}": value for target, value in t.forecast.items()}
        for r in rounds
        for t in r.trials
    ]
    trials = pd.DataFrame(rows)
    trials["best"] = trials.groupby("round")["objective"].cummin()
    write_text(path, trials.to_csv(index=False))


def read_history(path: Path) -> list[float]:
    """The best forecast objective of a round so far, trial by trial, round after round.

    Raises:
        InputError: the file is missing or damaged, or lacks a column.
    """
    rows = read_csv(path, ["round", "trial", "best"], STAGE)
    return [numbers({"best": row["best"] or "nan"}, path, STAGE)["best"] for row in rows]


def round_errors(rounds: Sequence[Round], weights: Mapping[str, float]) -> list[dict[str, float]]:
    """A mapping a round: "round", "measured", and the errors of its forecasts (`Round.errors`).

    Among them how many "trials" there were, which of them was the first of the lowest forecast
    ("best_trial", from 1), and by how much the best measured objective fell ("gain"), where that is known.
    """
    return [
        {"round": r.number, "measured": len(r.measured), **r.errors(weights)}
        | {"trials": len(r.trials), "best_trial": r.trials.index(r.best_trial) + 1}
        | ({"gain": r.gain} if math.isfinite(r.gain) else {})
        for r in rounds
    ]


def write_rounds(path: Path, errors: Sequence[Mapping[str, float]]) -> None:
    """Write `round_errors`."""
    import pandas as pd

    write_text(path, pd.DataFrame(errors).to_csv(index=False))


def read_rounds(path: Path) -> list[dict[str, float]]:
    """Read what `write_rounds` wrote; an error that a round lacks is left out.

    Raises:
        InputError: the file is missing or damaged, or lacks a column.
    """
    return [numbers(row, path, STAGE) for row in read_csv(path, ["round", "measured"], STAGE)]


def write_metrics(
    path: Path,
    selection: Mapping[str, Mapping[str, float]],
    errors: Sequence[Mapping[str, float]],
    protocol: Sequence[Mapping[str, Any]],
) -> None:
    """Write the figures for machines: what baselines and winner measured, the rounds' errors, and how."""
    content = {"selection": selection, "rounds": [*errors], "protocol": [*protocol]}
    write_json(path, SCHEMA, VERSION, content)
