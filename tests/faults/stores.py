"""Tracking servers and stores that fail while a real stage measures; the next start logs all of it, once."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from stages.tracking import names, outbox
from tests.faults import judge
from tests.faults.judge import Undisturbed
from tests.faults.verdict import Trial, Verdict
from tests.faults.world import World
from tests.tracking.test_faults import ANSWERS, server

BOUND_S = 30.0
"""What a stage may take with tracking on: 10 s of waiting, the imports of mlflow, and its own few."""


def _tracked(uri: str = "") -> Callable[[], None]:
    """Tracking is on, with the store of that address or the world's own."""

    def before() -> None:
        sys.argv.remove("--no-tracking")
        if uri:
            os.environ["MLFLOW_TRACKING_URI"] = uri

    return before


@contextlib.contextmanager
def _refusing() -> Iterator[str]:
    """The address of a port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def _cut(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(1, path.stat().st_size)])


def _zeros(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content) - 4096)
    content[at : at + 4096] = bytes(4096)
    path.write_bytes(content)


def _half_made(path: Path, rng: random.Random) -> None:
    """A database in which a killed initialisation made some tables and no version."""
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE experiments (experiment_id INTEGER, name TEXT)")
        database.commit()


def _folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = {"store cut short": _cut, "page of zeros": _zeros, "store half made": _half_made, "folder": _folder}
SERVERS = ["refuses", "hangs", *ANSWERS]


def trials(
    fresh: World, calm: Undisturbed, scratch: Path, rng: random.Random, numbers: Iterable[int]
) -> Iterator[Trial]:
    """A server, a store or a kill each."""
    template = fresh.copy(scratch / "template")
    template.run(["sample", "evaluate"], _tracked())
    kinds = [*SERVERS, *DAMAGES, "killed", "killed again"]
    for number in numbers:
        what = kinds[number % len(kinds)]
        world = fresh.copy(scratch / f"store-{number}")
        shutil.copy(template.folder / "mlflow.db", scratch / "whole.db")
        _forget_runs(scratch / "whole.db")
        shutil.copy(scratch / "whole.db", world.folder / "mlflow.db")
        world.run(["sample"])
        verdict, words, seconds = _tried(world, what, rng, scratch / "whole.db")
        kind = "tracking server" if what in SERVERS else "tracking store"
        yield Trial(
            "killed while tracked" if what.startswith("killed") else kind, what, verdict, words, seconds
        )
        shutil.rmtree(world.folder)
    shutil.rmtree(template.folder)


def _tried(world: World, what: str, rng: random.Random, whole: Path) -> tuple[Verdict, str, float]:
    store = world.folder / "mlflow.db"
    if what.startswith("killed"):
        running = world.start("evaluate", _tracked())
        time.sleep(rng.uniform(0, 8))
        running.kill(rng.choice([signal.SIGKILL, signal.SIGTERM]))
        ended = running.wait()
        if ended.code is None or ended.crashed:
            return *(judge.started(ended) or (Verdict.LOST, "")), ended.seconds
    else:
        with contextlib.ExitStack() as stack:
            uri = ""
            if what == "refuses":
                uri = stack.enter_context(_refusing())
            elif what in SERVERS:
                uri = stack.enter_context(server(what))
            else:
                DAMAGES[what](store, rng)
            ended = world.run(["evaluate"], _tracked(uri))
        if (wrong := judge.started(ended)) or ended.code != 0:
            return *(wrong or (Verdict.LOST, ended.last)), ended.seconds
        if ended.seconds > BOUND_S:
            return Verdict.HANG, f"{ended.seconds:.0f} s", ended.seconds
        if store.is_dir():
            store.rmdir()
        if what in ("store cut short", "page of zeros", "folder"):  # the user brings back what was there
            shutil.copy(whole, store)
    again = world.run(["evaluate"], _tracked())
    verdict, words = judge.resumed(
        world, {}, again, calm=Undisturbed(world.results(), frozenset(world.files()))
    )
    if verdict.good:
        logged = Counter(_logged(store))
        measured = {json.loads(line)["key"] for line in judge.lines(world)["evaluate"]}
        if missing := measured - set(logged):
            verdict, words = Verdict.LOST, f"{len(missing)} of {len(measured)} rows are not logged"
        elif twice := [key for key, times in logged.items() if times > 1]:
            verdict, words = Verdict.LOST, f"{len(twice)} rows are logged twice"
        elif any((world.folder / outbox.FOLDER).rglob("*.json")):
            verdict, words = Verdict.LEFT, f"{outbox.FOLDER} is not empty"
    return verdict, words, ended.seconds


def _logged(store: Path) -> list[str]:
    """The keys of the finished runs."""
    query = (
        "SELECT tags.value FROM tags JOIN runs ON tags.run_uuid = runs.run_uuid "
        "WHERE tags.key = ? AND runs.status = 'FINISHED'"
    )
    with contextlib.closing(sqlite3.connect(store)) as database:
        return [row[0] for row in database.execute(query, (names.KEY,))]


def _forget_runs(store: Path) -> None:
    with contextlib.closing(sqlite3.connect(store)) as database:
        for table in ("tags", "params", "metrics", "latest_metrics", "runs"):
            database.execute(f"DELETE FROM {table}")
        database.commit()
