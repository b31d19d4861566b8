"""MMLU by lm-eval itself, offline: its own task files, on questions that are handed to it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stages.evaluate.text.corpora import Question
from stages.metrics.metric import QuestionFormat

TASKS: Mapping[QuestionFormat, tuple[str, str, int]] = {
    # lm-eval's folder of tasks, the template in it, the number of examples
    "likelihood": ("continuation", "_continuation_template_yaml", 0),
    "letter": ("default", "_default_template_yaml", 5),
}


@dataclass(frozen=True)
class Answers:
    """What lm-eval made of each question, by id: log-likelihoods of the choices, and its accuracies.

    `normalised` is ``acc_norm``, and empty by letter, where lm-eval's task does not ask for it.
    """

    log_likelihoods: Mapping[str, list[float]]
    accuracy: Mapping[str, float]
    normalised: Mapping[str, float]


def answers(
    model: Any,
    tokenizer: Any,
    style: QuestionFormat,
    questions: Sequence[Question],
    pool: Sequence[Question],
    folder: Path,
) -> Answers:
    """Run lm-eval's MMLU in a format on `questions`, with examples from the head of `pool`.

    `model` is a transformers model; `folder` is for the files that lm-eval reads.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    names = write_tasks(style, questions, pool, folder)
    results = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1),
        tasks=names,
        num_fewshot=TASKS[style][2],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
        verbosity="ERROR",
    )
    samples = [sample for of_task in results["samples"].values() for sample in of_task]
    return Answers(
        {s["doc"]["id"]: [float(value) for value, _ in s["filtered_resps"]] for s in samples},
        {s["doc"]["id"]: float(s["acc"]) for s in samples},
        {s["doc"]["id"]: float(s["acc_norm"]) for s in samples if "acc_norm" in s},
    )


def write_tasks(
    style: QuestionFormat, questions: Sequence[Question], pool: Sequence[Question], folder: Path
) -> list[str]:
    """lm-eval's own templates and descriptions over files of questions; returns the tasks' names."""
    import lm_eval

    kind, template, _ = TASKS[style]
    own = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / kind
    names = []
    for subject in sorted({question.subject for question in questions}):
        files = {}
        for split, of_split in (("test", questions), ("dev", sorted(pool, key=lambda q: q.index))):
            files[split] = str(folder / f"{subject}.{split}.jsonl")
            rows = [json.dumps(_row(q)) for q in of_split if q.subject == subject]
            Path(files[split]).write_text("\n".join(rows) + "\n", encoding="utf-8")
        task = yaml.safe_load((own / template).read_text(encoding="utf-8"))
        task["description"] = yaml.safe_load((own / f"mmlu_{subject}.yaml").read_text())["description"]
        task |= {"task": f"{style}_{subject}", "dataset_path": "json"}
        task["dataset_kwargs"] = {"data_files": files}
        (folder / f"{style}_{subject}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
        names.append(task["task"])
    return names


def _row(question: Question) -> dict[str, Any]:
    return {
        "id": question.id,
        "question": question.question,
        "choices": list(question.choices),
        "answer": question.answer,
    }
