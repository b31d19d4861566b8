"""Search on forecasts alone: Optuna's TPE over wishes that are projected onto the budget.

A dimension is the wished ratio of a bundle of neighbouring sites of one kind. Every trial's wishes
are projected to an architecture of the budget (`Space.project`), so that each trial is feasible and
the sampler learns of the objective only (Bergstra et al. 2011, "Algorithms for hyper-parameter
optimization"; Optuna's multivariate TPE).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import optuna
from tqdm import tqdm

from stages.architecture import Architecture, Site
from stages.build_dataset.features import Features
from stages.files import InputError
from stages.params import Budget, Search
from stages.sample.space import Space, bundles
from stages.train_predictor.predictor import Predictor


@dataclass(frozen=True)
class Trial:
    """One forecast architecture of the search."""

    number: int
    architecture: Architecture
    forecast: Mapping[str, float]
    objective: float


def objective_of(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The weighted mean of targets: nats a token for log PPLs. Lower is better."""
    return sum(weight * values[target] for target, weight in weights.items()) / sum(weights.values())


def search(
    space: Space,
    predictor: Predictor,
    features: Features,
    section: Search,
    budget: Budget,
) -> list[Trial]:
    """Run the study; trials in the order in which they were made. Reproducible: one seed, one thread."""
    groups = bundles(space.limits, section.bundle)
    names = [_name(group) for group in groups]
    bounds = [
        (min(space.limits[s][0] for s in group), max(space.limits[s][1] for s in group)) for group in groups
    ]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=section.seed, n_startup_trials=min(100, section.trials // 4))
    )
    level = budget.overall_ratio
    study.enqueue_trial({n: min(max(level, low), high) for n, (low, high) in zip(names, bounds, strict=True)})

    def evaluate(trial: optuna.Trial) -> Trial:
        wishes: dict[Site, float] = {}
        for name, group, (low, high) in zip(names, groups, bounds, strict=True):
            wishes |= dict.fromkeys(group, trial.suggest_float(name, low, high))
        architecture = space.project(wishes, budget.overall_ratio, budget.tolerance, at_least=True)
        values = predictor.forecast(features.row(architecture)[None])
        forecast = {target: float(value[0]) for target, value in values.items()}
        return Trial(trial.number, architecture, forecast, objective_of(forecast, section.objective))

    return _run(study, evaluate, section.trials)


def _run(study: optuna.Study, evaluate: Callable[[optuna.Trial], Trial], count: int) -> list[Trial]:
    trials: list[Trial] = []
    best = float("inf")
    bar = tqdm(range(count), desc="search on forecasts", unit="trial")
    for _ in bar:
        asked = study.ask()
        trial = evaluate(asked)
        study.tell(asked, trial.objective)
        trials.append(trial)
        if trial.objective < best:
            best = trial.objective
            bar.set_postfix_str(f"best {best:.4f}")
    return trials


def _name(group: Sequence[Site]) -> str:
    return f"{group[0].layer:02d}-{group[-1].layer:02d}.{group[0].kind}"


def distance(a: Architecture, b: Architecture) -> int:
    """In how many sites two architectures differ."""
    return sum((x[:2] != y[:2]) + (x[2] != y[2]) for x, y in zip(a.widths, b.widths, strict=True))


def finalists(trials: Sequence[Trial], count: int, min_distance: int) -> list[Trial]:
    """The best-forecast trials that differ from each other in at least `min_distance` sites.

    Raises:
        InputError: the trials hold fewer such architectures than asked for.
    """
    chosen: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.objective, t.number)):
        if all(distance(trial.architecture, c.architecture) >= min_distance for c in chosen):
            chosen.append(trial)
        if len(chosen) == count:
            return chosen
    raise InputError(
        f"search.finalists asks for {count} architectures that differ in {min_distance} sites; "
        f"{len(trials)} trials hold {len(chosen)}. "
        "Raise search.trials, or lower search.finalists or search.min_distance"
    )
