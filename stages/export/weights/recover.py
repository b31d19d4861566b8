"""The recovery that params ask for, of candidates that are exported or shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from stages.evaluate.workbench import Workbench
from stages.export.weights.export import weights_of
from stages.recovery.recovered import Recovered
from stages.search.outcome import Candidate
from stages.tracking.records import Numbers


def recover(
    bench: Workbench,
    candidates: Sequence[Candidate],
    tell: Callable[[Candidate, Numbers], None] = lambda _, __: None,
) -> list[Recovered]:
    """The weights of each candidate after `export.recovery`, trained now or kept of before, on one text.

    `tell` is called with the figures of a candidate's training as it goes.

    Raises:
        InputError: the GPU does not hold the training, the text is too short, or the training goes wrong.
    """
    from stages.recovery.recovery import check_room, recovered  # these need packages of their own
    from stages.recovery.text import training_text

    section = bench.params.export.recovery
    for candidate in candidates:
        check_room(bench, section, candidate.architecture)  # before text is written
    text = training_text(bench, section)
    return [recovered(bench, section, weights_of(bench, c), text, partial(tell, c)) for c in candidates]
