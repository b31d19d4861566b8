"""Pruned models of any family of transformers: under other names, loaded again, and with nothing left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from stages.export.benchmark.memory import peak_memory
from stages.families import Family, register, usual_recipe
from stages.families import modeling_prunecast as modeling
from stages.families.pruned import pruned_config, pruned_model
from tests import tiny
from tests.tiny import HOLLOW

SETTINGS: dict[str, Any] = {
    "hidden_size": tiny.HIDDEN,
    "num_hidden_layers": tiny.LAYERS,
    "num_attention_heads": tiny.GROUPS * tiny.HEADS,
    "num_key_value_heads": tiny.GROUPS,
    "head_dim": tiny.HEAD_DIM,
    "intermediate_size": tiny.CHANNELS,
    "vocab_size": tiny.VOCABULARY,
    "pad_token_id": 0,
    "hidden_act": "silu",
}
APERTUS = Family(
    "apertus", usual_recipe, attention_norm="attention_layernorm", mlp_norm="feedforward_layernorm"
)
"""Its layers name their norms otherwise than most; that its MLP has no gate does not matter here."""


def test_sublayers_go_under_the_names_that_the_family_gives_them(tmp_path: Path) -> None:
    config = pruned_config(APERTUS, SETTINGS, HOLLOW.widths)
    model = modeling.pruned_classes("apertus").causal_lm(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    left = {
        name.split(".", 2)[2]: {part.split(".")[0] for part, _ in layer.named_parameters()}
        for name, layer in model.named_modules()
        if name.count(".") == 2 and name.startswith("model.layers.")
    }
    both = {"self_attn", "attention_layernorm", "mlp", "feedforward_layernorm"}
    assert left == {"0": {"mlp", "feedforward_layernorm"}, "1": both, "2": set(), "3": both}
    expected = tiny.reference_logits(model, tiny.random_tokens())
    model.save_pretrained(tmp_path / "model")
    again = tiny.exported(tmp_path / "model")
    assert torch.equal(tiny.reference_logits(again, tiny.random_tokens()), expected)
    layer = again.model.layers[0]
    x = torch.randn(1, 3, tiny.HIDDEN)
    turn = again.model.rotary_emb(x, torch.arange(3)[None])
    with torch.inference_mode():
        mlp = layer.mlp(layer.feedforward_layernorm(x))
        torch.testing.assert_close(layer(x, position_embeddings=turn), x + mlp)


def test_usual_names_are_not_written() -> None:
    """So that a configuration of yesterday is today's."""
    usual = pruned_config(Family("llama", usual_recipe), SETTINGS, HOLLOW.widths)
    assert "sublayers" not in usual.to_dict()
    assert pruned_config(APERTUS, SETTINGS, HOLLOW.widths).sublayers == APERTUS.sublayers


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen2", "qwen3", "granite", "olmo2", "phi3", "gemma2"]
)
def test_at_full_width_it_is_the_stock_model(family: str) -> None:
    """Whatever a layer is made of: the builder takes the family's own."""
    torch.manual_seed(0)
    stock = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SETTINGS)).eval()
    dense = tiny.shape_of(tiny.random_model("llama")).dense()
    model = pruned_model(Family(family, usual_recipe), SETTINGS, dense.widths)
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in stock.named_parameters()
    }
    built = modeling.pruned_classes(family).causal_lm(model.config).eval()
    built.load_state_dict(stock.state_dict())
    tokens = tiny.random_tokens()
    assert torch.equal(tiny.reference_logits(built, tokens), tiny.reference_logits(stock, tokens))


def test_classes_are_found_by_name_and_once() -> None:
    classes = modeling.pruned_classes("gemma3_text")
    assert classes.causal_lm is modeling.PrunecastGemma3ForCausalLM
    assert classes.config is modeling.PrunecastGemma3TextConfig
    assert classes.auto_map["AutoModel"] == "modeling_prunecast.PrunecastGemma3TextModel"
    for name in ("PrunecastNoneForCausalLM", "PrunecastAutoModel", "Nothing"):
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
            getattr(modeling, name)


@pytest.mark.usefixtures("toy_families")
def test_families_of_extensions_are_registered_too(tmp_path: Path) -> None:
    """In this process by their name, and in one that loads no extension by their folder."""
    folder = tiny.export(tmp_path / "model", tiny.random_model("seed_oss"), tiny.MIXED)
    (folder / "modeling_prunecast.py").write_text("raise SystemExit('remote code was run')")
    register()
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model) is modeling.PrunecastSeedOssForCausalLM
    assert peak_memory(folder, threads=1, prompt=4, continuation=2) > 0
