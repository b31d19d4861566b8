"""Damaged model folders: tensors, configuration, files, tokenizer."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests import tiny
from tests.faults.inputs import Harm
from tests.faults.world import World

State = dict[str, torch.Tensor]
Change = Callable[[State, str, random.Random], None]
"""Changes a tensor of the state, in place."""


def _weights(world: World) -> Path:
    return world.folder / "model" / "model.safetensors"


def agrees_with_transformers(world: World) -> str | None:
    """Whether transformers loads the folder without a word, and its logits are ours."""
    folder = world.folder / "model"
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
    except Exception:
        return None
    model, info = loaded
    if any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        return None
    tokens = tiny.random_tokens()
    network = tiny.elastic_of(folder)
    ours = tiny.elastic_logits(network, network.shape.dense(), tokens)
    theirs = tiny.reference_logits(model.eval(), tokens)
    same = ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    return "as transformers has it" if same else None


def _tensor(name: str, change: Change) -> Harm:
    def apply(world: World, rng: random.Random) -> str:
        path = _weights(world)
        state = load_file(path)
        tensor = rng.choice(sorted(state))
        change(state, tensor, rng)
        save_file({n: t.contiguous() for n, t in state.items()}, path, {"format": "pt"})
        return f"{tensor}: {name}"

    words = ("tensor", "weight", "shape", "nan", "finite", "quant", "dtype", "bias", "model.")
    return Harm("tensors of a model", apply, words, agrees_with_transformers)


def _replaced(change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def apply(state: State, name: str, rng: random.Random) -> None:
        state[name] = change(state[name].clone())

    return apply


def _poisoned(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[-1] = value
        return tensor

    return change


def _renamed(change: Callable[[str], str]) -> Change:
    def apply(state: State, name: str, rng: random.Random) -> None:
        state[change(name)] = state.pop(name)

    return apply


def _all_renamed(change: Callable[[str], str]) -> Change:
    def apply(state: State, name: str, rng: random.Random) -> None:
        renamed = {change(n): t for n, t in state.items()}
        state.clear()
        state.update(renamed)

    return apply


def _added(suffix: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def apply(state: State, name: str, rng: random.Random) -> None:
        state[name.removesuffix(".weight") + suffix] = make(state[name]).clone()

    return apply


def _scaled_codes(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor / tensor.abs().max() * 100).round().to(torch.int8)


TENSORS: Mapping[str, Change] = {
    "transposed": _replaced(lambda t: t.t() if t.dim() == 2 else t[:-1]),
    "flat": _replaced(lambda t: t.flatten() if t.dim() == 2 else t[None]),
    "a scalar": _replaced(lambda t: t.flatten()[0]),
    "empty": _replaced(lambda t: t[:0]),
    "last row gone": _replaced(lambda t: t[:-1]),
    "last column gone": _replaced(lambda t: t[..., :-1]),
    "rows doubled": _replaced(lambda t: torch.cat([t, t])),
    "columns doubled": _replaced(lambda t: torch.cat([t, t], -1)),
    "a dimension more": _replaced(lambda t: t[None]),
    "regrouped": _replaced(lambda t: t.reshape(2, -1) if t.numel() % 2 == 0 else t[:-1]),
    "int8": _replaced(_scaled_codes),
    "uint8": _replaced(lambda t: _scaled_codes(t).abs().to(torch.uint8)),
    "int32": _replaced(lambda t: t.to(torch.int32)),
    "int64": _replaced(lambda t: t.to(torch.int64)),
    "bool": _replaced(lambda t: t > 0),
    "float8": _replaced(lambda t: t.to(torch.float8_e4m3fn)),
    "float8 of five bits": _replaced(lambda t: t.to(torch.float8_e5m2)),
    "packed": _replaced(lambda t: _scaled_codes(t).view(torch.int32) if t.shape[-1] % 4 == 0 else t[:-1]),
    "float64": _replaced(lambda t: t.double()),
    "a NaN": _replaced(_poisoned(float("nan"))),
    "an infinity": _replaced(_poisoned(float("inf"))),
    "gone": lambda state, name, rng: state.__delitem__(name),
    "twice": _added(".copy", lambda t: t),
    "with a scale": _added(".weight_scale", lambda t: torch.ones(1)),
    "with an inverse scale": _added(".weight_scale_inv", lambda t: torch.ones(1)),
    "with zero points": _added(".qzeros", lambda t: torch.zeros(1, dtype=torch.int32)),
    "with a bias": _added(".bias", lambda t: torch.randn(t.shape[0])),
    "with an adapter": _added(".lora_A.weight", lambda t: torch.randn(2, t.shape[-1])),
    "under another name": _renamed(lambda n: n.replace("weight", "wieght")),
    "of another layer": _renamed(lambda n: n.replace("layers.1", "layers.9").replace("norm", "nrom")),
    "all compiled": _all_renamed(lambda n: f"_orig_mod.{n}"),
    "all parallel": _all_renamed(lambda n: f"module.{n}"),
    "all sharded": _all_renamed(lambda n: f"_fsdp_wrapped_module.{n}"),
    "all without model.": _all_renamed(lambda n: n.removeprefix("model.")),
    "all of a multimodal model": _all_renamed(lambda n: f"language_model.{n}"),
    "all of an adapter": _all_renamed(lambda n: f"base_model.model.{n}"),
    "in upper case": _all_renamed(str.upper),
}


def _file(name: str, change: Callable[[Path, random.Random], str | None]) -> Harm:
    def apply(world: World, rng: random.Random) -> str:
        return change(world.folder / "model", rng) or name

    words = ("safetensors", "weights", "config.json", "model", "lfs", "index", "tensor", "adapter")
    return Harm("files of a model", apply, words, agrees_with_transformers)


def _header(folder: Path, rng: random.Random) -> str:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    length = 8 + int.from_bytes(content[:8], "little")
    at = rng.randrange(length)
    content[at] = rng.randrange(256)
    path.write_bytes(content)
    return f"byte {at} of the header"


def _cut(folder: Path, rng: random.Random) -> str:
    path = folder / "model.safetensors"
    kept = rng.randrange(path.stat().st_size)
    path.write_bytes(path.read_bytes()[:kept])
    return f"weights cut to {kept} bytes"


def _pointer(folder: Path, rng: random.Random) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 269060552\n"
    (folder / rng.choice(["model.safetensors", "config.json", "tokenizer.json"])).write_text(text)


def _sharded(change: Callable[[dict[str, Any], Path], None]) -> Callable[[Path, random.Random], None]:
    """The folder in two shards with an index, one thing about which is changed."""

    def apply(folder: Path, rng: random.Random) -> None:
        state = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(state)
        files = {n: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, n in enumerate(names)}
        for file in set(files.values()):
            save_file({n: state[n] for n in names if files[n] == file}, folder / file, {"format": "pt"})
        index: dict[str, Any] = {"metadata": {"total_size": 0}, "weight_map": files}
        change(index, folder)
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return apply


def _first_file(index: dict[str, Any], file: str) -> None:
    index["weight_map"][next(iter(index["weight_map"]))] = file


def _links(folder: Path, rng: random.Random) -> None:
    path = folder / rng.choice(["model.safetensors", "config.json", "tokenizer.json"])
    path.unlink()
    path.symlink_to("nowhere")


def _beside(name: str, **tensors: torch.Tensor) -> Callable[[Path, random.Random], None]:
    def apply(folder: Path, rng: random.Random) -> None:
        save_file(tensors, folder / name)

    return apply


def _unindexed(folder: Path, rng: random.Random) -> None:
    """Two files without an index, which hold one tensor differently."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(state, folder / "a.safetensors", {"format": "pt"})
    name = rng.choice(sorted(state))
    save_file({name: state[name] + 1}, folder / "b.safetensors", {"format": "pt"})


def _a_folder(folder: Path, rng: random.Random) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


def _pickled(folder: Path, rng: random.Random) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


FILES: Mapping[str, Callable[[Path, random.Random], str | None]] = {
    "header changed": _header,
    "header changed once more": _header,
    "cut": _cut,
    "no weights": lambda folder, rng: (folder / "model.safetensors").unlink(),
    "no configuration": lambda folder, rng: (folder / "config.json").unlink(),
    "weights are a folder": _a_folder,
    "a pointer of git-lfs": _pointer,
    "a link to nothing": _links,
    "sharded": _sharded(lambda index, folder: None),
    "index of a missing file": _sharded(lambda index, folder: _first_file(index, "gone.safetensors")),
    "index of another file": _sharded(
        lambda index, folder: _first_file(index, "model-00002-of-00002.safetensors")
    ),
    "index out of the folder": _sharded(lambda index, folder: _first_file(index, "../params.yaml")),
    "index without a map": _sharded(lambda index, folder: index.pop("weight_map")),
    "index with a list": _sharded(lambda index, folder: index.update(weight_map=[1, 2])),
    "index with numbers": _sharded(lambda index, folder: _first_file(index, 3)),  # type: ignore[arg-type]
    "index without a tensor": _sharded(
        lambda index, folder: index["weight_map"].pop("model.norm.weight") and None
    ),
    "index of too many tensors": _sharded(
        lambda index, folder: index["weight_map"].update(more="model-00001-of-00002.safetensors")
    ),
    "a stray file": _beside("stray.safetensors", stray=torch.ones(3)),
    "an adapter beside": _beside("adapter_model.safetensors", lora=torch.ones(3)),
    "one tensor in two files": _unindexed,
    "pickled weights": _pickled,
}

_HARMFUL: tuple[Any, ...] = (
    "text",
    "",
    -1,
    0,
    None,
    [],
    {},
    [1, 2],
    True,
    3.5,
    1e18,
    10**9,
    "64",
    [[]],
    {"a": 1},
)


def _config(world: World, rng: random.Random) -> str:
    path = world.folder / "model" / "config.json"
    config = json.loads(path.read_text())
    key, value = rng.choice(sorted(config)), rng.choice((*_HARMFUL, ...))
    if value is ...:
        del config[key]
    else:
        config[key] = value
    path.write_text(json.dumps(config))
    return f"{key}: {'deleted' if value is ... else value!r}"


_ADDED = {
    "quantization_config": ({"quant_method": "gptq", "bits": 4}, {"quant_method": "fp8"}, "awq", [], 3),
    "attention_bias": (True, "yes"),
    "mlp_bias": (True,),
    "num_local_experts": (8,),
    "sliding_window": (8, "x", -1),
    "layer_types": (["full_attention"], ["sliding_attention"] * 4, "x"),
    "rope_scaling": ({"type": "linear", "factor": 8.0}, {"rope_type": "odd"}, "x", [1]),
    "rope_parameters": ({"rope_type": "linear"}, {"rope_type": "odd"}, "x", [1], {"rope_theta": "x"}),
    "hidden_act": ("relu", "odd", 3, None),
    "auto_map": ({"AutoConfig": "evil.C"}, "x"),
    "partial_rotary_factor": (0.5, "x"),
    "per_layer_config": ({"1": {"intermediate_size": 8}},),
    "pretraining_tp": (2, "x"),
    "text_config": ({"model_type": "llama"}, "x"),
    "architectures": (["LlamaForSequenceClassification"], "x", [], [3]),
    "tie_word_embeddings": (True, "true", None),
}  # fmt: skip


def _config_added(world: World, rng: random.Random) -> str:
    path = world.folder / "model" / "config.json"
    key = rng.choice(sorted(_ADDED))
    value = rng.choice(_ADDED[key])
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    return f"{key}: {value!r}"


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_CONTENTS: tuple[bytes, ...] = (
    b"",
    b"{}",
    b"[]",
    b"null",
    b"3",
    b'"text"',
    b"{",
    b"\xff\xfe",
    b"\0" * 64,
    b"[" * 20000,
)


def _tokenizer(world: World, rng: random.Random) -> str:
    path = world.folder / "model" / rng.choice(_TOKENIZER_FILES)
    content = rng.choice((*_CONTENTS, None))
    if content is None:
        path.unlink()
        return f"{path.name} removed"
    path.write_bytes(content)
    return f"{path.name}: {content[:12]!r}"


def _tokenizer_key(world: World, rng: random.Random) -> str:
    """Something deep in tokenizer.json or tokenizer_config.json is another."""
    path = world.folder / "model" / rng.choice(_TOKENIZER_FILES)
    document = json.loads(path.read_text())
    place, value = document, rng.choice((*_HARMFUL, ...))
    while True:
        key: Any = rng.choice(sorted(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.4:
            break
        place = place[key]
    if value is ...:
        del place[key]
    else:
        place[key] = value
    path.write_text(json.dumps(document))
    return f"{path.name}, {key}: {'deleted' if value is ... else value!r}"


CONFIG = ("config", "model.source", "quant")
HARMS = [
    *(_tensor(name, change) for name, change in TENSORS.items()),
    *(_file(name, change) for name, change in FILES.items()),
    *[
        Harm("configuration of a model", _config, CONFIG, agrees_with_transformers),
        Harm("configuration of a model", _config_added, CONFIG, agrees_with_transformers),
        Harm("tokenizer", _tokenizer, ("tokenizer",), agrees_with_transformers),
        Harm("tokenizer", _tokenizer_key, ("tokenizer",), agrees_with_transformers),
    ] * 15,
]  # fmt: skip
"""All in turn; what draws from many stands there more often."""
