"""A GGUF file becomes a folder once: the whole model, exactly; and a damaged folder is made anew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from stages.config.params import ModelSection
from stages.evaluate.network import checkpoint, gguf_source
from stages.evaluate.network.checkpoint import Checkpoint
from stages.evaluate.network.elastic import DenseNetwork
from stages.files import InputError
from tests import ggufs, tiny


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the cache keeps folders."""
    monkeypatch.setenv("PRUNECAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def load(path: Path) -> Checkpoint:
    return checkpoint.load(ModelSection(source=str(path), revision=None, trust_remote_code=False))


def assert_same_network(loaded: Checkpoint, model: Any) -> None:
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    expected = {name: t for name, t in model.state_dict().items() if name not in tied}
    assert loaded.state.keys() == expected.keys()
    for name, tensor in expected.items():
        exact = model.config.model_type != "gemma3_text" or "norm" not in name  # whose files have one added
        torch.testing.assert_close(loaded.state[name], tensor, rtol=0, atol=0 if exact else 1e-6)
    network, tokens = DenseNetwork(loaded, tiny.CPU), tiny.random_tokens(length=100)
    ours = tiny.elastic_logits(network, network.shape.dense(), tokens)
    torch.testing.assert_close(ours, tiny.reference_logits(model, tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("gemma3_text", {"tie_word_embeddings": True}),
    ],
)
@pytest.mark.usefixtures("models")
def test_a_file_is_the_whole_model(
    tmp_path: Path, family: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if family == "gemma3_text":  # transformers knows its tokenizer with the pieces of SentencePiece alone
        monkeypatch.setattr(gguf_source, "tokenizer", lambda header: tiny.byte_tokenizer(("a", "b")))
    model = ggufs.model_of(family, **options)
    assert_same_network(load(ggufs.write(tmp_path / "tiny.gguf", model)), model)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("given", [0, 1])
def test_all_parts_of_a_split_file_are_read(tmp_path: Path, given: int) -> None:
    model = ggufs.model_of()
    assert_same_network(load(ggufs.write_parts(tmp_path, model, first=7)[given]), model)


LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("settings", "rope"),
    [
        (LINEAR, {"rope_type": "linear", "factor": 8.0}),
        ({"rope.scale_linear": 8.0}, {"rope_type": "linear", "factor": 8.0}),
        (YARN, tiny.YARN_ROPE),
        (YARN | {"rope.scaling.yarn_beta_fast": 8.0}, tiny.YARN_ROPE | {"beta_fast": 8.0}),
    ],
)
def test_a_scaled_rope_is_rebuilt(tmp_path: Path, settings: dict[str, Any], rope: dict[str, Any]) -> None:
    model = ggufs.model_of(rope_parameters={"rope_theta": 1000.0} | rope)
    assert_same_network(load(ggufs.write(tmp_path / "tiny.gguf", model, settings)), model)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("original", [16, 24, 40])
def test_the_rope_of_llama_3_is_rebuilt_from_its_divisors(tmp_path: Path, original: int) -> None:
    rope = tiny.LLAMA3_ROPE | {"original_max_position_embeddings": original}
    model = ggufs.model_of(rope_parameters=rope)
    turned = model.model.rotary_emb.inv_freq
    divisors = 1000.0 ** -(torch.arange(len(turned)) / len(turned)) / turned
    tensors = ggufs.tensors_of(model) | {"rope_freqs.weight": divisors.numpy()}
    loaded = load(ggufs.write(tmp_path / "tiny.gguf", model, tensors=tensors))
    assert_same_network(loaded, model)


def test_it_is_dequantised_once(tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = ggufs.write(tmp_path / "tiny.gguf", ggufs.model_of())
    loaded = load(path)
    assert "Dequantising tiny.gguf" in capsys.readouterr().out
    assert loaded.tokenizer("cab")["input_ids"] == [*loaded.tokenizer("c")["input_ids"], tiny.VOCABULARY]
    again = load(path)
    assert capsys.readouterr().out == ""
    assert again.digest == loaded.digest
    assert loaded.folder.parent == models
    assert not list(models.glob(".*"))  # nothing half made


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "prunecast.json"])
@pytest.mark.parametrize("damage", ["a bit", "gone", "empty"])
@pytest.mark.usefixtures("models")
def test_a_damaged_folder_is_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    path = ggufs.write(tmp_path / "tiny.gguf", ggufs.model_of())
    loaded = load(path)
    capsys.readouterr()
    file = loaded.folder / name
    whole = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(b"" if damage == "empty" else whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    assert load(path).digest == loaded.digest
    assert "it is made anew" in capsys.readouterr().out
    assert name == "prunecast.json" or file.read_bytes() == whole


def test_a_failed_conversion_leaves_nothing_half_made(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Any, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf_source, "convert", fails)
    with pytest.raises(KeyboardInterrupt):
        load(ggufs.write(tmp_path / "tiny.gguf", ggufs.model_of()))
    assert [p.suffix for p in models.iterdir()] == [".lock"]


def test_what_a_killed_process_left_is_swept_unless_it_lives(tmp_path: Path, models: Path) -> None:
    path = ggufs.write(tmp_path / "tiny.gguf", ggufs.model_of())
    for name in ("dead", "alive"):
        (models / f".{name}.part" / "deep").mkdir(parents=True)
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(models / "alive.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        load(path)
        assert [p.name for p in models.glob(".*")] == [".alive.part"]
        holder.communicate(b"\n")
    load(path)
    assert list(models.glob(".*")) == []


@pytest.mark.parametrize("place", ["a file", "read-only"])
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, models: Path, place: str) -> None:
    if place == "a file":
        models.parent.write_text("in the way")
    elif os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    else:
        models.mkdir(parents=True)
        models.chmod(0o500)
    path = ggufs.write(tmp_path / "tiny.gguf", ggufs.model_of())
    with pytest.raises(InputError, match=r"tiny\.gguf cannot be dequantised into .*models .*PRUNECAST_CACHE"):
        load(path)


def test_a_full_disk_is_named(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr(gguf_source, "save_file", full)
    with pytest.raises(InputError, match=r"No space left on device.*Make room"):
        load(ggufs.write(tmp_path / "tiny.gguf", ggufs.model_of()))
    assert [p.suffix for p in models.iterdir()] == [".lock"]


@pytest.mark.usefixtures("models")
def test_a_tokenizer_that_cannot_be_rebuilt_is_refused(tmp_path: Path) -> None:
    def finish(writer: Any) -> None:
        writer.add_tokenizer_model("rwkv")
        writer.add_token_list(["a"] * ggufs.VOCABULARY)

    path = ggufs.write(tmp_path / "tiny.gguf", ggufs.model_of(), tokenizer=False, finish=finish)
    with pytest.raises(InputError, match=r"a tokenizer that transformers cannot rebuild.*'rwkv'"):
        load(path)
