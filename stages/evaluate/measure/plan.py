"""The order in which architectures are measured: those that share their first layers stay together.

What is handed to an executor is a `Subtree` of the prefix tree of widths: a depth-first walk of works that
start from common layers. Weights of their own share nothing and are a subtree each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from stages.architecture import Architecture
from stages.evaluate.network.prefix import branch_depths, tree_order
from stages.evaluate.network.weights import PrunedWeights

SUBTREES_EACH = 4
"""Subtrees that keep one of several workers busy to the end: more share fewer layers."""


@dataclass(frozen=True)
class Work:
    """An architecture to measure, and the name of the design or search that wants it.

    It is measured as a prefix view of the elastic network, or with `weights` of its own. Where it
    `may_fail`, others go on without it if what is measured is no finite number.
    """

    architecture: Architecture
    design: str
    weights: PrunedWeights | None = None
    may_fail: bool = False


@dataclass(frozen=True)
class Subtree:
    """Works in the order in which they share most.

    `branches[i]` are the depths at which later works leave the path of the i-th: before these layers its
    hidden states are worth keeping.
    """

    works: tuple[Work, ...]
    branches: tuple[frozenset[int], ...]

    @classmethod
    def of(cls, works: Sequence[Work]) -> Subtree:
        """Works that are in the order of the tree already."""
        depths = branch_depths([work.architecture for work in works])
        return cls(tuple(works), tuple(map(frozenset, depths)))

    @property
    def layers(self) -> list[int]:
        """How many layers each work runs itself: all the first, others those after where they branch off."""
        whole = len(self.works[0].architecture.widths)
        return [whole, *(whole - max(depths, default=0) for depths in self.branches[:-1])]

    def split(self) -> list[Subtree]:
        """The subtrees below the first depth at which works part; this one alone where they never do."""
        shared = min(self.branches[0], default=0)
        groups = groupby(self.works, key=lambda work: work.architecture.widths[: shared + 1])
        return [Subtree.of(list(group)) for _, group in groups]


def subtrees(works: Iterable[Work], parts: int = 1) -> list[Subtree]:
    """The works as subtrees, the widest first; at least `parts` of them where there are so many works.

    Each subtree runs the layers that its works share once, so fewer subtrees do less work and more keep
    more workers busy.
    """
    prefixes = {work.architecture: work for work in works if work.weights is None}
    ordered = [prefixes[architecture] for architecture in tree_order(list(prefixes))]
    of_first_layer = groupby(ordered, key=lambda work: work.architecture.widths[0])
    found = [Subtree.of(list(group)) for _, group in of_first_layer]
    found += [Subtree.of([work]) for work in works if work.weights is not None]
    while 0 < len(found) < parts:
        place = max(range(len(found)), key=lambda index: len(found[index].works))
        if len(found[place].works) == 1:
            break
        found[place : place + 1] = found[place].split()
    return found
