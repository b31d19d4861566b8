"""Saved views of MLflow's table of runs: what to show, which columns, in which order.

MLflow keeps one as a tag of the experiment, and opens it by its name in the address
(``…/runs?viewStateShareKey=NAME``): what its button "Share view" writes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from stages.config.params import Params
from stages.metrics.perplexity import PPL
from stages.tracking.names import KEY, RECORD

TAG = "mlflow.sharedViewState."
RUNS, ARCHITECTURES, ROUNDS, FINAL = "runs", "architectures", "rounds", "final-table"
WORDS = {
    RUNS: "runs of the pipeline",
    ARCHITECTURES: "all architectures, the best first",
    ROUNDS: "rounds of the search",
    FINAL: "final tables",
}
"""The views by name, the one that is opened first leading."""


def views(params: Params) -> dict[str, str]:
    """The state of each view as MLflow keeps it, by name; columns are of these params' corpora."""
    perplexities = [f"metrics.`{PPL.of(text).key}`" for text in params.corpora.texts]
    of_winner = [f"metrics.`winner.{PPL.of(text).key}`" for text in params.corpora.texts]
    ratio, role = "metrics.`overall_ratio`", "tags.`prunecast.role`"
    errors = [f"metrics.`rmse.{target}`" for target in params.search.objective]
    rounds = ["metrics.`best_measured_objective`", "metrics.`gain`", "metrics.`best_forecast_objective`"]
    return {
        RUNS: _state(
            "tags.`prunecast.invocation` LIKE '%'",
            ["metrics.`winner.overall_ratio`", *of_winner, "tags.`mlflow.source.git.commit`"],
        ),
        ARCHITECTURES: _state(
            f"tags.`{KEY}` LIKE '%' AND tags.`prunecast.design` != 'dense'",
            [ratio, "metrics.`objective`", *perplexities, "tags.`prunecast.design`", role],
            "metrics.`objective`",
            ascending=True,
        ),
        ROUNDS: _state(f"tags.`{RECORD}` LIKE 'round %'", [*rounds, *errors, "params.`trials`"]),
        FINAL: _state(
            f"tags.`{KEY}` LIKE '%' AND tags.`dvc.stage` = 'export'",
            [ratio, *perplexities, "tags.`prunecast.design`"],
        ),
    }


def _state(
    search: str, columns: Sequence[str], order: str = "attributes.start_time", ascending: bool = False
) -> str:
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
        }
    )
