"""Damaged model folders are refused by their headers alone, in words; what is as it must be passes."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from stages.config.params import ModelSection
from stages.families import describe
from stages.files import InputError
from stages.sample import weight_files
from stages.sample.source import ModelSource, locate, read_model
from stages.sample.weight_check import check_source

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "num_hidden_layers": 2,
    "vocab_size": 30,
}
State = dict[str, np.ndarray]
LAYER = "model.layers.1."
Q, DOWN, NORM = f"{LAYER}self_attn.q_proj.weight", f"{LAYER}mlp.down_proj.weight", "model.norm.weight"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def whole(config: dict[str, Any] = CONFIG) -> State:
    """Every tensor that the configuration announces."""
    described = describe(config, "m")
    announced = described.family.tensors(described.shape)
    return {name: np.ones(tuple(sizes.values()), np.float16) for name, sizes in announced.items()}


def write(folder: Path, state: State, config: dict[str, Any] = CONFIG) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(t) for name, t in state.items()}, folder / "model.safetensors")
    return folder


def shards(folder: Path, state: State, *files: str) -> dict[str, str]:
    """Write the state to these files, and the index; returns where each tensor is."""
    write(folder, state)
    (folder / "model.safetensors").unlink()
    held = {name: files[place % len(files)] for place, name in enumerate(state)}
    for file in files:
        save_file({name: state[name] for name in state if held[name] == file}, folder / file)
    (folder / weight_files.INDEX).write_text(json.dumps({"weight_map": held}))
    return held


def check(folder: Path | str) -> None:
    """What `sample` does at its door."""
    model = ModelSection(source=str(folder), revision=None, trust_remote_code=False)
    described = read_model(model)
    check_source(locate(model), model, described)


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        check(folder)
    return str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"model_type": "qwen2"},
        {"model_type": "qwen3", "attention_bias": True},
        {"model_type": "mistral"},
    ],
)
def test_what_is_announced_passes(tmp_path: Path, options: dict[str, Any]):
    config = CONFIG | options
    check(write(tmp_path / "m", whole(config), config))


def test_what_newer_releases_compute_is_passed_over_and_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    extra = {f"{LAYER}self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    extra["model.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    folder = write(tmp_path / "m", whole() | extra)
    check(folder)
    check(folder)
    assert capsys.readouterr().out.count("2 tensors are passed over, as model.layers.1.self_attn.rotary") == 1


@pytest.mark.parametrize("where", ["{0}.{1}", "model.{0}.{2}"])
@pytest.mark.parametrize("wrapper", weight_files.WRAPPERS)
def test_prefixes_of_wrappers_are_taken_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrapper: str, where: str
):
    state = {where.format(wrapper, n, n.removeprefix("model.")): t for n, t in whole().items() if n != HEAD}
    check(write(tmp_path / "m", state | {HEAD: whole()[HEAD]}))
    assert f"{wrapper}. is taken off the names of 20 tensors" in capsys.readouterr().out


def test_a_tied_head_may_stand_in_the_file_if_it_fits(tmp_path: Path):
    config = CONFIG | {"tie_word_embeddings": True}
    check(write(tmp_path / "m", whole(), config))
    assert HEAD in refusal(write(tmp_path / "n", whole() | {HEAD: np.ones((29, 24), np.float32)}, config))


def other_shapes(state: State) -> dict[str, State]:
    """A damaged state for each way in which a tensor can be of another shape, for every kind of tensor."""
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "transposed": lambda t: t.T.copy(),
        "a scalar": lambda t: np.ones((), t.dtype),
        "flat": lambda t: t.reshape(-1) if t.ndim > 1 else t.reshape(-1, 1),
        "one row short": lambda t: t[:-1],
        "one row more": lambda t: np.concatenate((t, t[:1])),
        "one dimension more": lambda t: t[None],
        "empty": lambda t: t[:0],
        "twice as wide": lambda t: np.concatenate((t, t), axis=-1),
    }
    names = [name for name in state if not name.startswith("model.layers.0")]
    return {
        f"{name} {way}": state | {name: change(state[name])}
        for name in names
        for way, change in ways.items()
        if change(state[name]).shape != state[name].shape
    }


SHAPES = other_shapes(whole())


@pytest.mark.parametrize("way", SHAPES)
def test_a_tensor_of_another_shape_is_named(tmp_path: Path, way: str):
    said = refusal(write(tmp_path / "m", SHAPES[way]))
    assert "1 tensors of another shape than config.json says, the first is " + way.split(" ")[0] in said


@pytest.mark.parametrize("name", [name for name in whole() if not name.startswith("model.layers.0")])
def test_a_missing_or_misspelt_tensor_is_named(tmp_path: Path, name: str):
    state = {n: t for n, t in whole().items() if n != name}
    assert f"lacks 1 tensors of the family llama, the first is {name}" in refusal(
        write(tmp_path / "m", state)
    )
    said = refusal(write(tmp_path / "n", state | {f"{name}s": whole()[name]}))
    assert f"the first is {name}; it holds 1 tensors" in said
    assert f"{name}s" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 1}, r"9 tensors .* model\.layers\.1\..* \(num_hidden_layers is 1\)"),
        ({"num_hidden_layers": 3}, r"lacks 9 tensors .* model\.layers\.2\."),
        ({"intermediate_size": 16}, r"20 x 24; expected 16 x 24 \(intermediate_size x hidden_size\)"),
        ({"vocab_size": 29}, r"model\.embed_tokens\.weight: 30 x 24; expected 29 x 24 \(vocab_size x hidden"),
        (
            {"num_key_value_heads": 4},
            r"k_proj\.weight: 8 x 24; expected 16 x 24 \(num_key_value_heads \* head",
        ),
        ({"head_dim": 8}, r"expected .*head_dim"),
        ({"hidden_size": 32}, r"expected .*hidden_size"),
        ({"attention_bias": True}, r"lacks 8 tensors .*bias"),
        ({"model_type": "qwen3"}, r"lacks 4 tensors of the family qwen3, .*_norm"),
        ({"tie_word_embeddings": True, "vocab_size": 31}, "expected 31 x 24"),
    ],
)
def test_weights_that_config_json_does_not_describe(tmp_path: Path, changes: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        check(write(tmp_path / "m", whole(), CONFIG | changes))


@pytest.mark.parametrize("bias", ["self_attn.q_proj.bias", "self_attn.o_proj.bias", "mlp.gate_proj.bias"])
def test_a_bias_that_is_not_announced(tmp_path: Path, bias: str):
    said = refusal(write(tmp_path / "m", whole() | {LAYER + bias: np.ones(16, np.float16)}))
    assert f"does not announce, the first is {LAYER}{bias} (biases are announced by attention_bias" in said


@pytest.mark.parametrize("name", ["score.weight", "v_head.weight", "model.layers.7.x", "q", "lm_head.scales"])
def test_a_tensor_that_is_left_over(tmp_path: Path, name: str):
    said = refusal(write(tmp_path / "m", whole() | {name: np.ones((2, 2), np.float16)}))
    assert f"1 tensors that config.json does not announce, the first is {name}" in said


# --- Quantised ------------------------------------------------------------------------------------

CODES: dict[str, dict[str, tuple[str, int]]] = {
    "fp8": {"weight": ("F8_E4M3", 384), "weight_scale_inv": ("F32", 4)},
    "int8": {"weight": ("I8", 384), "SCB": ("F32", 64)},
    "gptq": {"qweight": ("I32", 192), "qzeros": ("I32", 16), "scales": ("F16", 32), "g_idx": ("I32", 96)},
    "awq": {"qweight": ("I32", 192), "qzeros": ("I32", 16), "scales": ("F16", 32)},
    "bitsandbytes": {"weight": ("U8", 192), "weight.absmax": ("F32", 16), "weight.quant_map": ("F32", 64)},
    "compressed-tensors": {"weight_packed": ("I32", 192), "weight_scale": ("BF16", 32)},
    "modelopt": {"weight": ("U8", 192), "weight_scale": ("F8_E4M3", 24), "weight_scale_2": ("F32", 4)},
    "mxfp4": {"blocks": ("U8", 192), "scales": ("U8", 12)},
    "fbgemm_fp8": {"weight": ("F8_E5M2", 384), "weight_scale": ("F32", 64)},
    "hqq": {"W_q": ("U8", 192), "meta.scale": ("F16", 32)},
}
"""What stands in the place of a projection's weight, by method: types, and bytes."""


def write_header(path: Path, header: Any, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def quantised(folder: Path, method: str) -> Path:
    write(folder, whole())
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in whole().items():
        parts = {name: ("F16", tensor.nbytes)}
        if name.endswith("_proj.weight"):
            stem = name.removesuffix("weight")
            parts = {stem + part: kind for part, kind in CODES[method].items()}
        for part, (dtype, size) in parts.items():
            each = {"F32": 4, "I32": 4, "F16": 2, "BF16": 2}.get(dtype, 1)
            shape = list(tensor.shape) if part == name and dtype == "F16" else [size // each]
            header[part] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
            end += size
    write_header(folder / "model.safetensors", header, bytes(end))
    return folder


@pytest.mark.parametrize("announced", [True, False], ids=["by config.json", "by types"])
@pytest.mark.parametrize("method", CODES)
def test_a_quantised_model_is_called_one(tmp_path: Path, method: str, announced: bool):
    folder = quantised(tmp_path / "m", method)
    if announced:
        config = CONFIG | {"quantization_config": {"quant_method": method}}
        (folder / "config.json").write_text(json.dumps(config))
    said = refusal(folder)
    assert "is quantised" in said
    assert "give the model that it was made from" in said
    assert (f"quantization_config in config.json ({method})" in said) is announced


def test_the_key_by_which_mlx_announces_codes_is_known(tmp_path: Path):
    found = CONFIG | {"quantization": {"group_size": 64, "bits": 4}}
    assert "is quantised: quantization in config.json" in refusal(write(tmp_path / "m", whole(), found))


@pytest.mark.parametrize("found", [{}, {"bits": 4}, "gptq", 4, [], {"quant_method": ["x"]}])
def test_an_odd_quantization_config_is_refused_too(tmp_path: Path, found: Any):
    assert "is quantised" in refusal(write(tmp_path / "m", whole(), CONFIG | {"quantization_config": found}))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64", "bool"])
def test_no_float_is_no_weight(tmp_path: Path, dtype: str):
    said = refusal(write(tmp_path / "m", whole() | {DOWN: np.ones((24, 20), dtype)}))
    assert f"1 tensors of no float type, the first is {DOWN}" in said


# --- Files ----------------------------------------------------------------------------------------

HEADERS: dict[str, bytes] = {
    "empty": b"",
    "text": b"<html>404</html>" * 40,
    "seven bytes": b"\1" * 7,
    "a huge length": struct.pack("<Q", 2**62) + b"{}",
    "a length beyond the file": struct.pack("<Q", 5000) + b"{}",
    "a list": struct.pack("<Q", 2) + b"[]",
    "no JSON": struct.pack("<Q", 8) + b"{'a': 1}",
    "no UTF-8": struct.pack("<Q", 4) + b"\xff\xfe\x00{",
    "zeros": bytes(512),
    "a pickle": b"\x80\x04\x95" + b"c" * 200,
    "a zip": b"PK\x03\x04" + bytes(200),
    "no tensors": struct.pack("<Q", 2) + b"{}",
}
ENTRIES: dict[str, Any] = {
    "an unknown type": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
    "a negative size": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
    "offsets turned round": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
    "offsets beyond": {"dtype": "F32", "shape": [1], "data_offsets": [0, 400]},
    "no offsets": {"dtype": "F32", "shape": [1]},
    "no shape": {"dtype": "F32", "data_offsets": [0, 4]},
    "sizes that do not fit": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
    "a text": "F32",
    "null": None,
    "an overflow": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]},
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_damaged_file_is_named(tmp_path: Path, name: str):
    folder = write(tmp_path / "m", whole())
    (folder / "model.safetensors").write_bytes(HEADERS[name])
    said = refusal(folder)
    assert "model.safetensors is damaged" in said or ("lacks 21 tensors" in said and name == "no tensors")


@pytest.mark.parametrize("name", ENTRIES)
def test_a_damaged_header_is_named(tmp_path: Path, name: str):
    folder = write(tmp_path / "m", whole())
    write_header(folder / "model.safetensors", {"a": ENTRIES[name]}, bytes(4))
    assert "model.safetensors is damaged" in refusal(folder)


def test_flipped_and_lost_bytes_of_a_header_never_end_in_a_traceback(tmp_path: Path):
    folder = write(tmp_path / "m", whole())
    content = (folder / "model.safetensors").read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    rng = random.Random(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(header)] ^= 1 << rng.randrange(8)
        if rng.random() < 0.3:
            del damaged[rng.randrange(len(damaged)) :]
        (folder / "model.safetensors").write_bytes(damaged)
        try:
            check(folder)
        except InputError:
            refused += 1
    assert refused > 150  # the rest changed what no one reads, such as a blank


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("moved"))


def pointer(path: Path) -> None:
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 269060552\n")


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "model-1.safetensors", weight_files.INDEX]
)
@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (link_to_nothing, "is a link to .*moved, which is not there"),
        (pointer, "is a Git LFS pointer.*git lfs pull"),
        (
            folder_instead,
            "is a folder|no config.json|has no .*safetensors|model-2.safetensors|two tensors|lacks",
        ),
    ],
)
def test_a_file_that_is_not_there_in_truth(
    tmp_path: Path, file: str, harm: Callable[[Path], None], words: str
):
    folder = tmp_path / "m"
    if file in ("model-1.safetensors", weight_files.INDEX):
        shards(folder, whole(), "model-1.safetensors", "model-2.safetensors")
    else:
        write(folder, whole())
    harm(folder / file)
    if (harm, file) == (folder_instead, weight_files.INDEX):
        check(folder)  # which has all its tensors without an index
    else:
        with pytest.raises(InputError, match=words):
            check(folder)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", '"x"', "[[1, 2]]", '{"a": ', "\ufeff{}", "[" * 100_000, '{"a": NaN}', "\0"],
)
@pytest.mark.parametrize("file", ["config.json", weight_files.INDEX])
def test_damaged_json_is_named(tmp_path: Path, file: str, text: str):
    shards(tmp_path / "m", whole(), "a.safetensors", "b.safetensors")
    (tmp_path / "m" / file).write_text(text, encoding="utf-8")
    assert (file if text != '{"a": NaN}' or file != "config.json" else "None") in refusal(tmp_path / "m")


@pytest.mark.parametrize(
    "named",
    [[], "x", None, {"a": 1}, {"a": None}, {"a": ["b"]}, {"a": "../a.safetensors"}, {"a": ""},
     {"a": "/a.safetensors"}, {"a": "a.bin"}, {"a": "c.safetensors"}, {"a": "a.safetensors"}],
)  # fmt: skip
def test_an_odd_index_is_refused(tmp_path: Path, named: Any):
    shards(tmp_path / "m", whole(), "a.safetensors", "b.safetensors")
    (tmp_path / "m" / weight_files.INDEX).write_text(json.dumps({"weight_map": named}))
    assert weight_files.INDEX in refusal(tmp_path / "m")


def test_an_index_that_names_another_file_or_too_little(tmp_path: Path):
    held = shards(tmp_path / "m", whole(), "a.safetensors", "b.safetensors")
    check(tmp_path / "m")
    index = tmp_path / "m" / weight_files.INDEX
    swapped = {"a.safetensors": "b.safetensors", "b.safetensors": "a.safetensors"}
    index.write_text(json.dumps({"weight_map": held | {NORM: swapped[held[NORM]]}}))
    assert f"says that {swapped[held[NORM]]} holds {NORM}, which {held[NORM]} holds" in refusal(
        tmp_path / "m"
    )
    index.write_text(json.dumps({"weight_map": held | {"ghost": "a.safetensors"}}))
    assert "holds ghost, which no file holds" in refusal(tmp_path / "m")
    index.write_text(json.dumps({"weight_map": {n: f for n, f in held.items() if n != NORM}}))
    assert f"1 tensors that it does not name, the first is {NORM}" in refusal(tmp_path / "m")


def test_two_files_may_not_hold_one_name(tmp_path: Path):
    shards(tmp_path / "m", whole(), "a.safetensors", "b.safetensors")
    (tmp_path / "m" / weight_files.INDEX).unlink()
    check(tmp_path / "m")
    save_file({NORM: whole()[NORM]}, tmp_path / "m" / "c.safetensors")
    assert f"two tensors {NORM}" in refusal(tmp_path / "m")
    save_file({"stray": whole()[NORM]}, tmp_path / "m" / "c.safetensors")
    assert "the first is stray" in refusal(tmp_path / "m")
    (tmp_path / "m" / "c.safetensors").rename(tmp_path / "m" / "._c.safetensors")  # as archives of a Mac hold
    check(tmp_path / "m")


def test_two_names_may_not_become_one(tmp_path: Path):
    state = whole() | {f"_orig_mod.{NORM}": whole()[NORM]}
    assert f"two tensors {NORM}" in refusal(write(tmp_path / "m", state))


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize("with_config", [True, False])
def test_an_adapter_is_called_one(tmp_path: Path, file: str, with_config: bool):
    folder = write(tmp_path / "m", whole())
    (folder / "model.safetensors").unlink()
    (folder / file).write_bytes(b"{}")
    if not with_config:
        (folder / "config.json").unlink()
    assert "holds an adapter (LoRA or its kind" in refusal(folder)


@pytest.mark.parametrize(
    "renamed",
    [
        lambda name: f"base_model.model.{name}",
        lambda name: name.replace("q_proj.weight", "q_proj.base_layer.weight"),
        lambda name: name.replace("down_proj.weight", "down_proj.lora_A.default.weight"),
    ],
)
def test_an_adapter_that_is_not_merged_is_called_one(tmp_path: Path, renamed: Callable[[str], str]):
    state = {renamed(name): tensor for name, tensor in whole().items()}
    said = refusal(write(tmp_path / "m", state))
    assert "was saved with an adapter that is not merged" in said
    assert "merge_and_unload" in said


def test_weights_that_are_there_twice_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shards(tmp_path / "m", whole(), "a.safetensors", "b.safetensors")
    save_file(whole(), tmp_path / "m" / "model.safetensors")
    check(tmp_path / "m")
    assert "holds its weights twice: model.safetensors is read" in capsys.readouterr().out
    whole_in_one = dict.fromkeys(whole(), "model.safetensors")
    (tmp_path / "m" / weight_files.INDEX).write_text(json.dumps({"weight_map": whole_in_one}))
    weight_files.note.cache_clear()
    check(tmp_path / "m")
    assert "twice" not in capsys.readouterr().out


# --- The hub --------------------------------------------------------------------------------------


def of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Callable[..., Any]) -> None:
    """Compare a model of the hub whose configuration alone was fetched."""
    write(tmp_path / "m", whole())
    (tmp_path / "m" / "model.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.get_safetensors_metadata", told)
    model = ModelSection(source="some/model", revision=None, trust_remote_code=False)
    check_source(ModelSource("some/model", "hub", tmp_path / "m"), model, describe(CONFIG, "some/model"))


def test_the_hub_tells_the_tensors_of_what_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def told(state: State) -> Callable[..., Any]:
        tensors = {n: SimpleNamespace(dtype="F16", shape=list(t.shape)) for n, t in state.items()}
        files = {"model.safetensors": SimpleNamespace(tensors=tensors)}
        return lambda *_, **__: SimpleNamespace(files_metadata=files)

    of_the_hub(tmp_path, monkeypatch, told(whole()))
    with pytest.raises(InputError, match=rf"'some/model' has 1 tensors of another shape .* {NORM}: 7"):
        of_the_hub(tmp_path, monkeypatch, told(whole() | {NORM: np.ones(7)}))


def test_a_hub_that_does_not_answer_is_done_without_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def silent(*_: Any, **__: Any) -> None:
        raise ConnectionError

    of_the_hub(tmp_path, monkeypatch, silent)
    said = capsys.readouterr().out
    assert "the hub does not tell which tensors 'some/model' has (it cannot be reached; " in said
