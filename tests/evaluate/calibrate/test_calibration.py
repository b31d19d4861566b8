"""What calibration finds that no number holds is told, and not kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.config.params import Evaluate
from stages.evaluate.calibrate.calibration import Calibrator
from stages.evaluate.calibrate.whitening import lower_factor
from stages.evaluate.network.elastic import DenseNetwork
from stages.evaluate.network.repair import NOTHING_REPAIRED
from stages.files import InputError
from tests import tiny
from tests.small import COMMITTED

BATCHES = [tiny.causal(tiny.random_tokens(rows=2, length=16))]


def overflowing(tmp_path: Path, part: str, scale: float, importance: str) -> tuple[Calibrator, DenseNetwork]:
    """A calibrator of a model in which the weights of such a name are that much larger."""
    folder = tiny.write_model(tmp_path / "model", "llama")
    state = load_file(folder / "model.safetensors")
    larger = {name: scale * t if part in name else t for name, t in state.items()}
    save_file(larger, folder / "model.safetensors", {"format": "pt"})
    section = Evaluate(**COMMITTED.evaluate.model_dump() | {"importance": importance, "curvature_tokens": 32})
    loaded = tiny.load(folder)
    return Calibrator(section, loaded, tiny.CPU, BATCHES, tiny.roomy(loaded.shape, section)), DenseNetwork(
        loaded, tiny.CPU
    )


@pytest.mark.parametrize(
    ("part", "scale", "importance", "what"),
    [
        ("norm", 1e38, "fluctuation", "activations' squares"),
        ("proj", 1e25, "taylor", "units' scores by taylor"),
    ],
)
def test_scores_that_overflow_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, scale: float, importance: str, what: str
) -> None:
    monkeypatch.setenv("PRUNECAST_CACHE", str(tmp_path / "cache"))
    calibrator, network = overflowing(tmp_path, part, scale, importance)
    with pytest.raises(InputError, match=f"the {what} on the calibration text are not finite in float32"):
        calibrator.scores(tmp_path / "scores", network)
    assert not (tmp_path / "scores").exists()


def test_curves_that_overflow_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNECAST_CACHE", str(tmp_path / "cache"))
    calibrator, network = overflowing(tmp_path, "q_proj", 1e25, "magnitude")
    sorted_ = network.sorted(tiny.random_order(network.shape))
    with pytest.raises(InputError, match="the damage curves by curvature on the calibration text"):
        calibrator.curves(sorted_, NOTHING_REPAIRED, tmp_path / "curves.json")
    assert not (tmp_path / "curves.json").exists()


def test_a_gram_matrix_that_is_damped_too_little_names_the_key() -> None:
    with pytest.raises(InputError, match=r"evaluate\.reconstruction\.damping is too small"):
        lower_factor(torch.ones(3, 3, dtype=torch.float64))
