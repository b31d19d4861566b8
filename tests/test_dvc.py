"""dvc.yaml: six stages, and no stage that could be cached while its code or its params change."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stages.config import choices
from stages.registry import Registry
from tests.house import HALL, ROOMS, ROOT, imported

DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = {name.replace("-", "_"): stage for name, stage in DVC["stages"].items()}
TRACKING = ROOT / "stages" / "tracking"
"""What MLflow is told decides no output: no stage depends on it, and an edit of it runs nothing again."""
ONLY_CHECKED = {"evaluate": {"search", "export"}}
"""Sections that a stage reads only to refuse bad input early: they decide nothing that it writes."""


def reached(start: Path, at_the_top: bool = False) -> set[Path]:
    """Every file of this project that running `start` imports, itself and packages' __init__ included.

    `at_the_top`: that starting it imports, whatever its functions import later.
    """
    seen: set[Path] = set()
    waiting = {start, start.parent / "__init__.py", ROOT / "stages" / "__init__.py"}
    while waiting:
        path = waiting.pop()
        seen.add(path)
        waiting |= {p for p in imported(path, at_the_top) | {path.parent / "__init__.py"} if p not in seen}
    return seen


def test_the_six_stages_and_nothing_else() -> None:
    assert list(STAGES) == ROOMS
    for room, stage in STAGES.items():
        assert stage["cmd"] == f"exec python -m stages.{room}"


@pytest.mark.parametrize("room", ROOMS)
def test_dependencies_cover_the_code_that_runs(room: str) -> None:
    dependencies = [ROOT / d for d in STAGES[room]["deps"]]
    uncovered = [
        str(path.relative_to(ROOT))
        for path in reached(ROOT / "stages" / room / "__main__.py")
        if not any(path == d or path.is_relative_to(d) for d in [*dependencies, TRACKING])
    ]
    assert not uncovered, f"stage {room} runs code that dvc.yaml does not list: {uncovered}"


REGISTRIES = {name: thing for name, thing in vars(choices).items() if isinstance(thing, Registry)}
RESOLVE = {
    "IMPORTANCES": {"evaluate", "search", "export"},
    "REPAIRS": {"evaluate", "search", "export"},
    "EXECUTORS": {"evaluate", "search", "export"},
    "SAMPLERS": {"search", "export"},
    "METRICS": set(ROOMS),
}
"""The stages whose code asks for ``REGISTRY[name]``, by the registry; export imports the search whole."""


def test_registries_are_resolved_by_these_stages() -> None:
    resolved = {
        name: {
            room
            for room in ROOMS
            if any(f"{name}[" in p.read_text() for p in reached(ROOT / "stages" / room / "__main__.py"))
        }
        for name in REGISTRIES
    }
    assert resolved == RESOLVE


@pytest.mark.parametrize("name", REGISTRIES)
def test_dependencies_cover_what_registries_name(name: str) -> None:
    """No import says so: a thing of ours is named as ``"module:attribute"`` and imported when asked for."""
    modules = {place.partition(":")[0] for place in REGISTRIES[name].places.values()}
    assert modules
    for room in RESOLVE[name]:
        dependencies = [ROOT / d for d in STAGES[room]["deps"]]
        for module in modules:
            start = ROOT / (module.replace(".", "/") + ".py")
            for path in reached(start):
                covered = any(path == d or path.is_relative_to(d) for d in [*dependencies, TRACKING])
                assert covered, f"stage {room} resolves {module}, which needs {path.relative_to(ROOT)}"


@pytest.mark.parametrize("room", ROOMS)
def test_params_cover_the_sections_that_are_read(room: str) -> None:
    """A section is read as `params.SECTION`, or a key of it, somewhere in the code that the stage runs."""
    used: set[str] = set()
    for path in reached(ROOT / "stages" / room / "__main__.py"):
        if path.is_relative_to(TRACKING):  # what MLflow is told decides nothing that a stage writes
            continue
        used |= set(re.findall(r"\bparams\.([a-z_]+(?:\.[a-z_]+)?)", path.read_text()))
    sections = set(yaml.safe_load((ROOT / "params.yaml").read_text()))
    listed = {*STAGES[room]["params"], *ONLY_CHECKED.get(room, set())}
    missing = {key for key in used if key.split(".")[0] in sections and not listed & {key, key.split(".")[0]}}
    assert not missing, f"stage {room} reads the sections {sorted(missing)}, which dvc.yaml does not list"


@pytest.mark.parametrize("room", ROOMS)
def test_dependencies_exist_or_are_outputs(room: str) -> None:
    outputs = {
        out if isinstance(out, str) else next(iter(out))
        for stage in STAGES.values()
        for out in [*stage["outs"], *stage.get("metrics", [])]
    }
    for dependency in STAGES[room]["deps"]:
        assert dependency in outputs or (ROOT / dependency).exists(), dependency


@pytest.mark.parametrize("room", ROOMS)
def test_a_door_is_light_and_knows_what_the_stage_reads(room: str) -> None:
    """It imports the standard library alone, and names the data that dvc.yaml lists."""
    code = (
        f"import sys, stages.{room}.__main__ as door; print(getattr(door, 'INPUTS', ())); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    inputs, modules = done.stdout.splitlines()
    listed = tuple(d.removeprefix("data/") for d in STAGES[room]["deps"] if d.startswith("data/"))
    assert inputs == str(listed)
    tops = {name.partition(".")[0] for name in modules.split()}
    heavy = {"argparse", "ctypes", "numpy", "pydantic", "torch", "yaml"} & tops
    assert not heavy, f"the door of {room} imports {heavy} before it answers signals"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_upstream_rooms_and_the_hall_only(room: str) -> None:
    trains = {"recovery"} if room in ("search", "export") else set()
    allowed = {*ROOMS[: ROOMS.index(room) + 1], *trains}
    for path in (ROOT / "stages" / room).rglob("*.py"):
        for other in imported(path):
            parts = other.relative_to(ROOT / "stages").parts
            assert len(parts) == 1 or parts[0] in {*allowed, *HALL}, f"{path.name} imports {other}"


def test_only_tracking_imports_mlflow() -> None:
    for path in (ROOT / "stages").rglob("*.py"):
        assert path.is_relative_to(TRACKING) or not re.search(
            r"^\s*(import|from) mlflow", path.read_text(), re.MULTILINE
        ), path


def test_a_record_does_not_know_who_tells_of_it() -> None:
    """What stages write is read back without tracking, and only tracking knows a tag's name."""
    for path in reached(ROOT / "stages" / "build_dataset" / "__main__.py"):
        assert not path.is_relative_to(TRACKING), path
    tag = re.compile(r"""["'](mlflow|prunecast\.(role|key|objective|design|model|architecture))\b""")
    for room in ROOMS:
        for path in (ROOT / "stages" / room).rglob("*.py"):
            assert not tag.search(path.read_text()), path


def test_sample_build_dataset_and_train_predictor_start_without_torch() -> None:
    for room in ("sample", "build_dataset", "train_predictor"):
        for path in reached(ROOT / "stages" / room / "__main__.py", at_the_top=True):
            assert not re.search(r"^(import|from) (torch|transformers)", path.read_text(), re.MULTILINE), path


def test_the_report_needs_no_model_and_tells_nobody() -> None:
    """`make report` reads files alone."""
    start = ROOT / "stages" / "export" / "report" / "__main__.py"
    assert not [path for path in reached(start) if path.is_relative_to(TRACKING)]
    heavy = {"torch", "transformers", "mlflow", "xgboost", "optuna", "datasets"}
    code = f"import sys, stages.export.report.__main__; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_a_kill_must_not_lose_persists() -> None:
    """DVC removes other outputs before it runs a stage."""
    persistent = {
        name
        for stage in STAGES.values()
        for out in [*stage["outs"], *stage.get("metrics", [])]
        if isinstance(out, dict)
        for name, options in out.items()
        if options.get("persist")
    }
    assert persistent == {
        "data/evaluate/journal.jsonl",
        "data/evaluate/conversations.json",
        "data/evaluate/importance.safetensors",
        "data/evaluate/curvature.json",
        "data/search/journal.jsonl",
        "data/search/studies.log",
        "data/export/gguf",
        "data/export/journal.jsonl",
        "data/export/metrics.json",
        "data/export/model",
        "data/export/pictures",
        "data/export/proof.json",
        "data/export/record.json",
        "data/export/report.html",
        "data/summary.json",
    }
