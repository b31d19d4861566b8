"""The recipe for a metric, followed literally: one file of the user's, named in params, no line of ours."""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages.config import extensions
from stages.config.params import load_params
from tests.regression.baseline import Contender, Run
from tests.regression.comparison import Verdict, compare
from tests.regression.settings import Settings, Tolerance, Tolerances
from tests.small import PARAMS, SMALL
from tests.test_pipeline import Repository

RECIPE = Path(__file__).with_name("probability.py")
STAGES = ("sample", "evaluate", "build_dataset", "train_predictor", "search", "export")
KEYS = ["probability.prose", "probability.verse"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[..., Path]) -> Repository:
    """The six stages, run with the extension: it is searched for as `search.objective` names it."""
    made = Repository(tmp_path_factory.mktemp("own metric"), tiny_folder("llama"))
    shutil.copy(RECIPE, made.path / "mine.py")
    made.write_params(made.params() | {"extensions": ["mine.py"]})
    made.change(
        sample={"bundled": 6, "free": 3},
        train_predictor={"trees": 20},
        search={"objective": dict.fromkeys(KEYS, 1.0), "trials": 40, "rounds": 1},
    )
    for stage in STAGES:
        made.stage(stage)
    return made


def test_it_takes_at_most_thirty_lines():
    assert len([line for line in RECIPE.read_text().splitlines() if line.strip()]) <= 30


@pytest.mark.timeout(900)
def test_it_is_measured_forecast_searched_for_and_reported(repository: Repository):
    for row in repository.journal():
        for key in KEYS:
            assert row["metrics"][key] == pytest.approx(statistics.fmean(row["samples"][key]))
            # By Jensen's inequality; equal only if every token were equally probable.
            log_ppl = row["metrics"][key.replace("probability", "log_ppl")]
            assert math.exp(-log_ppl) < row["metrics"][key] < 1
    pairs = pd.read_parquet(repository.path / "data" / "build_dataset" / "pairs.parquet")
    assert set(KEYS) <= set(pairs.columns)
    errors = repository.json("train_predictor/metrics.json")["held_out"]
    assert [errors[key]["scale"] for key in KEYS] == ["mean probability"] * 2
    candidates = repository.json("search/outcome.json")["candidates"]
    finalists = [c for c in candidates if c["name"] in ("winner", "finalist")]
    assert len(finalists) == 3
    for c in finalists:
        assert c["objective"] == pytest.approx(-np.mean([c["metrics"][key] for key in KEYS]))
    (winner,) = [c for c in finalists if c["name"] == "winner"]
    # More probable is better: the objective falls, and the best finalist is the one with the most.
    best = max(sum(c["metrics"][key] for key in KEYS) for c in finalists)
    assert sum(winner["metrics"][key] for key in KEYS) == best
    final = repository.json("export/metrics.json")
    assert set(KEYS) <= set(final["contenders"]["winner"])
    assert set(KEYS) <= set(final["standard_errors"]["winner"])
    report = (repository.path / "data" / "export" / "report.html").read_text()
    card = (repository.path / "data" / "export" / "model" / "README.md").read_text()
    for text in ("prose", "verse"):
        assert f"probability of the next token, {text}" in report
        assert f"probability of the next token, {text} ↑" in card


@pytest.mark.timeout(900)
def test_with_another_version_of_it_all_is_measured_again(repository: Repository):
    before = repository.json("evaluate/context.json")
    assert before["metrics"]["probability.prose"] == 1
    file = repository.path / "mine.py"
    file.write_text(file.read_text().replace("    law=-1,\n", "    law=-1,\n    version=2,\n"))
    rows = len(repository.journal())
    repository.stage("evaluate")
    assert repository.json("evaluate/context.json")["digest"] != before["digest"]
    assert len(repository.journal()) == 2 * rows


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
