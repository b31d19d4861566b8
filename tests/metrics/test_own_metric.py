"""A metric of one's own: params know it, and the guard judges it in its direction.

`tests/test_recipes.py` runs the pipeline with it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.config import extensions
from stages.config.params import load_params
from tests.regression.baseline import Contender, Run
from tests.regression.comparison import Verdict, compare
from tests.regression.settings import Settings, Tolerance, Tolerances
from tests.small import PARAMS, SMALL

RECIPE = Path(__file__).parents[1] / "recipes" / "probability.py"


@pytest.mark.usefixtures("own_metrics")
def test_params_know_it_where_the_extension_is_named(tmp_path: Path):
    extensions.load([str(RECIPE)])
    path = tmp_path / "params.yaml"
    text = PARAMS.read_text().replace("log_ppl.wikipedia: 1.0", "probability.wikipedia: 1.0")
    path.write_text(text)
    assert "probability.wikipedia" in load_params(path).search.objective


@pytest.mark.usefixtures("own_metrics")
def test_the_guard_judges_it_in_its_direction():
    extensions.load([str(RECIPE)])
    tolerance = Tolerance(ppl_percent=1, all_ppl_percent=1, accuracy_points=1, log_likelihood_nats=1)
    tolerances = Tolerances(fixed=tolerance, found=tolerance, export_nats=1)
    settings = Settings(standard_errors=3.0, tolerance=tolerances, params={})

    def run(shift: float, wobble: float = 0.0) -> Run:
        values = [0.5 + shift + wobble * (-1) ** i for i in range(20)]
        contender = Contender(SMALL.dense(), 0.0, {"probability.prose": values})
        return Run("model", "weights", [], {}, {}, {}, {"dense": contender})

    def verdict(shift: float, wobble: float = 0.0) -> Verdict:
        (row,) = compare(run(0.0), run(shift, wobble), settings)
        return row.verdict

    assert verdict(0.0) is Verdict.SAME
    assert verdict(-0.1) is verdict(-0.1, wobble=0.05) is Verdict.REGRESSION
    assert verdict(0.1) is Verdict.BETTER
    assert verdict(-0.001, wobble=0.05) is Verdict.NOISE
