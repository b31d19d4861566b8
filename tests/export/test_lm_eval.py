"""The command that hands an exported model to lm-eval, as the README has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages.evaluate.text import mmlu
from stages.export.weights.huggingface import write_folder
from tests import lm_eval_reference, tiny
from tests.conftest import TinyFolder
from tests.evaluate.text.test_mmlu import make_questions

pytest.importorskip("lm_eval.evaluator", reason="the extra lm-eval is not installed")


def test_lm_eval_takes_an_exported_folder(tiny_folder: TinyFolder, tmp_path: Path) -> None:
    folder = tiny_folder("llama")
    loaded, network = tiny.load(folder), tiny.network_of(folder)
    architecture = tiny.random_architecture(network.shape, torch.Generator().manual_seed(4))
    assert len(set(architecture.widths)) > 1
    exported, tasks = tmp_path / "model", tmp_path / "tasks"
    tasks.mkdir()
    write_folder(
        exported, network.sliced_state(architecture), loaded.config, architecture, network.shape,
        loaded.tokenizer, loaded.generation_config, torch.float32,
    )  # fmt: skip
    questions = make_questions(30, seed=21)
    questions = [q for q in questions if q.subject == "anatomy" and len(q.question) < 250]
    (task,) = lm_eval_reference.write_tasks("likelihood", questions, questions, tasks)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--tasks", task),
            *("--model_args", f"pretrained={exported},trust_remote_code=True,dtype=float32"),
            *("--include_path", str(tasks), "--output_path", str(tmp_path / "out"), "--device", "cpu"),
        ],
        cwd=tmp_path,
        env=os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (written,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(written.read_text())["results"][task]["acc,none"]
    items = mmlu.likelihood_items(questions, loaded.tokenizer)
    with torch.inference_mode():
        batches = mmlu.batches(items, 1024)
        logs = torch.cat([network.log_likelihoods(architecture, batch) for batch in batches])
    accuracy = mmlu.scores(logs, items)[0]["accuracy"]
    assert 0 < accuracy < 1
    assert found == pytest.approx(accuracy)
