"""A kept file that was harmed is refused, computed again, or means the same; a disk that refuses is an error.

A few harms of every kind of file; `PRUNECAST_FUZZ=3000` tries so many of each.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

from stages.architecture import Kind, Site
from stages.build_dataset import table
from stages.evaluate.calibrate.cache import TensorCache
from stages.evaluate.results import context, division, journal
from stages.evaluate.results.context import Context
from stages.evaluate.results.damage import DamageCurves
from stages.evaluate.results.division import DividedCorpus, DividedPart
from stages.evaluate.results.journal import Journal
from stages.evaluate.results.scores import UnitScores
from stages.files import InputError, write_text
from stages.sample import designs
from stages.sample.designs import Designed
from stages.sample.space import Space
from stages.search import narrowed_space, outcome, tables
from stages.search.narrowed_space import NarrowedSite
from stages.search.outcome import Candidate
from stages.search.tables import FrontRow
from stages.train_predictor import results
from stages.train_predictor.predictor import Predictor
from stages.train_predictor.results import PredictorErrors
from tests.evaluate.results.journal_writer import make_row
from tests.small import COMMITTED, SMALL, random_architectures, write_scores

TRIALS = int(os.environ.get("PRUNECAST_FUZZ", "12"))
SOME = random_architectures(SMALL, 12)
TARGETS = ["log_ppl.wiki", "quiz.accuracy"]
ROWS = [make_row(number) for number in range(4)]
CONTEXT = Context("c0ffee", {"weights": "1a2b", "measurement": {"question_formats": ["letter"]}})
CURVES = DamageCurves({site: [(0.1, 0.01), (0.5, 0.3)] for site in SMALL.sites()})
DIVISION = {"news": DividedCorpus("a", 9, 6, "", {"report": DividedPart(2, "c0ffee", ["1", "2"], 40)})}
ERRORS = PredictorErrors("xgboost", 0.8, {t: {"scale": "nats", "r2": 0.5} for t in TARGETS}, {})
FRONT = [FrontRow("front", "0123", 0.25, 1000, 3.25, {"ppl.wiki": 30.5}, {}, {}, False)]
CANDIDATES = [
    Candidate(name, a, 0.25, {"ppl.wiki": 20.5}, {"log_ppl.wiki": 3.0}, 3.1)
    for name, a in zip(("dense", outcome.WINNER), SOME, strict=False)
]
PAIRS = pd.DataFrame(
    {
        "architecture": [a.id for a in SOME],
        "design": "spread",
        "split": ["train", "held-out"] * 6,
        "overall_ratio": [a.overall_ratio(SMALL) for a in SOME],
        "log_ppl.wiki": np.linspace(3, 4, 12),
        "quiz.accuracy": np.linspace(0, 1, 12),
    }
).astype({"architecture": "string", "design": "string", "split": "string"})


class KeptFile(NamedTuple):
    """How files come into a folder, and what is read of them; None where they are computed again."""

    write: Callable[[Path], object]
    read: Callable[[Path], Any]


def _write_rows(folder: Path) -> None:
    with Journal(folder / "journal.jsonl") as opened:
        for row in ROWS:
            opened.append(row)


def _reopened(folder: Path) -> Any:
    """All rows as they were; None where some are measured again, and the others are as they were."""
    with Journal(folder / "journal.jsonl") as opened:
        rows = list(opened)
    assert journal.read(folder / "journal.jsonl") == opened.rows
    return rows if rows == ROWS or any(row not in ROWS for row in rows) else None


def _write_errors(folder: Path) -> None:
    forecasts = {target: PAIRS[target].to_numpy() / 3 for target in TARGETS}
    results.write_forecasts(folder / results.FORECASTS, PAIRS, forecasts, TARGETS)
    results.write_errors(folder / results.ERRORS, ERRORS)


def _read_errors(folder: Path) -> Any:
    return results.read_errors(folder / results.ERRORS), results.read_forecasts(folder / results.FORECASTS)


def _write_outcome(folder: Path) -> None:
    tables.write_front(folder / tables.FRONT, FRONT)
    outcome.write(folder / "outcome.json", CANDIDATES, [tables.FRONT])


def _read_outcome(folder: Path) -> Any:
    outcome.check_tables(folder / "outcome.json")
    return outcome.read(folder / "outcome.json"), tables.read_front(folder / tables.FRONT)


def _fitted(model: str) -> Callable[[Path], None]:
    section = COMMITTED.train_predictor.model_copy(update={"trees": 5, "model": model})
    return Predictor.fit(PAIRS, ["overall_ratio"], TARGETS, section).save


def _read_scores(folder: Path) -> Any:
    found = UnitScores.of_model(folder / "importance.safetensors", SMALL)
    return [part.tolist() for part in (found.heads, found.groups, found.channels)]


def _write_pairs(folder: Path) -> None:
    table.write(folder / "pairs.parquet", PAIRS, ["overall_ratio"], TARGETS)


def _read_pairs(folder: Path) -> Any:
    found, features, targets = table.read(folder / "pairs.parquet")
    return found.to_dict("list"), features, targets


def _entry(folder: Path) -> Any:
    found = TensorCache(folder, 2**20).get("key")
    return None if found is None else {name: (t.dtype, t.tolist()) for name, t in found.items()}


SITES = [NarrowedSite(Site(0, Kind.MLP), 0.5, "sensitive", (0.1, 0.3))]
ENTRY = {"gram": torch.arange(12.0).reshape(3, 4), "tokens": torch.tensor(7)}
KEPT = {
    "architectures.json": KeptFile(
        lambda folder: designs.write(folder / "a.json", SMALL, [Designed(a, "free") for a in SOME]),
        lambda folder: designs.read(folder / "a.json"),
    ),
    "context.json": KeptFile(
        lambda folder: context.write(
            folder / "c.json", Context("c0ffee", {"measurement": {"question_formats": [1]}})
        ),
        lambda folder: context.read(folder / "c.json"),
    ),
    "curvature.json": KeptFile(
        lambda folder: CURVES.write(folder / "c.json", "key"),
        lambda folder: DamageCurves.read(folder / "c.json", "key"),
    ),
    "division.json": KeptFile(
        lambda folder: division.write(folder / "d.json", DIVISION),
        lambda folder: division.read(folder / "d.json"),
    ),
    "importance.safetensors": KeptFile(
        lambda folder: write_scores(folder / "importance.safetensors", SMALL), _read_scores
    ),
    "a journal to be read": KeptFile(
        _write_rows, lambda folder: list(journal.read(folder / "journal.jsonl").values())
    ),
    "a journal to measure by": KeptFile(_write_rows, _reopened),
    "an entry of the cache": KeptFile(lambda folder: TensorCache(folder, 2**20).put("key", ENTRY), _entry),
    "pairs.parquet": KeptFile(_write_pairs, _read_pairs),
    "predictor of trees": KeptFile(_fitted("xgboost"), lambda folder: Predictor.load(folder).digest),
    "predictor of an additive model": KeptFile(
        _fitted("additive"), lambda folder: Predictor.load(folder).digest
    ),
    "errors of the predictor": KeptFile(_write_errors, _read_errors),
    "outcome of the search": KeptFile(_write_outcome, _read_outcome),
    "narrowed_space.json": KeptFile(
        lambda folder: narrowed_space.write(folder / "n.json", SITES, Space(SMALL, 8, {}), "damage"),
        lambda folder: narrowed_space.read(folder / "n.json"),
    ),
}


def _harmed(raw: bytes, rng: random.Random) -> bytes:
    """A bit, a digit, a length, a block or two entries of a file's content are others."""
    at, other = rng.randrange(len(raw)), rng.randrange(len(raw))
    match rng.randrange(6):
        case 0:
            return raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :]
        case 1 if digits := [match.start() for match in re.finditer(rb"[0-9]", raw)]:
            at = rng.choice(digits)
            return raw[:at] + b"%d" % rng.randrange(10) + raw[at + 1 :]
        case 2:
            return raw[:at]
        case 3:
            return raw[:at] + bytes(min(64, len(raw) - at)) + raw[at + 64 :]
        case 4:
            lines = raw.split(b"\n")
            rng.shuffle(lines)
            return b"\n".join(lines)
        case _:
            first, second = sorted((at, other))
            whole = bytearray(raw)
            whole[first : first + 8], whole[second : second + 8] = (
                raw[second : second + 8],
                raw[first : first + 8],
            )
            return bytes(whole)


@pytest.mark.parametrize("name", KEPT)
def test_a_harmed_file_is_refused_computed_again_or_means_the_same(name: str, tmp_path: Path) -> None:
    kept, rng = KEPT[name], random.Random(name)
    kept.write(tmp_path)
    calm = kept.read(tmp_path)
    assert calm is not None
    whole = {path: path.read_bytes() for path in sorted(tmp_path.iterdir())}
    refused = again = named = 0
    for _ in range(TRIALS):
        path = rng.choice(list(whole))
        path.write_bytes(harmed := _harmed(whole[path], rng))
        try:
            found = kept.read(tmp_path)
            if found is None:
                again += 1
            elif name.startswith("a journal"):  # rows in another order, or without a torn last one
                assert all(row in calm for row in found), harmed
            else:
                assert found == calm, harmed
        except InputError as error:
            refused += 1
            named += path.name in str(error)
        path.write_bytes(whole[path])
    assert refused + again, "nothing was found"
    assert named == refused


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """No file grows beyond 20 bytes meanwhile, as on a full disk; pytest's own report may, after it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _refused_by_the_disk(kept: KeptFile, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said where the disk does not take a file: an error, or, of a cache, a line."""
    capsys.readouterr()
    try:
        kept.write(folder)
    except InputError as error:
        return str(error)
    return capsys.readouterr().out


@pytest.mark.parametrize("name", KEPT)
def test_a_full_disk_is_one_clear_error_and_what_was_there_stays(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = KEPT[name]
    if "journal" not in name:
        kept.write(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with small_files():
        said = _refused_by_the_disk(kept, tmp_path, capsys)
    assert re.search("File too large|disk full", said)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.stat().st_size} == before


@pytest.mark.parametrize("name", KEPT)
def test_a_place_that_cannot_be_is_one_clear_error(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(tmp_path / "file", "a file where a folder is to be")
    assert "Not a directory" in _refused_by_the_disk(KEPT[name], tmp_path / "file" / "deep", capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
