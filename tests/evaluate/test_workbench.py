"""The device that a run takes, and what a GPU needs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from stages import params
from stages.evaluate import workbench
from stages.files import InputError
from stages.params import Params

ROOT = Path(__file__).parents[2]


def asking_for(device: str) -> Params:
    given = params.load(ROOT / "params.yaml")
    return given.model_copy(update={"evaluate": given.evaluate.model_copy(update={"device": device})})


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """PyTorch finds a GPU; Triton and a compiler are there."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(workbench, "find_spec", lambda name: object())
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    return monkeypatch


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_is_used_in_bfloat16(gpu: pytest.MonkeyPatch, device: str) -> None:
    assert workbench.device_and_dtype(asking_for(device)) == (torch.device("cuda"), torch.bfloat16)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert workbench.device_and_dtype(asking_for("auto")) == (torch.device("cpu"), torch.float32)
    with pytest.raises(InputError, match=r"evaluate\.device is 'cuda', but PyTorch finds no GPU"):
        workbench.device_and_dtype(asking_for("cuda"))


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_without_triton(gpu: pytest.MonkeyPatch, device: str) -> None:
    gpu.setattr(workbench, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"triton, which is not installed: .* or set evaluate\.device to cpu"
    ):
        workbench.device_and_dtype(asking_for(device))
    assert workbench.device_and_dtype(asking_for("cpu")) == (torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(("named", "sought"), [(None, "gcc and clang"), ("mycc", "mycc")])
def test_a_gpu_without_a_c_compiler(gpu: pytest.MonkeyPatch, named: str | None, sought: str) -> None:
    if named:
        gpu.setenv("CC", named)
    gpu.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=f"C compiler, and {sought} cannot be found"):
        workbench.device_and_dtype(asking_for("auto"))
