"""Rounds: forecast, measure the most promising, learn from them, search on.

Trees rank architectures that are far apart well and near neighbours badly; what is measured near the
best so far is what the next predictor needs. One object serves the pipeline's search stage and the
study of methods, so that both spend real evaluations alike.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from stages.architecture import Architecture, Site
from stages.build_dataset.features import Features
from stages.config.budget import Budget
from stages.config.params import Search, TrainPredictor
from stages.files import InputError
from stages.metrics.objective import objective_of
from stages.sample.limits import Limit, Limited
from stages.sample.space import Space
from stages.search import allocation, studies
from stages.search.allocation import Damage
from stages.search.studies import SearchTask, Trial
from stages.train_predictor.predictor import Predictor

Metrics = Mapping[str, float]
Measure = Callable[[Sequence[Architecture], int], Mapping[Architecture, Metrics]]
"""Measures architectures for real, in a round of that number; what is measured already costs nothing.
What failed is not among its results."""
ONE_SHOT = -1
"""The number of a trial that no study asked: the cheapest cut by the damage curves."""


@dataclass(frozen=True)
class Round:
    """One round: what was forecast, what was measured, and how far the forecasts were off."""

    number: int
    predictor: Predictor
    trials: Sequence[Trial]
    chosen: Sequence[Trial]
    measured: Mapping[Architecture, Metrics]
    gain: float = math.inf
    """What the best measured objective of the budget fell by; infinite where none was measured before."""

    @property
    def one_shot(self) -> Architecture | None:
        """What the damage curves alone say is best, uncorrected by pairs; the first round measures it."""
        return next((t.architecture for t in self.chosen if t.number == ONE_SHOT), None)

    @property
    def best_trial(self) -> Trial:
        """The first of the lowest forecast."""
        return min(self.trials, key=lambda trial: (trial.objective, trial.number))

    def errors(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Errors of the forecasts of architectures that the predictor had not seen, before they join.

        mean error (bias) and root mean squared error of each target and of the objective, and the
        rank correlation of the objective where at least three architectures were chosen; nothing where
        none was.
        """
        found: dict[str, float] = {}
        if not self.chosen:
            return found
        for target in weights:
            missed = [t.forecast[target] - self.measured[t.architecture][target] for t in self.chosen]
            found[f"bias.{target}"] = float(np.mean(missed))
            found[f"rmse.{target}"] = float(np.sqrt(np.mean(np.square(missed))))
        forecast = [t.objective for t in self.chosen]
        measured = [objective_of(self.measured[t.architecture], weights) for t in self.chosen]
        found["best_measured_objective"] = min(measured)
        if len(forecast) > 2 and np.ptp(forecast) > 0 and np.ptp(measured) > 0:
            found["spearman.objective"] = float(spearmanr(forecast, measured)[0])
        return found


@dataclass(frozen=True)
class GuidedSearch:
    """Searches one budget with a predictor that learns from round to round.

    `narrow` gives the space for a predictor fitted on the table of pairs.
    """

    features: Features
    targets: Sequence[str]
    search: Search
    train: TrainPredictor
    budget: Budget
    narrow: Callable[[Predictor, pd.DataFrame], Space]
    measure: Measure
    storage: Path | None = None
    limits: Sequence[Limit] = ()
    """Limits of bytes and milliseconds, if the budget has any: then they decide, not its ratio alone."""

    def table(self, known: Mapping[Architecture, Metrics]) -> pd.DataFrame:
        """Features and targets of what is measured: a row an architecture, in the order of their ids."""
        ordered = sorted(known, key=lambda a: a.id)
        table = pd.DataFrame(self.features.matrix(ordered), columns=self.features.names)
        values = [{target: known[a][target] for target in self.targets} for a in ordered]
        return pd.concat([table, pd.DataFrame(values)], axis=1)

    def run(
        self,
        known: Mapping[Architecture, Metrics],
        first: Predictor,
        after: Callable[[Round], None] = lambda _: None,
    ) -> tuple[list[Round], dict[Architecture, Metrics]]:
        """Run all rounds, from the pairs `known` and the predictor fitted on them.

        Returns the rounds and everything that is measured by then. Started again after a kill, it
        repeats no measurement, and no trial of a study that `storage` holds. A round whose trials hold
        nothing new is the last, and so is one that gains less than ``search.min_gain``.

        Raises:
            InputError: no architecture of the budget is found, and none was measured before.
        """
        known = dict(known)
        failed: list[Architecture] = []
        rounds: list[Round] = []
        predictor = first
        for number in range(1, self.search.rounds + 1):
            if number > 1:
                predictor = self.learn(known)
            space = self.narrow(predictor, self.table(known))
            trials = self.ask(predictor, space, number, known)
            first_cuts = self._cheapest(predictor, space) if number == 1 else []
            taken = [*known, *failed, *(t.architecture for t in first_cuts)]
            more = self.search.per_round - len(first_cuts)
            chosen = first_cuts + studies.finalists(trials, more, self.search.min_distance, taken)
            self._tell(number, len(trials), len(chosen), known)
            asked = [t.architecture for t in chosen]
            measured = self.measure(asked, number) if chosen else {}
            failed += [architecture for architecture in asked if architecture not in measured]
            chosen = [t for t in chosen if t.architecture in measured]
            before = self._lowest(known)
            known |= measured
            gain = before - self._lowest(known) if math.isfinite(before) else math.inf
            rounds.append(Round(number, predictor, trials, chosen, measured, gain))
            after(rounds[-1])
            if not asked or (number < self.search.rounds and self._ends(number, gain)):
                break
        return rounds, known

    def _lowest(self, known: Mapping[Architecture, Metrics]) -> float:
        """The lowest measured objective within the budget; infinite where there is none."""
        best = self.best(known)
        return objective_of(known[best[0]], self.search.objective) if best else math.inf

    def _ends(self, number: int, gain: float) -> bool:
        """Whether a round gained too little for another to follow it, which is said."""
        least = self.search.min_gain
        if gain >= least:
            return False
        told = f"round {number} lowered the best measured objective by {gain:.4f}"
        print(f"{told}, less than search.min_gain {least:g}: no further round follows", flush=True)
        return True

    def _tell(self, number: int, trials: int, new: int, known: Mapping[Architecture, Metrics]) -> None:
        """Say that a round measures fewer architectures than asked for; an error where there is not one."""
        asked = self.search.per_round
        found = (
            f"round {number}: {trials} trials hold {new} new architectures of the {asked} of search.per_round"
        )
        if new == 0 and not self.best(known):
            raise InputError(f"{found}, and none of the budget was measured before; raise search.trials")
        if new < asked:
            then = "these are measured" if new else "the search goes on with those that are measured"
            print(f"{found}: {then}. More search.trials, or a wider space, may find more", flush=True)

    def learn(self, known: Mapping[Architecture, Metrics]) -> Predictor:
        """A predictor of everything measured so far."""
        return Predictor.fit(self.table(known), self.features.names, self.targets, self.train)

    def ask(
        self,
        predictor: Predictor,
        space: Space,
        number: int,
        known: Mapping[Architecture, Metrics],
        overall_ratio: float | None = None,
    ) -> list[Trial]:
        """The trials of one study within the budget, or at another overall ratio."""
        limited, ratio = None, overall_ratio
        if ratio is None:
            limited, ratio = self._limited(space), self.budget.overall_ratio
        if limited is not None:
            even = limited.project(dict.fromkeys(space.limits, 0.0))
            ratio = even.overall_ratio(self.features.shape)
        assert ratio is not None  # a budget without limits states one

        def forecast(architecture: Architecture) -> Metrics:
            found = predictor.forecast(self.features.row(architecture)[None])
            return {target: float(values[0]) for target, values in found.items()}

        identity = [studies.VERSION, predictor.digest, self.search.model_dump(), ratio, self.budget.tolerance]
        identity += [sorted(space.limits.items()), space.granularity]
        if limited is not None:
            identity += [[(limit.name, limit.most, limit.constant) for limit in limited.limits]]
        digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:12]
        name = f"round-{number} {ratio:g} {digest}"
        seed = self.search.seed + number
        damage = None if self.features.curves is None else self._damage(predictor, space)
        question = SearchTask(space, ratio, self.budget.tolerance, forecast, seed, name, limited, damage)
        if self.storage is not None and number == 1:
            studies.forget_others(self.storage, name)
        starts = self.best(known, overall_ratio)
        return studies.search(question, self.search, starts, self.storage)

    def _cheapest(self, predictor: Predictor, space: Space) -> list[Trial]:
        """The cheapest cuts by the damage curves as they are, before any pair corrects them."""
        limited, ratio = self._limited(space), self.budget.overall_ratio
        if self.features.curves is None or limited is not None or ratio is None:
            return []
        wishes = allocation.cheapest(space, self.features.curves.damage, ratio)
        found = space.project(wishes, ratio, self.budget.tolerance, at_least=True)
        forecasts = predictor.forecast(self.features.row(found)[None])
        forecast = {target: float(values[0]) for target, values in forecasts.items()}
        return [Trial(ONE_SHOT, found, forecast, objective_of(forecast, self.search.objective))]

    def _damage(self, predictor: Predictor, space: Space) -> Damage:
        """What a predictor says that each width costs alone: the objective's rise, never falling."""
        every = [
            (site, option.ratio, space.architecture({site: option}))
            for site, widths in space.allowed.items()
            for option in widths
        ]
        forecasts = predictor.forecast(
            self.features.matrix([self.features.shape.dense(), *(a for *_, a in every)])
        )
        values = [
            objective_of({t: f[i] for t, f in forecasts.items()}, self.search.objective)
            for i in range(len(every) + 1)
        ]
        found: dict[Site, dict[float, float]] = {}
        for (site, ratio, _), value in zip(every, values[1:], strict=True):
            before = max(found.get(site, {}).values(), default=0.0)
            found.setdefault(site, {})[ratio] = max(before, float(value - values[0]))
        return lambda site, ratio: found[site][ratio]

    def _limited(self, space: Space) -> Limited | None:
        return Limited(space, self.limits, self.budget.tolerance) if self.limits else None

    def best(
        self, known: Mapping[Architecture, Metrics], overall_ratio: float | None = None
    ) -> list[Architecture]:
        """The best measured architectures within the budget, or of another overall ratio.

        As many as there are finalists.
        """
        weights = self.search.objective
        near = [a for a in known if self.meets(a, overall_ratio)]
        return sorted(near, key=lambda a: (objective_of(known[a], weights), a.id))[: self.search.finalists]

    def meets(self, architecture: Architecture, overall_ratio: float | None = None) -> bool:
        """Whether an architecture is within the budget, or of another overall ratio."""
        if overall_ratio is None and self.limits:
            return all(limit.allows(architecture) for limit in self.limits)
        ratio = self.budget.overall_ratio if overall_ratio is None else overall_ratio
        assert ratio is not None  # a budget without limits states one
        found = architecture.overall_ratio(self.features.shape)
        return 0 <= found - ratio + 1e-9 <= self.budget.tolerance + 1e-9
