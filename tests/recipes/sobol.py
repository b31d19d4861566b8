"""A toy sampler: a Sobol sequence fills the space evenly, whatever was found so far."""

import optuna

from stages.config.choices import SAMPLERS
from stages.config.params import Search


def sobol(seed: int, section: Search) -> optuna.samplers.BaseSampler:
    return optuna.samplers.QMCSampler(seed=seed, warn_independent_sampling=False)


SAMPLERS.add("sobol", sobol)
