"""What the study measures: regimes, corpora, and the workbench of each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from stages.architecture import Architecture
from stages.build_dataset.features import Features
from stages.config.params import Params
from stages.evaluate.measure.evaluator import Evaluator
from stages.evaluate.results.damage import DamageCurves
from stages.evaluate.workbench import SCORES, Workbench, open_workbench
from stages.files import write_text
from stages.metrics.perplexity import LOG_PPL

SELECTED = 0.3
"""The last part of a validation split that selection sees; what is before it calibrates."""
TEXTS = ("wikitext2", "ptb")
SEARCH = {"rounds": 5, "min_gain": 0.0, "per_round": 8, "finalists": 6, "repair_again": False}
"""What *ours* spends, whatever the default is: 67 evaluations; the second repair is a step of its own."""
LENGTHS = {"wikitext2": 2048, "ptb": 1024}
"""Tokens a window in the final table; in the search 1,024 for both."""


@dataclass(frozen=True)
class Regime:
    """One part of the study. `evaluate` overrides the section of params.yaml."""

    name: str
    ratios: tuple[float, ...]
    evaluate: Mapping[str, Any]
    only: tuple[str, ...] = ()
    """The methods that run in it; all if empty."""


_TAYLOR = {
    "importance": "taylor",
    "reconstruction": {"method": "none", "damping": 0.001},
    "calibration": {"samples": 10, "sequence_length": 128, "conversations": 0},
}
REGIMES = {
    r.name: r
    for r in (
        Regime(
            "repaired",
            (0.2, 0.3, 0.4),
            {
                "calibration": {"samples": 120, "sequence_length": 1024, "conversations": 0},
                "curvature_tokens": 122_880,
            },
        ),
        Regime(
            "taylor", (0.2667,), _TAYLOR, ("uniform", "simple", "paper", "evolution", "curvature", "ours")
        ),
    )
}


def prepare(corpora: Path, work: Path) -> None:
    """Divide the validation splits into a calibration and a selection file, at an end of a line."""
    for name, source in (
        ("wikitext2", corpora / "wikitext2/wiki.valid.tokens"),
        ("ptb", corpora / "ptb/ptb.valid.txt"),
    ):
        text = source.read_text(encoding="utf-8")
        cut = text.index("\n", round((1 - SELECTED) * len(text))) + 1
        write_text(work / f"{name}.calibration.txt", text[:cut])  # whole: other processes may read it
        write_text(work / f"{name}.selection.txt", text[cut:])


def params_of(
    regime: Regime, overall_ratio: float, seed: int, model: str, corpora: Path, work: Path, windows: int
) -> Params:
    """The default params.yaml, with the study's model, corpora, importance and amount of text."""
    made = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    made["model"]["source"] = model
    reports = {"wikitext2": f"{corpora}/wikitext2/wiki.test.raw", "ptb": f"lines:{corpora}/ptb/ptb.test.txt"}
    prefix = {"wikitext2": "", "ptb": "lines:"}
    made["corpora"]["texts"] = {
        name: {
            "calibration": f"{prefix[name]}{work}/{name}.calibration.txt",
            "selection": f"{prefix[name]}{work}/{name}.selection.txt",
            "report": reports[name],
        }
        for name in TEXTS
    }
    mmlu = corpora / "mmlu"
    made["corpora"]["questions"] = {
        "mmlu": {
            "calibration": f"{mmlu}/dev",
            "selection": f"{mmlu}/dev",
            "report": f"{mmlu}/test",
        }
    }
    made["evaluate"] |= {**regime.evaluate, "cache_mb": 40_000}
    made["evaluate"]["measurement"] |= {"sequence_length": 1024, "windows": windows, "questions": 4}
    made["search"] |= SEARCH | {"objective": {LOG_PPL.of(name).key: 1.0 for name in TEXTS}}
    made["budget"]["overall_ratio"] = overall_ratio
    for section in ("sample", "train_predictor", "search"):
        made[section]["seed"] = seed
    return Params.model_validate(made)


class Setting:
    """An opened regime: one network, an evaluator for the search, and those of the final table."""

    def __init__(self, params: Params, folder: Path) -> None:
        self.params = params
        folder.mkdir(parents=True, exist_ok=True)
        self.scores = folder / SCORES
        self.bench = open_workbench(params, folder)
        self.selection = replace(self.bench, questions={}).evaluator("selection", params.evaluate.measurement)
        started = time.perf_counter()
        path = folder / "curvature.json"
        self.expected = self.bench.calibration.curves(self.bench.network, self.bench.repair, path)
        self.curvature_seconds = time.perf_counter() - started

    def features(self, params: Params, known: Mapping[Architecture, Mapping[str, float]]) -> Features:
        """Features with the expected curves, corrected by what of `known` cuts one site alone."""
        shape = self.bench.network.shape
        curves = DamageCurves.of_pairs(shape, known, list(params.corpora.texts), self.expected)
        return Features.of_model(shape, params.build_dataset.band, self.scores, curves)

    def on_texts(self) -> list[Evaluator]:
        """On the test splits of the texts, each at its own length."""
        made = []
        for name in TEXTS:
            bench: Workbench = replace(self.bench, texts={name: self.bench.texts[name]}, questions={})
            asked = {"windows": None, "sequence_length": LENGTHS[name]}
            measurement = self.params.evaluate.measurement.model_copy(update=asked)
            made.append(bench.evaluator("report", measurement))
        return made

    def on_questions(self, questions: int | None) -> list[Evaluator]:
        """On MMLU's test questions in both formats; `questions` of them, or all."""
        asked = {"questions": questions, "question_tokens": None}
        both = asked | {"question_formats": ["likelihood", "letter"]}
        measurement = self.params.evaluate.measurement.model_copy(update=both)
        return [replace(self.bench, texts={}).evaluator("report", measurement)]
