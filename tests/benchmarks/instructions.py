"""Does instruction text among the calibration keep a chat model's manners? Two whole runs, alike but for it.

    python -m tests.benchmarks.instructions work --model folder-or.gguf

The dense model answers 480 prompts (sampled, seed 0): half of the answers, in its chat template, may
calibrate, a quarter selects, a quarter reports. Both runs measure articles, news and chat, and search for all
three. Both calibrate on 96 windows: `plain` on articles twice and news, `chat` on articles, news and chat.
Corpora that lie in the folder already, as NAME.PART.jsonl, are taken as they are. Minutes on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM

from stages.config.params import ModelSection, load_params
from stages.evaluate.network import checkpoint
from stages.evaluate.text.corpora import load_texts
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
PROMPTS, AT_ONCE, TOKENS = 480, 120, 220
SHARES = {"calibration": slice(0, 240), "selection": slice(240, 360), "report": slice(360, PROMPTS)}
STAGES = ("sample", "evaluate", "build_dataset", "train_predictor", "search", "export")


def conversations(source: ModelSection, device: torch.device) -> list[str]:
    """Prompts and the dense model's answers, whole in its chat template."""
    loaded = checkpoint.load(source)
    model: Any = AutoModelForCausalLM.from_pretrained(loaded.folder)
    model.to(device).eval()
    tokenizer = loaded.tokenizer
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.pad_token or tokenizer.eos_token
    prompts = [form.format(topic) for topic in TOPICS for form in FORMS]
    random.Random(0).shuffle(prompts)
    found = []
    torch.manual_seed(0)
    for start in range(0, PROMPTS, AT_ONCE):
        turns = [[{"role": "user", "content": prompt}] for prompt in prompts[start : start + AT_ONCE]]
        asked = [tokenizer.apply_chat_template(t, tokenize=False, add_generation_prompt=True) for t in turns]
        rows = tokenizer(asked, return_tensors="pt", padding=True, add_special_tokens=False).to(device)
        with torch.inference_mode():
            out = model.generate(**rows, do_sample=True, temperature=0.7, top_p=0.95, max_new_tokens=TOKENS)
        said = tokenizer.batch_decode(out[:, rows["input_ids"].shape[1] :], skip_special_tokens=True)
        for turn, answer in zip(turns, said, strict=True):
            whole = [*turn, {"role": "assistant", "content": answer.strip()}]
            found.append(tokenizer.apply_chat_template(whole, tokenize=False))
    return found


def write_texts(work: Path, source: ModelSection) -> None:
    """The parts of the default's corpora and of the conversations, a file each."""
    device = Machine.of("auto").device
    parts = {}
    if not (work / "news.report.jsonl").is_file():
        parts = {
            f"{name}.{part}": [document.text for document in documents]
            for name, corpus in load_texts(load_params(PARAMS).corpora).items()
            for part, documents in corpus.parts.items()
        }
    said = conversations(source, device)
    parts |= {f"chat.{part}": said[share] for part, share in SHARES.items()}
    for name, texts in parts.items():
        (work / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def write_params(work: Path, folder: Path, source: ModelSection, calibration: str) -> None:
    """Params of a run whose chat corpus calibrates on the file of that name."""
    params = dict(yaml.safe_load(PARAMS.read_text()))
    params["model"]["source"] = str(Path(source.source).resolve())
    texts = {
        name: {part: str(work / f"{name}.{part}.jsonl") for part in SHARES}
        for name in ("wikipedia", "news", "chat")
    }
    texts["chat"]["calibration"] = str(work / f"{calibration}.calibration.jsonl")
    params["corpora"] |= {"texts": texts, "questions": {}}
    params["evaluate"]["calibration"]["samples"] = 96
    params["search"]["front"] = []
    params["export"] |= {"proof": None, "alternatives": None, "gguf": []}
    params["export"]["answers"] = {"prompts": ASKED, "tokens": 48, "windows": 8}
    folder.mkdir(exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def show(name: str, folder: Path) -> None:
    """Perplexities, divergences and answers of a run."""
    table = record.read(folder / "data" / "export" / record.RECORD).table
    for c in table.contenders:
        values = shown(c.metrics, Shown.VERDICT)
        figures = ", ".join(f"{key} {value:.2f}" for key, value in values.items())
        print(f"{name}: {c.name}: {figures}")
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
    asked = parser.parse_args()
    work = asked.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    source = ModelSection(source=asked.model, revision=None, trust_remote_code=False)
    if not (work / "chat.report.jsonl").is_file():
        write_texts(work, source)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
    for name, calibration in (("plain", "wikipedia"), ("chat", "chat")):
        folder = work / name
        write_params(work, folder, source, calibration)
        for stage in STAGES:
            command = [sys.executable, "-m", f"stages.{stage}", "--no-tracking"]
            subprocess.run(command, cwd=folder, check=True, env=environment)
        show(name, folder)


if __name__ == "__main__":
    main()
