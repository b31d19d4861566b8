"""Loading: folders as transformers writes them, and never a pickle."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.evaluate.network.elastic import DenseNetwork
from stages.files import InputError
from tests import tiny
from tests.bombs import Bomb
from tests.conftest import TinyFolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that the test may change: an untied Qwen2, with biases."""
    return tiny.write_model(tmp_path / "model", "qwen2")


def change_weights(folder: Path, change: Any) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_a_folder_is_loaded_as_it_is(folder: Path) -> None:
    loaded, model = tiny.load(folder), tiny.reference(folder)
    assert loaded.state.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state[name], tensor) for name, tensor in model.state_dict().items())
    assert (loaded.name, loaded.folder, loaded.family.model_type) == (str(folder), folder, "qwen2")
    assert loaded.shape.total_parameters == model.num_parameters()
    assert loaded.tokenizer("héllo")["input_ids"] == tiny.byte_tokenizer()("héllo")["input_ids"]
    assert loaded.generation_config is not None
    assert loaded.generation_config.eos_token_id == 2


@pytest.mark.parametrize("name", tiny.VARIANTS)
def test_every_parameter_is_counted(name: str, tiny_folder: TinyFolder) -> None:
    variant = tiny.VARIANTS[name]
    folder = tiny_folder(variant.family, **variant.options)
    assert tiny.load(folder).shape.total_parameters == tiny.reference(folder).num_parameters()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_in_the_asked_dtype(folder: Path, dtype: torch.dtype) -> None:
    assert {tensor.dtype for tensor in tiny.load(folder, dtype).state.values()} == {dtype}


def test_a_half_precision_checkpoint_is_widened(folder: Path) -> None:
    change_weights(folder, lambda state: state.update({n: t.half() for n, t in state.items()}))
    assert {tensor.dtype for tensor in tiny.load(folder).state.values()} == {torch.float32}


def test_a_model_without_generation_config_will_do(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    assert tiny.load(folder).generation_config is None


def test_a_sharded_model_is_the_whole_model(folder: Path, tmp_path: Path) -> None:
    sharded = shutil.copytree(folder, tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    tiny.random_model("qwen2").save_pretrained(sharded, max_shard_size="40KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    whole, parts = tiny.load(folder), tiny.load(sharded)
    assert whole.state.keys() == parts.state.keys()
    assert all(torch.equal(whole.state[name], parts.state[name]) for name in whole.state)
    one = sorted(sharded.glob("*.safetensors"))[1]
    one.unlink()
    with pytest.raises(InputError, match=rf"lacks 1 of the \d+ files .* the first is {one.name}; fetch"):
        tiny.load(sharded)
    (sharded / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match=r"index\.json is damaged .*fetch"):
        tiny.load(sharded)


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
def test_weights_that_a_folder_holds_twice_are_read_once(folder: Path, tmp_path: Path, sharded: bool) -> None:
    twice = shutil.copytree(folder, tmp_path / "twice")
    if sharded:
        (twice / "model.safetensors").unlink()
        tiny.random_model("qwen2").save_pretrained(twice, max_shard_size="40KB")
    alone = tiny.load(twice)
    save_file({"layers.0.attention.wq.weight": torch.ones(2)}, twice / "consolidated.safetensors")
    found = tiny.load(twice)
    assert found.state.keys() == alone.state.keys()
    assert found.digest == alone.digest


def test_a_file_that_is_cut_short_is_named(folder: Path, tmp_path: Path) -> None:
    cut = shutil.copytree(folder, tmp_path / "cut")
    weights = cut / "model.safetensors"
    for size in (weights.stat().st_size - 10, 100, 0):
        weights.write_bytes(weights.read_bytes()[:size])
        with pytest.raises(
            InputError, match=rf"model\.safetensors is damaged.*\({size} bytes.*fetch or write it again"
        ):
            tiny.load(cut)


def test_a_pickle_is_never_read(folder: Path, tmp_path: Path) -> None:
    fired = tmp_path / "fired"
    pickle.loads(pickle.dumps(Bomb(fired)))
    assert fired.exists()  # the bomb works
    fired.unlink()
    for name in ("pytorch_model.bin", "model.pt", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Bomb(fired)))
    tiny.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no \*\.safetensors in model; .*save_pretrained"):
        tiny.load(folder)
    assert not fired.exists()


NEEDED = (
    *("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"),
    *(f"model.layers.3.self_attn.{p}_proj.weight" for p in "qkvo"),
    *(f"model.layers.2.mlp.{p}_proj.weight" for p in ("gate", "up", "down")),
    *("model.layers.1.input_layernorm.weight", "model.layers.1.post_attention_layernorm.weight"),
    *(f"model.layers.0.self_attn.{p}_proj.bias" for p in "qkv"),
)


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_tensor_is_named(folder: Path, name: str) -> None:
    change_weights(folder, lambda state: state.pop(name))
    with pytest.raises(InputError, match=f"lacks 1 tensors of the family qwen2, the first is {name};"):
        tiny.load(folder)


@pytest.mark.parametrize(
    ("family", "options", "name"),
    [
        ("qwen3", {}, "model.layers.0.self_attn.k_norm.weight"),
        ("llama", {"attention_bias": True}, "model.layers.0.self_attn.o_proj.bias"),
        ("llama", {"mlp_bias": True}, "model.layers.0.mlp.down_proj.bias"),
    ],
)
def test_a_missing_bias_or_norm_is_named(tmp_path: Path, family: str, options: Any, name: str) -> None:
    folder = tiny.write_model(tmp_path / "model", family, **options)
    change_weights(folder, lambda state: state.pop(name))
    with pytest.raises(InputError, match=f"lacks 1 tensors of the family {family}, the first is {name};"):
        tiny.load(folder)


def test_a_tied_model_needs_no_head(tiny_folder: TinyFolder) -> None:
    loaded = tiny.load(tiny_folder("llama", tie_word_embeddings=True))
    assert "lm_head.weight" not in loaded.state
    network = DenseNetwork(loaded, tiny.CPU)
    assert network.head is network.embedding


def test_another_family_is_refused(folder: Path) -> None:
    change_config(folder, model_type="gpt2")
    with pytest.raises(InputError, match="'gpt2'; supported families: gemma3_text, granite, llama, mistral"):
        tiny.load(folder)


def test_the_digest_is_of_what_decides_the_network(folder: Path) -> None:
    """The digest goes into every journal key: equal where the network is, different where it is not."""
    first = tiny.load(folder).digest
    (folder / "README.md").write_text("A card.")
    change_config(folder, transformers_version="0.0.1", use_cache=False, dtype="float16")
    assert tiny.load(folder).digest == first

    for changes in (
        {"rms_norm_eps": 1e-3},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"rope_parameters": tiny.YARN_ROPE},
    ):
        original = (folder / "config.json").read_text()
        change_config(folder, **changes)
        assert tiny.load(folder).digest != first, changes
        (folder / "config.json").write_text(original)

    change_weights(folder, lambda state: state["model.norm.weight"].add_(1e-3))
    assert tiny.load(folder).digest != first


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("smollm3", {"no_rope_layers": [0, 1, 1, 1]}),
        ("granite", tiny.GRANITE | {"residual_multiplier": 0.7}),
        ("granite", tiny.GRANITE | {"attention_multiplier": 0.3}),
        ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
        ("llama", {"rms_norm_eps": 1e-4}),
        ("mistral", {"sliding_window": 7}),
        ("llama", {"rope_parameters": tiny.YARN_ROPE}),
    ],
)
def test_whatever_the_block_recipe_says_is_in_the_digest(
    family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """The same weights in another network must not be taken for what was measured."""
    before = tiny.VARIANTS[family].options
    one, other = (
        tiny.load(tiny.write_model(tmp_path / name, family, **given))
        for name, given in (("before", before), ("after", options))
    )
    assert all(torch.equal(tensor, other.state[name]) for name, tensor in one.state.items())
    assert one.recipe != other.recipe
    assert one.digest != other.digest
