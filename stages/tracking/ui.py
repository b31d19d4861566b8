"""MLflow's UI of the store, at the page of its runs.

    python -m stages.tracking.ui [--port 5000]

One process serves it: its jobs, which watch traces of chats, are off.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sqlite3
import sys
import time
import webbrowser
from pathlib import Path

from stages.files import InputError
from stages.stage import command
from stages.tracking import sqlite_store, store
from stages.tracking.views import TAG, WORDS

HOST = "127.0.0.1"
UP_S = 60
"""Seconds that the server may take to answer."""


def addresses(database: Path, port: int) -> dict[str, str]:
    """Where the runs are shown, in words: the saved views of the experiment that has most, or all its runs.

    Experiments that only an earlier release tracked have no views.

    Raises:
        InputError: there is no store, or nothing in it.
    """
    if not database.is_file():
        raise InputError(f"{database} is not there: nothing was tracked yet; run `make repro`")
    name = f"{database.resolve().as_uri()}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(name, uri=True)) as opened:
            row = opened.execute(
                "SELECT experiment_id FROM runs WHERE lifecycle_stage = 'active' "
                "GROUP BY experiment_id ORDER BY COUNT(*) DESC"
            ).fetchone()
            tags = "SELECT key FROM experiment_tags WHERE experiment_id = ?"
            saved = {key for (key,) in opened.execute(tags, row)} if row else set()
    except sqlite3.DatabaseError as error:
        raise InputError(f"{database} cannot be read as MLflow's store: {error}") from error
    if row is None:
        raise InputError(f"{database} holds no run: run `make repro`")
    runs = f"http://{HOST}:{port}/#/experiments/{row[0]}/runs"
    found = {
        words: f"{runs}?viewStateShareKey={name}&compareRunsMode=TABLE"
        for name, words in WORDS.items()
        if TAG + name in saved
    }
    return found or {"runs": runs}


def _open_when_up(where: str, port: int) -> None:
    """Open a browser there, from a process of its own, once the server answers; nothing without a screen."""
    if not (sys.stdout.isatty() and (sys.platform == "darwin" or os.environ.get("DISPLAY"))):
        return
    if os.fork():
        return
    for _ in range(UP_S):
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            webbrowser.open(where)
            break
        time.sleep(1)
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.tracking.ui")
    parser.add_argument("--port", type=int, default=5000, help="default: 5000")
    parser.add_argument(
        "--no-open", dest="open", action="store_false", help="do not open a browser, where there is a screen"
    )
    arguments = parser.parse_args()
    port = arguments.port
    where = store.uri()
    database = store.sqlite_file(where)
    if where.startswith("http"):
        raise InputError(f"the runs are at {store.without_password(where)}, which has a UI of its own")
    if database is not None:
        found = addresses(database, port)
        if told := sqlite_store.at_home(database, where):
            print(told, flush=True)
        for words, shown in found.items():
            print(f"{words + ':':36}{shown}", flush=True)
        if arguments.open:
            _open_when_up(next(iter(found.values())), port)
    environment = os.environ | store.QUIET | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment["PYTHONWARNINGS"] = "ignore"  # of its web server's, which nobody here can act on
    asked = ["--backend-store-uri", where, "--host", HOST, "--port", str(port)]
    asked += ["--uvicorn-opts", "--log-level warning"]
    os.execve(sys.executable, [sys.executable, "-m", "mlflow", "ui", *asked, "--workers", "1"], environment)


if __name__ == "__main__":
    command("ui", main)
