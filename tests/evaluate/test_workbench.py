"""The workbench goes on from what was measured, or from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from stages.config.params import ModelSection
from stages.evaluate.network import checkpoint
from stages.evaluate.results import context
from stages.evaluate.results.context import Context
from stages.evaluate.workbench import open_workbench
from stages.files import InputError
from tests import tiny
from tests.small import COMMITTED


def test_weights_that_were_replaced_are_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNECAST_CACHE", str(tmp_path / "cache"))
    folder = tiny.write_model(tmp_path / "model", "llama")
    measured = Context(
        "c0ffee", {"weights": tiny.load(folder).digest, "measurement": {"question_formats": []}}
    )
    context.write(tmp_path / "context.json", measured)
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"][0] += 1e-3
    save_file(state, folder / "model.safetensors", {"format": "pt"})

    def read(*_: Any) -> None:
        pytest.fail("weights or corpora were read")

    monkeypatch.setattr(checkpoint, "read_tensors", read)
    monkeypatch.setattr("stages.evaluate.workbench.load_texts", read)
    params = COMMITTED.model_copy(
        update={"model": ModelSection(source=str(folder), revision=None, trust_remote_code=False)}
    )
    with pytest.raises(InputError, match=r"holds other weights than .*context\.json was measured on"):
        open_workbench(params, tmp_path, measured=tmp_path / "context.json")
