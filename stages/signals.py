"""Signals ask a stage to stop: what is in hand is finished first, and a second one stops that too.

SIGINT, SIGTERM and SIGHUP, and that of a parent's death, raise `Stopped` at once, but in a block that is
`deferred`: there at its end. Before a stage has begun they end the process on the spot, since an exception
within the imports of other packages may be lost or come out as another.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

PARENT_DIED = getattr(signal, "SIGUSR1", signal.SIGTERM)
"""A signal of its own: a SIGTERM of a whole group reaches dvc and its stage, and is not asked twice."""
_ASKED = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_PR_SET_PDEATHSIG = 1


class Stopped(KeyboardInterrupt):
    """A signal asked to stop."""


class _State:
    """Signals have one state a process."""

    command = ""
    then = ""
    raising = False
    """Between `begin` and `end`."""
    begun = False
    number = 0
    """The first signal that came, or 0."""
    words: list[str]  # of the blocks that are deferred, from the outermost in
    """What each finishes first."""


_state = _State()
_state.words = []


def noted() -> int:
    """The number of the signal that asked to stop, if one did, else 0."""
    return _state.number


def exit_code(number: int) -> int:
    """What a shell calls the end by a signal; a parent's death counts as SIGTERM."""
    return 128 + (signal.SIGTERM if number == PARENT_DIED else number)


def last_words(number: int, finished: Sequence[str] = ()) -> str:
    """One line: by what a stage was stopped, what it had finished, and how it goes on."""
    why = "the death of its parent" if number == PARENT_DIED else signal.Signals(number).name
    kept = "; ".join([*finished, "what was finished is kept"]) if _state.begun else "before it began"
    return f"prunecast {_state.command}: interrupted by {why}; {kept}: {_state.then}"


@contextlib.contextmanager
def watched(command: str, then: str) -> Iterator[None]:
    """Answer signals; the last words say what to do `then`. What is ignored, as after nohup, stays so.

    When the block ends, a signal ends the process silently: all that there was to keep is kept.
    """
    _state.command, _state.then = command, then
    _state.raising, _state.begun, _state.number, _state.words = False, False, 0, []
    asked = [number for number in _ASKED if signal.getsignal(number) is not signal.SIG_IGN]
    for number in {*asked, PARENT_DIED}:
        signal.signal(number, _answer)
    sys.unraisablehook, before = _again, sys.unraisablehook
    try:
        yield
    finally:
        sys.unraisablehook = before
        for number in {*asked, PARENT_DIED}:
            signal.signal(number, signal.SIG_DFL)


def begin() -> None:
    """Let signals raise `Stopped`: all is imported."""
    _state.raising = _state.begun = True


def end() -> None:
    """Let signals end the process silently: somebody else says the last words."""
    _state.raising = False


@contextlib.contextmanager
def deferred(words: str = "") -> Iterator[None]:
    """A block that the first signal does not stop: `Stopped` is raised at its end.

    `words` say what is finished first, for the person who asked. Blocks may lie within each other.
    """
    _state.words.append(words)
    try:
        yield
    finally:
        _state.words.pop()
    if _state.number and not _state.words:
        raise Stopped


def die_with_parent() -> None:
    """Be told, on Linux, of the parent's death: a killed `dvc` leaves no orphan that works on."""
    if sys.platform == "linux":
        import ctypes

        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, PARENT_DIED)
        if os.getppid() != parent or _adopted(parent):  # it died before
            os.kill(os.getpid(), PARENT_DIED)


def _adopted(parent: int) -> bool:
    """Whether the parent is another than started us: one of another session, which we did not leave."""
    session = os.getsid(0)
    return session != os.getpid() and os.getsid(parent) != session


def _answer(number: int, _: FrameType | None) -> None:
    if not _state.raising:
        if not _state.begun:
            _say(last_words(number))
        os._exit(exit_code(number))
    again, _state.number = bool(_state.number), _state.number or number
    if again and number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # a third one is the system's
        raise Stopped
    if not _state.words:
        raise Stopped
    if not again and (words := next(filter(None, _state.words), "")):
        _say(f"prunecast {_state.command}: {words} is finished first; once more stops at once")


def _again(lost: Any) -> None:
    """A `Stopped` in a destructor or a callback, whence Python raises nothing, comes once more."""
    if isinstance(lost.exc_value, Stopped):
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGTERM)).start()  # once Python is out of there
    else:
        sys.__unraisablehook__(lost)


def _say(line: str) -> None:
    """Write a line, whatever was being written when the signal came."""
    with contextlib.suppress(OSError):
        os.write(2, f"\n{line}\n".encode())
