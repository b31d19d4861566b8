"""Search on forecasts alone: Optuna proposes wishes that are projected onto the budget.

Every trial's wishes are projected to an architecture of the budget (`Space.project`), so that each
trial is feasible and the sampler learns of the objective only. Few meaningful dimensions first, one
for a bundle of neighbouring sites of one kind; then every site's ratio for itself, near the best found.
Where damage curves are known, a bundle's dimension is the price of its cuts: what its damages are
multiplied by before the cheapest cuts are chosen, so that every trial is a good architecture if the
curves are right up to these factors. Else it is a ratio.

Which sampler proposes them is a choice: `stages.search.samplers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage

from stages.architecture import Architecture, Site
from stages.config.choices import SAMPLERS
from stages.config.params import Search
from stages.metrics.objective import objective_of
from stages.progress import Progress
from stages.sample.limits import Limited
from stages.sample.space import Space, bundles
from stages.search.allocation import Allocation, Damage
from stages.search.study_log import StudyLog

VERSION = 1
"""The version of the studies, set by hand: raise it when other trials are asked of the same seed."""
NEAR = 0.15
"""How far a site's wish may stray from the best bundled architecture when each site moves for itself."""
PRICE = 0.7
"""The logarithm of a bundle's price lies between minus and plus this."""
_PRICED = 0.35
"""The part of the trials that moves the prices of sites."""

Wishes = Mapping[Site, float]


@dataclass(frozen=True)
class Trial:
    """One forecast architecture of the search."""

    number: int
    architecture: Architecture
    forecast: Mapping[str, float]
    objective: float


@dataclass(frozen=True)
class SearchTask:
    """What is asked of a search: the best forecast in a space at an overall ratio."""

    space: Space
    overall_ratio: float
    tolerance: float
    forecast: Callable[[Architecture], Mapping[str, float]]
    seed: int
    name: str
    """Names everything that the answer depends on: what an interrupted study is found again by."""
    limited: Limited | None = None
    """Limits of bytes or milliseconds, which then decide in the place of ratio and tolerance."""
    damage: Damage | None = None
    """The sites' damage curves, if they are known."""

    def project(self, wishes: Wishes) -> Architecture:
        if self.limited is not None:
            return self.limited.project(wishes)
        return self.space.project(wishes, self.overall_ratio, self.tolerance, at_least=True)


@dataclass(frozen=True)
class _Dimension:
    name: str
    sites: Sequence[Site]
    low: float
    high: float
    start: float

    def clip(self, ratio: float) -> float:
        return min(max(ratio, self.low), self.high)


def search(
    task: SearchTask,
    section: Search,
    starts: Sequence[Architecture] = (),
    storage: Path | None = None,
) -> list[Trial]:
    """Half of `section.trials` over bundles, half over sites, from the best so far.

    Over bundles it starts from the cheapest cuts by the damage curves, or from an even one. Where
    curves are known, the first part of the trials over sites moves their prices; the rest moves ratios,
    which also finds widths that no price makes the cheapest.

    `starts` are architectures known or thought to be good; the search over ratios of sites begins with
    them too, and moves around the best forecast among them and the earlier trials. Reproducible:
    one seed, one thread. With a `storage` file the studies can be watched with optuna-dashboard, and
    those that were finished aren't asked again. An unfinished one begins anew, since what a sampler
    proposes next depends on what it drew before: a search that was killed finds what an undisturbed one does.
    """
    kept = None if storage is None else _open(storage)
    bundled = _bundles(task, section, kept)
    trials = bundled.run(section.trials - section.trials // 2, [bundled.even])
    if section.trials < 2:
        return trials
    if task.damage is not None:
        of_sites: dict[tuple[Site, ...], float] = {
            (site,): price for group, price in bundled.best.items() for site in group
        }
        priced = _prices(task, section, kept, "prices of sites", of_sites)
        trials += priced.run(round(_PRICED * section.trials), [priced.even], len(trials))
    best = min(trials, key=lambda t: (t.objective, t.number))
    promising = [best.architecture, *starts]
    forecasts = [best.objective, *(objective_of(task.forecast(a), section.objective) for a in starts)]
    around = promising[forecasts.index(min(forecasts))]
    single = _Phase(task, section, kept, "sites", _single(task.space, around), _ratios)
    begin = [_wishes(single, a) for a in promising]
    return trials + single.run(section.trials - len(trials), begin, len(trials))


def _open(storage: Path) -> BaseStorage:
    return JournalStorage(StudyLog(storage))


def forget_others(storage: Path, name: str) -> None:
    """Delete the storage of another search: one that holds no study of the task `name`."""
    if storage.is_file() and not any(
        study.startswith(name) for study in optuna.get_all_study_names(_open(storage))
    ):
        storage.unlink()


def _bundles(task: SearchTask, section: Search, storage: BaseStorage | None) -> _Phase:
    """The study over bundles: of prices where damage curves are known, else of ratios."""
    groups = bundles(task.space.limits, section.bundle)
    if task.damage is not None:
        return _prices(task, section, storage, "prices", {tuple(group): 0.0 for group in groups})
    made = []
    for group in groups:
        limits = [task.space.limits[site] for site in group]
        low, high = min(low for low, _ in limits), max(high for _, high in limits)
        made.append(_Dimension(_name(group), group, low, high, task.overall_ratio))
    return _Phase(task, section, storage, "bundles", made, _ratios)


def _prices(
    task: SearchTask,
    section: Search,
    storage: BaseStorage | None,
    label: str,
    around: Mapping[tuple[Site, ...], float],
) -> _Phase:
    """A study of prices: logarithms within `PRICE` of those that groups of sites have `around`."""
    assert task.damage is not None
    allocation = Allocation(task.space, task.damage)
    made = [_Dimension(_name(g), g, price - PRICE, price + PRICE, price) for g, price in around.items()]

    def cheapest(dimensions: Sequence[_Dimension], values: Mapping[str, float]) -> Wishes:
        prices = {site: math.exp(values[d.name]) for d in dimensions for site in d.sites}
        return allocation.cheapest(task.overall_ratio, prices)

    return _Phase(task, section, storage, label, made, cheapest)


def _name(group: Sequence[Site]) -> str:
    return f"{group[0].layer:02d}-{group[-1].layer:02d}.{group[0].kind}"


def _ratios(dimensions: Sequence[_Dimension], values: Mapping[str, float]) -> Wishes:
    return {site: values[d.name] for d in dimensions for site in d.sites}


def _single(space: Space, around: Architecture) -> list[_Dimension]:
    made = []
    for site in sorted(space.limits):
        low, high = space.limits[site]
        ratio = min(max(around.site_ratio(space.shape, site), low), high)
        low, high = max(low, ratio - NEAR), min(high, ratio + NEAR)
        made.append(_Dimension(f"{site.layer:02d}.{site.kind}", [site], low, high, ratio))
    return made


def _wishes(phase: _Phase, architecture: Architecture) -> dict[str, float]:
    shape = phase.task.space.shape
    return {d.name: d.clip(architecture.site_ratio(shape, d.sites[0])) for d in phase.dimensions}


class _Phase:
    """One Optuna study."""

    def __init__(
        self,
        task: SearchTask,
        section: Search,
        storage: BaseStorage | None,
        label: str,
        dimensions: Sequence[_Dimension],
        wishes: Callable[[Sequence[_Dimension], Mapping[str, float]], Wishes],
    ) -> None:
        self.task = task
        self._wishes = wishes
        self.dimensions = dimensions
        self._section = section
        self._label = label
        self._storage = storage
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = self._open()

    def run(self, count: int, starts: Sequence[Mapping[str, float]], first: int = 0) -> list[Trial]:
        """`count` trials, numbered from `first`: those of an earlier run, if it had finished them."""
        told = self._study.get_trials(deepcopy=False, states=_TOLD)
        if len(told) >= count:
            return [self._trial(first + i, t.params, self._project(t.params)) for i, t in enumerate(told)]
        if self._storage is not None and self._study.get_trials(deepcopy=False):
            optuna.delete_study(study_name=self._study.study_name, storage=self._storage)
            self._study = self._open()
        for start in {tuple(s.items()): s for s in starts}.values():
            self._study.enqueue_trial(dict(start))
        trials: list[Trial] = []
        best = float("inf")
        label = f"{self.task.name.split(' ')[0]}, {self._label}"
        bar = Progress(range(count), desc=f"search on forecasts, {label}", unit="trial", leave=False)
        for index in bar:
            asked = self._study.ask()
            values = {d.name: asked.suggest_float(d.name, d.low, d.high) for d in self.dimensions}
            trial = self._trial(first + index, values, self._project(values))
            self._study.tell(asked, trial.objective)
            trials.append(trial)
            best = min(best, trial.objective)
            bar.set_postfix_str(f"best {best:.4f}")
        return trials

    def _open(self) -> optuna.Study:
        sampler = SAMPLERS[self._section.sampler](self.task.seed, self._section)
        name = f"{self.task.name} {self._label}"
        return optuna.create_study(
            storage=self._storage, sampler=sampler, study_name=name, load_if_exists=True
        )

    @property
    def even(self) -> dict[str, float]:
        """Where it starts: from the overall ratio for all, or from the prices that it moves around."""
        return {d.name: d.clip(d.start) for d in self.dimensions}

    @property
    def best(self) -> dict[tuple[Site, ...], float]:
        """The best trial's value for each dimension's sites."""
        values = self._study.best_params
        return {tuple(d.sites): float(values[d.name]) for d in self.dimensions}

    def _project(self, values: Mapping[str, float]) -> Architecture:
        return self.task.project(self._wishes(self.dimensions, values))

    def _trial(self, number: int, values: Mapping[str, float], architecture: Architecture) -> Trial:
        forecast = self.task.forecast(architecture)
        return Trial(number, architecture, forecast, objective_of(forecast, self._section.objective))


_TOLD = (optuna.trial.TrialState.COMPLETE,)


def distance(a: Architecture, b: Architecture) -> int:
    """The number of sites in which two architectures differ."""
    return sum((x[:2] != y[:2]) + (x[2] != y[2]) for x, y in zip(a.widths, b.widths, strict=True))


def finalists(
    trials: Sequence[Trial], count: int, min_distance: int, taken: Sequence[Architecture] = ()
) -> list[Trial]:
    """The best-forecast trials that differ in at least `min_distance` sites from each other.

    And in at least one from those that are `taken`. Where the trials hold too few so unlike, half
    that distance is asked for, and so on; fewer than `count`, or none, where they hold no more.
    """
    known = set(taken)
    ordered = [
        t for t in sorted(trials, key=lambda t: (t.objective, t.number)) if t.architecture not in known
    ]
    while True:
        chosen: list[Trial] = []
        for trial in ordered:
            if len(chosen) < count and all(
                distance(trial.architecture, c.architecture) >= min_distance for c in chosen
            ):
                chosen.append(trial)
        if len(chosen) == count or min_distance <= 1:
            return chosen
        min_distance //= 2
