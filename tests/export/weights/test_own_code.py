"""Whoever loads an export with ``trust_remote_code=True`` runs Prunecast's modeling file and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from stages.config.params import ModelSection
from stages.evaluate.network import checkpoint
from stages.evaluate.network.elastic import DenseNetwork
from stages.export.weights.huggingface import write_folder
from stages.export.weights.own_code import NAMES_CODE
from tests import tiny

FOREIGN: dict[str, dict[str, Any]] = {
    "tokenizer_config.json": {"auto_map": {"AutoTokenizer": [None, "HERE--evil.T"]}},
    "config.json": {
        "auto_map": {"AutoConfig": "HERE--evil.C", "AutoModelForCausalLM": "HERE--evil.M"},
        "custom_pipelines": {"text-generation": {"impl": "evil.P", "pt": ["AutoModelForCausalLM"]}},
        "nested": {"auto_map": {"AutoModel": "HERE--evil.M"}},
        "steps": [{"auto_map": {"AutoModel": "HERE--evil.M"}}],
    },
    "generation_config.json": {"custom_generate": "HERE", "auto_map": {"GenerationConfig": "HERE--evil.G"}},
}
LOADS = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
GenerationConfig.from_pretrained(sys.argv[1], trust_remote_code=True)
"""


def keys_of(value: Any) -> set[str]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    own = set(value) if isinstance(value, dict) else set()
    return own.union(*map(keys_of, parts))


def test_nothing_of_the_machine_is_passed_on_and_any_release_knows_the_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny.write_model(tmp_path / "base", "llama")
    loaded = checkpoint.load(ModelSection(source=str(folder), revision=None, trust_remote_code=False))
    out = tiny.export(
        tmp_path / "out" / "model", tiny.reference(folder), tiny.MIXED, tokenizer=loaded.tokenizer
    )
    for path in out.glob("*.json"):
        assert str(tmp_path) not in path.read_text()
    found = json.loads((out / "tokenizer_config.json").read_text())
    assert found["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"is_local", "local_files_only", "name_or_path"} & found.keys()
    again = AutoTokenizer.from_pretrained(out)
    assert again("a text of its own")["input_ids"] == loaded.tokenizer("a text of its own")["input_ids"]
    assert "code of the source's" not in capsys.readouterr().out


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("uniform", [False, True])
def test_no_code_of_the_source_is_passed_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trusted: bool,
    uniform: bool,
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tiny.write_model(tmp_path / "base", "llama")
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import PreTrainedTokenizerFast\n"
    (folder / "evil.py").write_text(code + "class T(PreTrainedTokenizerFast): pass\n")
    for name, foreign in FOREIGN.items():
        if trusted and name == "tokenizer_config.json":  # its class, in the folder, is trusted and used
            foreign = {"auto_map": {"AutoTokenizer": [None, "evil.T"]}, "tokenizer_class": "T"}
        text = json.dumps(json.loads((folder / name).read_text()) | foreign)
        (folder / name).write_text(text.replace("HERE", str(folder)))
    if trusted:  # the configuration's own class would be one of the code
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "auto_map"}))
    loaded = checkpoint.load(ModelSection(source=str(folder), revision=None, trust_remote_code=trusted))
    assert (tmp_path / "ran").exists() == trusted
    (tmp_path / "ran").unlink(missing_ok=True)
    dense = DenseNetwork(loaded, tiny.CPU)
    network = dense.sorted(tiny.stored_order(dense.shape))
    architecture = dense.shape.dense() if uniform else tiny.MIXED
    out = tmp_path / "out"
    write_folder(
        out, network.sliced_state(architecture), loaded.config, architecture, loaded.shape,
        loaded.tokenizer, loaded.generation_config, torch.float32,
    )  # fmt: skip
    assert [path.name for path in out.glob("*.py")] == ([] if uniform else ["modeling_prunecast.py"])
    for path in out.glob("*config.json"):
        found = json.loads(path.read_text())
        if path.name == "config.json" and not uniform:
            assert all(name.startswith("modeling_prunecast.") for name in found.pop("auto_map").values())
        assert not keys_of(found) & NAMES_CODE, path.name
    assert "tokenizer_config.json named code of the source's" in capsys.readouterr().out
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", LOADS, str(out)], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=environment | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "others")},
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()
