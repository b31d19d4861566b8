"""Stages on random weights in the shape of a large model: seconds, and the most memory and disk they take.

    python -m tests.benchmarks.scale llama-2-7b work --stages sample evaluate
    python -m tests.benchmarks.scale llama-2-7b work --stages sample evaluate --gpu-memory-gib 22
    python -m tests.benchmarks.scale qwen2.5-1.5b work --params params.gpu-1b.yaml --proof

The weights are made in `work/model` if they are not there yet. Every stage runs as a user runs it, in a
process of its own, without tracking unless it is asked for; what lies in `work` is kept for later stages.
A profile is run as it is but for its corpora, which are made here, and its recovery, which is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from stages.evaluate.results import journal
from stages.plan import memory
from tests import tiny
from tests.benchmarks.machine import Machine
from tests.faults.world import paragraphs, questions
from tests.small import PARAMS, REPOSITORY

SHAPES = Path(memory.__file__).parent
STAGES = ("sample", "evaluate", "build_dataset", "train_predictor", "search", "export")
SHARD_BYTES = 4e9


def write_model(shape: str, folder: Path) -> None:
    """Random weights in bfloat16, as published checkpoints have them: small, with norms about one."""
    config = AutoConfig.from_pretrained(SHAPES / f"{shape}.json")
    config.dtype = torch.bfloat16
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    tiny.byte_tokenizer(("t", "h"), ("th", "e")).save_pretrained(folder)  # llama.cpp asks for merges
    device = Machine.of("auto").device
    generator = torch.Generator(device).manual_seed(0)
    made: dict[str, torch.Tensor] = {}
    index: dict[str, str] = {}

    def flush() -> None:
        name = f"model-{len({*index.values()}) + 1:05d}.safetensors"
        save_file(made, folder / name, {"format": "pt"})
        index.update(dict.fromkeys(made, name))
        made.clear()

    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        values = torch.randn(parameter.shape, generator=generator, device=device) * 0.02
        made[name] = (1 + values if "norm" in name else values).to(torch.bfloat16).cpu()
        if sum(tensor.nbytes for tensor in made.values()) > SHARD_BYTES:
            flush()
    flush()
    size = sum(2 * parameter.numel() for parameter in parameters.values())
    text = json.dumps({"metadata": {"total_size": size}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


def write_rest(work: Path, profile: Path | None, changes: dict[str, dict[str, Any]]) -> None:
    """Corpora, and the committed params with this model and as many tokens as the bars are stated for.

    Of a `profile`, as many as that says.
    """
    for name, step in (("prose", 3), ("verse", 5)):
        (work / f"{name}.txt").write_text("\n\n".join(paragraphs(1600 if profile is None else 4000, step)))
    rows = [json.dumps(question) + "\n" for question in questions(200 if profile is None else 4000)]
    (work / "quiz.jsonl").write_text("".join(rows))
    params = dict(yaml.safe_load((profile or PARAMS).read_text()))
    params["model"]["source"] = "model"
    params["corpora"] |= {
        "texts": {"prose": "prose.txt", "verse": "verse.txt"},
        "questions": {"quiz": "quiz.jsonl"},
    }
    params["export"]["recovery"]["method"] = "none"
    if profile is None:
        params["sample"]["spread_overall_ratios"] = [0.1, 0.38]  # what 28 layers reach too
    params["search"]["objective"] = {"log_ppl.prose": 1.0, "log_ppl.verse": 1.0}
    for section in ("evaluate", "search", "export"):
        params[section]["measurement"]["question_tokens"] = None  # they have a token a letter here
        if profile is None:
            params[section]["measurement"]["windows"] = 16  # of each text, 512 tokens each: 16,384
    for section, values in changes.items():
        params[section] |= values
    (work / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


@dataclass
class Used:
    """What a stage took: seconds, and the most bytes at any time."""

    stage: str
    code: int
    seconds: float
    host: float = 0.0
    gpu: float = 0.0
    disk: float = 0.0


def gpu_bytes() -> float:
    """Bytes in use on the first GPU, by its driver; 0 where there is none."""
    if not shutil.which("nvidia-smi"):
        return 0.0
    asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return float(said or 0) * 2**20


def size_of(folder: Path) -> float:
    return float(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))


def run(stage: str, work: Path, tracking: bool, profile: bool) -> Used:
    """Run a stage and watch what it takes; with a `profile`, its calls go to STAGE.prof."""
    environment = os.environ | {
        "PRUNECAST_CACHE": str(work / "cache"),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    through = ["-m", "cProfile", "-o", f"{stage}.prof"] if profile else []
    command = [sys.executable, *through, "-m", f"stages.{stage}", *([] if tracking else ["--no-tracking"])]
    free, before, began = psutil.disk_usage(str(work)).free, gpu_bytes(), time.monotonic()
    process = subprocess.Popen(command, cwd=work, env=environment)
    used, over = Used(stage, 0, 0.0), threading.Event()

    def watch() -> None:
        while not over.wait(0.3):
            try:
                used.host = max(used.host, psutil.Process(process.pid).memory_full_info().uss)
            except psutil.Error:
                continue
            used.gpu = max(used.gpu, gpu_bytes() - before)
            used.disk = max(used.disk, free - psutil.disk_usage(str(work)).free)

    watcher = threading.Thread(target=watch)
    watcher.start()
    used.code = process.wait()
    over.set()
    watcher.join()
    used.seconds = time.monotonic() - began
    return used


def architectures(work: Path) -> str:
    """The median seconds of an architecture, and those of the dense one."""
    path = work / "data" / "evaluate" / "journal.jsonl"
    rows = list(journal.read(path).values()) if path.is_file() else []
    pruned = [row.seconds for row in rows if row.design != "dense"]
    if not pruned:
        return "nothing measured"
    dense = [row.seconds for row in rows if row.design == "dense"]
    slowest = max(pruned)
    median = statistics.median(pruned)
    return f"{len(rows)} architectures: median {median:.2f} s, slowest {slowest:.2f} s, dense {dense}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=sorted(path.stem for path in SHAPES.glob("*.json")))
    parser.add_argument("work", type=Path)
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--gpu-memory-gib", type=float)
    parser.add_argument("--executor", default="local", choices=("local", "ray"), help="who measures")
    parser.add_argument("--gguf", nargs="*", help="default: what the profile says, or Q8_0")
    parser.add_argument("--params", type=Path, help="a profile, in place of the default and its windows")
    parser.add_argument("--tracking", action="store_true")
    parser.add_argument("--proof", action="store_true", help="the proof of speed, on the GPU, too")
    parser.add_argument("--profile", action="store_true", help="cProfile, to STAGE.prof in the folder")
    asked = parser.parse_args(arguments)
    work = asked.work.resolve()
    print(Machine.of("auto"), flush=True)
    if not (work / "model").is_dir():
        began = time.monotonic()
        write_model(asked.shape, work / "model")
        print(f"wrote {size_of(work / 'model') / 1e9:.1f} GB in {time.monotonic() - began:.0f} s", flush=True)
    export: dict[str, Any] = {"dtype": "bfloat16"}
    if asked.gguf or asked.params is None:
        export["gguf"] = asked.gguf or ["Q8_0"]
    if not asked.proof:
        export["proof"] = None
    evaluate = {"gpu_memory_gib": asked.gpu_memory_gib, "executor": asked.executor}
    write_rest(work, asked.params, {"evaluate": evaluate, "export": export})
    found = []
    for stage in asked.stages:
        used = run(stage, work, asked.tracking, asked.profile)
        found.append(used)
        print(used, flush=True)
        if used.code:
            break
    print(architectures(work))
    print("\n| stage | seconds | GPU, GiB | host, GiB | disk, GB |\n| --- | --- | --- | --- | --- |")
    for used in found:
        print(
            f"| {used.stage} | {used.seconds:.0f} | {used.gpu / 2**30:.1f} | {used.host / 2**30:.1f} "
            f"| {used.disk / 1e9:.1f} |"
        )
    return max(used.code for used in found)


if __name__ == "__main__":
    sys.exit(main())
