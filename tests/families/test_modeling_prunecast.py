"""An exported model behaves as a model of transformers: caches, padding, saving, training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassClassValidationError

from stages.architecture import Architecture
from stages.families import modeling_prunecast
from tests import tiny
from tests.small import REPOSITORY
from tests.tiny import HOLLOW, MIXED, assert_same, export, exported, greedy, masked, random_model


def tokens(rows: int = 2, length: int = 11, seed: int = 1) -> torch.Tensor:
    return tiny.random_tokens(rows, length, seed)


def logits(model: Any) -> torch.Tensor:
    return tiny.reference_logits(model, tokens())


def pruned(folder: Path, name: str = "llama", architecture: Architecture = HOLLOW, **options: Any) -> Any:
    """Of one of the tested variants, exported and loaded."""
    dense = random_model(tiny.EXPORTED[name].family, **tiny.EXPORTED[name].options)
    architecture = tiny.fitted(architecture, tiny.shape_of(dense))
    return exported(export(folder / "model", dense, architecture), **options)


LATER_GONE = [[2, 3, 64], [0, 0, 64], [2, 1, 64], [1, 3, 9]]
FIRST_KIND_GONE = [[0, 0, 64], [1, 3, 64], [2, 1, 64], [1, 3, 9]]
BOTH_FIRSTS_GONE = [[0, 0, 64], [0, 0, 64], [0, 0, 64], [1, 3, 9]]


@pytest.mark.parametrize("window_from", [1, 2])
@pytest.mark.parametrize("widths", [LATER_GONE, FIRST_KIND_GONE, BOTH_FIRSTS_GONE])
def test_full_and_sliding_layers_keep_their_own_cache_entries(
    tmp_path: Path, widths: list[list[int]], window_from: int
) -> None:
    dense = random_model("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=window_from)
    architecture = Architecture.from_json(widths)
    model = exported(export(tmp_path / "model", dense, architecture))
    reference = masked(dense, architecture)
    assert_same(logits(model), logits(reference))
    for implementation in (None, "static"):
        found = greedy(model, tokens(), cache_implementation=implementation)
        assert torch.equal(found, greedy(reference, tokens()))


@pytest.mark.parametrize("architecture", [MIXED, HOLLOW], ids=["mixed", "hollow"])
@pytest.mark.parametrize("name", tiny.EXPORTED)
def test_caches_change_nothing(tmp_path: Path, name: str, architecture: Architecture) -> None:
    model = pruned(tmp_path, name, architecture)
    without = greedy(model, tokens(), use_cache=False)
    assert len(set(without[0].tolist())) > 2, "the model repeats itself: a blind test"
    assert torch.equal(greedy(model, tokens()), without)
    assert torch.equal(greedy(model, tokens(), cache_implementation="static"), without)
    chunked = {"cache_implementation": "static", "prefill_chunk_size": 4, "disable_compile": True}
    assert torch.equal(greedy(model, tokens(), **chunked), without)
    assert torch.equal(greedy(model, tokens(), past_key_values=transformers.DynamicCache()), without)
    assert torch.equal(
        greedy(model, tokens(), num_beams=3), greedy(model, tokens(), num_beams=3, use_cache=False)
    )


def test_a_model_without_any_attention_generates(tmp_path: Path) -> None:
    model = pruned(tmp_path, architecture=Architecture.from_json([[0, 0, 64]] * 3 + [[0, 0, 0]]))
    assert torch.equal(greedy(model, tokens()), greedy(model, tokens(), use_cache=False))


def test_a_pipeline_writes_with_it(tmp_path: Path) -> None:
    tokenizer = tiny.byte_tokenizer()
    folder = export(tmp_path / "model", random_model("llama"), HOLLOW, tokenizer=tokenizer)
    write = transformers.pipeline("text-generation", model=str(folder), trust_remote_code=True)
    (found,) = write("a beginning", max_new_tokens=12, min_new_tokens=12, do_sample=False)
    ids = torch.tensor([tokenizer("a beginning")["input_ids"]])
    assert found["generated_text"] == f"a beginning{tokenizer.decode(greedy(exported(folder), ids)[0])}"


@pytest.mark.parametrize("architecture", [MIXED, HOLLOW], ids=["mixed", "hollow"])
def test_it_assists_the_dense_model(tmp_path: Path, architecture: Architecture) -> None:
    """It drafts what the dense model then accepts or not: the text is the dense model's own."""
    dense = random_model("llama")
    assistant = exported(export(tmp_path / "model", dense, architecture))
    alone = greedy(dense, tokens(1))
    assert torch.equal(greedy(dense, tokens(1), assistant_model=assistant), alone)


@pytest.mark.parametrize("name", tiny.EXPORTED)
def test_left_padding_changes_nothing(tmp_path: Path, name: str) -> None:
    model = pruned(tmp_path, name)
    long, short = tokens(1, 9), tokens(1, 4, seed=2)
    batch = torch.cat([long, torch.cat([torch.zeros(1, 5, dtype=torch.long), short], dim=1)])
    mask = (batch != 0).long()
    for cache in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        together = greedy(model, batch, attention_mask=mask, **cache)
        assert torch.equal(together[0], greedy(model, long)[0])
        assert torch.equal(together[1], greedy(model, short)[0])


@pytest.mark.parametrize("name", tiny.EXPORTED)
def test_bfloat16_rounds_and_nothing_more(tmp_path: Path, name: str) -> None:
    expected = logits(pruned(tmp_path, name))
    model = exported(tmp_path / "model", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    found = logits(model)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.05 * expected.norm()
    for cache in ({"use_cache": True}, {"use_cache": True, "cache_implementation": "static"}):
        written = model.generate(
            tokens(), attention_mask=torch.ones_like(tokens()), do_sample=False, min_new_tokens=12,
            max_new_tokens=12, output_logits=True, return_dict_in_generate=True, **cache,
        )  # fmt: skip
        whole = tiny.reference_logits(exported(tmp_path / "model"), written.sequences)[:, 10:-1]
        steps = torch.stack(written.logits, dim=1).float()
        assert (steps - whole).norm() < 0.05 * whole.norm()


@pytest.mark.parametrize("name", tiny.EXPORTED)
def test_attention_implementations_agree(tmp_path: Path, name: str) -> None:
    sdpa = pruned(tmp_path, name, attn_implementation="sdpa")
    eager = exported(tmp_path / "model", attn_implementation="eager")
    expected = logits(sdpa)
    assert_same(logits(eager), expected)
    sdpa.set_attn_implementation("eager")  # reaches the layers, too
    assert {layer.self_attn.config._attn_implementation for layer in sdpa.model.layers[1::2]} == {"eager"}
    assert_same(logits(sdpa), expected)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_saving_again_loses_nothing(tmp_path: Path, tied: bool) -> None:
    model = exported(export(tmp_path / "model", random_model("qwen3", tie_word_embeddings=tied), HOLLOW))
    model.save_pretrained(tmp_path / "again")
    again = exported(tmp_path / "again")
    assert torch.equal(logits(again), logits(model))
    assert (tmp_path / "again" / "modeling_prunecast.py").exists()
    first, second = (json.loads((tmp_path / f / "config.json").read_text()) for f in ("model", "again"))
    assert second == first


def run_elsewhere(program: str, folder: Path, **settings: str) -> None:
    """Run a program on a folder in a fresh process and another directory."""
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    own |= {"HF_HOME": str(folder.parent / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        cwd=elsewhere, env=own | settings, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_fresh_process_elsewhere_loads_it(tmp_path: Path) -> None:
    folder = export(tmp_path / "model", random_model("llama", tie_word_embeddings=True), HOLLOW)
    program = (
        "import sys, torch\n"
        "from transformers import AutoModel, AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "assert 'stages' not in sys.modules\n"
        "assert type(model).__module__.startswith('transformers_modules.')\n"
        "ids = torch.arange(3, 14)[None]\n"
        "body = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "assert torch.equal(model.lm_head(body(ids).last_hidden_state), model(ids).logits)\n"
        "torch.save(model(ids).logits.detach(), 'logits.pt')\n"
    )
    run_elsewhere(program, folder)
    dense = masked(random_model("llama", tie_word_embeddings=True), HOLLOW)
    expected = tiny.reference_logits(dense, torch.arange(3, 14)[None])
    assert_same(torch.load(tmp_path / "elsewhere" / "logits.pt"), expected)


def test_registered_classes_load_it_without_remote_code(tmp_path: Path) -> None:
    """The module alone, as it lies in an installed package: nothing else of Prunecast is imported."""
    dense = random_model("mistral")
    folder = export(tmp_path / "model", dense, MIXED, tokenizer=tiny.byte_tokenizer())
    (folder / "modeling_prunecast.py").write_text("raise SystemExit('remote code was run')")
    program = (
        "import sys\n"
        "from stages.families import register\n"
        "assert 'torch' not in sys.modules\n"
        "import torch\n"
        "register()\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "assert type(model).__module__ == 'stages.families.modeling_prunecast'\n"
        "ids = torch.arange(3, 14)[None]\n"
        "torch.save(model(ids).logits.detach(), 'logits.pt')\n"
        "assert AutoTokenizer.from_pretrained(sys.argv[1])('a')['input_ids']\n"
        "model.save_pretrained('again')\n"
    )
    run_elsewhere(program, folder, PYTHONPATH=str(REPOSITORY))
    expected = tiny.reference_logits(masked(dense, MIXED), torch.arange(3, 14)[None])
    assert_same(torch.load(tmp_path / "elsewhere" / "logits.pt"), expected)
    again = exported(tmp_path / "elsewhere" / "again")
    assert_same(tiny.reference_logits(again, torch.arange(3, 14)[None]), expected)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"num_attention_heads": 3}, "3 query heads and 2 key-value heads"),
        ({"intermediate_size": 0}, "MLP of 0 channels"),
        ({"skip": ["norm"]}, r"skips \['norm'\]"),
    ],
)
def test_a_config_with_impossible_widths_is_refused(widths: dict[str, Any], message: str) -> None:
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        modeling_prunecast.PrunecastLlamaConfig(
            num_attention_heads=6, num_key_value_heads=2, num_hidden_layers=4, per_layer_config={"1": widths}
        )


@pytest.mark.parametrize("name", tiny.EXPORTED)
def test_it_trains_with_gradient_checkpointing(tmp_path: Path, name: str) -> None:
    model = pruned(tmp_path, name).train()
    plain = model(tokens(), labels=tokens())
    plain.loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert all(grad.abs().sum() > 0 for name, grad in expected.items() if "k_proj.bias" not in name)
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(tokens(), labels=tokens()).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def train(model: Any, folder: Path, steps: int, rate: float) -> None:
    """With transformers' own Trainer, which saves a checkpoint after the last step."""
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, learning_rate=rate, use_cpu=True, report_to=[],
        per_device_train_batch_size=2, gradient_checkpointing=True, save_steps=steps, disable_tqdm=True,
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in tokens(4)]
    transformers.Trainer(model=model, args=arguments, train_dataset=rows).train()
    model.eval()


@pytest.mark.parametrize("name", tiny.EXPORTED)
def test_the_trainer_trains_and_saves_it(tmp_path: Path, name: str) -> None:
    model = pruned(tmp_path, name)
    before = {key: parameter.clone() for key, parameter in model.named_parameters()}
    train(model, tmp_path / "run", steps=1, rate=0.01)
    for key, parameter in model.named_parameters():
        assert "k_proj.bias" in key or not torch.equal(parameter, before[key]), key
    assert_same(logits(exported(tmp_path / "run" / "checkpoint-1")), logits(model))


@pytest.mark.parametrize("name", tiny.EXPORTED)
def test_the_trainer_trains_and_saves_a_lora(tmp_path: Path, name: str) -> None:
    settings = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = peft.get_peft_model(pruned(tmp_path, name), settings)
    before = logits(model)
    train(model, tmp_path / "run", steps=3, rate=0.05)
    trained = logits(model)
    assert not torch.allclose(trained, before)
    adapted = peft.PeftModel.from_pretrained(exported(tmp_path / "model"), tmp_path / "run" / "checkpoint-3")
    assert_same(logits(adapted), trained)
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert_same(logits(exported(tmp_path / "merged")), trained)
