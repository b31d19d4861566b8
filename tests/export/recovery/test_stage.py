"""The six stages with a recovery: what is exported, reported and registered is the recovered model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.export.recovery.test_recovery import RECOVERY
from tests.faults.world import STAGES, World
from tests.small import REPOSITORY


def run(world: World, stage: str) -> str:
    """A stage in a process of its own: this one has threads."""
    environment = os.environ | {
        "PRUNECAST_CACHE": str(world.folder / "cache"), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", f"stages.{stage}", "--no-tracking"]
    done = subprocess.run(
        command, cwd=world.folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(600)
def test_what_is_exported_and_reported_is_the_recovered_model_and_it_is_trained_once(tmp_path: Path) -> None:
    world = World.make(tmp_path / "world")
    params = world.params
    params["export"] |= {"recovery": RECOVERY | {"method": "full", "baselines": True, "passes": 2}}
    world.write_params(params)
    said = "".join(run(world, stage) for stage in STAGES)
    assert said.count("Recovery: full on") == 3  # the winner, uniform and simple
    data = world.folder / "data" / "export"
    found = json.loads((data / "metrics.json").read_text())["contenders"]
    alike = {"recovered", "uniform, recovered", "simple, recovered"}
    assert set(found) == {"dense", "uniform", "simple", "winner", *alike}
    assert found["recovered"]["ppl.prose"] < 0.9 * found["winner"]["ppl.prose"]
    report, card = (data / "report.html").read_text(), (data / "model" / "README.md").read_text()
    assert "What was left was then trained" in card
    for page in (report, card):
        assert "Perplexity after recovery, against before it:" in page
        assert "Recovery" in page
    assert f"{found['recovered']['ppl.prose']:.4f}" in card.replace("\n", " ")  # the front matter's figure
    weights = load_file(data / "model" / "model.safetensors")
    (kept,) = [
        state
        for path in (world.folder / "cache" / "recovery").glob("*/weights.safetensors")
        if all(torch.equal((state := load_file(path)).get(n, torch.empty(0)), t) for n, t in weights.items())
    ]
    assert kept.keys() == weights.keys()
    params["export"] |= {"gguf": ["F16", "Q8_0"]}
    world.write_params(params)
    again = run(world, "export")
    assert "Recovery: " not in again
    assert "export: GGUF" in again
