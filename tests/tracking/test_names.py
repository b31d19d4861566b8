"""What MLflow is told, without MLflow."""

from __future__ import annotations

from stages.architecture import ModelShape
from stages.tracking import names
from stages.tracking.records import ExportedModel, FittedPredictor, Role
from tests.evaluate.results.journal_writer import make_row


def test_what_mlflow_is_told_of_a_row() -> None:
    shape = ModelShape("llama", 2, 36, 2, 3, 8, 64, 260, tied_embeddings=True)
    row = make_row(16)
    told = names.evaluation(row, shape, {"mmlu.letter": "16 questions"})
    assert told.name == f"{row.design} {row.architecture.id[:8]} {100 * row.overall_ratio:.1f} %"
    ratios = {"ratio.00.attention", "ratio.00.mlp", "ratio.01.attention", "ratio.01.mlp"}
    assert told.params.keys() == {*ratios, "protocol.mmlu.letter"}
    assert told.params["protocol.mmlu.letter"] == "16 questions"
    assert told.params["ratio.00.mlp"] == f"{1 - (3 * 36 * 16 + 36) / (3 * 36 * 64 + 36):.3f}"
    assert told.params["ratio.01.mlp"] == told.params["ratio.01.attention"] == "0.000"
    assert told.metrics == {**row.metrics, "overall_ratio": row.overall_ratio, "seconds": 0.25}
    assert told.tags[names.KEY] == row.key
    assert told.tags["prunecast.context"] == row.context


def test_a_role_may_have_no_objective() -> None:
    assert names.role(Role("winner")) == {"prunecast.role": "winner"}
    assert names.role(Role("finalist", 3.70789)) == {
        "prunecast.role": "finalist",
        "prunecast.objective": "3.7079",
    }


def test_of_a_predictor_errors_are_metrics_and_counts_are_not() -> None:
    fitted = FittedPredictor("log_ppl.a", "nats", 1, 40, {"trees": 9}, {"r2": 0.9, "pairs": 12}, {"r2": 0.8})
    told = names.predictor(fitted, "abc")
    assert told.name == "predictor log_ppl.a"
    assert told.metrics == {"held_out.r2": 0.9, "cross_validated.r2": 0.8}
    assert told.params == {"trees": 9, "target": "log_ppl.a", "scale": "nats", "law": 1, "pairs": 40}


def test_a_model_is_known_by_the_digest_of_its_files() -> None:
    told = names.model(ExportedModel("ab12", "a model", 0.25, 1000, {"ppl.a": 30.5}, 3.5, "so"), "0123456789")
    assert told.name == "model 01234567"
    assert told.metrics == {"ppl.a": 30.5, "overall_ratio": 0.25, "parameters": 1000}
    assert told.tags == {
        "prunecast.architecture": "ab12",
        "prunecast.model": "a model",
        names.OBJECTIVE: "3.5",
        names.MEASURED: "so",
        names.RECORD: "model 0123456789",
    }
