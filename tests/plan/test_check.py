"""Everything that would stop a run is found at once, and before any work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from stages.config.params import Params, load_params
from stages.evaluate.calibrate.memory import WAITING, MemoryPlan
from stages.evaluate.network import checkpoint
from stages.plan import check
from tests.conftest import TinyFolder
from tests.test_pipeline import Repository

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def repository(tmp_path: Path, tiny_folder: TinyFolder, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A run that nothing would stop; the folder of the model is its own."""
    model = tmp_path / "model"
    shutil.copytree(tiny_folder("llama"), model)
    made = Repository(tmp_path / "repository", model)
    made.change(sample={"bundled": 6, "free": 3}, export={"gguf": []})
    monkeypatch.chdir(made.path)
    return made


def loaded(repository: Repository, *changes: Change) -> Params:
    params = repository.params()
    for change in changes:
        change(params)
    repository.write_params(params)
    return load_params(repository.path / "params.yaml")


def test_a_run_that_works_is_told_to(repository: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    found = check.check(loaded(repository))
    assert found.problems == []
    told = "\n".join(found.good)
    for what in ("model ", "tokenizer", "prose", "verse", "quiz", "calibration", "budget", "memory", "disk"):
        assert what in told
    done = repository.run("python", "-m", "stages.plan.check")
    assert "nothing would stop a run" in done.stdout


def test_every_fault_is_told_at_once(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong column, a calibration too long, a final table too large, a budget out of reach, a package."""
    rows = [json.dumps({"body": "some text"})]
    (repository.path / "corpora" / "other.jsonl").write_text("\n".join(rows))

    def wrong(params: dict[str, Any]) -> None:
        params["corpora"]["texts"]["other"] = "corpora/other.jsonl"
        params["budget"]["overall_ratio"] = 0.99
        params["export"]["measurement"] = params["export"]["measurement"] | {"windows": 4000}
        params["export"]["recovery"]["method"] = "qlora"

    hidden = {"peft", "bitsandbytes"}
    monkeypatch.setattr(check, "find_spec", lambda name: None if name in hidden else find_spec(name))
    monkeypatch.setattr(checkpoint, "read_tensors", None)  # no weight is read
    problems = check.check(loaded(repository, wrong)).problems
    told = "\n".join(problems)
    assert "corpora.texts.other" in told
    assert "export.measurement: corpora.texts.prose, part report, has" in told
    assert "export.measurement: corpora.texts.verse, part report, has" in told
    assert "budget.overall_ratio is 0.99" in told
    assert "export.recovery.method is qlora, and peft, bitsandbytes is not installed" in told
    assert "search.measurement:" not in told
    done = repository.run("python", "-m", "stages.plan.check", check=False)
    assert done.returncode == 2
    assert "things would stop a run" in done.stderr


def test_a_short_calibration_text_names_its_own_key(repository: Repository) -> None:
    def long(params: dict[str, Any]) -> None:
        params["evaluate"]["calibration"]["samples"] = 4000

    (problem,) = check.check(loaded(repository, long)).problems
    assert "part calibration, has" in problem
    assert "Lower evaluate.calibration.samples or its sequence_length" in problem


def test_a_damaged_model_hides_no_fault_of_a_corpus(repository: Repository) -> None:
    def lost(params: dict[str, Any]) -> None:
        params["corpora"]["texts"]["prose"] = "corpora/nowhere.txt"

    (repository.path.parent / "model" / "config.json").write_text("{")
    problems = check.check(loaded(repository, lost)).problems
    assert len(problems) == 2
    assert "config.json is not valid JSON" in problems[0]
    assert "nowhere.txt" in problems[1]


def test_one_window_gives_no_verdict_and_that_is_said(repository: Repository) -> None:
    def one(params: dict[str, Any]) -> None:
        params["export"]["measurement"] = params["export"]["measurement"] | {"windows": 1}

    found = check.check(loaded(repository, one))
    assert found.problems == []
    assert any("export.measurement.windows is 1" in note for note in found.notes)


def test_a_full_disk_and_a_small_memory_are_told(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_free", lambda folder: 1000.0)
    (problem,) = check.check(loaded(repository)).problems
    assert "and 0.0 GB of the disk are free" in problem


def test_host_memory_beside_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = MemoryPlan({}, {}, 0.0, 0.0, 0.0, Path("cache"), {WAITING: 24e9, "else": 26e9})
    whole = psutil.virtual_memory()._replace(total=128 * 10**9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: whole)
    roomy, tight = check.Findings(), check.Findings()
    check._host_memory(plan, roomy)
    assert roomy.good == ["host memory: 50.0 GB of 128.0 GB"]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: whole._replace(total=32 * 10**9))
    check._host_memory(plan, tight)
    (problem,) = tight.problems
    assert "50.0 GB of 32.0 GB (of them 24.0 GB of hidden states" in problem
    assert "search.repair_again: false, or lower evaluate.calibration.samples" in problem
