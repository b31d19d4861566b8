"""The recipes of stages/README.md, followed literally: things from files outside stages/ run the pipeline.

One run of the tiny pipeline carries a toy of each kind. To add one: its file in tests/recipes, an entry in
`TOYS`, what params name it by in `params_of`, and a test of what it left behind.
"""

from __future__ import annotations

import ast
import filecmp
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from stages.architecture import Architecture
from tests import tiny
from tests.test_pipeline import Repository

RECIPES = Path(__file__).parent / "recipes"
STAGES = ("sample", "evaluate", "build_dataset", "train_predictor", "search", "export")
pytestmark = pytest.mark.timeout(900)


class Toy(NamedTuple):
    """A file of tests/recipes, and the most lines of code that it may need."""

    file: str
    lines: int


TOYS = [Toy("granite.py", 60)]
"""What the pipeline runs with."""
ALSO = [Toy("smollm3.py", 60)]
"""Others, of which laws are tested."""


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


@pytest.mark.parametrize("toy", TOYS + ALSO, ids=lambda toy: toy.file)
def test_a_recipe_is_short(toy: Toy) -> None:
    assert 5 < lines_of_code(RECIPES / toy.file) <= toy.lines


# --- the pipeline ---------------------------------------------------------------------------------


def params_of(repository: Repository) -> dict[str, Any]:
    """The params of the tiny pipeline, with every toy named."""
    params = repository.params()
    params["extensions"] = [f"ours/{toy.file}" for toy in TOYS]
    return params


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Repository, dict[str, str]]:
    """A repository in which all stages ran, and what each printed."""
    model = tiny.write_model(tmp_path_factory.mktemp("model") / "granite", "granite", **tiny.GRANITE)
    repository = Repository(tmp_path_factory.mktemp("recipes"), model)
    (repository.path / "ours").mkdir()
    for toy in TOYS:
        shutil.copy(RECIPES / toy.file, repository.path / "ours")
    repository.write_params(params_of(repository))
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
    repository, printed = run
    assert repository.json("sample/architectures.json")["shape"]["family"] == "granite"
    reason = "granite has the scales embedding_scale 3, residual_scale 0.6, attention_scale 0.2"
    assert f"GGUF will not be written: {reason}" in printed["sample"]
    assert f"No file was written: {reason}" in (repository.path / "data/export/gguf/README.md").read_text()
    folder = repository.path / "data" / "export" / "model"
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "prunecast_granite"
    assert {name: config[name] for name in tiny.GRANITE} == tiny.GRANITE
    final = repository.json("export/metrics.json")["contenders"]
    model = tiny.exported(folder)
    assert sum(p.numel() for p in model.parameters()) == final["winner"]["parameters"]


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
