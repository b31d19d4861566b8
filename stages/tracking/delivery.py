"""Letters are delivered by a thread of their own, so that no stage waits for a store that is slow or gone.

A stage waits at three places alone: as it begins, where it wants to know the name of a registered model,
and as it ends; and there for `PATIENCE_S` in all.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from stages.tracking.outbox import Letter

PATIENCE_S = 10.0
"""Seconds that a process waits, in all, for a store that does not do what it is asked for."""
AT_A_KILL_S = 2.0
"""Seconds that it waits after an interrupt, at most: who stops a stage does not want to wait."""
LONGEST_PAUSE_S = 60.0
ENOUGH_FAILURES = 3
"""So many in a row, and the end of a stage waits no longer."""


class Delivery:
    """The thread, its queue, and the patience of those who wait for it.

    A letter that fails goes to the end of the queue, so that it keeps no other from being delivered; after
    each failure in a row the pause is twice as long. `failed` is told of each failure.
    """

    def __init__(
        self, deliver: Callable[[Letter], str], failed: Callable[[Exception], None], steady: bool
    ) -> None:
        """`steady`: the store lies on this machine; while it gets on with letters, it is waited for."""
        self._deliver = deliver
        self._failed = failed
        self._steady = steady
        self._queue: deque[Letter] = deque()
        self._answers: dict[Letter, str | None] = {}
        self._changed = threading.Condition()
        self._left_s = PATIENCE_S
        self._steps = 0
        self._failures = 0
        self._in_haste = False
        self._closed = False

    def start(self) -> None:
        threading.Thread(target=self._work, name="tracking", daemon=True).start()

    def put(self, letters: Iterable[Letter]) -> None:
        """Have letters delivered after those before."""
        with self._changed:
            self._queue.extend(letters)
            self._changed.notify_all()

    def step(self) -> None:
        """Say that the store got on with a long letter."""
        with self._changed:
            self._steps += 1
            self._changed.notify_all()

    def answer(self, letter: Letter, work_s: float = 0.0) -> str | None:
        """What came of a letter, or None where it failed, or was not delivered in time.

        `work_s` are seconds that its work may take besides: they are not charged to patience, unless the
        store fails at what it is asked for, when there is no work to wait for.
        """
        with self._changed:
            self._wait(lambda: letter in self._answers, work_s)
            return self._answers.get(letter)

    def finish(self, killed: bool = False) -> list[Letter]:
        """Wait for the queue to be empty, with what patience is left; returns what is not delivered."""
        with self._changed:
            self._in_haste = True
            self._failures = 0
            if killed:
                self._left_s = min(self._left_s, AT_A_KILL_S)
            self._changed.notify_all()
            self._wait(lambda: not self._queue or self._closed)
            self._closed = True
            self._changed.notify_all()
            return list(self._queue)

    def _wait(self, done: Callable[[], bool], work_s: float = 0.0) -> None:
        while not done():
            allowed = 0.0 if self._failures else work_s
            if allowed + self._left_s <= 0:
                return
            start, steps = time.monotonic(), self._steps
            self._changed.wait(allowed + self._left_s)
            took = time.monotonic() - start
            if self._steady and self._steps != steps:
                continue
            self._left_s -= max(0.0, took - allowed)
            work_s = max(0.0, work_s - took)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                letter = self._queue[0]
            try:
                answer = self._deliver(letter)
            except Exception as error:  # whatever mlflow, its stores and their drivers raise
                self._failed(error)
                with self._changed:
                    self._failures += 1
                    self._answers[letter] = None
                    self._queue.rotate(-1)
                    enough = min(ENOUGH_FAILURES, len(self._queue))
                    self._closed = self._closed or (self._in_haste and self._failures >= enough)
                    self._changed.notify_all()
                    pause_s = min(LONGEST_PAUSE_S, 2.0 ** min(self._failures, 10))
                    self._changed.wait_for(lambda: self._in_haste or self._closed, pause_s)
            else:
                with self._changed:
                    self._failures = 0
                    self._answers[letter] = answer
                    self._queue.popleft()
                    self._steps += 1
                    self._changed.notify_all()
