"""The plan as it is asked for: models that are not there, GPUs by name, and the error for a wrong one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from stages.files import InputError
from stages.plan import machines
from stages.plan.plan import main, model_of
from tests.config.test_profiles import COMMITTED, PAPER
from tests.sample.test_feasibility import PUBLISHED, published
from tests.small import LLAMA2_7B, REPOSITORY, SMOLLM2


def plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["plan", *arguments])
    main()
    return capsys.readouterr().out


def test_the_paper_can_be_planned_without_its_model_and_texts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = plan(monkeypatch, capsys, "--params", str(COMMITTED["paper"]), "--gpu", "a100 80gb")
    assert "meta-llama/Llama-2-7b-hf, 6.74 billion parameters, 32 layers" in out
    assert "on A100 80GB: 312 TFLOP/s" in out
    (pairs,) = [line for line in out.split("\n") if "measure pairs" in line]
    assert pairs.split()[3] == "528"
    assert "tight" not in out
    assert ": tight; lower evaluate.prefix_cache_mb" in plan(
        monkeypatch, capsys, "--params", str(COMMITTED["paper"]), "--gpu", "RTX 4090"
    )


def test_shapes_come_from_configurations(tmp_path: Path):
    assert model_of(PAPER.model, None).shape == LLAMA2_7B
    assert LLAMA2_7B.total_parameters == 6_738_415_616  # as its model card's safetensors say
    other = {"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9}
    other |= {"num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152}
    (tmp_path / "config.json").write_text(json.dumps(other | {"tie_word_embeddings": True}))
    for path in (tmp_path, tmp_path / "config.json"):
        assert model_of(PAPER.model, path).shape == SMOLLM2
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"is not a readable config\.json"):
        model_of(PAPER.model, tmp_path)


def test_an_unknown_gpu_is_told_with_those_that_are_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(InputError, match="no GPU 'H900' is known; there are: A100 40GB, "):
        plan(monkeypatch, capsys, "--gpu", "H900")


def test_a_machine_is_as_fast_as_it_is_said_to_be():
    """Two measured widths, and another between them; a thousand small layers take 0.6 s to launch."""
    for hidden, fraction in ((64, 0.40), (576, 0.40), (4096, 0.56), (8192, 0.56), (1536, 0.48)):
        gpu = machines.named("h100", hidden)
        assert gpu.seconds(989e12 * fraction, 0, 0, 0) == pytest.approx(1, rel=0.01)
    assert gpu.seconds(0, 0, 17e12, 1000) == pytest.approx(1 + 0.6)


def test_this_cpu_is_measured():
    cpu = machines.named("cpu", 576)
    assert 1e8 < cpu.flops64 < 1.5 * cpu.flops
    assert cpu.flops < 1e14


@pytest.mark.parametrize("path", ["~nobody-is-called-so/config.json", "x" * 5000, "nul\0"])
def test_a_configuration_that_cannot_be_anywhere_is_told(path: str):
    with pytest.raises(InputError, match=r"^--config .* cannot be looked for"):
        model_of(PAPER.model, Path(path))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_are_planned_with_the_default_params(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(REPOSITORY)
    (tmp_path / "config.json").write_text(json.dumps(published(name)))
    out = plan(monkeypatch, capsys, "--config", str(tmp_path), "--gpu", "H100", "--no-count")
    assert "measure pairs" in out
    assert "together" in out
