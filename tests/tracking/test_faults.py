"""A store that fails in whatever way costs no measurement, and the next start logs what it missed, once."""

from __future__ import annotations

import contextlib
import http.server
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.tracking import delivery, mlflow_writer, names, outbox, sqlite_store
from stages.tracking.mlflow_tracker import MlflowTracker
from stages.tracking.records import Role
from tests.tracking.test_tracking import PARAMS, ROUND, evaluation, evaluations, runs, told_in

ANSWERS = {
    "500": (500, b"{}"),
    "401": (401, b"{}"),
    "403": (403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}'),
    "of another version": (404, b"not found"),
    "garbage": (200, b"<html>a portal</html>"),
    "empty": (200, b"{}"),
}
BOUND_S = 12.0
"""Seconds: patience with servers is 2 here, and the rest for what else the machine does."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests wait for other processes less than stages; the law is the same."""
    monkeypatch.setattr(sqlite_store, "WAIT_S", 0.5)
    monkeypatch.setattr(sqlite_store, "UNCHANGED_S", 0.1)


@contextlib.contextmanager
def server(mode: str) -> Iterator[str]:
    """A server that hangs, or gives one and the same answer; its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            if mode == "hangs":
                time.sleep(30)
                return
            status, answer = ANSWERS[mode]
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        do_GET = do_POST = do_PATCH = handle_any  # noqa: N815

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        found.daemon_threads = True
        found.block_on_close = False
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://name:secret@127.0.0.1:{found.server_port}"
        found.shutdown()


def stage(folder: Path, midway: Callable[[], object] = lambda: None) -> float:
    """A stage that measures, searches and names a winner; the seconds that tracking took of it."""
    (folder / "predictor").mkdir(exist_ok=True)
    start = time.monotonic()
    with MlflowTracker("evaluate", PARAMS) as tracker:
        for number in range(4):
            tracker.log_evaluation(*evaluation(number))
            if number == 1:
                midway()
        tracker.log_round(ROUND, folder / "predictor")
        tracker.tag_roles({"key0": Role("winner", 3.5)})
        tracker.log_stage({"finalists": 3})
    return time.monotonic() - start


def check_whole(folder: Path) -> None:
    """Everything is in the store once, and nothing is left behind."""
    assert sorted(run.data.tags[names.KEY] for run in evaluations()) == [f"key{i}" for i in range(4)]
    assert len(runs(f"tags.`{names.RECORD}` LIKE 'round %'")) == 1
    (winner,) = runs("tags.`prunecast.role` = 'winner'")
    assert winner.data.tags[names.KEY] == "key0"
    assert {run.info.status for run in runs()} == {"FINISHED"}
    assert all(run.data.params or "prunecast.widths" in run.data.tags for run in runs())
    assert any(run.data.metrics == {"finalists": 3} for run in runs())
    assert all(mlflow_writer.PARENT in run.data.tags for run in evaluations())
    assert not (folder / outbox.FOLDER).exists()


@pytest.mark.parametrize("mode", ["hangs", *ANSWERS])
def test_a_server_that_fails(
    mode: str,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with server(mode) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.MonkeyPatch.context() as less:
            less.setattr(delivery, "PATIENCE_S", 2.0)
            assert stage(root) < BOUND_S
    port = uri.rpartition(":")[2]  # a thread may still tell of a server before
    (told,) = (line for line in told_in(capsys) if f":{port}" in line)
    assert str(root / outbox.FOLDER) in told
    assert "secret" not in told
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    stage(root)
    stage(root)
    check_whole(root)
    assert "sqlite" not in "".join(told_in(capsys)), "of the server before a thread may still tell"


def damage(kind: str, store: Path) -> None:
    if kind == "corrupt":
        store.write_bytes(b"no database, but long enough to be looked at" * 100)
    if kind == "another program's":
        store.unlink()
    with contextlib.closing(sqlite3.connect(store)) as database, contextlib.suppress(sqlite3.DatabaseError):
        if kind == "another program's":
            database.execute("CREATE TABLE songs (name TEXT)")
        if kind == "of another version":
            database.execute("INSERT INTO experiments (experiment_id, name) VALUES (7, 'of the user')")
            database.execute("UPDATE alembic_version SET version_num = 'abc'")
        if kind == "deleted experiment":
            deleted = (7, PARAMS.tracking.experiment, "deleted")
            database.execute(
                "INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (?, ?, ?)", deleted
            )
        database.commit()


@pytest.mark.parametrize("kind", ["corrupt", "another program's", "of another version", "deleted experiment"])
def test_a_store_that_cannot_be_used_is_left_as_it_is(
    kind: str,
    root: Path,
    template: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = root / "mlflow.db"
    damage(kind, store)
    before = store.read_bytes()
    assert stage(root) < BOUND_S
    assert len(told_in(capsys)) == 1
    assert store.read_bytes() == before
    shutil.copy(template, store)
    stage(root)
    check_whole(root)


def test_a_store_that_another_process_locks_midway(
    root: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with contextlib.closing(sqlite3.connect(root / "mlflow.db", isolation_level=None)) as other:
        assert stage(root, lambda: other.execute("BEGIN EXCLUSIVE")) < BOUND_S
        other.execute("ROLLBACK")
    told_in(capsys)
    time.sleep(6)  # a call that is under way gives up
    stage(root)
    check_whole(root)


@pytest.mark.parametrize("tables", [1, 5])
def test_a_store_half_made_is_made_anew_and_nothing_of_it_is_lost(
    tables: int,
    root: Path,
    template: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = root / "mlflow.db"
    store.unlink()
    with contextlib.closing(sqlite3.connect(store)) as database:
        for number in range(tables):
            database.execute(f"CREATE TABLE {'experiments' if not number else f't{number}'} (name TEXT)")
        database.commit()
    time.sleep(0.2)
    make = sqlite_store._make

    def copied(new: Path) -> None:
        shutil.copy(template, new)

    monkeypatch.setattr(sqlite_store, "_make", lambda path, _: make(path, copied))
    stage(root)
    (told,) = told_in(capsys)
    assert "made anew" in told
    check_whole(root)
    assert len(list(root.glob("mlflow.db.half-made-*"))) == 1
