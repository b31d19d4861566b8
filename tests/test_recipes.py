"""The recipes of stages/README.md, followed literally: things from files outside stages/ run the pipeline.

One run of the tiny pipeline carries a toy of each kind. To add one: its file in tests/recipes, an entry in
`TOYS`, what params name it by in `params_of`, and a test of what it left behind.
"""

from __future__ import annotations

import ast
import filecmp
import json
import math
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from stages.architecture import Architecture
from stages.files import CHECKSUM, write_json
from tests import tiny
from tests.test_pipeline import Repository

RECIPES = Path(__file__).parent / "recipes"
STAGES = ("sample", "evaluate", "build_dataset", "train_predictor", "search", "export")
KEYS = ["probability.prose", "probability.verse"]
"""Of the toy metric."""
pytestmark = pytest.mark.timeout(900)


class Toy(NamedTuple):
    """A file of tests/recipes, and the most lines of code that it may need."""

    file: str
    lines: int


TOYS = [
    Toy("seed_oss.py", 60),
    Toy("probability.py", 30),
    Toy("largest.py", 30),
    Toy("sobol.py", 15),
    Toy("forked.py", 60),
]
"""What the pipeline runs with."""


def lines_of_code(path: Path) -> int:
    """Lines that hold a statement or a part of one; docstrings and comments do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lines: set[int] = set()
    for node in ast.walk(tree):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and not docstring:
            inner = [child for child in ast.walk(node) if isinstance(child, ast.stmt) and child is not node]
            last = (node.end_lineno or node.lineno) if not inner else min(c.lineno for c in inner) - 1
            lines |= set(range(node.lineno, max(node.lineno, last) + 1))
    return len(lines)


@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.file)
def test_a_recipe_is_short(toy: Toy) -> None:
    assert 5 < lines_of_code(RECIPES / toy.file) <= toy.lines


# --- the pipeline ---------------------------------------------------------------------------------


def params_of(repository: Repository) -> dict[str, Any]:
    """The params of the tiny pipeline, with every toy named."""
    params = repository.params()
    params["extensions"] = [f"ours/{toy.file}" for toy in TOYS]
    params["evaluate"] |= {"importance": "largest", "executor": "forked"}
    params["search"] |= {"sampler": "sobol", "objective": dict.fromkeys(KEYS, 1.0), "trials": 40, "rounds": 1}
    return params


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Repository, dict[str, str]]:
    """A repository in which all stages ran, and what each printed."""
    family, options = tiny.TOYS["seed_oss"]
    model = tiny.write_model(tmp_path_factory.mktemp("model") / family, family, **options)
    repository = Repository(tmp_path_factory.mktemp("recipes"), model)
    (repository.path / "ours").mkdir()
    for toy in TOYS:
        shutil.copy(RECIPES / toy.file, repository.path / "ours")
    params = params_of(repository)
    repository.write_params(params)
    return repository, {name: repository.stage(name).stdout for name in STAGES}


def test_no_line_of_stages_was_touched(run: tuple[Repository, dict[str, str]]) -> None:
    differing = filecmp.dircmp(
        run[0].path / "stages", Path(__file__).parent.parent / "stages", ["__pycache__"]
    )
    waiting = [differing]
    while waiting:
        here = waiting.pop()
        assert [*here.left_only, *here.right_only, *here.diff_files] == []
        waiting += here.subdirs.values()


def test_the_toy_family_is_measured_and_exported(run: tuple[Repository, dict[str, str]]) -> None:
    repository, _ = run
    assert repository.json("sample/architectures.json")["shape"]["family"] == "seed_oss"
    folder = repository.path / "data" / "export" / "model"
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "prunecast_seed_oss"
    assert {name: config[name] for name in tiny.TOYS["seed_oss"].options} == tiny.TOYS["seed_oss"].options
    final = repository.json("export/metrics.json")["contenders"]
    model = tiny.exported(folder)
    assert sum(p.numel() for p in model.parameters()) == final["winner"]["parameters"]


def test_the_toy_metric_is_measured_forecast_searched_for_and_reported(
    run: tuple[Repository, dict[str, str]],
) -> None:
    repository, _ = run
    for row in repository.journal():
        for key in KEYS:
            assert row["metrics"][key] == pytest.approx(statistics.fmean(row["samples"][key]))
            # By Jensen's inequality; equal only if every token were equally probable.
            log_ppl = row["metrics"][key.replace("probability", "log_ppl")]
            assert math.exp(-log_ppl) < row["metrics"][key] < 1
    pairs = pd.read_parquet(repository.path / "data" / "build_dataset" / "pairs.parquet")
    assert set(KEYS) <= set(pairs.columns)
    errors = repository.json("train_predictor/metrics.json")["held_out"]
    assert [errors[key]["scale"] for key in KEYS] == ["mean probability"] * 2
    candidates = repository.json("search/outcome.json")["candidates"]
    finalists = [c for c in candidates if c["name"] in ("winner", "finalist")]
    assert len(finalists) == 3
    for c in finalists:
        assert c["objective"] == pytest.approx(-np.mean([c["metrics"][key] for key in KEYS]))
    (winner,) = [c for c in finalists if c["name"] == "winner"]
    # More probable is better: the objective falls, and the best finalist is the one with the most.
    best = max(sum(c["metrics"][key] for key in KEYS) for c in finalists)
    assert sum(winner["metrics"][key] for key in KEYS) == best
    final = repository.json("export/metrics.json")
    assert set(KEYS) <= set(final["contenders"]["winner"])
    assert set(KEYS) <= set(final["standard_errors"]["winner"])
    report = (repository.path / "data" / "export" / "report.html").read_text()
    card = (repository.path / "data" / "export" / "model" / "README.md").read_text()
    for text in ("prose", "verse"):
        assert f"probability of the next token, {text}" in report
        assert f"probability of the next token, {text} ↑" in card


def test_the_report_is_made_anew_with_the_toy_metric(run: tuple[Repository, dict[str, str]]) -> None:
    repository, _ = run
    report = repository.path / "data" / "export" / "report.html"
    before = report.read_text()
    report.unlink()
    made = repository.run(sys.executable, "-m", "stages.export.report")
    assert "report: data/export/report.html" in made.stdout
    assert report.read_text() == before


def test_a_report_of_another_search_than_the_export_is_refused(
    run: tuple[Repository, dict[str, str]],
) -> None:
    repository, _ = run
    path = repository.path / "data" / "search" / "outcome.json"
    content = path.read_text()
    document = json.loads(content)
    first = next(c for c in document["candidates"] if c["name"] == "finalist")
    for candidate in document["candidates"]:
        if candidate["name"] == "winner":
            candidate["name"] = "other"
    first["name"] = "winner"
    schema, version = document.pop("schema"), document.pop("version")
    del document[CHECKSUM]
    write_json(path, schema, version, document)
    try:
        refused = repository.run(sys.executable, "-m", "stages.export.report", check=False)
    finally:
        path.write_text(content)
    assert refused.returncode == 2
    assert "data/export is of architecture" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_toy_importance_sorts_the_units(run: tuple[Repository, dict[str, str]]) -> None:
    repository, printed = run
    assert "Scoring units by largest" in printed["evaluate"]
    scores = load_file(repository.path / "data" / "evaluate" / "importance.safetensors")
    weights = load_file(Path(repository.params()["model"]["source"]) / "model.safetensors")
    down = weights["model.layers.1.mlp.down_proj.weight"]
    assert np.array_equal(scores["channels"][1], np.abs(down).max(0))
    assert repository.json("evaluate/context.json")["importance"] == "largest"


def test_the_toy_sampler_proposes(
    run: tuple[Repository, dict[str, str]],
) -> None:
    repository, _ = run
    trials = pd.read_csv(repository.path / "data" / "search" / "trials.csv")
    assert len(trials) == 40
    log = (repository.path / "data" / "search" / "studies.log").read_text()
    assert "qmc:" in log  # what this sampler of Optuna notes of each of its points


def test_the_toy_executor_measures_as_ours_does(
    run: tuple[Repository, dict[str, str]], tmp_path: Path
) -> None:
    """Every architecture once, with the values that one process finds."""
    repository, _ = run
    rows = repository.journal()
    ids = [row["architecture"] for row in rows]
    assert len(set(ids)) == len(ids) == len(repository.json("sample/architectures.json")["architectures"])
    (repository.path / "data" / "evaluate" / "journal.jsonl").rename(tmp_path / "forked.jsonl")
    repository.change(evaluate={"executor": "local"})
    repository.stage("evaluate")
    alone = {row["key"]: row for row in repository.journal()}
    assert alone.keys() == {row["key"] for row in rows}
    assert all(alone[row["key"]]["samples"] == row["samples"] for row in rows)
    assert list(alone) != [row["key"] for row in rows] or len(rows) < 3  # as they became free


def test_with_another_version_of_the_metric_all_is_measured_again(
    run: tuple[Repository, dict[str, str]],
) -> None:
    repository, _ = run
    before = repository.json("evaluate/context.json")
    assert before["metrics"]["probability.prose"] == 1
    file = repository.path / "ours" / "probability.py"
    file.write_text(file.read_text().replace("    law=-1,\n", "    law=-1,\n    version=2,\n"))
    rows = len(repository.journal())
    repository.stage("evaluate")
    assert repository.json("evaluate/context.json")["digest"] != before["digest"]
    assert len(repository.journal()) == 2 * rows


# --- laws of the toy families ---------------------------------------------------------------------


PLAIN = Architecture.from_json([[1, 3, 40], [0, 0, 0], [1, 3, 40], [1, 3, 40]])
"""What a plain model of the family can be, one layer shorter."""


@pytest.mark.usefixtures("toy_families")
@pytest.mark.parametrize("widths", [tiny.MIXED, tiny.HOLLOW, PLAIN], ids=["mixed", "hollow", "plain"])
@pytest.mark.parametrize("name", tiny.TOYS)
def test_prefix_view_sliced_exported_and_masked_agree(
    name: str, widths: Architecture, tmp_path: Path
) -> None:
    family, options = tiny.TOYS[name]
    folder = tiny.write_model(tmp_path / "dense", family, **options)
    stored, tokens = tiny.network_of(folder), tiny.random_tokens()
    order = tiny.random_order(stored.shape)
    network, dense = stored.sorted(order), tiny.reference(folder)
    whole = tiny.reference_logits(dense, tokens)
    tiny.assert_same(tiny.elastic_logits(network, network.shape.dense(), tokens), whole)
    tiny.mask_removed(dense, network.shape, widths, order)
    expected = tiny.reference_logits(dense, tokens)
    assert not torch.allclose(expected, whole, atol=0.05)
    tiny.assert_same(tiny.elastic_logits(network, widths, tokens), expected)
    state = network.sliced_state(widths)
    made = tiny.export(tmp_path / "made" / "model", tiny.reference(folder), widths, state=state)
    exported = tiny.exported(made)
    assert exported.config.model_type == (family if widths is PLAIN else f"prunecast_{family}")
    tiny.assert_same(tiny.reference_logits(exported, tokens), expected)
