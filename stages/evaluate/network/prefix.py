"""Sharing the first layers: what architectures have in common is computed once a text.

Architectures are run in an order in which neighbours share long prefixes (a depth-first walk of
the prefix tree of their layers' widths). Before each depth at which a later architecture branches
off, the hidden states are kept; the next architecture starts from the deepest state that it shares.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from stages.architecture import Architecture, LayerWidth
from stages.evaluate.network.batch import Batch
from stages.evaluate.network.decoder import Decoder
from stages.evaluate.network.repair import NOTHING_REPAIRED, Repair


def common_prefix(a: Sequence[LayerWidth], b: Sequence[LayerWidth]) -> int:
    """How many leading layers two architectures share."""
    for index, (x, y) in enumerate(zip(a, b, strict=True)):
        if x != y:
            return index
    return len(a)


def tree_order(architectures: Sequence[Architecture]) -> list[Architecture]:
    """Widest first, layer by layer, so that architectures with a common prefix are neighbours."""
    return sorted(architectures, key=lambda a: a.widths, reverse=True)


def branch_depths(architectures: Sequence[Architecture]) -> list[set[int]]:
    """The depths at which later architectures of a sequence branch off the path of each."""
    depths: list[set[int]] = []
    for index, architecture in enumerate(architectures):
        shared = len(architecture.widths)
        found: set[int] = set()
        for left, right in zip(architectures[index:], architectures[index + 1 :], strict=False):
            shared = min(shared, common_prefix(left.widths, right.widths))
            if shared == 0:
                break
            found.add(shared)
        depths.append(found)
    return depths


def _states_held(state_bytes: Sequence[int], limit_bytes: int) -> list[int]:
    """How many states of each batch the limit holds: as many of all, and one more of the first that fit.

    Texts too long for one state each are shared in part.
    """
    most = limit_bytes // max(1, sum(state_bytes))
    spare = limit_bytes - most * sum(state_bytes)
    held = []
    for size in state_bytes:
        more = size <= spare
        spare -= size * more
        held.append(most + more)
    return held


class SharedPrefix:
    """Hidden states of the last architecture's path, at the depths that later ones need."""

    def __init__(
        self,
        network: Decoder,
        batches: Sequence[Batch],
        limit_bytes: int,
        repair: Repair = NOTHING_REPAIRED,
    ) -> None:
        self._network = network
        self._repair = repair
        self._batches = batches
        self._states: list[dict[int, Tensor]] = [{} for _ in batches]
        self._last: Architecture | None = None
        self._most = _states_held(
            [b.tokens.numel() * network.shape.hidden * network.embedding.element_size() for b in batches],
            limit_bytes,
        )

    def log_likelihoods(self, architecture: Architecture, branches: set[int]) -> list[Tensor]:
        """Log-likelihoods of every batch's targets; keeps the states at the depths in `branches`.

        Where memory does not hold all of them, the deepest are kept: they save most.
        """
        shared = 0 if self._last is None else common_prefix(self._last.widths, architecture.widths)
        deepest = sorted(branches, reverse=True)
        results = []
        self._last = None  # until all batches are through: an interruption leaves states of two paths
        for batch, states, most in zip(self._batches, self._states, self._most, strict=True):
            keep = set(deepest[:most])
            for depth in list(states):
                if depth > shared or (depth < shared and depth not in keep):
                    del states[depth]
            start = max(states, default=0)
            hidden, kept = self._network.hidden_states(
                architecture, batch, start, states.get(start), keep - {*states}, self._repair
            )
            states |= kept
            results.append(self._network.read(hidden, batch))
        self._last = architecture
        return results
