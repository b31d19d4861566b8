"""Gather what the report shows from the files of the stages before and the final measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.architecture import Architecture, ModelShape
from stages.evaluate.measure.evaluator import Evaluator
from stages.evaluate.results.errors import standard_error
from stages.evaluate.results.journal import Row
from stages.evaluate.text.corpora import divided
from stages.evaluate.workbench import Workbench
from stages.export.report.data import PRUNED_BASELINES, WINNER, Contender, Measured
from stages.metrics.metric import Shown
from stages.metrics.perplexity import LOG_PPL
from stages.metrics.registered import metric_of, shown
from stages.search import outcome
from stages.search.outcome import Candidate
from stages.train_predictor import results


def contender(name: str, row: Row, shape: ModelShape) -> Contender:
    """A row of the final table; a metric on another scale than its samples carries their error, scaled."""
    metrics = shown(row.metrics, Shown.REPORT)
    errors = {
        key: metric.slope(row.metrics) * standard_error(row.samples[metric.sampled.key])
        for key, metric in ((key, metric_of(key)) for key in metrics)
    }
    removed = shape.decoder_parameters - row.architecture.kept_parameters(shape)
    return Contender(
        name, row.architecture, row.overall_ratio, shape.total_parameters - removed, metrics, errors
    )


def paired_errors(rows: Mapping[str, Row]) -> dict[str, dict[str, float]]:
    """Standard errors, in percentage points, of the winner's relative change against each baseline.

    From differences paired window by window and question by question, so that how hard the text
    is cancels out.
    """
    found: dict[str, dict[str, float]] = {}
    winner = rows[WINNER]
    for baseline in PRUNED_BASELINES:
        other = rows[baseline]
        errors = {}
        for key in shown(winner.metrics, Shown.REPORT):
            metric, theirs = metric_of(key), other.metrics[key]
            both = (row.samples[metric.sampled.key] for row in (winner, other))
            error = metric.slope(winner.metrics) * standard_error([a - b for a, b in zip(*both, strict=True)])
            if theirs:
                errors[key] = 100 * error / abs(theirs)
        found[baseline] = errors
    return found


def measured_pairs(path: Path, texts: Sequence[str]) -> list[Measured]:
    """The pairs with the forecasts of a predictor that saw the training pairs only."""
    return [
        Measured(
            architecture=pair.architecture,
            design=pair.design,
            overall_ratio=pair.overall_ratio,
            log_ppl={text: pair.measured[LOG_PPL.of(text).key] for text in texts},
            forecast_log_ppl={text: pair.forecast[LOG_PPL.of(text).key] for text in texts},
            held_out=pair.held_out,
        )
        for pair in results.read_forecasts(path)
    ]


def measured_finalists(candidates: Sequence[Candidate], texts: Sequence[str]) -> list[Measured]:
    """Finalists, winner and baselines as the search measured them."""

    def of_texts(values: Mapping[str, float]) -> dict[str, float]:
        return {text: values[LOG_PPL.of(text).key] for text in texts}

    return [
        Measured(
            architecture=c.architecture.id,
            design=outcome.FINALIST if c.name == outcome.WINNER else c.name,
            overall_ratio=c.overall_ratio,
            log_ppl=of_texts(c.metrics),
            forecast_log_ppl=of_texts(c.forecast),
            held_out=c.name not in PRUNED_BASELINES,  # the baselines are among the pairs
        )
        for c in candidates
    ]


def corpora_of(bench: Workbench) -> dict[str, dict[str, Any]]:
    """Where each corpus comes from, and how many documents each part has."""
    return {
        name: {
            "source": corpus.source,
            "found": corpus.found,
            "used": corpus.used,
            "note": corpus.note,
            "parts": {part: content.count for part, content in corpus.parts.items()},
        }
        for name, corpus in divided({**bench.texts, **bench.questions}).items()
    }


def protocol_of(evaluators: Mapping[str, Evaluator], bench: Workbench) -> list[tuple[str, str]]:
    """How every figure was measured, one line a corpus, format and use."""
    section = bench.params.evaluate
    lines = []
    for use, evaluator in evaluators.items():
        for corpus, words in evaluator.selection.words().items():
            lines.append((f"{corpus}, {use}", words))
    calibration, repair = section.calibration, section.reconstruction
    if repair.method == "none":
        refitted = "none: output projections are cut, not refitted"
    else:
        again = "; finalists again, layer after layer" if bench.params.search.repair_again else ""
        refitted = (
            "output projections of pruned sites refitted by least squares on the same calibration text, "
            f"damping {repair.damping:g}{again}; uniform and simple alike"
        )
    lines.append(("Repair", refitted))
    lines.append(
        (
            "Importance",
            f"{section.importance}, on {calibration.samples} windows of {calibration.sequence_length} tokens "
            "of the calibration parts",
        )
    )
    lines.append(
        ("Arithmetic", f"{bench.network.dtype} on {bench.network.device.type}".replace("torch.", ""))
    )
    return lines


def flat_metrics(
    contenders: Sequence[Contender], changes: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """The final table under MLflow's flat names: ``winner.ppl.news``, ``change_percent.uniform.ppl.news``."""
    flat = {f"{c.name}.{key}": value for c in contenders for key, value in c.metrics.items()}
    flat |= {f"{c.name}.overall_ratio": c.overall_ratio for c in contenders}
    flat |= {f"change_percent.{b}.{key}": v for b, values in changes.items() for key, v in values.items()}
    return flat


def same_architecture(candidates: Sequence[Candidate], name: str) -> Architecture:
    """The architecture of the first candidate of that name."""
    return next(c.architecture for c in candidates if c.name == name)
