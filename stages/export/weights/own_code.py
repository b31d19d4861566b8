"""An export names no code but its own, and nothing of where it was made.

What it says is loaded is Prunecast's modeling file or nothing.

Loading with ``trust_remote_code=True`` runs whatever the files of a folder name, also code of other
repositories ("them/theirs--module.Class"). Nobody who loads the export trusted what the source's files named.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers

from stages.families import modeling_prunecast
from stages.files import write_text

NAMES_CODE = frozenset({"auto_map", "custom_pipelines", "custom_generate"})
"""Keys, at any depth of a configuration, by which transformers finds code to run."""
OF_THE_MACHINE = frozenset({"is_local", "local_files_only", "name_or_path", "_name_or_path"})
"""Keys by which transformers notes where it loaded something from."""
_MODULE = modeling_prunecast.__name__.rpartition(".")[2]
_CONFIGURATIONS = ("*config.json", "special_tokens_map.json")


def keep_own_code_alone(folder: Path) -> None:
    """Take out of a folder that was written what names or is other code than Prunecast's, saying so."""
    for pattern in _CONFIGURATIONS:
        for path in sorted(folder.glob(pattern)):
            found = json.loads(path.read_text(encoding="utf-8"))
            kept, foreign = _own(found, path.name == "config.json")
            if kept != found:
                write_text(path, json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
            if foreign:
                print(f"export: {path.name} named code of the source's; the export does without", flush=True)
    for path in sorted(folder.rglob("*.py")):
        if path != folder / f"{_MODULE}.py":
            path.unlink()
            print(f"export: {path.name}, code of the source's, is not passed on", flush=True)


def _own(found: Any, of_model: bool) -> tuple[dict[str, Any], bool]:
    """What stays of a configuration, and whether it named code of others."""
    kept = _without_code(found)
    if of_model and _is_ours(found.get("auto_map")):
        kept["auto_map"] = found["auto_map"]
    tokenizer = str(kept.get("tokenizer_class", "AutoTokenizer"))
    foreign = kept != found or not hasattr(transformers, tokenizer)
    if tokenizer == "TokenizersBackend" or not hasattr(transformers, tokenizer):
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"  # any release has it; tokenizer.json is enough
    return {key: value for key, value in kept.items() if key not in OF_THE_MACHINE}, foreign


def _is_ours(auto_map: Any) -> bool:
    return isinstance(auto_map, dict) and all(
        isinstance(name, str) and name.startswith(f"{_MODULE}.") for name in auto_map.values()
    )


def _without_code(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_code(item) for key, item in value.items() if key not in NAMES_CODE}
    if isinstance(value, list):
        return [_without_code(item) for item in value]
    return value
