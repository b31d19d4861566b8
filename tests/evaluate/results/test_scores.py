"""Importance scores: the order that they give, and the file that keeps them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.evaluate.results.scores import UnitScores
from stages.files import InputError
from tests.small import SMALL


def test_units_come_by_falling_score() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = UnitScores.of(*(torch.rand(*size, generator=generator) for size in ((3, 4, 2), (3, 4), (3, 11))))
    order = scores.order()
    for layer in range(3):
        totals = [float(scores.groups[layer, g] + scores.heads[layer, g].sum()) for g in range(4)]
        groups = sorted(range(4), key=lambda g: -totals[g])
        assert order.groups[layer].tolist() == groups
        for rank, group in enumerate(groups):
            of_group = scores.heads[layer, group].tolist()
            assert order.heads[layer, rank].tolist() == sorted(range(2), key=lambda h: -of_group[h])
        of_layer = scores.channels[layer].tolist()
        assert order.channels[layer].tolist() == sorted(range(11), key=lambda c: -of_layer[c])


def test_ties_keep_the_order_of_the_checkpoint() -> None:
    scores = UnitScores.of(
        heads=torch.tensor([[[1.0, 2.0, 1.0, 2.0], [2.0, 1.0, 1.0, 2.0], [5.0, 5.0, 5.0, 5.0]]]),
        groups=torch.tensor([[3.0, 3.0, 0.0]]),
        channels=torch.tensor([[0.0, 1.0] * 40]),
    )
    order = scores.order()
    assert order.groups.tolist() == [[2, 0, 1]]
    assert order.heads.tolist() == [[[0, 1, 2, 3], [1, 3, 0, 2], [0, 3, 1, 2]]]
    assert order.channels[0].tolist() == [*range(1, 80, 2), *range(0, 80, 2)]


def scores_of_three() -> UnitScores:
    generator = torch.Generator().manual_seed(0)
    return UnitScores.of(*(torch.rand(*size, generator=generator) for size in ((3, 2, 3), (3, 2), (3, 11))))


def test_saved_scores_come_back_under_their_key_alone(tmp_path: Path) -> None:
    path, scores = tmp_path / "new" / "importance.safetensors", scores_of_three()
    assert UnitScores.load(path, "a") is None
    scores.save(path, "a")
    found = UnitScores.load(path, "a")
    assert found is not None
    for part in ("heads", "groups", "channels"):
        assert np.array_equal(getattr(found, part), getattr(scores, part))
    assert found.order().digest == scores.order().digest
    assert UnitScores.load(path, "b") is None
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_saved_scores_are_readable_as_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        scores_of_three().save(tmp_path / "importance.safetensors", "a")
    finally:
        os.umask(before)
    assert (tmp_path / "importance.safetensors").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("keep", [0, 5, 100, -3])
def test_damaged_scores_are_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "importance.safetensors"
    scores_of_three().save(path, "a")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"importance\.safetensors is damaged.*delete it and run `dvc repro"):
        UnitScores.load(path, "a")


def test_the_digest_is_that_of_the_order() -> None:
    scores = scores_of_three()
    louder = UnitScores(scores.heads * 2, scores.groups * 2, scores.channels * 2)
    other = UnitScores(scores.heads, scores.groups, scores.channels[:, ::-1])
    assert louder.order().digest == scores.order().digest != other.order().digest


def test_sorted_scores_stand_in_their_order() -> None:
    scores = scores_of_three()
    order, found = scores.order(), scores.sorted()
    for layer in range(3):
        assert found.channels[layer].tolist() == sorted(scores.channels[layer].tolist(), reverse=True)
        for rank, group in enumerate(order.groups[layer]):
            assert found.groups[layer, rank] == scores.groups[layer, group]
            assert found.heads[layer, rank].tolist() == sorted(scores.heads[layer, group], reverse=True)


def test_scores_of_another_model_are_named(tmp_path: Path) -> None:
    path = tmp_path / "importance.safetensors"
    with pytest.raises(InputError, match=r"is not there; run `dvc repro evaluate`"):
        UnitScores.of_model(path, SMALL)
    scores_of_three().save(path, "a")
    with pytest.raises(InputError, match=r"\(3, 11\) layers and channels; expected \(6, 64\)"):
        UnitScores.of_model(path, SMALL)
