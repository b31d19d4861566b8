"""Registries: ours are imported when asked for, an extension's stand beside them, and no name twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stages.config import choices, extensions
from stages.files import InputError
from stages.registry import Registry

OURS = {"square root": "math:sqrt", "nothing": "nowhere.at.all:nothing"}


def test_ours_are_known_by_name_and_imported_when_asked_for() -> None:
    import math

    registry = Registry("some.key", OURS)
    assert registry.names == ["square root", "nothing"]
    assert registry["square root"] is math.sqrt
    with pytest.raises(ModuleNotFoundError):
        registry["nothing"]


def test_a_name_is_entered_once() -> None:
    registry = Registry("some.key", OURS)
    thing = object()
    registry.add("mine", thing)
    assert registry["mine"] is thing
    assert registry.names == ["square root", "nothing", "mine"]
    for name in ("mine", "nothing"):
        with pytest.raises(ValueError, match=f"some.key has a '{name}' already; give yours another name"):
            registry.add(name, thing)


def test_an_unknown_name_is_told_what_there_is() -> None:
    registry = Registry("some.key", OURS)
    with pytest.raises(KeyError, match=r"some\.key has no 'cube root'; there are square root, nothing"):
        registry["cube root"]


REGISTRIES = [choices.IMPORTANCES, choices.REPAIRS, choices.EXECUTORS, choices.SAMPLERS, choices.METRICS]


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.key)
def test_every_one_of_ours_is_where_it_is_said_to_be(registry: Registry) -> None:
    for name in registry.names:
        assert registry[name] is not None


def test_names_cost_no_import_of_torch() -> None:
    code = (
        "import sys; from stages.config.params import load_params; load_params(); "
        "print('torch' in sys.modules, 'optuna' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"


def test_an_extension_runs_once_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("from pathlib import Path\nwith Path('runs').open('a') as f: f.write('x')\n")
    extensions.load(["mine.py"])
    extensions.load([str(tmp_path / "mine.py"), "./mine.py"])
    assert Path("runs").read_text() == "x"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gone.py", None, r"extensions names 'gone.py', which is no Python file; expected a path from"),
        ("mine.txt", "x = 1", r"extensions names 'mine.txt', which is no Python file"),
        ("bad.py", "import nothing_of_the_kind", r"the extension 'bad.py' fails: ModuleNotFoundError"),
        ("worse.py", "def", r"the extension 'worse.py' fails: SyntaxError"),
    ],
)
def test_an_extension_that_cannot_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str | None, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_text(content)
    with pytest.raises(InputError, match=words):
        extensions.load([name])
