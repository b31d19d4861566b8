"""The course of a search: what it measured, in which order, and the best of the budget so far.

One-shot is the cheapest architecture by the damage curves alone, which no pair and no round has corrected:
what pairs and rounds are worth is what they better it by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.architecture import Architecture
from stages.files import InputError, numbers, read_csv
from stages.metrics.objective import objective_of
from stages.search.outcome import Step
from stages.search.tables import write_rows

if TYPE_CHECKING:
    from stages.search.rounds import GuidedSearch, Metrics, Round

ONE_SHOT = "one-shot"
_COLUMNS = (
    "evaluation",
    "round",
    "architecture",
    "overall_ratio",
    "in_budget",
    "one_shot",
    "objective",
    "best",
)


@dataclass(frozen=True)
class Evaluation:
    """One measured architecture, counted from 1; those of round 0 are the pairs.

    `objective` is as pairs are measured; `best` is the lowest within the budget up to here, infinite where
    there was none.
    """

    evaluation: int
    round: int
    architecture: str
    overall_ratio: float
    in_budget: bool
    one_shot: bool
    objective: float
    best: float


def course(
    guided: GuidedSearch, pairs: Mapping[Architecture, Metrics], rounds: Sequence[Round]
) -> list[Evaluation]:
    """Every measured architecture: the pairs in the order of their ids, then round after round."""
    shape, weights = guided.features.shape, guided.search.objective
    ordered = [(0, a, pairs[a]) for a in sorted(pairs, key=lambda a: a.id)]
    ordered += [
        (r.number, t.architecture, r.measured[t.architecture])
        for r in rounds
        for t in r.chosen
        if t.architecture not in pairs  # one-shot may be one
    ]
    one_shot = rounds[0].one_shot if rounds else None
    found, best = [], math.inf
    for count, (number, architecture, measured) in enumerate(ordered, 1):
        objective, meets = objective_of(measured, weights), guided.meets(architecture)
        best = min(best, objective) if meets else best
        found.append(
            Evaluation(
                evaluation=count,
                round=number,
                architecture=architecture.id,
                overall_ratio=architecture.overall_ratio(shape),
                in_budget=meets,
                one_shot=architecture == one_shot,
                objective=objective,
                best=best,
            )
        )
    return found


def steps(guided: GuidedSearch, pairs: Mapping[Architecture, Metrics], rounds: Sequence[Round]) -> list[Step]:
    """What the search would have ended with: by the one-shot rule, and after each of its rounds."""
    weights, known, found = guided.search.objective, dict(pairs), []
    for each in rounds:
        if (rule := each.one_shot) is not None:
            found.append(Step(ONE_SHOT, rule, 0, objective_of(each.measured[rule], weights)))
        known |= each.measured
        for best in guided.best(known)[:1]:
            found.append(Step(f"round {each.number}", best, len(known), objective_of(known[best], weights)))
    return found


def write(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """Write a row an evaluation; a best that is not known yet is left empty."""
    known = ({**e.__dict__, "best": e.best if math.isfinite(e.best) else None} for e in evaluations)
    write_rows(path, _COLUMNS, known)


def read(path: Path) -> list[Evaluation]:
    """Read what `write` wrote.

    Raises:
        InputError: the file is missing or damaged, or lacks a column.
    """
    found = []
    for row in read_csv(path, _COLUMNS, "search"):
        told = {key: row.pop(key) for key in ("architecture", "in_budget", "one_shot")}
        values = numbers(row, path, "search")
        try:
            found.append(
                Evaluation(
                    int(values["evaluation"]),
                    int(values["round"]),
                    told["architecture"],
                    values["overall_ratio"],
                    told["in_budget"] == "True",
                    told["one_shot"] == "True",
                    values["objective"],
                    values.get("best", math.inf),
                )
            )
        except KeyError as error:
            raise InputError(f"{path}: a row lacks {error}; run `dvc repro search`") from error
    return found
