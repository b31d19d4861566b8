"""What the report shows, read from the files that the stages left: no model, no corpus, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.architecture import ModelShape
from stages.evaluate.results import division
from stages.evaluate.results.division import DividedCorpus
from stages.export.benchmark.comparison import Proof
from stages.export.report.data import FrontPoint, MeasuredPoint, ReportData, Trust
from stages.export.results.final_table import PRUNED_BASELINES
from stages.export.results.record import Record
from stages.files import InputError
from stages.metrics.perplexity import LOG_PPL, PPL
from stages.metrics.registered import by_corpus
from stages.sample import designs
from stages.search import course, explain, narrowed_space, outcome, tables
from stages.search.course import Evaluation
from stages.search.explain import Explanation
from stages.search.narrowed_space import NarrowedSpace
from stages.search.outcome import Candidate, Step
from stages.search.tables import FrontRow
from stages.train_predictor import results
from stages.train_predictor.results import ForecastPair, Judged, PredictorErrors


@dataclass(frozen=True)
class StageFiles:
    """What the stages before export left for its report."""

    shape: ModelShape
    errors: PredictorErrors
    forecasts: Sequence[ForecastPair]
    compared: Sequence[Judged]
    judged: Sequence[Judged]
    corpora: Mapping[str, DividedCorpus]
    narrowed: NarrowedSpace
    candidates: Sequence[Candidate]
    steps: Sequence[Step]
    history: Sequence[float]
    front: Sequence[FrontRow]
    rounds: Sequence[dict[str, float]]
    course: Sequence[Evaluation]
    explained: Sequence[Explanation]


def read_stages(data: Path) -> StageFiles:
    """Read what the stages before export left in `data`; cheap, so that it can be asked for before the work.

    Raises:
        InputError: a file is missing, damaged or of another release; the message says which stage to run.
    """
    trained, searched = data / "train_predictor", data / "search"
    outcome.check_tables(searched / "outcome.json")
    return StageFiles(
        shape=designs.read(data / "sample" / "architectures.json")[0],
        errors=results.read_errors(trained / results.ERRORS),
        forecasts=results.read_forecasts(trained / results.FORECASTS),
        compared=results.read_judged(trained / results.COMPARISON),
        judged=results.read_judged(trained / results.ABLATION),
        corpora=division.read(data / "evaluate" / "division.json"),
        narrowed=narrowed_space.read(searched / "narrowed_space.json"),
        candidates=outcome.read(searched / "outcome.json"),
        steps=outcome.read_steps(searched / "outcome.json"),
        history=tables.read_history(searched / tables.TRIALS),
        front=tables.read_front(searched / tables.FRONT),
        rounds=tables.read_rounds(searched / tables.ROUNDS),
        course=course.read(searched / tables.COURSE),
        explained=explain.read(searched / tables.EXPLAINED),
    )


def read_report(data: Path, record: Record, proof: Proof) -> ReportData:
    """The report of an export, with what the stages before it left in `data`.

    Raises:
        InputError: as `read_stages`; or the export is of another search.
    """
    found = read_stages(data)
    errors, narrowed, table = found.errors, found.narrowed, record.table
    winner = outcome.candidate_of(found.candidates, outcome.WINNER).architecture
    exported = next(c.architecture for c in table.contenders if c.name == outcome.WINNER)
    if exported != winner:
        raise InputError(
            f"{data / 'export'} is of architecture {exported.id}, but the search's winner is {winner.id}: "
            "run `dvc repro export`"
        )
    return ReportData(
        model=record.model,
        shape=found.shape,
        contenders=table.contenders,
        pairs=_pairs(found.forecasts, record.texts),
        finalists=_finalists(found.candidates, record.texts),
        predictor=_held_out(errors),
        narrowed={str(site.site): site for site in narrowed.sites},
        protocol=table.protocol,
        corpora=found.corpora,
        history=found.history,
        provenance=record.provenance,
        export_check=record.checks,
        change_errors=table.change_errors,
        question_groups=table.question_groups,
        protocol_entries=table.protocol_entries,
        taken=table.taken,
        narrowed_by=narrowed.ranked_by,
        front=[front_point(row) for row in found.front],
        trust=Trust(
            kind=errors.kind,
            promised_coverage=errors.promised_coverage,
            cross_validated=errors.cross_validated,
            compared=found.compared,
            ablation=found.judged,
            rounds=found.rounds,
        ),
        proof=proof,
        curves=table.curves,
        course=found.course,
        steps=table.steps,
        alternatives=table.alternatives,
        answers=table.answers,
        explained=found.explained,
        name=record.base.name,
    )


def _pairs(pairs: Sequence[ForecastPair], texts: Sequence[str]) -> list[MeasuredPoint]:
    """The pairs with the forecasts of a predictor that saw the training pairs only."""
    return [
        MeasuredPoint(
            architecture=pair.architecture,
            design=pair.design,
            overall_ratio=pair.overall_ratio,
            log_ppl=_of_texts(pair.measured, texts),
            forecast_log_ppl=_of_texts(pair.forecast, texts),
            held_out=pair.held_out,
        )
        for pair in pairs
    ]


def _finalists(candidates: Sequence[Candidate], texts: Sequence[str]) -> list[MeasuredPoint]:
    """Finalists, winner and baselines as the search measured them."""
    return [
        MeasuredPoint(
            architecture=c.architecture.id,
            design=outcome.FINALIST if c.name == outcome.WINNER else c.name,
            overall_ratio=c.overall_ratio,
            log_ppl=_of_texts(c.metrics, texts),
            forecast_log_ppl=_of_texts(c.forecast, texts),
            held_out=c.name not in PRUNED_BASELINES,  # the baselines are among the pairs
        )
        for c in candidates
    ]


def _of_texts(values: Mapping[str, float], texts: Sequence[str]) -> dict[str, float]:
    return {text: values[LOG_PPL.of(text).key] for text in texts}


def front_point(row: FrontRow) -> FrontPoint:
    """A row of the front as the report shows it."""
    return FrontPoint(
        name=row.name,
        architecture=row.architecture,
        overall_ratio=row.overall_ratio,
        parameters=row.parameters,
        ppl=by_corpus(row.metrics, PPL),
        forecast_ppl=by_corpus(row.forecast, PPL),
        takes=row.takes,
        dominated=row.dominated,
    )


def _held_out(errors: PredictorErrors) -> dict[str, dict[str, float]]:
    """Errors on held-out pairs, by target."""
    return {
        target: {k: v for k, v in values.items() if isinstance(v, float)}
        | {"held_out_pairs": values["pairs"]}
        for target, values in errors.held_out.items()
    }
