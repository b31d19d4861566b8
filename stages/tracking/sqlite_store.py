"""An SQLite store before MLflow opens it: made whole or not at all, of this version, and of this place.

MLflow makes a store in a hundred steps, and a store of which a kill left half is never opened again. It also
takes a store of an older version in hand by itself, for minutes, which a kill would leave half done.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from stages.locks import lock
from stages.tracking import store

MAKING_S = 60.0
"""Seconds that the making of a store may take; some three to eight are usual."""
WAIT_S = 8.0
"""Seconds to wait for another process that has hold of a store."""
UNCHANGED_S = 3.0
"""A store half made, but unchanged for so long, was left so."""
HOLDING = ("runs", "registered_models", "experiments")
"""Tables that say whether a store holds anything."""
LOCATIONS = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}
"""Columns by table in which MLflow keeps absolute places."""


class StoreError(Exception):
    """A store cannot be used; the message says why, and what to do."""


def is_there(path: Path) -> bool:
    """Whether a store has been begun."""
    with contextlib.suppress(OSError):
        return path.stat().st_size > 0
    return False


def prepare(path: Path, make: Callable[[Path], None], version: str) -> str:
    """See to it that there is a whole store of that version; returns what the user must know of it.

    `make` makes one at the path that it is given.

    Raises:
        StoreError: it is of another version, or another process has hold of it.
        OSError, sqlite3.Error: it cannot be written, or is no database.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(Path(f"{path}.lock"), WAIT_S if is_there(path) else MAKING_S):
        told = ""
        if is_there(path) and not _is_whole(path, version):
            aside = path.with_name(f"{path.name}.half-made-{int(time.time())}")
            path.rename(aside)
            told = f"{path} was half made and held no run: it is made anew; what there was is {aside.name}"
        if not is_there(path):
            _make(path, make)
        return told


def at_home(path: Path, uri: str) -> str:
    """Let a repository's store, at that `uri`, look for its artifacts beside it; what was done, in words."""
    location = store.artifact_location(uri)
    if not store.is_of_repository(path) or location is None:
        return ""
    before = _move(path, location)
    return before and f"{path} comes from another place: artifacts are now in {location}, not in {before}"


def _move(path: Path, here: str) -> str:
    """Look for the artifacts of a store that was copied or moved with its repository at `here`.

    Returns the place where they were until now, or nothing. Without it a copy would write into the original.
    """
    name = here.rpartition("/")[2]
    with contextlib.closing(_connected(path)) as database, database:
        found = database.execute("SELECT artifact_location FROM experiments").fetchall()
        before = [place for (place,) in found if place and place != here and place.endswith(f"/{name}")]
        for place in before:
            for table, column in LOCATIONS.items():
                new, old = f"? || substr({column}, ?)", f"substr({column}, 1, ?)"
                size = len(place)
                database.execute(
                    f"UPDATE {table} SET {column} = {new} WHERE {old} = ?", (here, size + 1, size, place)
                )
        return before[0] if before else ""


def _is_whole(path: Path, version: str) -> bool:
    """Whether the store is of that version; else it was half made, and holds nothing.

    Raises:
        StoreError: it is of another version.
    """
    end = time.monotonic() + WAIT_S
    while True:
        with contextlib.closing(_connected(path)) as database:
            database.execute("BEGIN IMMEDIATE")  # it can be written
            database.rollback()
            named = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = {name for (name,) in named}
            found = _version(database) if "alembic_version" in tables else ""
            if found == version:
                return True
            held = sum(_rows(database, table, tables) for table in HOLDING)
        if tables and "experiments" not in tables:
            raise StoreError(f"{path} is another program's database; name another in MLFLOW_TRACKING_URI")
        if held > 1:  # the first experiment comes with the store
            raise StoreError(_of_another_version(path, found, version))
        if time.time() - path.stat().st_mtime > UNCHANGED_S:
            return False
        if time.monotonic() > end:
            raise StoreError(f"another process is still making {path}")
        time.sleep(0.2)


def _of_another_version(path: Path, found: str, version: str) -> str:
    return (
        f"{path} is of another version of MLflow (its schema is {found or 'unknown'}, that of the MLflow "
        f"installed {version}); keep a copy and run `mlflow db upgrade {store.SQLITE}{path}`, or, where it "
        "is the newer one, install the MLflow that wrote it"
    )


def _version(database: sqlite3.Connection) -> str:
    row = database.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else ""


def _rows(database: sqlite3.Connection, table: str, tables: set[str]) -> int:
    """How many rows a table has, up to two."""
    if table not in tables:
        return 0
    return len(database.execute(f"SELECT 1 FROM {table} LIMIT 2").fetchall())


def _make(path: Path, make: Callable[[Path], None]) -> None:
    new = path.with_name(f"{path.name}.new")
    _remove(new)  # a kill left it
    try:
        make(new)
        _remove(path)  # empty, if at all there
        new.rename(path)
    finally:
        _remove(new)


def _remove(path: Path) -> None:
    for suffix in ("", "-journal", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _connected(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=WAIT_S)


@contextlib.contextmanager
def _exclusive(path: Path, wait_s: float) -> Iterator[None]:
    end = time.monotonic() + wait_s
    with path.open("wb") as file:
        while True:
            try:
                lock(file.fileno(), wait=False)
                break
            except OSError:
                if time.monotonic() > end:
                    raise StoreError(f"another process has held {path} for {wait_s:.0f} s; end it") from None
                time.sleep(0.1)
        yield
