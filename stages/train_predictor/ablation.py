"""What each group of features buys: the predictor without it, on the same folds of the same pairs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pandas as pd

from stages.build_dataset.features import is_damage, is_of_site
from stages.config.budget import Budget
from stages.config.params import TrainPredictor
from stages.config.predictors import PREDICTORS
from stages.metrics.registered import metric_of
from stages.train_predictor import comparison
from stages.train_predictor.comparison import own

ALL = "all features"
GROUPS: Mapping[str, str] = {
    "ratios of sites": r"ratio\.\d",
    "bands": r"band\.",
    "means by kind": r"ratio\.[a-z]",
    "importance mass": r"mass\.",
    "overall ratio": r"overall_ratio$",
    "damages of sites": r"damage\.\d+\.[a-z]",
    "sums of damages": r"damage(\.|$)",
}
"""Groups of features (`stages.build_dataset.features` documents them), by how their names begin."""


def groups(features: Sequence[str]) -> dict[str, list[str]]:
    """The features of each group that is there, in the order of `GROUPS`.

    Raises:
        ValueError: a feature belongs to no group, so that nothing would say what it buys.
    """
    found: dict[str, list[str]] = {group: [] for group in GROUPS}
    for feature in features:
        group = next((name for name, start in GROUPS.items() if re.match(start, feature)), None)
        if group is None:
            raise ValueError(
                f"feature {feature!r} belongs to no group of {list(GROUPS)}; "
                "add how its name begins to GROUPS in stages/train_predictor/ablation.py"
            )
        found[group].append(feature)
    return {group: names for group, names in found.items() if names}


def _left_out(features: Sequence[str]) -> dict[str, list[str]]:
    """Each group, and all damages together."""
    found = groups(features)
    damages = [name for name in features if is_damage(name)]
    return found | ({"any damage": damages} if damages else {})


def ablate(
    pairs: pd.DataFrame,
    features: Sequence[str],
    targets: Sequence[str],
    section: TrainPredictor,
    budget: Budget,
) -> pd.DataFrame:
    """A row a target and choice of features: all, then all without each group.

    Errors are those of `comparison.compare`, of the kind of predictor that `section` names;
    ``predictor`` says what is left out, and what is fitted instead where curves cannot be;
    ``features`` how many features are left. A target without a law, an accuracy, has the first row
    alone: a few questions do not tell features apart.
    """
    contestants = [own(ALL, section, features)]
    for group, without in _left_out(features).items():
        kept = [name for name in features if name not in set(without)]
        if not kept:
            continue
        instead = PREDICTORS[section.model].without_curves
        if instead is not None and not any(is_of_site(name) for name in kept):
            other = section.model_copy(update={"model": instead})
            contestants.append(own(f"without {group}: {instead}", other, kept))
        else:
            contestants.append(own(f"without {group}", section, kept))
    tables = [
        comparison.judged(
            contestants if metric_of(target).law else contestants[:1], pairs, [target], section, budget
        )
        for target in targets
    ]
    table = pd.concat(tables, ignore_index=True)
    return table.assign(features=table["predictor"].map({c.name: len(c.features) for c in contestants}))
