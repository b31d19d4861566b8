"""Saved views of MLflow's table of runs: what to show, which columns, in which order.

MLflow keeps one as a tag of the experiment, and opens it by its name in the address
(``…/runs?viewStateShareKey=NAME``): what its button "Share view" writes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from stages.config.params import Params
from stages.metrics.perplexity import PPL
from stages.tracking.names import RECORD, USE
from stages.tracking.records import Use

TAG = "mlflow.sharedViewState."
RUNS, ARCHITECTURES, BEST, ROUNDS, FINAL = "runs", "architectures", "at-budget", "rounds", "final-table"
NAME_WIDTH = 330
"""Pixels of the names of runs, which are cut otherwise."""
_NAME = "attributes.`Run Name`"
WORDS = {
    RUNS: "runs of the pipeline",
    BEST: "at the budget, the best first",
    ARCHITECTURES: "all architectures, by ratio",
    ROUNDS: "rounds of the search",
    FINAL: "final tables",
}
"""The views by name, the one that is opened first leading."""


def views(params: Params) -> dict[str, str]:
    """The state of each view as MLflow keeps it, by name; columns are of these params' corpora.

    Where limits decide alone, nothing is at a budget.
    """
    perplexities = [f"metrics.`{PPL.of(text).key}`" for text in params.corpora.texts]
    of_winner = [f"metrics.`winner.{PPL.of(text).key}`" for text in params.corpora.texts]
    ratio, budget = "metrics.`overall_ratio`", params.budget
    pairs = f"tags.`{USE}` = '{Use.PAIR}' AND metrics.overall_ratio"
    of_pair = [ratio, "metrics.`objective`", *perplexities, "tags.`prunecast.design`"]
    errors = [f"metrics.`rmse.{target}`" for target in params.search.objective]
    rounds = ["metrics.`best_measured_objective`", "metrics.`gain`", "metrics.`best_forecast_objective`"]
    at_budget = {}
    if budget.overall_ratio is not None:
        least, most = budget.overall_ratio - budget.tolerance, budget.overall_ratio + budget.tolerance
        near = f"{pairs} >= {least:g} AND metrics.overall_ratio <= {most:g}"
        at_budget[BEST] = _state(near, of_pair, "metrics.`objective`", ascending=True)
    return {
        RUNS: _state(
            "tags.`prunecast.invocation` LIKE '%'",
            ["metrics.`winner.overall_ratio`", *of_winner, "tags.`mlflow.source.git.commit`"],
        ),
        **at_budget,
        ARCHITECTURES: _state(f"{pairs} > 0", of_pair, ratio, ascending=True),
        ROUNDS: _state(
            f"tags.`{RECORD}` LIKE 'round %'",
            [*rounds, *errors, "params.`trials`"],
            rounds[0],
            ascending=True,
        ),
        FINAL: _state(
            f"tags.`{USE}` = '{Use.FINAL_TABLE}'",
            [ratio, *perplexities, "tags.`prunecast.design`"],
            ratio,
            ascending=True,
        ),
    }


def _state(
    search: str, columns: Sequence[str], order: str = "attributes.start_time", ascending: bool = False
) -> str:
    """Runs are shown flat where they are ordered by a metric, and below the run of the pipeline by time."""
    return json.dumps(
        {
            "searchFilter": search,
            "orderByKey": order,
            "orderByAsc": ascending,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "modelVersionFilter": "All Runs",
            "datasetsFilter": [],
            "selectedColumns": [*columns],
            "columnOrder": [_NAME],
            "columnWidths": {_NAME: NAME_WIDTH},
        }
    )
