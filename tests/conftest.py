"""For all tests: nothing is fetched, nothing of the user's is touched, and one thread is enough."""

from __future__ import annotations

import atexit
import json
import os
import runpy
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# transformers, torch and Triton read these when they are imported.
_MODULES = tempfile.mkdtemp(prefix="prunecast-test-modules-")
atexit.register(shutil.rmtree, _MODULES, ignore_errors=True)
os.environ["HF_MODULES_CACHE"] = _MODULES
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # the GPU's kernels, where there is no GPU

LONGEST = ("test_faults.py", "test_pipeline.py", "test_recipes.py", "test_ray_executor.py")
"""Files that take minutes: they run first, so that no other process of pytest-xdist waits for them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


TinyFolder = Callable[..., Path]
TOY_FAMILIES = [Path(__file__).parent / "recipes" / "seed_oss.py"]


@pytest.fixture
def toy_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """The families of tests/recipes are entered as their files do it, and gone after the test."""
    from stages.families import FAMILIES

    monkeypatch.setattr(FAMILIES, "_things", dict(FAMILIES._things))
    for file in TOY_FAMILIES:
        runpy.run_path(str(file))


@pytest.fixture
def own_metrics(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test enters into the registry of metrics, by an extension or not, is forgotten after it."""
    from stages.config.choices import METRICS
    from stages.metrics.registered import metric_of

    monkeypatch.setattr(METRICS, "_things", dict(METRICS._things))
    before = set(sys.modules)
    yield
    metric_of.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith("prunecast_extension_"):
            del sys.modules[name]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> TinyFolder:
    """Folders of tiny random models: `tiny_folder("llama", seed=0, attention_bias=True)`.

    Options are those of the family's configuration. The same call gives the same folder; do not
    change it, use `tiny.write_model` for a folder of your own.
    """
    from tests import tiny

    made: dict[str, Path] = {}

    def folder(family: str = "llama", seed: int = 0, **options: Any) -> Path:
        key = json.dumps([family, seed, options], sort_keys=True)
        if key not in made:
            made[key] = tiny.write_model(tmp_path_factory.mktemp(family), family, seed, **options)
        return made[key]

    return folder
