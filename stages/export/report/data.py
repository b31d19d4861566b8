"""What the report and the model card are made of, and the comparisons that both print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stages.architecture import ModelShape
from stages.evaluate.results.division import DividedCorpus
from stages.export.benchmark.comparison import Proof
from stages.export.results.final_table import (
    PRUNED_BASELINES,
    RECOVERED,
    Alternative,
    Answers,
    Contender,
    QuestionGroup,
    SearchStep,
    Taken,
    subject_of,
)
from stages.files import finite, write_json
from stages.metrics.metric import Metric, Shown
from stages.metrics.registered import metric_of
from stages.recovery.curve import Curve
from stages.sample.designs import DENSE
from stages.search.course import Evaluation
from stages.search.explain import Explanation
from stages.search.narrowed_space import NarrowedSite
from stages.search.outcome import FRONT, WINNER
from stages.train_predictor.results import Judged

SCHEMA, VERSION = "prunecast.final-metrics", 1
SUMMARY_SCHEMA, SUMMARY_VERSION = "prunecast.summary", 1
LEVEL_PERCENT = 0.05  # a smaller change would print as 0.0 %


@dataclass(frozen=True)
class MeasuredPoint:
    """One architecture measured on the selection part; `architecture` is its id.

    `log_ppl` and `forecast_log_ppl` are keyed by text corpus: {"wikipedia": 3.41}.
    """

    architecture: str
    design: str
    overall_ratio: float
    log_ppl: Mapping[str, float]
    forecast_log_ppl: Mapping[str, float] | None
    held_out: bool


@dataclass(frozen=True)
class FrontPoint:
    """A row of the front: an architecture at its overall ratio, measured on the selection part.

    `name` is "dense", "uniform", "simple", "winner" or "front", `architecture` an id. `forecast_ppl` is
    empty where the architecture is among the pairs; `takes` is by limit of the budget.
    """

    name: str
    architecture: str
    overall_ratio: float
    parameters: int
    ppl: Mapping[str, float]
    forecast_ppl: Mapping[str, float]
    takes: Mapping[str, float]
    dominated: bool


@dataclass(frozen=True)
class Trust:
    """What says how far forecasts can be trusted, beside the errors on held-out pairs.

    `cross_validated` has by target "pairs", "r2", "spearman", "spearman_near_budget",
    "pairs_near_budget", "top_recall", "top"; a figure that too few pairs leave unknown is missing.
    `rounds` has a mapping a round of the search: "round", "measured", "spearman.objective" and by target
    "bias.TARGET" and "rmse.TARGET", of architectures that were forecast before they were measured.
    `compared` has other kinds of predictors, and `ablation` this one without groups of features.
    """

    kind: str = ""
    promised_coverage: float = 0.8
    cross_validated: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    compared: Sequence[Judged] = ()
    ablation: Sequence[Judged] = ()
    rounds: Sequence[Mapping[str, float]] = ()


@dataclass(frozen=True)
class ReportData:
    """Everything that the report shows; `from_files` fills it.

    `predictor` maps a target ("log_ppl.wikipedia") to its errors on held-out pairs: "r2", "mae",
    "rmse", "spearman", "coverage" of the forecast interval and its "half_width", "held_out_pairs".
    `narrowed` is by site ("12.attention"), `narrowed_by` "importance" or "damage". `history` is the
    best forecast objective of a round so far, trial by trial, round after round. `question_groups` and
    `protocol_entries` (`Selection.protocol`) are of the final table. `taken` has an entry a limit of the
    budget in bytes or milliseconds. `proof` compares the exported files with the dense model's, in speed
    and memory. `curves` has the course of each training by the contender that it made. `change_errors`,
    where known, maps a baseline to the standard error
    of the winner's relative change against it, metric by metric in percentage points, from differences
    paired over the same windows or questions.
    """

    model: str
    shape: ModelShape
    contenders: Sequence[Contender]
    pairs: Sequence[MeasuredPoint]
    finalists: Sequence[MeasuredPoint]
    predictor: Mapping[str, Mapping[str, float]]
    narrowed: Mapping[str, NarrowedSite]
    protocol: Sequence[tuple[str, str]]
    corpora: Mapping[str, DividedCorpus]
    history: Sequence[float]
    provenance: Sequence[tuple[str, str]]
    export_check: Sequence[tuple[str, str]]
    change_errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    question_groups: Sequence[QuestionGroup] = ()
    protocol_entries: Sequence[Mapping[str, Any]] = ()
    taken: Sequence[Taken] = ()
    narrowed_by: str = "importance"
    front: Sequence[FrontPoint] = ()
    trust: Trust = field(default_factory=Trust)
    proof: Proof = field(default_factory=Proof)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    course: Sequence[Evaluation] = ()
    """Every architecture that the search measured, pairs first, in order."""
    steps: Sequence[SearchStep] = ()
    """What the search would have ended with at each of its steps, on the report part."""
    alternatives: Sequence[Alternative] = ()
    answers: Answers | None = None
    explained: Sequence[Explanation] = ()
    """Why the winner's widths are as they are, site by site."""
    name: str = ""
    """What the dense model is called, where `model` is a path."""

    def contender(self, name: str) -> Contender | None:
        return next((c for c in self.contenders if c.name == name), None)

    @property
    def winner(self) -> Contender:
        """Raises ValueError if no contender is named "winner"."""
        winner = self.contender(WINNER)
        if winner is None:
            names = [c.name for c in self.contenders]
            raise ValueError(f"the report's contenders are {names}; expected one named {WINNER!r}")
        return winner

    @property
    def exported(self) -> Contender:
        """What was written: the winner, recovered if it was."""
        return self.contender(RECOVERED) or self.winner

    @property
    def finalist_count(self) -> int:
        """How many finalists were measured, the winner among them."""
        return sum(m.design not in (DENSE, *PRUNED_BASELINES, FRONT) for m in self.finalists)

    @property
    def metric_names(self) -> list[str]:
        """The metrics of any contender: those of the verdict first, else in the order given."""
        names = dict.fromkeys(name for c in self.contenders for name in c.metrics)
        return sorted(names, key=lambda name: metric_of(name).shown < Shown.VERDICT)

    @property
    def decisive(self) -> list[Metric]:
        """The metrics that the verdict is about, one a text: perplexities."""
        return [metric for name in self.metric_names if (metric := metric_of(name)).shown is Shown.VERDICT]

    @property
    def texts(self) -> list[str]:
        """The text corpora that any architecture was measured on, in the order given."""
        measured = (name for m in (*self.finalists, *self.pairs) for name in m.log_ppl)
        return list(dict.fromkeys((*(metric.corpus for metric in self.decisive), *measured)))


def change_percent(data: ReportData, baseline: str, metric: str) -> float | None:
    """The winner's value against the baseline's (or another subject's), in percent of that one's magnitude.

    Positive means a larger value, whichever direction is better. None where either value is
    missing or not finite, or the baseline's is zero.
    """
    subject, other = data.contender(subject_of(baseline)), data.contender(baseline)
    if subject is None or other is None:
        return None
    ours, theirs = subject.metrics.get(metric), other.metrics.get(metric)
    if ours is None or theirs is None or not math.isfinite(ours) or not math.isfinite(theirs) or theirs == 0:
        return None
    return 100 * (ours - theirs) / abs(theirs)


def judge(data: ReportData, baseline: str, metric: str) -> str | None:
    """How the winner stands against the baseline: "better", "worse", "level" or "open"; None if unknown.

    Level means a change that would print as zero, or one within two standard errors; what no error is known
    of, as of text of a single window, is open. A coarse metric without paired errors is judged by the errors
    of both values, since a few dozen questions decide nothing; perplexities are not, since sharing their
    text makes those errors far too wide. A value that is not finite is worse than any that is.
    """
    change = change_percent(data, baseline, metric)
    if change is None:
        return _judge_broken(data, baseline, metric)
    subject, other = data.contender(subject_of(baseline)), data.contender(baseline)
    if subject and other and subject.architecture == other.architecture and change == 0:
        return "level"
    error = _change_error(data, baseline, metric)
    if error is None:
        return "open"
    if abs(change) < LEVEL_PERCENT or abs(change) <= 2 * error:
        return "level"
    return "better" if (change < 0) == metric_of(metric).lower_is_better else "worse"


def _judge_broken(data: ReportData, baseline: str, metric: str) -> str | None:
    """Where no change can be computed: decided by which of the two values is not finite."""
    subject, other = data.contender(subject_of(baseline)), data.contender(baseline)
    if subject is None or other is None or not {metric} <= subject.metrics.keys() & other.metrics.keys():
        return None
    ours, theirs = math.isfinite(subject.metrics[metric]), math.isfinite(other.metrics[metric])
    if ours and theirs:  # the baseline is zero
        return None
    return "level" if ours == theirs else "better" if ours else "worse"


def _change_error(data: ReportData, baseline: str, metric: str) -> float | None:
    """The error in percentage points; None where unknown."""
    paired = data.change_errors.get(baseline, {}).get(metric, math.nan)
    if math.isfinite(paired):
        return paired
    subject, other = data.contender(subject_of(baseline)), data.contender(baseline)
    if subject is None or other is None or not metric_of(metric).coarse:
        return None
    errors = [c.standard_errors.get(metric, math.nan) for c in (subject, other)]
    combined = 100 * math.hypot(*errors) / abs(other.metrics[metric])
    return combined if math.isfinite(combined) else None


def inseparable(data: ReportData, metric: str) -> bool:
    """Whether the winner is level with every pruned baseline by the metric, as each change is judged."""
    return {judge(data, name, metric) for name in PRUNED_BASELINES if data.contender(name)} == {"level"}


def metrics(data: ReportData) -> dict[str, Any]:
    """Nested, JSON-able metrics for DVC and CI: no dates, no infinities (left out).

    No timings either, unless the budget limits milliseconds.
    """
    changes: dict[str, Any] = {}
    for baseline in PRUNED_BASELINES:
        of_baseline = {name: change_percent(data, baseline, name) for name in data.metric_names}
        known = {name: round(change, 4) for name, change in of_baseline.items() if change is not None}
        if known:
            changes[baseline] = known
    limits = {
        t.name: {"limit": t.most, "forecast": dict(t.forecast), "measured": dict(t.measured)}
        for t in data.taken
    }
    return ({"limits": limits} if limits else {}) | {
        "contenders": {
            c.name: {"overall_ratio": c.overall_ratio, "parameters": c.parameters, **finite(c.metrics)}
            for c in data.contenders
        },
        "standard_errors": {c.name: finite(c.standard_errors) for c in data.contenders},
        "winner_change_percent": changes,
        "predictor": {target: _predictor(data, target) for target in data.predictor},
        # Lists, which `dvc metrics show` leaves out: it would print hundreds of columns.
        "question_groups": [
            asdict(group) | {"standard_errors": finite(group.standard_errors)}
            for group in data.question_groups
        ],
        "protocol": [dict(entry) for entry in data.protocol_entries],
    }


def summary(data: ReportData) -> dict[str, Any]:
    """The final table in few and rounded figures: what git keeps, and `dvc metrics show` fits in a line of.

    Perplexities and accuracies alone; the second digit of a perplexity is the same on other machines.
    """
    told = [m for name in data.metric_names if (m := metric_of(name)).shown is Shown.VERDICT or m.coarse]
    return {
        c.name: {"overall_ratio": round(c.overall_ratio, 4)}
        | {
            m.key: round(c.metrics[m.key], 4 if m.coarse else 2)
            for m in told
            if math.isfinite(c.metrics.get(m.key, math.nan))
        }
        for c in data.contenders
    }


def flat_metrics(data: ReportData) -> dict[str, float]:
    """The final table under flat names: ``winner.ppl.news``, ``change_percent.uniform.ppl.news``."""
    flat = {f"{c.name}.{key}": value for c in data.contenders for key, value in c.metrics.items()}
    flat |= {f"{c.name}.overall_ratio": c.overall_ratio for c in data.contenders}
    changes = metrics(data)["winner_change_percent"]
    flat |= {f"change_percent.{b}.{key}": v for b, values in changes.items() for key, v in values.items()}
    return flat


def write_metrics(path: Path, data: ReportData) -> None:
    """Write `metrics`."""
    write_json(path, SCHEMA, VERSION, metrics(data))


def write_summary(path: Path, data: ReportData) -> None:
    """Write `summary`."""
    write_json(path, SUMMARY_SCHEMA, SUMMARY_VERSION, summary(data))


def _predictor(data: ReportData, target: str) -> dict[str, Any]:
    validated = data.trust.cross_validated.get(target)
    return finite(data.predictor[target]) | (
        {"cross_validated": finite(validated)} if validated is not None else {}
    )
