"""A small world to do harm in: a tiny model, corpora and params, and how stages run in it."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import random
import runpy
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from stages.evaluate.results import journal
from stages.files import InputError, digest_of_file
from tests import tiny
from tests.small import PARAMS

STAGES = ("sample", "evaluate", "build_dataset", "train_predictor", "search", "export")
PARTS = ("calibration", "selection", "report")
PATIENCE = 60.0
"""Seconds after which a stage of this world, which takes a few, hangs."""
WORDS = [
    "the",
    "model",
    "keeps",
    "what",
    "it",
    "needs",
    "and",
    "drops",
    "all",
    "that",
    "does",
    "not",
    "help",
    "while",
    "readers",
    "look",
    "on",
]
MEASUREMENT: dict[str, Any] = {
    "protocol": "standard", "sequence_length": 32, "stride": None, "join": None, "bos": None,
    "windows": 2, "questions": 4, "question_tokens": None, "question_formats": ["likelihood"],
}  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a stage ended."""

    stage: str
    code: int | None
    """The exit code, minus the signal that killed it, or None where it had to be stopped."""
    output: str
    seconds: float

    @property
    def crashed(self) -> bool:
        return "Traceback (most recent call last)" in self.output

    @property
    def last(self) -> str:
        return next((line for line in reversed(self.output.splitlines()) if line.strip()), "no output")


@dataclass(frozen=True)
class Results:
    """What a run found: the same for every run of the same world, however often it was disturbed."""

    rows: Mapping[str, Mapping[str, Mapping[str, float]]]
    """The metrics of each journal's rows by their keys."""
    digests: Mapping[str, str]
    """Of the files below data/ but the journals and what is for people, by name."""


@dataclass(frozen=True)
class World:
    """A folder with model, corpora, params and what the stages make of them; nothing points out of it."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, **model: Any) -> World:
        """A world in which no stage has run."""
        folder.mkdir(parents=True)
        tiny.write_model(folder / "model", "llama", **model)
        made = cls(folder)
        for name, step in (("prose", 3), ("verse", 5)):
            (folder / f"{name}.txt").write_text("\n\n".join(paragraphs(60, step)))
        rows = [json.dumps(question) + "\n" for question in questions(24)]
        (folder / "quiz.jsonl").write_text("".join(rows))
        made.write_params(_small_params())
        return made

    def copy(self, folder: Path) -> World:
        """A copy to do harm to; times are kept, so that caches hold."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return World(folder)

    @property
    def params(self) -> dict[str, Any]:
        return dict(yaml.safe_load((self.folder / "params.yaml").read_text()))

    def write_params(self, params: Mapping[str, Any]) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(dict(params), sort_keys=False))

    def run(self, stages: Sequence[str], before: Callable[[], None] | None = None) -> Ended:
        """Run stages until one fails; the last one's end, with what all of them said."""
        said, began, ended = "", time.monotonic(), Ended("", 0, "", 0.0)
        for stage in stages:
            ended = self.start(stage, before).wait()
            said += ended.output
            if ended.code != 0:
                break
        return Ended(ended.stage, ended.code, said, time.monotonic() - began)

    def start(self, stage: str, before: Callable[[], None] | None = None) -> Running:
        """Start a stage in a fork, which has torch imported already; `before` is called in it first."""
        said, says = os.pipe()  # a file would end where the disk is made full
        pid = os.fork()
        if pid:
            os.close(says)
            os.set_blocking(said, False)
            return Running(stage, pid, said, time.monotonic())
        code = 1
        try:
            os.setsid()
            os.chdir(self.folder)
            os.dup2(says, 1)
            os.dup2(says, 2)
            sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))  # not pytest's
            os.environ["PRUNECAST_CACHE"] = str(self.folder / "cache")
            os.environ.pop("MLFLOW_TRACKING_URI", None)
            sys.argv = [f"stages/{stage}", "--no-tracking"]
            random.seed()  # names of temporary files
            faulthandler.dump_traceback_later(PATIENCE - 5)
            tqdm.set_lock(threading.RLock())  # else one semaphore, which a killed fork may hold for ever
            if before is not None:
                before()
            runpy.run_module(f"stages.{stage}", run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.flush()
            os._exit(code)

    def results(self) -> Results:
        """What the journals and the outcome hold, read as the stages read them."""
        rows = {}
        for stage in ("evaluate", "search", "export"):
            with contextlib.suppress(InputError):
                found = journal.read(self.folder / "data" / stage / "journal.jsonl")
                rows[stage] = {key: dict(row.metrics) for key, row in found.items()}
        told = (".jsonl", ".md", ".html", ".png")  # journals are read above; what is for people has dates
        kept = sorted(p for p in (self.folder / "data").rglob("*") if p.is_file() and p.suffix not in told)
        kept = [path for path in kept if path.name != "record.json"]  # it has the digest of the card
        return Results(rows, {str(p.relative_to(self.folder)): digest_of_file(p) for p in kept})

    def files(self) -> set[str]:
        """Everything that is no folder, links that lead nowhere too, relative to this one's."""
        paths = (path for path in self.folder.rglob("*") if not path.is_dir())
        return {str(path.relative_to(self.folder)) for path in paths}


@dataclass
class Running:
    """A stage under way, in a session of its own."""

    stage: str
    pid: int
    pipe: int
    began: float
    said: bytes = b""

    def wait(self, patience: float = PATIENCE) -> Ended:
        """Its end; where it does not come within `patience` seconds, it is stopped."""
        code = None
        while code is None and time.monotonic() < self.began + patience:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if done else None
            self._listen()
            if code is None:
                time.sleep(0.005)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if code is None:
            os.waitpid(self.pid, 0)
        self._listen()
        os.close(self.pipe)
        return Ended(self.stage, code, self.said.decode(errors="replace"), time.monotonic() - self.began)

    def kill(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def _listen(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while heard := os.read(self.pipe, 65536):
                self.said += heard


def paragraphs(count: int, step: int) -> list[str]:
    """Documents that differ from each other."""
    return [
        " ".join(WORDS[(step * p + p * i + i * i) % len(WORDS)] for i in range(40)) + f" {p} {step}."
        for p in range(count)
    ]


def questions(count: int) -> list[dict[str, Any]]:
    ways = ["north", "south", "east", "west", "up", "down", "left", "right"]
    return [
        {
            "question": f"Where does number {i} go?",
            "choices": [ways[(i + j) % 8] for j in range(4)],
            "answer": i % 4,
            "subject": "ways",
        }
        for i in range(count)
    ]


def _small_params() -> dict[str, Any]:
    params = dict(yaml.safe_load(PARAMS.read_text()))
    params["model"]["source"] = "model"
    params["corpora"] |= {
        "texts": {"prose": "prose.txt", "verse": "verse.txt"},
        "questions": {"quiz": "quiz.jsonl"},
    }
    params["budget"]["tolerance"] = 0.03
    params["sample"] |= {
        "first_layers_kept": 1, "last_layers_kept": 0, "mlp_granularity": 8, "spread": 6,
        "spread_overall_ratios": [0.1, 0.3],
    }  # fmt: skip
    params["evaluate"] |= {
        "device": "cpu", "curvature_tokens": 256,
        "calibration": {"samples": 4, "sequence_length": 32, "conversations": 0},
        "measurement": dict(MEASUREMENT),
    }  # fmt: skip
    params["train_predictor"] |= {"trees": 20, "folds": 2}
    params["search"] |= {
        "objective": {"log_ppl.prose": 1.0, "log_ppl.verse": 1.0}, "trials": 40, "rounds": 1, "per_round": 2,
        "finalists": 2, "min_distance": 1, "bundle": 1, "front": [], "measurement": dict(MEASUREMENT),
    }  # fmt: skip
    params["export"] |= {
        "gguf": ["F16"], "proof": None, "measurement": dict(MEASUREMENT),
        "alternatives": {"types": ["Q8_0"], "windows": 1},
    }  # fmt: skip
    params["export"]["answers"] |= {"tokens": 8, "windows": 1}
    return params
