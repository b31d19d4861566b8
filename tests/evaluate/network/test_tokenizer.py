"""A tokenizer is whole and fits the embedding, or an error in words names what is wrong with which file."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.config.params import ModelSection
from stages.evaluate.network.tokenizer import load_tokenizer
from stages.files import InputError
from tests import tiny

ROWS = tiny.VOCABULARY


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of a tokenizer alone."""
    tokenizer = tiny.byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path / "model"


def load(folder: Path, rows: int = ROWS) -> Any:
    return load_tokenizer(
        folder, ModelSection(source=str(folder), revision=None, trust_remote_code=False), rows
    )


def edit(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | changes))


def test_a_whole_one_is_loaded(folder: Path) -> None:
    assert load(folder)("ab")["input_ids"] == tiny.byte_tokenizer()("ab")["input_ids"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: [path.unlink() for path in f.glob("token*")], "has no tokenizer: none of tokenizer.json"),
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text(""), r"tokenizer\.json is damaged"),
        (lambda f: (f / "tokenizer.json").write_text("[]"), r"tokenizer\.json holds a list"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), r"tokenizer\.json is damaged"),
        (lambda f: edit(f, "tokenizer.json", model={"vocab": {}}), r"tokenizer\.json is damaged"),
        (lambda f: (f / "tokenizer_config.json").write_bytes(b"\xff"), r"_config\.json is damaged"),
        (lambda f: (f / "tokenizer_config.json").write_text("[" * 10**5), r"_config\.json is damaged"),
        (lambda f: (f / "special_tokens_map.json").write_text("3"), r"special_tokens_map\.json holds a int"),
        (lambda f: edit(f, "tokenizer_config.json", bos_token=["a", 3]), "cannot be loaded"),
        (lambda f: edit(f, "tokenizer_config.json", extra_special_tokens=7), "cannot be loaded"),
        (lambda f: edit(f, "tokenizer_config.json", eos_token="<a new one>"), "up to 260, .* 260 rows"),
        (lambda f: (f / "chat_template.jinja").write_text("{% if %}"), "damaged chat template"),
        (lambda f: (f / "chat_template.jinja").write_bytes(b"\xff\xfe"), "cannot be loaded"),
    ],
)  # fmt: skip
def test_a_damaged_one_is_refused_in_words(folder: Path, damage: Callable[[Path], Any], says: str) -> None:
    damage(folder)
    with pytest.raises(InputError, match=says):
        load(folder)


def test_tokens_beyond_the_embedding_are_refused(folder: Path) -> None:
    load(folder, rows=ROWS + 40)
    with pytest.raises(InputError, match=r"tokens up to 259, and an embedding of 259 rows"):
        load(folder, rows=ROWS - 1)
    tokenizer = tiny.byte_tokenizer()
    tokenizer.add_tokens(["reader"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"tokens up to 260, and an embedding of 260 rows"):
        load(folder)


@pytest.mark.parametrize("name", ["chat_template.jinja", "merges.txt"])
def test_text_that_is_a_link_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    (folder.parent / "secret").write_text("private key")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(folder.parent / "secret")
    with pytest.raises(InputError, match=f"{name} is a link out of the model's folder"):
        load(folder)


def test_code_of_its_own_is_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    edit(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "own.T"]}, tokenizer_class="T")
    with pytest.raises(InputError, match=r"cannot be loaded .*custom code"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_generated_damage_is_an_error_in_words_or_harmless(folder: Path) -> None:
    draw = random.Random(0)
    files = [folder / name for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")]
    whole = {file: file.read_bytes() for file in files}
    refused = 0
    for _ in range(100):
        file = draw.choice(files)
        content = bytearray(whole[file])
        for _ in range(draw.choice((1, 3))):
            content[draw.randrange(len(content))] = draw.randrange(256)
        file.write_bytes(content[: draw.choice((len(content), draw.randrange(len(content))))])
        try:
            load(folder)
        except InputError:
            refused += 1
        file.write_bytes(whole[file])
    assert refused > 40
