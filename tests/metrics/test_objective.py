"""What a search minimises: each target in the direction that its metric states."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stages.config.choices import METRICS
from stages.metrics.objective import objective_of
from stages.metrics.registered import metric_of


def test_what_should_be_high_counts_negatively():
    values = {"log_ppl.a": 2.0, "quiz.log_likelihood": -5.0}
    assert objective_of(values, {"log_ppl.a": 1.0, "quiz.log_likelihood": 1.0}) == pytest.approx(3.5)


def test_objective_is_the_weighted_mean():
    values = {"log_ppl.a": 2.0, "log_ppl.b": 5.0, "other": 100.0}
    assert objective_of(values, {"log_ppl.a": 1.0, "log_ppl.b": 0.5}) == pytest.approx(3.0)
    assert objective_of(values, {"log_ppl.a": 10.0}) == pytest.approx(2.0)


@pytest.mark.usefixtures("own_metrics")
def test_a_metric_of_ones_own_is_searched_for_in_its_direction():
    METRICS.add("sure", replace(metric_of("log_ppl.a"), name="sure", lower_is_better=False, on=""))
    METRICS.add("unsure", replace(metric_of("log_ppl.a"), name="unsure", lower_is_better=True, on=""))
    for name, better, worse in (("sure.a", 0.8, 0.7), ("unsure.a", 0.2, 0.3)):
        assert objective_of({name: better}, {name: 1.0}) < objective_of({name: worse}, {name: 1.0})
    values = {"sure.a": 0.8, "log_ppl.a": 3.0}
    assert objective_of(values, {"sure.a": 2.0, "log_ppl.a": 1.0}) == pytest.approx((3.0 - 1.6) / 3)


def test_a_target_that_no_metric_is_called_is_refused():
    with pytest.raises(ValueError, match=r"no metric is called 'sure\.a'"):
        objective_of({"sure.a": 0.8}, {"sure.a": 1.0})
