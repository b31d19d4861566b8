"""The ablation leaves out what it says, on the same folds, and shows what a group buys."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stages.build_dataset.features import Features
from stages.evaluate.results.damage import DamageCurves
from stages.train_predictor import ablation, comparison
from tests.small import COMMITTED, SMALL, budget_of, features_of, random_architectures

SECTION = COMMITTED.train_predictor.model_copy(update={"model": "additive", "folds": 4})
BUDGET = budget_of(overall_ratio=0.5, tolerance=0.01)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    """With damage curves that are unlike each other, so that only they tell sites apart at a glance."""
    made = features_of(tmp_path_factory.mktemp("features"))
    heights = np.random.default_rng(5).exponential(size=12)
    points = {s: [(0.3, 0.1 * h), (0.7, h)] for s, h in zip(SMALL.sites(), heights, strict=True)}
    return Features(made.shape, made.band, made.attention_mass, made.mlp_mass, DamageCurves(points))


@pytest.fixture(scope="module")
def pairs(features: Features) -> pd.DataFrame:
    """The law is the sum of damages, with a little noise; accuracy is noise alone."""
    architectures = random_architectures(SMALL, 40, 1)
    table = pd.DataFrame(features.matrix(architectures), columns=features.names)
    rng = np.random.default_rng(2)
    table["log_ppl.a"] = 3 + table["damage"] + rng.normal(0, 0.02, 40)
    return table.assign(design="free", **{"quiz.accuracy": rng.random(40)})


@pytest.fixture(scope="module")
def table(features: Features, pairs: pd.DataFrame) -> pd.DataFrame:
    return ablation.ablate(pairs, features.names, ["log_ppl.a", "quiz.accuracy"], SECTION, BUDGET)


def test_every_feature_belongs_to_one_group(features: Features):
    found = ablation.groups(features.names)
    assert list(found) == list(ablation.GROUPS)
    assert sorted(name for names in found.values() for name in names) == sorted(features.names)
    sizes = [len(names) for names in found.values()]
    assert sizes == [12, 6, 2, 2, 1, 12, 9]  # 6 layers of 2 sites, in bands of 2 layers
    assert found["means by kind"] == ["ratio.attention", "ratio.mlp"]


def test_groups_that_are_not_there_are_not_left_out(features: Features):
    without = [name for name in features.names if not name.startswith("damage")]
    assert not [group for group in ablation.groups(without) if "damage" in group]
    assert "any damage" not in ablation._left_out(without)


def test_without_the_damages_of_sites_the_additive_model_is_fitted(features: Features, pairs: pd.DataFrame):
    section = SECTION.model_copy(update={"model": "curves"})
    found = ablation.ablate(pairs, features.names, ["log_ppl.a"], section, BUDGET)["predictor"].tolist()
    assert "without damages of sites: additive" in found
    assert "without any damage: additive" in found
    assert "without bands" in found


def test_a_feature_of_no_group_is_an_error_that_says_where_to_add_it():
    with pytest.raises(ValueError, match=r"'shape\.mlp' belongs to no group of .*ablation\.py"):
        ablation.groups(["ratio.mlp", "shape.mlp"])


def test_rows_are_all_features_and_then_each_group_left_out(features: Features, table: pd.DataFrame):
    rows = table[table["target"] == "log_ppl.a"]
    left_out = [*ablation.GROUPS, "any damage"]
    assert list(rows["predictor"]) == [ablation.ALL, *(f"without {group}" for group in left_out)]
    assert list(rows["features"]) == [44, 32, 38, 42, 42, 43, 32, 35, 23]
    assert list(table.loc[table["target"] == "quiz.accuracy", "predictor"]) == [ablation.ALL]


def test_what_the_law_is_made_of_is_missed_and_nothing_else_is(table: pd.DataFrame):
    error = table[table["target"] == "log_ppl.a"].set_index("predictor")["rmse"]
    assert error["without any damage"] > 2 * error[ablation.ALL]
    others = error.drop([ablation.ALL, "without any damage", "without sums of damages"])
    assert (others < 1.3 * error[ablation.ALL]).all()


def test_errors_are_those_of_the_comparison(features: Features, pairs: pd.DataFrame, table: pd.DataFrame):
    """The same kind on the same features and folds has the same row in both tables."""
    compared = comparison.compare(pairs, features.names, ["log_ppl.a"], SECTION, BUDGET)
    same = compared[compared["predictor"] == "additive"].iloc[0]
    row = table[table["predictor"] == ablation.ALL].iloc[0]
    for column in ("r2", "spearman", "spearman_near_budget", "top_recall", "top"):
        assert row[column] == pytest.approx(same[column], nan_ok=True)


def test_of_accuracies_the_highest_are_the_best(features: Features, pairs: pd.DataFrame):
    """A forecast by heart of a target without a law: recall is 1 for it, and 0 upside down."""
    for sign, recall in ((1, 1.0), (-1, 0.0)):
        known = comparison.Contestant("", ["at"], lambda x, y, law, s=sign: lambda rows: s * rows[:, 0])  # type: ignore[misc]
        table = pairs.assign(at=pairs["quiz.accuracy"])
        found = comparison.judged([known], table, ["quiz.accuracy"], SECTION, BUDGET)
        assert found["top_recall"].tolist() == [recall]
