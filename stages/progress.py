"""Progress with the time left: a bar on a terminal, and in a log a line a tenth of the way, not thousands."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
EVERY_S = 10.0
"""Seconds between two lines of a log at least, so that what is short says nothing."""


if TYPE_CHECKING:
    _Bar = tqdm
else:

    class _Bar(tqdm):
        """A tqdm that says of what it is a bar, as its types do."""

        def __class_getitem__(cls, item: Any) -> Any:
            return cls


class Progress(_Bar[T]):
    """A tqdm bar that knows whether somebody watches."""

    _tenth = 0
    _last: float | None = None
    """The time of the last line, or of the bar's making."""

    @property
    def watched(self) -> bool:
        """Whether the bar is written to a terminal."""
        return bool(getattr(getattr(self, "fp", None), "isatty", lambda: False)())  # none, if disabled

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw the bar, or write a line where a tenth more is done."""
        if self.watched:
            super().display(msg, pos)
            return
        tenth = int(10 * self.n / self.total) if self.total else self._tenth + 1
        now = time.monotonic()
        if self._last is None:
            self._last = now
        if tenth > self._tenth and now - self._last >= EVERY_S:
            self._tenth, self._last = tenth, now
            print(self.line(), file=self.fp, flush=True)

    def clear(self, nolock: bool = False) -> None:
        """Take the bar away for a remark; in a log there is none."""
        if self.watched:
            super().clear(nolock)

    def line(self) -> str:
        """How far it is, and how long it will take, in words."""
        found = self.format_dict
        done, total, elapsed = found["n"], found["total"], found["elapsed"]
        rate = found["rate"] or (done / elapsed if elapsed else 0)
        left = f", about {duration((total - done) / rate)} left" if total and rate and done < total else ""
        of = f" of {total:,}" if total else ""
        values = f" ({found['postfix']})" if found["postfix"] else ""
        return (
            f"{found['prefix']}: {done:,}{of} {_several(found['unit'])} in {duration(elapsed)}{left}{values}"
        )

    def close(self) -> None:
        """Take the bar away; of a log nothing is taken."""
        if self.watched or self.disable:
            super().close()
        else:
            self.disable = True
            self._decr_instances(self)  # type: ignore[attr-defined]


def _several(unit: str) -> str:
    """Several of a unit: batches, or batches of 1,024 tokens."""
    one, rest = unit.partition(" ")[0], unit.partition(" ")[1:]
    return f"{one}{'es' if one.endswith('ch') else 's'}{''.join(rest)}"


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers' own bars of loading and writing away, which in a log are a line of control codes."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def duration(seconds: float) -> str:
    """Seconds in words, as exact as somebody who waits wants to know."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
