"""Run the fault suite and print its table.  Run: make faults, or python -m tests.faults --short

The long form, of more than 200 kills and 2,000 damaged inputs, takes about an hour on two cores; the
short one, which CI runs, tries a few of each kind within two minutes. Exit code 1 where anything was silent,
lost or left behind, ended in a traceback, or hung.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from tests.faults import asked, damage, inputs, kills, models, places, stores, texts
from tests.faults.judge import Undisturbed
from tests.faults.verdict import Trial, Verdict, table
from tests.faults.world import STAGES, World

Campaign = Callable[[World, Undisturbed, Path, random.Random, Iterable[int]], Iterator[Trial]]
FRESH: dict[str, tuple[Campaign, int, int]] = {
    "kills": (kills.trials, 210, 4),
    "full disks": (places.full_disk, 120, 6),
    "places": (places.in_the_way, 27, 2),
    "models": (inputs.campaign(models.HARMS), 900, 28),
    "texts": (inputs.campaign(texts.HARMS), 500, 14),
    "stores": (stores.trials, 42, 1),
    "params": (asked.trials, 400, 5),
}
"""Campaigns from a world in which nothing has run: trials in the long form, and in the short one."""
FINISHED: dict[str, tuple[Campaign, int, int]] = {"damage": (damage.trials, 600, 8)}
"""Those that start from a finished run."""


@dataclass(frozen=True)
class Share:
    """What one process does of a campaign: each `of`-th trial of it."""

    campaign: str
    start: World
    calm: Undisturbed
    scratch: Path
    seed: int
    count: int
    part: int
    of: int
    verbose: bool

    def run(self) -> list[Trial]:
        campaign, *_ = {**FRESH, **FINISHED}[self.campaign]
        rng = random.Random(f"{self.seed} {self.campaign} {self.part}")
        scratch = self.scratch / f"{self.campaign}-{self.part}"
        scratch.mkdir()
        found = []
        numbers = range(self.part, self.count, self.of)
        for trial in campaign(self.start, self.calm, scratch, rng, numbers):
            found.append(trial)
            if self.verbose or not trial.verdict.good:
                words = trial.words if trial.verdict is Verdict.HANG else trial.words[:200]
                print(f"{trial.verdict.value}: {trial.kind}, {trial.what}: {words}", flush=True)
        return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--short", action="store_true", help="a few of each kind")
    parser.add_argument("--only", nargs="*", default=[*FRESH, *FINISHED], choices=[*FRESH, *FINISHED])
    parser.add_argument("--count", type=int, help="trials of each campaign")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the trials")
    parser.add_argument("--verbose", action="store_true", help="a line each trial")
    arguments = parser.parse_args()
    began = time.monotonic()
    torch.set_num_threads(1)  # a pool of threads does not outlive a fork: stages would wait for it for ever
    for stage in STAGES:  # what stages import is imported once, before they are forked
        importlib.import_module(f"stages.{stage}.stage")
    scratch = Path(tempfile.mkdtemp(prefix="prunecast-faults-"))
    try:
        fresh = World.make(scratch / "fresh")
        finished, other = (fresh.copy(scratch / name) for name in ("finished", "other"))
        for world in (finished, other):
            if (ended := world.run(STAGES)).code != 0:
                print(f"the undisturbed run failed in {ended.stage}:\n{ended.output}", file=sys.stderr)
                return 1
        calm = Undisturbed.of(finished, other)
        shares = [
            Share(name, start, calm, scratch, arguments.seed, count, part, arguments.jobs, arguments.verbose)
            for start, campaigns in ((fresh, FRESH), (finished, FINISHED))
            for name, (_, long, short) in campaigns.items()
            if name in arguments.only
            for count in [arguments.count or (short if arguments.short else long)]
            for part in range(min(count, arguments.jobs))
        ]
        if arguments.jobs == 1:
            trials = [trial for share in shares for trial in share.run()]
        else:
            with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("fork")) as pool:
                trials = [trial for found in pool.map(Share.run, shares) for trial in found]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(table(trials))
    bad = sum(not trial.verdict.good for trial in trials)
    print(f"{len(trials)} faults, {bad} with harm, {time.monotonic() - began:.0f} s")
    return int(bad > 0)


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    sys.exit(main())
