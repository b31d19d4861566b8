"""Subtrees: every work once, together where first layers are shared, as many as are asked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.architecture import Architecture, LayerWidth
from stages.evaluate.measure.plan import Subtree, Work, subtrees
from stages.evaluate.network.prefix import common_prefix, tree_order
from stages.evaluate.network.weights import PrunedWeights
from tests.small import SMALL, architectures_of

FEW = st.lists(architectures_of(SMALL), min_size=1, max_size=12, unique=True)


def works_of(architectures: list[Architecture]) -> list[Work]:
    return [Work(architecture, f"design {n}") for n, architecture in enumerate(architectures)]


def with_first_layers(kept: int, count: int) -> list[Architecture]:
    """Architectures that share their first layers, and are told apart by the last one."""
    dense = SMALL.dense().widths
    last = [LayerWidth(1, 1, n) for n in range(1, count + 1)]
    return [Architecture((*dense[:kept], *[width] * (SMALL.layers - kept))) for width in last]


@given(architectures=FEW, parts=st.integers(1, 14))
@settings(deadline=None)
def test_every_work_is_in_one_subtree_and_first_layers_are_shared(
    architectures: list[Architecture], parts: int
) -> None:
    works = works_of(architectures)
    found = subtrees(works, parts)
    assert sorted(w.design for subtree in found for w in subtree.works) == sorted(w.design for w in works)
    assert min(parts, len(works)) <= len(found)
    for subtree in found:
        first = {work.architecture.widths[0] for work in subtree.works}
        assert len(first) == 1
        order = [work.architecture for work in subtree.works]
        assert order == tree_order(order)


@given(architectures=FEW, parts=st.integers(1, 14))
@settings(deadline=None)
def test_branches_are_where_later_works_leave_the_path(architectures: list[Architecture], parts: int) -> None:
    for subtree in subtrees(works_of(architectures), parts):
        for place, depths in enumerate(subtree.branches):
            shared, expected = SMALL.layers, set()
            for left, right in zip(subtree.works[place:], subtree.works[place + 1 :], strict=False):
                shared = min(shared, common_prefix(left.architecture.widths, right.architecture.widths))
                expected |= {shared} if shared else set()
            assert depths == expected


def test_one_part_shares_all_that_can_be_shared() -> None:
    (subtree,) = subtrees(works_of(with_first_layers(3, 6)))
    assert subtree.branches == (*[frozenset({3})] * 5, frozenset())


@pytest.mark.parametrize("parts", [2, 4, 6, 100])
def test_the_largest_subtree_is_divided_until_there_are_enough(parts: int) -> None:
    works = works_of([*with_first_layers(3, 6), SMALL.dense()])
    found = subtrees(works, parts)
    assert len(found) == 7  # they part at one depth, so that a division leaves one each
    assert sum(len(subtree.works) for subtree in found) == 7


def test_works_that_never_part_are_not_divided() -> None:
    work = Work(SMALL.dense(), "dense")
    assert Subtree.of([work]).split() == [Subtree.of([work])]
    assert subtrees([]) == []


def test_weights_of_their_own_share_nothing() -> None:
    first, second = with_first_layers(3, 2)
    weights = PrunedWeights(second, ({"cut": {}},), lambda dtype: {"a": torch.zeros(1)})
    own = Work(second, "own", weights)
    found = subtrees([Work(first, "a"), Work(second, "b"), own])
    assert [[work.design for work in subtree.works] for subtree in found] == [["b", "a"], ["own"]]
