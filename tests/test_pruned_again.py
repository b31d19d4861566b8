"""The six stages on a model that they exported: pruned, trained, and pruned again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest

from stages.architecture import Architecture
from tests import tiny
from tests.conftest import TinyFolder
from tests.test_pipeline import Repository
from tests.test_recipes import STAGES

WIDTHS = [[2, 3, 64], [1, 2, 40], [2, 1, 0], [0, 0, 56]]
"""Of the source: a layer without attention, and one without an MLP."""
TIMED = {"device": "cpu", "prompt": 16, "continuation": 4, "rounds": 3, "threads": 1}
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def trained(tiny_folder: TinyFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export that peft trained, merged and saved."""
    source = tiny_folder("llama", attention_bias=True, mlp_bias=True, pruned=WIDTHS)
    folder = tmp_path_factory.mktemp("models") / "trained"
    adapters = peft.LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model: Any = peft.get_peft_model(tiny.exported(source), adapters)
    model.merge_and_unload().save_pretrained(folder)
    tiny.byte_tokenizer().save_pretrained(folder)
    return folder


def test_what_peft_merged_is_run_as_it_is(trained: Path) -> None:
    network, tokens = tiny.network_of(trained), tiny.random_tokens()
    assert network.shape.dense() == Architecture.from_json(WIDTHS)
    expected = tiny.reference_logits(tiny.exported(trained), tokens)
    tiny.assert_same(tiny.elastic_logits(network, network.shape.dense(), tokens), expected)


@pytest.mark.parametrize("budget", ["ratio", "limits"])
def test_it_is_measured_pruned_further_and_exported_again(budget: str, trained: Path, tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository", trained)
    repository.change(
        sample={"first_layers_kept": 0, "bundled": 6, "free": 3},
        search={"trials": 40, "rounds": 1, "front": []},
    )
    if budget == "limits":
        limits = {"overall_ratio": None, "size_bytes": 150_000, "prefill_ms": 60_000.0, "latency": TIMED}
        repository.change(budget=limits)
    for stage in STAGES:
        repository.stage(stage)
    final = repository.json("export/metrics.json")["contenders"]
    folder = repository.path / "data" / "export" / "model"
    model = tiny.exported(folder)
    assert final["dense"]["parameters"] == sum(p.numel() for p in tiny.reference(trained).parameters())
    assert final["winner"]["parameters"] == sum(p.numel() for p in model.parameters())
    again = tiny.network_of(folder).shape.dense()
    again.check(tiny.network_of(trained).shape)
    winner = next(c for c in repository.json("search/outcome.json")["candidates"] if c["name"] == "winner")
    assert again.to_json() == winner["widths"]
    card = (folder / "README.md").read_text()
    assert "The base model had been pruned before" in card
