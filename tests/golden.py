"""Golden values of everything that is kept across runs, and the versions under which they were kept.

    python -m tests.golden            # compares what the code computes now with golden.json
    python -m tests.golden --update   # writes what it computes now into golden.json

A key of something kept holds the digests of its inputs and a version set by hand. So values must not move
while their version stays: users' journals, curves and caches would go on in silence with the old ones.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.architecture import Architecture, Kind, LayerWidth, ModelShape, Site
from stages.config.choices import IMPORTANCES
from stages.config.params import Measurement
from stages.evaluate.calibrate import curvature, least_squares, second_repair, statistics
from stages.evaluate.calibrate.importance import CalibrationData, Importance
from stages.evaluate.measure.evaluator import Evaluator
from stages.evaluate.network import decoder
from stages.evaluate.network.repair import NOTHING_REPAIRED
from stages.evaluate.text.corpora import Corpus, Document, Question
from stages.evaluate.text.selection import select
from stages.metrics.registered import metric_of
from stages.sample import latency
from stages.sample.timing import PHASES, Times
from tests import tiny

FILE = Path(__file__).with_name("golden.json")
TOLERANCE = 1e-4
"""Relative: processors differ in the last digits of float32, and a changed formula does not stop there."""
NUMBERS = 8
"""Of each thing: enough to see that it moved."""

BATCHES = [tiny.causal(tiny.random_tokens(rows=4, length=40, seed=seed)) for seed in (3, 4)]
CUT = Architecture((LayerWidth(2, 3, 40), LayerWidth(1, 3, 32), LayerWidth(2, 2, 48), LayerWidth(2, 0, 24)))
MEASUREMENT = Measurement(
    protocol="standard",
    sequence_length=16,
    stride=8,
    join=None,
    bos=None,
    windows=4,
    questions=3,
    question_tokens=300,
    question_formats=["likelihood", "letter"],
)


@dataclass(frozen=True)
class Kept:
    """Something that is kept across runs: its version, where that is set, and what the code computes now."""

    name: str
    version: int
    place: str
    compute: Callable[[], Any]

    @cached_property
    def values(self) -> list[float]:
        """Some numbers, evenly over all that there are."""
        flat = np.asarray(self.compute(), dtype=np.float64).ravel()
        places = np.linspace(0, len(flat) - 1, min(NUMBERS, len(flat))).round().astype(int)
        return [float(f"{value:.8g}") for value in flat[places]]

    def problem(self, golden: dict[str, Any]) -> str | None:
        """What is wrong with the version, if anything is."""
        if self.name not in golden:
            return f"{self.name} is new; run `python -m tests.golden --update` to keep its values"
        before = golden[self.name]
        same = len(before["values"]) == len(self.values) and np.allclose(
            self.values, before["values"], rtol=TOLERANCE, atol=1e-9
        )
        if before["version"] != self.version:
            return (
                f"{self.name} has the version {self.version}, and golden.json {before['version']}; "
                "run `python -m tests.golden --update` to keep the values of this version"
            )
        if not same:
            return (
                f"{self.name} is computed otherwise than before, under the same version: raise {self.place} "
                "(what users have kept of it is then computed again), and run "
                "`python -m tests.golden --update`"
            )
        return None


class Bench:
    """A tiny model and all that is computed of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tiny.write_model(folder / "model", "llama", attention_bias=True, mlp_bias=True)
        self.dense = tiny.network_of(folder / "model")
        self.network = self.dense.sorted(tiny.random_order(self.dense.shape))
        self.moments = dict(statistics.gather(self.dense, BATCHES))
        self.repair = tiny.repair_of(self.network, self.moments, 0.003)
        self.evaluator = evaluator_of(self)

    def kept(self) -> Iterator[Kept]:
        """Everything, the network first: what moves there moves the rest."""
        with torch.inference_mode():
            likelihoods = self.network.log_likelihoods(CUT, BATCHES[0]).numpy()
        yield Kept(
            "network",
            decoder.VERSION,
            "VERSION in stages/evaluate/network/decoder.py",
            lambda: likelihoods,
        )
        for name, (family, options) in tiny.VARIANTS.items():
            yield Kept(
                f"network {name}",
                decoder.VERSION,
                "VERSION in stages/evaluate/network/decoder.py",
                partial(some_likelihoods, self.folder / name, family, options),
            )
        yield Kept(
            "statistics",
            statistics.VERSION,
            "VERSION in stages/evaluate/calibrate/statistics.py",
            lambda: [m for s in self.moments.values() for m in (s.gram.sum(), s.total.sum(), s.tokens)],
        )
        data = CalibrationData(self.dense, BATCHES, self.moments.items)
        for name in IMPORTANCES.names:
            importance = IMPORTANCES[name]
            yield Kept(
                f"importance {name}",
                importance.version,
                f"`version` of {name} in stages/evaluate/calibrate/importance",
                partial(some_scores, importance, data),
            )
        yield Kept(
            "least squares",
            least_squares.VERSION,
            "VERSION in stages/evaluate/calibrate/least_squares.py",
            lambda: [
                part
                for kind in Kind
                for part in np.asarray(self.repair.projection(Site(1, kind), CUT.widths[1]))[:4, :4].ravel()
            ],
        )
        yield Kept(
            "second repair",
            second_repair.VERSION,
            "VERSION in stages/evaluate/calibrate/second_repair.py",
            lambda: [
                float(projection.abs().sum())
                for projection in second_repair.repair_again(self.network, self.repair, [CUT], BATCHES)[
                    CUT
                ].values()
            ],
        )
        yield Kept(
            "curves",
            curvature.VERSION,
            "VERSION in stages/evaluate/calibrate/curvature.py",
            lambda: [
                number
                for points in curvature.expected_curves(self.network, self.repair, BATCHES).points.values()
                for point in points[:: max(1, len(points) // 2)]
                for number in point
            ],
        )
        metrics, _ = self.evaluator.measure(CUT)
        for key, value in metrics.items():
            metric = metric_of(key)
            yield Kept(
                f"metric {key}",
                metric.version,
                f"`version` of {metric.name} in stages/metrics, or VERSION in "
                "stages/evaluate/measure/evaluator.py where every metric moved",
                partial(list, [value]),
            )
        yield Kept(
            "latency table",
            latency.VALUES,
            "VALUES in stages/sample/latency.py",
            lambda: table_by_law(self.dense.shape),
        )


def some_likelihoods(folder: Path, family: str, options: dict[str, Any]) -> list[float]:
    """Of a model of that family, cut and its units sorted."""
    dense = tiny.network_of(tiny.write_model(folder, family, **options))
    architecture = tiny.fitted(tiny.MIXED, dense.shape)
    with torch.inference_mode():
        found = dense.sorted(tiny.random_order(dense.shape)).log_likelihoods(architecture, BATCHES[0])
    return [float(value) for value in found]


def some_scores(importance: Importance, data: CalibrationData) -> list[float]:
    scores = importance.score(data)
    parts = (scores.heads, scores.groups, scores.channels)
    return [float(value) for part in parts for value in part[:, :2].ravel()]


def evaluator_of(bench: Bench) -> Evaluator:
    """Measures a text and some questions, without a repair."""
    text = " ".join(f"Line {n * n} of a text that is there to be measured." for n in range(20))
    questions = tuple(
        Question(f"q{n}", "anatomy", f"Which bone is number {n}?", ("rib", "ulna", "hip", f"no {n}"), n % 4)
        for n in range(5)
    )

    def corpus(name: str, items: Sequence[Any]) -> Corpus[Any]:
        parts = {part: tuple(items) for part in ("calibration", "selection", "report")}
        return Corpus(name, "made up", parts, len(items), len(items), "")  # type: ignore[arg-type]

    selection = select(
        {"text": corpus("text", [Document("d", text)])},
        {"quiz": corpus("quiz", questions)},
        "selection",
        tiny.byte_tokenizer(),
        MEASUREMENT,
        2048,
    )
    return Evaluator(bench.network, NOTHING_REPAIRED, selection, {"weights": "tiny"}, 0)


def table_by_law(shape: ModelShape) -> list[float]:
    """A latency table of models that take what a law says: nothing is timed."""

    def take(models: Sequence[Sequence[LayerWidth]]) -> list[Times]:
        cost = [sum(g * h + 0.1 * c + 0.01 * h * c for g, h, c in layers) for layers in models]
        return [Times(*([slow * (5 + each) for slow in (1.0, 1.2)] for _ in PHASES)) for each in cost]

    table = latency.table_by(shape, 8, {}, take)
    forecasts = [table.forecast(phase, a) for phase in PHASES for a in (CUT, shape.dense())]
    return [*table.constant.values(), *forecasts]


def computed(folder: Path) -> dict[str, Kept]:
    return {kept.name: kept for kept in Bench(folder).kept()}


def problems(folder: Path) -> list[str]:
    """A line for everything whose values and version do not agree with golden.json."""
    golden = json.loads(FILE.read_text(encoding="utf-8"))
    found = computed(folder)
    gone = [
        f"{name} is computed no more; run `python -m tests.golden --update`"
        for name in golden
        if name not in found
    ]
    return [p for kept in found.values() if (p := kept.problem(golden))] + gone


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--update", action="store_true", help="write golden.json")
    parser.add_argument("--context", action="store_true", help="print the digest of a measurement's context")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if arguments.context:
            print(Bench(Path(name)).evaluator.digest)
            return
        if arguments.update:
            content = {
                k.name: {"version": k.version, "values": k.values} for k in computed(Path(name)).values()
            }
            FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            return
        found = problems(Path(name))
    print("\n".join(found) or "every value is as its version says")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
