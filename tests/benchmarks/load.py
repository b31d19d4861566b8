"""What stages take of a large journal: seconds and peak memory by the number of pairs, and how they grow.

    python -m tests.benchmarks.load [--pairs 1000 5000 20000] [--samples 64]

A random model of SmolLM2's sites and widths, with a small hidden size, goes through the stages `sample`
and `evaluate` with a few architectures; then `--pairs` architectures of the real designs take the place
of these, with measurements under a made-up law: the expected damage curves, each wrong by a factor,
neighbours more together, and noise. A row holds `--samples` windows or questions of each metric. The
doors run in a temporary folder, with the default params and without MLflow; `search` up to its first
trial. CPU seconds are those of all threads: on a busy machine they tell more than the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml

from stages.architecture import Site
from stages.config.params import load_params
from stages.evaluate.results import journal
from stages.evaluate.results.damage import DamageCurves
from stages.evaluate.results.journal import Row
from stages.metrics.log_likelihood import LOG_LIKELIHOOD
from stages.metrics.perplexity import LOG_PPL, PPL
from stages.metrics.registered import metric_of
from stages.sample import designs
from tests import tiny
from tests.small import PARAMS, REPOSITORY, SMOLLM2

NOISE = 0.01
"""Nats a token, of a made-up measurement."""
MISTAKE = 0.4
"""Standard deviation of the logarithm of what made-up damage curves are wrong by, a factor a site."""
PARTS, TEXTS = ("calibration", "selection", "report"), ("a", "b")
WORDS = ["the", "model", "keeps", "what", "it", "needs", "and", "drops", "all", "that", "does", "not"]
PHASES = ("journal", "build-dataset", "train-predictor", "search")
_READ = """
import sys, pathlib
from stages.evaluate.results import journal
journal.read(pathlib.Path(sys.argv[1]))
"""
_TOLD = re.compile(rb'"op_code": ?6\b')  # of an Optuna journal: a trial's value


@dataclass(frozen=True)
class Cost:
    """What a process took."""

    seconds: float
    cpu_s: float
    peak_gib: float


class Folder:
    """A folder in which the stages have measured a few architectures of the model."""

    def __init__(self, path: Path, samples: int) -> None:
        self.path = path
        self.samples = samples
        tiny.write_model(
            path / "model",
            "llama",
            num_hidden_layers=SMOLLM2.layers,
            num_attention_heads=SMOLLM2.kv_groups * SMOLLM2.heads_per_group,
            num_key_value_heads=SMOLLM2.kv_groups,
            head_dim=SMOLLM2.head_dim,
            intermediate_size=SMOLLM2.channels,
        )
        for place, part in enumerate(PARTS):
            for name in TEXTS:
                words = random.Random(f"{name} {part}").choices(WORDS, k=9000)
                (path / f"{name}.{part}.txt").write_text(" ".join(words), encoding="utf-8")
            questions = [
                {"question": f"What is {n}?", "choices": WORDS[:4], "answer": n % 4, "subject": "n"}
                for n in range(80 * place, 80 * place + 80)
            ]
            lines = [f"{json.dumps(question)}\n" for question in questions]
            (path / f"quiz.{part}.jsonl").write_text("".join(lines), encoding="utf-8")
        params = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
        texts = {name: {part: f"{name}.{part}.txt" for part in PARTS} for name in TEXTS}
        quiz = {part: f"quiz.{part}.jsonl" for part in PARTS}
        params["model"]["source"] = "model"
        params["corpora"] |= {"texts": texts, "questions": {"quiz": quiz}}
        params["search"]["objective"] = {"log_ppl.a": 1.0, "log_ppl.b": 1.0}
        params["sample"] |= {"spread": 4, "spread_overall_ratios": [0.1, 0.38]}
        params["evaluate"] |= {
            "device": "cpu",
            "calibration": {"samples": 4, "sequence_length": 64, "conversations": 0},
        }
        for section in ("evaluate", "search"):
            params[section]["measurement"] |= {"sequence_length": 64, "questions": 2, "question_tokens": None}
        (path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
        for stage in ("sample", "evaluate"):
            self.door(stage)
        self.shape, _ = designs.read(self.architectures)
        self.measured = list(journal.read(self.journal).values())

    @property
    def architectures(self) -> Path:
        return self.path / "data" / "sample" / "architectures.json"

    @property
    def journal(self) -> Path:
        return self.path / "data" / "evaluate" / "journal.jsonl"

    def fill(self, pairs: int) -> None:
        """Put as many pairs in the place of those there."""
        params = load_params(self.path / "params.yaml")
        rest = pairs - len(designs.BASELINES)
        changed = {"spread": rest // 4, "bundled": rest // 4, "free": rest - 2 * (rest // 4)}
        designed = designs.all_designs(self.shape, params.sample.model_copy(update=changed), params.budget)
        designs.write(self.architectures, self.shape, designed)
        with self.journal.open("w", encoding="utf-8") as file:
            file.writelines(f"{row.to_line()}\n" for row in self._rows(designed))

    def _rows(self, designed: Sequence[designs.Designed]) -> list[Row]:
        rng = np.random.default_rng(0)
        expected = DamageCurves.read(self.path / "data" / "evaluate" / "curvature.json")
        assert expected is not None
        sites = list(self.shape.sites())
        ratios = np.array([[d.architecture.site_ratio(self.shape, s) for s in sites] for d in designed])
        damages = np.stack(
            [_read(expected, site, column) for site, column in zip(sites, ratios.T, strict=True)], axis=1
        )
        costs = damages @ np.exp(rng.normal(0, MISTAKE, len(sites)))
        costs = costs / costs.mean() + 0.005 * (ratios[:, 2:] * ratios[:, :-2]).sum(axis=1)
        example = self.measured[0]
        rows = []
        for number, (d, cost) in enumerate(zip(designed, costs.tolist(), strict=True)):
            metrics = {key: self._value(key, cost + float(rng.normal(0, NOISE))) for key in example.metrics}
            samples = {key: rng.normal(3 + cost, 1, self.samples).tolist() for key in example.samples}
            ratio = d.architecture.overall_ratio(self.shape)
            rows.append(
                replace(
                    example, key=f"{number:016x}", architecture=d.architecture, design=d.design,
                    overall_ratio=ratio, metrics=metrics, samples=samples,
                )
            )  # fmt: skip
        return rows

    @staticmethod
    def _value(key: str, cost: float) -> float:
        """A plausible value of a metric."""
        name = metric_of(key).name
        if name == PPL.name:
            return float(np.exp(3 + cost))
        if name == LOG_PPL.name:
            return 3 + cost
        return -1.4 - 0.1 * cost if name == LOG_LIKELIHOOD.name else min(1.0, max(0.0, 0.3 - 0.02 * cost))

    def door(self, stage: str) -> Cost:
        """Run a stage's door.

        Raises:
            RuntimeError: it failed; with what it printed.
        """
        return self._run("-m", f"stages.{stage.replace('-', '_')}", "--no-tracking")

    def phase(self, name: str) -> Cost:
        if name == "journal":
            return self._run("-c", _READ, str(self.journal))
        if name != "search":
            return self.door(name)
        log = self.path / "data" / "search" / "studies.log"
        log.unlink(missing_ok=True)
        return self._run("-m", "stages.search", "--no-tracking", until=log)

    def _run(self, *arguments: str, until: Path | None = None) -> Cost:
        """What a Python takes, or takes until a file holds the value of a trial."""
        own = {"PYTHONPATH": str(REPOSITORY), "PRUNECAST_CACHE": str(self.path / "cache")}
        start = time.perf_counter()
        log = self.path / "log.txt"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, *arguments], cwd=self.path, env=os.environ | own, stdout=file, stderr=file
            )
        peak = 0
        while True:
            peak = max(peak, _peak_kib(process.pid))
            done, status, used = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            if until is not None and until.is_file() and _TOLD.search(until.read_bytes()):
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        code = process.returncode = os.waitstatus_to_exitcode(status)
        if code not in (0, -signal.SIGKILL if until else 0):
            raise RuntimeError(f"python {' '.join(arguments)} exited with {code}\n{log.read_text()[-4000:]}")
        return Cost(seconds, used.ru_utime + used.ru_stime, peak / 2**20)


def _read(curves: DamageCurves, site: Site, ratios: np.ndarray) -> np.ndarray:
    """A site's damages at `ratios` (n,)."""
    known = {ratio: curves.damage(site, ratio) for ratio in set(ratios.tolist())}
    return np.array([known[ratio] for ratio in ratios.tolist()])


def _peak_kib(process: int) -> int:
    """The most that a process held so far; 0 of one that has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return 0
    return max((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), default=0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, nargs="+", default=[1000, 5000, 20_000])
    parser.add_argument("--samples", type=int, default=64, help="windows or questions of a metric in a row")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Folder(Path(name), arguments.samples)
        print("| pairs | phase | seconds | CPU seconds | peak GiB | CPU seconds against pairs |")
        print("| --- | --- | --- | --- | --- | --- |")
        before: dict[str, tuple[int, Cost]] = {}
        for pairs in arguments.pairs:
            folder.fill(pairs)
            for phase in PHASES:
                cost = folder.phase(phase)
                grown = ""
                if phase in before:
                    fewer, less = before[phase]
                    grown = f"{cost.cpu_s / less.cpu_s:.1f} × for {pairs / fewer:g} ×"
                before[phase] = pairs, cost
                if phase in arguments.phases:
                    cells = (f"{pairs:,}", phase, f"{cost.seconds:.1f}", f"{cost.cpu_s:.1f}")
                    print(f"| {' | '.join(cells)} | {cost.peak_gib:.2f} | {grown} |", flush=True)


if __name__ == "__main__":
    main()
