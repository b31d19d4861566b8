"""The latency table: what it recovers from a known law, what it times, and how it is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from stages.architecture import Architecture, Kind, LayerWidth, ModelShape
from stages.config.budget import Latency
from stages.export.weights import huggingface
from stages.families import register
from stages.files import InputError
from stages.sample import latency, timing
from stages.sample.latency import LatencyTable
from stages.sample.timing import PHASES, Times
from tests import tiny
from tests.small import SMOLLM2, budget_of

WIDE = ModelShape("llama", 12, 64, 8, 4, 8, 512, 100, tied_embeddings=True)
SECTION = Latency(device="cpu", threads=1, prompt=8, continuation=3, rounds=3)
BUDGET = budget_of(latency=SECTION)


def law(phase: str, width: LayerWidth) -> float:
    """Milliseconds of a layer: rises linearly with groups, heads and channels."""
    scale = {"prefill_ms": 1.0, "decode_ms": 0.03}[phase]
    g, h, c = width
    return scale * ((0.4 + 0.3 * g * h + 0.2 * g if g * h else 0) + 0.01 * c)


@pytest.fixture
def by_law(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Models are not timed: they take what the law says; how often that was asked."""
    asked: list[int] = []

    def models(shape: ModelShape, widths: Sequence[Sequence[LayerWidth]], *_: str) -> list[Any]:
        return list(widths)

    def times(models: Sequence[Sequence[LayerWidth]], *_: Any) -> list[Times]:
        """The machine runs slower and slower; it slows all models alike."""
        asked.append(len(models))
        rounds = [1.0, 1.1, 1.3]
        return [
            Times(*([slow * (5 + sum(law(phase, w) for w in layers)) for slow in rounds] for phase in PHASES))
            for layers in models
        ]

    monkeypatch.setattr(timing, "random_models", models)
    monkeypatch.setattr(timing, "times", times)
    return asked


@pytest.mark.parametrize("shape", [SMOLLM2, WIDE, replace(WIDE, kv_groups=32, heads_per_group=1)])
def test_a_table_recovers_a_linear_law(shape: ModelShape, by_law: list[int]) -> None:
    table = latency.measure(shape, BUDGET, 32, {})
    assert by_law[0] <= 26
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        architecture = tiny.random_architecture(shape, generator)
        for phase in PHASES:
            expected = 5 + sum(law(phase, width) for width in architecture.widths)
            assert table.forecast(phase, architecture) == pytest.approx(1.1 * expected)


@settings(deadline=None, max_examples=60)
@given(
    values=st.dictionaries(
        st.tuples(st.integers(0, 4), st.integers(0, 4)), st.floats(-1, 1), min_size=1, max_size=12
    )
)
def test_what_is_measured_is_made_to_rise_and_left_alone_where_it_does(
    values: dict[tuple[int, ...], float],
) -> None:
    found = latency._monotone(values)
    for one, other in [(a, b) for a in values for b in values if all(x <= y for x, y in zip(a, b))]:  # noqa: B905
        assert found[one] <= found[other] + 1e-12
    again = latency._monotone(found)
    assert again == pytest.approx(found)
    assert min(values.values()) - 1e-12 <= min(found.values()) <= max(found.values()) <= max(values.values())


def test_a_table_is_measured_once_a_setting_and_kept(
    by_law: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNECAST_CACHE", str(tmp_path))
    first = latency.table_of(WIDE, BUDGET, 32)
    assert latency.table_of(WIDE, BUDGET, 32) == first
    assert latency.table_of(WIDE, BUDGET.model_copy(update={"prefill_ms": 7.0}), 32) == first
    assert len(by_law) == 1
    latency.table_of(WIDE, BUDGET, 32, again=True)
    longer = SECTION.model_copy(update={"prompt": 9})
    latency.table_of(WIDE, BUDGET.model_copy(update={"latency": longer}), 32)
    latency.table_of(replace(WIDE, hidden=128), BUDGET, 32)
    assert len(by_law) == 4
    assert len(list((tmp_path / "latency").iterdir())) == 3
    assert LatencyTable.from_json(json.loads(json.dumps(first.to_json()))) == first


def test_a_damaged_table_is_measured_again(
    by_law: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRUNECAST_CACHE", str(tmp_path))
    first = latency.table_of(WIDE, BUDGET, 32)
    (path,) = (tmp_path / "latency").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"1", b"2", 1))
    capsys.readouterr()
    assert latency.table_of(WIDE, BUDGET, 32) == first
    assert "computed again" in capsys.readouterr().out
    assert path.read_bytes() == whole


def test_a_table_that_cannot_be_kept_is_done_without(
    by_law: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRUNECAST_CACHE", str(tmp_path / "file"))
    assert latency.table_of(WIDE, BUDGET, 32).sites
    assert "PRUNECAST_CACHE" in capsys.readouterr().out


class Recorder:
    """A model that says when it was run, on how many tokens."""

    def __init__(self, name: str, log: list[tuple[str, int]]) -> None:
        self.name, self.log = name, log

    def __call__(self, tokens: torch.Tensor, **_: Any) -> Any:
        self.log.append((self.name, tokens.shape[1]))

        class Out:
            past_key_values = None

        return Out


def test_models_take_turns_and_the_first_turn_does_not_count() -> None:
    log: list[tuple[str, int]] = []
    before = torch.get_num_threads()
    found = timing.times([Recorder("a", log), Recorder("b", log)], 50, SECTION, "test")
    turn = [(name, length) for name in "ab" for length in (8, 1, 1, 1)]
    assert log == turn * 4
    assert [len(t.prefill_ms) for t in found] == [len(t.decode_ms) for t in found] == [3, 3]
    assert torch.get_num_threads() == before


def test_no_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"budget\.latency\.device is 'cuda', but PyTorch finds no GPU"):
        timing.times([], 50, SECTION.model_copy(update={"device": "cuda"}), "test")


@pytest.mark.parametrize(
    "variant",
    [
        "llama-biased",
        "llama-mha",
        "mistral",
        "qwen2",
        "qwen2-tied-mha",
        "qwen3",
        "gemma3",
        "olmo2",
        "olmo3-tied",
    ],
)
def test_the_models_that_are_timed_are_the_exported_ones(variant: str, tmp_path: Path) -> None:
    """Their weights, exported and loaded again, compute the same."""
    family, options = tiny.VARIANTS[variant]
    dense = tiny.random_model(family, **options)
    shape = tiny.shape_of(dense)
    architecture = tiny.fitted(tiny.MIXED, shape)
    (model, _) = timing.random_models(shape, [architecture.widths, shape.dense().widths], "float32", "cpu")
    expected = architecture.kept_parameters(shape) + shape.total_parameters - shape.decoder_parameters
    assert sum(p.numel() for p in model.parameters()) == expected
    state = {
        n: t for n, t in model.state_dict().items() if n != "lm_head.weight" or not shape.tied_embeddings
    }
    dense.config.sliding_window = getattr(model.config, "sliding_window", None)
    for key in ("rms_norm_eps", "rope_parameters", "layer_types", "query_pre_attn_scalar"):
        if hasattr(model.config, key):
            setattr(dense.config, key, getattr(model.config, key))
    folder = tmp_path / "model"
    huggingface.write_folder(folder, state, dense.config, architecture, shape, None, None, torch.float32)
    register()
    exported = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = tiny.random_tokens()
    tiny.assert_same(tiny.reference_logits(model, tokens), tiny.reference_logits(exported, tokens))


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "olmo3"])
def test_timing_runs_them_all(family: str) -> None:
    """Dropped sublayers too, with a cache: a real measurement of a tiny shape."""
    shape = tiny.shape_of(tiny.random_model(family))
    table = latency.measure(shape, BUDGET, 16, {})
    for phase in PHASES:
        assert table.forecast(phase, shape.dense()) > 0
        assert table.forecast(phase, Architecture((LayerWidth(1, 1, 16),) * shape.layers)) > 0
    assert set(table.sites[Kind.MLP]) == {(0,), (16,), (32,), (48,), (64,)}
