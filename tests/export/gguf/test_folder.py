"""The folder of GGUF files appears whole, or says why there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGUFReader

from stages.config.params import ModelSection
from stages.export.gguf import folder as gguf_folder
from stages.export.gguf.writer import write_file
from stages.export.results.staging import replacing
from tests import tiny
from tests.export.deployable import (
    SIZES,
    UNIFORM,
    VOCABULARY,
    pruned_model,
    sentencepiece_tokenizer,
    trained_tokenizer,
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "Llama-Tiny"
    tiny.random_model("llama", 0, **SIZES).save_pretrained(folder)
    trained_tokenizer().save_pretrained(folder)
    return folder


def write(
    folder: Path, source: Path, types: list[str], model: ModelSection | None = None
) -> tuple[list[tuple[str, str]], str]:
    """As the stage writes it: beside its place, then swapped in."""
    network = tiny.network_of(source)
    model = model or tiny.source_of(source)
    state = network.sliced_state(UNIFORM)
    with replacing(folder.parent) as new:
        lines = gguf_folder.write_folder(new / folder.name, model, tiny.load(source), state, UNIFORM, types)
    return lines, (folder / "README.md").read_text()


def name_of(path: Path) -> str:
    return str(GGUFReader(path).fields["general.name"].contents())


def test_the_types_that_are_asked_for_and_nothing_else(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "export" / "gguf"
    write(folder, source, ["F16"])
    lines, readme = write(folder, source, ["Q8_0", "Q4_0"])
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "model-Q4_0.gguf", "model-Q8_0.gguf"]
    assert list(folder.parent.iterdir()) == [folder]
    size = (folder / "model-Q8_0.gguf").stat().st_size
    assert lines[0] == ("GGUF Q8_0", f"{size / 1e6:.1f} MB")
    assert "llama-server -m model-Q8_0.gguf" in readme
    assert name_of(folder / "model-Q4_0.gguf") == "Llama-Tiny, 36 % pruned"


def test_projections_that_a_family_keeps_as_one_are_written_apart(tmp_path: Path) -> None:
    source = tmp_path / "phi3"
    tiny.random_model("phi3", 0, **SIZES).save_pretrained(source)
    trained_tokenizer().save_pretrained(source)
    lines, _ = write(tmp_path / "gguf", source, ["F16"])
    assert lines[0][0] == "GGUF F16", lines
    names = {tensor.name for tensor in GGUFReader(tmp_path / "gguf" / "model-F16.gguf").tensors}
    assert {f"blk.0.{part}.weight" for part in ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up")} <= names
    assert not [name for name in names if "qkv" in name]


def test_no_types_no_files(tmp_path: Path, source: Path) -> None:
    lines, readme = write(tmp_path / "gguf", source, [])
    assert lines == []
    assert "asks for no file" in readme
    assert [p.name for p in (tmp_path / "gguf").iterdir()] == ["README.md"]


def test_a_refusal_leaves_its_reason_and_no_file(tmp_path: Path) -> None:
    """Of the model or of its tokenizer; the files of the export before do not stay."""
    for number, family in enumerate(("qwen3", "llama")):
        source = tmp_path / family
        tiny.random_model(family, 0, **SIZES).save_pretrained(source)
        (trained_tokenizer() if number == 0 else tiny.byte_tokenizer()).save_pretrained(source)
        folder = tmp_path / f"gguf-{family}"
        folder.mkdir()
        (folder / "model-F16.gguf").touch()
        lines, readme = write(folder, source, ["F16", "Q8_0"])
        reason = ("qwen3 normalises queries and keys", "the tokenizer has no merges")[number]
        assert [label for label, _ in lines] == ["GGUF"]
        assert lines[0][1].startswith(f"not written: {reason}")
        assert f"No file was written: {reason}" in readme
        assert [p.name for p in folder.iterdir()] == ["README.md"]


def test_a_sentencepiece_model_is_written_and_what_llama_cpp_does_otherwise_is_told(tmp_path: Path) -> None:
    source = tmp_path / "Llama-Tiny"
    tiny.random_model("llama", 0, **SIZES | {"vocab_size": 704}).save_pretrained(source)
    sentencepiece_tokenizer("always").save_pretrained(source)
    lines, readme = write(tmp_path / "export" / "gguf", source, ["Q8_0"])
    assert [label for label, _ in lines] == ["GGUF Q8_0", "GGUF tokenizer"]
    assert "llama.cpp tokenises otherwise: text that begins with a space" in lines[1][1]
    assert "\n- text that begins with a space" in readme
    assert name_of(tmp_path / "export" / "gguf" / "model-Q8_0.gguf") == "Llama-Tiny, 36 % pruned"
    sentencepiece_tokenizer("normalizer").save_pretrained(source)
    lines, readme = write(tmp_path / "export" / "gguf", source, ["Q8_0"])
    assert [label for label, _ in lines] == ["GGUF Q8_0"]
    assert "otherwise" not in readme


def test_a_file_that_cannot_be_written_takes_the_others_along(tmp_path: Path, source: Path) -> None:
    """A weight beyond float16 is found in the second half of a file."""
    loaded, network = tiny.load(source), tiny.network_of(source)
    state = network.sliced_state(UNIFORM)
    state["lm_head.weight"][3, 3] = 1e9
    lines = gguf_folder.write_folder(
        tmp_path / "gguf", tiny.source_of(source), loaded, state, UNIFORM, ["Q8_0"]
    )
    assert "output.weight holds 1e+09" in lines[0][1]
    assert [p.name for p in (tmp_path / "gguf").iterdir()] == ["README.md"]


def test_an_interrupt_leaves_the_previous_folder(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "export" / "gguf"
    write(folder, source, ["F16"])
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf_folder, "write_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(folder, source, ["Q8_0"])
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]


def test_a_gguf_source_passes_its_own_tokenizer_on(tmp_path: Path, source: Path) -> None:
    """Even one that could not be derived: here its pre-tokenizer is renamed in the file."""
    model = pruned_model(tmp_path / "work", UNIFORM)
    field = model.tokenizer["tokenizer.ggml.pre"]
    model.tokenizer["tokenizer.ggml.pre"] = field._replace(value="viking")
    path = tmp_path / "Tiny-1B.Q4_K_M.gguf"
    write_file(path, model, "F16")
    gguf_source = ModelSection(source=str(path), revision=None, trust_remote_code=False)
    write(tmp_path / "gguf", source, ["Q8_0"], gguf_source)
    fields = GGUFReader(tmp_path / "gguf" / "model-Q8_0.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == "viking"
    assert len(fields["tokenizer.ggml.tokens"].contents()) == VOCABULARY
    assert name_of(tmp_path / "gguf" / "model-Q8_0.gguf") == "Tiny-1B, 36 % pruned"
