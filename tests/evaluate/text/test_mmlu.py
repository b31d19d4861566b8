"""MMLU: prompts against lm-eval's templates, packed sequences against each choice run alone."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
import yaml

from stages.evaluate.network.decoder import Decoder
from stages.evaluate.text import mmlu
from stages.evaluate.text.corpora import Question
from stages.files import InputError
from tests import tiny
from tests.conftest import TinyFolder

WHERE = "corpora.questions.mine, part report,"
TOKENIZER = tiny.byte_tokenizer()


def words(rng: random.Random, most: int) -> str:
    return " ".join(
        "".join(rng.choices("abcdefgé", k=rng.randint(1, 6))) for _ in range(rng.randint(1, most))
    )


def make_questions(count: int = 6, seed: int = 0) -> list[Question]:
    rng = random.Random(seed)
    return [
        Question(
            f"q{index}",
            rng.choice(["abstract_algebra", "anatomy"]),
            words(rng, 3 + 5 * index) + "?",
            (words(rng, 1), words(rng, 4), "x", words(rng, 9)),
            rng.randrange(4),
        )
        for index in range(count)
    ]


def chosen(questions: list[Question], longest: int = 10_000) -> list[mmlu.Item]:
    kept = mmlu.choose(questions, TOKENIZER, None, longest, WHERE)
    return mmlu.likelihood_items(kept, TOKENIZER)


def likelihoods(
    network: Decoder, items: list[mmlu.Item], tokens_per_batch: int, pad: int = 0
) -> torch.Tensor:
    dense = network.shape.dense()
    with torch.inference_mode():
        parts = [network.log_likelihoods(dense, b) for b in mmlu.batches(items, tokens_per_batch, pad)]
    return torch.cat(parts)


def alone(model: Any, question: Question) -> list[float]:
    """The log-likelihood of each choice's text after the prompt, in a sequence of its own."""
    subject = question.subject.replace("_", " ")
    first = f"The following are questions (with answers) about {subject}.\n\n"
    context = f"{first}Question: {question.question}\nAnswer:".encode()
    sums = []
    for choice in question.choices:
        whole = context + b" " + choice.encode()
        ids = TOKENIZER(whole.decode(), return_tensors="pt", add_special_tokens=False)["input_ids"]
        assert ids.shape == (1, len(whole))
        logs = tiny.reference_logits(model, ids)[0].double().log_softmax(-1)
        sums.append(sum(float(logs[place - 1, ids[0, place]]) for place in range(len(context), len(whole))))
    return sums


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def folder(request: pytest.FixtureRequest, tiny_folder: TinyFolder) -> Path:
    return tiny_folder(request.param, attention_bias=True)


def test_packed_choices_score_as_each_would_alone(folder: Path) -> None:
    questions = make_questions()
    network, model = tiny.network_of(folder), tiny.reference(folder)
    expected = torch.tensor([alone(model, question) for question in questions])
    assert expected.std() > 10
    items = chosen(questions)
    assert max(item.length for item in items) > 1.5 * min(item.length for item in items)  # there is padding
    sizes = [len(choice) for item in items for choice in item.choices]
    for tokens_per_batch in (1, 500, 100_000):
        found = likelihoods(network, items, tokens_per_batch)
        sums = torch.stack([part.sum() for part in found.split(sizes)]).view(-1, 4)
        torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-4)


def test_neither_padding_nor_neighbours_matter(folder: Path) -> None:
    network, items = tiny.network_of(folder), chosen(make_questions())
    one_by_one = torch.cat([likelihoods(network, [item], 1) for item in items])
    for tokens_per_batch, pad in ((100_000, 0), (100_000, 77), (700, 3)):
        found = likelihoods(network, items, tokens_per_batch, pad)
        torch.testing.assert_close(found, one_by_one, rtol=1e-5, atol=1e-5)


def test_each_token_is_run_once_where_separate_sequences_would_repeat_the_prompt() -> None:
    items = chosen(make_questions())
    for item in items:
        (batch,) = mmlu.batches([item], 1)
        read = len(item.prompt) + sum(len(choice) - 1 for choice in item.choices)
        assert batch.tokens.shape == (1, read) == (1, item.length)
        assert batch.targets.tolist() == [token for choice in item.choices for token in choice]


@pytest.mark.parametrize("tokens_per_batch", [1, 400, 1000, 100_000])
def test_batches_hold_at_most_the_asked_tokens(tokens_per_batch: int) -> None:
    items = chosen(make_questions(20))
    batches = mmlu.batches(items, tokens_per_batch)
    assert sum(batch.tokens.shape[0] for batch in batches) == 20
    for batch in batches:
        assert batch.tokens.shape[0] == 1 or batch.tokens.numel() <= tokens_per_batch
    targets = [t for batch in batches for t in batch.targets.tolist()]
    assert targets == [t for item in items for choice in item.choices for t in choice]


def task_files(kind: str) -> list[metadata.PackagePath]:
    """The files of lm-eval's MMLU tasks of a kind."""
    try:
        files = metadata.files("lm-eval") or []
    except metadata.PackageNotFoundError:
        pytest.skip("lm-eval is not installed")
    return [f for f in files if f.parent.as_posix().endswith(f"tasks/mmlu/{kind}")]


def test_prompts_are_those_of_lm_eval() -> None:
    continuation = task_files("continuation")
    (template_file,) = (f for f in continuation if f.name == "_continuation_template_yaml")
    template = yaml.safe_load(template_file.read_text())
    assert template["output_type"] == "multiple_choice"
    assert "target_delimiter" not in template  # so it is lm-eval's default, one space
    subjects = [yaml.safe_load(f.read_text()) for f in continuation if f.name.startswith("mmlu_")]
    assert len(subjects) == 57
    for subject in subjects:
        name = subject["dataset_name"]
        question = Question("q", name, "  What is\nit?\n", (" padded ", "b", "c d", "e"), 2)
        # lm-eval renders its templates with these settings (lm_eval.utils).
        environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)

        def render(text: str, question: Question = question, environment: Any = environment) -> str:
            rendered: str = environment.from_string(text).render(
                question=question.question, choices=list(question.choices), answer=question.answer
            )
            return rendered

        assert mmlu.prompt(question) == subject["description"] + render(template["doc_to_text"])
        assert render(template["doc_to_choice"]) == str(list(question.choices))
        assert render(template["doc_to_target"]) == str(question.answer)
        (item,) = chosen([question])
        assert TOKENIZER.decode(item.prompt) == mmlu.prompt(question)
        assert [TOKENIZER.decode(c) for c in item.choices] == [f" {choice}" for choice in question.choices]


def test_accuracies_and_log_likelihood_by_hand() -> None:
    items = [
        mmlu.Item("a", "art", [9], [[1], [2, 3], [4], [5, 6, 7]], 1, [2, 1, 1, 8], 0),
        mmlu.Item("b", "art", [9], [[1, 2], [3], [4], [5]], 0, [9, 1, 1, 1], 0),
    ]
    found = torch.tensor([-3.0, -1.0, -1.5, -2.6, -0.5, -1.5, -2.0, -1.0, -2.5, -1.75, -4.0, -5.0])
    metrics, samples = mmlu.scores(found, items)
    norms = {"accuracy_norm": [0.0, 1.0]}  # -1.5, -2.5, -2.6, -0.5 a character; then -0.39, -1.75, -4, -5
    assert samples == {"accuracy": [1.0, 0.0], **norms, "log_likelihood": [-2.5, -3.5]}
    assert metrics == {"accuracy": 0.5, "accuracy_norm": 0.5, "log_likelihood": -3.0}
    by_letter, _ = mmlu.scores(found, items, "quiz.letter")
    assert list(by_letter) == ["quiz.letter.accuracy", "quiz.letter.log_likelihood"]


def test_metrics_are_the_means_of_their_samples(folder: Path) -> None:
    questions = make_questions(9, seed=3)
    network, model = tiny.network_of(folder), tiny.reference(folder)
    metrics, samples = mmlu.scores(likelihoods(network, chosen(questions), 1000), chosen(questions))
    expected = [alone(model, question) for question in questions]
    right = [sums.index(max(sums)) == q.answer for sums, q in zip(expected, questions, strict=True)]
    assert samples["accuracy"] == right
    assert 0 < sum(right) < len(right)
    assert metrics["accuracy"] == pytest.approx(statistics.fmean(right))
    answers = [sums[question.answer] for sums, question in zip(expected, questions, strict=True)]
    assert samples["log_likelihood"] == pytest.approx(answers, rel=1e-5)
    assert metrics["log_likelihood"] == pytest.approx(statistics.fmean(answers), rel=1e-5)


def test_long_questions_are_passed_over() -> None:
    questions = make_questions(12)
    lengths = {question.id: item.length for question, item in zip(questions, chosen(questions), strict=True)}
    limit = sorted(lengths.values())[6]
    fitting = [question.id for question in questions if lengths[question.id] <= limit]
    assert [item.id for item in chosen(questions, limit)] == fitting
    few = mmlu.choose(questions, TOKENIZER, 3, limit, WHERE)
    assert [question.id for question in few] == fitting[:3]
    assert mmlu.choose(questions, TOKENIZER, None, None, WHERE) == questions
    with pytest.raises(InputError, match="part report, has no question of at most 10 tokens among 12; raise"):
        chosen(questions, 10)
    with pytest.raises(InputError, match="among 0"):
        mmlu.choose([], TOKENIZER, 3, limit, WHERE)


# --- five-shot, by letter ---------------------------------------------------------------------------


def pool_of(count: int = 16) -> list[Question]:
    """Answered questions of both subjects, not in the order of their index."""
    made = [replace(q, id=f"dev-{q.id}", index=i) for i, q in enumerate(make_questions(count, seed=9))]
    return random.Random(4).sample(made, len(made))


def lettered(questions: list[Question], pool: list[Question], longest: int = 100_000) -> list[mmlu.Item]:
    found = mmlu.letter_items(questions, pool, TOKENIZER, longest)
    return sorted(found, key=lambda item: (item.subject, item.length))


def test_five_shot_prompts_are_those_of_lm_eval() -> None:
    default = task_files("default")
    (template_file,) = (f for f in default if f.name == "_default_template_yaml")
    template = yaml.safe_load(template_file.read_text())
    assert template["doc_to_choice"] == list(mmlu.LETTERS)
    assert template["fewshot_config"] == {"sampler": "first_n"}
    assert not {"target_delimiter", "fewshot_delimiter"} & template.keys()  # so " " and two line ends
    (subject_file,) = (f for f in default if f.name == "mmlu_anatomy.yaml")
    subject = yaml.safe_load(subject_file.read_text())
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)

    def text(question: Question) -> str:
        return environment.from_string(template["doc_to_text"]).render(
            question=question.question, choices=list(question.choices)
        )

    pool = [q for q in sorted(pool_of(), key=lambda q: q.index) if q.subject == "anatomy"]
    assert len(pool) > 5
    question = Question("q", "anatomy", "  What is\nit?\n", (" padded ", "b", "c d", "e"), 2)
    shots = "".join(f"{text(q)} {'ABCD'[q.answer]}\n\n" for q in pool[:5])
    assert mmlu.letter_prompt(question, pool[:5]) == subject["description"] + shots + text(question)
    item = mmlu.letter_items([question], pool_of(), TOKENIZER, 100_000)[0]
    assert item.examples == 5
    assert TOKENIZER.decode(item.prompt) == subject["description"] + shots + text(question)
    assert [TOKENIZER.decode(choice) for choice in item.choices] == [" A", " B", " C", " D"]


def test_a_question_is_no_example_of_itself() -> None:
    pool = [q for q in sorted(pool_of(), key=lambda q: q.index) if q.subject == "anatomy"]
    asked = replace(pool[1], id="test-3", question=f" {pool[1].question}\n", answer=0)
    item = mmlu.letter_items([asked], pool, TOKENIZER, 100_000)[0]
    others = [pool[0], *pool[2:6]]
    assert TOKENIZER.decode(item.prompt) == mmlu.letter_prompt(asked, others)
    few = mmlu.letter_items([asked], pool[:3], TOKENIZER, 100_000)[0]
    assert few.examples == 2
    none = mmlu.letter_items([replace(asked, subject="astronomy")], pool, TOKENIZER, 100_000)[0]
    assert none.examples == 0
    assert TOKENIZER.decode(none.prompt) == mmlu.letter_prompt(replace(asked, subject="astronomy"), [])


def test_examples_that_the_models_context_does_not_hold_are_left_out_from_the_last() -> None:
    pool, question = pool_of(), make_questions()[3]
    full = mmlu.letter_items([question], pool, TOKENIZER, 100_000)[0]
    assert full.examples == 5
    size = len(full.prompt) + 1  # a choice is two bytes here, of which the first is read
    assert mmlu.letter_items([question], pool, TOKENIZER, size)[0] == full
    fewer = mmlu.letter_items([question], pool, TOKENIZER, size - 1)[0]
    assert fewer.examples == 4
    same = [q for q in sorted(pool, key=lambda q: q.index) if q.subject == question.subject]
    assert TOKENIZER.decode(fewer.prompt) == mmlu.letter_prompt(question, same[:4])


def test_letters_score_as_each_prompt_would_alone(folder: Path) -> None:
    questions, pool = make_questions(9, seed=5), pool_of()
    network, model = tiny.network_of(folder), tiny.reference(folder)
    items = lettered(questions, pool)
    expected = []
    for item in items:
        logs = []
        for choice in item.choices:
            ids = torch.tensor([item.prompt + choice])
            rows = tiny.reference_logits(model, ids)[0].double().log_softmax(-1)
            first = len(item.prompt)
            logs.append(sum(float(rows[first + i - 1, token]) for i, token in enumerate(choice)))
        expected.append(logs)
    plain = likelihoods(network, items, 100_000)
    with torch.inference_mode():
        for tokens_per_batch in (1, 5000):
            batches = mmlu.batches(items, tokens_per_batch, shared=True)
            parts = [network.log_likelihoods(network.shape.dense(), batch) for batch in batches]
            found = mmlu.choice_log_likelihoods(torch.cat(parts), items)
            torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(torch.cat(parts), plain, rtol=1e-5, atol=1e-4)


def test_prompts_of_a_subject_share_their_examples() -> None:
    questions, pool = make_questions(40, seed=2), pool_of()
    items = lettered([replace(q, question=q.question[:30]) for q in questions], pool)
    alone = sum(item.length for item in items)
    batches = mmlu.batches(items, 1, shared=True)
    assert sum(batch.tokens.numel() for batch in batches) < alone / 4
    assert all(batch.tokens.shape[1] <= mmlu.ROW_TOKENS for batch in batches)
    targets = [t for batch in batches for t in batch.targets.tolist()]
    assert targets == [t for item in items for choice in item.choices for t in choice]


def test_a_tokenizers_bos_stands_before_a_prompt_once() -> None:
    tokenizer = tiny.bos_tokenizer()
    question, pool = make_questions()[1], pool_of()
    for plain, found in (
        (mmlu.likelihood_items([question], TOKENIZER)[0], mmlu.likelihood_items([question], tokenizer)[0]),
        (
            mmlu.letter_items([question], pool, TOKENIZER, 9999)[0],
            mmlu.letter_items([question], pool, tokenizer, 9999)[0],
        ),
    ):
        assert found == replace(plain, prompt=[1, *plain.prompt])
