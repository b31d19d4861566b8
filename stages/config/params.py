"""params.yaml as frozen typed sections. An unknown key or a bad value is an error that names it."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from stages.config import extensions
from stages.config.budget import Budget, Dtype
from stages.config.choices import METRICS, ExecutorName, ImportanceName, RepairName, SamplerName
from stages.config.document import read_yaml
from stages.config.fields import (
    Count,
    Drawn,
    Fraction,
    Natural,
    Positive,
    Ratio,
    RatioInterval,
    Section,
    Seed,
    Threads,
)
from stages.config.predictors import PREDICTORS, PredictorName
from stages.config.problems import explained
from stages.config.recovery import RecoverySection
from stages.files import CHECKSUM, InputError
from stages.metrics.metric import QuestionFormat
from stages.metrics.registered import targets

Part = Literal["calibration", "selection", "report"]
PARTS: tuple[Part, ...] = ("calibration", "selection", "report")

CorpusName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
ProfileName = Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]


class ModelSection(Section):
    source: Annotated[str, Field(min_length=1)]
    revision: str | None
    trust_remote_code: bool


class Division(Section):
    """Fractions of the documents of a corpus that has no splits of its own."""

    calibration: Fraction
    selection: Fraction
    report: Fraction

    @model_validator(mode="after")
    def _adds_up(self) -> Division:
        total = self.calibration + self.selection + self.report
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the three fractions add up to {total:g}; expected 1")
        return self


class PartSources(Section):
    """A corpus that keeps its own splits: one source a part."""

    calibration: str
    selection: str
    report: str


class Corpora(Section):
    division: Division
    texts: Annotated[dict[CorpusName, str | PartSources], Field(min_length=1)]
    questions: dict[CorpusName, str | PartSources]

    @model_validator(mode="after")
    def _no_corpus_is_called_like_another_thing(self) -> Corpora:
        for name in (*self.texts, *self.questions):
            if name in (CHECKSUM, "schema", "version"):
                raise ValueError(f"a corpus is called {name!r}, as a field of division.json is; rename it")
            if name in METRICS.names:
                raise ValueError(
                    f"a corpus is called {name!r} like a metric, and NAME.{name} would mean two things; "
                    "give it another name"
                )
        return self


class Sample(Section):
    seed: Seed
    first_layers_kept: Natural
    last_layers_kept: Natural
    mlp_granularity: Count
    ratios: Annotated[list[Ratio], Field(min_length=1)]
    bundle: Count
    bundled: Drawn
    free: Drawn
    single_site_ratios: list[Annotated[float, Field(gt=0, le=1)]]
    spread: Drawn
    spread_overall_ratios: RatioInterval
    spread_site_ratios: RatioInterval

    @model_validator(mode="after")
    def _samples_something(self) -> Sample:
        for name in ("spread_overall_ratios", "spread_site_ratios"):
            low, high = getattr(self, name)
            if low >= high:
                raise ValueError(f"{name} is [{low}, {high}]; expected [low, high] with low < high")
        if not (self.bundled or self.free or self.single_site_ratios or self.spread):
            raise ValueError("no design asks for an architecture; raise bundled, free or spread")
        return self


class Calibration(Section):
    """How much text decides scores and repair: windows of the calibration parts, and of conversations."""

    samples: Count
    sequence_length: Annotated[int, Field(ge=2, lt=2**31)]
    conversations: Natural

    @property
    def tokens(self) -> int:
        """Tokens of all windows, where the model has a chat template."""
        return (self.samples + self.conversations) * self.sequence_length


class ReconstructionSection(Section):
    method: RepairName
    damping: Positive


Bos = Literal["none", "tokenizer", "window"]


@dataclass(frozen=True)
class TextProtocol:
    """How a text becomes windows of tokens.

    `join` stands between documents. `sequence_length` counts the tokens of a window, its BOS
    included; each window starts `stride` tokens of text after the one before, and the last `stride`
    tokens of each are predicted (of a window that overlaps no other: all that have a token before
    them). `bos` is at the start of every window ("window"), once before the text where the tokenizer
    by itself adds one ("tokenizer"), or nowhere ("none"). A tail that fills no window is dropped.
    """

    join: str
    sequence_length: int
    stride: int
    bos: Bos

    def apart(self, join: str, length: int) -> TextProtocol:
        """Windows of another text that do not overlap, each with a BOS where each of these has one."""
        begins = self.bos == "window"
        return TextProtocol(join, length, length - begins, "window" if begins else "none")


PROTOCOLS: dict[str, tuple[str, int, Bos]] = {
    # join, sequence length, BOS; windows do not overlap.
    # GPTQ's evaluation (Frantar et al. 2022, arXiv 2210.17323), which most papers repeat.
    "standard": ("\n\n", 2048, "tokenizer"),
    # PPLMetric of LLM-Pruner (Ma et al. 2023, arXiv 2305.11627); its PTB is the validation split.
    "llm-pruner": ("\n\n", 128, "tokenizer"),
    # EvoPress (Sieberling et al. 2024, arXiv 2410.14649), for models whose context is as long.
    "evopress": ("\n\n", 8192, "none"),
}


class Measurement(Section):
    """How much text an architecture is measured on, and by which protocol.

    A key that is null is the protocol's (join, sequence_length, stride, bos) or no limit (windows,
    questions, question_tokens).
    """

    protocol: Literal["standard", "llm-pruner", "evopress"]
    sequence_length: Annotated[int, Field(ge=2, lt=2**31)] | None
    stride: Count | None
    join: str | None
    bos: Bos | None
    windows: Count | None
    questions: Count | None
    question_tokens: Count | None
    question_formats: Annotated[list[QuestionFormat], Field(min_length=1)]

    @model_validator(mode="after")
    def _possible(self) -> Measurement:
        if len(set(self.question_formats)) != len(self.question_formats):
            raise ValueError(f"question_formats {self.question_formats} names one twice; name each once")
        text = self.text
        most = text.sequence_length - (text.bos == "window")
        if text.stride > most:
            raise ValueError(
                f"stride is {text.stride}; expected at most the {most} tokens of text in a window, "
                "or text between windows would be left out"
            )
        return self

    @property
    def text(self) -> TextProtocol:
        """The protocol of texts, every value decided."""
        join, sequence_length, bos = PROTOCOLS[self.protocol]
        join = join if self.join is None else self.join
        sequence_length, bos = self.sequence_length or sequence_length, self.bos or bos
        return TextProtocol(join, sequence_length, self.stride or sequence_length - (bos == "window"), bos)


class RaySection(Section):
    """What the executor `ray` takes."""

    address: str | None
    workers: Count | None
    cores: Count


class Evaluate(Section):
    device: Literal["auto", "cpu", "cuda"]
    dtype: Literal["auto", "float32", "bfloat16"]
    executor: ExecutorName
    ray: RaySection
    calibration: Calibration
    importance: ImportanceName
    reconstruction: ReconstructionSection
    curvature_tokens: Natural
    measurement: Measurement
    prefix_cache_mb: Natural
    cache_mb: Count
    gpu_memory_gib: Positive | None


class BuildDataset(Section):
    seed: Seed
    held_out: Fraction
    band: Count


class TrainPredictor(Section):
    seed: Seed
    model: PredictorName
    folds: Annotated[int, Field(ge=2, lt=2**31)]
    trees: Count
    depth: Count
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    row_sampling: Annotated[float, Field(gt=0, le=1)]
    feature_sampling: Annotated[float, Field(gt=0, le=1)]
    min_child_weight: Annotated[float, Field(ge=0, le=1e9)]


class Narrowing(Section):
    by: Literal["importance", "damage"]
    sensitive: Ratio
    sensitive_ratios: RatioInterval
    insensitive: Ratio
    insensitive_ratios: RatioInterval
    other_ratios: RatioInterval

    @model_validator(mode="after")
    def _intervals(self) -> Narrowing:
        for name in ("sensitive_ratios", "insensitive_ratios", "other_ratios"):
            low, high = getattr(self, name)
            if low >= high:
                raise ValueError(f"{name} is [{low}, {high}]; expected [low, high] with low < high")
        if self.sensitive + self.insensitive > 1:
            raise ValueError("sensitive + insensitive exceed 1: they are fractions of the same sites")
        return self

    def counts(self, sites: int) -> tuple[int, int]:
        """The numbers of sensitive and of insensitive sites among so many."""
        sensitive = round(self.sensitive * sites)
        return sensitive, min(round(self.insensitive * sites), sites - sensitive)


class Search(Section):
    seed: Seed
    objective: Annotated[dict[str, Positive], Field(min_length=1)]
    narrowing: Narrowing
    sampler: SamplerName
    bundle: Count
    trials: Count
    rounds: Count
    min_gain: Annotated[float, Field(ge=0, le=1e9)]
    per_round: Count
    min_distance: Count
    finalists: Count
    front: list[Fraction]
    repair_again: bool
    recovery: RecoverySection | None
    measurement: Measurement


class ProofSection(Section):
    """What the exported and the dense model are timed on, side by side: tokens, rounds, windows of text."""

    device: Literal["auto", "cpu", "cuda"]
    threads: Threads | None
    prompt: Count
    continuation: Count
    rounds: Count
    windows: Count


GGUFType = Literal["F16", "Q8_0", "Q4_0"]


class AnswersSection(Section):
    """What dense and pruned model are asked, how many tokens of an answer are shown, and windows of text on
    which their predictions are compared."""

    prompts: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    tokens: Count
    windows: Count


class AlternativesSection(Section):
    """The types of weights in which dense and pruned model are compared, and the windows of each text."""

    types: Annotated[list[GGUFType], Field(min_length=1)]
    windows: Count


class Export(Section):
    dtype: Dtype
    recovery: RecoverySection
    gguf: list[GGUFType]
    proof: ProofSection | None
    answers: AnswersSection | None
    alternatives: AlternativesSection | None
    measurement: Measurement

    @model_validator(mode="after")
    def _each_file_once(self) -> Export:
        if len(set(self.gguf)) < len(self.gguf):
            raise ValueError(f"gguf is {self.gguf}; expected each type once")
        return self


class Tracking(Section):
    experiment: Annotated[str, Field(min_length=1)]


class Params(Section):
    """The whole of params.yaml."""

    profile: ProfileName
    extensions: list[str]
    model: ModelSection
    corpora: Corpora
    budget: Budget
    sample: Sample
    evaluate: Evaluate
    build_dataset: BuildDataset
    train_predictor: TrainPredictor
    search: Search
    export: Export
    tracking: Tracking

    @model_validator(mode="after")
    def _objective_is_measured(self) -> Params:
        forecast, finally_ = map(self._objectives, (self.evaluate.measurement, self.search.measurement))
        for name in self.search.objective:
            if name not in forecast:
                meant = "".join(f"; did you mean {near}?" for near in get_close_matches(name, forecast, n=1))
                raise ValueError(
                    f"search.objective names {name!r}, which is not forecast, or is too coarse; expected "
                    f"some of {', '.join(forecast)}{meant}"
                )
            if name not in finally_:
                raise ValueError(
                    f"search.objective names {name!r}, which search.measurement.question_formats "
                    f"{self.search.measurement.question_formats} do not measure; add its format"
                )
        return self

    @model_validator(mode="after")
    def _curves_are_known(self) -> Params:
        kind = self.train_predictor.model
        known = self.evaluate.curvature_tokens or self.sample.single_site_ratios
        if PREDICTORS[kind].curves and not known:
            raise ValueError(
                f"train_predictor.model is {kind!r}, which needs damage curves, but "
                "evaluate.curvature_tokens is 0 and sample.single_site_ratios is empty; "
                "set one of them, or take additive+xgboost"
            )
        return self

    @model_validator(mode="after")
    def _limits_are_of_what_is_exported(self) -> Params:
        if self.budget.limited and self.budget.dtype != self.export.dtype:
            raise ValueError(
                f"budget.dtype is {self.budget.dtype!r} and export.dtype {self.export.dtype!r}; expected the "
                "same, since the budget limits what is exported"
            )
        return self

    def _objectives(self, measurement: Measurement) -> list[str]:
        """What a search may go by where this is measured."""
        corpora = self.corpora
        found = targets(list(corpora.texts), list(corpora.questions), measurement.question_formats)
        return [metric.key for metric in found if not metric.coarse]


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check params.yaml.

    Raises:
        InputError: the file is missing or not YAML, or a key or value is wrong; the message
            names each, with what was found and what was expected.
    """
    document = read_yaml(path)
    extensions.load(_extensions(path, document))
    try:
        return Params.model_validate(document)
    except ValidationError as error:
        raise InputError(explained(path, document, error)) from error


def _extensions(path: Path, document: Any) -> list[str]:
    """The extensions that a document names, whose other keys are not checked yet."""
    named = document.get("extensions", []) if isinstance(document, dict) else []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise InputError(f"{path}: extensions is {named!r}; expected a list of Python files, or []")
    return named
