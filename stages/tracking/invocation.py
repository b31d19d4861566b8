"""Which run of the pipeline this process belongs to, who started it, and from which commit.

`dvc repro` runs every stage as a process of its own; what the stages share is their ancestor, dvc.
"""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import psutil

WRITTEN = ("dvc.lock", "data/summary.json")
"""Files in git that a run of the pipeline writes."""
CLOCK_SLACK_S = 5.0
"""Start times are derived from the wall clock, which may be adjusted while a process runs."""


@dataclass(frozen=True)
class ProcessIdentity:
    """One process of one host; a pid alone is reused."""

    host: str
    pid: int
    started: float
    """Seconds since the epoch."""

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}:{self.started:.0f}"

    @classmethod
    def parse(cls, text: str) -> ProcessIdentity | None:
        """The inverse of `str`; None when the text is nothing of the kind."""
        host, _, rest = text.partition(":")
        pid, _, started = rest.partition(":")
        try:
            return cls(host, int(pid), float(started))
        except ValueError:
            return None

    @classmethod
    def of(cls, process: psutil.Process) -> ProcessIdentity:
        return cls(socket.gethostname(), process.pid, process.create_time())

    def is_same(self, other: ProcessIdentity) -> bool:
        near = abs(self.started - other.started) <= CLOCK_SLACK_S
        return (self.host, self.pid) == (other.host, other.pid) and near

    def is_dead(self) -> bool:
        """Whether it was a process of this host that runs no more; of other hosts nothing is known."""
        if self.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.pid)
            return process.status() == psutil.STATUS_ZOMBIE or not self.is_same(self.of(process))
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False


@dataclass(frozen=True)
class Invocation:
    """One `dvc repro` or `dvc exp run`, or this process where no dvc started it."""

    identity: ProcessIdentity
    command: str
    """`repro`, `exp` or, without dvc, nothing."""

    def is_named(self, identity: str) -> bool:
        """Whether the text, once `str(self.identity)`, names this invocation."""
        other = ProcessIdentity.parse(identity)
        return other is not None and self.identity.is_same(other)


def current() -> Invocation:
    """The nearest ancestor that is dvc, else this process."""
    process = psutil.Process()
    for ancestor in process.parents():
        try:
            command = dvc_command(ancestor.cmdline())
            if command:
                return Invocation(ProcessIdentity.of(ancestor), command)
        except psutil.Error:
            continue  # gone meanwhile, or not ours to look at
    return Invocation(ProcessIdentity.of(process), "")


def this_process() -> ProcessIdentity:
    return ProcessIdentity.of(psutil.Process())


def dvc_command(arguments: Sequence[str]) -> str:
    """`repro` or `exp` where the arguments are those of dvc running stages, else nothing."""
    names = [PurePath(word).name for word in arguments]
    place = next((i for i, name in enumerate(names) if name in ("dvc", "dvc.exe")), len(names))
    return next((word for word in arguments[place + 1 :] if word in ("repro", "exp")), "")


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return str(os.getuid())


def git_commit() -> tuple[str, bool] | None:
    """The commit that is checked out, and whether tracked files differ from it; None outside git.

    What a run writes itself is no difference: of every clone, DVC rewrites the lock.
    """
    commit = _git("rev-parse", "HEAD")
    others = (":/", *(f":(exclude,top){path}" for path in WRITTEN))
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", *others)
    return None if not commit else (commit, bool(changed))


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
