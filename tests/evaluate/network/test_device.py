"""The device that a run takes, and what a GPU needs."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import pytest
import torch

from stages.config.params import Evaluate
from stages.evaluate.network import device as device_module
from stages.evaluate.network.device import device_and_dtype
from stages.files import InputError
from tests.small import COMMITTED


def asking_for(device: str, dtype: str = "auto") -> Evaluate:
    return COMMITTED.evaluate.model_copy(update={"device": device, "dtype": dtype})


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """PyTorch finds a GPU that has bfloat16; Triton, a compiler and headers are there."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(device_module, "find_spec", lambda name: object())
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda name, scheme: str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    return monkeypatch


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_is_used_in_bfloat16(gpu: pytest.MonkeyPatch, device: str) -> None:
    assert device_and_dtype(asking_for(device)) == (torch.device("cuda"), torch.bfloat16)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_and_dtype(asking_for("auto")) == (torch.device("cpu"), torch.float32)
    with pytest.raises(InputError, match=r"evaluate\.device is 'cuda', but PyTorch finds no GPU"):
        device_and_dtype(asking_for("cuda"))


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_without_triton(gpu: pytest.MonkeyPatch, device: str) -> None:
    gpu.setattr(device_module, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"triton, which is not installed: .* or set evaluate\.device to cpu"
    ):
        device_and_dtype(asking_for(device))
    assert device_and_dtype(asking_for("cpu")) == (torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(("named", "sought"), [(None, "'gcc' and 'clang'"), ("mycc", "'mycc'"), ("", "''")])
def test_a_gpu_without_a_c_compiler(gpu: pytest.MonkeyPatch, named: str | None, sought: str) -> None:
    if named is not None:
        gpu.setenv("CC", named)
    gpu.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=f"C compiler, and {sought} cannot be found"):
        device_and_dtype(asking_for("auto"))


def test_a_gpu_without_pythons_headers(gpu: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "Python.h").unlink()
    with pytest.raises(InputError, match=r"Python\.h is not there: install python3-dev"):
        device_and_dtype(asking_for("auto"))


def test_a_gpu_without_bfloat16(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert device_and_dtype(asking_for("auto")) == (torch.device("cuda"), torch.float32)
    with pytest.raises(InputError, match=r"evaluate\.dtype is 'bfloat16', which Tesla T4 does not have"):
        device_and_dtype(asking_for("auto", "bfloat16"))
