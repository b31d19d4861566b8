"""The six stages with a recovery in search and export: what is exported and reported is the recovered model.

`test_stage` runs this file in a process of its own: a fork of one that has threads may wait for ever.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.config.params import load_params
from stages.export import by_id
from tests.faults.world import STAGES, World

RECOVERY = {
    "method": "full", "text": "calibration", "tokens": 100_000, "passes": 2, "local": 0,
    "sequence_length": 32, "tokens_per_step": 256, "learning_rate": 1e-3, "rank": 4, "checkpoints": 2,
    "baselines": True, "seed": 0,
}  # fmt: skip


def test_what_is_exported_and_reported_is_the_recovered_model(tmp_path: Path) -> None:
    world = World.make(tmp_path / "world")
    params = world.params
    params["export"] |= {"recovery": RECOVERY}
    params["search"] |= {"recovery": RECOVERY | {"passes": 1, "checkpoints": 1}}
    world.write_params(params)
    ended = world.run(STAGES)
    assert ended.code == 0, ended.output
    candidates = json.loads((world.folder / "data/search/outcome.json").read_text())["candidates"]
    pruned = [candidate for candidate in candidates if candidate["name"] != "dense"]
    rows = [
        json.loads(line) for line in (world.folder / "data/search/journal.jsonl").read_text().splitlines()
    ]
    measured = {(row["architecture"], row["weights"]) for row in rows if row.get("weights")}
    before = {(candidate["id"], candidate["weights"]) for candidate in pruned}
    assert len(measured) >= len(pruned) >= 3
    assert not measured & before  # trained and measured; what goes on from here are the weights before that
    assert ended.output.count("Recovery: full on") == len(pruned) + 3  # those; the winner, uniform and simple
    data = world.folder / "data" / "export"
    found = json.loads((data / "metrics.json").read_text())["contenders"]
    alike = {"recovered", "uniform, recovered", "simple, recovered"}
    assert set(found) == {"dense", "uniform", "simple", "winner", *alike}
    assert found["recovered"]["ppl.prose"] < 0.9 * found["winner"]["ppl.prose"]
    report, card = (data / "report.html").read_text(), (data / "model" / "README.md").read_text()
    assert "What was left was then trained" in card
    assert "compared after a recovery of each (full, 100,000 tokens at most)" in report
    assert "What training gave back" in report
    assert (data / "pictures" / "recovery.png").is_file()
    for page in (report, card):
        assert "Perplexity after recovery, against before it:" in page
        assert "against uniform pruning recovered alike:" in page
    assert f"{found['recovered']['ppl.prose']:.4f}" in card  # the front matter's figure
    weights = load_file(data / "model" / "model.safetensors")
    states = [load_file(path) for path in (world.folder / "cache" / "recovery").glob("*/weights.safetensors")]
    assert len(states) == 3
    assert any(
        state.keys() == weights.keys() and all(map(torch.equal, state.values(), map(weights.get, state)))  # type: ignore[arg-type]
        for state in states
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(world.folder)
        monkeypatch.setenv("PRUNECAST_CACHE", str(world.folder / "cache"))
        (winner,) = (candidate for candidate in candidates if candidate["name"] == "winner")
        monkeypatch.setattr("stages.recovery.training.Training.run", None)  # it is trained already
        by_id.run(load_params(Path("params.yaml")), winner["id"], tmp_path / "by-id")
    again = load_file(tmp_path / "by-id" / "model" / "model.safetensors")
    assert all(map(torch.equal, again.values(), map(weights.get, again)))  # type: ignore[arg-type]
