"""What is measured: the windows and questions of a part that a measurement's protocol chooses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from stages.config.params import Measurement, Part
from stages.evaluate.text import mmlu, perplexity
from stages.evaluate.text.corpora import Corpus, Document, Question
from stages.evaluate.text.mmlu import Item
from stages.evaluate.text.perplexity import Windows
from stages.metrics.metric import QuestionFormat, asked, format_of

FORMATS: dict[QuestionFormat, str] = {
    "likelihood": "zero-shot by the likelihood of each answer's text (lm-eval's mmlu_continuation)",
    "letter": "by letter (lm-eval's mmlu) after answered questions of the same subject, calibration part",
}


@dataclass(frozen=True)
class Selection:
    """Windows by text corpus, and items by question corpus and format, as `asked` names them."""

    part: Part
    measurement: Measurement
    windows: Mapping[str, Windows]
    items: Mapping[str, list[Item]]

    @property
    def tokens(self) -> int:
        """Tokens that a measurement runs, but for padding and examples that questions share."""
        texts = sum(rows.tokens.numel() for rows in self.windows.values())
        return texts + sum(item.length for items in self.items.values() for item in items)

    def protocol(self) -> list[dict[str, Any]]:
        """How the figures of each corpus and format are measured, with counts, for JSON."""
        measurement = self.measurement
        text = {"protocol": measurement.protocol, **asdict(measurement.text)}
        found: list[dict[str, Any]] = []
        for name, rows in self.windows.items():
            windows, predicted = len(rows.tokens), rows.tokens.shape[0] * rows.predicted
            counts = {"bos_tokens": rows.bos_tokens, "windows": windows, "predicted_tokens": predicted}
            counts["bytes"] = rows.size_bytes
            found.append({"corpus": name, "part": self.part, **text, **counts})
        for name, items in self.items.items():
            examples = Counter(item.examples for item in items)
            found.append(
                {
                    "corpus": name,
                    "part": self.part,
                    "format": format_of(name),
                    "questions": len(items),
                    "question_tokens": measurement.question_tokens,
                    "questions_by_examples": {str(n): examples[n] for n in sorted(examples)},
                }
            )
        return found

    def words(self) -> dict[str, str]:
        """`protocol` in words, by corpus and format."""
        return {
            entry["corpus"]: f"{self.part} part; " + (_of_questions if "format" in entry else _of_text)(entry)
            for entry in self.protocol()
        }


def select(
    texts: Mapping[str, Corpus[Document]],
    questions: Mapping[str, Corpus[Question]],
    part: Part,
    tokenizer: Any,
    measurement: Measurement,
    context_tokens: int,
) -> Selection:
    """Choose what a measurement of a part of the corpora is made on.

    Questions are the same in all formats, in an order that makes batches cheap: by length, or by
    subject where prompts share their examples.

    Raises:
        InputError: a corpus's part is too small, or windows exceed the model's context.
    """
    perplexity.check_context(measurement.text, context_tokens)
    windows = {
        name: perplexity.windows(
            text.parts[part],
            tokenizer,
            measurement.text,
            measurement.windows,
            f"corpora.texts.{name}, part {part},",
        )
        for name, text in texts.items()
    }
    items: dict[str, list[Item]] = {}
    for name, corpus in questions.items():
        chosen = mmlu.choose(
            corpus.parts[part],
            tokenizer,
            measurement.questions,
            measurement.question_tokens,
            f"corpora.questions.{name}, part {part},",
        )
        for style in measurement.question_formats:
            if style == "likelihood":
                found = mmlu.likelihood_items(chosen, tokenizer)
                items[asked(name, style)] = sorted(found, key=lambda item: (item.length, item.id))
            else:
                pool = corpus.parts["calibration"]
                found = mmlu.letter_items(chosen, pool, tokenizer, context_tokens)
                items[asked(name, style)] = sorted(
                    found, key=lambda item: (item.subject, item.length, item.id)
                )
    return Selection(part, measurement, windows, items)


def _of_text(entry: Mapping[str, Any]) -> str:
    length, stride = entry["sequence_length"], entry["stride"]
    overlap = "not overlapping" if stride >= length - (entry["bos"] == "window") else f"one every {stride}"
    bos = "BOS in each" if entry["bos"] == "window" else "one BOS before the text"
    joined = "a blank line" if entry["join"] == "\n\n" else repr(entry["join"])
    return (
        f"protocol {entry['protocol']}: {entry['windows']:,} windows of {length:,} tokens, {overlap}, "
        f"{bos if entry['bos_tokens'] else 'no BOS'}, tail dropped, documents joined by {joined}; "
        f"{entry['predicted_tokens']:,} predicted tokens, {entry['bytes']:,} bytes"
    )


def _of_questions(entry: Mapping[str, Any]) -> str:
    longest = entry["question_tokens"]
    limit = "" if longest is None else f" of at most {longest} tokens"
    words = f"{entry['questions']:,} questions{limit}, {FORMATS[entry['format']]}"
    if entry["format"] == "likelihood":
        return words
    counts = ", ".join(f"{n} for {count:,}" for n, count in entry["questions_by_examples"].items())
    return f"{words} ({counts} questions)"
