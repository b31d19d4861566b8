"""The weights of a candidate are those that the search measured, or are refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from stages.architecture import Architecture
from stages.evaluate.network.weights import PrunedWeights
from stages.export.weights.export import weights_of
from stages.files import InputError
from stages.search.outcome import Candidate
from tests import tiny

CUT = PrunedWeights(tiny.MIXED, ({"cut": "from here"},), lambda dtype: {})
AGAIN = CUT.then({"repair again": {"damping": 0.1}}, lambda dtype: {})


def bench() -> Any:
    """Makes weights of an architecture, repaired again where that is asked for."""

    def weights(architecture: Architecture, again: bool) -> PrunedWeights:
        assert architecture == tiny.MIXED
        return AGAIN if again else CUT

    return SimpleNamespace(weights=weights)


def measured_as(weights: str) -> Candidate:
    return Candidate("winner", tiny.MIXED, 0.3, {}, {}, 3.0, weights)


def test_they_are_made_as_they_were_measured_whatever_params_say_now() -> None:
    assert weights_of(bench(), measured_as("")) is CUT
    assert weights_of(bench(), measured_as(AGAIN.digest)) is AGAIN


def test_others_than_those_that_were_measured_are_refused() -> None:
    with pytest.raises(InputError, match=f"with the weights 0123456789abcdef, .* make {AGAIN.digest} of it"):
        weights_of(bench(), measured_as("0123456789abcdef"))
