"""Texts longer than a model was trained on turn its heads by other angles, each text by its own length."""

from __future__ import annotations

import pytest
import torch

from tests import tiny
from tests.conftest import TinyFolder


@pytest.mark.parametrize("length", [16, 17])
@pytest.mark.parametrize("name", ["phi3-longrope", "llama-longrope"])
def test_a_text_turns_by_its_own_length(name: str, length: int, tiny_folder: TinyFolder) -> None:
    """As transformers runs it alone; 16 tokens are what the variant of Phi-3 was trained on."""
    variant = tiny.VARIANTS[name]
    folder = tiny_folder(variant.family, **variant.options)
    network, model = tiny.network_of(folder), tiny.reference(folder)
    tokens = tiny.random_tokens(2, length)
    found = tiny.elastic_logits(network, network.shape.dense(), tokens)
    tiny.assert_same(found, tiny.reference_logits(model, tokens))


def test_beside_a_longer_text_a_short_one_stays_as_it_was(tiny_folder: TinyFolder) -> None:
    network = tiny.network_of(tiny_folder("phi3", **tiny.LONGROPE))
    positions = torch.stack([torch.arange(20), torch.arange(20).clamp(max=9)])
    (rotation,) = network.surroundings.rotations.kinds
    together = rotation.turn(positions, torch.float32)
    for row in (0, 1):
        alone = rotation.turn(positions[row : row + 1], torch.float32)
        assert all(both[row].equal(one[0]) for both, one in zip(together, alone, strict=True))
    assert not together[0][0, :10].equal(together[0][1, :10])
