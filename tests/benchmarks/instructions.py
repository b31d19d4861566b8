"""Do conversations among the calibration keep a chat model's manners? Whole runs, alike but for their number.

    python -m tests.benchmarks.instructions work --model folder-or.gguf --conversations 0 8 16 32

Each run is the default's, without questions and further ratios, and with so many windows of conversations
that the dense model wrote. What they brought is seen on other chats: its answers (sampled, seed 0) to 120
prompts that somebody else wrote, which no run calibrates on or chooses by. Corpora that lie in the folder
already, as NAME.PART.jsonl, are taken as they are. Minutes on a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.config.params import PARTS, ModelSection, load_params
from stages.evaluate.network import checkpoint
from stages.evaluate.results.errors import standard_error
from stages.evaluate.text.corpora import load_texts
from stages.evaluate.text.prompts import chat
from stages.export.results import record
from stages.metrics.metric import Shown
from stages.metrics.registered import shown
from tests.benchmarks.machine import Machine
from tests.small import PARAMS, REPOSITORY

TOPICS = [
    "rivers", "bread", "chess", "volcanoes", "taxes", "guitars", "sleep", "bees", "money", "trains",
    "gardens", "vaccines", "football", "clouds", "bridges", "coffee", "dreams", "computers", "whales",
    "friendship", "poetry", "electricity", "cooking", "history", "robots", "dogs", "medicine", "oceans",
    "music", "paper", "tea", "maps", "clocks", "forests", "cheese", "horses", "libraries", "islands",
    "bicycles", "glass",
]  # fmt: skip
FORMS = (
    "What is the use of {}?", "Explain {} to a child.", "Write a short note about {}.",
    "List three facts about {}.", "Give me advice on {}.", "Why do people care about {}?",
    "Write two sentences on the history of {}.", "What should a beginner know about {}?",
    "Translate 'I like {}' into polite English.", "Compare {} with something similar.",
    "Ask me a question about {}.", "Tell me a short story about {}.",
)  # fmt: skip
ASKED = [
    "What is the capital of France?", "Why is the sky blue?", "Write a short note that thanks a colleague.",
    "List three colours.", "What is 2 + 3?", "Who wrote Romeo and Juliet?", "Give me a tip for better sleep.",
    "Say hello in Spanish.",
]  # fmt: skip
PROMPTS, TOKENS = 120, 220
STAGES = ("sample", "evaluate", "build_dataset", "train_predictor", "search", "export")


def said(source: ModelSection, device: torch.device) -> list[str]:
    """Prompts and the dense model's answers, whole in its chat template."""
    loaded = checkpoint.load(source)
    model: Any = AutoModelForCausalLM.from_pretrained(loaded.folder)
    model.to(device).eval()
    tokenizer = loaded.tokenizer
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.pad_token or tokenizer.eos_token
    prompts = [form.format(topic) for topic in TOPICS for form in FORMS]
    random.Random(0).shuffle(prompts)
    asked = [chat(tokenizer, [prompt], asks=True) for prompt in prompts[:PROMPTS]]
    rows = tokenizer(asked, return_tensors="pt", padding=True, add_special_tokens=False).to(device)
    torch.manual_seed(0)
    with torch.inference_mode():
        out = model.generate(**rows, do_sample=True, temperature=0.7, top_p=0.95, max_new_tokens=TOKENS)
    answers = tokenizer.batch_decode(out[:, rows["input_ids"].shape[1] :], skip_special_tokens=True)
    return [chat(tokenizer, [p, answer.strip()]) for p, answer in zip(prompts, answers, strict=False)]


def write_texts(work: Path) -> None:
    """The parts of the default's corpora, a file each."""
    for name, corpus in load_texts(load_params(PARAMS).corpora).items():
        for part, documents in corpus.parts.items():
            lines = [json.dumps({"text": document.text}) + "\n" for document in documents]
            (work / f"{name}.{part}.jsonl").write_text("".join(lines))


def write_params(work: Path, folder: Path, source: ModelSection, conversations: int) -> None:
    """Params of a run that calibrates on so many windows of conversations."""
    params = dict(yaml.safe_load(PARAMS.read_text()))
    params["model"]["source"] = str(Path(source.source).resolve())
    texts = {
        name: {part: str(work / f"{name}.{part}.jsonl") for part in PARTS} for name in ("wikipedia", "news")
    }
    params["corpora"] |= {"texts": texts, "questions": {}}
    params["evaluate"]["calibration"]["conversations"] = conversations
    params["search"]["front"] = []
    params["export"] |= {"proof": None, "alternatives": None, "gguf": []}
    params["export"]["answers"] = {"prompts": ASKED, "tokens": 48, "windows": 8}
    folder.mkdir(exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def logits(model: Any, rows: Sequence[Tensor]) -> Iterator[Tensor]:
    """Log-probabilities (L, V) after each token of each row (L,), in float32."""
    for row in rows:
        with torch.inference_mode():
            yield model(row[None].to(model.device)).logits[0].float().log_softmax(-1)


def compared(dense: Any, pruned: Any, rows: Sequence[Tensor]) -> tuple[list[float], list[float], list[float]]:
    """Log perplexity of dense and pruned model, and the divergence between them, a chat each."""
    found: tuple[list[float], list[float], list[float]] = ([], [], [])
    for row, p, q in zip(rows, logits(dense, rows), logits(pruned, rows), strict=True):
        after = row[1:, None].to(p.device)
        values = (-p[:-1].gather(1, after).mean(), -q[:-1].gather(1, after).mean())
        for place, value in zip(found, (*values, (p.exp() * (p - q)).sum(-1).mean()), strict=True):
            place.append(float(value))
    return found


def show(name: str, folder: Path, chats: Sequence[str], dense: Any) -> None:
    """Perplexities, divergences and answers of a run."""
    table = record.read(folder / "data" / "export" / record.RECORD).table
    for c in table.contenders:
        values = shown(c.metrics, Shown.VERDICT)
        print(f"{name}: {c.name}:", ", ".join(f"{key} {value:.2f}" for key, value in values.items()))
    exported = folder / "data" / "export" / "model"
    tokenizer = AutoTokenizer.from_pretrained(exported)
    rows = [torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in chats]
    pruned: Any = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    pruned.to(dense.device).eval()
    theirs, ours, apart = compared(dense, pruned, rows)
    before, after = (math.exp(statistics.fmean(values)) for values in (theirs, ours))
    print(
        f"{name}: chats of other prompts: perplexity {after:.2f} (dense {before:.2f}), divergence "
        f"{statistics.fmean(apart):.3f} +- {standard_error(apart):.3f}"
    )
    assert table.answers is not None
    print(f"{name}: divergence {table.answers.divergence}, errors {table.answers.divergence_errors}")
    for place, prompt in enumerate(table.answers.prompts):
        for who, texts in table.answers.texts.items():
            print(f"{name} | {prompt} | {who} | {' '.join(texts[place].split())[:160]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", required=True, help="a folder or a .gguf file with a chat template")
    parser.add_argument("--conversations", type=int, nargs="+", default=[0, 8, 16, 32])
    asked = parser.parse_args()
    work = asked.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    source = ModelSection(source=asked.model, revision=None, trust_remote_code=False)
    if not (work / "news.report.jsonl").is_file():
        write_texts(work)
    device = Machine.of("auto").device
    chats = said(source, device)
    dense: Any = AutoModelForCausalLM.from_pretrained(checkpoint.load(source).folder)
    dense.to(device).eval()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
    for count in asked.conversations:
        folder = work / f"{count}-conversations"
        write_params(work, folder, source, count)
        for stage in STAGES:
            command = [sys.executable, "-m", f"stages.{stage}", "--no-tracking"]
            subprocess.run(command, cwd=folder, check=True, env=environment)
        show(f"{count} windows", folder, chats, dense)


if __name__ == "__main__":
    main()
