"""What a model card says of the base model comes from that model's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter, LlamaFileType
from huggingface_hub.errors import LocalEntryNotFoundError

from stages.config.params import ModelSection
from stages.export import base_model
from stages.export.base_model import read_base_model
from stages.export.results.record import BaseModel
from tests import tiny


def model(source: str) -> ModelSection:
    return ModelSection(source=source, revision=None, trust_remote_code=False)


def write_card(folder: Path, front: str) -> None:
    (folder / "README.md").write_text(f"---\n{front}\n---\n\n# A model\n")


def test_a_local_folder(tmp_path: Path) -> None:
    folder = tiny.write_model(tmp_path / "some-model", "qwen2")
    write_card(folder, "license: apache-2.0\nlanguage: [en, de]\nbase_model: org/other")
    for name in ("LICENSE", "NOTICE.txt", "LICENSES"):
        (folder / name).mkdir() if name == "LICENSES" else (folder / name).write_text("terms")
    found = read_base_model(model(str(folder)))
    terms = (folder / "LICENSE", folder / "NOTICE.txt")
    assert found == BaseModel("some-model", "a local folder", "apache-2.0", ("en", "de"), terms=terms)


def test_a_folder_of_the_hubs_cache_is_known_by_its_name_on_the_hub(tmp_path: Path) -> None:
    place = tmp_path / "models--org--some-model" / "snapshots" / "0123abc"
    place.parent.mkdir(parents=True)
    found = read_base_model(model(str(tiny.write_model(place, "llama"))))
    assert (found.name, found.hub_id) == ("some-model", "org/some-model")


def test_an_export_that_is_pruned_again_comes_from_what_was_pruned_first(tmp_path: Path) -> None:
    folder = tiny.write_model(tmp_path, "llama")
    write_card(folder, "base_model: org/first\ntags: [prunecast, pruned]")
    assert read_base_model(model(str(folder))).hub_id == "org/first"


@pytest.mark.parametrize(
    ("said", "known"),
    [
        ("https://huggingface.co/org/some-model", "org/some-model"),
        ("org/some-model", "org/some-model"),
        ("https://example.org/some-model", None),
        ("", None),
        (None, None),
    ],
)
def test_what_names_a_repository_of_the_hub(said: str | None, known: str | None) -> None:
    assert base_model.hub_id(said) == known


def test_terms_that_are_links_out_of_the_folder_are_not_passed_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny.write_model(tmp_path / "some-model", "qwen2")
    (tmp_path / "secret").write_text("---\nlicense: mine\n---\n")
    (folder / "LICENSE").write_text("terms")
    for name in ("NOTICE", "README.md", "COPYING"):
        (folder / name).symlink_to(tmp_path / "secret" if name != "COPYING" else folder / "LICENSE")
    found = read_base_model(model(str(folder)))
    assert [path.name for path in found.terms] == ["COPYING", "LICENSE"]
    assert found.licence == "unknown"
    assert "NOTICE is a link out of the model's folder" in capsys.readouterr().out


def test_a_card_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    folder = tiny.write_model(tmp_path / "some-model", "qwen2")
    for content in (b"---\nlicense: \xff\n---\n", b"\xff\xfe", b"---\n- mit\n---\n", b"---\n2026-99-99\n---"):
        (folder / "README.md").write_bytes(content)
        assert read_base_model(model(str(folder))).licence in ("unknown", "\ufffd")


@pytest.mark.parametrize(
    ("front", "licence", "languages"),
    [
        ("license: other\nlicense_name: llama-x\nlanguage: en", "llama-x", ("en",)),
        ("license: other", "other", ()),
        ("library_name: transformers", "unknown", ()),
        ("license: [broken", "unknown", ()),
    ],
)
def test_cards_that_say_less(tmp_path: Path, front: str, licence: str, languages: tuple[str, ...]) -> None:
    folder = tiny.write_model(tmp_path / "model", "llama")
    write_card(folder, front)
    found = read_base_model(model(str(folder)))
    assert (found.licence, found.languages) == (licence, languages)


@pytest.mark.parametrize("answers", [True, False])
def test_a_hub_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The configuration is in the cache; card and terms are fetched where the hub answers."""
    snapshot = tiny.write_model(tmp_path / "snapshot", "llama")

    def fetch(repo: str, revision: str, allow_patterns: list[str]) -> str:
        assert (repo, revision) == ("org/small", "main")
        assert {"README.md", "LICENSE*"} <= set(allow_patterns)
        if not answers:
            raise LocalEntryNotFoundError("offline")
        write_card(snapshot, "license: mit")
        (snapshot / "LICENSE").write_text("terms")
        return str(snapshot)

    found_config: Any = lambda *_, **__: str(snapshot / "config.json")  # noqa: E731
    monkeypatch.setattr("huggingface_hub.hf_hub_download", found_config)
    monkeypatch.setattr(base_model, "snapshot_download", fetch)
    found = read_base_model(model("org/small"))
    assert (found.name, found.hub_id) == ("small", "org/small")
    assert found.origin == "org/small on the Hugging Face hub, revision main"
    assert found.licence == ("mit" if answers else "unknown")
    assert found.terms == ((snapshot / "LICENSE",) if answers else ())
    assert ("did not serve the card of org/small" in capsys.readouterr().out) != answers


@pytest.mark.parametrize(
    ("kind", "name", "quantisation"),
    [
        (LlamaFileType.MOSTLY_Q4_K_M, "Small-1B.Q4_K_M.gguf", "Q4_K_M"),
        (LlamaFileType.MOSTLY_F16, "Small-1B.F16.gguf", None),
        (None, "Small-1B.gguf", None),
    ],
)
def test_a_gguf_file(tmp_path: Path, kind: LlamaFileType | None, name: str, quantisation: str | None) -> None:
    path = tmp_path / name
    writer = GGUFWriter(path, "llama")
    writer.add_license("cc-by-4.0")
    writer.add_languages(["en"])
    writer.add_organization("Some Lab")
    if kind is not None:
        writer.add_file_type(kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = read_base_model(model(str(path)))
    assert found == BaseModel(
        "Small-1B", f"the file {name}, by Some Lab", "cc-by-4.0", ("en",), quantisation=quantisation
    )
