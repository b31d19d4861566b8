"""Optuna samplers: what proposes the next wishes of a study on forecasts.

Each is a function from a seed and the search's section of params to a sampler, and stands in
`stages.config.choices.SAMPLERS` under the name by which ``search.sampler`` asks for it.
"""

from __future__ import annotations

import warnings

import optuna

from stages.config.params import Search

POPULATION = 50
"""Individuals of a generation of NSGA-II."""


def tpe(seed: int, section: Search) -> optuna.samplers.BaseSampler:
    """The tree-structured Parzen estimator, multivariate.

    Bergstra et al. 2011, "Algorithms for hyper-parameter optimization". Fewer trials count as good than
    by default, since forecasts have no noise.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", FutureWarning)  # `gamma` stays until Optuna 6, which has no other way
        return optuna.samplers.TPESampler(
            seed=seed,
            multivariate=True,
            n_startup_trials=max(1, min(20, section.trials // 40)),
            gamma=lambda told: max(3, min(10, told // 20)),
        )


def nsga2(seed: int, section: Search) -> optuna.samplers.BaseSampler:
    """The genetic algorithm NSGA-II (Deb et al. 2002) with one objective."""
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=POPULATION)


def uniform(seed: int, section: Search) -> optuna.samplers.BaseSampler:
    """Random search: what any other sampler must beat."""
    return optuna.samplers.RandomSampler(seed=seed)
